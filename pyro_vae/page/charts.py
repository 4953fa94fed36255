"""Charts of the page: the places of lines, points and bars in an SVG, and the numbers that a pointer shows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from pyro_vae.plots.values import limits, lines_of
from pyro_vae.words import nats, pair

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 260, 48, 12, 24, 40  # of a chart, and its margins
BAR_WIDTH, ROW, NAME = 320, 28, 96  # of a chart of bars; height of a row, and width of its name
COLOURS = 7  # classes c0 to c6 of the style sheet, in the order of plots.style.LINES
POINTS = 2400  # of a line, shared by the runs


@dataclass(frozen=True)
class Axis:
    """A linear scale from numbers to pixels."""

    low: float
    high: float
    start: float
    end: float
    whole: bool = False  # whether only whole numbers are ticks

    def __call__(self, value: float) -> float:
        """Return the place of a number."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The places and the texts of round numbers."""
        values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=self.whole).tick_values(self.low, self.high)
        return [
            (self(value), f"{value:,.10g}" if abs(value) < 1e5 else f"{value:.4g}")
            for value in values
            if self.low <= value <= self.high
        ]


@dataclass(frozen=True)
class Chart:
    """A chart: the title, the axes, the marks and, as text, what it shows."""

    title: str
    alt: str
    x: Axis
    y: Axis
    x_label: str
    y_label: str
    marks: list[dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)
    width: int = WIDTH
    height: int = HEIGHT


def curves(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Chart]:
    """Return a chart for each panel of :func:`pyro_vae.plots.curves`, and for each further column, of all runs."""
    panels: dict[str, list[tuple[str, str, str]]] = {}
    for run, history in histories.items():
        losses = lines_of(history) if "train" in history else {}
        of_panels = {key for lines in losses.values() for key, _, _ in lines} | {"seconds", "train_at_beta_1"}
        more = {key: [(key, "", "")] for key in history if key not in of_panels and len({*history[key]}) > 1}
        for title, lines in (losses | more).items():
            panels.setdefault(title, []).extend((run, key, label) for key, label, _ in lines)
    charts = (_lines(title, histories, lines) for title, lines in panels.items())
    return [chart for chart in charts if chart]


def _lines(title: str, histories: Mapping[str, Any], lines: Sequence[tuple[str, str, str]]) -> Chart | None:
    """Return a chart of lines by epoch: a run, a column of its history and a label each."""
    several, marks, series, texts = len({run for run, _, _ in lines}) > 1, [], [], []
    values = [np.asarray(histories[run][key], dtype=float) for run, key, _ in lines]
    ylim = limits([column[len(column) // 20 :].tolist() for column in values])
    if ylim is None:
        return None
    longest = max(map(len, values))
    x = Axis(1, max(2, longest), LEFT, WIDTH - RIGHT, whole=True)
    y = Axis(float(ylim[0]), float(ylim[1]), HEIGHT - BOTTOM, TOP)
    runs, labels = [*histories], [*dict.fromkeys(label for _, _, label in lines)]
    for (run, _, label), column in zip(lines, values, strict=True):
        steps = max(40, POINTS // len(histories))
        rows = np.unique(np.linspace(0, len(column) - 1, min(len(column), steps)).round().astype(int))
        pairs = [(int(row) + 1, _short(column[row])) for row in rows]
        name = ": ".join(filter(None, [run if several else "", label])) or title
        kind = (runs.index(run) if several else labels.index(label)) % COLOURS
        dash = labels.index(label) if several else 0
        marks.append({"path": _path(pairs, x, y), "name": name, "colour": kind, "dash": dash})
        series.append({"name": name, "x": [epoch for epoch, _ in pairs], "y": [value for _, value in pairs]})
        finite = [(value, epoch) for epoch, value in pairs if value is not None]
        if finite:
            (last, end), (least, at) = finite[-1], min(finite)
            texts.append(f"{name}: {nats(last)} at epoch {end}, least {nats(least)} at epoch {at}")
    unit = "share" if "ccuracy" in title else "nats per datum"
    data = {"x": [x.low, x.high, x.start, x.end], "y": [y.low, y.high, y.start, y.end], "unit": unit, "series": series}
    return Chart(title, f"{title}, by epoch. {'; '.join(texts)}.", x, y, "epoch", unit, marks, data)


def _path(pairs: Sequence[tuple[int, float | None]], x: Axis, y: Axis) -> str:
    """Return the path of a line, with gaps at infinite values; a point between gaps is a dot."""
    parts, before = [], False
    for epoch, value in pairs:
        if value is not None:
            place = f"{x(epoch)} {y(value)}"
            parts.append(f"L{place}" if before else f"M{place}h0")
        before = value is not None
    return "".join(parts)


def bars(title: str, rows: Sequence[tuple[str, float, float]]) -> Chart | None:
    """Return a chart of means with bars of 2 standard errors to each side, a row for each name."""
    rows = [row for row in rows if math.isfinite(row[1])]
    if len(rows) < 2:
        return None
    errors = [2 * error if math.isfinite(error) else 0.0 for _, _, error in rows]
    low = min(mean - error for (_, mean, _), error in zip(rows, errors, strict=True))
    high = max(mean + error for (_, mean, _), error in zip(rows, errors, strict=True))
    margin = 0.08 * (high - low) or 1.0
    x = Axis(low - margin, high + margin, NAME, BAR_WIDTH - RIGHT)
    height = TOP + ROW * len(rows) + BOTTOM
    marks = [
        {"name": name, "y": TOP + ROW * i + ROW // 2, "x": x(mean), "from": x(mean - error), "to": x(mean + error)}
        | {"text": pair((mean, rows[i][2]))}
        for i, ((name, mean, _), error) in enumerate(zip(rows, errors, strict=True))
    ]
    alt = "; ".join(f"{mark['name']} {mark['text']}" for mark in marks)
    label = "nats per datum, ± 2 standard errors"
    y = Axis(0, 1, height - BOTTOM, TOP)
    return Chart(title, f"{title}: {alt}.", x, y, label, "", marks, width=BAR_WIDTH, height=height)


def scatter(
    title: str, points: np.ndarray, names: Sequence[str], classes: Sequence[str] | None, rows: Sequence[int]
) -> Chart:
    """Return a chart of points ``(N, 2)``; each has a class, unless ``classes`` is None, and the row of its datum."""
    low, high = points.min(0), points.max(0)
    margin = np.where(high > low, 0.05 * (high - low), 1.0)
    x = Axis(float(low[0] - margin[0]), float(high[0] + margin[0]), LEFT, WIDTH - RIGHT)
    y = Axis(float(low[1] - margin[1]), float(high[1] + margin[1]), WIDTH - BOTTOM, TOP)
    kinds = _in_order(set(classes)) if classes else []
    marks = [
        {"x": x(float(a)), "y": y(float(b)), "kind": kinds.index(classes[i]) if classes else 0, "row": rows[i]}
        for i, (a, b) in enumerate(points)
    ]
    of_classes = f" in the colours of {len(kinds)} labels" if kinds else ""
    alt = f"{title}: {len(points):,} points{of_classes}, {names[0]} across and {names[1]} up."
    return Chart(title, alt, x, y, names[0], names[1], marks, {"classes": kinds}, height=WIDTH)


def _in_order(classes: set[str]) -> list[str]:
    """Return names of classes in order; numbers by value."""
    return sorted(classes, key=lambda name: (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name))


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
