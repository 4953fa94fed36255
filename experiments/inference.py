r"""The quality of guides, and the error of bounds on log p(x).

The script trains one VAE for each guide, with the same networks and budget, on binarised images. For the first test
images, in nats per image:

- IS, AIS: -log p(x) by importance sampling from the guide, and by annealed importance sampling. Both are upper bounds
  on average, so that the smaller one is better, and IS - AIS, paired over images, bounds the error of importance
  sampling from below;
- adapted, with ``--num_adapted``: -log p(x) by importance sampling from a proposal fitted to each image's posterior;
  adapted - AIS, paired; its share of k-hat above 0.7; and the CPU time of AIS over that of adapted proposals;
- BDMC gap: between AIS and an upper bound on log p(x), for images drawn from the model: a bound on the error of AIS;
- k-hat: the Pareto shape of an image's weights. Above 0.7 importance sampling is not reliable;
- approximation: log p(x) minus the ELBO of the family's best guide for each image; amortisation: that ELBO minus the
  encoder's. Their sum is log p(x) - ELBO;
- 90% holds: the share of true z within the guide's central 90% intervals, for images drawn from the model.

inference.png shows the gaps, IS - AIS and the shares of k-hat above 0.7; inference_images.png shows the images with the
largest and the smallest k-hat of the first guide, over their reconstructions.

References:
    Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018).

    On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov and Grosse, 2017).

    Yes, but Did It Work?: Evaluating Variational Inference (Yao, Vehtari, Simpson and Gelman, 2018).

The committed table and figure: ``python experiments/inference.py --root DATA`` (a quarter of an hour on two cores).
``--chosen "[FullNormal]"`` trains another guide: with 50 dimensions its posterior collapses to the prior, and all
diagnostics of the guide are perfect, for a useless model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from common import command, draw, mean_of, show, spread_of, train_all, write_table
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import VAE, ais, evaluate, load, posterior
from pyro_vae.checkpoint import data_of
from pyro_vae.evaluate.adapted import ROUNDS
from pyro_vae.plots.style import BLUE, GREEN, GREY, ORANGE

GUIDES: dict[str, Any] = {  # values of the option guide
    "DiagonalNormal": "DiagonalNormal",
    "LowRankNormal, 4": {"class_path": "LowRankNormal", "init_args": {"rank": 4}},
    "Flow, coupling": {"class_path": "Flow", "init_args": {"layers": 4, "hidden": 128}},
    "FullNormal": "FullNormal",
}
CHOSEN = tuple(name for name in GUIDES if name != "FullNormal")


def main(
    data: str = "mnist",
    root: str = "data",
    chosen: tuple[str, ...] = CHOSEN,
    latent: int = 50,
    hidden: tuple[int, ...] = (200, 200),
    epochs: int = 40,
    batch_size: int = 128,
    lr: float = 2e-3,
    images: int = 200,
    num_particles: int = 5000,
    num_adapted: int = 0,
    temperatures: int = 500,
    steps: int = 500,
    workers: int = 2,
    runs: str = "runs/inference",
    out: str = "experiments/results",
) -> None:
    """Train a VAE for each guide, and write inference.csv, .md, .png and inference_images.png to ``out``.

    Args:
        data: Name of a data set.
        root: Folder where torchvision finds it.
        chosen: Guides, by their names in ``GUIDES``.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's largest learning rate, of one cycle.
        images: Number of test images, the first ones.
        num_particles: Draws per image for importance sampling from the guide.
        num_adapted: Draws per image from an adapted proposal, in addition to the draws to fit it; 0 for none.
        temperatures: Temperatures of AIS, with 16 chains from the guide.
        steps: Steps to refine a guide for each image.
        workers: Number of processes that train, of one thread each; 0 for this process.
        runs: Folder of the run directories.
        out: Folder for the results.
    """
    if unknown := [name for name in chosen if name not in GUIDES]:
        raise ValueError(f"Expected guides among {'; '.join(GUIDES)}; got {unknown[0]}.")
    options: dict[str, Any] = {"data": data, "root": root, "binarize": "dynamic", "likelihood": "Bernoulli"}
    options |= {"latent": latent, "network": {"class_path": "MLP", "init_args": {"hidden": [*hidden]}}}
    options |= {"epochs": epochs, "batch_size": batch_size, "lr": lr, "lr_schedule": "one-cycle"}
    folders = train_all({name: {"guide": GUIDES[name]} for name in chosen}, 1, workers, runs, **options)
    rows, stem = list[dict[str, Any]](), Path(out) / "inference"
    for name, (run,) in folders.items():
        vae, (dataset, _) = load(run)[0], data_of(run)
        x = dataset.test[:images]
        row, numbers = row_of(vae, x, num_particles, num_adapted, temperatures, steps)
        rows.append({"guide": name} | row)
        if name == chosen[0]:
            order = numbers["k-hat"].argsort(descending=True)
            images_of_first = numbers["k-hat"][order], x[order], vae.reconstruct(x)[order]
    caption = (
        f"The first {images:,} test images of {dataset} (frozen draws): mean ± standard error over the images. Latent "
        f"{latent}, standard normal prior, Bernoulli likelihood, hidden layers {hidden}, {epochs} epochs with 1 "
        f"particle, Adam in one cycle to {lr:g}, one seed. IS with {num_particles:,} particles; AIS with 16 chains of "
        f"{temperatures:,} temperatures from the guide; the ELBO at beta = 1; guides refined in {steps:,} steps. "
        "Nats per image."
    )
    if num_adapted:
        caption += (
            f" Adapted proposals: {num_adapted:,} draws, after at least {sum(ROUNDS) * latent:,} draws to fit them."
        )
    write_table(rows, stem, caption)
    draw(figure, stem.with_suffix(".png"), rows)
    draw(pages, stem.with_name("inference_images.png"), chosen[0], *images_of_first)


def row_of(
    vae: VAE, x: Tensor, num_particles: int, num_adapted: int, temperatures: int, steps: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a row of the table, and numbers of each image."""
    numbers, seconds = measure(vae, x, num_particles, temperatures, steps)
    lower, upper = ais.bdmc(vae, min(50, len(x)), temperatures=temperatures, seed=0)
    row: dict[str, Any] = {
        "IS": _pair(numbers["IS"]),
        "AIS": _pair(numbers["AIS"]),
        "IS - AIS": _pair(numbers["IS"] - numbers["AIS"]),
        "BDMC gap": (upper - lower).mean().item(),
        "-ELBO": _pair(numbers["-ELBO"]),
        "approximation": _pair(numbers["approximation"]),
        "amortisation": _pair(numbers["amortisation"]),
        "k-hat, median": numbers["k-hat"].median().item(),
        "k-hat > 0.7": (numbers["k-hat"] > 0.7).double().mean().item(),
        "90% holds": posterior.sbc(vae, 1000).coverage([0.9]).mean().item(),
    }
    if num_adapted:
        row |= by_adapted(vae, x, num_adapted, numbers["AIS"], seconds)
    return row, numbers


def by_adapted(vae: VAE, x: Tensor, num: int, annealed: Tensor, seconds: float) -> dict[str, Any]:
    """Return the cells of adapted proposals, given -log p(x) by AIS and its CPU time."""
    start = process_time()
    log_w = evaluate.log_weights(vae, x, num, seed=0, proposal="adapted")
    ratio, nll, k = seconds / (process_time() - start), -evaluate.iwae(log_w), evaluate.pareto_k(log_w)
    cells = {"adapted": _pair(nll), "adapted - AIS": _pair(nll - annealed)}
    return cells | {"adapted, k-hat > 0.7": (k > 0.7).double().mean().item(), "AIS's time / adapted's": ratio}


def measure(vae: VAE, x: Tensor, num_particles: int, temperatures: int, steps: int) -> tuple[dict[str, Tensor], float]:
    """Return the numbers of each image, and the CPU time of AIS."""
    log_w = evaluate.log_weights(vae, x, num_particles, seed=0)
    start = process_time()
    annealed = ais.ais(vae, x, temperatures=temperatures, seed=0)
    seconds = process_time() - start
    gaps = posterior.gaps(vae, x, torch.maximum(annealed, evaluate.iwae(log_w)), steps=steps, seed=0)
    numbers = {
        "IS": -evaluate.iwae(log_w),
        "AIS": -annealed,
        "-ELBO": -gaps.elbo,
        "approximation": gaps.approximation,
        "amortisation": gaps.amortisation,
        "k-hat": evaluate.pareto_k(log_w),
        "ESS": evaluate.ess(log_w),
    }
    return numbers, seconds


def _pair(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / len(values) ** 0.5


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the gaps of each guide, IS - AIS, and the shares of k-hat above 0.7, from the table."""
    drawn = Figure(figsize=(8, 1.3 + 0.55 * len(rows)), layout="constrained")
    left, middle, right = drawn.subplots(1, 3, sharey=True, width_ratios=[1.6, 1, 1])
    places = np.arange(len(rows))
    starts = np.zeros(len(rows))
    for part, colour in (("approximation", ORANGE), ("amortisation", BLUE)):
        widths = np.array([mean_of(row[part]) for row in rows])
        bars = left.barh(places, widths, left=starts, height=0.6, color=colour)
        ink = "white" if colour == BLUE else "black"
        left.bar_label(bars, [f"{width:.2f}" for width in widths], label_type="center", color=ink, fontsize=9)
        left.text(starts[0] + widths[0] / 2, -0.38, part, ha="center", va="bottom", fontsize=8)
        starts = starts + widths
    left.set_yticks(places, [row["guide"] for row in rows])
    left.set(xlabel="nats per test image", title="log p(x) − ELBO", ylim=(len(rows) - 0.5, -0.75))
    lacks = {"guide": ("IS - AIS", BLUE, 0.0)}
    if "adapted - AIS" in rows[0]:
        lacks = {"guide": ("IS - AIS", BLUE, -0.15), "adapted": ("adapted - AIS", GREEN, 0.15)}
    for name, (key, colour, shift) in lacks.items():
        means, errors = ([of(row[key]) for row in rows] for of in (mean_of, spread_of))
        middle.errorbar(means, places + shift, xerr=errors, fmt="o", color=colour, capsize=3)
        if len(lacks) > 1:
            middle.annotate(name, (means[0], shift), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        share = [row["k-hat > 0.7" if name == "guide" else "adapted, k-hat > 0.7"] for row in rows]
        bars = right.barh(places + shift, share, height=0.6 / len(lacks), color=colour)
        texts = [f" {value:.0%}" if name == "guide" else f" {name}: {value:.1%}" for value in share]
        right.bar_label(bars, texts, fontsize=9)
    middle.axvline(0, color=GREY, linewidth=0.8)
    middle.set(
        xlabel="nats per test image", title="-log p(x), less that by AIS", xlim=(min(-0.05, middle.get_xlim()[0]), None)
    )
    right.set(xlabel="share of test images", title="k-hat above 0.7", xlim=(0, 1.3), xticks=[0, 0.5, 1])
    return drawn


def pages(name: str, k_hat: Tensor, x: Tensor, x_hat: Tensor) -> Figure:
    """Draw the images with the largest and the smallest k-hat of a guide, over their reconstructions."""
    drawn = Figure(figsize=(8, 2.4), layout="constrained")
    num = min(20, len(x))
    worst_first = torch.arange(num), torch.arange(len(x)).flip(0)[:num]
    for axes, some, kind in zip(drawn.subplots(2, 1), worst_first, ("worst", "best"), strict=True):
        ends = k_hat[some][[0, -1]]
        title = f"{name}: the guide is {kind}, k-hat {ends[0]:.2f} to {ends[1]:.2f}; reconstructions below"
        show(axes, torch.stack([x[some], x_hat[some]]), title)
    return drawn


if __name__ == "__main__":
    command(main)
