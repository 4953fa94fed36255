"""Locks of the workers on this machine. The system releases the lock of a killed process."""

import os
import socket
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def worker_lock(folder: Path) -> Iterator[str]:
    """Hold the lock of a new worker as long as its process lives; yield the worker's name."""
    (folder / "workers").mkdir(exist_ok=True)
    path = folder / "workers" / f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
    new = path.with_suffix(".new")
    with new.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        new.rename(path)  # under its name it is always locked
        yield path.name


def is_free(path: Path) -> bool:
    """Return whether the worker of a lock on this machine is dead; False for a worker of another machine."""
    if not path.exists() or sys.platform == "win32":
        return False
    import fcntl

    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def remove_free(folder: Path, needed: Container[str | None]) -> None:
    """Remove the locks of dead workers on this machine, but for those in ``needed``."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix != ".new" and path.name not in needed and is_free(path):
            path.unlink(missing_ok=True)
