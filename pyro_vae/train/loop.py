"""An epoch: batches in a new order, a step of SVI for each, and the ELBO of the validation images."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import pyro
import torch
from pyro.optim import PyroLRScheduler
from torch import Tensor

from pyro_vae import checkpoint
from pyro_vae.compiled import CompiledSVI
from pyro_vae.data import Dataset
from pyro_vae.missing import Missing
from pyro_vae.objectives import Objective
from pyro_vae.program import own_rows, point_of, posterior_of
from pyro_vae.seeds import at_test, forked, generators, random_state, seeded, set_generators, set_random_state, unmoved
from pyro_vae.train.optimizers import recipe
from pyro_vae.train.processes import OF_Z, Processes
from pyro_vae.train.settings import Settings, hook
from pyro_vae.train.sleeping import FEW, Sleep, parameters_of, sleep
from pyro_vae.train.trouble import NotFinite, Watch, find_fault, not_finite, out_of_range
from pyro_vae.train.validation import Scales, Validation, read, showing, spread

LOOK = 50  # steps after which the loss is looked at on a GPU, where it has to be waited for
OFTEN = 40  # epochs after which what comes once in each, the last minibatch and validation, is worth a graph
MOST = 2**26  # numbers of training data that a sleep holds
STATE = ("epochs", "at", "skipped", "beta", "dawn")


class Training:
    """A run: between any two steps all that the next ones depend on can be saved, and taken up again."""

    def __init__(
        self, program: Any, dataset: Dataset, objective: pyro.infer.ELBO, settings: Settings, processes: Processes
    ) -> None:
        self.program, self.objective, self.settings, self.processes = program, objective, settings, processes
        self.ours = objective if isinstance(objective, Objective) else None  # beta, and the ELBO beside the loss
        self.model, self.guide = program.model, program.guide
        self.complete: Any = hook(program, "complete") or nullcontext  # a context around steps
        if any(split.incomplete for split in dataset.splits.values()):
            self.model, self.complete = Missing()(program.model), nullcontext
        self.device, self.dtype = point_of(program).device, point_of(program).dtype
        self.train = dataset.train.to(self.device)
        self.size = min(settings.batch_size, len(self.train))
        self.odd = len(self.train) % self.size  # rows of the last batch, if they are fewer
        processes.check([self.size, self.odd or self.size])
        processes.check_whole(program, objective)
        self.batches = math.ceil(len(self.train) / self.size)
        self.steps = settings.epochs * self.batches
        self.skips = settings.on_nan == "skip"
        self.guards = self.skips or self.device.type == "cpu"
        self.scales = Scales(program, self.model)
        with self.complete():
            times = len(self.train) / (self.scales(batch := self._first(self.size)) * len(batch[0]))
        if (rows := own_rows(program)) and (self.size < len(self.train) or len(dataset.valid)):
            raise ValueError(
                "Expected one batch of all rows and none held out, as an autoguide has parameters for each row; got "
                f"batch_size = {rows}, {len(self.train)} rows and {len(dataset.valid)} held out. Use "
                "data.from_columns(..., valid=0), and a new guide."
            )
        if settings.sleep:  # and what is wrong with that is said now
            with at_test(program, self.device, 0):
                parameters_of(posterior_of(program, self._read(torch.arange(min(len(self.train), FEW)))))
        if not self.scales.shown:
            self.model, self.guide = (showing(program, part) for part in (self.model, self.guide))
        optim = recipe(settings.optimizer, settings.lr, settings.lr_schedule, self.steps, program)
        ways: Any = {name: getattr(settings, name) for name in ("compile", "precision", "clip_norm")}
        self.svi = CompiledSVI(self.model, self.guide, optim, objective, steps=self.steps, **ways)
        self.validation = Validation(self.model, program, dataset.valid, settings.seed, processes, self.scales)
        self.watch = Watch(program, spread(dataset.valid if len(dataset.valid) else dataset.train))
        self.epochs, self.at, self.beta = 0, 0, 1.0  # epochs done, steps of the next one done
        # In one place, since a small tensor a step, kept, would keep the memory around it from being used again.
        self.both = torch.zeros(self.batches, 2, device=self.device, dtype=self.dtype)
        self.losses, self.plain = self.both.T
        self.skipped: list[int] = []  # steps of this epoch
        self.dawn = generators(self.device)  # where the epoch began
        self._recorded: set[int] = set()
        self.watch.outside(times, self.scales.outside, len(self.train))
        if 1 in (self.size // processes.world, self.odd // processes.world):
            self._check_one_row()

    def epoch(self, seen: Callable[[int], Any], pause: Callable[[], Any] = lambda: None) -> dict[str, float]:
        """Train for the rest of an epoch, with a call of ``seen`` for the images of each step, and validate."""
        self.program.train()
        if self.settings.compile != "off":
            for size in (self.size, self.odd if self.epochs >= OFTEN else 0):
                if size and size not in self._recorded:
                    self._rehearse(size)
        batches = self._order().split(self.size)
        for step in range(self.at, self.batches):
            self.beta = self.ours.beta_now if self.ours else 1.0
            self.losses[step], self.plain[step] = self._step(batches[step])
            self.processes.summed(self.both[step])
            self.at += 1
            if step % LOOK == 0 or self.at == self.batches:
                self.look(max(0, step - LOOK))
            seen(len(batches[step]))
        counted = len(self.train) - sum(len(batches[step]) for step in self.skipped)
        validated = self.validation(pause, self.epochs >= OFTEN and self.svi.mode != "off")
        numbers = {"train": math.fsum(self.losses.tolist()) / counted} | validated
        if self.ours:
            numbers |= {"train_at_beta_1": math.fsum(self.plain.tolist()) / counted, "beta": self.beta}
        if self.skips:
            numbers["skipped"] = float(len(self.skipped))
        self.epochs, self.at, self.skipped = self.epochs + 1, 0, []
        return numbers

    def sleep(self, progress: bool, pause: Callable[[], Any]) -> Sleep:
        """Train the guide on what the model draws; return the ELBO of training data before and after."""
        rows = torch.randperm(len(self.train))[: max(1, MOST // max(1, self.train.pixels[:1].numel()))]
        ways: Any = {name: getattr(self.settings, name) for name in ("batch_size", "seed", "compile", "precision")}
        slept = sleep(self.program, self.settings.sleep, self._read(rows), progress=progress, update=pause, **ways)
        for tensor in self.program.state_dict().values():
            self.processes.same(tensor)
        return slept

    def _read(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return training data as a sleep has them, with no label."""
        data = read(self.train, rows, Processes(), self.dtype)
        unlabelled = hook(self.program, "unlabelled")
        return unlabelled(*data) if unlabelled else data

    def state(self) -> dict[str, Any]:
        """Return all that what comes next depends on, as a nest of tensors and numbers."""
        return {
            "vae": dict(self.program.state_dict()),
            "event_shape": checkpoint.event_shape(self.program),
            "svi": self.svi.state_dict(),
            "losses": self.losses[: self.at],
            "plain": self.plain[: self.at],
            "generators": generators(self.device),
        } | {name: getattr(self, name) for name in STATE}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state, of a run of the same program and with the same settings."""
        checkpoint.restore(self.program, state["vae"])
        for name in STATE:
            setattr(self, name, state[name])
        self.losses[: self.at], self.plain[: self.at] = state["losses"], state["plain"]
        if state["svi"]:
            self.program.train()
            with self.complete():
                self.svi.load_state_dict(state["svi"], self._rehearse(self.size))
        if self.ours:
            self.ours.start(self.steps, self.epochs * self.batches + self.at)
        set_generators(state["generators"], self.device)

    def _rehearse(self, size: int) -> list[Tensor]:
        """Have a step recorded, and take none, so that none depends on how many there were; return its parameters."""
        self._recorded.add(size)
        batch, handler = self._first(size), self.processes.noise(size, OF_Z)
        parameters: list[Tensor] = []
        with unmoved(self.device, *self.program.buffers()):
            try:
                _, parameters = self.svi.gradients(batch, handler=handler, record=True)
            except ValueError as error:
                if not out_of_range(error):  # which is said when the step is taken
                    raise
        for parameter in parameters:
            parameter.grad = None
        return parameters

    def _check_one_row(self) -> None:
        """Refuse a batch of one row for a program that runs on two and not on one, as with batch normalisation."""
        self.program.train()
        objective, errors = cast(Any, self.objective), list[str]()
        for rows in (self.processes.world, min(2 * self.processes.world, len(self.train))):
            try:
                kept = unmoved(self.device, *self.program.buffers())
                with torch.no_grad(), kept, pyro.get_param_store().scope(), self.complete():
                    objective.loss(self.model, self.guide, *self._first(rows))
            except ValueError as error:
                errors.append(str(error).splitlines()[0])
        if errors and (len(errors) == 1 or len(self.train) == 1):
            raise ValueError(
                f"Expected batches of at least 2 rows; of {len(self.train)} in batches of {self.size} one has 1, and "
                f"the program cannot be trained on it: {errors[0].rstrip('.')}. Choose another batch_size."
            )

    def _order(self) -> Tensor:
        """The epoch's order of images; once it has begun, drawn again from where the generators were."""
        now = generators(self.device)
        self.dawn = self.dawn if self.at else now
        set_generators(self.dawn, self.device)
        order = self.processes.same(torch.randperm(len(self.train), device=self.device))
        if self.at:
            set_generators(now, self.device)
        return order

    def _step(self, rows: Tensor) -> tuple[Any, Any]:
        """Take one step of SVI; return the loss, and minus the ELBO at beta = 1, both 0 where it was skipped."""
        batch = read(self.train, rows, self.processes, self.dtype)
        drawn = random_state(self.device) if self.guards else None
        buffers = [buffer.clone() for buffer in self.program.buffers()] if self.guards else []
        wrong, loss, parameters = "", math.nan, list[Tensor]()
        try:
            loss, parameters = self.svi.gradients(batch, handler=self.processes.noise(len(rows), OF_Z))
            self.processes.sum_gradients(parameters, self.scales.weight(batch, len(rows)))
        except ValueError as error:
            if not (wrong := out_of_range(error)):
                raise
        if self.guards and not wrong:
            self.watch.parameters(parameters)
            words = not_finite(loss, parameters)
            if self.processes.any(bool(words), self.device):
                wrong = words or "expected a finite loss in every process"
        self.svi.apply(parameters, finite=not wrong)
        if isinstance(self.svi.optim, PyroLRScheduler):
            self.svi.optim.step()
        if not wrong:
            return loss / self.scales(batch), self.ours.plain / self.scales(batch) if self.ours else 0.0
        trouble = self._trouble(self.at, rows, wrong, batch, drawn)
        for buffer, before in zip(self.program.buffers(), buffers, strict=True):
            buffer.detach().copy_(before)
        if not self.skips or len(self.skipped) == self.batches - 1:
            raise trouble
        self.watch.say(f"A batch was left out: {trouble} How many are, of each epoch, is in metrics.csv.")
        self.skipped.append(self.at)
        return 0.0, 0.0

    def look(self, first: int = 0) -> None:
        """Raise if a loss of this epoch or a parameter is not finite; not on a CPU, where each step was looked at."""
        if self.device.type == "cpu" or not self.at:
            return
        finite = [math.isfinite(loss) for loss in self.losses[first : self.at].tolist()]
        finite[-1] &= math.isfinite(sum(parameter.detach().sum() for parameter in self.program.parameters()))
        if not all(finite):
            step = first + finite.index(False)
            rows = self._order().split(self.size)[step]
            batch = read(self.train, rows, self.processes, self.dtype)
            raise self._trouble(step, rows, "expected a finite loss", batch, None)

    def _first(self, size: int) -> tuple[Tensor, ...]:
        """Read a batch to look at, without a draw that moves others."""
        with seeded(self.settings.seed, self.device):
            return read(self.train, torch.arange(size, device=self.device), self.processes, self.dtype)

    def _trouble(self, step: int, rows: Tensor, wrong: str, batch: tuple, drawn: list[Tensor] | None) -> NotFinite:
        """Say which step, which site and which images; ``drawn`` is where the generators were before the step."""
        with forked(self.device), self.processes.noise(len(rows), OF_Z) or nullcontext():
            set_random_state(drawn or random_state(self.device), self.device)
            fault = find_fault(self.model, self.guide, self.objective, batch, self.processes.mine(rows))
        record = {"epoch": self.epochs + 1, "step": step + 1, "rows": rows.tolist()} | fault
        words = f"Training diverged in epoch {self.epochs + 1}, step {step + 1}: {wrong}. {fault['words']}"
        return NotFinite(words, record)
