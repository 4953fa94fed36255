r"""The same minute: -log p(x) of test images after equal CPU time, for this package and for its rivals.

Every rival trains a VAE of 784-400-20-400-784, Bernoulli pixels binarised dynamically, batches of 128, with Adam, on
one thread of a CPU. A minute is CPU time with compiling, without imports and without reading the data. First a trial
of a few epochs measures a rival's time for an epoch; then the rival trains, from the start, for as many whole epochs as
take a minute, and again for another number if the time is off by a tenth, at most three times in all. Thus a learning
rate that depends on the length of the run is known in advance. ``default`` is what
the toolkit's own example does: pyro_vae's ``fit(vae, data)``, Adam at 1e-3 in the loop by hand and in the examples of
NumPyro and Pyro, 1e-4 in pythae's trainer. ``trapezoid`` is pyro_vae's default learning rate in another toolkit.

The columns are means and standard deviations over seeds: -log p(x), the importance weighted bound of the first test
images, binarised once, in nats per image, by one evaluator for all; epochs; CPU seconds. pyro_vae validates on 10,000
more images within its minute. Needs NumPyro and pythae: ``pip install -e '.[bench]'``.

To measure: ``python experiments/minute.py --root data``.
"""

import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import command, draw, label_ends, over_seeds, write_table
from matplotlib.figure import Figure
from minute_rivals import by_hand, numpyro_example, pyro_example, pythae
from rivals import one_thread_environment
from timing import cpu_name
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import VAE, evaluate, fit, likelihoods
from pyro_vae.data import Dataset, load
from pyro_vae.networks import MLP
from pyro_vae.plots.style import LINES
from pyro_vae.train.optimizers import trapezoid

BATCH, TRIAL, POINTS, ATTEMPTS = 128, 4, 8, 3  # TRIAL epochs of the trial, POINTS of the curve
RATE = 3e-3  # of the trapezoid, as in ``fit``
THEIRS: dict[str, tuple[Callable[..., Iterator[Any]], float | None]] = {
    "handwritten, compiled, default": (by_hand, 1e-3),
    "handwritten, compiled, trapezoid": (by_hand, None),
    "NumPyro, default": (numpyro_example, 1e-3),
    "NumPyro, trapezoid": (numpyro_example, None),
    "stock Pyro, default": (pyro_example, 1e-3),
    "pythae, default": (pythae, 1e-4),
}
OURS = "pyro_vae, default"
RIVALS = (OURS, *THEIRS)


class Done(Exception):
    """The last epoch of a run is over."""


class Curve:
    """Keeps the CPU seconds of a training at each epoch, and -log p(x) at some epochs; evaluation takes no time.

    Args:
        x: Test images.
        epochs: Number of epochs, after which a call raises :class:`Done`.
        particles: Draws for each image at the last epoch; a tenth of these before.
    """

    def __init__(self, x: Tensor, epochs: int, particles: int) -> None:
        self.x, self.epochs, self.particles = x, epochs, particles
        self.seconds: list[float] = []
        self.nll: dict[int, float] = {}
        self._start = cpu_seconds()

    def __call__(self, program: Any) -> None:
        """Add an epoch."""
        now = cpu_seconds()
        self.seconds.append(now - self._start)
        epoch = len(self.seconds)
        if epoch * POINTS // self.epochs > (epoch - 1) * POINTS // self.epochs:
            draws = self.particles if epoch == self.epochs else max(1, self.particles // 10)
            self.nll[epoch] = evaluate.nll(program, self.x, draws, seed=0).mean().item()
        if epoch == self.epochs:
            raise Done
        self._start += cpu_seconds() - now


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children, such as compilers."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def train(rival: str, dataset: Dataset, grey: Tensor, planned: int, curve: Curve, seed: int) -> None:
    """Train a rival for the epochs of a curve; its learning rate is the one of a run of ``planned`` epochs."""
    torch.manual_seed(seed)
    with suppress(Done):
        if rival == OURS:
            network = partial(MLP, hidden=(400,))
            vae = VAE.build(dataset.event_shape, 20, likelihood=likelihoods.Bernoulli, network=network)
            fit(vae, dataset, epochs=planned, seed=seed, progress=False, on_epoch=lambda history: curve(vae))
        program, rate = THEIRS[rival]
        steps = planned * (len(grey) // BATCH)
        for result in program(grey, BATCH, partial(falling_rate, steps) if rate is None else lambda step: rate):
            curve(result)


def falling_rate(steps: int, step: Any) -> Any:
    """Return the learning rate of a trapezoid at a step, which may be an array of JAX."""
    if isinstance(step, int):
        return RATE * trapezoid(steps, step)
    import jax.numpy as jnp

    return RATE * jnp.asarray([trapezoid(steps, t) for t in range(steps + 1)])[jnp.minimum(step, steps)]


def minute(
    rival: str, seed: int, seconds: float, data: str, root: str, images: int, particles: int, planned: int | None
) -> tuple[list[float], dict[int, float]]:
    """Train a rival for ``planned`` epochs, or for the trial; return CPU seconds by epoch, and -log p(x)."""
    dataset = load(data, root, binarize="dynamic")
    x, grey = dataset.test[:images], load(data, root).train[:].flatten(1)
    curve = Curve(x if rival == OURS else x.flatten(1), planned or TRIAL, particles if planned else 1)
    train(rival, dataset, grey, planned or max(TRIAL, round(seconds / 3)), curve, seed)
    return curve.seconds, curve.nll


def main(
    data: str = "mnist",
    root: str = "data",
    seconds: float = 60.0,
    seeds: int = 3,
    chosen: Sequence[str] = RIVALS,
    images: int = 1000,
    num_particles: int = 1000,
    apart: bool = True,
    out: str = "experiments/results",
) -> None:
    """Train every rival for the same CPU time, and write minute.csv, minute.md and minute.png in ``out``.

    Args:
        data: ``mnist``, or ``digits`` to try the script.
        root: Folder where torchvision finds MNIST.
        seconds: CPU seconds of each training.
        seeds: Number of seeds.
        chosen: Rivals, as in the table.
        images: Number of test images, the first ones.
        num_particles: Draws per image for -log p(x).
        apart: Whether each training runs in a new process of one thread, with an empty cache of compiled code.
        out: Folder for the results.
    """
    if unknown := [rival for rival in chosen if rival not in RIVALS]:
        raise ValueError(f"Expected rivals among {'; '.join(RIVALS)}; got {unknown[0]!r}.")
    load(data, root)  # which refuses an unknown name
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    for rival in tqdm(chosen, unit=" rivals"):
        runs = []
        for seed in range(seeds):
            start = partial(in_new_process, minute) if apart else minute
            run = partial(start, rival, seed, seconds, data, root, images)
            (times, nll), planned = run(num_particles, None), TRIAL
            for _ in range(ATTEMPTS):
                epoch = (times[-1] - times[0]) / max(1, planned - 1)
                planned = 1 + max(0, round((seconds - times[0]) / epoch)) if epoch else 1
                times, nll = run(num_particles, planned)
                if abs(times[-1] - seconds) < 0.1 * seconds or planned == 1:
                    break
            runs.append({"-log p(x)": nll[planned], "epochs": float(planned), "CPU seconds": times[-1]})
            tqdm.write(f"{rival}, seed {seed}: {nll[planned]:.2f} nats, {planned} epochs, {times[-1]:.1f} s")
            curves.setdefault(rival, [(times[epoch - 1], value) for epoch, value in nll.items()])
        rows.append({"rival": rival} | over_seeds(runs))
    caption = (
        f"{seeds} seeds, {images:,} test images of {data}, {num_particles:,} draws. CPU: {cpu_name()}, one thread."
    )
    write_table(rows, Path(out) / "minute", caption)
    points: list[dict[str, Any]] = [
        {"rival": rival, "CPU seconds": seconds, "-log p(x)": nll}
        for rival, curve in curves.items()
        for seconds, nll in curve
    ]
    write_table(points, Path(out) / "curves" / "minute", f"The first seed. {caption}")
    draw(figure, Path(out) / "minute.png", points)
    print((Path(out) / "minute.md").read_text())


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process of one thread, with an empty cache of compiled code."""
    with tempfile.TemporaryDirectory() as cache:
        names = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        with (
            mock.patch.dict(os.environ, one_thread_environment() | names),
            ProcessPoolExecutor(1, get_context("spawn")) as pool,
        ):
            return pool.submit(function, *arguments).result()


def figure(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw -log p(x) against CPU seconds."""
    drawn = Figure(figsize=(8, 4.5), layout="constrained")
    axes, ends = drawn.subplots(), []
    for rival, colour in zip(dict.fromkeys(point["rival"] for point in points), LINES, strict=False):
        curve = [(point["CPU seconds"], point["-log p(x)"]) for point in points if point["rival"] == rival]
        axes.plot(*zip(*curve, strict=True), "o-", markersize=3, linewidth=1.3, color=colour)
        ends.append((*curve[-1], rival, colour))
    lowest = min(end[1] for end in ends)
    axes.set(xlabel="CPU seconds", ylabel="-log p(x), nats per test image", ylim=(lowest - 1, lowest + 25))
    label_ends(axes, ends)
    return drawn


if __name__ == "__main__":
    command(main)
