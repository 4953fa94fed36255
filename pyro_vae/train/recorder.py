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
from pyro_vae.train.loggers import TensorBoard
from pyro_vae.train.loop import Training
from pyro_vae.train.trouble import NotFinite

__all__ = ["Recorder"]

# Saving takes at most this part of the time, and is done at most so often.
SHARE, SECONDS = 0.01, 1.0


class Recorder:
    """Keeps the history and the best state of a run, and writes them, with the last state, to its directory.

    The best is written before the last, and the last before the one before it is let go. So at any moment there is a
    state on the disk to go on from, and a best that is not older than it.

    Arguments:
        training: What is recorded.
        run: The run's directory; if None, nothing is written.
        data: The mean of the training data, by which they are known again.
        patience: For how many epochs without a better validation ELBO to go on, if not for all.
    """

    def __init__(self, training: Training, run: Path | None, data: Tensor, patience: int | None) -> None:
        self.training, self.run, self.data, self.patience = training, run, data, patience
        self.history: dict[str, list[float]] = {}
        self.seconds = 0.0  # of the epoch that is going on, before `began`
        self.began = time.perf_counter()
        self._best: dict[str, Any] = {}
        self._best_is_new = False
        self._rotate = True
        self._saved = time.monotonic()
        self._cost = 0.0
        self.logger: TensorBoard | None = None
        if run:
            checkpoint.inside(run, "checkpoint").mkdir(exist_ok=True)

    def epoch(self, numbers: Mapping[str, float]) -> None:
        """Take down an epoch's numbers, and the state if it is the best."""
        now = time.perf_counter()
        for name, number in (dict(numbers) | {"seconds": self.seconds + now - self.began}).items():
            self.history.setdefault(name, []).append(number)
        self.seconds, self.began = 0.0, now
        if (self.run or self.patience) and self.best is not None and self.best == len(self.history["valid"]) - 1:
            self._best, self._best_is_new = checkpoint.clone(self.training.state()), True
        if self.logger:
            self.logger.epoch(self.training.epochs, numbers)
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
        waited = epochs - 1 - (-1 if self.best is None else self.best)
        return self.training.epochs >= self.training.settings.epochs or bool(
            self.patience and epochs and waited >= self.patience
        )

    def save_if_due(self) -> None:
        """Save, where the last time is long enough ago."""
        if self.run and time.monotonic() - self._saved >= max(SECONDS, self._cost / SHARE):
            self.save()

    def save(self) -> None:
        """Write the best state if there is a better one, the last one, and the history.

        Raises:
            NotFinite: If a number of the state is not finite, on a GPU; what was written before is as it was.
            OSError: If the disk is full; likewise.
        """
        if not self.run:
            return
        self.training.look()
        start = time.monotonic()
        folder = checkpoint.inside(self.run, "checkpoint")
        last = checkpoint.inside(self.run, "checkpoint/last.safetensors")
        packed = checkpoint.pack(
            self.training.state()
            | {"history": self.history, "data": self.data, "images": self._images()}
            | {"seconds": self.seconds + time.perf_counter() - self.began}
        )
        if self._best_is_new:
            best = checkpoint.pack(self._best)
            checkpoint.write(checkpoint.inside(self.run, "checkpoint/best.safetensors"), best)
            self._best_is_new = False
        with checkpoint.replacing(last, packed):
            if self._rotate and last.exists():
                os.replace(last, folder / "previous.safetensors")
        self._rotate = True
        checkpoint.save_metrics(self.run, self.history)
        self._saved = time.monotonic()
        self._cost = self._saved - start

    def restore(self, run: Path) -> None:
        """Take up what was written to a run.

        Raises:
            ValueError: If it cannot be read, or is of other data or another program.
        """
        state, said = checkpoint.load_state(run)
        if said:
            warnings.warn(said, stacklevel=2)
            self._rotate = False  # the one that cannot be read goes, not the one that can
        try:
            if list(state["images"]) != self._images() or not _same(state["data"], self.data):
                raise ValueError(
                    "Expected the data that the run began with; got others, by the number of images or their mean. "
                    "Give those it began with, or train anew."
                )
            self.training.restore(state)
            self.history, self.seconds = state["history"], state["seconds"]
        except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            words = " ".join(str(error).split())[:200]
            raise ValueError(
                f"Expected a checkpoint of this run in {str(run)!r}; could not go on ({words})."
            ) from error
        path = checkpoint.inside(run, "checkpoint/best.safetensors")
        if self.best is not None:
            try:
                found = checkpoint.unpack(path)
                if found["epochs"] < self.best + 1:
                    raise ValueError(f"it is of epoch {found['epochs']}, not {self.best + 1}")
                # One of a later epoch was written just before the end, and will be found again.
                self._best = found if found["epochs"] == self.best + 1 else {}
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
        made = checkpoint.parts_of(self.training.program) and self.training.named
        how = f"pyro-vae train --resume {self.run}" if made else f"fit(..., resume={str(self.run)!r})"
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

    def _images(self) -> list[int]:
        return [len(self.training.train), len(self.training.validation.split)]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-5, equal_nan=True)
