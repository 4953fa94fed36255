"""What is checked before training begins, and said in a sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.data import Dataset, from_columns, from_tensor
from pyro_vae.program import argument_names, own_rows

__all__ = ["check_batches", "check_device", "check_differ", "check_program", "check_support", "dataset_of", "hook"]


def hook(program: Any, name: str) -> Callable[..., Any] | None:
    """Return a program's method of a name, or None if it has none; something else of that name is none."""
    method = getattr(program, name, None)
    return method if inspect.ismethod(method) else None


def check_program(program: Any) -> None:
    """Refuse a program that is no module with two Pyro programs."""
    absent = [f"no {name}" for name in ("model", "guide") if not callable(getattr(program, name, None))]
    if absent := absent or ([] if isinstance(program, nn.Module) else ["no nn.Module under it"]):
        raise ValueError(
            f"Expected a program: an nn.Module with methods model and guide; {type(program).__name__} has {absent[0]}."
        )


def dataset_of(program: Any, data: Any) -> Dataset:
    """Return a Dataset, a tensor, or a program's arguments in a tuple or by name, as three splits of all arguments."""
    names, columns = argument_names(program), {}
    data = torch.as_tensor(data) if hasattr(data, "__array__") else data
    if isinstance(data, Tensor):
        # Bytes are images to a program that checks images, and numbers to any other.
        data = from_tensor(data) if hook(program, "check_dataset") else from_columns({"x": data})
    elif isinstance(data, Mapping):
        columns = dict(data)
    elif isinstance(data, tuple | list):
        labels = [*names, *(f"argument {i + 1}" for i in range(len(names), len(data)))]
        columns = dict(zip(labels, data, strict=False))
    elif not isinstance(data, Dataset):
        raise ValueError(f"Expected a Dataset, a tensor, or tensors by name; got {type(data).__name__}.")
    names = names or dict.fromkeys(columns, True)
    first, *rest = names or ["x"]
    if first in columns:
        data = from_columns({name: columns[name] for name in (*names, *columns) if name in columns})
    known = data.train.columns if isinstance(data, Dataset) else {}
    served = [*takewhile(known.__contains__, rest)]
    lacks = any(names[name] and name not in served for name in rest)
    if lacks or not isinstance(data, Dataset) or (columns and {*columns} != {first, *served}):
        got = ", ".join(columns or [first, *known])
        raise ValueError(f"Expected data by the names of the model's arguments, {', '.join(names)}; got {got}.")
    return replace(data, **{name: getattr(data, name).with_columns(served) for name in ("train", "valid", "test")})


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use, as where there is no GPU."""
    try:
        torch.zeros(1, device=device).item()  # which 'meta' has not
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"Expected a device that torch can use, as 'cpu'; got device = {device!r}.") from error


def check_batches(program: Any, dataset: Dataset, size: int) -> None:
    """Refuse batches and rows held out for an autoguide with parameters for each row, which needs all at once."""
    if (rows := own_rows(program)) and (size < len(dataset.train) or len(dataset.valid)):
        raise ValueError(
            "Expected one batch of all rows and none held out, as an autoguide has parameters for each row; got "
            f"batch_size = {rows}, {len(dataset.train)} rows and {len(dataset.valid)} held out. Use "
            "data.from_columns(..., valid=0), and a new guide."
        )


def check_differ(dataset: Dataset) -> None:
    """Refuse images that are all the same; of images with missing pixels, what is missing may differ."""
    train = dataset.train
    if len(train) < 2 or train.mask is not None or train.extra:
        return
    first = train.pixels[:1]
    if all(bool((train.pixels[i : i + 32] == first).all()) for i in range(0, len(train), 32)):
        raise ValueError(
            f"Expected images that differ; all {len(train):,} for training in {dataset.config['data']!r} are the same. "
            "Look at how they were written, or at binarize."
        )


def check_support(program: Any, dataset: Dataset, strict: bool = False) -> None:
    """Refuse an x that a program cannot see, where it says what it can see: :meth:`pyro_vae.VAE.check_dataset`."""
    if check := hook(program, "check_dataset"):
        check(dataset, strict)
