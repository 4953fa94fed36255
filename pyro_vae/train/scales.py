"""By which factor a program's loss of a batch is more than that of its data: a plate may say how many there are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vae.conditional import module
from pyro_vae.program import point_of
from pyro_vae.seeds import at_test
from pyro_vae.traces.particles import OneSubsample
from pyro_vae.traces.sites import latent, mean_scale, observed, plates
from pyro_vae.train.generators import seeded

__all__ = ["Scales", "showing"]


class Scales:
    """The scale of what is observed in a batch, for each number of rows, which a scale may follow.

    Once it has seen a batch, ``outside`` are the latent sites outside the plate of its rows, and ``shown`` says whether
    the program shows Pyro parameters.
    """

    def __init__(self, program: Any, model: Callable[..., Any]) -> None:
        self.program, self.model = program, model
        self.outside: list[str] = []
        self.shown = True
        self._known: dict[int, float] = {}

    def __call__(self, batch: tuple[Tensor, ...]) -> float:
        """Return the scale of a batch, the arguments of model and guide."""
        rows = len(batch[0])
        if rows not in self._known:
            self._known[rows] = self._look(batch, rows)
        return self._known[rows]

    def weight(self, part: tuple[Tensor, ...], whole: int) -> float:
        """Return what the gradient of a part counts in that of a batch of so many rows: a scale may follow the part."""
        if len(part[0]) == whole or self(part) == self(tuple(torch.cat([column, column]) for column in part)):
            return 1.0
        return len(part[0]) / whole

    @torch.no_grad()
    def _look(self, batch: tuple[Tensor, ...], rows: int) -> float:
        device = point_of(self.program).device
        with seeded(0, device), at_test(self.program, device), pyro.validation_enabled(False), OneSubsample():
            guide_trace = poutine.trace(self.program.guide).get_trace(*batch)
            trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*batch)
        self.shown = bool(guide_trace.param_nodes or trace.param_nodes)
        trace = prune_subsample_sites(trace)
        sites = [*observed(trace).values()]
        inside = [site for site in sites if any(frame.size == rows for frame in plates(site))]
        if inside:
            drawn = latent(trace).items()
            self.outside = [name for name, site in drawn if all(frame.size != rows for frame in plates(site))]
        return mean_scale((inside or sites)[0]) if sites else 1.0


def showing(program: nn.Module, part: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model or guide that shows Pyro the parameters of the module it belongs to, as it does not by itself."""

    @functools.wraps(part, updated=())
    def run(*args: Tensor) -> Any:
        module("program", program)
        return part(*args)

    return run
