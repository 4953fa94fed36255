r"""Which likelihood for grey pixels?

One VAE for each likelihood, the same networks and the same budget. Densities are of dequantised x = (p + u) / 256,
masses of the 256 grey levels p themselves: so each bounds the probability of the same pixels, and all stand on one
scale, bits per dimension. All is measured on test images:

- bits/dim: -log p(x) by importance sampling, an upper bound on average, over 784 ln 2; of a density 8 more, since a
  level is 1/256 wide;
- -log p(x) and -ELBO in nats, of a density or a mass: between the two kinds nats do not compare;
- rate: KL(q(z | x) || p(z)), nats; active: latent dimensions u with Var_x(E_q[u | x]) > 0.01;
- RMS: of x - E[x | z] at the guide's mean, per pixel, white is 1;
- sharpness: the mean squared response of the discrete Laplacian to E[x | z], z from the prior, over that of real
  images; unreadable: the share of these that a classifier of real images is less sure of than of 95% of the real
  test images (see :class:`common.Judge`).

What the committed run shows: a shared scale, learned or optimal, is far better than 1. A scale per pixel wins in
density and loses in images: the mean matters only where the scale is small, so E[x | z] is the furthest from x, noise
on bright strokes. The classifier is sure of the strokes and overlooks the noise, which sharpness sees. Most pixels of
MNIST are exactly 0: a law that can put its mass there, as the discretised ones, is better than a Gaussian by bits a
pixel; and a better density of x says little about samples.

References:
    Simple and Effective VAE Training with Calibrated Decoders (Rybkin, Daniilidis and Levine, 2021).

    The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem and Cunningham, 2019).

    A Note on the Evaluation of Generative Models (Theis, van den Oord and Bethge, 2016), for bits per dimension.

The committed table and figure: ``python experiments/likelihoods.py --root DATA`` (half an hour on two cores).
``Categorical`` is left out of it: 256 logits a pixel are 80 million weights in the last layer, some 100 times the time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Judge, command, in_processes, over_seeds, sharpness, show, write_table
from matplotlib.figure import Figure

from pyro_vae import VAE, evaluate, fit, likelihoods, networks
from pyro_vae.conditional import Family
from pyro_vae.data import Dataset, load

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
    """Train a VAE for each likelihood and seed, and write likelihoods.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set of grey images with labels.
        root: Folder where torchvision finds it.
        chosen: Which likelihoods, by the names in ``DENSITIES`` and ``MASSES``.
        levels: How many grey levels its pixels have: 256, or 17 of the digits.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's largest learning rate, of one cycle.
        seeds: How many times each model is trained.
        images: Test images that are measured, the first ones.
        num_particles: Draws per image for -log p(x).
        workers: Models trained at once, in a process of one thread each.
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
    bits = {name: [run["bits/dim"] for run in each] for name, each in runs.items()}
    _, means, draws = zip(*found[: len(chosen)], strict=True)
    picture(bits, means, draws).savefig(stem.with_suffix(".png"), dpi=120)


def one(name: str, seed: int, options: dict[str, Any]) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Train a VAE; return a row of the table, and for draws of z from the prior E[x | z] and draws of x."""
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
    """Return what is measured of a VAE on test images."""
    x = dataset.test[:images]
    log_likelihood, kl = (term.mean().item() for term in evaluate.split(vae, x, 10))
    nll = evaluate.nll(vae, x, num_particles).mean()
    return {
        "bits/dim": evaluate.bits_per_dim(nll, x[0].numel(), levels).item(),
        "-log p(x)": nll.item(),
        "-ELBO": kl - log_likelihood,
        "rate": kl,
        "active": float(evaluate.active_units(vae, x)),
        "RMS": (vae.reconstruct(x) - x).square().mean().sqrt().item(),
    }


def picture(bits: dict[str, list[float]], means: Sequence[np.ndarray], draws: Sequence[np.ndarray]) -> Figure:
    """Draw bits/dim of each likelihood, a point a seed; and for draws of z from the prior E[x | z] and draws of x."""
    figure = Figure(figsize=(1.75 * len(bits), 8.4), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=[1.3, 1, 1])
    axes = figure.add_subfigure(grid[0]).add_subplot()
    for i, (name, found) in enumerate(bits.items()):
        axes.plot(found, [i] * len(found), "o", color="#2b6cb0" if name in DENSITIES else "#dd6b20", alpha=0.8)
        axes.text(max(found), i, f"   {np.mean(found):.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(bits)), [*bits])
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.08)
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="bits per dimension: blue densities of dequantised x, orange masses of grey levels; a point a seed")
    axes.spines[["top", "right"]].set_visible(False)
    for i, (what, pages) in enumerate((("E[x | z]", means), ("x ~ p(x | z)", draws)), start=1):
        panels = figure.add_subfigure(grid[i]).subplots(1, len(bits), squeeze=False)[0]
        for name, x, page in zip(bits, pages, panels, strict=True):
            title = name.replace(", ", ",\n")
            show(page, torch.from_numpy(x[:25]).unflatten(0, (5, 5)), f"{title}\n{what}")
    return figure


if __name__ == "__main__":
    command(main)
