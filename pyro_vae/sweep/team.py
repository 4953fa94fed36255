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

from tqdm.auto import tqdm

from pyro_vae import checkpoint
from pyro_vae.sweep.study import Study
from pyro_vae.words import nats

POLL = 0.5  # seconds between two looks at the workers
WAIT = 3.0  # seconds between two looks at the runs of other machines
CRASHES = 3  # workers in a row that end before they train


class Team:
    """The workers on this machine, with a bar for each."""

    def __init__(
        self, study: Study, spec: dict[str, Any], progress: bool, on_end: Callable[[dict[str, Any]], Any]
    ) -> None:
        self.study, self.spec, self.progress, self.on_end = study, spec, progress, on_end
        self.events: Queue[tuple[int, dict[str, Any]]] = Queue()
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.threads: dict[int, Thread] = {}
        self.bars: dict[int, Any] = {}
        self.idle: dict[int, int] = {}  # workers in a row that ended before they trained

    def work(self, workers: int) -> None:
        """Train until no trial waits or runs, here or on another machine."""
        (self.study.folder / "logs").mkdir(exist_ok=True)
        while True:
            ended = [i for i in range(workers) if i not in self.processes or self.processes[i].poll() is not None]
            for i in ended:
                self._check(i)
            if ended:
                self.study.revive()
                waiting, running = self.study.open_trials()
                new = self.study.has_new(self.spec["trials"])
                for i in ended[: (self.spec["trials"] or 0) if new else waiting]:
                    self._start(i)
                if len(ended) == workers and not (waiting or running or new):
                    return
            with suppress(Empty):
                self._show(*self.events.get(timeout=WAIT if ended else POLL))

    def __enter__(self) -> Self:
        """Return the team."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the workers save their runs, and end."""
        for bar in self.bars.values():
            bar.close()
        for process in self.processes.values():
            with suppress(OSError):
                cast(IO[str], process.stdin).close()
        for process in self.processes.values():
            try:  # Ctrl-C reaches the workers, too; a second signal would stop them at once
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
        for thread in self.threads.values():
            thread.join()

    def _start(self, i: int) -> None:
        """Start worker ``i``, and read its events."""
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with self._log(i).open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pyro_vae.sweep.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | one_thread,
            )  # fmt: skip
        seed = 1000 * len(self.study.trials()) + i  # the same seed after a restart would repeat the first proposals
        spec = json.dumps(self.spec | {"seed": seed})
        self.threads[i] = Thread(target=self._talk, args=(i, process, spec), daemon=True)
        self.threads[i].start()
        self.processes[i] = process

    def _talk(self, i: int, process: Any, spec: str) -> None:
        with suppress(BrokenPipeError):  # the worker has died
            process.stdin.write(f"{spec}\n")
            process.stdin.flush()  # stays open: a worker stops when it is closed
        with process.stdin, process.stdout:
            for line in process.stdout:
                with suppress(ValueError):  # a line that a killed worker has not finished
                    self.events.put((i, json.loads(line)))

    def _log(self, i: int) -> Path:
        return self.study.folder / "logs" / f"worker-{i + 1}.txt"

    def _check(self, i: int) -> None:
        """Raise an error if several workers in a row have ended before they trained."""
        if i in self.processes and (code := self.processes.pop(i).returncode) not in (0, 130):
            self.idle[i] = self.idle.get(i, 0) + 1
            if self.idle[i] == CRASHES:
                last = self._log(i).read_text(errors="replace").strip().rpartition("\n")[2]
                log = checkpoint.display_path(self._log(i))
                raise OSError(
                    f"Expected workers that train; {CRASHES} ended at once, with exit code {code} ({last}). See {log}."
                )

    def _show(self, i: int, event: dict[str, Any]) -> None:
        """Show an event of worker ``i``: an epoch in its bar, the end of a run in a line."""
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
