"""The run itself: epochs, a bar, checkpoints when they are due, the best one, and the history."""

import json
import os
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

# Saving takes at most this part of the time, and is done at most so often.
SHARE, SECONDS = 0.01, 1.0


class Run:
    """Trains epoch by epoch; keeps the history and the best state, and writes them, with the last, to a directory.

    The best is written before the last, and the last before the one before it goes. So at any moment the disk has a
    state to go on from, and a best that is not older than it. Without a directory nothing is written.
    """

    def __init__(self, training: Training, folder: Path | None, dataset: Dataset) -> None:
        self.training, self.folder, self.patience = training, folder, training.settings.patience
        self.history: dict[str, list[float]] = {}
        self._began = time.perf_counter()  # of the epoch
        self._named = dataset.config["data"] != "tensor"
        self._images = [len(dataset.train), len(dataset.valid)]
        means = [column.double().nan_to_num().mean(0).flatten() for column in dataset.train.extra.values()]
        self._mean = torch.cat([dataset.mean.flatten().double(), *means]) if means else dataset.mean  # of all columns
        self._best: dict[str, Any] = {}
        self._best_is_new = False
        self._due = time.monotonic() + SECONDS
        if folder:
            checkpoint.inside(folder, "checkpoint").mkdir(exist_ok=True)

    def train(self, progress: bool, on_epoch: Callable[[dict[str, list[float]]], Any] | None) -> dict[str, list[float]]:
        """Train until all epochs are done, or patience is over; return the history."""
        training, settings = self.training, self.training.settings
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
            show = {"unit": " images", "unit_scale": True, "disable": not (progress and first)}
            bar = stack.enter_context(tqdm(total=settings.epochs * size, initial=done, **show))

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
            except NotFinite as error:
                raise self._trouble(error) from error.__cause__
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(self._interrupted(isinstance(interrupt, Stopped))) from None
            self.save()
            if self.patience and self._best:
                checkpoint.restore(training.program, self._best["vae"])
            if self.folder:
                checkpoint.save_weights(self.folder, training.program)
        return self.history

    @property
    def best(self) -> int | None:
        """Which epoch has the best validation ELBO, from 0; None where none has any."""
        valid = torch.tensor(self.history.get("valid", [])).nan_to_num(nan=torch.inf, posinf=torch.inf)
        return int(valid.argmin()) if len(valid) and valid.min() < torch.inf else None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or there was no better one for long enough."""
        epochs = len(self.history.get("valid", []))
        since = epochs if self.best is None else epochs - 1 - self.best
        waited = self.patience is not None and since >= self.patience
        return self.training.epochs >= self.training.settings.epochs or waited

    def save_if_due(self) -> None:
        """Save, where the last time is long enough ago."""
        if self.folder and time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write the best state if it is new, the last one, and the history; if that fails, the files before stay."""
        if not self.folder:
            return
        self.training.look()
        start = time.monotonic()
        last, previous, best = (
            checkpoint.inside(self.folder, f"checkpoint/{name}.safetensors") for name in ("last", "previous", "best")
        )
        ours = {"history": self.history, "data": self._mean, "images": self._images}
        packed = checkpoint.pack(self.training.state() | ours | {"seconds": time.perf_counter() - self._began})
        if self._best_is_new:
            checkpoint.write(best, checkpoint.pack(self._best))
            self._best_is_new = False
        with checkpoint.replacing(last, packed):
            if last.exists():
                os.replace(last, previous)
        checkpoint.save_metrics(self.folder, self.history)
        now = time.monotonic()
        self._due = now + max(SECONDS, (now - start) / SHARE)

    def restore(self, folder: Path) -> None:
        """Take up what a run of the same data and program wrote."""
        state, said = checkpoint.load_state(folder)
        if said:
            warnings.warn(said, stacklevel=2)
        try:
            one, other = state["data"].double(), self._mean.double()
            same = one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, equal_nan=True)
            if list(state["images"]) != self._images or not same:
                raise ValueError(
                    "Expected the data that the run began with; got others, by the number of images or their mean. "
                    "Give those it began with, or train anew."
                )
            self.training.restore(state)
            self.history, self._began = state["history"], time.perf_counter() - state["seconds"]
        except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            words = " ".join(str(error).split())[:200]
            raise ValueError(
                f"Expected a checkpoint of this run in {str(folder)!r}; could not go on ({words})."
            ) from error
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
                warnings.warn(
                    f"{str(path)!r} cannot be read ({error}); going on without the best weights so far.", stacklevel=2
                )

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

    def _interrupted(self, between_steps: bool) -> str:
        """Save what there is, and say how to go on; within a step the last checkpoint stands, and weights are saved."""
        if not self.folder:
            return "Nothing is saved, since there is no run_dir."
        if between_steps:
            self.save()
        checkpoint.save_weights(self.folder, self.training.program)
        by_command = checkpoint.parts_of(self.training.program) and self._named
        how = f"pyro-vae train --resume {self.folder}" if by_command else f"fit(..., resume={str(self.folder)!r})"
        return f"The weights so far are in {self.folder}. To go on: {how}"

    def _trouble(self, error: NotFinite) -> NotFinite:
        """Write down what the run stops for; return the error with where that is, and what there is to go on from."""
        if not self.folder:
            return error
        path = checkpoint.inside(self.folder, "diverged.json")
        checkpoint.write(path, json.dumps(error.record, indent=2) + "\n")
        return NotFinite(
            f"{error} The batch's rows are in {path}; the last checkpoint is of before it: --resume {self.folder}.",
            error.record,
        )


def _shown(numbers: dict[str, float]) -> str:
    beta = f" at beta {numbers['beta']:.3g}" if numbers.get("beta", 1.0) != 1 else ""
    valid = f", valid ELBO {-numbers['valid']:.2f}" if "valid" in numbers else ""
    return f"nats: train loss {numbers['train']:.2f}{beta}{valid}"
