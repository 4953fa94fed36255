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

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import command, draw, mean_of, over_seeds, spread_of, train_all, write_table
from matplotlib.figure import Figure

from pyro_vae import evaluate, load
from pyro_vae.checkpoint import data_of
from pyro_vae.plots.style import BLUE, GREEN, GREY

RATES: dict[str, dict[str, Any]] = {
    "constant": {"lr": 1e-3, "lr_schedule": "constant"},
    "trapezoid": {},
    "one-cycle": {"lr": 3e-3, "lr_schedule": "one-cycle"},
}
DENSE = {"network": {"class_path": "MLP", "init_args": {"hidden": [256, 256]}}}
BINARY = DENSE | {"binarize": "dynamic", "likelihood": "Bernoulli"}
WARM_UP = {"class_path": "ELBO", "init_args": {"beta": {"class_path": "Linear", "init_args": {"warmup": 0.5}}}}
MODELS: dict[str, tuple[dict[str, Any], float]] = {  # options of train, and the share of the epochs
    "MLP": (DENSE, 1.0),
    "MLP, a third of the epochs": (DENSE, 1 / 3),
    "Conv": ({"network": "Conv"}, 0.5),
    "Flow prior": (DENSE | {"prior": "Flow"}, 1.0),
    "VampPrior": (DENSE | {"prior": "VampPrior"}, 1.0),
    "Bernoulli": (BINARY, 1.0),
    "Bernoulli, IWAE of 5": (BINARY | {"objective": {"class_path": "IWAE", "init_args": {"num_particles": 5}}}, 1.0),
    "Bernoulli, VampPrior": (BINARY | {"prior": "VampPrior"}, 1.0),
    "the same, beta warm-up": (BINARY | {"prior": "VampPrior", "objective": WARM_UP}, 1.0),
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
    runs: str = "runs/schedules",
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
        workers: Number of processes that train, of one thread each; 0 for this process.
        runs: Folder of the run directories.
        out: Folder for the results.
    """
    if unknown := [model for model in chosen if model not in MODELS]:
        raise ValueError(f"Expected models among {'; '.join(MODELS)}; got {unknown[0]!r}.")
    settings = {
        f"{model}, {rate}": MODELS[model][0] | {"epochs": length(model, epochs)} | options
        for model in chosen
        for rate, options in RATES.items()
    }
    options = {"data": data, "root": root, "latent": latent, "batch_size": batch_size}
    folders = train_all(settings, seeds, workers, runs, **options)

    def elbo(run: Path) -> float:
        log_w = evaluate.log_weights(load(run)[0], data_of(run)[0].test[:images], num_particles, seed=0)
        return evaluate.elbo(log_w).mean().item()

    rows: list[dict[str, Any]] = []
    for model in chosen:
        runs_of = {rate: folders[f"{model}, {rate}"] for rate in RATES}
        cells = {
            rate: over_seeds([{"ELBO": elbo(run)} for run in of_rate])["ELBO"] for rate, of_rate in runs_of.items()
        }
        share = {"model": model, "epochs": length(model, epochs)}
        rows.append(share | cells | {"best": max(cells, key=lambda rate: cells[rate][0])})
    count = min(images, len(data_of(next(iter(folders.values()))[0])[0].test))
    caption = f"ELBO of {count:,} test images of {data}, nats per image, mean and standard deviation of {seeds} seeds."
    write_table(rows, Path(out) / "schedules", caption)
    draw(figure, Path(out) / "schedules.png", rows)


def length(model: str, epochs: int) -> int:
    """Return the epochs of a model."""
    return max(1, round(epochs * MODELS[model][1]))


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
