"""The arguments of a program as a :class:`Dataset`: tensors of as many rows, each as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.loading import split_rows, support_of
from pyro_vae.data.on_disk import survey

__all__ = ["from_columns"]


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
