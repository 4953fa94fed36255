"""The run itself: epochs, a bar, checkpoints when they are due, the best one, and the history."""

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
from pyro_vae.train.processes import Stopped
from pyro_vae.train.trouble import NotFinite
from pyro_vae.words import images_or_rows, nats

# Saving takes at most this part of the time, and is done at most so often.
SHARE, SECONDS = 0.01, 1.0


class Run:
    """Trains epoch by epoch; keeps the history and the best state, and writes them, with the last, to a directory.

    The best is written before the last, and the last before the one before it goes. So at any moment the disk has a
    state to go on from, and a best that is not older than it. Without a directory nothing is written.
    """

    def __init__(self, training: Training, place: Callable[[], Path] | None, dataset: Dataset) -> None:
        self.training, self._place, self.patience = training, place, training.settings.patience
        self.history: dict[str, list[float]] = {}
        self._began, self._due = time.perf_counter(), time.monotonic() + SECONDS  # the epoch began, a save is due
        self._named = dataset.config["data"] != "tensor"
        self._best, self._best_is_new = dict[str, Any](), False
        if self.folder:
            checkpoint.inside(self.folder, "checkpoint").mkdir(exist_ok=True)

    @property
    def folder(self) -> Path | None:
        """Where the run is now, which somebody may have renamed; None where nothing is written."""
        return self._place() if self._place else None

    def train(self, progress: bool, on_epoch: Callable[[dict[str, list[float]]], Any] | None) -> dict[str, list[float]]:
        """Train until all epochs are done, or patience is over; return the history."""
        training, settings, began = self.training, self.training.settings, self.folder
        size, first = len(training.train), training.processes.rank == 0
        done = training.epochs * size + min(size, training.at * training.size)
        with ExitStack() as stack:
            stack.callback(training.program.eval)
            stack.enter_context(warnings.catch_warnings())
            # Pyro's words for what NotFinite says in full.
            warnings.filterwarnings("ignore", "Encountered", UserWarning)
            stop = stack.enter_context(training.processes.stopping(training.device))
            logger: Any = None
            if settings.logger and self.folder:
                from torch.utils.tensorboard import SummaryWriter

                folder = checkpoint.inside(self.folder, "tensorboard")
                # What was written of later epochs is hidden.
                logger = stack.enter_context(SummaryWriter(folder, purge_step=training.epochs + 1))
            show = {"unit": f" {images_or_rows(training.train.pixels.shape[1:])}", "unit_scale": True, "initial": done}
            bar = stack.enter_context(tqdm(total=settings.epochs * size, disable=not (progress and first), **show))

            def seen(images: int) -> None:
                bar.update(images)
                stop()
                self.save_if_due()

            try:
                while not self.finished:
                    bar.set_description(f"epoch {training.epochs + 1}/{settings.epochs}")
                    with training.complete():
                        numbers = training.epoch(seen, stop)
                    self._take_down(numbers)
                    for name, number in numbers.items() if logger else ():
                        logger.add_scalar(name, number, training.epochs)
                    if on_epoch and first:
                        with seeded(settings.seed, training.device):
                            on_epoch(self.history)
                        self._began = time.perf_counter()
                    bar.set_postfix_str(_shown(numbers))
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
                raise self._trouble(error) from error.__cause__
            except KeyboardInterrupt as interrupt:
                saves = isinstance(interrupt, Stopped) and not self.finished  # before a sleep all is saved
                raise KeyboardInterrupt(self._interrupted(saves)) from None
            if self.folder:
                checkpoint.save_weights(self.folder, training.program)
                if self.folder != began:
                    run = checkpoint.shown(self.folder)
                    moved = f"The run was moved to {run}. To draw its figures: pyro-vae evaluate {run}"
                    warnings.warn(moved, stacklevel=2)
        return self.history

    @property
    def best(self) -> int | None:
        """Which epoch has the best validation ELBO, from 0; None where none has any."""
        valid = torch.tensor(self.history.get("valid", [])).nan_to_num(nan=torch.inf, posinf=torch.inf)
        return int(valid.argmin()) if len(valid) and valid.min() < torch.inf else None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or there was no better one for long enough."""
        since = len(self.history.get("valid", [])) - (0 if self.best is None else self.best + 1)
        waited = self.patience is not None and since >= self.patience
        return self.training.epochs >= self.training.settings.epochs or waited

    def save_if_due(self) -> None:
        """Save, where the last time is long enough ago."""
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write the best state if it is new, the last one, and the history; if that fails, the files before stay."""
        if not self.folder:
            return
        self.training.look()
        start = time.monotonic()
        ours = {"history": self.history, "seconds": time.perf_counter() - self._began}
        packed = checkpoint.pack(self.training.state() | ours)
        folder = self.folder  # by now
        names = (f"checkpoint/{name}.safetensors" for name in ("last", "previous", "best"))
        last, previous, best = (checkpoint.inside(folder, name) for name in names)
        if self._best_is_new:
            checkpoint.write(best, checkpoint.pack(self._best))
            self._best_is_new = False
        checkpoint.write(last, packed, keep=previous)
        checkpoint.save_metrics(folder, self.history)
        now = time.monotonic()
        self._due = now + max(SECONDS, (now - start) / SHARE)

    def restore(self, folder: Path) -> None:
        """Take up what a run of the same data and program wrote."""
        state, said = checkpoint.load_state(folder)
        if said:
            warnings.warn(said, stacklevel=2)
        try:
            self.training.restore(state)
            self.history, self._began = state["history"], time.perf_counter() - state["seconds"]
        except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            what = f"Expected a checkpoint of this run in {str(folder)!r}; could not go on"
            raise ValueError(f"{what} ({checkpoint.short(error)}).") from error
        if said and self.folder:  # or it would take the place of the one that can be read
            checkpoint.inside(folder, "checkpoint/last.safetensors").unlink()
        path = checkpoint.inside(folder, "checkpoint/best.safetensors")
        if self.best is not None:
            try:
                best = checkpoint.unpack(path)
                if best["epochs"] < self.best + 1:
                    raise ValueError(f"it is of epoch {best['epochs']}, not {self.best + 1}")
                # One of a later epoch was written just before the end, and comes again.
                self._best = best if best["epochs"] == self.best + 1 else {}
            except (ValueError, KeyError, TypeError) as error:
                lost = f"{str(path)!r} cannot be read ({error}); going on without the best weights so far."
                warnings.warn(lost, stacklevel=2)

    def _take_down(self, numbers: dict[str, float]) -> None:
        """Add an epoch's numbers to the history, and keep the state if it is the best."""
        now = time.perf_counter()
        for name, number in {**numbers, "seconds": now - self._began}.items():
            self.history.setdefault(name, []).append(number)
        self._began = now
        if (self.folder or self.patience) and self.best is not None and self.best == len(self.history["valid"]) - 1:
            # Copies, which stay as they are while training goes on.
            self._best = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), self.training.state())
            self._best_is_new = True
        self.training.watch.epoch(self.history, self.training.validation.smallest_scale)

    def _interrupted(self, saves: bool) -> str:
        """Save what there is, and say how to go on; within a step the last checkpoint stands, and weights are saved."""
        if not (folder := self.folder):
            return "Nothing is saved, since there is no run_dir."
        if saves:
            self.save()
        checkpoint.save_weights(folder, self.training.program)
        by_command, run = checkpoint.parts_of(self.training.program) and self._named, checkpoint.shown(folder)
        how = f"pyro-vae train --resume {run}" if by_command else f"fit(..., resume={run!r})"
        return f"The weights so far are in {run}. To go on: {how}"

    def _trouble(self, error: NotFinite) -> NotFinite:
        """Write down what the run stops for; return the error with where that is, and what there is to go on from."""
        if not (folder := self.folder):
            return error
        path = checkpoint.inside(folder, "diverged.json")
        checkpoint.write(path, json.dumps(error.record, indent=2) + "\n")
        where, run = checkpoint.shown(path), checkpoint.shown(folder)
        words = f"The batch's rows are in {where}; the last checkpoint is of before it: --resume {run}."
        return NotFinite(f"{error} {words}", error.record)


def _shown(numbers: dict[str, float]) -> str:
    beta = f" at beta {numbers['beta']:.3g}" if numbers.get("beta", 1.0) != 1 else ""
    valid = f", valid ELBO {nats(-numbers['valid'])}" if "valid" in numbers else ""
    accuracy = f", accuracy {numbers['valid_accuracy']:.1%}" if "valid_accuracy" in numbers else ""
    return f"nats: train loss {nats(numbers['train'])}{beta}{valid}{accuracy}"
