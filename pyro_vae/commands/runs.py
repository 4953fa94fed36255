"""The subcommands of trained programs: ``evaluate``, ``generate``, ``compare`` and ``report``."""

import inspect
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pyro_vae import checkpoint, compare, data, evaluate, load, page, plots, report
from pyro_vae.commands.files import check_output, picture, pictures, write
from pyro_vae.data.tables import file_of
from pyro_vae.program import argument_names, posterior_of
from pyro_vae.seeds import eval_mode
from pyro_vae.train import check_device


def _evaluate(
    run: str,
    seed: int = 0,
    device: str = "cpu",
    weights: Literal["final", "best", "last"] = "final",
    trust: str = "",
    **options: Any,
) -> None:
    """Evaluate a trained program and its guide, print a diagnosis, and draw figures.

    Args:
        run: Run directory.
        seed: Seed of the draws.
        device: ``cpu`` or ``cuda``.
        weights: Weights at the end of training, of the best validation ELBO, or of the last checkpoint.
        trust: Modules whose classes the run may name.
        options: Arguments of ``report.evaluation``.
    """
    check_device(device)
    folder = Path(run).absolute()
    checkpoint.safe_path(folder, "figures")  # before an evaluation of minutes
    vae, _ = load(run, trust.split(), weights)
    dataset, _ = checkpoint.data_of(run)
    started = time.perf_counter()
    evaluation = report.evaluation(vae.to(device), dataset, seed=seed, **options)
    minutes = (time.perf_counter() - started) / 60
    print(evaluation, flush=True)  # before the writes, which may fail
    evaluation.save(folder, pictures(evaluation.figures | report.figures(vae, dataset, seed)))
    print(f"\nfigures: {checkpoint.display_path(folder / 'figures')}")
    print(f"also:    evaluation.txt, .json and .csv (a line for each {evaluation.called[:-1]}) in {run}")
    print(f"took:    {minutes:.1f} minutes{_peak_memory()}")


def _generate(
    run: str, num: int = 64, seed: int = 0, output: str | None = None, trust: str = "", given: int | str | None = None
) -> None:
    """Draw data from a trained program; from a VAE, mean images at draws of the prior.

    From a program without a method ``generate``, draw all observed sites, given the covariates of test data.

    Args:
        run: Run directory.
        num: Number of draws.
        seed: Seed of the draws.
        output: A ``.png`` file for a picture; a ``.csv`` or ``.parquet`` file for rows of a table, with the names and
            the units of its columns; a ``.npy`` file for numbers; or a ``.npz`` file for several observed sites. By
            default figures/generated.png, .csv, .npy or .npz in the run directory.
        trust: Modules whose classes the run may name.
        given: Label of all draws, for a program that takes one: a number from 0, or the name of a table's level. By
            default each label in turn, or the covariates of test data.
    """
    program, config = load(run, trust.split())
    schema = checkpoint.load_schema(run)
    if num < 1:
        raise ValueError(f"Expected to generate at least 1 image; got num = {num}.")
    with eval_mode(program, torch.device("cpu"), seed), torch.no_grad():
        draws, y = _draws(run, program, num, _code(given, schema))
    (x, *further) = draws.values()
    is_table = schema is not None and x.shape[1:] == (len(schema.x),)
    kinds = [".csv", ".parquet", ".npy"] if is_table else [".png", ".npy"] if x.dim() in (3, 4) else [".npy"]
    kinds = [".npz"] if further else kinds
    path = Path(output) if output else checkpoint.safe_path(run, f"figures/generated{kinds[0]}")
    if path.suffix not in kinds:
        raise ValueError(f"Expected output to end in {' or '.join(kinds)}; got {str(path)!r}.")
    x = schema.in_units(x) if schema and is_table else x
    content = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(content, **{name: value.numpy() for name, value in draws.items()})
    elif path.suffix == ".npy":
        np.save(content, x.numpy())
    elif path.suffix == ".png":
        content.write(picture(plots.samples(x / x.max() if config.get("counts") else x)))
    elif schema:
        content.write(file_of(schema, x, y, path))
    write(path, content.getvalue())
    print(path)


def _code(given: int | str | None, schema: data.Schema | None) -> int | None:
    """Return the code of a label, from its number or from the name of a level."""
    levels = schema.of_y[0].levels if schema and len(schema.of_y) == 1 else ()
    if given is None or not (levels or isinstance(given, str)):
        return given
    if str(given) not in levels:
        expected = f"one of {', '.join(levels)}" if levels else "a number, the label"
        raise ValueError(f"Expected --given to be {expected}; got {given}.")
    return levels.index(str(given))


def _draws(run: str, program: Any, num: int, given: int | None) -> tuple[dict[str, Any], torch.Tensor | None]:
    """Return draws by site, and the label or the covariates y of each draw, if any."""
    takes = "given" in inspect.signature(getattr(program, "generate", lambda: None)).parameters
    if given is not None and not takes:
        raise ValueError(f"Expected no --given, since {type(program).__name__} takes no label; got {given}.")
    if hasattr(program, "generate") and not takes:
        return {"x": program.generate(num)}, None
    test = checkpoint.data_of(run)[0].test
    rows = evaluate.rows_of(program, test, torch.arange(num) % len(test))
    if takes:
        y = next(iter(rows[1:]), None) if given is None else torch.full((num,), given)
        if given is None and (y is None or not y.is_floating_point()):
            labels = getattr(program, "labels", ())
            return {"x": program.generate(num)}, torch.arange(num) % len(labels) if labels else None
        return {"x": program.generate(num, y)}, y
    target = posterior_of(program, rows)
    simulated = target.simulate(1)
    y = next((column for name, column in zip(argument_names(program), rows, strict=False) if name == "y"), None)
    return {name: simulated[name][0] for name in target.structure.observed}, y


def _compare(runs: Sequence[str], output: str = "comparison.png", trust: str = "", **options: Any) -> None:
    """Rank trained programs, or the settings of a study over seeds, by -log p(x), in a table and a figure.

    Args:
        runs: Run directories, or directories of studies.
        output: A ``.png`` file for the figure.
        trust: Modules whose classes the runs may name.
        options: Arguments of ``compare.compare``.
    """
    path = Path(output)
    check_output(path, ".png")
    folders, absent = compare.runs_of(runs)
    rows = compare.compare(folders, **options, trust=trust.split())
    if any(compare.is_study(run) for run in runs):
        settings = compare.over_seeds(rows)
        print(compare.table_over_seeds(settings, absent), flush=True)
        write(path, picture(compare.figure_over_seeds(settings)))
    else:
        print(compare.table(rows), flush=True)
        write(path, picture(compare.figure(rows)))
    print(f"\nfigure: {path}")


def _report(output: str | None = None, trust: str = "", **options: Any) -> None:
    """Write a page about trained programs: one HTML file to share, with curves, numbers, images and sliders.

    Args:
        output: A ``.html`` file; by default report.html in the run directory, or in this folder for several runs.
        trust: Modules whose classes the runs may name.
        options: Arguments of ``page.html``.
    """
    runs = options["runs"]
    path = checkpoint.safe_path(runs[0] if len(runs) == 1 else ".", "report.html") if output is None else Path(output)
    check_output(path, ".html")
    content = page.html(**options, trust=trust.split()).encode()
    write(path, content)
    print(f"report: {path} ({len(content) / 1e6:.1f} MB, one file)")


def _peak_memory() -> str:
    """Return the peak of resident memory in words; empty on Windows."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f", at most {peak / 2 ** (30 if sys.platform == 'darwin' else 20):.2f} GiB of memory"
