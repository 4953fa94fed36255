r"""Tighter bounds are not necessarily better: what more particles do to the signal in a gradient.

The toy of Rainforth et al.: :math:`z \sim \mathcal{N}(\mu, I)` and :math:`x \mid z \sim \mathcal{N}(z, I)` in 20
dimensions, with the guide :math:`q(z \mid x) = \mathcal{N}(A x + b, \frac{2}{3} I)`, whose variance is too large (the
posterior's is a half) so that weights vary. Parameters stand near their optimum, :math:`\mu^* = \bar{x}`,
:math:`A^* = I / 2`, :math:`b^* = \mu^* / 2`, each off by a Gaussian of standard deviation 0.01. For each number of
particles K, over many draws of the gradient g of the same data,

.. math:: \mathrm{SNR} = \sqrt{\frac{\sum_p (\mathbb{E} g_p)^2}{\sum_p \mathrm{Var}(g_p)}}

over the parameters p of the guide (A and b) or of the model (:math:`\mu`). The square of a mean over R draws is too
large by Var / R on average, which is taken off: without that a small SNR would level out at R to the power -1/2.

Theory says that log SNR against log K has slope -1/2 for the guide under IWAE, +1/2 for the model, and +1/2 for the
guide under the doubly reparameterised gradient. The gradient of STL grows too, but its mean is another one, and
reweighted wake-sleep's guide follows another objective: how long their mean gradients are beside DReG's, and the cosine
between them, says how far.

This is no VAE: a Pyro model and guide with two plates. Replicates of the experiment are one plate, each with
parameters of its own, so that one backward pass gives the gradients of all.

References:
    Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018).

    Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019).

The committed table and figure: ``python experiments/signal_to_noise.py``
"""

from itertools import product
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import command, write_table
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.objectives import IWAE, Objective, ReweightedWakeSleep

GUIDES = {
    "pathwise": ("IWAE", "#2b6cb0"),
    "dreg": ("IWAE, DReG", "#dd6b20"),
    "stl": ("IWAE, STL", "#2f855a"),
    "wake": ("reweighted wake-sleep", "#718096"),
}


def main(
    particles: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512),
    replicates: int = 20_000,
    data: int = 8,
    dimensions: int = 20,
    noise: float = 0.01,
    seed: int = 0,
    at_once: int = 2_000_000,
    out: str = "experiments/results",
) -> None:
    """Measure the signal-to-noise ratio of gradients, and write signal_to_noise.csv, .md and .png to ``out``.

    Args:
        particles: Numbers of particles K, at least two.
        replicates: Draws of each gradient.
        data: Number of data x.
        dimensions: Of z and x.
        noise: Standard deviation of the parameters around their optimum.
        seed: Of the data, the parameters and the draws.
        at_once: How many numbers are drawn at once, which bounds the memory.
        out: Folder for the results.
    """
    if len(particles) < 2 or min(particles) < 2 or replicates < 2:
        raise ValueError(
            "Expected at least two numbers of particles, each at least 2, and at least 2 replicates; "
            f"got {particles} and {replicates}."
        )
    torch.manual_seed(seed)
    x, start = toy(data, dimensions, noise)
    found: dict[tuple[str, int], dict[str, Tensor]] = {}
    cells = [*product(particles, GUIDES)]
    weight = sum(k for k, _ in cells)
    with tqdm(total=weight * replicates, unit=" particles", unit_scale=True) as bar:
        for k, name in cells:
            size = max(1, at_once // (k * data * dimensions))
            parts = []
            for first in range(0, replicates, size):
                count = min(size, replicates - first)
                parts.append(gradients(objective(name, k), x, start, count))
                bar.update(k * count)
            found[name, k] = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    table(found, particles, x, replicates, noise, Path(out) / "signal_to_noise")


def objective(name: str, num_particles: int) -> Objective:
    """Return an estimator by its name in the table."""
    if name == "wake":
        return ReweightedWakeSleep(num_particles)
    return IWAE(num_particles, gradient=name)  # type: ignore[arg-type]


def toy(data: int, dimensions: int, noise: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw data from the model, x of shape ``(data, dimensions)``, and parameters near their optimum for it."""
    x = torch.randn(dimensions) + 2**0.5 * torch.randn(1024, dimensions)
    mean = x.mean(0)
    optimum = {"mu": mean, "A": torch.eye(dimensions) / 2, "b": mean / 2}
    return x[:data], {name: value + noise * torch.randn_like(value) for name, value in optimum.items()}


def gradients(loss: Objective, x: Tensor, start: dict[str, Tensor], replicates: int) -> dict[str, Tensor]:
    """Return a gradient for each replicate, of shape ``(replicates, parameters)``, for the model and for the guide."""
    own = {name: value.expand(replicates, *value.shape).clone().requires_grad_() for name, value in start.items()}

    def model() -> None:
        with pyro.plate("replicates", replicates, dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(own["mu"].unsqueeze(-2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide() -> None:
        loc = x @ own["A"].mT + own["b"].unsqueeze(-2)
        with pyro.plate("replicates", replicates, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, (2 / 3) ** 0.5).to_event(1))

    found = dict(zip(own, torch.autograd.grad(loss.differentiable_loss(model, guide), [*own.values()]), strict=True))
    return {"model": found["mu"], "guide": torch.cat([found["A"].flatten(1), found["b"]], dim=1)}


def ratio(g: Tensor) -> float:
    """Return the signal-to-noise ratio of gradients ``(replicates, parameters)``; 0 where no signal can be seen."""
    noise = g.var(0)
    signal = g.mean(0).square() - noise / len(g)
    return (signal.sum().clamp(min=0) / noise.sum()).sqrt().item()


def curve(gs: list[Tensor], particles: np.ndarray) -> np.ndarray:
    """Return the ratio at each number of particles, and last the slope of their logarithms."""
    ratios = np.array([ratio(g) for g in gs])
    return np.append(ratios, np.polyfit(np.log(particles), np.log(ratios.clip(1e-12)), 1)[0])


def jackknife(gs: list[Tensor], particles: np.ndarray, parts: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return the curve and its standard errors, from curves with one part of the replicates left out."""
    chunks = [g.double().chunk(min(parts, len(g))) for g in gs]
    count = min(map(len, chunks))
    left = [curve([torch.cat([c for j, c in enumerate(g) if j != i]) for g in chunks], particles) for i in range(count)]
    return curve([g.double() for g in gs], particles), np.sqrt(count - 1) * np.std(left, axis=0)


def agreement(a: list[Tensor], b: list[Tensor]) -> tuple[float, float, float]:
    """Compare mean gradients: the largest z-score of all; at the first K also the ratio of length, and the cosine."""
    scores = [
        ((x.mean(0) - y.mean(0)) / ((x.var(0) + y.var(0)) / len(x)).sqrt()).abs().max().item()
        for x, y in zip(a, b, strict=True)
    ]
    x, y = a[0].mean(0), b[0].mean(0)
    return max(scores), (x.norm() / y.norm()).item(), torch.cosine_similarity(x, y, dim=0).item()


def table(
    found: dict[tuple[str, int], dict[str, Tensor]],
    particles: tuple[int, ...],
    x: Tensor,
    replicates: int,
    noise: float,
    stem: Path,
) -> None:
    """Write the table and the figure."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = dict(zip(("guide", "model"), figure.subplots(1, 2, sharex=True), strict=True))
    k = np.array(particles, dtype=float)
    rows: list[dict] = []
    for of, axes in panels.items():
        for name, (label, colour) in GUIDES.items():
            if of == "model" and name != "pathwise":
                continue  # they all take the model's gradient alike
            gs, reference = ([found[n, K][of] for K in particles] for n in (name, "dreg"))
            values, errors = jackknife(gs, k)
            theory = {"pathwise": -0.5 if of == "guide" else 0.5, "dreg": 0.5}.get(name, "")
            compared = agreement(gs, reference) if of == "guide" and name != "dreg" else ("", "", "")
            rows.append(
                {
                    "gradient": of,
                    "estimator": label,
                    "slope in theory": theory if theory == "" else f"{theory:+.1f}",
                    "slope": (float(values[-1]), float(errors[-1])),
                    **{
                        f"SNR, K = {K}": (float(v), float(e))
                        for K, v, e in zip(particles, values, errors, strict=False)
                    },
                    **dict(zip(("mean against DReG's: largest z", "length", "cosine"), compared, strict=True)),
                }
            )
            axes.errorbar(k, values[:-1], errors[:-1], color=colour, marker="o", markersize=4, label=label)
            if theory != "":
                middle = np.exp(np.log(values[:-1].clip(1e-12)).mean() + theory * (np.log(k) - np.log(k).mean()))
                axes.plot(k, middle, color=colour, linestyle=":", linewidth=1.2)
        axes.set(xscale="log", yscale="log", xlabel="particles K", title=f"Gradient of the {of}")
        axes.spines[["top", "right"]].set_visible(False)
    panels["guide"].legend(frameon=False)
    panels["guide"].set_ylabel("signal-to-noise ratio")
    figure.suptitle("Dotted: slopes of -1/2 and +1/2", fontsize=9)
    caption = (
        f"The toy of Rainforth et al. (2018) in {x.shape[1]} dimensions: {len(x)} data, {replicates:,} draws of each "
        f"gradient, parameters {noise:g} off their optimum. Signal-to-noise ratios over all parameters, ± standard "
        "error by the jackknife; slope of log SNR in log K. Against DReG's mean gradient: the largest z-score of a "
        "difference, over all parameters and K (of so many the largest is about 4 where the means are equal), and the "
        f"ratio of length and the cosine at K = {particles[0]}."
    )
    write_table(rows, stem, caption)
    figure.savefig(stem.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    command(main)
