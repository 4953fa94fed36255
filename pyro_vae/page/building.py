"""The page as text: reads the runs, collects their content and fills the template."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import torch

from pyro_vae import checkpoint, compare, evaluate
from pyro_vae.compare import display
from pyro_vae.data import Dataset
from pyro_vae.page.charts import Chart, bars, curves
from pyro_vae.page.content import Content
from pyro_vae.page.latents import SPAN
from pyro_vae.page.panels import add_codes, add_columns, add_images, add_walk, add_worst
from pyro_vae.page.runs import IMAGES, MAIN, PARTICLES, Run, evaluation_of, read
from pyro_vae.plots.style import CLASSES, LINES
from pyro_vae.program import posterior_of, reference_tensor
from pyro_vae.report import Evaluation
from pyro_vae.seeds import eval_mode
from pyro_vae.train import check_device

SIZE = 2_600_000  # bytes of all images before compression; base64 adds a third, and text at most a megabyte
POINTS = 2000  # codes in the charts of several runs


def html(
    runs: Sequence[str | Path],
    num_particles: int | None = None,
    images: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    trust: Sequence[str] = (),
    progress: bool = True,
) -> str:
    """Return one HTML page about trained runs: settings, curves, numbers, images and latent dimensions.

    The page is one file of less than 5 MB. It loads nothing: styles, scripts and images are inside, and its content
    security policy forbids requests. Numbers are in nats per datum. For several runs, the page also has the ranking of
    :func:`pyro_vae.compare.compare`. A part that a program or its data do not have is left out, and a note says why an
    evaluation is not possible.

    Args:
        runs: Run directories.
        num_particles: Draws per datum for -log p(x). By default, the page shows the evaluation that
            ``pyro-vae evaluate`` saved for the same weights, and otherwise evaluates with 100 draws.
        images: Number of images from the start of each split; by default as in the saved evaluation, or 500.
        seed: Seed of the draws; torch's random state does not change.
        device: ``cpu`` or ``cuda``.
        trust: Modules whose classes the runs may name, besides ``pyro_vae``.
        progress: Whether to show progress bars.

    Raises:
        FileNotFoundError: If a run or its data do not exist.
        ValueError: If there is no run, a run cannot be read, or an argument is out of range.

    See Also:
        :func:`pyro_vae.report.evaluation`: The numbers and the diagnosis of the page.
    """
    runs = [runs] if isinstance(runs, str | Path) else [*runs]
    particles = PARTICLES if num_particles is None else num_particles
    number = IMAGES if images is None else images
    if not runs or particles < 1 or number < 2:
        got = f"{len(runs)} runs, num_particles = {particles} and images = {number}"
        raise ValueError(f"Expected at least 1 run, 1 particle and 2 images; got {got}.")
    check_device(device)
    folders = {Path(run).resolve(): Path(run) for run in runs}
    parts = [folder.name for folder in folders]
    datasets: dict[str, Dataset] = {}
    loaded = [
        read(run, folder.name if parts.count(folder.name) == 1 else str(run), trust, datasets)
        for folder, run in folders.items()
    ]
    contents, evaluated = [], []
    for run in loaded:
        if run.program is not None:
            run.program.to(device)
        evaluation = evaluation_of(run, num_particles, images, seed, progress)
        contents.append(_content(run, evaluation, seed, len(loaded)))
        evaluated += [] if evaluation is None else [run]
    options = {"num_particles": particles, "images": number, "seed": seed, "device": device, "trust": trust}
    rows = _ranking(evaluated, progress=progress, **options) if len(loaded) > 1 else []
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_vae.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        parts=contents,
        about=_about(loaded),
        settings=_settings(loaded),
        curves=_curves(loaded, rows),
        comparison=_comparison(rows),
        sprites={name: sprite for part in contents for name, sprite in part.sprites.items()},
        span=f"{SPAN:g}",
        lines=LINES,
        classes=CLASSES,
        version=version("pyro_vae"),
    )


def _content(run: Run, evaluation: Evaluation | None, seed: int, runs: int) -> Content:
    """Return the content of one of several runs."""
    content = Content(run, SIZE / runs)
    if runs > 1:
        content.longest, content.points, content.sliders = 64 if runs < 5 else 32, max(50, POINTS // runs), 8
    if evaluation is not None:
        try:
            content.add_numbers(evaluation)
        except (ValueError, LookupError, TypeError):  # of a file that somebody has changed
            run.notes.append("No evaluation: the saved one is damaged. Run pyro-vae evaluate again.")
    if run.dataset is None:
        return content
    device = reference_tensor(run.program).device
    try:
        with eval_mode(run.program, device, seed), torch.no_grad():
            rows = evaluate.rows_of(run.program, run.dataset.test.to(device), slice(0, 1000))
            target = posterior_of(run.program, rows)
            add_codes(content, run.dataset, target)
            if rows[0].dim() in (3, 4):
                add_walk(content, run.dataset, target)
                add_images(content, run.dataset, target)
                if evaluation is not None:
                    add_worst(content, run.dataset, target, evaluation)
        if rows[0].dim() == 2:
            add_columns(content, run.dataset, seed)
    except ValueError as error:
        run.notes.append(f"A part of the page is missing: {checkpoint.one_line(error)}")
    return content


def _ranking(runs: Sequence[Run], **options: Any) -> list[compare.Row]:
    """Return the ranking of the runs with final weights, under the names of the page."""
    ranked = [run for run in runs if run.final]
    if not ranked:
        return []
    folders = [run.folder.resolve().name for run in ranked]
    names = {
        folder if folders.count(folder) == 1 else str(run.folder): run.name
        for folder, run in zip(folders, ranked, strict=True)
    }
    rows = compare.compare([run.folder for run in ranked], **options)
    return [replace(row, name=names[row.name]) for row in rows]


def _curves(runs: Sequence[Run], rows: Sequence[compare.Row]) -> list[tuple[str, list[Chart]]]:
    """Return a heading and charts for each group of comparable runs, and for each run without a group."""
    groups: dict[str, dict[str, Any]] = {}
    for group in display.groups(rows):
        names = [row.name for row in group]
        groups[f"{next(display.headings(group[0], group[0]))}: {', '.join(names)}"] = dict.fromkeys(names)
    grouped = {name for names in groups.values() for name in names}
    groups |= {run.name: {run.name: None} for run in runs if run.name not in grouped}
    history = {run.name: run.history for run in runs}
    charts = {head: curves({name: history[name] for name in names}) for head, names in groups.items()}
    return [(head if len(charts) > 1 else "", part) for head, part in charts.items() if part]


def _about(runs: Sequence[Run]) -> str:
    """Return the data of the runs in words."""
    counts = {
        f"{run.dataset}: {', '.join(f'{len(part):,} {name}' for name, part in run.dataset.splits.items())} "
        f"{run.dataset.words}": None
        for run in runs
        if run.dataset is not None
    }
    return "; ".join(counts)


def _settings(runs: Sequence[Run]) -> dict[str, list[list[str]]]:
    """Return the settings of all runs as rows: a name, and the value of each run."""

    def rows(columns: Sequence[Mapping[str, str]]) -> list[list[str]]:
        names = dict.fromkeys(name for column in columns for name in column)
        return [[name, *(column.get(name, "–") for column in columns)] for name in names]

    settings = rows([run.settings for run in runs])
    main = [row for row in settings if row[0] in MAIN or len({*row[1:]}) > 1]
    other = [row for row in settings if row not in main]
    return {"main": main, "other": other, "origin": rows([run.origin for run in runs])}


def _comparison(rows: Sequence[compare.Row]) -> dict[str, Any] | None:
    """Return the ranking of the runs: for each group a heading, a table and a chart."""
    if not rows:
        return None
    heads, *cells = display.cells(rows)
    parts, rest = [], iter(cells)
    for group in display.groups(rows):
        table = [heads, *(next(rest) for _ in group)]
        chart = bars("-log p(x) of test data", [(row.name, *row.nll) for row in group])
        parts.append({"headings": [*display.headings(group[0], rows[0])], "table": table, "chart": chart})
    return {"groups": parts, "notes": display.notes(rows)}
