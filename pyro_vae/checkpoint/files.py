"""Files of a run: written whole or not at all, inside its directory, by one process at a time; and tensors in them."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["hold", "inside", "pack", "replacing", "short", "tensors_of", "unpack", "write"]


def write(path: Path, content: str | bytes) -> None:
    """Write a file so that whoever opens it, at any moment and after any crash, finds the old one or the new one."""
    with replacing(path, content):
        pass


@contextmanager
def replacing(path: Path, content: str | bytes) -> Iterator[None]:
    """As :func:`write`, with something to be done when the new file is on the disk and not yet in its place."""
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        yield
        os.replace(new, path)
        if os.name == "posix":  # the folder's list of files goes to the disk too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise OSError(
            f"Expected to write {str(path)!r}; could not ({error.strerror or error}). What was there is as it was: "
            "make room, or see who may write there."
        ) from error


def inside(run: str | Path, name: str) -> Path:
    """Return the path of a file of a run, no link out of its directory; it need not be there."""
    path = Path(run) / name
    if not path.resolve().is_relative_to(Path(run).resolve()):
        raise ValueError(
            f"Expected the files of a run in its own directory; {str(path)!r} leads to {str(path.resolve())!r}. "
            "Put a copy in its place, if you trust it."
        )
    return path


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keep other processes from writing to a run for as long as this lasts, or this process does."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    number = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which the system lets go if the process is killed
        except BlockingIOError as error:
            raise ValueError(
                f"Expected a run that no one else is writing to; another process is training into {str(run)!r}. "
                "Wait for it, or choose another --run_dir."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(number)


def pack(nest: Any) -> bytes:
    """Return a nest of dictionaries, lists, numbers, words and tensors as the bytes of a safetensors file.

    A tuple comes back as a list, numbers to the last bit, tensors on the CPU; a digest shows if the file was cut.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_plain(nest, "", tensors))
    return save(tensors, metadata={"nest": plain, "sha256": _digest(plain, tensors)})


def unpack(path: Path) -> Any:
    """Return the nest that :func:`pack` made a file of, or raise ValueError. Nothing in it is run."""
    tensors, metadata = tensors_of(path)
    try:
        plain = metadata["nest"]
        if _digest(plain, tensors) != metadata["sha256"]:
            raise ValueError("its content does not match its digest")
        return _nest(json.loads(plain), tensors)
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (RecursionError, TypeError) as error:
        raise ValueError(short(error)) from error


def tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and its metadata, or raise ValueError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(short(error)) from error


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


def short(error: BaseException) -> str:
    """An error of another library's, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
