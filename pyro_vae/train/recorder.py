"""What is written of a run while it goes on: checkpoints, when they are due, the best one, and the history."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import checkpoint
from pyro_vae.data import Dataset
from pyro_vae.train.loop import Training
from pyro_vae.train.trouble import NotFinite

__all__ = ["Recorder"]

# Saving takes at most this part of the time, and is done at most so often.
SHARE, SECONDS = 0.01, 1.0


class Recorder:
    """Keeps the history and the best state of a run, and writes them, with the last state, to its directory.

    The best is written before the last, and the last before the one before it goes. So at any moment the disk has a
    state to go on from, and a best that is not older than it. Without a directory nothing is written.
    """

    def __init__(self, training: Training, run: Path | None, dataset: Dataset) -> None:
        self.training, self.run, self.patience = training, run, training.settings.patience
        self.history: dict[str, list[float]] = {}
        self.began = time.perf_counter()  # of the epoch
        self.logger: Any = None
        self._named = dataset.config["data"] != "tensor"
        self._images, self._mean = [len(dataset.train), len(dataset.valid)], _mean(dataset)
        self._best: dict[str, Any] = {}
        self._best_is_new = False
        self._due = time.monotonic() + SECONDS
        if run:
            checkpoint.inside(run, "checkpoint").mkdir(exist_ok=True)

    def epoch(self, numbers: Mapping[str, float]) -> None:
        """Take down an epoch's numbers, and the state if it is the best."""
        now = time.perf_counter()
        for name, number in {**numbers, "seconds": now - self.began}.items():
            self.history.setdefault(name, []).append(number)
        self.began = now
        if (self.run or self.patience) and self.best is not None and self.best == len(self.history["valid"]) - 1:
            self._best, self._best_is_new = checkpoint.clone(self.training.state()), True
        if self.logger:
            for name, number in numbers.items():
                self.logger.add_scalar(name, number, self.training.epochs)
        self.training.watch.epoch(self.history, self.training.validation.smallest_scale)

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
        return self.training.epochs >= self.training.settings.epochs or bool(
            self.patience and epochs and since >= self.patience
        )

    def save_if_due(self) -> None:
        """Save, where the last time is long enough ago."""
        if self.run and time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write the best state if there is a better one, the last one, and the history.

        Where a number of the state is not finite, or the disk is full, it raises, and what was written before stays.
        """
        if not self.run:
            return
        self.training.look()
        start = time.monotonic()
        last, previous, best = (
            checkpoint.inside(self.run, f"checkpoint/{name}.safetensors") for name in ("last", "previous", "best")
        )
        packed = checkpoint.pack(
            self.training.state()
            | {"history": self.history, "data": self._mean, "images": self._images}
            | {"seconds": time.perf_counter() - self.began}
        )
        if self._best_is_new:
            checkpoint.write(best, checkpoint.pack(self._best))
            self._best_is_new = False
        with checkpoint.replacing(last, packed):
            if last.exists():
                os.replace(last, previous)
        checkpoint.save_metrics(self.run, self.history)
        now = time.monotonic()
        self._due = now + max(SECONDS, (now - start) / SHARE)

    def restore(self, run: Path) -> None:
        """Take up what was written to a run of the same data and program."""
        state, said = checkpoint.load_state(run)
        if said:
            warnings.warn(said, stacklevel=2)
        try:
            if list(state["images"]) != self._images or not _same(state["data"], self._mean):
                raise ValueError(
                    "Expected the data that the run began with; got others, by the number of images or their mean. "
                    "Give those it began with, or train anew."
                )
            self.training.restore(state)
            self.history, self.began = state["history"], time.perf_counter() - state["seconds"]
        except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            words = " ".join(str(error).split())[:200]
            raise ValueError(
                f"Expected a checkpoint of this run in {str(run)!r}; could not go on ({words})."
            ) from error
        if said and self.run:  # or it would take the place of the one that can be read
            checkpoint.inside(run, "checkpoint/last.safetensors").unlink()
        path = checkpoint.inside(run, "checkpoint/best.safetensors")
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

    def finish(self) -> None:
        """Write what a run ends with; where it had patience, go back to the best weights."""
        if self.patience and self._best:
            checkpoint.restore(self.training.program, self._best["vae"])
        if self.run:
            checkpoint.save_weights(self.run, self.training.program)

    def interrupted(self, between_steps: bool) -> str:
        """Save what there is, and say how to go on; within a step the last checkpoint stands, and weights are saved."""
        if not self.run:
            return "Nothing is saved, since there is no run_dir."
        if between_steps:
            self.save()
        checkpoint.save_weights(self.run, self.training.program)
        by_command = checkpoint.parts_of(self.training.program) and self._named
        how = f"pyro-vae train --resume {self.run}" if by_command else f"fit(..., resume={str(self.run)!r})"
        return f"The weights so far are in {self.run}. To go on: {how}"

    def trouble(self, error: NotFinite) -> NotFinite:
        """Take down what a run stopped for; return the error with where that is, and what there is to go on from."""
        if not self.run:
            return error
        path = checkpoint.inside(self.run, "diverged.json")
        checkpoint.write(path, json.dumps(error.record, indent=2) + "\n")
        return NotFinite(
            f"{error} The batch's rows are in {path}; the last checkpoint is of before it: --resume {self.run}.",
            error.record,
        )


def _mean(dataset: Dataset) -> Tensor:
    """The mean of the training data, of all columns if there are several."""
    means = [column.double().nan_to_num().mean(0).flatten() for column in dataset.train.extra.values()]
    return torch.cat([dataset.mean.flatten().double(), *means]) if means else dataset.mean


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-5, equal_nan=True)
