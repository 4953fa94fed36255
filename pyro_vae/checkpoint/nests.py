"""Nests of dictionaries, lists, numbers, words and tensors as one safetensors file, which shows if it was cut."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_vae.checkpoint.files import short

__all__ = ["clone", "pack", "unpack"]


def pack(nest: Any) -> bytes:
    """Return a nest as the bytes of a safetensors file: tensors by their path in it, the rest JSON in the metadata.

    A tuple comes back as a list. Numbers come back to the last bit, tensors on the CPU.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_plain(nest, "", tensors))
    return save(tensors, metadata={"nest": plain, "sha256": _digest(plain, tensors)})


def unpack(path: Path) -> Any:
    """Return the nest that :func:`pack` made a file of. Nothing in it is run.

    Raises:
        ValueError: If the file is not one, or not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        plain = metadata["nest"]
        if _digest(plain, tensors) != metadata["sha256"]:
            raise ValueError("it is not as it was written")
        return _nest(json.loads(plain), tensors)
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (SafetensorError, OSError, RecursionError, TypeError) as error:
        raise ValueError(short(error)) from error


def clone(nest: Any) -> Any:
    """Return a nest with copies of its tensors, which stay as they are while training goes on."""
    if isinstance(nest, Tensor):
        return nest.detach().clone()
    if isinstance(nest, dict):
        return {key: clone(value) for key, value in nest.items()}
    return [clone(value) for value in nest] if isinstance(nest, list | tuple) else nest


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, dict):  # in pairs, since a key of JSON is a word and an optimizer's is a number
        return {"pairs": [[key, _plain(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _nest(plain: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(plain, list):
        return [_nest(item, tensors) for item in plain]
    if isinstance(plain, dict):
        if "tensor" in plain:
            return tensors[plain["tensor"]]
        return {key: _nest(item, tensors) for key, item in plain["pairs"]}
    return plain


def _digest(plain: str, tensors: dict[str, Tensor]) -> str:
    seen = hashlib.sha256(plain.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        seen.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return seen.hexdigest()
