r"""The tug-of-war between reconstruction and divergence: what does beta buy, and what does it cost?

One VAE for each beta, trained on

.. math:: \mathbb{E}_{q(z \mid x)}[-\log p(x \mid z)] + \beta \, \mathrm{KL}(q(z \mid x) \,\|\, p(z))

with a Gaussian likelihood of fixed scale. With a learned scale beta would be answered by sigma: the squared error
is divided by :math:`2 \sigma^2`, so where sigma is fixed only :math:`\beta \sigma^2` matters to the optimum. All is
measured on test images, at beta = 1 whatever the training had:

- rate: the mean of KL(q(z | x) || p(z)), nats per image;
- distortion: the mean of E[-log p(x | z)], nats per image, over draws of z from the guide; and the same as RMS per
  pixel (white is 1), :math:`\sqrt{\mathbb{E} \|x - \mu(z)\|^2 / d}`;
- ELBO: minus their sum, so that on the plane of rate and distortion an equal ELBO is a line of slope -1;
- active: latent dimensions whose mean divergence is above 0.01 nats;
- confidence, entropy, distance, unreadable: of E[x | z] for z from the prior, asked of :class:`common.Judge`;
- sharpness: the mean squared response of the discrete Laplacian, over that of the real test images (1: as sharp as
  they), of reconstructions E[x | z] at the guide's mean and of samples E[x | z] for z from the prior.

References:
    beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017).

    Fixing a Broken ELBO (Alemi et al., 2018), for the plane of rate and distortion.

The committed table and figure: ``python experiments/tug_of_war.py``
"""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Judge, command, over_seeds, sharpness, show, write_table
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from pyro_vae import VAE, evaluate, fit, likelihoods, networks, objectives
from pyro_vae.data import Dataset, load


def main(
    data: str = "digits",
    root: str = "data",
    betas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    latent: int = 10,
    scale: float = 0.1,
    hidden: tuple[int, ...] = (256,),
    epochs: int = 80,
    batch_size: int = 64,
    lr: float = 1e-3,
    seeds: int = 3,
    samples: int = 1000,
    num_particles: int = 10,
    out: str = "experiments/results",
) -> None:
    """Train a VAE for each beta and seed, and write tug_of_war.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set with labels.
        root: Folder where torchvision finds it.
        betas: Weights of the divergence.
        latent: Number of latent dimensions.
        scale: Standard deviation of the Gaussian likelihood; about where a learned one ends on the digits.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's learning rate.
        seeds: How many times each model is trained.
        samples: Draws from the prior that are judged, and test images at most.
        num_particles: Draws per test image for the distortion; training takes 1.
        out: Folder for the results.
    """
    if min(betas) <= 0:
        raise ValueError(f"Expected betas above 0, for a logarithmic scale of colours; got {betas}.")
    dataset = load(data, root)
    judge = Judge(dataset)
    runs: dict[float, list[dict[str, float]]] = {beta: [] for beta in betas}
    models: dict[float, VAE] = {}
    for beta, seed in tqdm([*product(betas, range(seeds))], unit=" models"):
        torch.manual_seed(seed)
        vae = VAE.build(
            dataset.event_shape,
            latent=latent,
            likelihood=partial(likelihoods.Gaussian, scale=scale),
            network=partial(networks.MLP, hidden=hidden),
        )
        objective = objectives.ELBO(beta=beta)
        fit(vae, dataset, objective, epochs, batch_size, lr, seed, progress=False)
        torch.manual_seed(seed)
        runs[beta].append(measure(vae, dataset, judge, samples, num_particles))
        models.setdefault(beta, vae)
    stem = Path(out) / "tug_of_war"
    x = dataset.test[:samples]
    rows = [{"beta": f"{beta:g}"} | over_seeds(found) for beta, found in runs.items()]
    real = {"beta": "real test images"} | dict.fromkeys(runs[betas[0]][0], "") | judge(x)
    real |= dict.fromkeys(["sharpness, reconstructions", "sharpness, samples"], 1.0)
    caption = (
        f"Test split of {dataset}, {len(x):,} images, and {samples:,} draws from the prior: mean ± standard deviation "
        f"over {seeds} seeds. Latent {latent}, Gaussian likelihood of scale {scale:g}, hidden layers {hidden}, "
        f"{epochs} epochs with 1 particle; distortion over {num_particles} particles, and the ELBO at beta = 1. The "
        f"classifier is right on {judge.accuracy:.1%} of the test images; unreadable: confidence below "
        f"{judge.readable:.3f}, as 5% of them are. RMS and distance per pixel, white is 1."
    )
    write_table([*rows, real], stem, caption)
    axes = ("rate (nats)", "distortion (nats)")
    rate, distortion = (np.array([[run[key] for run in found] for found in runs.values()]) for key in axes)
    picture(rate, distortion, models, dataset).savefig(stem.with_suffix(".png"), dpi=130)


@torch.no_grad()
def measure(vae: VAE, dataset: Dataset, judge: Judge, samples: int, num_particles: int) -> dict[str, float]:
    """Return one row of the table."""
    x = dataset.test[:samples]
    q = vae.encoder(x)
    log_likelihood, kl = (term.mean().item() for term in evaluate.split(vae, x, num_particles))
    error = (vae.decoder(q.sample((num_particles,))).mean - x).square().mean().sqrt().item()
    drawn = vae.generate(samples)
    return {
        "rate (nats)": kl,
        "distortion (nats)": -log_likelihood,
        "distortion (RMS)": error,
        "ELBO (nats)": log_likelihood - kl,
        "active": float((evaluate.kl_per_dim(vae, x).mean(0) > 0.01).sum()),
        **judge(drawn),
        "sharpness, reconstructions": sharpness(vae.reconstruct(x)) / sharpness(x),
        "sharpness, samples": sharpness(drawn) / sharpness(x),
    }


@torch.no_grad()
def picture(rate: np.ndarray, distortion: np.ndarray, models: dict[float, VAE], dataset: Dataset) -> Figure:
    """Draw the plane of rate and distortion, each ``(betas, seeds)``, and what three of the models make."""
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=[1.15, 1])
    axes = figure.add_subfigure(grid[0]).add_subplot()
    betas = np.array([*models])
    colours: dict[str, Any] = {
        "c": np.repeat(betas, rate.shape[1]),
        "cmap": "viridis_r",
        "norm": LogNorm(betas.min(), betas.max()),
    }
    axes.plot(rate.mean(1), distortion.mean(1), color="0.6", linewidth=1, zorder=1)
    axes.scatter(rate, distortion, s=36, edgecolors="white", linewidths=0.6, zorder=3, **colours)
    for beta, r, d in zip(betas, rate.mean(1), distortion.mean(1), strict=True):
        axes.annotate(f"β = {beta:g}", (r, d), xytext=(6, 6), textcoords="offset points", rotation=35)
    one = np.abs(np.log(betas)).argmin()
    r, d = rate.mean(1)[one], distortion.mean(1)[one]
    bounds = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    label = f"−ELBO = rate + distortion = {r + d:.1f} nats, as at β = {betas[one]:g}"
    axes.axline((r, d), slope=-1, color="#dd6b20", linestyle="--", linewidth=1.4, zorder=2, label=label)
    axes.legend(frameon=False, loc="upper right", fontsize=10)
    axes.set(xlabel="rate: KL(q(z | x) || p(z)), nats per test image", **bounds)
    axes.set(ylabel="distortion: E[−log p(x | z)], nats per test image", title="Rate and distortion, a point a seed")
    axes.spines[["top", "right"]].set_visible(False)
    chosen = sorted({0, int(one), len(betas) - 1}, key=lambda i: betas[i])
    rows = figure.add_subfigure(grid[1]).subplots(1 + len(chosen), 1, height_ratios=[1, *[3] * len(chosen)])
    x = dataset.test[:12]
    show(rows[0], x.unsqueeze(0), "Test images")
    for beta, below in zip(betas[chosen], rows[1:], strict=True):
        torch.manual_seed(0)
        drawn = models[beta].generate(2 * len(x)).unflatten(0, (2, len(x)))
        made = torch.cat([models[beta].reconstruct(x).unsqueeze(0), drawn])
        show(below, made, f"β = {beta:g}: their reconstructions, and two rows of samples from the prior")
    return figure


if __name__ == "__main__":
    command(main)
