r"""Likelihoods of grey pixels, compared in bits per dimension.

The script trains one VAE for each likelihood, with the same networks and budget. Densities are densities of dequantised
x = (p + u) / 256, masses are probabilities of the 256 grey levels p. Each bounds the probability of the same pixels, so
bits per dimension compare. Measured on test images:

- bits/dim: -log p(x) by importance sampling, an upper bound on average, over 784 ln 2; plus 8 for a density, since a
  level is 1/256 wide;
- -log p(x) and -ELBO in nats, of a density or a mass: nats of the two kinds do not compare;
- rate: KL(q(z | x) || p(z)), nats; active: latent dimensions u with Var_x(E_q[u | x]) > 0.01;
- RMS: of x - E[x | z] at the guide's mean, per pixel, white is 1;
- sharpness: the mean squared response of the discrete Laplacian to E[x | z], z from the prior, over that of real
  images; unreadable: the share of these images with less confidence, of a classifier of real images, than 95% of the
  real test images (see :class:`common.Judge`).

The committed run shows: A shared scale, learned or optimal, is far better than a scale of 1. A scale per pixel has the
best density and the worst images of the Gaussians: the mean matters only for pixels of small scale, so E[x | z] is the
furthest from x and noisy on bright strokes. The classifier is confident of the strokes and ignores the noise, which
sharpness shows. Most pixels of MNIST are exactly 0: a distribution with mass there, such as the discretised logistics,
is better than a Gaussian by bits per pixel. A better density of x does not imply better samples.

References:
    Simple and Effective VAE Training with Calibrated Decoders (Rybkin, Daniilidis and Levine, 2021).

    The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem and Cunningham, 2019).

    A Note on the Evaluation of Generative Models (Theis, van den Oord and Bethge, 2016): bits per dimension.

The committed table and figure: ``python experiments/likelihoods.py --root DATA`` (half an hour on two cores).
It leaves out ``Categorical``: 256 logits per pixel take 80 million weights in the last layer, and 100 times as long.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Judge,
    command,
    draw,
    in_processes,
    mean_of,
    over_seeds,
    sharpness,
    show,
    spread_of,
    ticks,
    write_table,
)
from matplotlib.figure import Figure

from pyro_vae import VAE, evaluate, fit, likelihoods, networks
from pyro_vae.conditional import Family
from pyro_vae.data import Dataset, load
from pyro_vae.plots.style import BLUE, RED

DENSITIES: dict[str, Callable[..., Family]] = {
    "Gaussian, scale 1": partial(likelihoods.Gaussian, scale=1.0),
    "Gaussian, learned": likelihoods.Gaussian,
    "Gaussian, optimal": partial(likelihoods.Gaussian, scale="optimal"),
    "Gaussian, per-pixel": partial(likelihoods.Gaussian, scale="per-pixel"),
    "Laplace": likelihoods.Laplace,
    "StudentT": likelihoods.StudentT,
    "ContinuousBernoulli": likelihoods.ContinuousBernoulli,
    "Beta": likelihoods.Beta,
}
MASSES: dict[str, Callable[..., Family]] = {
    "DiscretizedLogistic": likelihoods.DiscretizedLogistic,
    "DiscretizedLogisticMixture": likelihoods.DiscretizedLogisticMixture,
    "Categorical": likelihoods.Categorical,
}
CHOSEN = tuple(name for name in (*DENSITIES, *MASSES) if name != "Categorical")


def main(
    data: str = "mnist",
    root: str = "data",
    chosen: tuple[str, ...] = CHOSEN,
    levels: int = 256,
    latent: int = 20,
    hidden: tuple[int, ...] = (400,),
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    seeds: int = 3,
    images: int = 500,
    num_particles: int = 500,
    workers: int = 2,
    out: str = "experiments/results",
) -> None:
    """Train a VAE for each likelihood and seed; write likelihoods.csv, .md, .png, likelihoods_images.png to ``out``.

    Args:
        data: Name of a data set of grey images with labels.
        root: Folder where torchvision finds it.
        chosen: Likelihoods, by their names in ``DENSITIES`` and ``MASSES``.
        levels: Number of grey levels of the pixels: 256, or 17 for the digits.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's largest learning rate, of one cycle.
        seeds: Number of trainings of each model.
        images: Number of test images, the first ones.
        num_particles: Draws per image for -log p(x).
        workers: Number of processes, of one thread each.
        out: Folder for the results.
    """
    if unknown := [name for name in chosen if name not in DENSITIES | MASSES]:
        raise ValueError(f"Expected likelihoods among {'; '.join(DENSITIES | MASSES)}; got {unknown[0]}.")
    dataset = load(data, root)
    options: dict[str, Any] = {
        "source": (data, root),
        "levels": levels,
        "latent": latent,
        "hidden": hidden,
        "images": images,
        "num_particles": num_particles,
        "fit": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "lr_schedule": "one-cycle"},
    }
    jobs = [(name, seed, options) for seed, name in product(range(seeds), chosen)]
    found = in_processes(one, jobs, workers)
    judge, real = Judge(dataset), sharpness(dataset.test[:images])
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for (name, *_), (row, means, _) in zip(jobs, found, strict=True):
        x = torch.from_numpy(means)
        runs[name].append(row | {"sharpness": sharpness(x) / real, "unreadable": judge(x)["unreadable"]})
    stem = Path(out) / "likelihoods"
    rows = [
        {"likelihood": name, "kind": "density" if name in DENSITIES else "mass"} | over_seeds(each)
        for name, each in runs.items()
    ]
    caption = (
        f"The first {images:,} test images of {dataset.config['data']}, {levels} grey levels, dequantised (frozen "
        f"noise) for densities: mean ± standard deviation over {seeds} seeds. Latent {latent}, standard normal prior, "
        f"diagonal guide, hidden layers {hidden}, {epochs} epochs with 1 particle, Adam in one cycle to {lr:g}. "
        f"-log p(x) and bits/dim with {num_particles:,} particles, the ELBO with 10; nats per image."
    )
    write_table(rows, stem, caption)
    draw(figure, stem.with_suffix(".png"), rows)
    _, means, draws = zip(*found[: len(chosen)], strict=True)
    draw(pages, stem.with_name("likelihoods_images.png"), chosen, means, draws)


def one(name: str, seed: int, options: dict[str, Any]) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Train a VAE; return a row of the table, and E[x | z] and draws of x for draws of z from the prior."""
    data, root = options["source"]
    density = name in DENSITIES
    dataset = load(data, root, dequantize=density)
    likelihood = DENSITIES[name] if density else partial(MASSES[name], levels=options["levels"])
    torch.manual_seed(seed)
    network = partial(networks.MLP, hidden=options["hidden"])
    vae = VAE.build(dataset.event_shape, options["latent"], likelihood=likelihood, network=network)
    fit(vae, dataset, seed=seed, progress=False, **options["fit"])
    torch.manual_seed(seed)
    row = measure(vae, dataset, options["images"], options["num_particles"], options["levels"] if density else None)
    with torch.no_grad():
        means = vae.generate(1000)
        torch.manual_seed(seed)
        draws = vae.decoder(vae.prior().sample((1000,))[:36]).sample()  # of the first of the same z
    return row, means.numpy(), draws.numpy()


@torch.no_grad()
def measure(vae: VAE, dataset: Dataset, images: int, num_particles: int, levels: int | None) -> dict[str, float]:
    """Return the numbers of a VAE on test images."""
    x = dataset.test[:images]
    log_likelihood, kl = (term.mean().item() for term in evaluate.elbo_terms(vae, x, 10))
    nll = evaluate.nll(vae, x, num_particles).mean()
    return {
        "bits/dim": evaluate.bits_per_dim(nll, x[0].numel(), levels).item(),
        "-log p(x)": nll.item(),
        "-ELBO": kl - log_likelihood,
        "rate": kl,
        "active": float(evaluate.active_units(vae, x)),
        "RMS": (vae.reconstruct(x) - x).square().mean().sqrt().item(),
    }


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw bits per dimension, the error of reconstructions and the sharpness of samples, from the table."""
    drawn = Figure(figsize=(8, 1.2 + 0.3 * len(rows)), layout="constrained")
    titles = {
        "bits/dim": "Bits per dimension",
        "RMS": "Error of reconstructions, RMS",
        "sharpness": "Sharpness of samples\n(real images: 1)",
    }
    for axes, (key, title) in zip(drawn.subplots(1, 3, sharey=True), titles.items(), strict=True):
        for place, row in enumerate(rows):
            colour = BLUE if row["kind"] == "density" else RED
            axes.errorbar(mean_of(row[key]), place, xerr=spread_of(row[key]), fmt="o", color=colour, capsize=3)
            text = f"{mean_of(row[key]):{'.3f' if key == 'RMS' else '.2f'}}"
            axes.annotate(text, (mean_of(row[key]), place), (7, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set(title=title, ylim=(len(rows) - 0.5, -0.5))
        axes.margins(x=0.25)
        axes.grid(axis="x", color="0.9")
    drawn.axes[2].set_xscale("log")
    drawn.axes[2].axvline(1, color="0.5", linewidth=1, linestyle="--")
    ticks(drawn.axes[2].xaxis, (0.1, 1, 10))
    drawn.axes[2].set_xlim(0.05, 15)
    drawn.axes[0].set_yticks(range(len(rows)), [row["likelihood"] for row in rows])
    for label, row in zip(drawn.axes[0].get_yticklabels(), rows, strict=True):
        label.set_color(BLUE if row["kind"] == "density" else RED)
    drawn.supxlabel(
        "Blue: densities of dequantised pixels. Red: masses of grey levels. Mean ± standard deviation over seeds",
        fontsize=9,
    )
    return drawn


def pages(names: Sequence[str], means: Sequence[np.ndarray], draws: Sequence[np.ndarray]) -> Figure:
    """Draw E[x | z] for draws of z from the prior, and draws of x below; five likelihoods side by side."""
    blocks = -(-len(names) // 5)
    drawn = Figure(figsize=(8, 4.4 * blocks), layout="constrained")
    panels = drawn.subplots(2 * blocks, 5, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for i, name in enumerate(names):
        for axes, x, what in zip(
            panels[2 * (i // 5) :, i % 5], (means[i], draws[i]), ("E[x | z]", "x ~ p(x | z)"), strict=False
        ):
            title = name.replace(", ", ",\n")
            show(axes, torch.from_numpy(x[:25]).unflatten(0, (5, 5)), f"{title}\n{what}")
    return drawn


if __name__ == "__main__":
    command(main)
