"""What is drawn to evaluate leaves torch's random state as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["forked"]


@contextmanager
def forked(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Draw from a seed, or if there is none from torch's state as it is; put that state back afterwards.

    So a second call draws the same, unless another seed is given to it or to torch. No generator of another device
    is touched, as ``torch.manual_seed`` would.

    Example:
        >>> before = torch.get_rng_state()
        >>> with forked(torch.device("cpu"), seed=1):
        ...     draw = torch.randn(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield
