"""The page as text: reads the runs, collects their content and fills the template."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from pyro_vae import compare
from pyro_vae.compare import display
from pyro_vae.data import Dataset
from pyro_vae.page.charts import bars, curves
from pyro_vae.page.content import content
from pyro_vae.page.latents import SPAN
from pyro_vae.page.runs import IMAGES, MAIN, PARTICLES, Run, evaluation_of, read
from pyro_vae.plots.style import CLASSES, LINES
from pyro_vae.train import check_device

SIZE = 2_600_000  # bytes of all images before compression; base64 adds a third, and text at most a megabyte


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
    if not runs or min(num_particles or 1, images or 2) < 1 or images == 1 or 0 in (num_particles, images):
        got = f"{len(runs)} runs, num_particles = {num_particles} and images = {images}"
        raise ValueError(f"Expected at least 1 run, 1 particle and 2 images; got {got}.")
    check_device(device)
    datasets: dict[str, Dataset] = {}
    folders = [Path(run).resolve().name for run in runs]
    names = [name if folders.count(name) == 1 else str(run) for name, run in zip(folders, runs, strict=True)]
    loaded = [read(run, name, trust, datasets) for run, name in zip(runs, names, strict=True)]
    rows: list[compare.Row] = []
    ranked = [str(run.folder) for run in loaded if run.final and run.dataset is not None]
    if len(ranked) > 1:
        draws = (num_particles or PARTICLES, images or IMAGES)
        rows = compare.compare(ranked, *draws, seed=seed, device=device, trust=trust, progress=progress)
    parts = []
    for run in loaded:
        if run.program is not None:
            run.program.to(device)
        evaluation = evaluation_of(run, num_particles, images, seed, progress)
        parts.append(content(run, evaluation, seed, SIZE / len(loaded), len(loaded)))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_vae.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        parts=parts,
        about=_about(loaded),
        settings=_settings(loaded),
        sprites={name: sprite for part in parts for name, sprite in part.sprites.items()},
        span=f"{SPAN:g}",
        curves=curves({run.name: run.history for run in loaded}),
        comparison=_comparison(rows),
        version=version("pyro_vae"),
        lines=LINES,
        classes=CLASSES,
    )


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
