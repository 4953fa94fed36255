"""What is shown of a VAE at the end of a run: one table and a set of figures."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import evaluate, plots
from pyro_vae.data import Dataset
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
    law = vae.decoder(torch.zeros(1, *vae.prior().event_shape).to(vae.reference))
    kind = "mass" if law.support.is_discrete else "density"
    with torch.no_grad():
        q = vae.encoder(torch.zeros(1, *dataset.event_shape).to(vae.reference))
        divergence = "sampled" if closed_form_kl(q, vae.prior()) is None else "in closed form"
    heads = ("ELBO", "E[log p(x|z)]", "KL", "-log p(x)")
    rows = [f"{'split':6}{'images':>8}" + "".join(f"{head:>18}" for head in heads)]
    for name, part in dataset.splits.items():
        found = evaluate.summary(vae, part.to(vae.reference.device), num_particles, images, seed, progress)
        cells = (f"{mean:.2f} ± {error:.2f}" for mean, error in found[1:])
        rows.append(f"{name:6}{found.images:8,}" + "".join(f"{cell:>18}" for cell in cells))
    notes = (
        f"nats per datum, mean ± standard error over the images; {dataset}; log p(x) is of a {kind}.\n"
        f"ELBO at beta = 1 with {evaluate.DRAWS} draws, KL {divergence}; -log p(x) by importance sampling, "
        f"{num_particles:,} draws from the guide: too large on average."
    )
    return "\n".join([*rows, notes])


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
        drawn = {"latent_space": plots.latent_space(vae.encoder(train).mean, labels, title)}
        if len(dataset.event_shape) in (2, 3):
            drawn |= _pictures(vae, dataset.test[slice(0, 1000)].to(point))
    return drawn


def _pictures(vae: VAE, x: Tensor) -> dict[str, Figure]:
    pictures = {
        "reconstructions": plots.reconstructions(x[:16], vae.reconstruct(x[:16])),
        "samples": plots.samples(vae.generate(100)),
        "interpolation": plots.interpolation(vae.interpolate(x[:8], x.roll(-8, 0)[:8])),
    }
    try:
        nats = evaluate.kl_per_dim(vae, x).mean(0)
    except ValueError:
        pictures["traversal"] = plots.traversal(vae.traverse(x[0]))
    else:
        order = nats.argsort(descending=True)[:20].tolist()
        pictures["traversal"] = plots.traversal(vae.traverse(x[0]), order=order, nats=nats.tolist())
    if vae.prior().event_shape == (2,):
        pictures["manifold"] = plots.manifold(vae.manifold())
    return pictures
