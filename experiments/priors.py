r"""What does a learned prior buy?

One VAE for each prior, the same networks and the same budget, on binarised images; all is measured on test images:

- -log p(x): by importance sampling, an upper bound on average, nats per image;
- -ELBO at beta = 1, and its two terms: distortion, E[-log p(x | z)], and rate, KL(q(z | x) || p(z)), nats per image;
- active: latent dimensions u with Var_x(E_q[u | x]) > 0.01;
- unreadable: the share of images E[x | z], z from the prior, that a classifier of real images is less sure of than of
  95% of the real test images (see :class:`common.Judge`; 0.05 is as readable as they).

A standard normal is what the guide's codes are pushed to be, all of them together; a learned prior goes to where they
are. The same with two latent dimensions, after a third of the epochs, is drawn: codes of test images over log p(z),
8 nats of it.

References:
    VAE with a VampPrior (Tomczak and Welling, 2018).

    Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), for active units.

The committed table and figure: ``python experiments/priors.py --root DATA`` (half an hour on two cores); there is
``Flow, autoregressive`` too, for ``--chosen``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Judge, command, in_processes, over_seeds, show, write_table
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import VAE, evaluate, fit, likelihoods, networks, objectives, priors
from pyro_vae.conditional import mean
from pyro_vae.data import Dataset, load

PRIORS: dict[str, Callable[[int], torch.nn.Module]] = {
    "StandardNormal": priors.StandardNormal,
    "GaussianMixture, 100": partial(priors.GaussianMixture, components=100),
    "VampPrior, 500": priors.VampPrior,
    "Flow, affine": priors.Flow,
    "Flow, spline": partial(priors.Flow, transform="spline", layers=2),
    "Flow, autoregressive": partial(priors.Flow, transform="autoregressive"),
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
    out: str = "experiments/results",
) -> None:
    """Train a VAE for each prior and seed, and write priors.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set with labels.
        root: Folder where torchvision finds it.
        chosen: Which priors, by the names in ``PRIORS``.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's largest learning rate, of one cycle.
        warmup: Part of the run over which beta goes from 0 to 1.
        seeds: How many times each model is trained.
        images: Test images that are measured, the first ones.
        num_particles: Draws per image for -log p(x).
        workers: Models trained at once, in a process of one thread each.
        out: Folder for the results.
    """
    if unknown := [name for name in chosen if name not in PRIORS]:
        raise ValueError(f"Expected priors among {'; '.join(PRIORS)}; got {unknown[0]}.")
    dataset = load(data, root, binarize="dynamic")
    options: dict[str, Any] = {
        "source": (data, root),
        "latent": latent,
        "hidden": hidden,
        "images": images,
        "num_particles": num_particles,
        "warmup": warmup,
        "epochs": epochs,
        "fit": {"batch_size": batch_size, "lr": lr, "lr_schedule": "one-cycle"},
    }
    jobs = [(name, seed, options) for seed, name in product(range(seeds), chosen)]
    found = in_processes(one, jobs, workers)
    judge = Judge(dataset)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for (name, *_), (row, drawn, _) in zip(jobs, found, strict=True):
        runs[name].append(row | {"unreadable": judge(torch.from_numpy(drawn))["unreadable"]})
    stem = Path(out) / "priors"
    rows = [{"prior": name} | over_seeds(each) for name, each in runs.items()]
    caption = (
        f"The first {images:,} test images of {dataset} (frozen draws): mean ± standard deviation over {seeds} seeds. "
        f"Latent {latent}, Bernoulli likelihood, diagonal guide, hidden layers {hidden}, {epochs} epochs with 1 "
        f"particle, Adam in one cycle to {lr:g}, beta from 0 to 1 over {warmup:.0%}. -log p(x) with "
        f"{num_particles:,} particles, the ELBO at beta = 1 with 10; nats per image."
    )
    write_table(rows, stem, caption)
    nll = {name: [run["-log p(x)"] for run in each] for name, each in runs.items()}
    _, samples, planes = zip(*found[: len(chosen)], strict=True)
    picture(nll, samples, planes, dataset.test.labels).savefig(stem.with_suffix(".png"), dpi=120)


def one(name: str, seed: int, options: dict[str, Any]) -> tuple[dict[str, float], np.ndarray, tuple[np.ndarray, ...]]:
    """Train a VAE; return a row of the table, samples, and of the first seed the prior in two dimensions."""
    data, root = options["source"]
    dataset = load(data, root, binarize="dynamic")

    def trained(latent: int, epochs: int) -> tuple[VAE, dict[str, list[float]]]:
        torch.manual_seed(seed)
        network = partial(networks.MLP, hidden=options["hidden"])
        vae = VAE.build(dataset.event_shape, latent, PRIORS[name], likelihoods.Bernoulli, network=network)
        objective = objectives.ELBO(beta=objectives.Linear(options["warmup"]))
        return vae, fit(vae, dataset, objective, epochs, seed=seed, progress=False, **options["fit"])

    epochs = options["epochs"]
    vae, history = trained(options["latent"], epochs)
    torch.manual_seed(seed)
    row = measure(vae, dataset.test[: options["images"]], options["num_particles"])
    row |= {"seconds per epoch": float(np.median(history["seconds"]))}
    return row, vae.generate(1000).numpy(), plane(trained(2, max(1, epochs // 3))[0], dataset) if seed == 0 else ()


@torch.no_grad()
def measure(vae: VAE, x: Tensor, num_particles: int) -> dict[str, float]:
    """Return what is measured of a VAE on images x."""
    log_likelihood, kl = (term.mean().item() for term in evaluate.split(vae, x, 10))
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


def picture(
    nll: dict[str, list[float]], samples: Sequence[np.ndarray], planes: Sequence[tuple], labels: Tensor | None
) -> Figure:
    """Draw -log p(x) of each prior, a point a seed; its samples; and its density in two dimensions, over codes."""
    figure = Figure(figsize=(2.6 * len(nll), 8.6), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=[0.8, 1, 1])
    axes = figure.add_subfigure(grid[0]).add_subplot()
    for i, found in enumerate(nll.values()):
        axes.plot(found, [i] * len(found), "o", color="#2b6cb0", markersize=6, alpha=0.8)
        axes.text(max(found), i, f"   {np.mean(found):.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(nll)), [*nll])
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.15)
    axes.grid(axis="x", alpha=0.3)
    axes.set(
        xlabel="−log p(x), nats per test image: a point a seed", title="The same networks and budget, another prior"
    )
    axes.spines[["top", "right"]].set_visible(False)
    pages, maps = (figure.add_subfigure(grid[i]).subplots(1, len(nll), squeeze=False)[0] for i in (1, 2))
    for name, x, page in zip(nll, samples, pages, strict=True):
        show(page, torch.from_numpy(x[:36]).unflatten(0, (6, 6)), f"{name}: samples")
    for (codes, across, up, log_p), axes in zip(planes, maps, strict=True):
        axes.contourf(across, up, log_p, levels=log_p.max() + np.linspace(-8, 0, 17), cmap="Greys", extend="min")
        colours = None if labels is None else labels[: len(codes)]
        axes.scatter(codes[:, 0], codes[:, 1], c=colours, s=1.5, cmap="tab10", alpha=0.7, linewidths=0)
        axes.set_title("log p(z), and codes, in 2 dimensions", fontsize=9)
        axes.set(xticks=[], yticks=[], xlim=(across[0], across[-1]), ylim=(up[0], up[-1]))
    return figure


if __name__ == "__main__":
    command(main)
