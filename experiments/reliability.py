"""Reliability: killed and resumed runs against an uninterrupted run, and the memory of a long run.

The script kills runs of ``pyro-vae train`` on the digits, binarised dynamically, with SIGKILL at random moments, and
resumes them with ``--resume`` until they are done. It then compares their weights and ``metrics.csv``, byte by byte,
with an uninterrupted run: in plain Pyro, as a graph, and compiled by TorchInductor. It also records the resident memory
of ``fit`` after each of many epochs.
"""

import csv
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import command, write_table
from common import draw as draw_figure
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from pyro_vae.checkpoint import load_state
from pyro_vae.plots.style import BLUE

ORDER = ("off", "graph", "inductor")
MEMORY = """
import sys
from pathlib import Path
from pyro_vae import VAE, data, fit
from pyro_vae.train import loop

resident, epoch = [], loop.Training.epoch

def seen(self, *callbacks):
    numbers = epoch(self, *callbacks)
    resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    return numbers

loop.Training.epoch = seen
digits = data.load("digits")
fit(VAE.build(digits.event_shape), digits, epochs=int(sys.argv[1]), run_dir=sys.argv[2], progress=False)
print(*resident)
"""


def main(
    modes: Sequence[str] = ("off", "graph", "inductor"),
    runs: int = 20,
    kills: int = 1,
    epochs: int = 200,
    hidden: tuple[int, ...] = (200,),
    long: int = 200,
    settled: int = 20,
    seed: int = 0,
    out: str = "experiments/results",
) -> None:
    """Kill and resume runs; write a table, which keeps the rows of other modes, and a figure.

    Args:
        modes: Values of ``fit``'s argument compile.
        runs: Number of runs for each mode.
        kills: Largest number of kills of each run; a kill after its end does not count.
        epochs: Epochs of each run.
        hidden: Units of each hidden layer.
        long: Epochs of the run for the memory.
        settled: Epoch after which the memory should be constant.
        seed: Seed of the moments.
        out: Folder for reliability.csv, .md and .png.
    """
    if not set(modes) <= set(ORDER) or min(runs, kills, epochs) < 1 or not 0 < settled < long:
        raise ValueError(
            f"Expected modes among {', '.join(ORDER)}, at least 1 run, kill and epoch, and settled below "
            f"long; got {', '.join(modes)}, {runs}, {kills}, {epochs}, {settled} and {long}."
        )
    draw = random.Random(seed)
    words = ["--binarize", "dynamic", "--likelihood", "Bernoulli", "--epochs", f"{epochs}"]
    words += ["--network.hidden", str([*hidden])]
    stem = Path(out) / "reliability"
    rows = kept(stem.with_suffix(".csv"), modes)
    with TemporaryDirectory() as folder:
        for mode in modes:
            found = killed(Path(folder) / mode, [*words, "--compile", mode], runs, kills, draw)
            rows.append({"step": mode, "epochs": epochs} | found)
        memory = resident(long, Path(folder) / "long")
    share = memory[-1] / memory[settled - 1] - 1
    caption = (
        "Runs on the digits, binarised dynamically, killed at random moments of their training and resumed. Identical: "
        "model.safetensors and metrics.csv equal the files of an uninterrupted run, byte for byte. "
        f"Resident memory of a run of {long} epochs: {memory[settled - 1] / 2**20:.1f} MiB after epoch {settled}, "
        f"{memory[-1] / 2**20:.1f} MiB at the end, {100 * share:+.1f}%."
    )
    rows.sort(key=lambda row: ORDER.index(row["step"]))
    write_table(rows, stem, caption)
    draw_figure(figure, stem.with_suffix(".png"), rows)
    print(f"\n{stem.with_suffix('.md').read_text()}")


def kept(path: Path, modes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a table for other modes."""
    if not path.is_file():
        return []
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["step"] not in modes]


def killed(folder: Path, words: list[str], runs: int, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill and resume runs; return their row of the table."""
    folder.mkdir()
    whole = folder / "whole"
    first, last = training(whole, words)
    row: dict[str, Any] = {"runs": runs, "kills": 0, "identical": 0}
    epochs: list[float] = []
    for number in tqdm(range(runs), desc=folder.name, unit=" runs"):
        run = folder / f"{number}"
        for _ in range(kills):
            if not finish(how(run, words), draw.uniform(first, last)):
                row["kills"] += 1
                epochs.append(epoch_of(run))
        finish(how(run, words), None)
        files = ("model.safetensors", "metrics.csv")
        row["identical"] += all((run / name).read_bytes() == (whole / name).read_bytes() for name in files)
    return row | {"resumed from epoch": " ".join(f"{epoch:.1f}" for epoch in sorted(epochs))}


def training(run: Path, words: list[str]) -> tuple[float, float]:
    """Train an uninterrupted run; return the seconds from its start to the begin and to the end of training."""
    start = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        done = pool.submit(finish, [*words, "--run_dir", str(run)], None)
        found = []
        for name in ("config.yaml", "model.safetensors"):
            while not (run / name).exists() and not done.done():
                time.sleep(0.01)
            found.append(time.perf_counter() - start)
        done.result()
    return found[0], found[1]


def how(run: Path, words: list[str]) -> list[str]:
    """Return the options that begin or resume a run."""
    return ["--resume", str(run)] if (run / "config.yaml").exists() else [*words, "--run_dir", str(run)]


def finish(words: list[str], moment: float | None) -> bool:
    """Train to the end, or for ``moment`` seconds; return whether training came to its end."""
    program = subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", "train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, message = program.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGKILL)
        program.communicate()
        return False
    if program.returncode:
        raise ValueError(f"Expected pyro-vae train {' '.join(words)} to succeed; got: {message.decode()[-500:]}")
    return True


def epoch_of(run: Path) -> float:
    """Return the epoch from which a run would resume."""
    if not (run / "config.yaml").exists():
        return 0.0
    state, _ = load_state(run)
    return state["epochs"] + state["at"] / 12  # steps of an epoch: 1,437 images in batches of 128


def resident(epochs: int, run: Path) -> list[int]:
    """Return the resident memory after each epoch, in bytes."""
    words = [sys.executable, "-c", MEMORY, f"{epochs}", str(run)]
    return [*map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())]


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the epoch at which each killed run was resumed, from the table."""
    drawn = Figure(figsize=(8, 0.8 + 0.7 * len(rows)), layout="constrained")
    axes = drawn.subplots()
    for place, row in enumerate(rows):
        epochs = [float(epoch) for epoch in str(row["resumed from epoch"]).split()]
        stacked = [sum(abs(epoch - other) < 0.5 for other in epochs[:i]) for i, epoch in enumerate(epochs)]
        heights = [place + 0.3 - 0.045 * count for count in stacked]
        axes.plot(epochs, heights, "o", color=BLUE, markersize=4, alpha=0.6)
        result = f"{int(row['identical'])} of {int(row['runs'])} runs identical"
        axes.text(1.02, place, result, transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(rows)), [f"compile={row['step']}" for row in rows])
    axes.set(xlabel="epoch from which a killed run was resumed: a point a kill", ylim=(len(rows) - 0.5, -0.6))
    axes.grid(axis="x", color="0.9")
    return drawn


if __name__ == "__main__":
    command(main)
