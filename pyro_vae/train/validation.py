"""The ELBO of the validation data, and the scale of a batch's loss."""

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.compiled import GraphedFunction, Outputs, max_batch_size
from pyro_vae.conditional import module
from pyro_vae.data import Split
from pyro_vae.objectives import ELBO
from pyro_vae.program import reference_tensor
from pyro_vae.seeds import eval_mode, seeded
from pyro_vae.traces.particles import probe
from pyro_vae.traces.sites import latent, mean_scale, observed, plates
from pyro_vae.train.processes import OF_X, OF_Z, Processes
from pyro_vae.train.settings import hook

MAX_BATCH = 1024
FEW = 16  # rows that show the smallest scale


class Validation:
    """Computes minus the ELBO at beta = 1 of the validation data, with the same draws in every call."""

    def __init__(
        self, model: Any, program: Any, split: Split, seed: int, processes: Processes, scale: "Scales"
    ) -> None:
        self.model, self.program, self.seed, self.processes = model, program, seed, processes
        self.scale, self.device, self.dtype = scale, reference_tensor(program).device, reference_tensor(program).dtype
        self.split = split.to(self.device)
        if len(split):
            processes.check_sizes([min(MAX_BATCH, len(split)), len(split) % MAX_BATCH or MAX_BATCH])
        self.smallest_scale = math.nan  # of p(x | z) for some of the data; nan for a distribution without a scale
        self._elbo = ELBO(beta=0.0)  # its terms are the reconstruction term and minus the ELBO
        self._graph, self._recorded = GraphedFunction(self._two_terms, "graph"), set[int]()

    def __call__(self, pause: Callable[[], Any] = lambda: None, as_graph: bool = False) -> dict[str, float]:
        """Return minus the ELBO and the two terms, in nats per datum, if any; call ``pause`` before each batch."""
        self.program.eval()
        for buffer in self.program.buffers():
            self.processes.broadcast(buffer)
        if not len(self.split):
            return {}
        batches = torch.arange(len(self.split), device=self.device).split(self._batch_size)
        terms = torch.zeros(2, len(batches), device=self.device, dtype=self.dtype)
        measures: dict[str, list[Tensor]] = {}
        unlabelled, measure, scale = (hook(self.program, name) for name in ("unlabelled", "measures", "smallest_scale"))
        with torch.no_grad(), seeded(self.seed, self.device):
            for i, rows in enumerate(batches):
                pause()
                noise = self.processes.noise(len(rows), OF_Z)
                batch = read_batch(self.split, rows, self.processes, self.dtype)
                for name, values in measure(*batch).items() if measure else ():
                    measures.setdefault(name, []).append(values)
                batch = unlabelled(*batch) if unlabelled else batch
                if as_graph and len(rows) not in self._recorded:
                    self._recorded.add(len(rows))
                    with seeded(self.seed, self.device):
                        self._graph.record((noise, *batch), {})
                pair, _ = self._graph((noise, *batch), {}) if as_graph else self._two_terms(noise, *batch)
                terms[:, i] = torch.stack([*pair]) / self.scale(batch)
            if scale:
                self.smallest_scale = scale(*self._first_rows(min(FEW, self._batch_size)))
        reconstruction, total = (self.processes.total(term) / len(self.split) for term in terms)
        numbers = {"valid": total, "valid_reconstruction": reconstruction, "valid_kl": total - reconstruction}
        return numbers | {f"valid_{name}": self._mean(torch.cat(values)) for name, values in measures.items()}

    def _mean(self, values: Tensor) -> float:
        """Return the mean of values that are not NaN, over all processes."""
        values = values[~values.isnan()]
        total, number = map(self.processes.total, (values, torch.ones_like(values)))
        return total / number if number else math.nan

    def _two_terms(self, noise: Any, *batch: Tensor) -> Outputs:
        """Return E[-log p(x | z)], which is the loss at beta = 0, and minus the ELBO."""
        with noise or nullcontext():
            return Outputs(list(self._elbo.terms(self.model, self.program.guide, *batch)), None)

    def _first_rows(self, num: int) -> tuple[Tensor, ...]:
        rows = torch.arange(min(num, len(self.split)), device=self.device)
        return read_batch(self.split, rows, Processes(), self.dtype)

    @functools.cached_property
    def _batch_size(self) -> int:
        """The rows that fit in memory at once, so that each process has a row of the last batch."""
        with seeded(self.seed, self.device):
            batch = self._first_rows(4)

            def run(n: int) -> Any:
                return self._two_terms(None, *(column[: 2 * n] for column in batch))

            size = 2 * max_batch_size(run, MAX_BATCH // 2, self.device)
        while 0 < len(self.split) % size < self.processes.world:
            size -= 1
        return size


def read_batch(split: Split, rows: Tensor, processes: Processes, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return this process's rows of a batch: x, with noise drawn for the whole batch, and the other columns."""
    with processes.noise(len(rows), OF_X) or nullcontext():
        batch = split.batch(processes.own_rows(rows))
    return tuple(column.to(dtype) if column.is_floating_point() else column for column in batch)


def value_range(split: Split) -> float:
    """Return the range of x in the first images."""
    x = split[slice(0, MAX_BATCH)]
    x = x[x.isfinite()]
    return (x.max().double() - x.min().double()).item() if len(x) else 0.0


class Scales:
    """The factor by which ``pyro.plate`` and ``poutine.scale`` scale a batch's loss, for each number of rows."""

    def __init__(self, program: Any, model: Callable[..., Any]) -> None:
        self.program, self.model = program, model
        self.outside: list[str] = []  # latent sites outside the plate of a batch's rows
        self.registered = True  # whether the program registers parameters with Pyro
        self._scales: dict[int, float] = {}

    def __call__(self, batch: tuple[Tensor, ...]) -> float:
        """Return the scale of a batch."""
        rows = len(batch[0])
        if rows in self._scales:
            return self._scales[rows]
        device = reference_tensor(self.program).device
        with seeded(0, device), eval_mode(self.program, device), pyro.validation_enabled(False):
            _, (trace, guide_trace) = probe(self.model, self.program.guide, batch, {})
        self.registered = bool(guide_trace.param_nodes or trace.param_nodes)
        sites = [*observed(trace).values()]
        inside = [site for site in sites if any(frame.size == rows for frame in plates(site))]
        if inside:
            latents = latent(trace).items()
            self.outside = [name for name, site in latents if all(frame.size != rows for frame in plates(site))]
        self._scales[rows] = mean_scale((inside or sites)[0]) if sites else 1.0
        return self._scales[rows]

    def weight(self, rows: tuple[Tensor, ...], total: int) -> float:
        """Return the weight of the gradient of ``rows`` out of ``total``: 1, unless the scale depends on the number."""
        if len(rows[0]) == total or self(rows) == self(tuple(torch.cat([column, column]) for column in rows)):
            return 1.0
        return len(rows[0]) / total


def with_params(program: nn.Module, model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model or guide that registers the program's parameters with Pyro."""

    @functools.wraps(model, updated=())
    def run(*args: Tensor) -> Any:
        module("program", program)
        return model(*args)

    return run
