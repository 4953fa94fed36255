"""A device: which one, and how much of something fits in its memory."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.seeds import forked

BUDGET = 2**30


def device_of(*arguments: Any) -> torch.device:
    """Return the device of the tensors among arguments, a GPU before the CPU; the CPU where there are none."""
    devices = [leaf.device for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return max(devices, key=lambda device: device.type != "cpu", default=torch.device("cpu"))


def put_back(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Give tensors the numbers that they had."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.detach().copy_(value)


@torch.no_grad()
def how_many_fit(run: Callable[[int], Any], most: int, device: torch.device | str = "cpu", budget: int = BUDGET) -> int:
    """Return the largest n for which ``run(n)`` stays within a budget of bytes, from what n = 1 and n = 2 take.

    Counted is all that the operations write, though some of it is freed, and that grows with n, linearly. The answer is
    at most ``most``. Torch's random state, on ``device``, stays.

    Example:
        >>> how_many_fit(lambda n: torch.randn(n, 256).exp(), most=1000, budget=2**20)  # 2 x 256 x 4 bytes each
        512
    """

    def bytes_written(n: int) -> int:
        with _Written() as written:
            run(n)
        return written.bytes

    with forked(torch.device(device)):
        one, two = bytes_written(1), bytes_written(2)
    return max(1, min(most, budget // (two - one))) if two > one else most


class _Written(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make; views of others are none."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if all(returned.alias_info is None for returned in func._schema.returns):
            self.bytes += sum(leaf.numel() * leaf.itemsize for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result
