"""An epoch: batches in a new order, a step of SVI for each, and the ELBO of the validation images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from pyro_vae.program import point_of
from pyro_vae.train.checks import check_batches, hook
from pyro_vae.train.generators import generators, seeded, set_generators, set_torch, torch_state
from pyro_vae.train.optimizers import recipe
from pyro_vae.train.processes import OF_Z, Processes
from pyro_vae.train.rehearsal import BROKEN, put_back, rehearse
from pyro_vae.train.scales import Scales, showing
from pyro_vae.train.settings import Settings
from pyro_vae.train.trouble import NotFinite, find_fault, not_finite
from pyro_vae.train.validation import Validation, read, spread
from pyro_vae.train.watch import Watch

__all__ = ["Training"]

LOOK = 50  # steps after which the loss is looked at on a GPU, where it has to be waited for
OFTEN = 40  # epochs after which what comes once in each, the last minibatch and validation, is worth a graph


class Training:
    """What a run has come to: between any two steps all that the next ones depend on can be saved, and taken up again.

    Arguments:
        program: On its device.
        dataset: Its data.
        objective: What is optimised.
        settings: The arguments of ``fit``.
        processes: Who trains.

    Attributes:
        epochs: How many are done.
        at: How many steps of the next one are done.
    """

    def __init__(
        self, program: Any, dataset: Dataset, objective: pyro.infer.ELBO, settings: Settings, processes: Processes
    ) -> None:
        self.program, self.objective, self.settings, self.processes = program, objective, settings, processes
        self.named = dataset.config["data"] != "tensor"
        self.ours = objective if isinstance(objective, Objective) else None  # beta, and the ELBO beside the loss
        missing = any(split.incomplete for split in dataset.splits.values())
        self.complete = (None if missing else hook(program, "complete")) or nullcontext  # what is to be around a step
        self.model = Missing()(program.model) if missing else program.model
        self.device, self.dtype = point_of(program).device, point_of(program).dtype
        self.train = dataset.train.to(self.device)
        self.size = min(settings.batch_size, len(self.train))
        self.odd = len(self.train) % self.size  # rows of the last batch, if they are fewer
        processes.check([self.size, self.odd or self.size])
        self.batches = math.ceil(len(self.train) / self.size)
        self.steps = settings.epochs * self.batches
        self.skips = settings.on_nan == "skip"
        self.guards = self.skips or self.device.type == "cpu"
        self.scales = Scales(program, self.model)
        with self.complete():
            times = len(self.train) / (self.scales(batch := self._first(self.size)) * len(batch[0]))
        check_batches(program, dataset, self.size)
        self.guide: Any = program.guide
        if not self.scales.shown:
            self.model, self.guide = (showing(program, part) for part in (self.model, self.guide))
        self.optim = recipe(settings.optimizer, settings.lr, settings.lr_schedule, self.steps, program)
        self.svi = CompiledSVI(
            self.model,
            self.guide,
            self.optim,
            objective,
            compile=settings.compile,
            precision=settings.precision,
            clip_norm=settings.clip_norm,
            steps=self.steps,
        )
        self.validation = Validation(self.model, program, dataset.valid, settings.seed, processes, self.scales)
        self.watch = Watch(program, spread(dataset.valid if len(dataset.valid) else dataset.train))
        self.epochs, self.at, self.beta = 0, 0, 1.0
        # In one place, since a small tensor a step, kept, would keep the memory around it from being used again.
        self.losses, self.plain = torch.zeros(2, self.batches, device=self.device, dtype=self.dtype)
        self.skipped: list[int] = []  # steps of this epoch
        self.dawn = generators(self.device)  # as they were when the epoch began
        self._recorded: set[int] = set()
        self.watch.outside(times, self.scales.outside, len(self.train))

    def epoch(self, seen: Callable[[int], Any], pause: Callable[[], Any] = lambda: None) -> dict[str, float]:
        """Train for an epoch, or what is left of it, and validate; return the numbers of all processes together.

        Arguments:
            seen: Called after each step with how many images it took; the state may be saved then.
            pause: Called between batches of validation; may raise, and validation is then to be done again.

        Returns:
            Nats per datum; with ``on_nan="skip"`` also how many steps were skipped.
        """
        self.program.train()
        self._record()
        for step, rows in enumerate(self._order().split(self.size)):
            if step < self.at:
                continue
            self.beta = self.ours.beta_now if self.ours else 1.0
            self.losses[step], self.plain[step] = self.processes.both(*self._step(rows))
            self.at += 1
            if step % LOOK == 0 or self.at == self.batches:
                self.look(max(0, step - LOOK))
            seen(len(rows))
        last = {self.batches - 1: self.odd or self.size}
        counted = len(self.train) - sum(last.get(step, self.size) for step in self.skipped)
        validated = self.validation(pause, self.epochs >= OFTEN and self.svi.mode != "off")
        numbers = {"train": math.fsum(self.losses.tolist()) / counted} | validated
        if self.ours:
            numbers |= {"train_at_beta_1": math.fsum(self.plain.tolist()) / counted, "beta": self.beta}
        if self.skips:
            numbers["skipped"] = float(len(self.skipped))
        self.epochs, self.at, self.skipped = self.epochs + 1, 0, []
        return numbers

    def state(self) -> dict[str, Any]:
        """Return all that what comes next depends on, as a nest of tensors and numbers."""
        return {
            "vae": dict(self.program.state_dict()),
            "event_shape": checkpoint.event_shape(self.program),
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
            ValueError: If it is of another program or another optimizer.
        """
        checkpoint.restore(self.program, state["vae"])
        for name in ("epochs", "at", "skipped", "beta", "dawn"):
            setattr(self, name, state[name])
        self.losses[: self.at], self.plain[: self.at] = state["losses"], state["plain"]
        if state["svi"]:
            self.program.train()
            with self.complete():
                self.svi.load_state_dict(state["svi"], self._record() or self._tried(self.size))
        if self.ours:
            self.ours.start(self.steps, self.epochs * self.batches + self.at)
        set_generators(state["generators"], self.device)

    def _record(self) -> list[Tensor]:
        """Have a step recorded before one is taken, so that none depends on how many there were; return parameters."""
        found: list[Tensor] = []
        for size in (self.size, self.odd if self.epochs >= OFTEN else 0):
            if size and size not in self._recorded and self.settings.compile != "off":
                self._recorded.add(size)
                found = self._tried(size, record=True)
        return found

    def _tried(self, size: int, record: bool = False) -> list[Tensor]:
        return rehearse(self.svi, self.program, self._first(size), self.processes.noise(size, OF_Z), record)

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
        batch = self._read(rows)
        drawn = torch_state(self.device) if self.guards else None
        kept = [buffer.clone() for buffer in self.program.buffers()] if self.guards else []
        wrong, loss, parameters = "", math.nan, list[Tensor]()
        try:
            loss, parameters = self.svi.gradients(batch, handler=self.processes.noise(len(rows), OF_Z))
            self.processes.sum_gradients(parameters, self.scales.weight(batch, len(rows)))
        except ValueError as error:
            if not (broken := BROKEN.search(str(error))):
                raise
            wrong = f"expected {broken[1]} of a {broken[2]} to satisfy {broken[3]}"
        if self.guards and not wrong:
            self.watch.parameters(parameters)
            words = not_finite(loss, parameters)
            if self.processes.any(bool(words), self.device):
                wrong = words or "expected a finite loss in every process"
        self.svi.apply(parameters, finite=not wrong)
        if isinstance(self.optim, PyroLRScheduler):
            self.optim.step()
        if not wrong:
            return loss / self.scales(batch), self.ours.plain / self.scales(batch) if self.ours else 0.0
        trouble = self._trouble(self.at, rows, wrong, batch, drawn)
        put_back(self.program, kept)
        if not self.skips or len(self.skipped) == self.batches - 1:
            raise trouble
        self.watch.skipped(str(trouble))
        self.skipped.append(self.at)
        return 0.0, 0.0

    def look(self, first: int = 0) -> None:
        """Look at the losses of this epoch, and at the parameters; nothing on a CPU, where each step was looked at.

        Raises:
            NotFinite: If one is not finite.
        """
        if self.device.type == "cpu" or not self.at:
            return
        finite = [math.isfinite(loss) for loss in self.losses[first : self.at].tolist()]
        finite[-1] &= math.isfinite(sum(parameter.detach().sum() for parameter in self.program.parameters()))
        if not all(finite):
            step = first + finite.index(False)
            rows = self._order().split(self.size)[step]
            raise self._trouble(step, rows, "expected a finite loss", self._read(rows), None)

    def _first(self, size: int) -> tuple[Tensor, ...]:
        """Read a batch to look at, without a draw that moves others."""
        with seeded(self.settings.seed, self.settings.device):
            return self._read(torch.arange(size, device=self.device))

    def _read(self, rows: Tensor) -> tuple[Tensor, ...]:
        return read(self.train, rows, self.processes, self.dtype)

    def _trouble(self, step: int, rows: Tensor, wrong: str, batch: tuple, drawn: list[Tensor] | None) -> NotFinite:
        """Say which step, which site and which images; ``drawn`` is where the generators were before the step."""
        now = torch_state(self.device)
        set_torch(drawn or now, self.device)
        with self.processes.noise(len(rows), OF_Z) or nullcontext():
            fault = find_fault(self.model, self.guide, self.objective, batch, self.processes.mine(rows))
        set_torch(now, self.device)
        record = {"epoch": self.epochs + 1, "step": step + 1, "rows": rows.tolist()} | fault._asdict()
        words = f"Training diverged in epoch {self.epochs + 1}, step {step + 1}: {wrong}. {fault.words}"
        return NotFinite(words, record)
