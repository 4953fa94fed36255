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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Judge, command, draw, mean_of, over_seeds, sharpness, show, spread_of, ticks, train_all, write_table
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import VAE, evaluate
from pyro_vae import load as load_run
from pyro_vae.checkpoint import data_of
from pyro_vae.data import Dataset, load
from pyro_vae.plots.style import BLUE, RED

DENSITIES: dict[str, dict[str, Any]] = {  # the option likelihood
    "Gaussian, scale 1": {"class_path": "Gaussian", "init_args": {"scale": 1.0}},
    "Gaussian, learned": {"class_path": "Gaussian"},
    "Gaussian, optimal": {"class_path": "Gaussian", "init_args": {"scale": "optimal"}},
    "Gaussian, per-pixel": {"class_path": "Gaussian", "init_args": {"scale": "per-pixel"}},
    "Laplace": {"class_path": "Laplace"},
    "StudentT": {"class_path": "StudentT"},
    "ContinuousBernoulli": {"class_path": "ContinuousBernoulli"},
    "Beta": {"class_path": "Beta"},
}
MASSES = ("DiscretizedLogistic", "DiscretizedLogisticMixture", "Categorical")
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
    runs: str = "runs/likelihoods",
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
        workers: Number of processes that train, of one thread each; 0 for this process.
        runs: Folder of the run directories.
        out: Folder for the results.
    """
    if unknown := [name for name in chosen if name not in (*DENSITIES, *MASSES)]:
        raise ValueError(f"Expected likelihoods among {'; '.join((*DENSITIES, *MASSES))}; got {unknown[0]}.")
    settings: dict[str, dict[str, Any]] = {}
    for name in chosen:
        mass = {"class_path": name, "init_args": {"levels": levels}}
        settings[name] = {"likelihood": DENSITIES.get(name, mass), "dequantize": name in DENSITIES}
    options: dict[str, Any] = {"data": data, "root": root, "latent": latent, "epochs": epochs, "batch_size": batch_size}
    options |= {"network": {"class_path": "MLP", "init_args": {"hidden": [*hidden]}}, "lr": lr}
    folders = train_all(settings, seeds, workers, runs, **options, lr_schedule="one-cycle")
    dataset = load(data, root)
    judge, real = Judge(dataset), sharpness(dataset.test[:images])
    rows, means, draws = list[dict[str, Any]](), list[np.ndarray](), list[np.ndarray]()
    for name, of_seeds in folders.items():
        results = []
        for seed, run in enumerate(of_seeds):
            vae, _ = load_run(run)
            torch.manual_seed(seed)
            row = measure(vae, data_of(run)[0], images, num_particles, levels if name in DENSITIES else None)
            x, drawn = images_of(vae, seed)
            results.append(row | {"sharpness": sharpness(x) / real, "unreadable": judge(x)["unreadable"]})
            if seed == 0:
                means.append(x.numpy())
                draws.append(drawn.numpy())
        rows.append({"likelihood": name, "kind": "density" if name in DENSITIES else "mass"} | over_seeds(results))
    stem = Path(out) / "likelihoods"
    caption = (
        f"The first {images:,} test images of {dataset.config['data']}, {levels} grey levels, dequantised (frozen "
        f"noise) for densities: mean ± standard deviation over {seeds} seeds. Latent {latent}, standard normal prior, "
        f"diagonal guide, hidden layers {hidden}, {epochs} epochs with 1 particle, Adam in one cycle to {lr:g}. "
        f"-log p(x) and bits/dim with {num_particles:,} particles, the ELBO with 10; nats per image."
    )
    write_table(rows, stem, caption)
    draw(figure, stem.with_suffix(".png"), rows)
    draw(pages, stem.with_name("likelihoods_images.png"), chosen, means, draws)


@torch.no_grad()
def images_of(vae: VAE, seed: int) -> tuple[Tensor, Tensor]:
    """Return E[x | z] for 1,000 draws of z from the prior, and draws of x for the first 36 of them."""
    means = vae.generate(1000)
    torch.manual_seed(seed)
    return means, vae.decoder(vae.prior().sample((1000,))[:36]).sample()  # of the first of the same z


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
