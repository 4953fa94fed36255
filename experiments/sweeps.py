"""Sweeps that are killed: is each run trained once, and is it the run by itself?

The script trains the grid of ``GRID`` with ``pyro-vae sweep``, kills all its processes, or one worker, with SIGKILL at
random moments, and repeats the command until the sweep ends. It then trains each run by itself, with ``fit`` on one
thread, and compares the weights, ``metrics.csv`` and ``config.yaml``, byte by byte. A second sweep without kills tells
the overhead: its CPU time, with its imports and its database, over the CPU time of its calls of ``fit``.

The last row is of two machines that share a PostgreSQL database, each with one worker and a study directory. One is
killed after its first run. Needs PostgreSQL (Debian: ``apt-get install postgresql``) and psycopg2, and leaves out the
row if one is absent.
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from common import command, write_table
from timing import cpu_name
from tqdm.auto import tqdm

from pyro_vae import fit
from pyro_vae.options import dataset_of, fit_arguments, program_of
from pyro_vae.sweep.reading import parsed, read
from pyro_vae.sweep.running import records
from pyro_vae.sweep.study import Study

FILES = ("model.safetensors", "metrics.csv", "config.yaml")
GRID: dict[str, Any] = {
    "latent": [2, 4, 8, 16],
    "prior": ["StandardNormal", {"class_path": "Flow", "init_args": {"layers": 2}}, "VampPrior"],
    "lr": {"low": 1e-3, "high": 3e-3, "number": 2},
}


def main(
    kills: int = 5,
    epochs: int = 60,
    seeds: int = 3,
    workers: int = 2,
    latent: Sequence[int] = (2, 4, 8, 16),
    postgres: bool = True,
    seed: int = 0,
    out: str = "experiments/results",
) -> None:
    """Kill sweeps, and compare their runs with the runs by themselves.

    Args:
        kills: Number of kills of the first sweep.
        epochs: Epochs of a run.
        seeds: Seeds of each setting; a setting is one of the latent dimensions, 3 priors and 2 learning rates.
        workers: Number of workers.
        latent: Latent dimensions.
        postgres: Whether to measure two machines with a PostgreSQL database, if there is one.
        seed: Seed of the moments of the kills.
        out: Folder for the results.
    """
    generator = random.Random(seed)
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "grid.yaml"
        file.write_text(yaml.safe_dump(GRID | {"epochs": epochs, "seeds": seeds, "latent": [*latent]}))
        total = len(read(file).grid()) * seeds
        whole, killed = folder / "whole", folder / "killed"
        before = _cpu_of_children()
        _start(file, whole, workers).wait()
        of_sweep = _cpu_of_children() - before
        logs = "".join(path.read_text() for path in (whole / "logs").iterdir())
        of_fits = sum(map(float, re.findall(r": ([\d.]+) CPU seconds of fit", logs)))
        alone = _train_alone(whole, workers)
        rows = [_row("one machine", whole, alone, 0, of_sweep / of_fits - 1)]
        if kills:
            deaths = _killed(file, killed, workers, kills, of_sweep / workers / (kills + 1), generator)
            rows.append(_row("one machine", killed, alone, deaths, None))
        if postgres and (server := _postgres_folder()):
            with _database(folder / "database", server) as url:
                first, second = folder / "first" / "shared", folder / "second" / "shared"
                processes = [_start(file, study, 1, url) for study in (first, second)]
                while processes[1].poll() is None and not [*(second / "runs").glob("*/model.safetensors")]:
                    time.sleep(0.2)
                with suppress(ProcessLookupError):
                    os.killpg(processes[1].pid, signal.SIGKILL)
                for process in processes:
                    process.wait()
                rows.append(_row("two machines, PostgreSQL", first, alone, 1, None, url))
    caption = (
        f"{total} runs of the digits, {epochs} epochs each; {workers} workers, and one on each of two machines. "
        "Identical: runs whose weights, metrics.csv and config.yaml equal the run by itself, byte for byte; of two "
        "machines, the runs on the one that lives. Overhead: CPU time beside the calls of fit, which took "
        f"{of_fits / total:.1f} s a run. {cpu_name()}."
    )
    write_table(rows, Path(out) / "sweeps", caption)


def _row(name: str, study: Path, alone: Path, kills: int, overhead: float | None, url: str | None = None) -> dict:
    """Compare the runs of a study with the runs by themselves."""
    opened = Study(study, url, "grid", read(study / "sweep.yaml"))
    trials = Counter(
        (trial.user_attrs["number"], trial.user_attrs["seeds"][0])
        for trial in opened.study.get_trials(deepcopy=False)
        if trial.state.name == "COMPLETE"
    )
    runs = records(opened)
    here = [study / "runs" / run["run"] for run in runs if (study / "runs" / run["run"] / FILES[0]).exists()]
    same = sum(
        all((run / name).read_bytes() == (alone / run.name / name).read_bytes() for name in FILES) for run in here
    )
    return {
        "sweep": name,
        "kills": kills,
        "runs": len(runs),
        "complete once": sum(number == 1 for number in trials.values()),
        "complete twice": sum(number > 1 for number in trials.values()),
        "here": len(here),
        "identical": same,
        "overhead": "-" if overhead is None else overhead,
    }


def _start(file: Path, study: Path, workers: int, url: str | None = None) -> subprocess.Popen:
    words = [sys.executable, "-m", "pyro_vae", "sweep", str(file), "--study_dir", str(study), "--workers", str(workers)]
    storage = ["--storage", url] if url else []
    return subprocess.Popen([*words, *storage], start_new_session=True, stdout=subprocess.DEVNULL)


def _killed(file: Path, study: Path, workers: int, kills: int, seconds: float, generator: random.Random) -> int:
    """Kill a sweep at random moments, all of it or one worker in turn, and repeat it; return the number of kills."""
    deaths = 0
    for i in tqdm(range(kills), unit=" kills"):
        process = _start(file, study, workers)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds * generator.uniform(0.5, 1.5))
            return deaths
        workers_now = [worker for nursery in _children(process.pid) for worker in _children(nursery)]
        if i % 2 and workers_now:
            os.kill(generator.choice(workers_now), signal.SIGKILL)
            deaths += 1
            time.sleep(seconds / 4)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deaths += 1
    _start(file, study, workers).wait()
    return deaths


def _children(pid: int) -> list[int]:
    return [*map(int, subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split())]


def _train_alone(study: Path, workers: int) -> Path:
    """Train each run of a study by itself; return their folder."""
    folder = study.parent / "alone"
    jobs = [(run, folder / run.name) for run in sorted((study / "runs").iterdir())]
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(_fit, *zip(*jobs, strict=True)))
    return folder


def _fit(run: Path, folder: Path) -> None:
    options = parsed(yaml.safe_load((run / "config.yaml").read_text()))
    dataset = dataset_of(options)
    program = program_of(options, dataset)
    fit(program, dataset, progress=False, **(fit_arguments(options) | {"run_dir": folder}))


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _postgres_folder() -> Path | None:
    """Return the folder of PostgreSQL's programs; None if it or psycopg2 is not installed."""
    places = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    programs = [Path(place).resolve().parent for place in places if place]
    return programs[-1] if programs and find_spec("psycopg2") else None


@contextmanager
def _database(folder: Path, programs: Path) -> Iterator[str]:
    """Run a PostgreSQL server on a socket in a folder; yield its URL."""
    folder.mkdir()
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # the server refuses root
        for path in (folder.parent, folder):
            path.chmod(0o755)
        shutil.chown(folder, "postgres")
        user = {"user": "postgres"}
    data = folder / "data"
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": folder} | user
    subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "me"], check=True, **options)
    words = [str(programs / "postgres"), "-D", str(data), "-k", str(folder), "-c", "listen_addresses="]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL, **options)
    try:
        while subprocess.run([programs / "pg_isready", "-h", folder], stdout=subprocess.DEVNULL).returncode:
            time.sleep(0.2)
        yield f"postgresql+psycopg2://me@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


if __name__ == "__main__":
    command(main)
