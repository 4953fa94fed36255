r"""The signal-to-noise ratio of gradients against the number of particles: tighter bounds are not necessarily better.

The toy model of Rainforth et al.: :math:`z \sim \mathcal{N}(\mu, I)` and :math:`x \mid z \sim \mathcal{N}(z, I)` in 20
dimensions, with the guide :math:`q(z \mid x) = \mathcal{N}(A x + b, \frac{2}{3} I)`, whose variance is too large (the
posterior's is a half) so that weights vary. Parameters are near their optimum, :math:`\mu^* = \bar{x}`,
:math:`A^* = I / 2`, :math:`b^* = \mu^* / 2`, with Gaussian errors of standard deviation 0.01. For each number of
particles K, over many draws of the gradient g for the same data,

.. math:: \mathrm{SNR} = \sqrt{\frac{\sum_p (\mathbb{E} g_p)^2}{\sum_p \mathrm{Var}(g_p)}}

over the parameters p of the guide (A and b) or of the model (:math:`\mu`). The square of a mean over R draws has a
bias of Var / R, which is subtracted: otherwise a small SNR would level out at R to the power -1/2.

In theory log SNR against log K has slope -1/2 for the guide under IWAE, +1/2 for the model, and +1/2 for the guide
under the doubly reparameterised gradient. The SNR of STL grows, too, but the mean of its gradient differs, and
reweighted wake-sleep's guide follows another objective: the table has the length of their mean gradients relative to
DReG's, and the cosine between them.

The program is no VAE but a Pyro model and guide with two plates. One plate holds the replicates of the experiment, each
with separate parameters, so that one backward pass gives the gradients of all.

References:
    Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018).

    Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019).

The committed table and figure: ``python experiments/signal_to_noise.py``
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import command, draw, label_ends, mean_of, spread_of, ticks, write_table
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.objectives import IWAE, Objective, ReweightedWakeSleep
from pyro_vae.plots.style import LINES

GUIDES = {"pathwise": "IWAE", "dreg": "IWAE, DReG", "stl": "IWAE, STL", "wake": "reweighted wake-sleep"}


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
        dimensions: Dimensions of z and x.
        noise: Standard deviation of the parameters around their optimum.
        seed: Seed of the data, the parameters and the draws.
        at_once: Numbers drawn at once, which limits the memory.
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
    """Return an estimator by its key in ``GUIDES``."""
    if name == "wake":
        return ReweightedWakeSleep(num_particles)
    return IWAE(num_particles, gradient=name)  # type: ignore[arg-type]


def toy(data: int, dimensions: int, noise: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw data x from the model, of shape ``(data, dimensions)``, and parameters near their optimum."""
    x = torch.randn(dimensions) + 2**0.5 * torch.randn(1024, dimensions)
    mean = x.mean(0)
    optimum = {"mu": mean, "A": torch.eye(dimensions) / 2, "b": mean / 2}
    return x[:data], {name: value + noise * torch.randn_like(value) for name, value in optimum.items()}


def gradients(loss: Objective, x: Tensor, start: dict[str, Tensor], replicates: int) -> dict[str, Tensor]:
    """Return a gradient for each replicate, of shape ``(replicates, parameters)``, for model and guide."""
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
    """Return the signal-to-noise ratio of gradients ``(replicates, parameters)``; 0 if the estimated signal is 0."""
    noise = g.var(0)
    signal = g.mean(0).square() - noise / len(g)
    return (signal.sum().clamp(min=0) / noise.sum()).sqrt().item()


def curve(gs: list[Tensor], particles: np.ndarray) -> np.ndarray:
    """Return the ratio at each number of particles and, as the last number, the slope of its logarithm."""
    ratios = np.array([ratio(g) for g in gs])
    return np.append(ratios, np.polyfit(np.log(particles), np.log(ratios.clip(1e-12)), 1)[0])


def jackknife(gs: list[Tensor], particles: np.ndarray, parts: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return the curve and its standard errors by the jackknife over parts of the replicates."""
    chunks = [g.double().chunk(min(parts, len(g))) for g in gs]
    count = min(map(len, chunks))
    left = [curve([torch.cat([c for j, c in enumerate(g) if j != i]) for g in chunks], particles) for i in range(count)]
    return curve([g.double() for g in gs], particles), np.sqrt(count - 1) * np.std(left, axis=0)


def agreement(a: list[Tensor], b: list[Tensor]) -> tuple[float, float, float]:
    """Compare mean gradients: their largest z-score; for the first K, the ratio of lengths and the cosine."""
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
    k = np.array(particles, dtype=float)
    rows: list[dict] = []
    for of in ("guide", "model"):
        for name, label in GUIDES.items():
            if of == "model" and name != "pathwise":
                continue  # the model's gradient is the same
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
    caption = (
        f"The toy of Rainforth et al. (2018) in {x.shape[1]} dimensions: {len(x)} data, {replicates:,} draws of each "
        f"gradient, parameters {noise:g} off their optimum. Signal-to-noise ratios over all parameters, ± standard "
        "error by the jackknife; slope of log SNR in log K. Against DReG's mean gradient: the largest z-score of a "
        "difference, over all parameters and K (of so many the largest is about 4 where the means are equal), and the "
        f"ratio of length and the cosine at K = {particles[0]}."
    )
    write_table(rows, stem, caption)
    draw(figure, stem.with_suffix(".png"), rows)


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the ratio of each gradient against the number of particles, with the slopes of theory, from the table."""
    particles = [int(key.rpartition(" ")[2]) for key in rows[0] if key.startswith("SNR, K = ")]
    drawn = Figure(figsize=(8, 3.6), layout="constrained")
    for axes, part in zip(drawn.subplots(1, 2, width_ratios=[1.15, 1]), ("guide", "model"), strict=True):
        ends: list[tuple[float, float, str, str]] = []
        for row, colour in zip((row for row in rows if row["gradient"] == part), LINES, strict=False):
            cells = [row[f"SNR, K = {k}"] for k in particles]
            values = np.array([max(mean_of(cell), 1e-12) for cell in cells])
            axes.errorbar(particles, values, [*map(spread_of, cells)], color=colour, marker="o", markersize=4)
            label = f"{row['estimator']}\nslope {mean_of(row['slope']):.2f}"
            if row["slope in theory"] != "":
                theory = float(row["slope in theory"])
                middle = np.exp(np.log(values).mean() + theory * (np.log(particles) - np.log(particles).mean()))
                axes.plot(particles, middle, color=colour, linestyle=":", linewidth=1.5)
                label += f", theory {theory:+.1f}"
            ends.append((particles[-1], values[-1], label, colour))
        axes.set(xscale="log", yscale="log", xlabel="particles K", title=f"Gradient of the {part}")
        axes.set_ylim(axes.get_ylim())
        ticks(axes.xaxis, particles[::2])
        low, high = axes.get_ylim()
        ticks(axes.yaxis, [place for place in (0.001, 0.01, 0.1, 1, 2, 5, 10, 100) if low <= place <= high])
        label_ends(axes, ends, gap=0.11)
    drawn.axes[0].set_ylabel("signal-to-noise ratio")
    drawn.supxlabel("Dotted lines: the slope in theory", fontsize=9)
    return drawn


if __name__ == "__main__":
    command(main)
