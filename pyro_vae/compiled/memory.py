"""How much of something fits in memory, for parts of any kind: measured, by running a little of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["how_many_fit"]

BUDGET = 2**30


@torch.no_grad()
def how_many_fit(run: Callable[[int], Any], most: int, device: torch.device | str = "cpu", budget: int = BUDGET) -> int:
    """Return the largest n for which ``run(n)`` stays within a budget of bytes, from what n = 1 and n = 2 take.

    Counted is what the operations write, as though none of it were freed: what is held at any one time is less. What
    does not grow with n, as the weights, is left out. Torch's random state is left as it was.

    Arguments:
        run: A computation whose memory grows linearly with n.
        most: The answer is from 1 to this.
        device: Where it runs, or rather draws.
        budget: Bytes.

    Example:
        >>> how_many_fit(lambda n: torch.randn(n, 256).exp(), most=1000, budget=2**20)  # 2 x 256 x 4 bytes each
        512
    """
    point = torch.device(device)
    with torch.random.fork_rng(devices=[point] if point.type == "cuda" else []):
        one, two = _bytes_written(run, 1), _bytes_written(run, 2)
    return max(1, min(most, budget // (two - one))) if two > one else most


def _bytes_written(run: Callable[[int], Any], n: int) -> int:
    with _Written() as written:
        run(n)
    return written.bytes


class _Written(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make; views of others are none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do the operation, and add up what it made."""
        made = func(*args, **(kwargs or {}))
        if all(returned.alias_info is None for returned in func._schema.returns):
            self.bytes += sum(leaf.numel() * leaf.itemsize for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return made
