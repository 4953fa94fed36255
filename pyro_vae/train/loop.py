"""The training loop: an epoch of steps over shuffled minibatches, validation, and the state between two steps."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import pyro
import torch
from pyro.optim import PyroLRScheduler
from torch import Tensor

from pyro_vae import checkpoint, seeds
from pyro_vae.compiled import CompiledSVI
from pyro_vae.data import Dataset
from pyro_vae.missing import Missing
from pyro_vae.objectives import Objective
from pyro_vae.program import posterior_of, reference_tensor
from pyro_vae.train.monitor import Monitor
from pyro_vae.train.nonfinite import NotFinite, constraint_violation, locate_nonfinite, not_finite
from pyro_vae.train.optimizers import recipe, steps_before_fall
from pyro_vae.train.processes import OF_Z, Processes
from pyro_vae.train.settings import Settings, check_autoguide, check_one_row, hook
from pyro_vae.train.sleeping import FEW, Sleep, parameters_of, sleep
from pyro_vae.train.validation import Scales, Validation, read_batch, value_range, with_params

CHECK_EVERY = 50  # steps between checks of the loss on a GPU, since a check waits for the GPU
GRAPH_AFTER = 40  # epochs after which a graph of a batch that comes once an epoch pays: the last one, and validation
MAX_SLEEP_DATA = 2**26  # numbers of training data that a sleep holds
# Entries of a checkpoint, and their attributes.
STATE = {"epochs": "epochs", "at": "steps_done", "skipped": "skipped", "beta": "beta", "dawn": "epoch_rng_state"}


class Training:
    """A training run. You can save and restore the state between any two steps."""

    def __init__(
        self, program: Any, dataset: Dataset, objective: pyro.infer.ELBO, settings: Settings, processes: Processes
    ) -> None:
        self.program, self.objective, self.settings, self.processes = program, objective, settings, processes
        self.own_objective = objective if isinstance(objective, Objective) else None  # one of this package
        self.model, self.guide = program.model, program.guide
        self.part = self.own_objective.part_of(program) if self.own_objective else program  # the module that trains
        self.step_context: Any = hook(program, "complete") or nullcontext
        if any(split.incomplete for split in dataset.splits.values()):
            self.model, self.step_context = Missing()(program.model), nullcontext
        self.device, self.dtype = reference_tensor(program).device, reference_tensor(program).dtype
        self.train = dataset.train.to(self.device)
        self.batch_size = min(settings.batch_size, len(self.train))
        self.last_size = len(self.train) % self.batch_size  # of a last batch with fewer rows; else 0
        processes.check_sizes([self.batch_size, self.last_size or self.batch_size])
        processes.check_batch_statistics(program, objective)
        self.num_batches = math.ceil(len(self.train) / self.batch_size)
        self.steps = settings.epochs * self.num_batches
        self.steps_before_fall = steps_before_fall(settings.lr_schedule, self.steps)  # of the learning rate
        self.skips = settings.on_nan == "skip"
        self.checks_steps = self.skips or self.device.type == "cpu"
        self.scales = Scales(program, self.model)
        with self.step_context():
            factor = len(self.train) / (self.scales(batch := self._first_rows(self.batch_size)) * len(batch[0]))
        check_autoguide(program, self.batch_size, len(self.train), len(dataset.valid))
        if settings.sleep:  # checks now that the program can sleep
            with seeds.eval_mode(program, self.device, 0):
                parameters_of(posterior_of(program, self._sleep_data(torch.arange(min(len(self.train), FEW)))))
        if not self.scales.registered:
            self.model, self.guide = (with_params(program, part) for part in (self.model, self.guide))
        optim = recipe(settings.optimizer, settings.lr, settings.lr_schedule, self.steps, program)
        options: Any = {name: getattr(settings, name) for name in ("compile", "precision", "clip_norm")}
        self.svi = CompiledSVI(self.model, self.guide, optim, objective, steps=self.steps, **options)
        self.validation = Validation(self.model, program, dataset.valid, settings.seed, processes, self.scales)
        self.monitor = Monitor(program, value_range(dataset.valid if len(dataset.valid) else dataset.train))
        self.epochs, self.steps_done, self.beta = 0, 0, 1.0  # epochs done, and steps of the current one
        # One tensor: a small tensor for each step would keep the memory around it from reuse.
        self.terms = torch.zeros(self.num_batches, 2, device=self.device, dtype=self.dtype)
        self.losses, self.neg_elbos = self.terms.T
        self.skipped, self._recorded, self._modules = list[int](), set[int](), [*program.modules()]
        self.epoch_rng_state = seeds.rng_state(self.device)  # when the current epoch began
        self.monitor.check_plate(factor, self.scales.outside, len(self.train))
        if 1 in (self.batch_size // processes.world, self.last_size // processes.world):
            self._train_mode()
            check_one_row(self._loss_of, processes.world, len(self.train), self.batch_size)

    def epoch(self, on_step: Callable[[int], Any], pause: Callable[[], Any] = lambda: None) -> dict[str, float]:
        """Train for the rest of the epoch, validate, and return metrics; call ``on_step`` with the number of images."""
        self._train_mode()
        if self.settings.compile != "off":
            for size in (self.batch_size, self.last_size if self.epochs >= GRAPH_AFTER else 0):
                if size and size not in self._recorded:
                    self._record_step(size)
        batches = self._order().split(self.batch_size)
        for step in range(self.steps_done, self.num_batches):
            self.beta = self.own_objective.beta_now if self.own_objective else 1.0
            self.losses[step], self.neg_elbos[step] = self._step(batches[step])
            self.processes.all_reduce(self.terms[step])
            self.steps_done += 1
            if step % CHECK_EVERY == 0 or self.steps_done == self.num_batches:
                self.check_finite(max(0, step - CHECK_EVERY))
            on_step(len(batches[step]))
        total = len(self.train) - sum(len(batches[step]) for step in self.skipped)
        validated = self.validation(pause, self.epochs >= GRAPH_AFTER and self.svi.mode != "off")
        numbers = {"train": math.fsum(self.losses.tolist()) / total} | validated
        if self.own_objective and self.part is self.program:  # a part's objective computes no ELBO
            numbers |= {"train_at_beta_1": math.fsum(self.neg_elbos.tolist()) / total, "beta": self.beta}
        if self.skips:
            numbers["skipped"] = float(len(self.skipped))
        self.epochs, self.steps_done, self.skipped = self.epochs + 1, 0, []
        return numbers

    def _train_mode(self) -> None:
        """Set the part that trains to training mode, and the rest to evaluation mode."""
        self.program.eval()
        self.part.train()

    def sleep(self, progress: bool, pause: Callable[[], Any]) -> Sleep:
        """Train the guide on data that the model draws; return the ELBO of training data before and after."""
        rows = torch.randperm(len(self.train))[: max(1, MAX_SLEEP_DATA // max(1, self.train.pixels[:1].numel()))]
        options: Any = {name: getattr(self.settings, name) for name in ("batch_size", "seed", "compile", "precision")}
        data, steps = self._sleep_data(rows), self.settings.sleep
        elbos = sleep(self.program, steps, data, progress=progress, update=pause, **options)
        for tensor in self.program.state_dict().values():
            self.processes.broadcast(tensor)
        return elbos

    def _sleep_data(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return training data without labels."""
        data = read_batch(self.train, rows, Processes(), self.dtype)
        unlabelled = hook(self.program, "unlabelled")
        return unlabelled(*data) if unlabelled else data

    def state(self) -> dict[str, Any]:
        """Return the state that the next step depends on, in nested dictionaries and lists of tensors and numbers."""
        return {
            "vae": dict(self.program.state_dict()),
            "event_shape": checkpoint.event_shape(self.program),
            "svi": self.svi.state_dict(),
            "losses": self.losses[: self.steps_done],
            "plain": self.neg_elbos[: self.steps_done],
            "generators": seeds.rng_state(self.device),
            "before_fall": self.steps_before_fall,
        } | {key: getattr(self, name) for key, name in STATE.items()}

    @property
    def total_steps(self) -> int:
        """The number of steps of all epochs so far."""
        return self.epochs * self.num_batches + self.steps_done

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same program with the same settings."""
        checkpoint.restore(self.program, state["vae"])
        for key, name in STATE.items():
            setattr(self, name, state[key])
        self.losses[: self.steps_done], self.neg_elbos[: self.steps_done] = state["losses"], state["plain"]
        if state["svi"]:
            self._train_mode()
            with self.step_context():
                self.svi.load_state_dict(state["svi"], self._record_step(self.batch_size))
        if self.own_objective:
            self.own_objective.start(self.steps, self.total_steps)
        seeds.set_rng_state(state["generators"], self.device)

    def _record_step(self, size: int) -> list[Tensor]:
        """Record the graph of a step without a step, so that no result depends on when; return the parameters."""
        self._recorded.add(size)
        batch, handler = self._first_rows(size), self.processes.noise(size, OF_Z)
        parameters: list[Tensor] = []
        with seeds.preserve_state(self.device, *self.program.buffers()):
            try:
                _, parameters = self.svi.gradients(batch, handler=handler, record=True)
            except ValueError as error:
                if not constraint_violation(error):  # which the step itself reports
                    raise
        for parameter in parameters:
            parameter.grad = None
        return parameters

    def _loss_of(self, num: int) -> None:
        """Compute the loss of the first rows, and restore all state."""
        preserved = seeds.preserve_state(self.device, *self.program.buffers())
        with torch.no_grad(), preserved, pyro.get_param_store().scope(), self.step_context():
            cast(Any, self.objective).loss(self.model, self.guide, *self._first_rows(num))

    def _order(self) -> Tensor:
        """Return the epoch's order of images, drawn from the random state at the epoch's start."""
        current = seeds.rng_state(self.device)
        self.epoch_rng_state = self.epoch_rng_state if self.steps_done else current
        seeds.set_rng_state(self.epoch_rng_state, self.device)
        order = self.processes.broadcast(torch.randperm(len(self.train), device=self.device))
        if self.steps_done:
            seeds.set_rng_state(current, self.device)
        return order

    def _step(self, rows: Tensor) -> tuple[Any, Any]:
        """Take one step; return the loss and minus the ELBO at beta = 1, both 0 for a skipped step."""
        batch = read_batch(self.train, rows, self.processes, self.dtype)
        rng_state = seeds.torch_rng_state(self.device) if self.checks_steps else None
        buffers = (buffer for owner in self._modules for buffer in owner._buffers.values() if buffer is not None)
        before = [(buffer, buffer.clone()) for buffer in buffers if self.checks_steps]
        reason, loss, parameters = "", math.nan, list[Tensor]()
        try:
            loss, parameters = self.svi.gradients(batch, handler=self.processes.noise(len(rows), OF_Z))
            self.processes.sum_gradients(parameters, self.scales.weight(batch, len(rows)))
        except ValueError as error:
            if not (reason := constraint_violation(error)):
                raise
        if self.checks_steps and not reason:
            self.monitor.check_parameters(parameters)
            own_reason = not_finite(loss, parameters)
            if self.processes.any(bool(own_reason), self.device):
                reason = own_reason or "expected a finite loss in every process"
        self.svi.apply(parameters, finite=not reason)
        if isinstance(self.svi.optim, PyroLRScheduler):
            self.svi.optim.step()
        if not reason:
            neg_elbo = self.own_objective.plain / self.scales(batch) if self.own_objective else 0.0
            return loss / self.scales(batch), neg_elbo
        failure = self._error(self.steps_done, rows, reason, batch, rng_state)
        for buffer, value in before:
            buffer.detach().copy_(value)
        if not self.skips or len(self.skipped) == self.num_batches - 1:
            raise failure
        self.monitor.warn(f"Skipped a batch: {failure} metrics.csv counts the skipped batches of each epoch.")
        self.skipped.append(self.steps_done)
        return 0.0, 0.0

    def check_finite(self, first: int = 0) -> None:
        """Raise NotFinite if a parameter or a loss since step ``first`` is not finite; on a CPU, each step checks."""
        if self.device.type == "cpu" or not self.steps_done:
            return
        finite = [math.isfinite(loss) for loss in self.losses[first : self.steps_done].tolist()]
        finite[-1] &= math.isfinite(sum(parameter.detach().sum() for parameter in self.program.parameters()))
        if not all(finite):
            step = first + finite.index(False)
            rows = self._order().split(self.batch_size)[step]
            batch = read_batch(self.train, rows, self.processes, self.dtype)
            raise self._error(step, rows, "expected a finite loss", batch, None)

    def _first_rows(self, num: int) -> tuple[Tensor, ...]:
        """Return a batch of the first rows, without a change of the random state."""
        with seeds.seeded(self.settings.seed, self.device):
            return read_batch(self.train, torch.arange(num, device=self.device), self.processes, self.dtype)

    def _error(self, step: int, rows: Tensor, reason: str, batch: tuple, state: list[Tensor] | None) -> NotFinite:
        """Return an error with the step, site and images; ``state`` is the random state before the step."""
        with seeds.fork_rng(self.device), self.processes.noise(len(rows), OF_Z) or nullcontext():
            seeds.set_torch_rng_state(state or seeds.torch_rng_state(self.device), self.device)
            own_rows = self.processes.own_rows(rows)
            details = locate_nonfinite(self.model, self.guide, self.objective, batch, own_rows)
        record = {"epoch": self.epochs + 1, "step": step + 1, "rows": rows.tolist()} | details
        words = f"Training diverged in epoch {self.epochs + 1}, step {step + 1}: {reason}. {details['words']}"
        return NotFinite(words, record)
