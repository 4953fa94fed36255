"""How float32 matrix products are computed: the fast way, where it is as accurate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Precision", "autocast", "fast_products", "products_are_faster"]

Precision = Literal["auto", "float32", "bfloat16"]
# Relative errors of a float32 product are some 1e-7, of a bfloat16 one 3e-3.
ACCURATE = 2e-6
FASTER = 1.3


def autocast(precision: Precision, device: torch.device) -> Any:
    """Return a context in which products are of bfloat16 numbers, if that is the precision; parameters stay."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def fast_products(precision: Precision) -> Iterator[None]:
    """Let oneDNN compute float32 products for as long as the context lasts, where :func:`products_are_faster`."""
    if precision != "auto" or not products_are_faster():
        yield
        return
    with _switched("bf16"):
        yield


@cache
def products_are_faster() -> bool:
    """Whether oneDNN's product of float32 matrices is faster than torch's default on this CPU, and as accurate.

    Tried once a process, in some milliseconds. The switch is torch's ``mkldnn.matmul.fp32_precision = "bf16"``, which
    lets oneDNN round the factors to bfloat16. On AMD's chips it does not round and is twice as fast as the default; on
    Intel's with matrix units it does, and is then left alone.
    """
    if _products() is None or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    kind: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    a, b = torch.randn(128, 784, **kind), torch.randn(784, 400, **kind)
    exact = a.double() @ b.double()
    with torch.no_grad():
        usual = _seconds(a, b)
        with _switched("bf16"):
            error = ((a @ b).double() - exact).norm() / exact.norm()
            fast = _seconds(a, b)
    return error.item() < ACCURATE and FASTER * fast < usual


def _seconds(a: Tensor, b: Tensor) -> float:
    """The best of many, since others may be at work on the machine."""
    found = []
    for _ in range(30):
        start = time.perf_counter()
        a @ b
        found.append(time.perf_counter() - start)
    return min(found)


@contextmanager
def _switched(setting: str) -> Iterator[None]:
    before = _products().fp32_precision
    _products().fp32_precision = setting
    try:
        yield
    finally:
        _products().fp32_precision = before


def _products() -> Any:
    """The switch, which older versions of torch do not have."""
    return getattr(torch.backends.mkldnn, "matmul", None)
