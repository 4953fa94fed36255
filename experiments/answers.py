"""Contests of evaluation: importance sampling, annealed importance sampling, and NUTS."""

from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from pyro.ops.stats import effective_sample_size
from rival_inference import jax_annealing, jax_nll, keep_compiled_code, numpyro_nuts, steep_vae, torch_nll
from timing import in_turn
from torch import Tensor

from pyro_vae import ais, evaluate, posterior
from pyro_vae.annealing import Ladder

__all__ = ["annealing", "nll", "nuts"]

Numbers = dict[str, Any]
LEAPFROG = 3


def nll(images: int, num: int, rounds: int) -> Numbers:
    """Time -log p(x) by draws from the guide."""
    model, x = steep_vae(images)
    contestants: Numbers = {
        "ours": (lambda: evaluate.nll(model, x, num), False),
        "JAX": (jax_nll(model, x, num), False),
        "torch": (torch_nll(model, x, num), True),
    }
    return in_turn(contestants, rounds)


def annealing(images: int, chains: int, temperatures: int, rounds: int) -> Numbers:
    """Time an evaluation of the densities and their gradients in AIS, with all that is around it."""
    model, x = steep_vae(images)
    calls = 0
    evaluate_at = Ladder.evaluate

    def counted(self: Ladder, u: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return evaluate_at(self, u)

    def ours() -> float:
        return ais.ais(model, x, chains, temperatures, LEAPFROG, seed=0).mean().item()

    Ladder.evaluate = counted  # type: ignore[method-assign]
    ours()
    Ladder.evaluate = evaluate_at  # type: ignore[method-assign]
    theirs = jax_annealing(model, x, chains, temperatures, LEAPFROG)
    times = in_turn({"ours": (ours, False), "JAX": (theirs, False)}, rounds)
    return times | {"ours": times["ours"] / calls, "JAX": times["JAX"] / (temperatures * LEAPFROG + 1)}


def nuts(images: int, draws: int, warmup: int, chains: int, rounds: int, alone: bool = False) -> Numbers:
    """Time an independent draw of one image's z by NUTS, warm-up included: the mean over images, dimensions and runs.

    NumPyro 0.22 compiles in each run, and is timed with compiled code in a cache, too.
    """
    model, x = steep_vae(images)
    sizes: dict[str, list[float]] = {}

    def run(name: str, sampler: Callable[[], Tensor]) -> None:
        size = effective_sample_size(sampler(), 0, 1).mean().item() * images
        sizes.setdefault(name, []).append(size)

    samplers = {"ours": lambda: posterior.nuts(model, x, draws, warmup, chains, seed=len(sizes.get("ours", []))).z}
    for method in () if alone else ("sequential", "vectorized"):
        samplers[f"NumPyro, {method}"] = numpyro_nuts(model, x, draws, warmup, chains, method)
    contestants: Numbers = {name: (partial(run, name, sampler), False) for name, sampler in samplers.items()}
    times = in_turn(contestants, rounds)
    if not alone:
        with TemporaryDirectory() as folder:
            keep_compiled_code(folder)
            again = in_turn({name: step for name, step in contestants.items() if name != "ours"}, rounds)
        times = {**times, **{f"{name}, compiling": times[name] for name in again if name in sizes}, **again}
    effective = {name: sum(values) / len(values) for name, values in sizes.items()}
    per_draw = {
        name: value / effective[name.removesuffix(", compiling")] for name, value in times.items() if name != "cpu"
    }
    return per_draw | {"cpu": times["cpu"], "seconds": times["ours"] / 1000}
