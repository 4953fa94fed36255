"""An epoch: batches in a new order, a step of SVI for each, and the ELBO of the validation images."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro.optim import PyroLRScheduler
from torch import Tensor

from pyro_vae import checkpoint
from pyro_vae.compiled import CompiledSVI
from pyro_vae.data import Dataset
from pyro_vae.missing import Missing
from pyro_vae.objectives import Objective
from pyro_vae.train.generators import generators, set_generators, set_torch, torch_state
from pyro_vae.train.optimizers import recipe
from pyro_vae.train.processes import OF_Z, Processes
from pyro_vae.train.trouble import NotFinite, find_fault
from pyro_vae.train.validation import Validation, read, spread
from pyro_vae.train.watch import Watch
from pyro_vae.vae import VAE

__all__ = ["Training"]

# A number on a GPU is waited for: the loss is looked at once in so many steps there, and at each on the CPU.
LOOK = 50


class Training:
    """What a run has come to: between any two steps all that the next ones depend on can be saved, and taken up again.

    Arguments:
        vae: On its device.
        dataset: Its data.
        objective: What is optimised.
        settings: The arguments of ``fit``.
        processes: Who trains.

    Attributes:
        epochs: How many are done.
        at: How many steps of the next one are done.
    """

    def __init__(
        self, vae: VAE, dataset: Dataset, objective: pyro.infer.ELBO, settings: dict[str, Any], processes: Processes
    ) -> None:
        self.vae, self.objective, self.settings, self.processes = vae, objective, settings, processes
        self.ours = objective if isinstance(objective, Objective) else None  # beta, and the ELBO beside the loss
        self.missing, self.named = dataset.missing > 0, dataset.config["data"] != "tensor"
        self.model = Missing()(vae.model) if self.missing else vae.model
        self.device, self.dtype = vae.reference.device, vae.reference.dtype
        self.train = dataset.train.to(self.device)
        self.size = min(settings["batch_size"], len(self.train))
        processes.check([self.size, len(self.train) % self.size or self.size])
        self.batches = math.ceil(len(self.train) / self.size)
        self.steps = settings["epochs"] * self.batches
        self.skips = settings["on_nan"] == "skip"
        # Before the optimizer's step there is no looking at a number on a GPU without waiting for it.
        self.guards = self.skips or self.device.type == "cpu"
        self.optim = recipe(settings["optimizer"], settings["lr"], settings["lr_schedule"], self.steps, vae)
        self.svi = CompiledSVI(
            self.model,
            vae.guide,
            self.optim,
            objective,
            compile=settings["compile"],
            precision=settings["precision"],
            clip_norm=settings["clip_norm"],
            steps=self.steps,
            reduce=processes.sum_gradients if processes.world > 1 else None,
            guard=self._guard if self.guards else None,
        )
        self.validation = Validation(
            self.model, vae, dataset.valid, settings["seed"], processes, lambda: self.svi.mode != "off"
        )
        self.held_out = len(dataset.valid)
        self.watch = Watch(vae, spread(dataset.valid if self.held_out else dataset.train))
        self.epochs = self.at = 0
        self.beta = 1.0
        # In one place, since a small tensor a step, kept, would keep the memory around it from being used again.
        self.losses, self.plain = torch.zeros(2, self.batches, device=self.device, dtype=self.dtype)
        self.skipped: list[int] = []  # steps of this epoch
        self.dawn = generators(self.device)  # as they were when the epoch began
        self._wrong = ""

    def epoch(self, seen: Callable[[int], Any], pause: Callable[[], Any] = lambda: None) -> dict[str, float]:
        """Train for an epoch, or what is left of it, and validate; return the numbers of all processes together.

        Arguments:
            seen: Called after each step with how many images it took; the state may be saved then.
            pause: Called between batches of validation; may raise, and validation is then to be done again.

        Returns:
            Nats per datum; with ``on_nan="skip"`` also how many steps were skipped.
        """
        self.vae.train()
        for step, rows in enumerate(self._order().split(self.size)):
            if step < self.at:
                continue
            self.beta = self.ours.beta_now if self.ours else 1.0
            self.losses[step], self.plain[step] = self.processes.both(*self._step(rows))
            self.at += 1
            if step % LOOK == 0 or self.at == self.batches:
                self.look(max(0, step - LOOK))
            seen(len(rows))
        odd = len(self.train) - self.size * (self.batches - 1)  # images in the last batch
        counted = len(self.train) - sum(odd if step == self.batches - 1 else self.size for step in self.skipped)
        numbers = {"train": self._mean(self.losses, counted)} | self.validation(pause)
        if self.ours:
            numbers |= {"train_at_beta_1": self._mean(self.plain, counted), "beta": self.beta}
        if self.skips:
            numbers["skipped"] = float(len(self.skipped))
        self.epochs, self.at, self.skipped = self.epochs + 1, 0, []
        return numbers

    def state(self) -> dict[str, Any]:
        """Return all that what comes next depends on, as a nest of tensors and numbers."""
        return {
            "vae": dict(self.vae.state_dict()),
            "event_shape": list(self.vae.parts["event_shape"]) if self.vae.parts else [],
            "svi": self.svi.state_dict(),
            "epochs": self.epochs,
            "at": self.at,
            "losses": self.losses[: self.at],
            "plain": self.plain[: self.at],
            "skipped": self.skipped,
            "beta": self.beta,
            "generators": generators(self.device),
            "dawn": self.dawn,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state, of a run with the same settings.

        Raises:
            ValueError: If it is of another VAE or another optimizer.
        """
        checkpoint.restore(self.vae, state["vae"])
        for name in ("epochs", "at", "skipped", "beta", "dawn"):
            setattr(self, name, state[name])
        self.losses[: self.at], self.plain[: self.at] = state["losses"], state["plain"]
        self._rehearse(state["svi"])
        checkpoint.restore(self.vae, state["vae"])  # buffers, as running means, that the rehearsal has moved
        if self.ours:
            self.ours.start(self.steps, self.epochs * self.batches + self.at)
        set_generators(state["generators"], self.device)

    def _rehearse(self, optimizer: dict[str, Any]) -> None:
        """Have the steps of each shape recorded that were recorded by then."""
        self.vae.train()
        odd = len(self.train) % self.size
        whole = self.batches - bool(odd)
        for size, calls in (
            (self.size, self.epochs * whole + min(self.at, whole)),
            (odd, self.epochs + (self.at == self.batches)),
        ):
            if size and calls:
                x = self._read(torch.arange(size, device=self.device))
                self.svi.handler = self.processes.noise(size, OF_Z)
                parameters = self.svi.rehearse(calls, x)
                if optimizer and not self.svi.state_dict():
                    self.svi.load_state_dict(optimizer, parameters)

    def _order(self) -> Tensor:
        """The epoch's order of images: of an epoch that is begun, drawn again from where the generators were."""
        now = generators(self.device)
        self.dawn = self.dawn if self.at else now
        set_generators(self.dawn, self.device)
        order = self.processes.same(torch.randperm(len(self.train), device=self.device))
        if self.at:
            set_generators(now, self.device)
        return order

    def _step(self, rows: Tensor) -> tuple[Any, Any]:
        """Take one step of SVI; return the loss, and minus the ELBO at beta = 1, both 0 where it was skipped."""
        x = self._read(rows)
        drawn = torch_state(self.device) if self.guards else None
        kept = [buffer.clone() for buffer in self.vae.buffers()] if self.guards else []
        self.svi.handler = self.processes.noise(len(rows), OF_Z)
        self._wrong, loss = "", math.nan
        try:
            loss = self.svi.update(x)
        except ValueError as error:
            broken = re.search(r"parameter (\w+) .*? of distribution (\w+).*? the constraint (\S+?),", str(error))
            if not broken:
                raise
            self._wrong = f"expected {broken[1]} of a {broken[2]} to satisfy {broken[3]}"
            if self.ours:
                self.ours.advance()
        if isinstance(self.optim, PyroLRScheduler):
            self.optim.step()
        if not self._wrong:
            return loss, self.ours.plain if self.ours else 0.0
        trouble = self._trouble(self.at, rows, self._wrong, x, drawn)
        for buffer, before in zip(self.vae.buffers(), kept, strict=True):
            buffer.copy_(before)
        if not self.skips or len(self.skipped) == self.batches - 1:
            raise trouble
        self.watch.skipped(str(trouble))
        self.skipped.append(self.at)
        return 0.0, 0.0

    def _guard(self, loss: Any, parameters: Sequence[Tensor]) -> bool:
        """Say whether a step may be taken: whether the loss and all of its gradient are finite."""
        self.watch.parameters(parameters)
        gradients = [parameter.grad.sum() for parameter in parameters if parameter.grad is not None]
        wrong = not math.isfinite(sum(gradients, torch.as_tensor(loss)).item())
        if self.processes.any(wrong, self.device):
            got = f"a finite gradient, of a loss of {float(loss):.6g}; got one that is not"
            self._wrong = f"expected {got if math.isfinite(loss) else f'a finite loss; got {float(loss)}'}"
        return not self._wrong

    def look(self, first: int = 0) -> None:
        """Look at the losses of this epoch, and at the parameters; nothing on a CPU, where each step was looked at.

        Raises:
            NotFinite: If one is not finite.
        """
        if self.device.type == "cpu" or not self.at:
            return
        finite = [math.isfinite(loss) for loss in self.losses[first : self.at].tolist()]
        finite[-1] &= math.isfinite(sum(parameter.detach().sum() for parameter in self.vae.parameters()))
        if not all(finite):
            step = first + finite.index(False)
            rows = self._order().split(self.size)[step]
            raise self._trouble(step, rows, "expected a finite loss", self._read(rows), None)

    def _read(self, rows: Tensor) -> Tensor:
        return read(self.train, rows, self.processes, self.dtype)

    def _trouble(self, step: int, rows: Tensor, wrong: str, x: Tensor, drawn: list[Tensor] | None) -> NotFinite:
        """Say which step, which site and which images; ``drawn`` is where the generators were before the step."""
        now = torch_state(self.device)
        if drawn:
            set_torch(drawn, self.device)
        with self.processes.noise(len(rows), OF_Z) or nullcontext():
            fault = find_fault(self.model, self.vae.guide, self.objective, x, self.processes.mine(rows))
        set_torch(now, self.device)
        record = {"epoch": self.epochs + 1, "step": step + 1, "rows": rows.tolist()} | fault._asdict()
        where = f"in epoch {self.epochs + 1}, step {step + 1}"
        return NotFinite(f"Training diverged {where}: {wrong}. {fault.words}", record)

    def _mean(self, totals: Tensor, count: int) -> float:
        return math.fsum(totals.tolist()) / count
