"""A program's arguments: their names, and data as users give them."""

import inspect
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.data.arrays import tensor_of
from pyro_vae.seeds import modules_of


def argument_names(program: Any) -> dict[str, bool]:
    """Return the names of a program's arguments, and whether each must be given."""
    parameters = inspect.signature(program.model).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {one.name: one.default is one.empty for one in parameters if one.kind in kinds}


def point_of(program: Any) -> Tensor:
    """Return a tensor of a program's own, whose dtype and device its data are given."""
    tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules_of(program))
    own = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if own is None:
        own = next((value for _, value in pyro.get_param_store().named_parameters()), torch.zeros(()))
    return own


def arguments(program: Any, data: Any) -> tuple[Tensor, ...]:
    """Return the data as the arguments of a program: floats in its dtype, on its device.

    Whole numbers and booleans stay as they are, for they may be labels, lengths or masks; but x, the first argument of
    a program that has a method ``check_data``, as a VAE, becomes floats too.

    Arguments:
        program: A program.
        data: A tensor or an array, a tuple of the arguments, or a dictionary of them by name.

    Raises:
        ValueError: If an argument is missing, unknown or complex, or they are of different numbers of rows, or of none.
    """
    names = argument_names(program)
    if isinstance(data, Mapping):
        first = [*names][: len(data)]
        if {*first} != {*data} or len(first) < sum(names.values()):
            raise ValueError(
                f"Expected data by the names of the model's arguments, from the first on: {', '.join(names)}; got "
                f"{', '.join(map(str, data))}."
            )
        data = tuple(data[name] for name in first)
    data = data if isinstance(data, tuple | list) else (data,)
    if names and not sum(names.values()) <= len(data) <= len(names):
        raise ValueError(f"Expected data for the model's arguments, {', '.join(names)}; got {len(data)} of them.")
    tensors = [tensor_of(column, name) for name, column in zip(chain(names, repeat("data")), data, strict=False)]
    sizes = {len(column) if column.dim() else 0 for column in tensors}
    if sizes == {0}:
        raise ValueError("Expected at least 1 image; got none.")
    if len(sizes) != 1 or any(column.is_complex() for column in tensors):
        shapes = ", ".join(f"{tuple(column.shape)} of {column.dtype}" for column in tensors)
        raise ValueError(f"Expected real arguments with as many rows each; got {shapes}.")
    point, floats = point_of(program), hasattr(program, "check_data")  # x, its first argument
    return tuple(
        # In one piece, since the last bit of a product depends on how its factors lie.
        column.to(point.device, point.dtype if column.is_floating_point() or (floats and not i) else None).contiguous()
        for i, column in enumerate(tensors)
    )
