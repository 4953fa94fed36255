"""The nursery of a sweep: a process that imports the packages once, and starts the workers by forks.

:func:`main` reads a description of the study, and then of each worker, from its standard input. It writes the events of
the workers to its standard output, a line of JSON each, and the end of each worker. When its input is closed, the
workers save their runs, and end.
"""

import gc
import json
import os
import pickle
import select
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from pyro_vae.sweep.library import import_optuna
from pyro_vae.sweep.reading import parsed
from pyro_vae.sweep.worker import work

FORKS = sys.platform == "linux"  # the libraries of other systems may crash after a fork


def main() -> NoReturn:
    """Start a worker for each description, until the standard input is closed; without forks, be the only worker."""
    source, out = sys.stdin.buffer, os.dup(1)
    os.dup2(2, 1)  # what the programs of the user print goes to the log
    sys.path.append(str(Path.cwd()))  # for the user's classes
    torch.set_num_threads(1)
    spec = pickle.load(source)
    if not FORKS:
        gc.enable()
        worker = pickle.load(source)
        sys.exit(work(spec | worker, partial(_tell, out, worker["worker"], None)))
    _warm_up()
    gc.freeze()  # the workers share this memory
    gc.enable()
    workers: dict[int, int] = {}
    life, held = os.pipe()  # readable when this process is dead
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the workers, too
    signal.signal(signal.SIGTERM, partial(_terminate, workers))
    signal.signal(signal.SIGCHLD, partial(_reap, out, workers))
    while True:
        try:
            worker = pickle.load(source)
        except (EOFError, pickle.UnpicklingError):  # the process that started this one has stopped, or is dead
            break
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        if not (pid := os.fork()):
            os.close(held)
            _be(spec | worker, partial(_tell, out, worker["worker"], life))
        workers[pid] = worker["worker"]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.close(held)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in [*workers]:
        os.waitpid(pid, 0)
    os._exit(0)  # without an end of the interpreter, which takes half a second


def _warm_up() -> None:
    """Make what all workers need: the classes of the database, and the parser of options."""
    import_optuna().storages.RDBStorage("sqlite://").engine.dispose()
    parsed({})


def _be(spec: dict[str, Any], tell: Any) -> NoReturn:
    """Be a worker, and end."""
    code = 1
    try:
        for name in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(name, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        with spec["log"].open("a") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
        code = work(spec, tell)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)  # without what the nursery does at its end


def _tell(out: int, worker: int, life: int | None, event: dict[str, Any]) -> bool:
    """Write an event in one piece; return whether the nursery, and the process that reads, are alive."""
    try:
        os.write(out, f"{json.dumps({'worker': worker, **event})}\n".encode())
    except OSError:
        return False
    return life is None or not select.select([life], [], [], 0)[0]


def _reap(out: int, workers: dict[int, int], *_: Any) -> None:
    """Tell the end of each worker that has ended."""
    for pid in [*workers]:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _tell(out, workers.pop(pid), None, {"event": "end", "code": os.waitstatus_to_exitcode(status)})


def _terminate(workers: dict[int, int], *_: Any) -> NoReturn:
    """End at once, with all workers."""
    for pid in [*workers]:
        os.kill(pid, signal.SIGTERM)
    os._exit(128 + signal.SIGTERM)
