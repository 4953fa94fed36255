"""What the experiments share: a judge of images, tables for machines and for readers, and the look of figures."""

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from math import floor, log10
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import auto_cli
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from torch.nn.functional import conv2d
from torchvision.utils import make_grid

from pyro_vae.data import Dataset, load
from pyro_vae.plots import MISSING
from pyro_vae.plots.style import styled
from pyro_vae.sweep import sweep

__all__ = ["Judge", "command", "draw", "label_ends", "mean_of", "over_seeds", "read_table"]
__all__ += ["sharpness", "show", "spread_of", "ticks", "train_all", "write_table"]

Cell = str | int | float | tuple[float, float]


def command(main: Callable[..., None]) -> None:
    """Run ``main`` with its arguments from the command line; print bad input as one line and exit."""
    try:
        auto_cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def train_all(
    settings: Mapping[str, Mapping[str, Any]], seeds: int, workers: int, runs: str, **options: Any
) -> dict[str, list[Path]]:
    """Train each setting with each seed by :func:`pyro_vae.sweep.sweep`; return the run directories by seed.

    The study has a folder in ``runs`` for these settings and options, so that the same call resumes it.

    Args:
        settings: Options of ``train`` that change together, by name.
        seeds: Number of seeds.
        workers: Number of processes, of one thread each; 0 to train in this process.
        runs: Folder of the study.
        options: Options that all runs share.
    """
    load(options["data"], options["root"])  # refuses an unknown name
    content = options | {"settings": [dict(setting) for setting in settings.values()]}
    folder = Path(runs) / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(content | {"seeds": seeds}, sort_keys=False))
    rows = sweep(file, folder, workers)
    if failed := [row for row in rows if row["state"] != "complete"]:
        raise ValueError(
            f"Expected runs that train; {failed[0]['run']} is {failed[0]['state']}. {failed[0]['message']}"
        )
    names = [*settings]  # in the order of their numbers
    result: dict[str, list[Path]] = {name: [] for name in names}
    for row in rows:
        if row["seed"] < seeds:  # an earlier call may have had more
            result[names[row["number"]]].append(folder / "runs" / row["run"])
    return result


class Judge:
    r"""Scores images by their likeness to real images.

    - confidence: the largest class probability of a multilayer perceptron trained on the real training images;
    - entropy: :math:`-\sum_c p_c \ln p_c` of its class probabilities, in nats;
    - distance: to the nearest real training image, :math:`\|x - x'\| / \sqrt{d}`, the root mean square difference
      of a pixel (black is 0, white is 1). A blurred image is nearer than a sharp one;
    - unreadable: the share of images with less confidence than 95% of the real test images; for the real test images
      it is 0.05.

    Args:
        dataset: A data set with labels: training images for the classifier, and test images for its accuracy.
        seed: Seed of the classifier.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        train, test = dataset.train, dataset.test
        if train.labels is None or test.labels is None:
            raise ValueError(f"Expected a data set with labels, for the classifier; got {dataset}.")
        real = _rows(train[:])
        self.classifier = MLPClassifier((256,), max_iter=500, random_state=seed).fit(real, train.labels.numpy())
        self.neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(real)
        self.accuracy = float(self.classifier.score(_rows(test[:]), test.labels.numpy()))
        self.readable = float(np.quantile(self.probabilities(test[:]).max(1), 0.05))

    def probabilities(self, x: Tensor) -> np.ndarray:
        """Return class probabilities ``(N, classes)`` of images ``(N, *event)``."""
        return self.classifier.predict_proba(_rows(x))

    def entropy(self, x: Tensor) -> np.ndarray:
        """Return the entropy of the class probabilities, in nats, of shape ``(N,)``."""
        p = self.probabilities(x)
        return -(p * np.log(p.clip(1e-12))).sum(1)

    def __call__(self, x: Tensor) -> dict[str, float]:
        """Return the mean of each score over images of shape ``(N, *event)``."""
        confidence = self.probabilities(x).max(1)
        distance = self.neighbours.kneighbors(_rows(x))[0][:, 0] / np.sqrt(x[0].numel())
        return {
            "confidence": float(confidence.mean()),
            "entropy (nats)": float(self.entropy(x).mean()),
            "distance (RMS)": float(distance.mean()),
            "unreadable": float((confidence < self.readable).mean()),
        }


def sharpness(x: Tensor) -> float:
    r"""Return the mean squared response of the discrete Laplacian to images ``(N, channels, height, width)``.

    .. math:: (\Delta x)_{ij} = x_{i+1,j} + x_{i-1,j} + x_{i,j+1} + x_{i,j-1} - 4 x_{ij}

    References:
        Diatom autofocusing in brightfield microscopy: a comparative study (Pech-Pacheco et al., 2000).
    """
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return conv2d(x.reshape(-1, 1, *x.shape[-2:]), kernel[None, None]).square().mean().item()


def show(axes: Axes, x: Tensor, title: str = "") -> None:
    """Draw a page of images, x of shape ``(rows, columns, channels, height, width)``, with NaN in a colour."""
    x = torch.where(x.isnan(), torch.tensor(MISSING).reshape(3, 1, 1), x)
    page = make_grid(x.flatten(0, 1).clamp(0, 1), nrow=x.shape[1], padding=1, pad_value=1.0)
    axes.imshow(page.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return the mean and the standard deviation of each number over runs."""
    return {key: (fmean(run[key] for run in runs), pstdev(run[key] for run in runs)) for key in runs[0]}


def write_table(rows: Sequence[Mapping[str, Cell]], stem: Path, caption: str) -> None:
    """Write rows to ``stem.csv``, with a column for each spread, and to ``stem.md``, with a caption."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    flat: list[dict[str, str | int | float]] = []
    for row in rows:
        flat.append({})
        for key, cell in row.items():
            flat[-1] |= {key: cell[0], f"{key} ±": cell[1]} if isinstance(cell, tuple) else {key: cell}
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, max(flat, key=len))
        writer.writeheader()
        writer.writerows(flat)
    columns = [[row[key] for row in rows] for key in rows[0]]
    cells = zip(*map(_texts, columns), strict=True)
    table = ([*rows[0]], ["---"] * len(columns), *cells)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in table]
    stem.with_suffix(".md").write_text("\n".join([caption, "", *lines, ""]))


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table that :func:`write_table` wrote: numbers, pairs of a number and its spread, texts."""
    with path.open(newline="") as file:
        lines = [*csv.DictReader(file)]
    return [
        {key: _cell(text, line.get(f"{key} ±")) for key, text in line.items() if not key.endswith(" ±")}
        for line in lines
    ]


def _cell(text: str, spread: str | None) -> Cell:
    try:
        number = float(text)
    except ValueError:
        return text
    return (number, float(spread)) if spread else number


def mean_of(cell: Any) -> float:
    """Return the number of a cell, without its spread."""
    return float(cell[0] if isinstance(cell, tuple) else cell)


def spread_of(cell: Any) -> float:
    """Return the spread of a cell, 0 where there is none."""
    return float(cell[1]) if isinstance(cell, tuple) else 0.0


def draw(figure: Callable[..., Figure], path: Path, *arguments: Any) -> None:
    """Save what a function draws, in the look of all figures; eight inches are 1,200 pixels."""
    with rc_context({"font.size": 9}):
        styled(figure)(*arguments).savefig(path, dpi=150)


def ticks(axis: Axis, places: Sequence[float]) -> None:
    """Put plain numbers at a few places of an axis, and nothing between them."""
    axis.set_ticks(list(places), [f"{place:,.10g}" for place in places])
    axis.set_ticks([], minor=True)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.06) -> None:
    """Write a label right of the axes at the height of each end: x, y, text, colour; no two closer than ``gap``.

    Limits and scales must be set before.
    """
    order = sorted(ends, key=lambda end: end[1])
    scale = axes.transScale + axes.transLimits
    heights = [float(scale.transform(end[:2])[1]) for end in order]
    for _ in range(200):
        for i in range(len(heights) - 1):
            if (lack := gap - (heights[i + 1] - heights[i])) > 0:
                heights[i : i + 2] = heights[i] - lack / 2, heights[i + 1] + lack / 2
    for (x, y, text, colour), height in zip(order, heights, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 2},
        )


def _texts(column: Sequence[Cell]) -> list[str]:
    """Format the numbers of a column with the same decimals, or with three digits each if their sizes differ much."""
    numbers = [abs(cell[0] if isinstance(cell, tuple) else cell) for cell in column if not isinstance(cell, str)]
    wide = any(numbers) and max(numbers) > 100 * min(number for number in numbers if number)
    places, texts = (3 if all(number < 10 for number in numbers) else 1), []
    for cell in column:
        mean, *spread = cell if isinstance(cell, tuple) else (cell,)
        if wide and isinstance(mean, float) and mean:
            places = max(0, 2 - floor(log10(abs(mean))))
        text = f"{mean:.{places}f}" if isinstance(mean, float) else str(mean)
        texts.append(text + "".join(f" ± {number:.{places}f}" for number in spread))
    return texts


def _rows(x: Tensor) -> np.ndarray:
    return x.flatten(1).double().numpy()
