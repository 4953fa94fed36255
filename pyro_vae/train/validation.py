"""The ELBO of the validation images, in its two terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiled import SELDOM, Outputs, Traced, how_many_fit
from pyro_vae.data import Split
from pyro_vae.objectives import ELBO
from pyro_vae.train.generators import seeded
from pyro_vae.train.processes import OF_X, OF_Z, Processes
from pyro_vae.train.watch import smallest_scale
from pyro_vae.vae import VAE

__all__ = ["Validation", "read", "spread"]

AT_ONCE = 1024
FEW = 16


class Validation:
    """Minus the ELBO at beta = 1 of the validation images, with the same draws at every call.

    Arguments:
        model: The model, of what is observed where some is missing.
        vae: On its device.
        split: The validation images.
        seed: Seed of the draws.
        processes: Who trains.
        as_graph: Says whether to run as a graph, as training does.

    Attributes:
        scale: The least scale of p(x | z) for some of the images, or nan where it has none.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        vae: VAE,
        split: Split,
        seed: int,
        processes: Processes,
        as_graph: Callable[[], bool],
    ) -> None:
        self.model, self.vae, self.seed, self.processes, self.as_graph = model, vae, seed, processes, as_graph
        self.device, self.dtype = vae.reference.device, vae.reference.dtype
        self.split = split.to(self.device)
        if len(split):
            processes.check([min(AT_ONCE, len(split)), len(split) % AT_ONCE or AT_ONCE])
        self.scale = math.nan
        self._noise: Any = None
        self._at_once = 0
        self._split = Traced(self._two_terms, "graph", key=lambda: getattr(self._noise, "key", None), recorded=SELDOM)

    def __call__(self, pause: Callable[[], Any] = lambda: None) -> dict[str, float]:
        """Return minus the ELBO and its two terms, nats per datum, of all processes together; nothing of no images.

        In evaluation mode, where the VAE is left, and with the first process's buffers, since running values differ.

        Arguments:
            pause: Called before each batch; may raise.
        """
        self.vae.eval()
        for buffer in self.vae.buffers():
            self.processes.same(buffer)
        if not len(self.split):
            return {}
        if not self._at_once:
            with seeded(self.seed, str(self.device)):
                self._at_once = self._room()
        batches = torch.arange(len(self.split), device=self.device).split(self._at_once)
        distortion, whole = torch.zeros(2, len(batches), device=self.device, dtype=self.dtype)
        with torch.no_grad(), seeded(self.seed, str(self.device)):
            for i, rows in enumerate(batches):
                pause()
                self._noise = self.processes.noise(len(rows), OF_Z)
                x = read(self.split, rows, self.processes, self.dtype)
                (one, both), _ = self._split((x,), {}) if self.as_graph() else self._two_terms(x)
                distortion[i], whole[i] = one, both
            self.scale = smallest_scale(self.vae, self.split[slice(0, min(FEW, self._at_once))].to(self.dtype))
        reconstruction, total = (self.processes.total(each) / len(self.split) for each in (distortion, whole))
        return {"valid": total, "valid_reconstruction": reconstruction, "valid_kl": total - reconstruction}

    def _two_terms(self, x: Tensor) -> Outputs:
        """E[-log p(x | z)], which is the loss at beta = 0, and minus the ELBO."""
        with self._noise or nullcontext():
            return Outputs(list(ELBO(beta=0.0).terms(self.model, self.vae.guide, x)), None)

    def _room(self) -> int:
        """How many images fit in memory at once, with a row for each process in the last batch too."""
        x = self.split[slice(0, 4)].to(self.dtype)
        size = 2 * how_many_fit(lambda n: self._two_terms(x[: 2 * n]), AT_ONCE // 2, self.device)
        while 0 < len(self.split) % size < self.processes.world:
            size -= 1
        return size


def read(split: Split, rows: Tensor, processes: Processes, dtype: torch.dtype) -> Tensor:
    """Return this process's part of a batch, x with its noise drawn as in the whole batch."""
    with processes.noise(len(rows), OF_X) or nullcontext():
        return split[processes.mine(rows)].to(dtype)


def spread(split: Split) -> float:
    """The range of x in the first images."""
    x = split[slice(0, AT_ONCE)]
    x = x[x.isfinite()]
    return (x.max() - x.min()).item()
