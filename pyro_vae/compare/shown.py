"""Rows as a table and as a figure."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

from matplotlib.figure import Figure

from pyro_vae import evaluate, plots
from pyro_vae.compare.rows import Row, short


def table(rows: Sequence[Row]) -> str:
    """Write the rows of :func:`compare` as a table, one group after the other; settings of all of them come first.

    Nats per datum, with the standard error of -log p(x) and, paired over the images, of the difference from the best.
    """
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    differ = [key for key in keys if len({row.settings.get(key, "-") for row in rows}) > 1]
    same = [f"{key} {value}" for key, value in rows[0].settings.items() if key not in differ and value != "none"]
    heads = ["run", *differ, "ELBO", "= E[log p(x|z)]", "- KL", "-log p(x)", "from the best"]
    heads += ["active", "parameters", "seconds"]
    cells = {row: [*_cells(row, differ)] for row in rows}
    widths = [max(map(len, column)) for column in zip(heads, *cells.values(), strict=True)]
    left = 1 + len(differ)

    def line(texts: Sequence[str]) -> str:
        aligned = (f"{text:{'<' if i < left else '>'}{widths[i]}}" for i, text in enumerate(texts))
        return "  ".join(aligned).rstrip()

    shown = [_wrap(f"{'The same for all' if len(rows) > 1 else rows[0].name}: {', '.join(same)}.")]
    for group in _groups(rows):
        shown += ["", *_heading(group[0], rows[0]), line(heads), *(line(cells[row]) for row in group)]
    notes = (
        "nats per datum; ± standard error over the images, of the difference from the best that of the paired "
        f"differences. ELBO at beta = 1 with {evaluate.DRAWS} draws; -log p(x) by importance sampling, "
        f"{rows[0].num_particles:,} draws from the guide: too large on average. Active: latent dimensions whose "
        "mean under the guide varies over the images by more than 0.01. Seconds: of the training."
    )
    return "\n".join([*shown, "", _wrap(notes)])


def figure(rows: Sequence[Row]) -> Figure:
    """Draw rows: -log p(x), the ELBO's two terms, and the validation images' -ELBO against seconds of training."""
    groups = []
    for group in _groups(rows):
        runs = {
            row.name: {
                "nll": row.nll,
                "kl": row.values.kl.mean().item(),
                "reconstruction": row.values.reconstruction.mean().item(),
                "seconds": [*accumulate(row.history.get("seconds", []))],
                "valid": row.history.get("valid", []),
            }
            for row in group
        }
        groups.append((next(_heading(group[0], group[0])), runs))
    return plots.comparison(groups)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    return [[*group] for _, group in groupby(rows, key=lambda row: row.group)]


def _cells(row: Row, differ: Sequence[str]) -> Iterator[str]:
    yield row.name
    yield from (row.settings.get(key, "-") for key in differ)
    yield from (f"{value.mean().item():.2f}" for value in row.values[:3])
    yield "{:.2f} ± {:.2f}".format(*row.nll)
    yield "best" if row.difference == (0, 0) else "{:+.2f} ± {:.2f}".format(*row.difference)
    yield f"{row.active} of {row.latent}" if row.active else f"collapsed, 0 of {row.latent}"
    yield f"{row.parameters:,}"
    yield "-" if math.isnan(row.seconds) else f"{row.seconds:,.1f}"


def _heading(row: Row, first: Row) -> Iterator[str]:
    """Say of what a group is and, if it is not the first, why it is not ranked with that one."""
    yield f"{row.about}; log p(x) is {row.basis['log p(x)']}"
    differ = [
        f"{key} is {short(value)} here and {short(first.basis[key])} there"
        for key, value in row.basis.items()
        if value != first.basis[key]
    ]
    if differ:
        yield _wrap(f"Not ranked against the first group: {'; '.join(differ)}.")


def _wrap(text: str) -> str:
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)
