"""The benchmark's part on a GPU: every program gives the CPU's numbers, and the time and memory of a step.

It takes a few minutes, and needs no data. On a machine without a GPU the functions run on the CPU too.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pyro
import rivals
import torch
from own_steps import ours, vae
from timing import in_turn
from torch import Tensor

from pyro_vae import VAE, ais, likelihoods, programs
from pyro_vae.objectives import ELBO
from pyro_vae.program import posterior_of

__all__ = ["log_densities_apart", "seconds_of_ais", "steps"]

EVENT = (1, 28, 28)
Example = tuple[Any, tuple[Tensor, ...]]


def example_programs(rows: int = 16) -> dict[str, Example]:
    """Return each program of the package with data of random binary images."""
    x, y = torch.rand(rows, *EVENT).bernoulli(), torch.arange(rows) % 10
    binary = likelihoods.Bernoulli
    return {
        "VAE": (VAE.build(EVENT, likelihood=binary), (x,)),
        "ConditionalVAE": (programs.ConditionalVAE.build(EVENT, given=10, likelihood=binary), (x, y)),
        "HierarchicalVAE": (programs.HierarchicalVAE.build(EVENT, likelihood=binary), (x,)),
        "SemiSupervisedVAE": (programs.SemiSupervisedVAE.build(EVENT, classes=10, likelihood=binary), (x, y)),
        "VQVAE": (programs.VQVAE.build(EVENT, codes=16, likelihood=binary), (x,)),
    }


@torch.no_grad()
def log_densities_apart(device: str) -> dict[str, float]:
    """Return how far log p(x, z) on a device is from the CPU's, for each program, at the same z; in nats."""
    differences = {}
    for name, (program, data) in example_programs().items():
        with pyro.get_param_store().scope():
            posterior = posterior_of(program.eval(), data)
            draws, _ = posterior.propose(3)
            expected = posterior.log_joint(draws)
        with pyro.get_param_store().scope():
            on_device = posterior_of(deepcopy(program).to(device), tuple(column.to(device) for column in data))
            values = on_device.log_joint({site: draw.to(device) for site, draw in draws.items()})
        differences[name] = (values.cpu() - expected).abs().max().item()
    return differences


def steps(device: str, batch: int, rounds: int, modes: tuple[str, ...] = ("graph", "inductor")) -> dict[str, Any]:
    """Time a step of the ELBO, 784-400-20, beside a loop by hand; add the peak of memory on a GPU, in megabytes."""
    model, x = vae(binary=True).to(device), rivals.pixels(batch, binary=True).to(device)
    by_hand = partial(rivals.by_hand, rivals.bernoulli_loss, x=x, draws=(batch,))
    contestants: dict[str, tuple[Callable[[], Any], bool]] = {
        f"ours, {mode}": (ours(model, ELBO(), x, mode), False) for mode in modes
    }
    contestants["handwritten, eager"] = (by_hand(rivals.Networks(), compiled=False), False)
    if "inductor" in modes:
        contestants["handwritten, compiled"] = (by_hand(rivals.Networks(), compiled=True), False)
    times = in_turn(contestants, rounds)
    if device != "cpu":
        for name, (step, _) in contestants.items():
            torch.cuda.reset_peak_memory_stats()
            step()
            times[f"{name}, MB"] = torch.cuda.max_memory_allocated() / 2**20
    return times


def seconds_of_ais(device: str, chains: int = 16, temperatures: int = 200) -> dict[str, Any]:
    """Time annealed importance sampling of 20 images; return the seconds and the mean bound on log p(x), in nats."""
    program, (x,) = example_programs(20)["VAE"]
    program, x = program.to(device).eval(), x.to(device)
    bounds: list[Tensor] = []
    times = in_turn({"ais": (lambda: bounds.append(ais.ais(program, x, chains, temperatures, seed=0)), False)}, 1)
    return {"seconds": times["ais"] / 1e3, "bound": bounds[-1].mean().item()}
