"""Files of a run: written whole or not at all, inside its directory, by one process at a time; and tensors in them."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["hold", "inside", "pack", "short", "shown", "tensors_of", "unpack", "write", "write_all"]

TEMPORARY = f".*.{'[0-9a-f]' * 16}.new"  # files that are not whole yet; a name that nobody else can guess


def write(path: Path, content: str | bytes, keep: Path | None = None) -> None:
    """Write a file that whoever opens finds old or new, even after a crash; the old one goes to ``keep``, if given."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with new.open("xb") as file:  # a new file, and no link that somebody put there
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
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
        advice = "The files from before are unchanged: free some space, or check who may write there."
        if not path.parent.is_dir():
            advice = "Its folder was moved or removed: put it back, and go on with the run by --resume."
        raise OSError(f"Expected to write {shown(path)!r}; could not ({error.strerror or error}). {advice}") from error


def write_all(run: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files of a run by their names, each that can be written; raise OSError for the others at the end."""
    errors: dict[str, Exception] = {}
    for name, content in files.items():
        try:
            inside(run, name).parent.mkdir(exist_ok=True)
            write(inside(run, name), content)
        except (OSError, ValueError) as error:
            errors[name] = error
    for first in errors.values():  # which speaks for all
        failed = f"Expected to write {', '.join(errors)} in {shown(run)!r}"
        raise OSError(f"{failed}; could not ({short(first)}).") from first


def inside(run: str | Path, name: str) -> Path:
    """Return the path of a file of a run, no link out of its directory; it need not be there."""
    path = Path(run) / name
    end = os.path.realpath(path)  # of a link to itself too, where Path.resolve fails
    if not Path(end).is_relative_to(os.path.realpath(run)):
        raise ValueError(
            f"Expected the files of a run in its own directory; {shown(path)!r} leads to {end!r}. "
            "Put a copy in its place, if you trust it."
        )
    return path


def shown(path: Path) -> str:
    """Write a path as it is seen from the folder one is in, where it lies below that."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def hold(run: Path) -> Iterator[Callable[[], Path]]:
    """Keep other processes from writing to a run; yield a function that says where it is, also if it was renamed."""
    run = run.absolute()
    try:
        import fcntl
    except ImportError:  # Windows
        yield lambda: run
        return
    number = os.open(run, os.O_RDONLY)

    def place() -> Path:
        now = Path(f"/proc/self/fd/{number}").resolve()  # on Linux
        return now if now.is_dir() and now != run.resolve() else run

    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which the system lets go if the process is killed
        except BlockingIOError as error:
            raise ValueError(
                f"Expected a run that no one else is writing to; another process is training into {shown(run)!r}. "
                "Wait for it, or choose another --run_dir."
            ) from error
        except OSError:  # a file system without locks
            pass
        for left in (*run.glob(TEMPORARY), *inside(run, "checkpoint").glob(TEMPORARY)):  # by a process that was killed
            left.unlink()
        yield place
    finally:
        os.close(number)


def pack(nest: Any) -> bytes:
    """Return a nest of dictionaries, lists, numbers to the last bit, words and tensors as bytes of a safetensors file.

    A tuple comes back as a list, tensors on the CPU; a digest shows if the file was cut.
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
        return json.loads(
            plain, object_hook=lambda item: tensors[item["tensor"]] if "tensor" in item else dict(item["pairs"])
        )
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (RecursionError, TypeError) as error:
        raise ValueError(short(error)) from error


def tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and its metadata, or raise ValueError."""
    try:
        if not path.is_file():
            raise OSError("there is no such file")
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
