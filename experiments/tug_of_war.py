r"""The tug-of-war between reconstruction and KL: the effect of beta.

The script trains one VAE for each beta on

.. math:: \mathbb{E}_{q(z \mid x)}[-\log p(x \mid z)] + \beta \, \mathrm{KL}(q(z \mid x) \,\|\, p(z))

with a Gaussian likelihood of fixed scale. The squared error is divided by :math:`2 \sigma^2`, so that only
:math:`\beta \sigma^2` affects the optimum, and a learned sigma would compensate for beta. Measured on test images, at
beta = 1 for all models:

- rate: the mean of KL(q(z | x) || p(z)), nats per image;
- distortion: the mean of E[-log p(x | z)], nats per image, over draws of z from the guide; and the same as RMS per
  pixel (white is 1), :math:`\sqrt{\mathbb{E} \|x - \mu(z)\|^2 / d}`;
- ELBO: minus their sum, so that in the plane of rate and distortion points of equal ELBO lie on a line of slope -1;
- active: latent dimensions with a mean KL above 0.01 nats;
- confidence, entropy, distance, unreadable: scores of E[x | z], z from the prior, by :class:`common.Judge`;
- sharpness: the mean squared response of the discrete Laplacian, over that of the real test images, for reconstructions
  E[x | z] at the guide's mean and for samples E[x | z], z from the prior.

References:
    beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017).

    Fixing a Broken ELBO (Alemi et al., 2018): the plane of rate and distortion.

The committed table and figure: ``python experiments/tug_of_war.py``
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Judge, command, draw, mean_of, over_seeds, sharpness, show, spread_of, write_table
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from pyro_vae import VAE, evaluate, fit, likelihoods, networks, objectives
from pyro_vae.data import Dataset, load
from pyro_vae.plots.style import BLUE, RED


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
    """Train a VAE for each beta and seed, and write tug_of_war.csv, .md, .png and tug_of_war_images.png to ``out``.

    Args:
        data: Name of a data set with labels.
        root: Folder where torchvision finds it.
        betas: Weights of the KL.
        latent: Number of latent dimensions.
        scale: Standard deviation of the Gaussian likelihood, about as large as a learned one on the digits.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's learning rate.
        seeds: Number of trainings of each model.
        samples: Number of draws from the prior, and largest number of test images.
        num_particles: Draws per test image for the distortion; training uses 1.
        out: Folder for the results.
    """
    if min(betas) <= 0:
        raise ValueError(f"Expected betas above 0; got {betas}.")
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
        fit(vae, dataset, objective, epochs, batch_size, lr, seed, lr_schedule="constant", progress=False)
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
    draw(figure, stem.with_suffix(".png"), rows)
    draw(pages, stem.with_name("tug_of_war_images.png"), models, dataset)


@torch.no_grad()
def measure(vae: VAE, dataset: Dataset, judge: Judge, samples: int, num_particles: int) -> dict[str, float]:
    """Return one row of the table."""
    x = dataset.test[:samples]
    q = vae.encoder(x)
    log_likelihood, kl = (term.mean().item() for term in evaluate.elbo_terms(vae, x, num_particles))
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


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the plane of rate and distortion, with the line of the ELBO at the beta nearest to 1, from the table."""
    trained = [row for row in rows if row["rate (nats)"] != ""]
    betas = [float(row["beta"]) for row in trained]
    (rate, rates), (distortion, distortions) = (
        ([mean_of(row[key]) for row in trained], [spread_of(row[key]) for row in trained])
        for key in ("rate (nats)", "distortion (nats)")
    )
    drawn = Figure(figsize=(7, 4.4), layout="constrained")
    axes = drawn.subplots()
    axes.plot(rate, distortion, color="0.7", linewidth=1, zorder=1)
    axes.errorbar(rate, distortion, distortions, rates, fmt="o", color=BLUE, markersize=5, zorder=3)
    for beta, x, y in zip(betas, rate, distortion, strict=True):
        axes.annotate(f"β = {beta:g}", (x, y), (6, 6), textcoords="offset points")
    axes.margins(0.1)
    one = min(range(len(betas)), key=lambda i: abs(np.log(betas[i])))
    total = rate[one] + distortion[one]
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    axes.axline((rate[one], distortion[one]), slope=-1, color=RED, linestyle="--", linewidth=1.2, zorder=2)
    axes.set(xlabel="rate: KL(q(z | x) || p(z)), nats per test image", **limits)
    axes.set(ylabel="distortion: E[−log p(x | z)], nats per test image")
    text = f"dashed: rate + distortion = −ELBO = {total:.1f} nats,\nas at β = {betas[one]:g}"
    axes.text(0.98, 0.97, text, transform=axes.transAxes, color=RED, ha="right", va="top")
    return drawn


@torch.no_grad()
def pages(models: Mapping[float, VAE], dataset: Dataset) -> Figure:
    """Draw reconstructions and samples of the models of the least beta, of the one nearest to 1 and of the largest."""
    chosen = sorted({min(models), min(models, key=lambda beta: abs(np.log(beta))), max(models)})
    heights = [1, *[3] * len(chosen)]
    drawn = Figure(figsize=(7, 0.75 * sum(heights) + 0.3), layout="constrained")
    rows = drawn.subplots(1 + len(chosen), 1, height_ratios=heights)
    x = dataset.test[:12]
    show(rows[0], x.unsqueeze(0), "Test images")
    for beta, below in zip(chosen, rows[1:], strict=True):
        torch.manual_seed(0)
        samples = models[beta].generate(2 * len(x)).unflatten(0, (2, len(x)))
        page = torch.cat([models[beta].reconstruct(x).unsqueeze(0), samples])
        show(below, page, f"β = {beta:g}: their reconstructions, and two rows of samples from the prior")
    return drawn


if __name__ == "__main__":
    command(main)
