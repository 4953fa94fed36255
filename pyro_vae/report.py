"""What is shown of a VAE at the end of a run: one table and a set of figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import evaluate, plots
from pyro_vae.conditional import mean
from pyro_vae.data import Dataset
from pyro_vae.data.supports import Levels, of_element
from pyro_vae.objectives import closed_form_kl
from pyro_vae.vae import VAE

__all__ = ["figures", "table"]


def table(
    vae: VAE, dataset: Dataset, num_particles: int = 1000, images: int = 1000, seed: int = 0, progress: bool = True
) -> str:
    """Write the ELBO, its two terms and -log p(x) of each split as a table, with what the numbers are.

    Arguments:
        vae: Any VAE.
        dataset: What to evaluate it on.
        num_particles: Draws per datum for -log p(x).
        images: How many images of each split, the first ones.
        seed: Seed of the draws; torch's own state is left as it was.
        progress: Whether to show a progress bar.

    Returns:
        Nats per datum, mean and standard error over the images, from :func:`pyro_vae.evaluate.summary`.
    """
    with torch.no_grad():
        law = vae.decoder(torch.zeros(1, *vae.prior().event_shape).to(vae.reference))
        kind = "mass" if law.support.is_discrete else "density"
        bits, note = _bits(of_element(law.support), dataset)
        q = vae.encoder(torch.zeros(1, *dataset.event_shape).to(vae.reference))
        divergence = "sampled" if closed_form_kl(q, vae.prior()) is None else "in closed form"
    heads = ("ELBO", "E[log p(x|z)]", "KL", "-log p(x)")
    rows = [
        f"{'split':6}{'images':>8}" + "".join(f"{head:>18}" for head in heads) + (f"{'bits/dim':>12}" if bits else "")
    ]
    for name, part in dataset.splits.items():
        found = evaluate.summary(vae, part.to(vae.reference.device), num_particles, images, seed, progress)
        cells = (f"{mean:.2f} ± {error:.2f}" for mean, error in found[1:])
        row = f"{name:6}{found.images:8,}" + "".join(f"{cell:>18}" for cell in cells)
        rows.append(f"{row}{bits(found.nll[0]):>12.3f}" if bits else row)
    left_out = f"; {dataset.missing:.1%} of the pixels missing, left out" if dataset.missing else ""
    notes = (
        f"nats per datum, mean ± standard error over the images; {dataset}; log p(x) is of a {kind}{left_out}.\n"
        f"ELBO at beta = 1 with {evaluate.DRAWS} draws, KL {divergence}; -log p(x) by importance sampling, "
        f"{num_particles:,} draws from the guide: too large on average.{note}"
    )
    return "\n".join([*rows, notes])


def _bits(support: constraints.Constraint, dataset: Dataset) -> tuple[Callable[[float], float] | None, str]:
    """Return what makes bits/dim of nats, where that has a meaning; and what is to be said of it."""
    if dataset.missing:
        return None, ""
    if isinstance(support, Levels):
        note = f"\nbits/dim of -log p(x), of a mass of {support.number} levels: an optimal code's length."
        return partial(evaluate.bits_per_dim, dimensions=prod(dataset.event_shape)), note
    if support.is_discrete:
        return None, ""
    if dataset.config["dequantize"]:
        number = dataset.train.levels
        note = f"\nbits/dim of -log p(x), of a density of dequantised x, plus log2 of {number} levels."
        return partial(evaluate.bits_per_dim, dimensions=prod(dataset.event_shape), levels=number), note
    if dataset.support is constraints.boolean:
        return None, "\nA density of two values grows without bound: compare it with nothing, or use Bernoulli."
    if isinstance(dataset.support, Levels):
        return None, (
            "\nNo bits/dim: a density of grey levels that are not dequantised grows without bound. For bits/dim use "
            "--dequantize true, or a mass, as DiscretizedLogistic."
        )
    return None, ""


def figures(vae: VAE, dataset: Dataset, seed: int = 0) -> dict[str, Figure]:
    """Draw what can be drawn of a VAE; torch's own state is left as it was.

    Returns:
        By name: ``latent_space``, of training images; and, where x is an image, ``reconstructions``, ``samples``,
        ``interpolation`` and ``traversal``, of test images, and ``manifold`` where latent = 2.
    """
    point = vae.reference
    with torch.random.fork_rng(devices=[point.device] if point.is_cuda else []), torch.no_grad():
        torch.manual_seed(seed)
        train = dataset.train[slice(0, 2000)].to(point)
        labels = None if dataset.train.labels is None else dataset.train.labels[: len(train)]
        title = f"Means of q(z | x), {len(train):,} training images"
        drawn = {"latent_space": plots.latent_space(mean(vae.encoder(train)), labels, title)}
        if len(dataset.event_shape) in (2, 3):
            x = dataset.test[slice(0, 1000)].to(point)
            counted = dataset.support is constraints.nonnegative_integer
            drawn |= _pictures(vae, x, white=max(x.max().item(), 1.0) if counted else 1.0)
    return drawn


def _pictures(vae: VAE, x: Tensor, white: float) -> dict[str, Figure]:
    pictures = {
        "reconstructions": plots.reconstructions(x[:16] / white, vae.reconstruct(x[:16]) / white),
        "samples": plots.samples(vae.generate(100) / white),
        "interpolation": plots.interpolation(vae.interpolate(x[:8], x.roll(-8, 0)[:8]) / white),
    }
    try:
        nats = evaluate.kl_per_dim(vae, x).mean(0)
    except ValueError:
        pictures["traversal"] = plots.traversal(vae.traverse(x[0]) / white)
    else:
        order = nats.argsort(descending=True)[:20].tolist()
        pictures["traversal"] = plots.traversal(vae.traverse(x[0]) / white, order=order, nats=nats.tolist())
    if vae.prior().event_shape == (2,):
        pictures["manifold"] = plots.manifold(vae.manifold() / white)
    return pictures
