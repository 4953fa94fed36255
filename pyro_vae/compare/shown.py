"""Rows as a table and as a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

from matplotlib.figure import Figure

from pyro_vae import evaluate, plots
from pyro_vae.compare.rows import Row
from pyro_vae.compare.words import short

__all__ = ["figure", "table"]


def table(rows: Sequence[Row]) -> str:
    """Write rows as a table, one group after the other, with what is the same for all of them said once.

    Arguments:
        rows: What :func:`compare` returned.

    Returns:
        Nats per datum. Of -log p(x) and of the difference from the best the standard error is given, the latter's
        paired over the images.
    """
    keys = [*dict.fromkeys(key for row in rows for key in row.settings)]
    differ = [key for key in keys if len({row.settings.get(key, "-") for row in rows}) > 1]
    same = ", ".join(
        f"{key} {rows[0].settings[key]}" for key in keys if key not in differ and rows[0].settings[key] != "none"
    )
    heads = ["run", *differ, "ELBO", "= E[log p(x|z)]", "- KL", "-log p(x)", "from the best"]
    heads += ["active", "parameters", "seconds"]
    cells = [[*_cells(row, differ)] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    left = 1 + len(differ)

    def line(texts: Sequence[str]) -> str:
        aligned = (f"{text:{'<' if i < left else '>'}{widths[i]}}" for i, text in enumerate(texts))
        return "  ".join(aligned).rstrip()

    shown = [_wrapped(f"The same for all: {same}.")] if len(rows) > 1 else [_wrapped(f"{rows[0].name}: {same}.")]
    for _, group in groupby(zip(rows, cells, strict=True), key=lambda pair: pair[0].group):
        members = [*group]
        shown += ["", *_heading(members[0][0], rows[0]), line(heads), *(line(texts) for _, texts in members)]
    notes = (
        "nats per datum; ± standard error over the images, of the difference from the best that of the paired "
        f"differences. ELBO at beta = 1 with {evaluate.DRAWS} draws; -log p(x) by importance sampling, "
        f"{rows[0].num_particles:,} draws from the guide: too large on average. Active: latent dimensions whose "
        "mean under the guide varies over the images by more than 0.01. Seconds: of the training."
    )
    return "\n".join([*shown, "", _wrapped(notes)])


def figure(rows: Sequence[Row]) -> Figure:
    """Draw rows: -log p(x), the ELBO's two terms, and the validation images' -ELBO against seconds of training."""
    groups = []
    for _, group in groupby(rows, key=lambda row: row.group):
        members = [*group]
        runs = {
            row.name: {
                "nll": row.nll,
                "kl": row.values.kl.mean().item(),
                "reconstruction": row.values.reconstruction.mean().item(),
                "seconds": [*accumulate(row.history.get("seconds", []))],
                "valid": row.history.get("valid", []),
            }
            for row in members
        }
        groups.append((next(_heading(members[0], members[0])), runs))
    return plots.comparison(groups)


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
    """Say what a group is of, and if it is not the first, why it is not ranked with that one."""
    yield f"{row.about}; log p(x) is {row.basis['log p(x)']}"
    differ = [
        f"{key} is {short(value)} here and {short(first.basis[key])} there"
        for key, value in row.basis.items()
        if value != first.basis[key]
    ]
    if differ:
        yield _wrapped(f"Not ranked against the first group: {'; '.join(differ)}.")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)
