r"""How good is the guide, and how far off is the bound?

One VAE for each guide, the same networks and the same budget, on binarised images; of the first test images:

- IS, AIS: -log p(x) by importance sampling from the guide, and by annealed importance sampling; upper bounds both, so
  that the smaller one is right, and IS - AIS, paired over images, is at least what importance sampling lacks;
- adapted, with ``--num_adapted``: by importance sampling from a proposal that is fitted to each image's posterior;
  adapted - AIS, paired; its share of k-hat above 0.7; and how many times its CPU time AIS took;
- BDMC gap: between AIS and an upper bound on log p(x), for images that the model draws: what AIS may lack there;
- k-hat: the Pareto shape of an image's weights. Above 0.7 importance sampling is said to be not to be trusted;
- approximation: log p(x) less the ELBO of the best guide of the family for each image; amortisation: what the
  encoder's ELBO lacks of that. Together they are log p(x) + (-ELBO);
- 90% holds: the share of true z within the guide's central 90% intervals, for images that the model draws.

All in nats per image. Drawn: the two gaps; IS - AIS of each image over its k-hat; and the images where the first guide
is worst, over their reconstructions.

References:
    Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018).

    On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov and Grosse, 2017).

    Yes, but Did It Work?: Evaluating Variational Inference (Yao, Vehtari, Simpson and Gelman, 2018).

The committed table and figure: ``python experiments/inference.py --root DATA`` (a quarter of an hour on two cores).
There is ``FullNormal`` too, for ``--chosen "[FullNormal]"``: with 50 dimensions its posterior collapses to the prior,
and all that is asked of the guide here comes out perfect, of a model that is useless.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from common import command, in_processes, show, write_table
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import VAE, ais, evaluate, fit, guides, likelihoods, networks, objectives, posterior
from pyro_vae.conditional import Family
from pyro_vae.data import load
from pyro_vae.evaluate.adapted import ROUNDS

GUIDES: dict[str, Callable[[int], Family]] = {
    "DiagonalNormal": guides.DiagonalNormal,
    "LowRankNormal, 4": partial(guides.LowRankNormal, rank=4),
    "Flow, coupling": partial(guides.Flow, layers=4, hidden=128),
    "FullNormal": guides.FullNormal,
}
CHOSEN = tuple(name for name in GUIDES if name != "FullNormal")
COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a")


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
    """Train a VAE for each guide, and write inference.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set.
        root: Folder where torchvision finds it.
        chosen: Which guides, by the names in ``GUIDES``.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's largest learning rate, of one cycle.
        images: Test images that are measured, the first ones.
        num_particles: Draws per image for importance sampling from the guide.
        num_adapted: Draws per image from an adapted proposal, if any, beside those that fit it.
        temperatures: Of AIS, 16 chains from the guide.
        steps: In which a guide is refined for each image.
        workers: Models at once, in a process of one thread each.
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
            f" Of adapted proposals {num_adapted:,} draws, after at least {sum(ROUNDS) * latent:,} that fit them."
        )
    write_table(rows, stem, caption)
    picture(chosen, found, dataset.test[:images]).savefig(stem.with_suffix(".png"), dpi=120)


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
    """Return cells of adapted proposals, beside -log p(x) by AIS and its CPU time."""
    start = process_time()
    log_w = evaluate.log_weights(vae, x, num, seed=0, proposal="adapted")
    ratio, nll, k = seconds / (process_time() - start), -evaluate.iwae(log_w), evaluate.pareto_k(log_w)
    cells = {"adapted": _pair(nll), "adapted - AIS": _pair(nll - annealed)}
    return cells | {"adapted, k-hat > 0.7": (k > 0.7).double().mean().item(), "AIS's time / adapted's": ratio}


def measure(vae: VAE, x: Tensor, num_particles: int, temperatures: int, steps: int) -> tuple[dict[str, Tensor], float]:
    """Return what is measured of each image, and the CPU time of AIS."""
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


def picture(names: tuple[str, ...], found: list[Any], x: Tensor) -> Figure:
    """Draw the gaps of each guide, IS - AIS over k-hat, and the images where the first guide is worst."""
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[1.25, 1])
    left, right = figure.add_subfigure(grid[0]).subplots(1, 2)
    parts = {"approximation": "#dd6b20", "amortisation": "#2b6cb0"}
    starts = np.zeros(len(names))
    for part, colour in parts.items():
        widths = np.array([row[part][0] for row, *_ in found])
        left.barh(range(len(names)), widths, left=starts, color=colour, label=part, height=0.6)
        starts = starts + widths
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=2)
    left.set(xlabel="log p(x) − ELBO, nats per test image", title="What the family cannot, and the encoder does not")
    for (_, numbers, _), name, colour in zip(found, names, COLOURS, strict=False):
        right.plot(numbers["k-hat"], numbers["IS"] - numbers["AIS"], ".", color=colour, label=name, markersize=4)
    right.axvline(0.7, color="0.6", linewidth=1, linestyle="--")
    right.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    right.legend(frameon=False, fontsize=9)
    right.set(xlabel="k-hat of an image", ylabel="IS − AIS, nats", title="What importance sampling lacks")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    pages = figure.add_subfigure(grid[1]).subplots(2, 1)
    _, numbers, x_hat = found[0]
    order = np.argsort(-numbers["k-hat"])
    num = min(20, len(order))
    for axes, some, kind in zip(pages, (order[:num], order[::-1][:num]), ("worst", "best"), strict=True):
        page = torch.stack([x[some.copy()], torch.from_numpy(x_hat[some.copy()])])
        ends = numbers["k-hat"][some][[0, -1]]
        show(
            axes, page, f"{names[0]}: the guide is {kind}, k-hat {ends[0]:.2f} to {ends[1]:.2f}; reconstructions below"
        )
    return figure


if __name__ == "__main__":
    command(main)
