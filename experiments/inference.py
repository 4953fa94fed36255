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

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from common import command, draw, in_processes, mean_of, show, spread_of, write_table
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import VAE, ais, evaluate, fit, guides, likelihoods, networks, objectives, posterior
from pyro_vae.conditional import Family
from pyro_vae.data import load
from pyro_vae.evaluate.adapted import ROUNDS
from pyro_vae.plots.style import BLUE, GREEN, GREY, ORANGE

GUIDES: dict[str, Callable[[int], Family]] = {
    "DiagonalNormal": guides.DiagonalNormal,
    "LowRankNormal, 4": partial(guides.LowRankNormal, rank=4),
    "Flow, coupling": partial(guides.Flow, layers=4, hidden=128),
    "FullNormal": guides.FullNormal,
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
        workers: Number of processes, of one thread each.
        out: Folder for the results.
    """
    if unknown := [name for name in chosen if name not in GUIDES]:
        raise ValueError(f"Expected guides among {'; '.join(GUIDES)}; got {unknown[0]}.")
    dataset = load(data, root, binarize="dynamic")
    options: dict[str, Any] = {
        "source": (data, root),
        "latent": latent,
        "hidden": hidden,
        "fit": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "lr_schedule": "one-cycle"},
        "images": images,
        "num_particles": num_particles,
        "num_adapted": num_adapted,
        "temperatures": temperatures,
        "steps": steps,
    }
    found = in_processes(one, [(name, options) for name in chosen], workers)
    stem = Path(out) / "inference"
    rows = [{"guide": name} | row for name, (row, *_) in zip(chosen, found, strict=True)]
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
    draw(pages, stem.with_name("inference_images.png"), chosen[0], found[0], dataset.test[:images])


def one(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """Train a VAE; return a row of the table, numbers of each image, and reconstructions."""
    data, root = options["source"]
    dataset = load(data, root, binarize="dynamic")
    torch.manual_seed(0)
    network = partial(networks.MLP, hidden=options["hidden"])
    vae = VAE.build(
        dataset.event_shape, options["latent"], guide=GUIDES[name], likelihood=likelihoods.Bernoulli, network=network
    )
    fit(vae, dataset, objectives.ELBO(), progress=False, **options["fit"])
    x = dataset.test[: options["images"]]
    numbers, seconds = measure(vae, x, options["num_particles"], options["temperatures"], options["steps"])
    lower, upper = ais.bdmc(vae, min(50, len(x)), temperatures=options["temperatures"], seed=0)
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
    if options["num_adapted"]:
        row |= by_adapted(vae, x, options["num_adapted"], numbers["AIS"], seconds)
    return row, {key: value.numpy() for key, value in numbers.items()}, vae.reconstruct(x).numpy()


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


def pages(name: str, found: Any, x: Tensor) -> Figure:
    """Draw the images with the largest and the smallest k-hat of a guide, over their reconstructions."""
    drawn = Figure(figsize=(8, 2.4), layout="constrained")
    _, numbers, x_hat = found
    order = np.argsort(-numbers["k-hat"])
    num = min(20, len(order))
    for axes, some, kind in zip(drawn.subplots(2, 1), (order[:num], order[::-1][:num]), ("worst", "best"), strict=True):
        page = torch.stack([x[some.copy()], torch.from_numpy(x_hat[some.copy()])])
        ends = numbers["k-hat"][some][[0, -1]]
        show(axes, page, f"{name}: the guide is {kind}, k-hat {ends[0]:.2f} to {ends[1]:.2f}; reconstructions below")
    return drawn


if __name__ == "__main__":
    command(main)
