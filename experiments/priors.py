r"""Learned priors against the standard normal.

The script trains one VAE for each prior, with the same networks and budget, on binarised images. Measured on test
images:

- -log p(x): by importance sampling, an upper bound on average, nats per image;
- -ELBO at beta = 1, and its two terms: distortion, E[-log p(x | z)], and rate, KL(q(z | x) || p(z)), nats per image;
- active: latent dimensions u with Var_x(E_q[u | x]) > 0.01;
- unreadable: the share of images E[x | z], z from the prior, with less confidence, of a classifier of real images, than
  95% of the real test images (see :class:`common.Judge`; 0.05 for the real test images).

The KL pushes the aggregate posterior towards a standard normal; a learned prior moves to the aggregate posterior.
priors_images.png shows samples and, for two latent dimensions after a third of the epochs, codes of test images over
the top 8 nats of log p(z).

References:
    VAE with a VampPrior (Tomczak and Welling, 2018).

    Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016): active units.

The committed table and figure: ``python experiments/priors.py --root DATA`` (half an hour on two cores). ``--chosen``
also takes ``Flow, autoregressive``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Judge, command, draw, mean_of, over_seeds, show, spread_of, train_all, write_table
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from pyro_vae import VAE, evaluate, load
from pyro_vae.checkpoint import data_of, load_metrics
from pyro_vae.conditional import mean
from pyro_vae.data import Dataset
from pyro_vae.plots.style import BLUE, CLASSES, RED

PRIORS: dict[str, Any] = {  # values of the option prior
    "StandardNormal": "StandardNormal",
    "GaussianMixture, 100": {"class_path": "GaussianMixture", "init_args": {"components": 100}},
    "VampPrior, 500": "VampPrior",
    "Flow, affine": "Flow",
    "Flow, spline": {"class_path": "Flow", "init_args": {"transform": "spline", "layers": 2}},
    "Flow, autoregressive": {"class_path": "Flow", "init_args": {"transform": "autoregressive"}},
}

CHOSEN = tuple(name for name in PRIORS if name != "Flow, autoregressive")


def main(
    data: str = "mnist",
    root: str = "data",
    chosen: tuple[str, ...] = CHOSEN,
    latent: int = 40,
    hidden: tuple[int, ...] = (300, 300),
    epochs: int = 30,
    batch_size: int = 128,
    lr: float = 2e-3,
    warmup: float = 0.1,
    seeds: int = 3,
    images: int = 1000,
    num_particles: int = 1000,
    workers: int = 2,
    runs: str = "runs/priors",
    out: str = "experiments/results",
) -> None:
    """Train a VAE for each prior and seed, and write priors.csv, .md, .png and priors_images.png to ``out``.

    Args:
        data: Name of a data set with labels.
        root: Folder where torchvision finds it.
        chosen: Priors, by their names in ``PRIORS``.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's largest learning rate, of one cycle.
        warmup: Fraction of the run in which beta rises from 0 to 1.
        seeds: Number of trainings of each model.
        images: Number of test images, the first ones.
        num_particles: Draws per image for -log p(x).
        workers: Number of processes that train, of one thread each; 0 for this process.
        runs: Folder of the run directories.
        out: Folder for the results.
    """
    if unknown := [name for name in chosen if name not in PRIORS]:
        raise ValueError(f"Expected priors among {'; '.join(PRIORS)}; got {unknown[0]}.")
    options: dict[str, Any] = {"data": data, "root": root, "binarize": "dynamic", "likelihood": "Bernoulli"}
    options |= {"network": {"class_path": "MLP", "init_args": {"hidden": [*hidden]}}, "batch_size": batch_size}
    beta = {"class_path": "Linear", "init_args": {"warmup": warmup}}
    options |= {"objective": {"class_path": "ELBO", "init_args": {"beta": beta}}, "lr": lr, "lr_schedule": "one-cycle"}
    settings = {name: {"prior": PRIORS[name]} for name in chosen}
    folders = train_all(settings, seeds, workers, runs, **options, latent=latent, epochs=epochs)
    flat = train_all(settings, 1, workers, runs, **options, latent=2, epochs=max(1, epochs // 3))
    dataset, _ = data_of(folders[chosen[0]][0])
    judge = Judge(dataset)
    rows, samples = list[dict[str, Any]](), list[np.ndarray]()
    for name, of_seeds in folders.items():
        results = []
        for seed, run in enumerate(of_seeds):
            vae, _ = load(run)
            torch.manual_seed(seed)
            row = measure(vae, dataset.test[:images], num_particles)
            row |= {"seconds per epoch": float(np.median(load_metrics(run)["seconds"]))}
            x = vae.generate(1000)
            results.append(row | {"unreadable": judge(x)["unreadable"]})
            samples += [] if seed else [x.numpy()]
        rows.append({"prior": name} | over_seeds(results))
    planes = [plane(load(of_seeds[0])[0], dataset) for of_seeds in flat.values()]
    stem = Path(out) / "priors"
    caption = (
        f"The first {images:,} test images of {dataset} (frozen draws): mean ± standard deviation over {seeds} seeds. "
        f"Latent {latent}, Bernoulli likelihood, diagonal guide, hidden layers {hidden}, {epochs} epochs with 1 "
        f"particle, Adam in one cycle to {lr:g}, beta from 0 to 1 over {warmup:.0%}. -log p(x) with "
        f"{num_particles:,} particles, the ELBO at beta = 1 with 10; nats per image."
    )
    write_table(rows, stem, caption)
    draw(figure, stem.with_suffix(".png"), rows)
    draw(pages, stem.with_name("priors_images.png"), chosen, samples, planes, dataset.test.labels)


@torch.no_grad()
def measure(vae: VAE, x: Tensor, num_particles: int) -> dict[str, float]:
    """Return the numbers of a VAE on images x."""
    log_likelihood, kl = (term.mean().item() for term in evaluate.elbo_terms(vae, x, 10))
    return {
        "-log p(x)": evaluate.nll(vae, x, num_particles).mean().item(),
        "-ELBO": kl - log_likelihood,
        "distortion": -log_likelihood,
        "rate": kl,
        "active": float(evaluate.active_units(vae, x)),
    }


@torch.no_grad()
def plane(vae: VAE, dataset: Dataset) -> tuple[np.ndarray, ...]:
    """Return codes of test images in two dimensions, and the prior on a grid around them: x, y, log p(z)."""
    codes = mean(vae.encoder(dataset.test[:2000]))
    low, high = codes.quantile(0.002, dim=0), codes.quantile(0.998, dim=0)
    edge = 0.15 * (high - low)
    across, up = (torch.linspace(float(a), float(b), 150) for a, b in zip(low - edge, high + edge, strict=True))
    log_p = vae.prior().log_prob(torch.stack(torch.meshgrid(across, up, indexing="xy"), -1))
    return codes.numpy(), across.numpy(), up.numpy(), log_p.numpy()


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw -log p(x) of each prior, and its share of unreadable samples, from the table."""
    drawn = Figure(figsize=(8, 1.2 + 0.36 * len(rows)), layout="constrained")
    titles = {"-log p(x)": "-log p(x), nats per test image", "unreadable": "Unreadable samples"}
    for axes, (key, title), form in zip(drawn.subplots(1, 2, sharey=True), titles.items(), (".2f", ".0%"), strict=True):
        cells = [row[key] for row in rows]
        means, spreads = [*map(mean_of, cells)], [*map(spread_of, cells)]
        axes.errorbar(means, range(len(rows)), xerr=spreads, fmt="o", color=BLUE, capsize=3)
        for place, value in enumerate(means):
            axes.annotate(
                f"{value:{form}}", (value, place), (0, 5), textcoords="offset points", ha="center", fontsize=8
            )
        axes.set(title=title, ylim=(len(rows) - 0.5, -0.75))
        axes.margins(x=0.12)
        axes.grid(axis="x", color="0.9")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    drawn.axes[1].axvline(0.05, color=RED, linewidth=1, linestyle="--")
    drawn.axes[1].text(0.055, len(rows) - 0.6, "real images", color=RED, fontsize=8)
    drawn.axes[1].xaxis.set_major_formatter(PercentFormatter(1, 0))
    drawn.axes[0].set_yticks(range(len(rows)), [row["prior"] for row in rows])
    drawn.supxlabel("mean ± standard deviation over seeds", fontsize=9)
    return drawn


def pages(
    names: Sequence[str], samples: Sequence[np.ndarray], planes: Sequence[tuple], labels: Tensor | None
) -> Figure:
    """Draw samples of each prior, and codes over its density in two dimensions; three priors side by side."""
    blocks = -(-len(names) // 3)
    drawn = Figure(figsize=(8, 5.6 * blocks), layout="constrained")
    panels = drawn.subplots(2 * blocks, 3, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for i, (name, x, plane) in enumerate(zip(names, samples, planes, strict=True)):
        above, below = panels[2 * (i // 3) : 2 * (i // 3) + 2, i % 3]
        show(above, torch.from_numpy(x[:36]).unflatten(0, (6, 6)), f"{name}: samples")
        codes, across, up, log_p = plane
        below.set_axis_on()
        below.contourf(across, up, log_p, levels=log_p.max() + np.linspace(-8, 0, 17), cmap="Greys", extend="min")
        colours = None if labels is None else labels[: len(codes)]
        below.scatter(codes[:, 0], codes[:, 1], c=colours, s=1.5, cmap=ListedColormap(CLASSES), linewidths=0)
        below.set_title("log p(z), and codes, in 2 dimensions", fontsize=9)
        below.set(xticks=[], yticks=[], xlim=(across[0], across[-1]), ylim=(up[0], up[-1]))
    return drawn


if __name__ == "__main__":
    command(main)
