"""Find the device of tensors, the batch size that fits in memory, and the fastest float32 matrix product."""

import sys
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
from pyro_vae.seeds import fork_rng

BUDGET = 2**30
KEPT_BLOCK = 2**25 - 2**20  # bytes; glibc does not keep blocks larger than 32 MB
SMALLEST = sys.float_info.min  # the smallest normal number of Python's floats
Precision = Literal["auto", "float32", "bfloat16"]
ACCURATE = 2e-6  # relative errors of a float32 product are about 1e-7, of a bfloat16 one 3e-3
FASTER = 1.3
# Torch's switch of the precision of float32 products; older versions of torch have none.
SWITCH: Any = getattr(torch.backends.mkldnn, "matmul", None)


def device_of(*arguments: Any) -> torch.device:
    """Return the device of the tensors in the arguments: a GPU if any tensor is on a GPU, else the CPU."""
    devices = [leaf.device for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return max(devices, key=lambda device: device.type != "cpu", default=torch.device("cpu"))


@torch.no_grad()
def max_batch_size(
    run: Callable[[int], Any], most: int, device: torch.device | str = "cpu", budget: int = BUDGET
) -> int:
    """Return the largest n, from 1 to ``most``, for which ``run(n)`` writes at most ``budget`` bytes (1 GiB).

    The function runs n = 1 and n = 2, counts the bytes that all operations write (freed bytes also count), and
    extrapolates linearly in n. The function restores torch's random state on the CPU and on ``device``.

    Example:
        >>> max_batch_size(lambda n: torch.randn(n, 256).exp(), most=1000, budget=2**20)  # 2 x 256 x 4 bytes each
        512
    """

    def bytes_written(n: int) -> int:
        with _ByteCounter() as counter:
            run(n)
        return counter.bytes

    reuse_freed_memory()  # these two are called once in a process, and would count in the first run
    products_are_faster()
    with fork_rng(torch.device(device)):
        one, two = bytes_written(1), bytes_written(2)
    return max(1, min(most, budget // (two - one))) if two > one else most


def product_operations(run: Callable[[], Any]) -> int:
    """Return the number of multiplications and additions of the matrix products and convolutions in a call of ``run``.

    Torch's own counter imports torch's compiler, which takes longer than the call.

    Example:
        >>> product_operations(lambda: torch.randn(2, 3) @ torch.randn(3, 5))
        60
    """
    with _OperationCounter() as counter:
        run()
    return counter.operations


class _OperationCounter(Operations):
    """Adds up the multiplications and additions of products: two for each factor of each element of a result."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            left = args[1] if name in ("addmm", "baddbmm") else args[0]
            self.operations += 2 * result.numel() * left.shape[-1]
        elif name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            self.operations += 2 * (x if transposed else result).numel() * weight[0].numel()
        return result


class _ByteCounter(Operations):
    """Adds up the bytes of the tensors that operations return; a view has none."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if all(output.alias_info is None for output in func._schema.returns):
            self.bytes += sum(leaf.numel() * leaf.itemsize for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def fast_products(precision: Precision) -> AbstractContextManager[None]:
    """Return a context for fast float32 matrix products, as accurate as torch's default.

    With ``auto`` on a CPU, the first call measures oneDNN's product in a few milliseconds. If oneDNN is faster and as
    accurate, oneDNN computes the products. Otherwise the context changes nothing.
    """
    return _by_onednn() if precision == "auto" and products_are_faster() else nullcontext()


@cache
def reuse_freed_memory() -> None:
    """Let the C library reuse freed memory, of blocks up to 32 MB, in place of new memory for each large tensor.

    The system clears each page of new memory, and a program waits for it. glibc keeps twice the size of the largest
    block that was freed, up to 64 MB. With another C library the block has no effect.
    """
    torch.empty(KEPT_BLOCK, dtype=torch.uint8)


@contextmanager
def flush_subnormals() -> Iterator[None]:
    """Compute with zero in place of subnormal numbers, below 1e-38 in float32, in this thread of the CPU.

    A CPU takes tens of times as long for an operation on these numbers, which gradients have where a unit has died.
    Torch's other threads keep the state of the thread that started them.
    """
    before = SMALLEST / 2 == 0  # torch has no function that returns the state
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@cache
@torch.no_grad()
def products_are_faster() -> bool:
    """Measure whether oneDNN's float32 matrix product is faster than torch's default on this CPU, and as accurate.

    Torch's switch ``mkldnn.matmul.fp32_precision = "bf16"`` lets oneDNN round the factors to bfloat16. On AMD's chips
    oneDNN does not round, and is twice as fast. On Intel's chips with matrix units oneDNN rounds; the switch stays off.
    The result is cached for the process.
    """
    if SWITCH is None or not torch.backends.mkldnn.is_available():
        return False
    a, b = _factors()
    exact, default = a.double() @ b.double(), _seconds(a, b)
    with _by_onednn():
        error, fast = ((a @ b).double() - exact).norm() / exact.norm(), _seconds(a, b)
    return error.item() < ACCURATE and FASTER * fast < default


def warn_if_slower(precision: Precision, device: torch.device) -> None:
    """Warn of bfloat16 on a CPU without bfloat16 instructions, where a product takes tens of times as long."""
    if precision == "bfloat16" and device.type == "cpu" and (times := _bfloat16_slowdown()) > FASTER:
        slow = f"bfloat16 matrix products take {times:.2g} times as long as float32 products on this CPU"
        warnings.warn(f"{slow}. Use precision = 'auto', which is as accurate as float32.", stacklevel=2)


@cache
@torch.no_grad()
def _bfloat16_slowdown() -> float:
    """Measure how many times as long as a float32 product a bfloat16 product takes on this CPU."""
    a, b = _factors()
    return _seconds(a.bfloat16(), b.bfloat16(), 3) / _seconds(a, b)


def _factors() -> tuple[Tensor, Tensor]:
    """Return the two matrices of the measurements."""
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float32, "device": "cpu"}
    return torch.randn(128, 784, **options), torch.randn(784, 400, **options)


def _seconds(a: Tensor, b: Tensor, tries: int = 30) -> float:
    """Return the shortest of many times, since other programs may use the machine."""
    return min(timeit.repeat(lambda: a @ b, number=1, repeat=tries))


@contextmanager
def _by_onednn() -> Iterator[None]:
    """Let oneDNN compute float32 products."""
    before = SWITCH.fp32_precision
    SWITCH.fp32_precision = "bf16"
    try:
        yield
    finally:
        SWITCH.fp32_precision = before
