"""An epoch: batches in a new order, a step of SVI for each, and the ELBO of the validation images."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from pyro_vae.compiled import CompiledSVI, Outputs, Traced, how_many_fit
from pyro_vae.data import Dataset, Split
from pyro_vae.missing import Missing
from pyro_vae.objectives import ELBO, Objective
from pyro_vae.train.processes import Processes
from pyro_vae.vae import VAE

__all__ = ["Training", "seeded"]

# A number on a GPU is waited for: the loss is looked at once in so many steps there, and at each on the CPU.
LOOK = 50
AT_ONCE = 1024
# z has shape (*, data, latent), and x (data, *event).
OF_Z, OF_X = -2, 0


class Training:
    """What stays the same from epoch to epoch.

    Arguments:
        vae: On its device.
        dataset: Its data.
        objective: What is optimised.
        settings: The arguments of ``fit``.
        processes: Who trains.
    """

    def __init__(
        self, vae: VAE, dataset: Dataset, objective: pyro.infer.ELBO, settings: dict[str, Any], processes: Processes
    ) -> None:
        self.vae, self.objective, self.settings, self.processes = vae, objective, settings, processes
        self.missing = dataset.missing > 0
        self.model = Missing()(vae.model) if self.missing else vae.model
        self.device, self.dtype = vae.reference.device, vae.reference.dtype
        self.train, self.valid = dataset.train.to(self.device), dataset.valid.to(self.device)
        for split, size in ((self.train, settings["batch_size"]), (self.valid, AT_ONCE)):
            processes.check([min(size, len(split)), len(split) % size or size])
        steps = settings["epochs"] * math.ceil(len(self.train) / settings["batch_size"])
        self.optim = _optim(settings["lr"], settings["lr_schedule"], steps)
        self.svi = CompiledSVI(
            self.model,
            vae.guide,
            self.optim,
            objective,
            compile=settings["compile"],
            precision=settings["precision"],
            clip_norm=settings["clip_norm"],
            steps=steps,
            reduce=processes.sum_gradients if processes.world > 1 else None,
        )
        self._noise: Any = None
        self._at_once = 0
        self._split = Traced(self._two_terms, "graph", key=lambda: getattr(self._noise, "key", None))

    def epoch(self, where: str, seen: Callable[[int], Any]) -> dict[str, float]:
        """Train for an epoch and validate; return the numbers, in nats per datum, of all processes together.

        Arguments:
            where: Which epoch, for messages.
            seen: Called after each step with how many images it took.
        """
        order = self.processes.same(torch.randperm(len(self.train), device=self.device))
        batches = order.split(self.settings["batch_size"])
        # In one place, since a small tensor a step, kept, would keep the memory around it from being used again.
        losses, plain = torch.zeros(2, len(batches), device=self.device, dtype=self.dtype)
        on_cpu = self.device.type == "cpu"
        beta = 1.0
        self.vae.train()
        for step, rows in enumerate(batches):
            beta = self.objective.beta_now if isinstance(self.objective, Objective) else 1.0
            losses[step] = loss = self._step(rows, f"{where}, step {step + 1}")
            if isinstance(self.objective, Objective):
                plain[step] = self.objective.plain
            if step % LOOK == 0 or step == len(batches) - 1 or (on_cpu and not math.isfinite(loss)):
                _check(losses, max(0, step - LOOK), step, where)
            seen(len(rows))
        numbers = {"train": self._mean(losses, len(self.train))} | self.validate()
        if isinstance(self.objective, Objective):
            numbers |= {"train_at_beta_1": self._mean(plain, len(self.train)), "beta": beta}
        return numbers

    def _step(self, rows: Tensor, where: str) -> Any:
        """Take one step of SVI; say in a sentence that it diverged, which Pyro says in a page."""
        x = self._read(self.train, rows)
        self.svi.handler = self.processes.noise(len(rows), OF_Z)
        try:
            loss = self.svi.update(x)
        except ValueError as error:
            broken = re.search(r"parameter (\w+) .*? of distribution (\w+).*? the constraint (\S+?),", str(error))
            if not broken:
                raise
            raise ValueError(
                f"Training diverged {where}: expected {broken[1]} of a {broken[2]} to satisfy {broken[3]}. "
                "Try a smaller lr, or scale the data to [0, 1]; a family of your own must keep to that range."
            ) from error
        if isinstance(self.optim, PyroLRScheduler):
            self.optim.step()
        return loss

    def _read(self, split: Split, rows: Tensor) -> Tensor:
        with self.processes.noise(len(rows), OF_X) or nullcontext():
            return split[self.processes.mine(rows)].to(self.dtype)

    def validate(self) -> dict[str, float]:
        """Return minus the ELBO at beta = 1 and its two terms, nats per datum, with the same draws at every call.

        In evaluation mode, where the VAE is left, and with the first process's buffers, since running values differ.
        """
        self.vae.eval()
        for buffer in self.vae.buffers():
            self.processes.same(buffer)
        self._at_once = self._at_once or self._room()
        batches = torch.arange(len(self.valid), device=self.device).split(self._at_once)
        distortion, whole = torch.zeros(2, len(batches), device=self.device, dtype=self.dtype)
        with torch.no_grad(), seeded(self.settings["seed"], str(self.device)):
            for i, rows in enumerate(batches):
                self._noise = self.processes.noise(len(rows), OF_Z)
                x = self._read(self.valid, rows)
                (one, both), _ = self._two_terms(x) if self.svi.mode == "off" else self._split((x,), {})
                distortion[i], whole[i] = one, both
        reconstruction, total = self._mean(distortion, len(self.valid)), self._mean(whole, len(self.valid))
        return {"valid": total, "valid_reconstruction": reconstruction, "valid_kl": total - reconstruction}

    def _two_terms(self, x: Tensor) -> Outputs:
        """E[-log p(x | z)], which is the loss at beta = 0, and minus the ELBO."""
        with self._noise or nullcontext():
            return Outputs(list(ELBO(beta=0.0).terms(self.model, self.vae.guide, x)), None)

    def _room(self) -> int:
        """How many validation images fit in memory at once, with a row for each process in the last batch too."""
        x = self.valid[slice(0, 4)].to(self.dtype)
        size = 2 * how_many_fit(lambda n: self._two_terms(x[: 2 * n]), AT_ONCE // 2, self.device)
        while 0 < len(self.valid) % size < self.processes.world:
            size -= 1
        return size

    def _mean(self, totals: Tensor, count: int) -> float:
        total = math.fsum(totals.tolist())
        return self.processes.summed(torch.tensor(total, dtype=torch.float64, device=self.device)).item() / count


def _optim(lr: float, schedule: str, steps: int) -> PyroOptim:
    adam = {"optimizer": Adam, "optim_args": {"lr": lr}}
    if schedule == "cosine":
        return PyroLRScheduler(CosineAnnealingLR, adam | {"T_max": steps})
    if schedule == "one-cycle":
        return PyroLRScheduler(OneCycleLR, adam | {"max_lr": lr, "total_steps": steps + 1})
    return PyroOptim(Adam, {"lr": lr})


def _check(losses: Tensor, first: int, last: int, where: str) -> None:
    for step, loss in enumerate(losses[first : last + 1].tolist(), start=first + 1):
        if not math.isfinite(loss):
            raise ValueError(
                f"Training diverged {where}, step {step}: expected a finite loss; got {loss}. "
                "Try a smaller lr, or scale the data to [0, 1]."
            )


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's generators, of the CPU and of ``device``, for as long as the context lasts."""
    cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
        torch.manual_seed(seed)
        yield
