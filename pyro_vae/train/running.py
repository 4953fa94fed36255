"""A run of training: epochs, progress bar, checkpoints, the best weights and the history."""

import json
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from tqdm.auto import tqdm

from pyro_vae import checkpoint
from pyro_vae.data import Dataset
from pyro_vae.seeds import seeded
from pyro_vae.train.loop import Training
from pyro_vae.train.nonfinite import NotFinite
from pyro_vae.train.processes import Stopped
from pyro_vae.words import images_or_rows, nats

SHARE, SECONDS = 0.01, 1.0  # the most of the time that saving takes, and the least time between two saves


class Run:
    """Trains epoch by epoch. If there is a directory, saves the last state, the best state and the history there.

    A save writes the new best state, then the last state, and then removes the old best state. So the disk always
    holds a state to resume from, and a best state that is at least as recent.
    """

    def __init__(self, training: Training, locate: Callable[[], Path] | None, dataset: Dataset) -> None:
        self.training, self._locate, self.patience = training, locate, training.settings.patience
        self.history: dict[str, list[float]] = {}
        self._epoch_start, self._next_save = time.perf_counter(), time.monotonic() + SECONDS
        self._has_named_data = dataset.config["data"] != "tensor"
        self._best, self._best_is_new = dict[str, Any](), False
        if self.folder:
            checkpoint.safe_path(self.folder, "checkpoint").mkdir(exist_ok=True)

    @property
    def folder(self) -> Path | None:
        """The run's directory under its current name; None if nothing is written."""
        return self._locate() if self._locate else None

    def train(self, progress: bool, on_epoch: Callable[[dict[str, list[float]]], Any] | None) -> dict[str, list[float]]:
        """Train until all epochs are done, or patience ends; return the history."""
        training, settings, original = self.training, self.training.settings, self.folder
        size, first = len(training.train), training.processes.rank == 0
        done = training.epochs * size + min(size, training.steps_done * training.batch_size)
        with ExitStack() as stack:
            stack.callback(training.program.eval)
            stack.enter_context(warnings.catch_warnings())
            # Pyro's warning of NaN; NotFinite has the details.
            warnings.filterwarnings("ignore", "Encountered", UserWarning)
            stop = stack.enter_context(training.processes.stop_on_signal(training.device))
            logger: Any = None
            if settings.logger and self.folder:
                from torch.utils.tensorboard import SummaryWriter

                folder = checkpoint.safe_path(self.folder, "tensorboard")
                # Hides entries of epochs that come again.
                logger = stack.enter_context(SummaryWriter(folder, purge_step=training.epochs + 1))
            unit = f" {images_or_rows(training.train.pixels.shape[1:])}"
            options: Any = {"unit": unit, "unit_scale": True, "initial": done, "disable": not (progress and first)}
            bar = stack.enter_context(tqdm(total=settings.epochs * size, **options))

            def on_step(images: int) -> None:
                bar.update(images)
                stop()
                save_before_fall()
                self.save_if_due()

            def save_before_fall() -> None:
                if training.total_steps == training.steps_before_fall < training.steps:
                    self._write("before_fall")

            try:
                save_before_fall()
                while not self.finished:
                    bar.set_description(f"epoch {training.epochs + 1}/{settings.epochs}")
                    with training.step_context():
                        numbers = training.epoch(on_step, stop)
                    self._add_epoch(numbers)
                    for name, number in numbers.items() if logger else ():
                        logger.add_scalar(name, number, training.epochs)
                    if on_epoch and first:
                        with seeded(settings.seed, training.device):
                            on_epoch(self.history)
                        self._epoch_start = time.perf_counter()
                    bar.set_postfix_str(_summary(numbers))
                    self.save_if_due()
                self.save()
                if self.patience and self._best:
                    checkpoint.restore(training.program, self._best["vae"])
                if settings.sleep:
                    if self.folder:
                        checkpoint.save_weights(self.folder, training.program)
                    before, after = training.sleep(progress and first, stop)
                    bar.set_postfix_str(f"nats: train ELBO {nats(before)}, after sleep {nats(after)}")
            except NotFinite as error:
                raise self._write_record(error) from error.__cause__
            except KeyboardInterrupt as interrupt:
                saves = isinstance(interrupt, Stopped) and not self.finished  # a finished run is saved already
                raise KeyboardInterrupt(self._interrupt_message(saves)) from None
            if self.folder:
                checkpoint.save_weights(self.folder, training.program)
                if self.folder != original:
                    run = checkpoint.display_path(self.folder)
                    figures = checkpoint.command_on("evaluate", self.folder)
                    message = f"The run was moved to {run}. To draw its figures: {figures}"
                    warnings.warn(message, stacklevel=2)
        return self.history

    @property
    def best(self) -> int | None:
        """The epoch of the best validation ELBO, from 0; None if no ELBO is finite."""
        valid = torch.tensor(self.history.get("valid", [])).nan_to_num(nan=torch.inf, posinf=torch.inf)
        return int(valid.argmin()) if len(valid) and valid.min() < torch.inf else None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience ended."""
        since = len(self.history.get("valid", [])) - (0 if self.best is None else self.best + 1)
        patience_ended = self.patience is not None and since >= self.patience
        return self.training.epochs >= self.training.settings.epochs or patience_ended

    def save_if_due(self) -> None:
        """Save the run if the last save was long enough ago."""
        if time.monotonic() >= self._next_save:
            self.save()

    def save(self) -> None:
        """Write a new best state, the last state and the history; a failure leaves the old files."""
        if not self.folder:
            return
        self.training.check_finite()
        start = time.monotonic()
        best = checkpoint.safe_path(self.folder, "checkpoint/best.safetensors")
        if self._best_is_new:
            checkpoint.write(best, checkpoint.serialize(self._best))
            self._best_is_new = False
        self._write("last", keep="previous")
        checkpoint.save_metrics(self.folder, self.history)
        now = time.monotonic()
        self._next_save = now + max(SECONDS, (now - start) / SHARE)

    def _write(self, name: str, keep: str | None = None) -> None:
        """Write the state to a file; move the old file to ``keep``."""
        if not self.folder:
            return
        record = {"history": self.history, "seconds": time.perf_counter() - self._epoch_start}
        content = checkpoint.serialize(self.training.state() | record)
        paths = [checkpoint.safe_path(self.folder, f"checkpoint/{file}.safetensors") for file in (name, keep) if file]
        checkpoint.write(paths[0], content, *paths[1:])

    def restore(self, folder: Path) -> None:
        """Restore a run's last state, or for more epochs the state before the learning rate fell."""
        state, problem = checkpoint.load_state(folder)
        if problem:
            warnings.warn(problem, stacklevel=2)
        try:
            steps = state["epochs"] * self.training.num_batches + state["at"]
            if state.get("before_fall", steps) < min(steps, self.training.steps_before_fall):  # for fewer epochs
                state = checkpoint.load_state_before_fall(folder)
            self.training.restore(state)
            self.history, self._epoch_start = state["history"], time.perf_counter() - state["seconds"]
        except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            message = f"Expected a checkpoint of this run in {str(folder)!r}; could not restore it"
            raise ValueError(f"{message} ({checkpoint.one_line(error)}).") from error
        if problem and self.folder:  # the next save would replace the readable one by it
            checkpoint.safe_path(folder, "checkpoint/last.safetensors").unlink()
        path = checkpoint.safe_path(folder, "checkpoint/best.safetensors")
        if self.best is not None:
            try:
                best = checkpoint.deserialize(path)
                if best["epochs"] < self.best + 1:
                    raise ValueError(f"it is of epoch {best['epochs']}, not {self.best + 1}")
                # A best state of a later epoch, saved just before the run was killed, comes again.
                self._best = best if best["epochs"] == self.best + 1 else {}
            except (ValueError, KeyError, TypeError) as error:
                message = f"{str(path)!r} cannot be read ({error}); training continues without the best weights so far."
                warnings.warn(message, stacklevel=2)

    def _add_epoch(self, numbers: dict[str, float]) -> None:
        """Add an epoch's numbers to the history, and copy the state if it is the best."""
        now = time.perf_counter()
        for name, number in {**numbers, "seconds": now - self._epoch_start}.items():
            self.history.setdefault(name, []).append(number)
        self._epoch_start = now
        if (self.folder or self.patience) and self.best is not None and self.best == len(self.history["valid"]) - 1:
            self._best = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), self.training.state())
            self._best_is_new = True
        self.training.monitor.check_epoch(self.history, self.training.validation.smallest_scale)

    def _interrupt_message(self, saves: bool) -> str:
        """Save the weights, and the state if ``saves``; return a message with the command to resume."""
        if not (folder := self.folder):
            return "Nothing is saved, since there is no run_dir."
        if saves:
            self.save()
        checkpoint.save_weights(folder, self.training.program)
        run, has_parts = checkpoint.display_path(folder), checkpoint.parts_of(self.training.program)
        resume = f"fit(..., resume={run!r})"
        if has_parts and self._has_named_data:
            resume = checkpoint.command_on("train --resume", folder)
        return f"The weights so far are in {run}. To resume: {resume}"

    def _write_record(self, error: NotFinite) -> NotFinite:
        """Write the error's record to a file; return the error with the file's path and the way to resume."""
        if not (folder := self.folder):
            return error
        path = checkpoint.safe_path(folder, "diverged.json")
        checkpoint.write(path, json.dumps(error.record, indent=2) + "\n")
        file, run = checkpoint.display_path(path), checkpoint.display_path(folder)
        words = f"The batch's rows are in {file}. Resume from the last checkpoint before it: --resume {run}."
        return NotFinite(f"{error} {words}", error.record)


def _summary(numbers: dict[str, float]) -> str:
    """Return an epoch's numbers for the progress bar."""
    beta = f" at beta {numbers['beta']:.3g}" if numbers.get("beta", 1.0) != 1 else ""
    valid = f", valid ELBO {nats(-numbers['valid'])}" if "valid" in numbers else ""
    accuracy = f", accuracy {numbers['valid_accuracy']:.1%}" if "valid_accuracy" in numbers else ""
    return f"nats: train loss {nats(numbers['train'])}{beta}{valid}{accuracy}"
