"""Files of a run: atomic writes into the run directory by one process at a time, and serialization of tensors."""

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
from torch import Tensor, nn

__all__ = ["deserialize", "digest", "display_path", "load_tensors", "lock", "one_line", "safe_path", "serialize"]
__all__ += ["write", "write_all"]

TEMPORARY = f".*.{'[0-9a-f]' * 16}.new"  # unfinished files; the digits are random, so that nobody can guess the name


def write(path: Path, content: str | bytes, keep: Path | None = None) -> None:
    """Write a file atomically: even after a crash, the file is old or new. Move the old file to ``keep``."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with new.open("xb") as file:  # "x" follows no link that somebody put there
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(new, path)
        if os.name == "posix":  # write the directory to the disk, too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        advice = "Existing files are unchanged. Free disk space, or check the permissions."
        if not path.parent.is_dir():
            advice = "Its folder was moved or removed. Put it back, and resume the run with --resume."
        raise OSError(f"Could not write {display_path(path)!r} ({error.strerror or error}). {advice}") from error


def write_all(run: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files by name into a run directory; after all writes, raise OSError if a write has failed."""
    errors: dict[str, Exception] = {}
    for name, content in files.items():
        try:
            safe_path(run, name).parent.mkdir(exist_ok=True)
            write(safe_path(run, name), content)
        except (OSError, ValueError) as error:
            errors[name] = error
    for first in errors.values():
        message = f"Could not write {', '.join(errors)} in {display_path(run)!r} ({one_line(first)})."
        raise OSError(message) from first


def safe_path(run: str | Path, name: str) -> Path:
    """Return the path of a new or existing file of a run; refuse a link that leads out of the run directory."""
    path = Path(run) / name
    target = os.path.realpath(path)  # works for a link to itself, where Path.resolve fails
    if not Path(target).is_relative_to(os.path.realpath(run)):
        raise ValueError(
            f"Expected a file inside the run directory; {display_path(path)!r} leads to {target!r}. "
            "If you trust it, put a copy in its place."
        )
    return path


def display_path(path: Path) -> str:
    """Return a path as text; a path inside the current directory becomes relative."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def lock(run: Path) -> Iterator[Callable[[], Path]]:
    """Keep other processes from writing to a run; yield a function that returns the run's path, even after a rename."""
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
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it if the process is killed
        except BlockingIOError as error:
            raise ValueError(
                f"Expected a run without another writer; another process is training into {display_path(run)!r}. "
                "Wait for it, or choose another --run_dir."
            ) from error
        except OSError:  # a file system without locks
            pass
        for file in (*run.glob(TEMPORARY), *safe_path(run, "checkpoint").glob(TEMPORARY)):  # of a killed process
            file.unlink()
        yield place
    finally:
        os.close(number)


def serialize(nest: Any) -> bytes:
    """Return nested dictionaries, lists, numbers, strings and tensors as the bytes of a safetensors file.

    The file keeps exact numbers. :func:`deserialize` returns tuples as lists, and tensors on the CPU; a SHA-256 digest
    detects a truncated file.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_plain(nest, "", tensors))
    return save(tensors, metadata={"nest": plain, "sha256": _digest(plain, tensors)})


def deserialize(path: Path) -> Any:
    """Return the data that :func:`serialize` wrote to a file, or raise ValueError. Execute no content of the file."""
    tensors, metadata = load_tensors(path)
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
        raise ValueError(one_line(error)) from error


def digest(program: nn.Module) -> str:
    """Return a hash of the names and the values of all weights of a program."""
    state = {name: value.detach().cpu() for name, value in program.state_dict().items()}
    return _digest("", {name: value for name, value in state.items() if isinstance(value, Tensor)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, or raise ValueError."""
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(one_line(error)) from error


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return a nest as JSON data, and put its tensors into a dictionary by their paths."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, dict):  # pairs, since keys in JSON are strings, but integers in an optimizer's state
        return {"pairs": [[key, _plain(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _digest(plain: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(plain.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
