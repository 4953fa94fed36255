"""The table and the figure of a comparison."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

from pyro_vae import evaluate, plots
from pyro_vae.compare.rows import Row, format_spec
from pyro_vae.compare.seeds import LEVEL, Setting, differing, importance
from pyro_vae.words import above, aligned, nats, pair

BEST, WORST, GROUPS = 20, 10, 6  # limits of a figure: runs of a group, and groups
NEGLIGIBLE = 0.1  # a negligible difference, in nats


def table(rows: Sequence[Row]) -> str:
    """Return the rows of :func:`compare` as text: the settings that all runs share, then one table per group.

    Numbers are nats per datum. -log p(x) and the difference from the best run have standard errors; the error of the
    difference is paired over the images.
    """
    differ = differing([row.settings for row in rows])
    head, *lines = aligned(cells(rows, differ), 1 + len(differ))
    blocks = [_shared(rows[0].settings, differ, "The same for all" if len(rows) > 1 else rows[0].name)]
    for group in groups(rows):
        blocks += ["", *headings(group[0], rows[0]), head, *(lines.pop(0) for _ in group)]
    return "\n".join([*blocks, "", _wrap(notes(rows))])


def cells(rows: Sequence[Row], settings: Sequence[str] = ()) -> list[list[str]]:
    """Return the cells of a table: a row of heads, and a row for each run, with columns for some settings."""
    measures = [*dict.fromkeys(name for row in rows for name in row.measures)]
    heads = ["run", *settings, "ELBO", "= E[log p(x|z)]", "- KL", "-log p(x)", "from the best"]
    heads += [*measures, "active", "parameters", "seconds"]
    return [heads, *([*_cells(row, settings, measures)] for row in rows)]


def notes(rows: Sequence[Row]) -> str:
    """Return an explanation of the columns of :func:`cells`."""
    methods = "; or ".join(dict.fromkeys(row.method for row in rows))
    return (
        "Nats per datum, mean ± standard error over the data, which is paired for the difference from the best. Level: "
        "2 standard errors above the difference are at most 0.1 nats; cannot tell: 2 standard errors reach 0. "
        f"ELBO at beta = 1 with {evaluate.DRAWS} draws. -log p(x) {methods}. Active: "
        "latent dimensions whose mean under the guide has a variance above 0.01 over the data. Seconds of training."
    )


def figure(rows: Sequence[Row]) -> "plots.Figure":
    """Plot -log p(x), the two terms of the ELBO, and the -ELBO of validation data against seconds of training.

    The figure shows at most 6 groups, and the 20 best and 10 worst runs of each group; titles count omitted runs.
    """
    parts = groups(rows)
    panels: list[tuple[str, dict[str, dict[str, Any]]]] = []
    for group in parts[:GROUPS]:
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
        title = next(headings(group[0], group[0]))
        if len(group) > BEST + WORST:
            title += f"; the best {BEST} and the worst {WORST} of {len(group):,} runs"
        if len(panels) == GROUPS - 1 and len(parts) > GROUPS:
            title += f"; {len(parts) - GROUPS:,} more groups are not drawn"
        panels.append((title, runs))
    return plots.comparison(panels)


def table_over_seeds(settings: Sequence[Setting], absent: Sequence[str] = ()) -> str:
    """Return the settings of :func:`over_seeds` as text: a table for each group, tests, and shares of the options.

    ``absent`` are sentences on runs that are not in the table.
    """
    options, first = differing([setting.options for setting in settings]), settings[0].rows[0]
    heads = ["setting", *options, "seeds", "ELBO", "-log p(x)", "from the best", "± seeds", "± images", "differs"]
    body = [[*_setting_cells(setting, options)] for setting in settings]
    head, *lines = aligned([[*heads, "seconds"], *body], 1 + len(options))
    blocks = [_shared(settings[0].options, options, "The same for all")]
    for members in groups(settings):
        blocks += ["", *headings(members[0].rows[0], first), head, *(lines.pop(0) for _ in members)]
        if shares := importance(members):
            runs = sum(len(setting.rows) for setting in members)
            texts = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
            blocks.append(
                _wrap(f"Share of each option in the variance of -log p(x), by fANOVA of {runs} runs: {texts}.")
            )
        if tests := sum(not math.isnan(setting.p) for setting in members):
            blocks.append(f"Comparisons with the best setting of this group: {tests}, corrected by Holm's method.")
    methods = "; or ".join(dict.fromkeys(row.method for setting in settings for row in setting.rows))
    notes = (
        "Nats per datum: means over seeds and data. -log p(x) has a standard error over seeds; the difference from the "
        "best has one over seeds and one over data, paired. Differs: yes, if a t test with both errors rejects "
        f"equality at {LEVEL:g} after the correction; else, and if a setting has one seed, cannot tell. The best is "
        f"chosen by the same numbers, which flatters it. -log p(x) {methods}. Seconds of training, the mean."
    )
    missing = ["", f"Runs that are not in the table: {len(absent)}."] if absent else []
    return "\n".join([*blocks, "", _wrap(notes), *missing, *(f"- {_wrap(line)}" for line in absent)])


def figure_over_seeds(settings: Sequence[Setting]) -> "plots.Figure":
    """Plot -log p(x) of each run against each option, and against seconds, for the largest group of comparable runs."""
    members = max(groups(settings), key=len)
    rows = [(setting, row) for setting in members for row in setting.rows]
    options = {
        name: [setting.options.get(name, "-") for setting, _ in rows]
        for name in differing([s.options for s in members])
    }
    nll, seconds = [row.nll[0] for _, row in rows], [row.seconds for _, row in rows]
    title = next(headings(members[0].rows[0], members[0].rows[0]))
    if more := len(groups(settings)) - 1:
        title += f"; {more} more groups are not drawn"
    return plots.slices(options, nll, seconds, [row.name for _, row in rows], title)


def _setting_cells(setting: Setting, options: Sequence[str]) -> Iterator[str]:
    yield setting.name
    yield from (setting.options.get(key, "-") for key in options)
    yield str(len(setting.rows))
    yield nats(sum(row.values.elbo.mean().item() for row in setting.rows) / len(setting.rows))
    yield _with_error(setting.nll)
    if (setting.difference, setting.image_error) == (0, 0):
        yield from ("best" if math.isfinite(setting.nll[0]) else "-", "", "", "")
    else:
        yield nats(setting.difference, "+")
        yield from ("-" if math.isnan(error) else nats(error) for error in (setting.seed_error, setting.image_error))
        yield f"yes, p = {setting.p:.1g}" if setting.p < LEVEL else "cannot tell"
    seconds = sum(row.seconds for row in setting.rows) / len(setting.rows)
    yield "-" if math.isnan(seconds) else f"{seconds:,.1f}"


def _with_error(values: tuple[float, float]) -> str:
    return nats(values[0]) if math.isnan(values[1]) else pair(values)


def groups(rows: Sequence[Any]) -> list[list[Any]]:
    """Return the rows, or the settings, of each group."""
    return [[*group] for _, group in groupby(rows, key=lambda row: row.group)]


def _shared(settings: Mapping[str, str], differ: Sequence[str], head: str) -> str:
    """Return the settings that all runs share, after a head."""
    same = [f"{key} {value}" for key, value in settings.items() if key not in differ and value != "none"]
    return _wrap(f"{head}: {', '.join(same)}.")


def _cells(row: Row, differ: Sequence[str], measures: Sequence[str]) -> Iterator[str]:
    yield row.name
    yield from (row.settings.get(key, "-") for key in differ)
    yield from (nats(value.mean().item()) for value in row.values[:3])
    yield pair(row.nll)
    worse = above(*row.difference, len(row.values.nll), slack=NEGLIGIBLE)
    difference = pair(row.difference, "+") + {True: "", False: ", level", None: ", cannot tell"}[worse]
    yield difference if row.difference != (0, 0) else "best" if math.isfinite(row.nll[0]) else "-"
    yield from (f"{row.measures[name][0]:.2%}" if name in row.measures else "-" for name in measures)
    yield "cannot tell" if row.active is None else f"{'' if row.active else 'collapsed, '}{row.active} of {row.latent}"
    yield f"{row.parameters:,}"
    yield "-" if math.isnan(row.seconds) else f"{row.seconds:,.1f}"


def headings(row: Row, first: Row) -> Iterator[str]:
    """Yield the data of a group and, for a later group, the reason why it is not ranked with the first."""
    yield f"{row.about}; log p(x) is {row.basis['log p(x)']}"
    keys = [key for key, value in row.basis.items() if value != first.basis[key]]
    both = [[textwrap.shorten(format_spec(of.basis[key]), 100) for of in (row, first)] for key in keys]
    differ = [f"{key} is {here} here and {there} there" for key, (here, there) in zip(keys, both, strict=True)]
    if differ:
        yield _wrap(f"Not ranked against the first group: {'; '.join(differ)}.")


def _wrap(text: str) -> str:
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)
