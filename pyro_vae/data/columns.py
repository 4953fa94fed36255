"""The arguments of a program as a :class:`Dataset`: tensors of as many rows, each as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.on_disk import OnDisk, are_whole, survey
from pyro_vae.data.supports import levels

__all__ = ["from_columns", "is_whole", "split_rows", "support_of"]

SEED = 20140416
MOST = 10_000  # images held out of a source that has no test split


def from_columns(columns: Mapping[str, Any], valid: int | None = None) -> Dataset:
    """Make a data set of columns: a tenth held out for validation, a tenth for test, as in :func:`load`.

    The first column is x; the others go with it, row by row. Whole numbers and booleans stay what they are, as
    labels, where :func:`from_tensor` takes them for pixels; NaN is missing.

    Arguments:
        columns: Tensors by the names of a program's arguments, each with the data along its first dimension.
        valid: As in :func:`load`.

    Raises:
        ValueError: If there are no columns, or fewer than 3 rows, or columns differ in length or are infinite.

    Example:
        >>> dataset = from_columns({"x": torch.rand(100, 5), "y": torch.arange(100) % 3})
        >>> [column.shape for column in dataset.train.batch(slice(0, 7))]
        [torch.Size([7, 5]), torch.Size([7])]
    """
    tensors = {name: torch.as_tensor(column).detach().cpu() for name, column in columns.items()}
    sizes = {len(column) if column.dim() else 0 for column in tensors.values()}
    if len(sizes) != 1 or min(sizes) < 3:
        shapes = ", ".join(f"{name} {tuple(column.shape)}" for name, column in tensors.items())
        raise ValueError(f"Expected columns of as many rows each, at least 3; got {shapes or 'none'}.")
    for name, column in tensors.items():
        if column.dtype.is_complex or (column.is_floating_point() and column.isinf().any()):
            raise ValueError(f"Expected finite real numbers, or NaN where they are missing, in {name!r}; got others.")
    x, *_ = tensors.values()
    mask = ~x.isnan() if x.is_floating_point() and x.isnan().any() else None
    seen = x.double() if mask is None else x[mask].double()
    if not seen.numel():
        raise ValueError(f"Expected numbers in {next(iter(tensors))!r}; got none.")
    _, low, high = survey(seen)
    x = x if mask is None else x.masked_fill(~mask, 0)
    whole = Split(x, levels=0, mask=mask, extra=dict([*tensors.items()][1:]))
    config = {"data": "tensor", "root": "", "binarize": "none", "dequantize": False, "valid": valid, "counts": False}
    train, held_out, test = (whole.part(rows) for rows in split_rows(len(x), valid))
    return Dataset(train, held_out, test, support_of(whole, low, high), config)


def is_whole(pixels: Tensor | OnDisk) -> bool:
    """Whether all numbers are whole."""
    return pixels.file.whole if isinstance(pixels, OnDisk) else are_whole(pixels)


def support_of(whole: Split, low: float, high: float) -> constraints.Constraint:
    """What x is, of the extremes ``low`` and ``high`` before any noise."""
    if whole.noise:
        return constraints.boolean if whole.noise == "bernoulli" else constraints.unit_interval
    if whole.counts:
        return constraints.nonnegative_integer
    if whole.levels and not whole.pixels.dtype.is_floating_point:
        return constraints.boolean if whole.levels == 2 else levels(whole.levels)
    if low >= 0 and is_whole(whole.pixels):
        return constraints.nonnegative_integer if high > 1 else constraints.boolean
    return constraints.unit_interval if 0 <= low <= high <= 1 else constraints.real


def split_rows(total: int, valid: int | None, last: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are for training, for validation and for test; the generator is of this function alone.

    Arguments:
        total: How many rows there are.
        valid: How many are for validation, if not the usual part.
        last: How many of the last are for test; if none, a part of all.
    """
    generator = torch.Generator().manual_seed(SEED)
    if last:
        rest, test = torch.randperm(total - last, generator=generator), torch.arange(total)[-last:]
        usual = len(rest) // 6
    else:
        order, usual = torch.randperm(total, generator=generator), min(max(1, round(total / 10)), MOST)
        test, rest = order[:usual], order[usual:]
    held_out = usual if valid is None else valid
    if not 0 <= held_out < len(rest):
        raise ValueError(
            f"Expected valid of at least 0 and fewer than the {len(rest)} images that are not for test; got {held_out}."
        )
    return rest[held_out:], rest[:held_out], test
