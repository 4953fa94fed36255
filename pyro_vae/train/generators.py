"""The random generators that a run draws from: torch's, on each device, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["generators", "seeded", "set_generators", "set_torch", "torch_state"]


def torch_state(device: torch.device) -> list[Tensor]:
    """Return where torch's generators are, of the CPU and of a GPU that is trained on."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_torch(state: list[Tensor], device: torch.device) -> None:
    """Put torch's generators where they were; that of a GPU stays where the state is of a CPU alone."""
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


def generators(device: torch.device) -> dict[str, Any]:
    """Return where all generators are: tensors and numbers."""
    _, words, position, has_gauss, gauss = np.random.get_state()
    version, python, next_gauss = random.getstate()
    return {
        "torch": torch_state(device),
        "numpy": [torch.from_numpy(np.asarray(words, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(python), next_gauss],
    }


def set_generators(state: Mapping[str, Any], device: torch.device) -> None:
    """Put all generators where :func:`generators` found them."""
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))
    version, python, next_gauss = state["python"]
    random.setstate((version, tuple(python.tolist()), next_gauss))
    set_torch(state["torch"], device)


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed all generators, torch's of the CPU and of ``device``, for as long as the context lasts."""
    point = torch.device(device)
    before = generators(torch.device("cpu"))
    with torch.random.fork_rng(devices=[point] if point.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            set_generators(before, torch.device("cpu"))
