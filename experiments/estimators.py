r"""Estimators of the bound and of its gradient, compared on one VAE.

For each estimator and number of particles K, with one data set, network, initialisation and order of minibatches:

- bound: minus the estimator's bound on test images after training, nats per image;
- variance and SNR: of the gradient g on one minibatch, at one set of parameters (after the first estimator's training),
  over many draws: :math:`\sum_p \mathrm{Var}(g_p)`, and :math:`\sqrt{\sum_p (\mathbb{E} g_p)^2 / \sum_p
  \mathrm{Var}(g_p)}`, for the parameters p of the guide and of the model, corrected for the bias of the squared mean;
- ms: time of a step of Pyro's SVI, the median over rounds in which the estimators take turns;
- -log p(x): of test images after the same number of steps, and after the number of steps that fits into the same number
  of seconds (at the ms above, so that the load of the machine affects all estimators alike).

References:
    Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016): the network of 784-200-200-50.

    Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018): the signal-to-noise ratio.

The committed table and figure: ``python experiments/estimators.py --data mnist --root DATA``; DATA is the folder of
torchvision's MNIST
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import pyro
import torch
from common import command, draw, write_table
from figures import estimators as figure
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import VAE, evaluate, likelihoods, networks
from pyro_vae.conditional import Conditional
from pyro_vae.data import Dataset, load
from pyro_vae.objectives import ELBO, IWAE, Objective, Renyi, ReweightedWakeSleep

# Label, constructor, whether it has a row for one particle and for several.
ESTIMATORS: list[tuple[str, Callable[[int], Objective], bool, bool]] = [
    ("ELBO, KL in closed form", lambda k: ELBO(k, kl="analytic"), True, True),
    ("ELBO, KL sampled", lambda k: ELBO(k, kl="sampled"), True, False),
    ("ELBO, STL", lambda k: ELBO(k, gradient="stl"), True, True),
    ("IWAE", lambda k: IWAE(k), False, True),
    ("IWAE, STL", lambda k: IWAE(k, "stl"), False, True),
    ("IWAE, DReG", lambda k: IWAE(k, "dreg"), False, True),
    ("IWAE, DReG, through K / 10", lambda k: IWAE(k, "dreg", resample=max(1, k // 10)), False, True),
    ("Rényi, alpha = 0.5", lambda k: Renyi(0.5, k), False, True),
    ("reweighted wake-sleep", lambda k: ReweightedWakeSleep(k), False, True),
]


def main(
    data: str = "digits",
    root: str = "data",
    particles: tuple[int, ...] = (1, 5, 50),
    steps: int = 2000,
    seconds: float = 60.0,
    latent: int = 50,
    hidden: tuple[int, ...] = (200, 200),
    batch_size: int = 100,
    lr: float = 1e-3,
    draws: int = 200,
    rounds: int = 15,
    images: int = 2000,
    num_particles: int = 500,
    seed: int = 0,
    out: str = "experiments/results",
) -> None:
    """Compare the estimators, and write estimators.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set, binarised dynamically.
        root: Folder where torchvision finds it.
        particles: Numbers of particles K.
        steps: Number of training steps, for the comparison after the same steps.
        seconds: Seconds of training, for the comparison after the same time.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        batch_size: Images in a minibatch.
        lr: Adam's learning rate.
        draws: Number of gradients for variance and SNR.
        rounds: Number of rounds of timing, each with a few steps of each estimator.
        images: Test images for the bound and -log p(x), the first ones.
        num_particles: Draws per image for -log p(x).
        seed: Seed of the initialisation, the order of minibatches and the draws.
        out: Folder for the results.
    """
    if min(particles) < 1 or steps < 1 or draws < 2 or rounds < 1 or not seconds > 0:
        raise ValueError(
            "Expected particles, steps and rounds of at least 1, at least 2 draws and a positive time; got "
            f"{particles}, {steps}, {rounds}, {draws} and {seconds}."
        )
    dataset = load(data, root, binarize="dynamic")
    chosen = [
        (label, k, make(k))
        for k in sorted(particles)
        for label, make, single, several in ESTIMATORS
        if (single if k == 1 else several)
    ]

    def start() -> VAE:
        torch.manual_seed(seed)
        network = partial(networks.MLP, hidden=hidden, activation="Tanh")
        vae = VAE.build(dataset.event_shape, latent, likelihood=likelihoods.Bernoulli, network=network)
        if isinstance(vae.decoder, Conditional):
            vae.decoder.start_at(dataset.mean)
        return vae

    objectives = [objective for _, _, objective in chosen]
    milliseconds = timings(objectives, start, dataset, batch_size, lr, rounds)
    torch.manual_seed(seed)
    x, batch = dataset.test[:images], dataset.train[:batch_size]  # binarised once, for all rows
    rows: list[dict] = []
    reference: VAE | None = None
    for (label, k, objective), ms in zip(chosen, milliseconds, strict=True):
        in_time = max(1, int(1000 * seconds / ms))
        vae, found = start(), {}
        bar = tqdm(total=max(steps, in_time), desc=f"{label}, K = {k}", unit=" steps", leave=False)
        with pyro.get_param_store().scope(), bar:
            for mark in train(vae, objective, dataset, {steps, in_time}, batch_size, lr, bar):
                found[mark] = measure(vae, objective, x, batch_size, num_particles, seed)
        reference = reference or vae
        spread = gradients(reference, objective, batch, draws, seed)
        (bound, same_steps), (_, same_seconds) = found[steps], found[in_time]
        rows.append(
            {"estimator": label, "K": str(k), "-bound": bound, **spread, "ms per step": ms}
            | {"-log p(x), same steps": same_steps, "steps in the time": str(in_time)}
            | {"-log p(x), same seconds": same_seconds}
        )
    stem = Path(out) / "estimators"
    caption = (
        f"{dataset}; MLPs with {', '.join(map(str, hidden))} units, {latent} latent dimensions, batches of "
        f"{batch_size}, Adam at {lr:g}. Nats per image, of masses, of the first {len(x):,} test images, ± standard "
        f"error over them. -bound: by the estimator, after {steps:,} steps. -log p(x): by importance sampling with "
        f"{num_particles:,} particles, after {steps:,} steps, and after the number that fits into {seconds:g} s at the "
        "median ms per step. Gradients: of the loss per image, one minibatch, at the first row's trained parameters, "
        f"{draws} draws."
    )
    write_table(rows, stem, caption)
    draw(figure, stem.with_suffix(".png"), rows)


def train(
    vae: VAE, objective: Objective, dataset: Dataset, marks: set[int], batch_size: int, lr: float, bar: tqdm
) -> Iterator[int]:
    """Train by Pyro's SVI; yield after each number of steps in ``marks``."""
    svi = SVI(vae.model, vae.guide, PyroOptim(torch.optim.Adam, {"lr": lr}), objective)
    for step, batch in enumerate(minibatches(len(dataset.train), batch_size, max(marks)), start=1):
        svi.step(dataset.train[batch])
        bar.update()
        if step in marks:
            yield step


def minibatches(data: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Yield indices of ``steps`` minibatches, in a new order every epoch, without the last, smaller one."""
    while steps > 0:
        for batch in torch.randperm(data).split(batch_size)[: min(steps, max(1, data // batch_size))]:
            steps -= 1
            yield batch


def timings(
    objectives: list[Objective], start: Callable[[], VAE], dataset: Dataset, batch_size: int, lr: float, rounds: int
) -> list[float]:
    """Return the milliseconds of a step of each objective: the median over rounds of three steps."""
    spent: list[list[float]] = [[] for _ in objectives]
    batch = dataset.train[:batch_size]
    rivals = []
    for objective in objectives:
        with pyro.get_param_store().scope() as store:
            vae = start()
            rivals.append((SVI(vae.model, vae.guide, PyroOptim(torch.optim.Adam, {"lr": lr}), objective), store))
            rivals[-1][0].step(batch)
    for _ in tqdm(range(rounds), desc="timing", unit=" rounds", leave=False):
        for (svi, store), times in zip(rivals, spent, strict=True):
            with pyro.get_param_store().scope(store):
                begin = time.perf_counter()
                for _ in range(3):
                    svi.step(batch)
                times.append((time.perf_counter() - begin) / 3 * 1000)
    return [median(times) for times in spent]


@torch.no_grad()
def measure(
    vae: VAE, objective: Objective, x: Tensor, batch_size: int, num_particles: int, seed: int
) -> tuple[float, tuple[float, float]]:
    """Return minus the objective's bound on x, and -log p(x) with its standard error, nats per image."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = sum(objective.loss(vae.model, vae.guide, rows) for rows in x.split(batch_size)) / len(x)
        nll = evaluate.nll(vae, x, num_particles)
    return loss, (nll.mean().item(), nll.std().item() / len(x) ** 0.5)


def gradients(vae: VAE, objective: Objective, x: Tensor, draws: int, seed: int) -> dict[str, float]:
    """Return variance and signal-to-noise ratio of the gradient of the loss per image, for guide and model."""
    found: dict[str, float] = {}
    parts = {"guide": [*vae.encoder.parameters()], "model": [*vae.decoder.parameters()]}
    sums = {name: [torch.zeros(sum(p.numel() for p in own)).double() for _ in range(2)] for name, own in parts.items()}
    torch.manual_seed(seed)
    with pyro.get_param_store().scope():
        for _ in tqdm(range(draws), desc="gradients", unit=" draws", leave=False):
            loss = objective.differentiable_loss(vae.model, vae.guide, x) / len(x)
            every = torch.autograd.grad(loss, [p for own in parts.values() for p in own])
            cut = len(parts["guide"])
            for name, own in (("guide", every[:cut]), ("model", every[cut:])):
                g = torch.cat([part.flatten() for part in own]).double()
                sums[name][0] += g
                sums[name][1] += g.square()
    for name, (first, second) in sums.items():
        variance = ((second - first.square() / draws) / (draws - 1)).sum()
        signal = (first / draws).square().sum() - variance / draws
        found[f"variance, {name}"] = variance.item()
        found[f"SNR, {name}"] = (signal.clamp(min=0) / variance).sqrt().item()
    return found


if __name__ == "__main__":
    command(main)
