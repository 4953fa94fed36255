"""From arrays to tensors: the types that torch has, channels first, and a look at every number."""

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
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # for which torch has few functions
APART = 1e-4  # of the spread of a column: the largest error of float32


class Survey(NamedTuple):
    """How many numbers of an array are infinite and NaN, the extremes of the others, and whether these are whole."""

    infinite: int
    missing: int
    low: float
    high: float
    whole: bool


def survey(parts: Iterable[Tensor | np.ndarray], name: str) -> Survey:
    """Look at every number; refuse those that differ in a column and hardly do in float32, or are too large for it."""
    low, high, error = (torch.tensor(start, dtype=torch.float64) for start in (torch.inf, -torch.inf, 0.0))
    infinite, missing, whole = 0, 0, True
    for part in parts:
        x = least = most = part if isinstance(part, Tensor) else to_tensor(part, name, wide=True)
        if x.is_floating_point():
            infinite, missing, finite = infinite + int(x.isinf().sum()), missing + int(x.isnan().sum()), x.isfinite()
            x, least, most = (torch.where(finite, x, other) for other in (0.0, torch.inf, -torch.inf))
            whole = whole and not x.float().frac().any()
        low, high = torch.minimum(low, least.amin(0)), torch.maximum(high, most.amax(0))
        if x.dtype.itemsize > 2 and x.dtype != torch.float32:
            wide = x.double()
            moved = (wide - x.float()).abs()
            if not x.is_floating_point():
                moved[wide.abs() >= 2**53] = torch.inf  # which float64 moves too
            error = torch.maximum(error, moved.amax(0))
    spread, size = high - low, torch.maximum(high.abs(), low.abs())
    lost = error.isinf() | ((error > APART * spread) & (spread > 2.0**-44 * size))  # less is float64's own rounding
    if lost.any():
        where = tuple(lost.nonzero()[0].tolist())
        those = f"those at [{', '.join(map(str, (':', *where)))}], from {low[where]:.12g} to {high[where]:.12g}"
        advice = "Subtract a number or scale first, or give float32 if it is meant."
        got = f"{those}, would move by up to {error[where]:.3g}. {advice}"
        raise ValueError(f"Expected numbers that float32 keeps apart in {name}; {got}")
    return Survey(infinite, missing, low.min().float().item(), high.max().float().item(), whole)


def to_tensor(array: np.ndarray, name: str, wide: bool = False) -> Tensor:
    """To integers that torch has, and to float32, which is what networks compute in; ``wide``: float64 stays."""
    if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
        raise ValueError(f"Expected whole numbers below 2^63 in {name}; got {array.max()}. Save them as floats.")
    floats = np.float64 if wide and array.dtype.itemsize > 4 else np.float32
    kinds = {"f": floats, "u": np.uint8 if array.dtype == np.uint8 else np.int64, "i": np.int64, "b": np.bool_}
    return torch.from_numpy(array.astype(kinds[array.dtype.kind]))


def narrowed(array: np.ndarray, name: str) -> Tensor:
    """Return :func:`to_tensor`, of floats that float32 keeps apart."""
    survey([array] if array.dtype.kind == "f" and array.size else [], name)
    return to_tensor(array, name)


def tensor_of(given: Any, argument: str) -> Tensor:
    """Return numbers that a caller gives, as a dense tensor: a tensor as it is, an array as one on the CPU."""
    dense = isinstance(given, Tensor) and given.layout == torch.strided and not (given.is_nested or given.is_meta)
    if dense and given.dtype not in UNSIGNED:
        return given
    array = np.array(None)
    with suppress(TypeError, ValueError, RuntimeError):
        if (hasattr(given, "__array__") and not np.ma.is_masked(given)) or isinstance(given, list | tuple):
            array = np.asarray(given)
    if array.dtype.kind not in "buif":
        kind = f"a tensor of {given.layout} on {given.device}" if isinstance(given, Tensor) else type(given).__name__
        advice = "Make one of it: to_dense() of a sparse one, astype(float).filled(numpy.nan) of a masked one, "
        advice += "torch.cat([x for x, *_ in loader]) of batches."
        raise ValueError(f"Expected {argument} to be a dense tensor or an array of numbers; got {kind}. {advice}")
    return to_tensor(array, argument, wide=hasattr(given, "__array__"))


def channels_first(x: Tensor) -> Tensor:
    """Bring images of shape ``(N, height, width)`` or ``(N, height, width, channels)`` to channels first."""
    if x.dim() == 3:
        return x.unsqueeze(1)
    few = range(1, 5) if min(x.shape[1:3], default=0) > 4 else CHANNELS  # 2 or 4 with transparency
    if x.dim() == 4 and x.shape[1] not in CHANNELS and x.shape[-1] in few:
        return x.movedim(-1, 1).contiguous()
    return x


def digest(column: Any) -> str:
    """Return a digest of a tensor, or of images on disk."""
    seen = hashlib.blake2b(str((*column.shape, column.dtype)).encode(), digest_size=16)
    rows = max(1, AT_ONCE // math.prod(column.shape[1:]))
    for start in range(0, len(column), rows):
        part = column[start : start + rows].cpu().contiguous()
        seen.update(part.reshape(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def rows_of(pixels: Any, index: Tensor | slice) -> Tensor:
    """Return ``pixels[index]``, which is ten times as slow for the rows of a batch."""
    if isinstance(pixels, Tensor) and isinstance(index, Tensor) and index.dtype == torch.int64 and index.dim() == 1:
        return pixels.index_select(0, index)
    return pixels[index]


def total(pixels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Add up what is observed of images in float64, which of bytes is exact, with no copy of them all."""
    parts: Iterable[Tensor] = pixels.split(1024)
    if mask is not None:
        parts = (part * seen for part, seen in zip(parts, mask.split(1024), strict=True))
    return torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0)
