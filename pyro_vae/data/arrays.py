"""Convert arrays to tensors with a dtype that torch supports and channels first, and check every number."""

import hashlib
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 2**20  # bytes of a file
CHANNELS = (1, 3)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # torch has few functions for these
TOLERANCE = 1e-4  # the largest error of float32, as a share of the range of a column


class Survey(NamedTuple):
    """The numbers of infinite and NaN elements, the range of the finite elements, and whether all are integers."""

    infinite: int
    missing: int
    low: float
    high: float
    whole: bool


def survey(parts: Iterable[Tensor | np.ndarray], name: str) -> Survey:
    """Summarise all numbers; refuse a column if float32 loses the column's differences or overflows."""
    low, high, error = (torch.tensor(start, dtype=torch.float64) for start in (torch.inf, -torch.inf, 0.0))
    infinite, missing, whole = 0, 0, True
    for part in parts:
        x = lows = highs = part if isinstance(part, Tensor) else to_tensor(part, name, wide=True)
        if x.is_floating_point():
            infinite, missing, finite = infinite + int(x.isinf().sum()), missing + int(x.isnan().sum()), x.isfinite()
            x, lows, highs = (torch.where(finite, x, value) for value in (0.0, torch.inf, -torch.inf))
            whole = whole and not x.float().frac().any()
        low, high = torch.minimum(low, lows.amin(0)), torch.maximum(high, highs.amax(0))
        if x.dtype.itemsize > 2 and x.dtype != torch.float32:
            exact = x.double()
            errors = (exact - x.float()).abs()
            if not x.is_floating_point():
                errors[exact.abs() >= 2**53] = torch.inf  # float64 rounds these
            error = torch.maximum(error, errors.amax(0))
    spread, size = high - low, torch.maximum(high.abs(), low.abs())
    lost = error.isinf() | ((error > TOLERANCE * spread) & (spread > 2.0**-44 * size))  # less is rounding in float64
    if lost.any():
        where = tuple(lost.nonzero()[0].tolist())
        column = f"[{', '.join(map(str, (':', *where)))}], from {low[where]:.12g} to {high[where]:.12g}"
        advice = "Subtract an offset or rescale first, or pass float32 to accept the rounding."
        got = f"{column}, which float32 rounds by up to {error[where]:.3g}. {advice}"
        raise ValueError(f"Expected numbers that float32 tells apart in {name}; got {got}")
    return Survey(infinite, missing, low.min().float().item(), high.max().float().item(), whole)


def to_tensor(array: np.ndarray, name: str, wide: bool = False, copy: bool = True) -> Tensor:
    """Return an array as a tensor, always a copy with ``copy``. Floats become float32; with ``wide``, float64 stays."""
    if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
        raise ValueError(f"Expected integers below 2^63 in {name}; got {array.max()}. Save them as floats.")
    floats = np.float64 if wide and array.dtype.itemsize > 4 else np.float32
    kinds = {"f": floats, "u": np.uint8 if array.dtype == np.uint8 else np.int64, "i": np.int64, "b": np.bool_}
    return torch.from_numpy(array.astype(kinds[array.dtype.kind], copy=copy))


def narrowed(array: np.ndarray, name: str) -> Tensor:
    """Check the floats with :func:`survey`, and return the array as a tensor."""
    survey([array] if array.dtype.kind == "f" and array.size else [], name)
    return to_tensor(array, name)


def tensor_of(value: Any, argument: str) -> Tensor:
    """Return an argument as a dense tensor. A tensor stays unchanged; an array becomes a tensor on the CPU."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_nested or value.is_meta)
    if dense and value.dtype not in UNSIGNED:
        return value
    array = np.array(None)
    with suppress(TypeError, ValueError, RuntimeError):
        if (hasattr(value, "__array__") and not np.ma.is_masked(value)) or isinstance(value, list | tuple):
            array = np.asarray(value)
    if array.dtype.kind not in "buif":
        kind = f"a tensor of {value.layout} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        advice = "Convert it: to_dense() for a sparse tensor, astype(float).filled(numpy.nan) for a masked array, "
        advice += "torch.cat([x for x, *_ in loader]) for batches."
        raise ValueError(f"Expected {argument} to be a dense tensor or an array of numbers; got {kind}. {advice}")
    return to_tensor(array, argument, wide=hasattr(value, "__array__"))


def channels_first(x: Tensor) -> Tensor:
    """Return images ``(N, height, width)`` or ``(N, height, width, channels)`` as ``(N, channels, height, width)``."""
    if x.dim() == 3:
        return x.unsqueeze(1)
    few = range(1, 5) if min(x.shape[1:3], default=0) > 4 else CHANNELS  # 2 or 4 with transparency
    if x.dim() == 4 and x.shape[1] not in CHANNELS and x.shape[-1] in few:
        return x.movedim(-1, 1).contiguous()
    return x


def digest(column: Any) -> str:
    """Return a hash of a tensor, or of stored rows."""
    state = hashlib.blake2b(str((*column.shape, column.dtype)).encode(), digest_size=16)
    rows = max(1, AT_ONCE // (16 * math.prod(column.shape[1:])))
    for start in range(0, len(column), rows):
        part = column[start : start + rows].cpu().contiguous()
        state.update(part.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def rows_of(pixels: Any, index: Tensor | slice) -> Tensor:
    """Return ``pixels[index]``, ten times as fast as indexing for the rows of a batch."""
    if isinstance(pixels, Tensor) and isinstance(index, Tensor) and index.dtype == torch.int64 and index.dim() == 1:
        return pixels.index_select(0, index)
    return pixels[index]


def total(pixels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the sum of observed pixels over images, in float64 (exact for bytes), without copying all images."""
    parts: Iterable[Tensor] = pixels.split(1024)
    if mask is not None:
        parts = (part * observed for part, observed in zip(parts, mask.split(1024), strict=True))
    return torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0)
