"""Speed of this package against handwritten code and other libraries.

Each contest runs in a new process, with one thread (pinned to a core) or all, and times the rivals in turn, round by
round; the table has ratios of medians. ``rivals``, ``rival_pyro`` and ``rival_libraries`` build the rivals;
``contests`` times them; ``speed_rows`` compares the times with limits. The handwritten loops and the bare products use
torch's fast float32 products, as this package does; other libraries run with their defaults. Needs NumPyro and pythae:
``pip install -e '.[bench]'``.
"""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import command, draw, read_table, write_table
from figures import speed as figure
from speed_rows import ALL, PARTS, Row
from tqdm.auto import tqdm

HERE = Path(__file__).parent


def main(root: str = "data", parts: Sequence[str] = tuple(PARTS), rounds: int = 15, out: str = "") -> None:
    """Time steps, epochs and start-up against the rivals; write a table and a figure.

    Args:
        root: Folder where torchvision finds MNIST.
        parts: Parts to time: steps, iwae, priors, convolutions, epochs, scaling, parallel, bfloat16, evaluation,
            startup, cuda; the table keeps other rows.
        rounds: Number of rounds of timing.
        out: Folder for the results, by default experiments/results.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"Expected parts among {', '.join(PARTS)}; got {', '.join(sorted(unknown))}.")
    folder = Path(out) if out else HERE / "results"
    for name in tqdm([part for part in PARTS if part in parts], desc="contests", unit=" parts"):
        options = {"root": str(Path(root).resolve())} if name in ("epochs", "parallel", "bfloat16") else {}
        rows = []
        for row in PARTS[name](rounds, **options):
            rows.append(row)
            tqdm.write("  ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()))
        _keep(name, rows, folder)


def _keep(part: str, rows: list[Row], folder: Path) -> None:
    """Replace the rows of one part in the table, and write the table and the figure."""
    path = folder / "speed.csv"
    held: dict[str, list[Row]] = {}
    for row in read_table(path) if path.exists() else []:
        held.setdefault(row["part"], []).append(row)
    held[part] = rows
    versions = ", ".join(map(_version, ("torch", "pyro-ppl", "numpyro", "jax", "pythae")))
    machine = f"{platform.machine()}, {ALL} cores, Python {platform.python_version()}, {versions}"
    caption = (
        f"Medians, rivals in turn. {machine}. Steps with one thread in CPU time, else by the clock. Ratio: ours to "
        "theirs, with its limit. Core: CPU time of all threads over wall time; below 1 another program was running."
    )
    table = [row for name in PARTS for row in held.get(name, [])]
    write_table(table, folder / "speed", caption)
    draw(figure, folder / "speed.png", table)


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


if __name__ == "__main__":
    command(main)
