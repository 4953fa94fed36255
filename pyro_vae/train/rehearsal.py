"""A step that is computed and not taken: to have it recorded, or to learn what it trains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.compiled import CompiledSVI
from pyro_vae.train.generators import generators, set_generators

__all__ = ["BROKEN", "put_back", "rehearse"]

# Pyro's words for a parameter of a distribution that is out of its range.
BROKEN = re.compile(r"parameter (\w+) .*? of distribution (\w+).*? the constraint (\S+?),")


def rehearse(svi: CompiledSVI, program: nn.Module, batch: tuple, handler: Any, record: bool) -> list[Tensor]:
    """Compute a step, and leave all as it was: parameters, buffers, generators; return the parameters.

    Arguments:
        svi: Whose step.
        program: What it trains.
        batch: The arguments of model and guide.
        handler: A context to run them in.
        record: Whether steps on arguments like these are graphs from then on.
    """
    with _as_before(program, batch[0].device):
        try:
            _, parameters = svi.gradients(batch, handler=handler, record=record)
        except ValueError as error:
            if not BROKEN.search(str(error)):
                raise
            with pyro.validation_enabled(False):  # which step that is will be said when it is taken
                _, parameters = svi.gradients(batch, handler=handler, record=record)
        for parameter in parameters:
            parameter.grad = None
    return parameters


@contextmanager
def _as_before(program: nn.Module, device: torch.device) -> Iterator[None]:
    now, kept = generators(device), [buffer.clone() for buffer in program.buffers()]
    yield
    put_back(program, kept)
    set_generators(now, device)


def put_back(program: nn.Module, kept: list[Tensor]) -> None:
    """Give a program's buffers the numbers that they had."""
    for buffer, before in zip(program.buffers(), kept, strict=True):
        buffer.copy_(before)
