"""The workers of a sweep on one machine: they start, train, tell what they do, and end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any, Self, cast

import torch
from tqdm.auto import tqdm

from pyro_vae import checkpoint
from pyro_vae.sweep.nursery import FORKS
from pyro_vae.sweep.study import Study
from pyro_vae.sweep.worker import work
from pyro_vae.words import nats

POLL = 0.5  # seconds between two looks at the workers
WAIT = 3.0  # seconds between two looks at the runs of other machines
# Without garbage collections, which take a quarter of the time of the imports.
NURSERY = "import gc; gc.disable(); from pyro_vae.sweep.nursery import main; main()"
CRASHES = 3  # workers in a row that end before they train


class Team:
    """The workers on this machine, with a bar for each.

    One process, the nursery, imports the packages and forks the workers. Where forks are not safe, each worker has a
    nursery and works in it.
    """

    def __init__(
        self, study: Study, spec: dict[str, Any], progress: bool, on_end: Callable[[dict[str, Any]], Any]
    ) -> None:
        self.study, self.spec, self.progress, self.on_end = study, spec, progress, on_end
        self.is_here = False  # whether this process trains
        self.events: Queue[tuple[Any, dict[str, Any]]] = Queue()
        self.nurseries: list[subprocess.Popen[bytes]] = []
        self.threads: list[Thread] = []
        self.alive: dict[int, subprocess.Popen[bytes]] = {}  # workers, with their nurseries
        self.bars: dict[int, Any] = {}
        self.idle: dict[int, int] = {}  # workers in a row that ended before they trained

    def work(self, workers: int) -> None:
        """Train until no trial waits or runs, here or on another machine; with 0 workers, train in this process."""
        (self.study.folder / "logs").mkdir(exist_ok=True)
        most, self.is_here, workers = self.spec["trials"], not workers, workers or 1
        while True:
            for i, process in [*self.alive.items()]:
                if process.poll() is not None:
                    self._check(i, process.returncode)
            if absent := [i for i in range(workers) if i not in self.alive]:
                self.study.revive()
                waiting, running = self.study.count("waiting"), self.study.count("running")
                new = self.study.has_new(most)
                for i in absent[: most if new else waiting]:
                    self._start(i)
                if len(absent) == workers and not (waiting or running or new):
                    return
                if self.is_here and (waiting or new):
                    continue  # they are trained
            with suppress(Empty):
                self._take(*self.events.get(timeout=WAIT if absent else POLL))

    def __enter__(self) -> Self:
        """Return the team."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the workers save their runs, and end."""
        for bar in self.bars.values():
            bar.close()
        for process in self.nurseries:
            with suppress(OSError):
                cast(IO[bytes], process.stdin).close()
        for process in self.nurseries:
            try:  # Ctrl-C reaches the workers, too; a second signal would stop them at once
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
        for thread in self.threads:
            thread.join()

    def _start(self, i: int) -> None:
        """Start worker ``i``, or be it."""
        seed = 1000 * len(self.study.jobs()) + i  # the same seed after a restart would repeat the first proposals
        worker = {"worker": i, "seed": seed, "log": str(self._log(i))}
        if self.is_here:
            return self._be(worker)
        place = self.nurseries[-1] if self.nurseries and FORKS else None
        if place is None or place.poll() is not None:
            place = self._open()
        self.alive[i] = place
        self._write(place, worker)
        return None

    def _be(self, worker: dict[str, Any]) -> None:
        """Train in this process, on one thread."""

        def tell(event: dict[str, Any]) -> bool:
            self._take(None, worker | event)
            return True

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if work(self.spec | worker, tell):
                raise KeyboardInterrupt
        finally:
            torch.set_num_threads(threads)

    def _open(self) -> subprocess.Popen[bytes]:
        """Start a nursery, and read the events of its workers."""
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with self._log(-1).open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", NURSERY],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=os.environ | one_thread,
            )  # fmt: skip
        self._write(process, {name: value for name, value in self.spec.items() if name != "space"})
        self.nurseries.append(process)
        self.threads.append(Thread(target=self._read, args=(process,), daemon=True))
        self.threads[-1].start()
        return process

    def _write(self, process: Any, line: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # the nursery has died
            process.stdin.write(f"{json.dumps(line, default=str)}\n".encode())
            process.stdin.flush()  # stays open: the workers stop when it is closed

    def _read(self, process: Any) -> None:
        with process.stdin, process.stdout:
            for line in process.stdout:
                with suppress(ValueError):  # a line that a killed worker has not finished
                    self.events.put((process, json.loads(line)))

    def _log(self, i: int) -> Path:
        return self.study.folder / "logs" / (f"worker-{i + 1}.txt" if i >= 0 else "workers.txt")

    def _check(self, i: int, code: int) -> None:
        """Raise an error if several workers in a row have ended before they trained."""
        del self.alive[i]
        if code not in (0, 130):
            self.idle[i] = self.idle.get(i, 0) + 1
            if self.idle[i] == CRASHES:
                logs = [path for path in (self._log(i), self._log(-1)) if path.exists() and path.stat().st_size]
                last = logs[0].read_text(errors="replace").strip().rpartition("\n")[2] if logs else "nothing was logged"
                raise OSError(
                    f"Expected workers that train; {CRASHES} ended at once, with exit code {code} ({last}). "
                    f"See {checkpoint.display_path(logs[0] if logs else self._log(i))}."
                )

    def _take(self, process: Any, event: dict[str, Any]) -> None:
        """Show an event of a worker: an epoch in its bar, the end of a run in a line."""
        i = event["worker"]
        if event["event"] == "end":
            return self._check(i, event["code"]) if self.alive.get(i) is process else None
        self.idle[i] = 0
        if i not in self.bars:
            options = {"position": i, "leave": False, "unit": " epochs", "disable": None if self.progress else True}
            self.bars[i] = tqdm(**options)
        bar = self.bars[i]
        if event["event"] == "run":
            bar.reset(event["epochs"])
            bar.set_description(f"worker {i + 1}, {event['run']}")
        elif event["event"] == "epoch":
            bar.update(event["epoch"] - bar.n)
            bar.set_postfix_str(f"valid ELBO {nats(-event['value'])}")
        else:
            self.on_end(event)
        return None
