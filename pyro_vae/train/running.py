"""The run itself: epochs, a bar, signals, and what goes wrong on the way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tqdm.auto import tqdm

from pyro_vae.train.generators import seeded
from pyro_vae.train.loggers import TensorBoard
from pyro_vae.train.loop import Training
from pyro_vae.train.recorder import Recorder
from pyro_vae.train.stopping import Stop, Stopped
from pyro_vae.train.trouble import NotFinite

__all__ = ["run_epochs"]


def run_epochs(
    training: Training,
    recorder: Recorder,
    progress: bool,
    logger: str | None,
    on_epoch: Callable[[dict[str, list[float]]], Any] | None,
) -> dict[str, list[float]]:
    """Train until the recorder says that it is done; return the history.

    Arguments:
        training: Where to go on.
        recorder: What is written.
        progress: Whether to show a bar.
        logger: ``tensorboard`` or None.
        on_epoch: Called with the history after each epoch, by the first process.

    Raises:
        NotFinite: If training diverges.
        KeyboardInterrupt: If it is stopped.
    """
    epochs, size = training.settings.epochs, len(training.train)
    done = training.epochs * size + min(size, training.at * training.size)
    with ExitStack() as stack:
        stack.callback(training.program.eval)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Encountered", UserWarning)  # Pyro's words for what NotFinite says in full
        stop = stack.enter_context(Stop(training.processes, training.device))
        if logger and recorder.run:
            recorder.logger = TensorBoard(recorder.run, training.epochs)
            stack.callback(recorder.logger.close)
        show = {"unit": " images", "unit_scale": True, "disable": not progress}
        bar = stack.enter_context(tqdm(total=epochs * size, initial=done, **show))

        def seen(images: int) -> None:
            bar.update(images)
            stop.check()
            recorder.save_if_due()

        try:
            while not recorder.finished:
                bar.set_description(f"epoch {training.epochs + 1}/{epochs}")
                with training.complete():
                    numbers = training.epoch(seen, stop.check)
                recorder.epoch(numbers)
                if on_epoch and training.processes.rank == 0:
                    with seeded(training.settings.seed, str(training.device)):
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


def _numbers(numbers: dict[str, float]) -> str:
    """Write an epoch's numbers for the progress bar."""
    beta = f" at beta {numbers['beta']:.3g}" if numbers.get("beta", 1.0) != 1 else ""
    valid = f", valid ELBO {-numbers['valid']:.2f}" if "valid" in numbers else ""
    return f"nats: train loss {numbers['train']:.2f}{beta}{valid}"
