r"""A conditional VAE of the hidden quadrants of an image, given the visible ones.

Visible are the bottom left quadrant; the left half; or all but the bottom right quadrant. For each, two numbers in nats
per image, of the hidden pixels:

- grey pixels: -ELBO with the cross-entropy in place of a density, as in Pyro's tutorial ("negative conditional
  log-likelihood"). Grey pixels are not in the support of a Bernoulli, so this bounds no log p;
- binarised pixels: -ELBO, and -log p(hidden | visible) by importance sampling, on average an upper bound.

The two are numbers of different data, and do not compare. Visible pixels are binarised once; hidden pixels at every
reading of a training image, and once for a test image.

References:
    Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee and Yan, 2015).

    Conditional Variational Auto-encoder, a tutorial of Pyro: the numbers beside ours.

The committed table and figure: ``python experiments/quadrants.py --root DATA``.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from common import command, show, write_table
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import evaluate, fit, likelihoods, networks
from pyro_vae.conditional import Family, mean
from pyro_vae.data import Dataset, Split, load
from pyro_vae.programs import ConditionalVAE

TUTORIAL = {1: (100.4, 71.8), 2: (61.9, 51.0), 3: (25.4, 24.2)}  # by a network alone, and by its CVAE


class Grey(dist.Bernoulli):
    """Minus the cross-entropy of grey pixels, which is not a density."""

    support = constraints.unit_interval
    has_enumerate_support = False


class CrossEntropy(Family):
    """The log-probability of a Bernoulli, applied to grey pixels."""

    params = 1

    def distribution(self, logits: Tensor) -> dist.TorchDistribution:  # type: ignore[override]
        """Return the distribution for ``logits``, of shape ``(*, *event)``."""
        return Grey(logits=logits)


def main(
    data: str = "mnist",
    root: str = "data",
    quadrants: tuple[int, ...] = (1, 2, 3),
    latent: int = 50,
    hidden: tuple[int, ...] = (500, 500),
    epochs: int = 50,
    batch_size: int = 500,
    lr: float = 1e-3,
    num_particles: int = 1000,
    images: int = 10_000,
    seed: int = 0,
    out: str = "experiments/results",
) -> None:
    """Train two conditional VAEs for each number of quadrants, and write quadrants.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set of images.
        root: Folder where torchvision finds it.
        quadrants: Numbers of visible quadrants.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer.
        epochs: Passes over the training images; the weights of the best one on validation images are kept.
        batch_size: Images in a minibatch.
        lr: Adam's largest learning rate, of one cycle.
        num_particles: Draws per image for -log p.
        images: Number of test images, the first ones.
        seed: Seed of the weights, the order and the draws.
        out: Folder for the results.
    """
    if not set(quadrants) <= set(TUTORIAL):
        raise ValueError(f"Expected quadrants among {', '.join(map(str, TUTORIAL))}; got {quadrants}.")
    torch.manual_seed(seed)
    whole = {"grey": load(data, root), "binary": load(data, root, binarize="dynamic")}
    network = partial(networks.MLP, hidden=hidden)
    rows: list[dict[str, Any]] = []
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for number, axes in zip(quadrants, figure.subplots(1, len(quadrants), squeeze=False)[0], strict=True):
        seen = seen_of(whole["grey"].event_shape, number)
        row: dict[str, Any] = {"quadrants seen": number}
        row |= dict(zip(("tutorial, network alone", "tutorial, CVAE"), TUTORIAL[number], strict=True))
        for kind, dataset in whole.items():
            part = hidden_given_seen(dataset, seen, seed)
            likelihood: type[Family] = likelihoods.Bernoulli if kind == "binary" else CrossEntropy
            program = ConditionalVAE.build(
                part.event_shape, latent, given=int(seen.sum()), likelihood=likelihood, network=network
            )
            options: dict[str, Any] = {"batch_size": batch_size, "lr": lr, "lr_schedule": "one-cycle", "seed": seed}
            fit(program, part, epochs=epochs, **options)
            draws = 1 if kind == "grey" else num_particles
            found = evaluate.summary(program, part.test, draws, images, seed, progress=True)
            row[f"{kind}, -ELBO"] = (-found.elbo[0], found.elbo[1])
            if kind == "binary":
                row["binary, -log p"] = found.nll
                show(axes, page(program, part, dataset, seen), f"Quadrants seen: {number}")
        rows.append(row)
        print(row)
    stem = Path(out) / "quadrants"
    caption = (
        f"{data}, test images: nats per image of the hidden quadrants, ± the standard error over images. Conditional "
        f"VAE with a learned prior, {latent} latents, hidden layers {hidden}, {epochs} epochs, seed {seed}. Grey: the "
        "cross-entropy of grey pixels, as in Pyro's tutorial, beside its numbers; no bound of a log-likelihood. "
        f"Binary: binarised pixels, -log p(hidden | visible) with {num_particles:,} draws. The figure shows images, "
        "their visible pixels, and means of the hidden quadrants at draws of z given the visible ones."
    )
    write_table(rows, stem, caption)
    figure.savefig(stem.with_suffix(".png"), dpi=150)
    print(f"\n{stem.with_suffix('.md').read_text()}")


def seen_of(event_shape: tuple[int, ...], number: int) -> Tensor:
    """Return the mask of visible pixels, of shape ``event_shape``."""
    height, width = event_shape[-2] // 2, event_shape[-1] // 2
    seen = torch.zeros(event_shape, dtype=torch.bool)
    seen[..., height:, :width] = True
    if number > 1:
        seen[..., :width] = True
    if number > 2:
        seen[..., :height, :] = True
    return seen


def hidden_given_seen(dataset: Dataset, seen: Tensor, seed: int) -> Dataset:
    """Return a data set of hidden pixels x and visible pixels y, where y is drawn once."""

    def part(split: Split) -> Split:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            y = split[:][:, seen]
        return replace(split, pixels=split.pixels[:][:, ~seen], extra={"y": y}, labels=None)

    train, valid, test = map(part, (dataset.train, dataset.valid, dataset.test))
    return replace(dataset, train=train, valid=valid, test=test, config=dataset.config | {"data": "tensor"})


def page(program: ConditionalVAE, part: Dataset, dataset: Dataset, seen: Tensor, columns: int = 8) -> Tensor:
    """Return rows of images: complete, visible pixels only, and with draws of the hidden pixels."""
    x, y = part.test.batch(slice(0, columns))
    images = torch.full((6, columns, *dataset.event_shape), torch.nan)
    images[:, :, seen] = y
    images[0, :, ~seen] = x
    with torch.no_grad():
        for row in images[2:]:
            z = program.prior(program.vector(y)).sample()
            row[:, ~seen] = mean(program.decoder(z, program.vector(y)))
    return images


if __name__ == "__main__":
    command(main)
