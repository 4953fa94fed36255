"""The ELBO of the validation images, in its two terms, and by which factor a loss is more than that of its data."""

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.compiled import Outputs, Traced, how_many_fit
from pyro_vae.conditional import module
from pyro_vae.data import Split
from pyro_vae.objectives import ELBO
from pyro_vae.program import point_of
from pyro_vae.seeds import at_test, seeded
from pyro_vae.traces.particles import probe
from pyro_vae.traces.sites import latent, mean_scale, observed, plates
from pyro_vae.train.processes import OF_X, OF_Z, Processes
from pyro_vae.train.settings import hook

AT_ONCE = 1024
FEW = 16


class Validation:
    """Minus the ELBO at beta = 1 of the validation data, with the same draws at every call."""

    def __init__(
        self, model: Any, program: Any, split: Split, seed: int, processes: Processes, scale: "Scales"
    ) -> None:
        self.model, self.program, self.seed, self.processes = model, program, seed, processes
        self.scale, self.device, self.dtype = scale, point_of(program).device, point_of(program).dtype
        self.split = split.to(self.device)
        if len(split):
            processes.check([min(AT_ONCE, len(split)), len(split) % AT_ONCE or AT_ONCE])
        self.smallest_scale = math.nan  # of p(x | z) for some of the data, if it has any
        self._elbo = ELBO(beta=0.0)  # whose loss is the one term, and which has the other beside it
        self._graph, self._recorded = Traced(self._two_terms, "graph"), set[int]()

    def __call__(self, pause: Callable[[], Any] = lambda: None, as_graph: bool = False) -> dict[str, float]:
        """Return minus the ELBO and its two terms, nats per datum, if there are data; ``pause`` before each batch."""
        self.program.eval()
        for buffer in self.program.buffers():
            self.processes.same(buffer)
        if not len(self.split):
            return {}
        batches = torch.arange(len(self.split), device=self.device).split(self._at_once)
        terms = torch.zeros(2, len(batches), device=self.device, dtype=self.dtype)
        measures: dict[str, list[Tensor]] = {}
        unlabelled, measure, scale = (hook(self.program, name) for name in ("unlabelled", "measures", "smallest_scale"))
        with torch.no_grad(), seeded(self.seed, self.device):
            for i, rows in enumerate(batches):
                pause()
                noise = self.processes.noise(len(rows), OF_Z)
                batch = read(self.split, rows, self.processes, self.dtype)
                for name, values in measure(*batch).items() if measure else ():
                    measures.setdefault(name, []).append(values)
                batch = unlabelled(*batch) if unlabelled else batch
                if as_graph and len(rows) not in self._recorded:
                    self._recorded.add(len(rows))
                    with seeded(self.seed, self.device):
                        self._graph.record((noise, *batch), {})
                both, _ = self._graph((noise, *batch), {}) if as_graph else self._two_terms(noise, *batch)
                terms[:, i] = torch.stack([*both]) / self.scale(batch)
            if scale:
                self.smallest_scale = scale(*self._few(min(FEW, self._at_once)))
        reconstruction, total = (self.processes.total(term) / len(self.split) for term in terms)
        numbers = {"valid": total, "valid_reconstruction": reconstruction, "valid_kl": total - reconstruction}
        return numbers | {f"valid_{name}": self._mean(torch.cat(values)) for name, values in measures.items()}

    def _mean(self, values: Tensor) -> float:
        """Return the mean of what is a number, over all processes."""
        known = values[~values.isnan()]
        total, number = map(self.processes.total, (known, torch.ones_like(known)))
        return total / number if number else math.nan

    def _two_terms(self, noise: Any, *batch: Tensor) -> Outputs:
        """E[-log p(x | z)], which is the loss at beta = 0, and minus the ELBO."""
        with noise or nullcontext():
            return Outputs(list(self._elbo.terms(self.model, self.program.guide, *batch)), None)

    def _few(self, num: int) -> tuple[Tensor, ...]:
        rows = torch.arange(min(num, len(self.split)), device=self.device)
        return read(self.split, rows, Processes(), self.dtype)

    @functools.cached_property
    def _at_once(self) -> int:
        """How many images fit in memory at once, with a row for each process in the last batch too."""
        with seeded(self.seed, self.device):
            batch = self._few(4)

            def run(n: int) -> Any:
                return self._two_terms(None, *(column[: 2 * n] for column in batch))

            size = 2 * how_many_fit(run, AT_ONCE // 2, self.device)
        while 0 < len(self.split) % size < self.processes.world:
            size -= 1
        return size


def read(split: Split, rows: Tensor, processes: Processes, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return this process's part of a batch, x with its noise drawn as in the whole batch, and other columns."""
    with processes.noise(len(rows), OF_X) or nullcontext():
        batch = split.batch(processes.mine(rows))
    return tuple(column.to(dtype) if column.is_floating_point() else column for column in batch)


def spread(split: Split) -> float:
    """The range of x in the first images."""
    x = split[slice(0, AT_ONCE)]
    x = x[x.isfinite()]
    return (x.max().double() - x.min().double()).item() if len(x) else 0.0


class Scales:
    """By which factor a batch's loss is more than that of its data, for each number of rows, which it may follow."""

    def __init__(self, program: Any, model: Callable[..., Any]) -> None:
        self.program, self.model = program, model
        self.outside: list[str] = []  # latent sites outside the plate of a batch's rows
        self.shown = True  # whether the program shows Pyro parameters
        self._known: dict[int, float] = {}

    def __call__(self, batch: tuple[Tensor, ...]) -> float:
        """Return the scale of a batch."""
        rows = len(batch[0])
        if rows in self._known:
            return self._known[rows]
        device = point_of(self.program).device
        with seeded(0, device), at_test(self.program, device), pyro.validation_enabled(False):
            _, (trace, guide_trace) = probe(self.model, self.program.guide, batch, {})
        self.shown = bool(guide_trace.param_nodes or trace.param_nodes)
        sites = [*observed(trace).values()]
        inside = [site for site in sites if any(frame.size == rows for frame in plates(site))]
        if inside:
            drawn = latent(trace).items()
            self.outside = [name for name, site in drawn if all(frame.size != rows for frame in plates(site))]
        self._known[rows] = mean_scale((inside or sites)[0]) if sites else 1.0
        return self._known[rows]

    def weight(self, part: tuple[Tensor, ...], whole: int) -> float:
        """Return what the gradient of a part counts in that of a batch of so many rows: a scale may follow the part."""
        if len(part[0]) == whole or self(part) == self(tuple(torch.cat([column, column]) for column in part)):
            return 1.0
        return len(part[0]) / whole


def showing(program: nn.Module, part: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model or guide that shows Pyro the parameters of the module it belongs to, as it does not by itself."""

    @functools.wraps(part, updated=())
    def run(*args: Tensor) -> Any:
        module("program", program)
        return part(*args)

    return run
