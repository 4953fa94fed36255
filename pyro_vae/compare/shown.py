"""Rows as a table and as a figure."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

from matplotlib.figure import Figure

from pyro_vae import evaluate, plots
from pyro_vae.compare.rows import Row, short
from pyro_vae.words import above, aligned, nats, pair

BEST, WORST, GROUPS = 20, 10, 6  # runs of a group, and groups, that are drawn
LEVEL = 0.1  # nats that do not matter


def table(rows: Sequence[Row]) -> str:
    """Write the rows of :func:`compare` as a table, one group after the other; settings of all of them come first.

    Nats per datum, with the standard error of -log p(x) and, paired over the images, of the difference from the best.
    """
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    differ = [key for key in keys if len({row.settings.get(key, "-") for row in rows}) > 1]
    same = [f"{key} {value}" for key, value in rows[0].settings.items() if key not in differ and value != "none"]
    heads = ["run", *differ, "ELBO", "= E[log p(x|z)]", "- KL", "-log p(x)", "from the best"]
    measures = [*dict.fromkeys(name for row in rows for name in row.measures)]
    heads += [*measures, "active", "parameters", "seconds"]
    head, *lines = aligned([heads, *([*_cells(row, differ, measures)] for row in rows)], 1 + len(differ))
    shown = [_wrap(f"{'The same for all' if len(rows) > 1 else rows[0].name}: {', '.join(same)}.")]
    for group in _groups(rows):
        shown += ["", *_heading(group[0], rows[0]), head, *(lines.pop(0) for _ in group)]
    notes = (
        "nats per datum; ± standard error over the data, of the difference from the best that of the paired "
        "differences: level, where 2 of them leave no room for 0.1 nats; cannot tell, where they reach 0. "
        f"ELBO at beta = 1 with {evaluate.DRAWS} draws; -log p(x) by importance sampling, "
        f"{rows[0].num_particles:,} draws {evaluate.ORIGINS[rows[0].proposal]}: too large on average. Active: latent "
        "dimensions whose mean under the guide varies over the data by more than 0.01. Seconds: of the training."
    )
    return "\n".join([*shown, "", _wrap(notes)])


def figure(rows: Sequence[Row]) -> Figure:
    """Draw rows: -log p(x), the ELBO's two terms, and the validation data's -ELBO against seconds of training.

    Of a group these are the 20 best and the 10 worst, and of many groups the first 6: titles say how many are left out.
    """
    groups = _groups(rows)
    shown: list[tuple[str, dict[str, dict[str, Any]]]] = []
    for group in groups[:GROUPS]:
        runs = {
            row.name: {
                "nll": row.nll,
                "kl": row.values.kl.mean().item(),
                "reconstruction": row.values.reconstruction.mean().item(),
                "seconds": [*accumulate(row.history.get("seconds", []))],
                "valid": row.history.get("valid", []),
            }
            for i, row in enumerate(group)
            if i < BEST or i >= len(group) - WORST
        }
        title = next(_heading(group[0], group[0]))
        if len(group) > BEST + WORST:
            title += f"; the best {BEST} and the worst {WORST} of {len(group):,} runs"
        if len(shown) == GROUPS - 1 and len(groups) > GROUPS:
            title += f"; {len(groups) - GROUPS:,} more groups are not drawn"
        shown.append((title, runs))
    return plots.comparison(shown)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    return [[*group] for _, group in groupby(rows, key=lambda row: row.group)]


def _cells(row: Row, differ: Sequence[str], measures: Sequence[str]) -> Iterator[str]:
    yield row.name
    yield from (row.settings.get(key, "-") for key in differ)
    yield from (nats(value.mean().item()) for value in row.values[:3])
    yield pair(row.nll)
    told = above(*row.difference, len(row.values.nll), slack=LEVEL)
    apart = pair(row.difference, "+") + {True: "", False: ", level", None: ", cannot tell"}[told]
    yield apart if row.difference != (0, 0) else "best" if math.isfinite(row.nll[0]) else "-"
    yield from (f"{row.measures[name][0]:.2%}" if name in row.measures else "-" for name in measures)
    yield "cannot tell" if row.active is None else f"{'' if row.active else 'collapsed, '}{row.active} of {row.latent}"
    yield f"{row.parameters:,}"
    yield "-" if math.isnan(row.seconds) else f"{row.seconds:,.1f}"


def _heading(row: Row, first: Row) -> Iterator[str]:
    """Say of what a group is and, if it is not the first, why it is not ranked with that one."""
    yield f"{row.about}; log p(x) is {row.basis['log p(x)']}"
    keys = [key for key, value in row.basis.items() if value != first.basis[key]]
    differ = [f"{key} is {short(row.basis[key])} here and {short(first.basis[key])} there" for key in keys]
    if differ:
        yield _wrap(f"Not ranked against the first group: {'; '.join(differ)}.")


def _wrap(text: str) -> str:
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)
