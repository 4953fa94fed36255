"""The run itself: epochs, a bar, signals, and what goes wrong on the way."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from tqdm.auto import tqdm

from pyro_vae import checkpoint
from pyro_vae.train.generators import seeded
from pyro_vae.train.loop import Training
from pyro_vae.train.processes import Processes
from pyro_vae.train.recorder import Recorder
from pyro_vae.train.trouble import NotFinite

__all__ = ["Stopped", "run_epochs", "stopping"]

LOOK = 50  # steps after which several processes on GPUs ask each other, since to do so they wait


class Stopped(KeyboardInterrupt):
    """Training stops on request, between two steps."""


def run_epochs(
    training: Training,
    recorder: Recorder,
    progress: bool,
    on_epoch: Callable[[dict[str, list[float]]], Any] | None,
) -> dict[str, list[float]]:
    """Train until the recorder says that it is done; return the history."""
    settings, size, first = training.settings, len(training.train), training.processes.rank == 0
    done = training.epochs * size + min(size, training.at * training.size)
    with ExitStack() as stack:
        stack.callback(training.program.eval)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Encountered", UserWarning)  # Pyro's words for what NotFinite says in full
        stop = stack.enter_context(stopping(training.processes, training.device))
        if settings.logger and recorder.run:
            from torch.utils.tensorboard import SummaryWriter

            folder = checkpoint.inside(recorder.run, "tensorboard")
            # What was written of later epochs is hidden.
            recorder.logger = stack.enter_context(SummaryWriter(folder, purge_step=training.epochs + 1))
        show = {"unit": " images", "unit_scale": True, "disable": not (progress and first)}
        bar = stack.enter_context(tqdm(total=settings.epochs * size, initial=done, **show))

        def seen(images: int) -> None:
            bar.update(images)
            stop()
            recorder.save_if_due()

        try:
            while not recorder.finished:
                bar.set_description(f"epoch {training.epochs + 1}/{settings.epochs}")
                with training.complete():
                    numbers = training.epoch(seen, stop)
                recorder.epoch(numbers)
                if on_epoch and first:
                    with seeded(settings.seed, training.device):
                        on_epoch(recorder.history)
                    recorder.began = time.perf_counter()
                bar.set_postfix_str(_numbers(numbers))
                recorder.save_if_due()
        except NotFinite as error:
            raise recorder.trouble(error) from error.__cause__
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(recorder.interrupted(isinstance(interrupt, Stopped))) from None
        recorder.save()
        recorder.finish()
    return recorder.history


@contextmanager
def stopping(processes: Processes, device: torch.device) -> Iterator[Callable[[], None]]:
    """Take note of SIGINT and SIGTERM; yield a function that raises :class:`Stopped` in all processes after one.

    A second signal stops at once. In another thread than the main one, which gets no signals, nothing changes.
    """
    asked, checks = False, 0
    waits = device.type == "cuda" and processes.world > 1

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        nonlocal checks
        checks += 1
        if not (waits and checks % LOOK) and processes.any(asked, device):
            raise Stopped

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _numbers(numbers: dict[str, float]) -> str:
    """Write an epoch's numbers for the progress bar."""
    beta = f" at beta {numbers['beta']:.3g}" if numbers.get("beta", 1.0) != 1 else ""
    valid = f", valid ELBO {-numbers['valid']:.2f}" if "valid" in numbers else ""
    return f"nats: train loss {numbers['train']:.2f}{beta}{valid}"
