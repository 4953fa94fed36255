r"""ELBOs of several models with three learning rates: constant, a trapezoid and one cycle.

Each model trains with the same epochs, batches and seeds, and with each learning rate:

- constant: 1e-3, torch's default for Adam;
- trapezoid: the default of ``fit``, up from 1e-3 to 3e-3 over 100 steps, constant, and down to 0 over the last 0.3;
- one-cycle: up to 3e-3 over the first 0.3 of the run, and down to nearly 0.

The columns are the mean ELBO of test images, nats per image, and its standard deviation over seeds; ``best`` names the
learning rate with the largest ELBO. An ELBO of binarised digits and one of grey levels do not compare.

References:
    Scaling Vision Transformers (Zhai et al., 2022), for the trapezoid.
    Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates (Smith and Topin, 2018).

The committed table and figure: ``python experiments/schedules.py``; for MNIST, ``--data mnist --root data --epochs 10``
and another ``--out``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import command, draw, in_processes, mean_of, over_seeds, spread_of, write_table
from matplotlib.figure import Figure

from pyro_vae import VAE, evaluate, fit, likelihoods, networks, objectives, priors
from pyro_vae.data import load
from pyro_vae.plots.style import BLUE, GREEN, GREY

WARM_UP = partial(objectives.ELBO, beta=objectives.Linear(0.5))
DENSE = partial(networks.MLP, hidden=(256, 256))
RATES: dict[str, dict[str, Any]] = {
    "constant": {"lr": 1e-3, "lr_schedule": "constant"},
    "trapezoid": {},
    "one-cycle": {"lr": 3e-3, "lr_schedule": "one-cycle"},
}
# By model: whether its pixels are binary, its parts and its objective, and its share of the epochs.
MODELS: dict[str, tuple[bool, dict[str, Any], Callable[[], objectives.Objective], float]] = {
    "MLP": (False, {"network": DENSE}, objectives.ELBO, 1.0),
    "MLP, a third of the epochs": (False, {"network": DENSE}, objectives.ELBO, 1 / 3),
    "Conv": (False, {"network": networks.Conv}, objectives.ELBO, 0.5),
    "Flow prior": (False, {"network": DENSE, "prior": priors.Flow}, objectives.ELBO, 1.0),
    "VampPrior": (False, {"network": DENSE, "prior": priors.VampPrior}, objectives.ELBO, 1.0),
    "Bernoulli": (True, {"network": DENSE}, objectives.ELBO, 1.0),
    "Bernoulli, IWAE of 5": (True, {"network": DENSE}, partial(objectives.IWAE, 5), 1.0),
    "Bernoulli, VampPrior": (True, {"network": DENSE, "prior": priors.VampPrior}, objectives.ELBO, 1.0),
    "the same, beta warm-up": (True, {"network": DENSE, "prior": priors.VampPrior}, WARM_UP, 1.0),
}


def main(
    data: str = "digits",
    root: str = "data",
    chosen: Sequence[str] = tuple(MODELS),
    latent: int = 8,
    epochs: int = 60,
    batch_size: int = 64,
    seeds: int = 3,
    images: int = 1000,
    num_particles: int = 100,
    workers: int = 2,
    out: str = "experiments/results",
) -> None:
    """Train every model with every learning rate, and write schedules.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set.
        root: Folder where torchvision finds it.
        chosen: Models, as in the table.
        latent: Number of latent dimensions.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        seeds: Number of seeds.
        images: Number of test images, the first ones.
        num_particles: Draws per image for the ELBO.
        workers: Number of processes, of one thread each.
        out: Folder for the results.
    """
    if unknown := [model for model in chosen if model not in MODELS]:
        raise ValueError(f"Expected models among {'; '.join(MODELS)}; got {unknown[0]!r}.")
    dataset = load(data, root)  # which refuses an unknown name
    where = (data, root, latent, batch_size, images, num_particles)
    jobs = [(model, rate, seed, epochs, *where) for model in chosen for rate in RATES for seed in range(seeds)]
    elbos = iter(in_processes(train, jobs, workers))
    rows: list[dict[str, Any]] = []
    for model in chosen:
        cells = {rate: over_seeds([{"ELBO": next(elbos)} for _ in range(seeds)])["ELBO"] for rate in RATES}
        share = {"model": model, "epochs": length(model, epochs)}
        rows.append(share | cells | {"best": max(cells, key=lambda rate: cells[rate][0])})
    count = min(images, len(dataset.test))
    caption = f"ELBO of {count:,} test images of {data}, nats per image, mean and standard deviation of {seeds} seeds."
    write_table(rows, Path(out) / "schedules", caption)
    draw(figure, Path(out) / "schedules.png", rows)


def length(model: str, epochs: int) -> int:
    """Return the epochs of a model."""
    return max(1, round(epochs * MODELS[model][3]))


def train(
    model: str,
    rate: str,
    seed: int,
    epochs: int,
    data: str,
    root: str,
    latent: int,
    batch_size: int,
    images: int,
    num_particles: int,
) -> float:
    """Train a model, and return the ELBO of test images."""
    binary, parts, objective, _ = MODELS[model]
    dataset = load(data, root, binarize="dynamic" if binary else "none")
    likelihood = likelihoods.Bernoulli if binary else likelihoods.Gaussian
    torch.manual_seed(seed)
    vae = VAE.build(dataset.event_shape, latent, likelihood=likelihood, **parts)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": False}
    fit(vae, dataset, objective(), length(model, epochs), **options, **RATES[rate])
    log_w = evaluate.log_weights(vae, dataset.test[:images], num_particles, seed=0)
    return evaluate.elbo(log_w).mean().item()


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw what the other learning rates gain over the constant one."""
    drawn = Figure(figsize=(8, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = drawn.subplots()
    for shift, (rate, colour) in enumerate((("trapezoid", BLUE), ("one-cycle", GREEN))):
        gains = [mean_of(row[rate]) - mean_of(row["constant"]) for row in rows]
        errors = [(spread_of(row[rate]) ** 2 + spread_of(row["constant"]) ** 2) ** 0.5 for row in rows]
        places = [place + 0.24 * shift - 0.12 for place in range(len(rows))]
        axes.errorbar(gains, places, xerr=errors, fmt="o", markersize=5, color=colour, label=rate)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="ELBO over that of a constant 1e-3, nats per test image")
    axes.legend(frameon=False)
    axes.grid(axis="x", color="0.9")
    return drawn


if __name__ == "__main__":
    command(main)
