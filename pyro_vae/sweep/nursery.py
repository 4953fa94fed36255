"""The nursery of a sweep: a process that imports the packages once, and starts the workers by forks.

:func:`main` reads JSON lines from its standard input: what the study is, and then each worker. It writes the events of
the workers, and the end of each worker, to its standard output, as JSON lines. When its input is closed, the workers
save their runs, and end.
"""

import gc
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from functools import partial
from io import FileIO
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

import torch

from pyro_vae.sweep.library import import_optuna
from pyro_vae.sweep.reading import read
from pyro_vae.sweep.study import MARK
from pyro_vae.sweep.worker import work

STDIN = 0
FORKS = sys.platform == "linux"  # the libraries of other systems may crash after a fork


def main() -> NoReturn:
    """Start a worker for each line, until the standard input is closed; without forks, be the only worker."""
    source, out = FileIO(STDIN, closefd=False), os.dup(1)
    os.dup2(2, 1)  # what the programs of the user print goes to the log
    sys.path.append(str(Path.cwd()))  # for the user's classes
    torch.set_num_threads(1)
    spec = json.loads(source.readline())
    spec |= {"folder": (folder := Path(spec["folder"])), "space": read(folder / MARK)}  # makes the parser, too
    gc.enable()
    if not FORKS:
        worker = json.loads(source.readline())
        sys.exit(work(spec | worker, partial(_tell, out, worker["worker"], None)))
    import_optuna().storages.RDBStorage("sqlite://").engine.dispose()  # makes the classes of the database
    gc.freeze()  # the workers share this memory
    life, held = os.pipe()  # life is readable when this process is dead
    workers: dict[int, tuple[int, Any]] = {}  # number and process, by sentinel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the workers, too
    signal.signal(signal.SIGTERM, partial(_terminate, workers))
    while True:
        ready = wait([STDIN, *workers])
        for sentinel in ready:
            if sentinel in workers:
                number, process = workers.pop(sentinel)
                process.join()
                _tell(out, number, None, {"event": "end", "code": process.exitcode})
        if STDIN not in ready:
            continue
        if not (line := source.readline()):
            break  # the process that started this one has stopped, or is dead
        worker = json.loads(line)
        tell = partial(_tell, out, worker["worker"], life)
        process = get_context("fork").Process(target=_be, args=(spec | worker, tell, held))
        process.start()
        workers[process.sentinel] = worker["worker"], process
    os.close(held)
    for _, process in workers.values():
        process.join()
    os._exit(0)  # without an end of the interpreter, which takes half a second


def _be(spec: dict[str, Any], tell: Callable[[dict[str, Any]], bool], held: int) -> NoReturn:
    """Be a worker, and end."""
    os.close(held)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(spec["log"], "a") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    sys.exit(work(spec, tell))


def _tell(out: int, worker: int, life: int | None, event: dict[str, Any]) -> bool:
    """Write an event in one piece; return whether the nursery, and the process that reads, are alive."""
    try:
        os.write(out, f"{json.dumps({'worker': worker, **event})}\n".encode())
    except OSError:
        return False
    return life is None or not select.select([life], [], [], 0)[0]


def _terminate(workers: dict[int, tuple[int, Any]], *_: Any) -> NoReturn:
    """End at once, with all workers."""
    for _number, process in workers.values():
        process.terminate()
    os._exit(128 + signal.SIGTERM)
