"""The random generators that a run draws from: torch's, on each device, NumPy's and Python's."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pyro_vae.compiled.device import random_state, set_random_state


def generators(device: torch.device) -> dict[str, Any]:
    """Return where all generators are, torch's of the CPU and of a device: tensors and numbers."""
    _, words, position, has_gauss, gauss = np.random.get_state()
    version, python, next_gauss = random.getstate()
    return {
        "torch": random_state(device),
        "numpy": [torch.from_numpy(np.asarray(words, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(python), next_gauss],
    }


def set_generators(state: Mapping[str, Any], device: torch.device) -> None:
    """Put all generators back to a state from :func:`generators`."""
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))
    version, python, next_gauss = state["python"]
    random.setstate((version, tuple(python.tolist()), next_gauss))
    set_random_state(state["torch"], device)


@contextmanager
def unmoved(device: torch.device) -> Iterator[None]:
    """Put all generators back afterwards."""
    before = generators(device)
    try:
        yield
    finally:
        set_generators(before, device)


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed all generators, torch's of the CPU and of a device, for as long as the context lasts."""
    with unmoved(torch.device(device)):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
