"""Ctrl-C and SIGTERM: the step is finished and what there is saved before training stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from pyro_vae.train.processes import Processes

__all__ = ["Stop", "Stopped"]

LOOK = 50


class Stopped(KeyboardInterrupt):
    """Training was asked to stop, and is between two steps."""


class Stop:
    """A context in which SIGINT and SIGTERM are taken note of, for training to stop after the step.

    The second of them stops at once, as it would without. In another than the main thread, where signals cannot be
    had, they do what they did.

    Arguments:
        processes: Who trains: all stop when one is asked to.
        device: Where.
    """

    def __init__(self, processes: Processes, device: torch.device) -> None:
        self.processes, self.device = processes, device
        self._asked = False
        self._checks = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def check(self) -> None:
        """Stop here, if that was asked.

        Raises:
            Stopped: If it was.
        """
        self._checks += 1
        waits = self.device.type == "cuda" and self.processes.world > 1  # for the number, which is costly there
        if not (waits and self._checks % LOOK) and self.processes.any(self._asked, self.device):
            raise Stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
