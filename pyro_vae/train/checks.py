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
    found = getattr(program, name, None)
    return found if inspect.ismethod(found) else None


def check_program(program: Any) -> None:
    """Check that a program is a module with two Pyro programs.

    Raises:
        ValueError: If it is not.
    """
    absent = [f"no {name}" for name in ("model", "guide") if not callable(getattr(program, name, None))]
    if absent := absent or ([] if isinstance(program, nn.Module) else ["no nn.Module under it"]):
        raise ValueError(
            f"Expected a program: an nn.Module with methods model and guide; {type(program).__name__} has {absent[0]}."
        )


def dataset_of(program: Any, data: Any) -> Dataset:
    """Return data as three splits of what the program is given, x and columns by the names of its arguments.

    Arguments:
        program: A program.
        data: A :class:`Dataset`; a tensor; or the program's arguments, as a tuple or by name.

    Raises:
        ValueError: If an argument is missing or unknown.
    """
    names, given = argument_names(program), None
    data = torch.as_tensor(data) if hasattr(data, "__array__") else data
    if isinstance(data, Tensor):
        # Bytes are images to a program that checks images, and numbers to any other.
        data = from_tensor(data) if hook(program, "check_dataset") else from_columns({"x": data})
    elif not isinstance(data, Dataset | Mapping | tuple | list):
        raise ValueError(f"Expected a Dataset, a tensor, or tensors by name; got {type(data).__name__}.")
    elif not isinstance(data, Dataset):
        columns = dict(data) if isinstance(data, Mapping) else {}
        if not isinstance(data, Mapping):
            labels = [*names, *(f"argument {i + 1}" for i in range(len(names), len(data)))]
            columns = dict(zip(labels, data, strict=False))
        names, given = names or dict.fromkeys(columns, True), [*columns]
        if next(iter(names)) in columns:
            data = from_columns({name: columns[name] for name in (*names, *columns) if name in columns})
    first, *rest = names or ["x"]
    known = data.train.columns if isinstance(data, Dataset) else {}
    served = [*takewhile(known.__contains__, rest)]
    lacks = any(names[name] and name not in served for name in rest)
    if lacks or not isinstance(data, Dataset) or (given and {*given} != {first, *served}):
        got = ", ".join(given or [first, *known])
        raise ValueError(f"Expected data by the names of the model's arguments, {', '.join(names)}; got {got}.")
    return replace(data, **{name: getattr(data, name).with_columns(served) for name in ("train", "valid", "test")})


def check_device(device: str) -> None:
    """Check that torch can use a device.

    Raises:
        ValueError: If it cannot, as where there is no GPU.
    """
    try:
        torch.zeros(1, device=device).item()  # which 'meta' has not
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"Expected a device that torch can use, as 'cpu'; got device = {device!r}.") from error


def check_batches(program: Any, dataset: Dataset, size: int) -> None:
    """Check that an autoguide with parameters for each row is given all rows at once, and no others.

    Raises:
        ValueError: If it is not.
    """
    if (rows := own_rows(program)) and (size < len(dataset.train) or len(dataset.valid)):
        raise ValueError(
            "Expected one batch of all rows and none held out, as an autoguide has parameters for each row; got "
            f"batch_size = {rows}, {len(dataset.train)} rows and {len(dataset.valid)} held out. Use "
            "data.from_columns(..., valid=0), and a new guide."
        )


def check_differ(dataset: Dataset) -> None:
    """Check that there is something to learn; of images with missing pixels, what is missing may differ.

    Raises:
        ValueError: If all training images are the same.
    """
    train = dataset.train
    first = train.pixels[:1]
    same = all(bool((train.pixels[i : i + 32] == first).all()) for i in range(0, len(train), 32))
    if same and len(train) > 1 and train.mask is None and not train.extra:
        raise ValueError(
            f"Expected images that differ; all {len(train):,} for training in {dataset.config['data']!r} are the same. "
            "Look at how they were written, or at binarize."
        )


def check_support(program: Any, dataset: Dataset, strict: bool = False) -> None:
    """Check that a program can see every x, where it says what it can see: :meth:`pyro_vae.VAE.check_dataset`.

    Raises:
        ValueError: If it cannot.
    """
    if check := hook(program, "check_dataset"):
        check(dataset, strict)
