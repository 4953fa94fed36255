"""A device: which one, how much of something fits in its memory, and how it computes float32 matrix products fast."""

import timeit
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_vae.operations import Operations
from pyro_vae.seeds import forked

BUDGET = 2**30
Precision = Literal["auto", "float32", "bfloat16"]
# Relative errors of a float32 product are some 1e-7, of a bfloat16 one 3e-3.
ACCURATE = 2e-6
FASTER = 1.3
# Which older versions of torch do not have.
SWITCH: Any = getattr(torch.backends.mkldnn, "matmul", None)


def device_of(*arguments: Any) -> torch.device:
    """Return the device of the tensors among arguments, a GPU before the CPU; the CPU where there are none."""
    devices = [leaf.device for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return max(devices, key=lambda device: device.type != "cpu", default=torch.device("cpu"))


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


class _Written(Operations):
    """Adds up the bytes of the tensors that operations make; views of others are none."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if all(returned.alias_info is None for returned in func._schema.returns):
            self.bytes += sum(leaf.numel() * leaf.itemsize for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def fast_products(precision: Precision) -> AbstractContextManager[None]:
    """Return a context in which oneDNN computes float32 products, where :func:`products_are_faster`."""
    return _by_onednn() if precision == "auto" and products_are_faster() else nullcontext()


@cache
@torch.no_grad()
def products_are_faster() -> bool:
    """Whether oneDNN's product of float32 matrices is faster than torch's default on this CPU, and as accurate.

    Tried once a process, in some milliseconds. Torch's switch ``mkldnn.matmul.fp32_precision = "bf16"`` lets oneDNN
    round the factors to bfloat16. On AMD's chips it does not round, and is twice as fast; on Intel's with matrix units
    it does, and the switch stays off.
    """
    if SWITCH is None or not torch.backends.mkldnn.is_available():
        return False
    a, b = _factors()
    exact, usual = a.double() @ b.double(), _seconds(a, b)
    with _by_onednn():
        error, fast = ((a @ b).double() - exact).norm() / exact.norm(), _seconds(a, b)
    return error.item() < ACCURATE and FASTER * fast < usual


def warn_if_slower(precision: Precision, device: torch.device) -> None:
    """Warn of bfloat16 on a CPU that has no instructions for it, and takes tens of times as long."""
    if precision == "bfloat16" and device.type == "cpu" and (times := _times_as_long()) > FASTER:
        slow = f"Products of bfloat16 numbers take {times:.2g} times as long as float32's on this CPU"
        better = "use precision = 'auto', which is as accurate as float32 and as fast as this CPU is"
        warnings.warn(f"{slow}: {better}.", stacklevel=2)


@cache
@torch.no_grad()
def _times_as_long() -> float:
    a, b = _factors()
    return _seconds(a.bfloat16(), b.bfloat16(), 3) / _seconds(a, b)


def _factors() -> tuple[Tensor, Tensor]:
    kind: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float32, "device": "cpu"}
    return torch.randn(128, 784, **kind), torch.randn(784, 400, **kind)


def _seconds(a: Tensor, b: Tensor, tries: int = 30) -> float:
    """The best of many, since others may be at work on the machine."""
    return min(timeit.repeat(lambda: a @ b, number=1, repeat=tries))


@contextmanager
def _by_onednn() -> Iterator[None]:
    before = SWITCH.fp32_precision
    SWITCH.fp32_precision = "bf16"
    try:
        yield
    finally:
        SWITCH.fp32_precision = before
