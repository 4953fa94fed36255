"""Files of a run: written whole or not at all, inside the run's directory, by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["hold", "inside", "replacing", "short", "write"]


def write(path: Path, content: str | bytes) -> None:
    """Write a file so that whoever opens it, at any moment and after any crash, finds the old one or the new one.

    Raises:
        OSError: If it cannot be written, as where the disk is full; the old one is then as it was.
    """
    with replacing(path, content):
        pass


@contextmanager
def replacing(path: Path, content: str | bytes) -> Iterator[None]:
    """As :func:`write`, with something to be done when the new file is on the disk and not yet in its place."""
    made = path.with_name(f".{path.name}.new")
    try:
        with made.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        yield
        os.replace(made, path)
        settle(path.parent)
    except OSError as error:
        with suppress(OSError):
            made.unlink()
        raise OSError(
            f"Expected to write {str(path)!r}; could not ({error.strerror or error}). What was there is as it was: "
            "make room, or see who may write there."
        ) from error


def settle(folder: Path) -> None:
    """Have a folder's list of files on the disk too, where the system does so."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def inside(run: str | Path, name: str) -> Path:
    """Return the path of a file of a run, which may be yet to be written.

    Raises:
        ValueError: If it is, or lies behind, a link that leads out of the run's directory.
    """
    path = Path(run) / name
    if not path.resolve().is_relative_to(Path(run).resolve()):
        raise ValueError(
            f"Expected the files of a run in its own directory; {str(path)!r} leads to {str(path.resolve())!r}. "
            "Put a copy in its place, if you trust it."
        )
    return path


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keep other processes from writing to a run for as long as this lasts, or this process does.

    Raises:
        ValueError: If another process is writing to it.
    """
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


def short(error: BaseException) -> str:
    """An error of another library's, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
