"""Is a run that is killed the same run? And does a long one keep to its memory?

Runs of ``pyro-vae train`` on the digits, binarised dynamically, are killed with SIGKILL at moments drawn at random, and
gone on with by ``--resume``, and killed again, until they are done. Weights and ``metrics.csv`` are then compared,
byte by byte, with those of a run that nobody disturbed: in plain Pyro, as a graph, and compiled by TorchInductor. And
``fit`` runs for many epochs, its resident memory looked at after each.
"""

import csv
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import command, write_table
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from pyro_vae.checkpoint import load_state

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
    """Kill runs and go on with them; write a table, which keeps the rows of other modes, and a figure.

    Args:
        modes: Ways of running a step, as ``fit``'s compile.
        runs: Runs to kill, of each way.
        kills: How often each is killed, at most: a kill that comes after its end is none.
        epochs: Of each run.
        hidden: Units of each hidden layer.
        long: Epochs of the run whose memory is looked at.
        settled: Epoch after which it is to be flat.
        seed: Of the moments.
        out: Folder for reliability.csv, .md and .png.
    """
    if not set(modes) <= set(ORDER) or min(runs, kills, epochs) < 1 or not 0 < settled < long:
        raise ValueError(
            f"Expected modes among {', '.join(ORDER)}, at least 1 run, kill and epoch, and fewer epochs to settle than "
            f"there are; got {', '.join(modes)}, {runs}, {kills}, {epochs}, {settled} and {long}."
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
        "Runs on the digits, binarised dynamically, killed at random moments of their training and gone on with; "
        "identical are those whose model.safetensors and metrics.csv are, byte for byte, those of a run not killed. "
        f"Resident memory of a run of {long} epochs: {memory[settled - 1] / 2**20:.1f} MiB after epoch {settled}, "
        f"{memory[-1] / 2**20:.1f} MiB at the end, {100 * share:+.1f}%."
    )
    rows.sort(key=lambda row: ORDER.index(row["step"]))
    write_table(rows, stem, caption)
    picture(rows, memory, settled).savefig(stem.with_suffix(".png"), dpi=150)
    print(f"\n{stem.with_suffix('.md').read_text()}")


def kept(path: Path, modes: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a table that are not to be made anew."""
    if not path.is_file():
        return []
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["step"] not in modes]


def killed(folder: Path, words: list[str], runs: int, kills: int, draw: random.Random) -> dict[str, Any]:
    """Return what became of the runs, and the epochs that they went on from."""
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
    return row | {"gone on from epoch": " ".join(f"{epoch:.1f}" for epoch in sorted(epochs))}


def training(run: Path, words: list[str]) -> tuple[float, float]:
    """Make a run that nobody disturbs; return when its training began and when it ended, in seconds from its start."""
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
    """The words that begin a run, or go on with it."""
    return ["--resume", str(run)] if (run / "config.yaml").exists() else [*words, "--run_dir", str(run)]


def finish(words: list[str], moment: float | None) -> bool:
    """Train until the end, or a moment in seconds; return whether it ended by itself."""
    program = subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", "train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, said = program.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGKILL)
        program.communicate()
        return False
    if program.returncode:
        raise ValueError(f"Expected pyro-vae train {' '.join(words)} to end well; it said: {said.decode()[-500:]}")
    return True


def epoch_of(run: Path) -> float:
    """How many epochs a run would go on from."""
    if not (run / "config.yaml").exists():
        return 0.0
    state, _ = load_state(run)
    return state["epochs"] + state["at"] / 12  # steps of an epoch: 1,437 images in batches of 128


def resident(epochs: int, run: Path) -> list[int]:
    """Bytes resident after each epoch."""
    words = [sys.executable, "-c", MEMORY, f"{epochs}", str(run)]
    return [*map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())]


def picture(rows: Sequence[dict[str, Any]], memory: list[int], settled: int) -> Figure:
    """Draw where the kills came, and memory by epoch."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for line, row in enumerate(rows):
        at = [float(epoch) for epoch in row["gone on from epoch"].split()]
        left.plot(at, [line] * len(at), "|", markersize=18, markeredgewidth=1.5)
    left.set_yticks(range(len(rows)), [row["step"] for row in rows])
    left.set(xlabel="epoch that was gone on from", ylim=(-0.6, len(rows) - 0.4))
    left.set_title("Kills")
    right.plot(range(1, len(memory) + 1), [size / 2**20 for size in memory], color="#2b6cb0")
    right.axvline(settled, color="0.6", linewidth=1, linestyle="--")
    right.set(xlabel="epoch", ylabel="MiB resident", ylim=(0, 1.15 * max(memory) / 2**20), title="Memory")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    command(main)
