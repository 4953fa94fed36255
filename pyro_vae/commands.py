"""What the ``pyro-vae`` command does. Options are the signatures of ``data.load``, ``VAE.build`` and ``fit``."""

import inspect
import io
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentError
from matplotlib.figure import Figure

from pyro_vae import VAE, checkpoint, compare, data, evaluate, fit, load, plots, report
from pyro_vae.options import check_config, columns_of, kind_of, make, parse, sentence
from pyro_vae.program import posterior_of
from pyro_vae.seeds import at_test, forked
from pyro_vae.train import Settings, check_device, check_support, is_first

__all__ = ["run"]


def run(given: list[str]) -> int:
    """Run a subcommand, the first word given; return the exit code: 0, 2 after bad input, 130 after Ctrl-C."""
    subcommand, *words = given
    name = f"pyro-vae {subcommand}"
    resumes = subcommand == "train" and any(word.split("=")[0] == "--resume" for word in words)
    sys.path.append(str(Path.cwd()))  # where a class of the user's own is
    show, warnings.showwarning = warnings.showwarning, lambda message, *_: print(f"{name}: {message}", file=sys.stderr)
    try:
        check_config(words)
        if resumes:
            subcommand, words = "resume", [word.removeprefix("--resume=") for word in words if word != "--resume"]
            if not words:
                raise ValueError("Expected a run directory after --resume; got none. As in: --resume runs/first")
        command: Callable[..., None] = globals()[f"_{subcommand}"]
        command(**parse(subcommand, command, words))
    except KeyboardInterrupt as interrupt:
        if is_first():
            print(f"\n{name}: interrupted. {interrupt}".rstrip(), file=sys.stderr)
        return 130
    except Exception as error:
        if not (said := sentence(error, name)):
            raise
        if resumes and isinstance(error, ArgumentError):
            said += " With --resume go --epochs, --on_nan, --device, --logger and --trust alone: "
            said += "RUN/config.yaml has the rest."
        print(f"{name}: {said}", file=sys.stderr)
        return 2
    finally:
        sys.path.pop()
        warnings.showwarning = show
    return 0


def _train(**options: Any) -> None:
    """Train a VAE or a program of your own, print its ELBO and -log p(x) on every split, and draw its figures."""

    def take(function: Callable[..., Any]) -> dict[str, Any]:
        return {name: options[name] for name in inspect.signature(function).parameters if name in options}

    usual = f"runs/{Path(options['data']).stem or 'data'}-{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3]
    run = options["run_dir"] = Path(options["run_dir"] or usual).absolute()  # a program may change the directory
    kind, arguments = kind_of(options.pop("program"))
    options["columns"] = columns_of(kind, options)
    dataset = data.load(**take(data.load))
    del options["data"]  # which ``fit`` is given as it is loaded
    counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.splits.items())
    if is_first():
        print(f"{dataset}: {counts} {dataset.words}")
        if options["batch_size"] > len(dataset.train):
            print(f"each step takes them all: there are fewer than batch_size, {options['batch_size']:,}")
    with forked(torch.device("cpu"), options["seed"]):
        program = make(kind, arguments, dataset.event_shape, take(VAE.build))
        check_support(program, dataset, strict=True)
    _close(program, dataset, fit(program, dataset, **take(fit)), run)


def _resume(
    resume: str,
    epochs: int | None = None,
    on_nan: Literal["stop", "skip"] | None = None,
    device: str | None = None,
    logger: Literal["tensorboard"] | None = None,
    trust: str = "",
) -> None:
    """Go on with a run where it stopped, as if it had not.

    Args:
        resume: Run directory.
        epochs: Train until there are so many, if not as many as the run began with.
        on_nan: Another way with numbers that are not finite.
        device: Another device.
        logger: Another logger.
        trust: Modules that the run may name.
    """
    run = Path(resume).absolute()
    vae, config = load(resume, trust.split(), weights="last")
    given = {"epochs": epochs, "on_nan": on_nan, "device": device, "logger": logger}
    config |= {name: value for name, value in given.items() if value is not None}
    objective = checkpoint.construct_objective(config.get("objective"), trust.split())
    dataset, _ = checkpoint.data_of(resume)
    if is_first():
        print(f"{dataset}: going on with {resume}")
    _close(vae, dataset, fit(vae, dataset, objective, **checkpoint.arguments(Settings, config), resume=run), run)


def _close(program: Any, dataset: data.Dataset, history: dict[str, list[float]], run: Path) -> None:
    """Print the table and draw the figures that a training ends with."""
    if not is_first():
        return
    print(f"\n{report.table(program, dataset)}\n", flush=True)
    if not run.is_dir():
        return  # it was moved, which fit has said
    try:
        checkpoint.write_all(run, _pictures({"curves": plots.curves(history)} | report.figures(program, dataset)))
        print(f"figures: {checkpoint.shown(run / 'figures')}")
    finally:
        print(f"run:     {checkpoint.shown(run)}\nmore:    pyro-vae evaluate {checkpoint.shown(run)}")


def _evaluate(
    run: str,
    seed: int = 0,
    device: str = "cpu",
    weights: Literal["final", "best", "last"] = "final",
    trust: str = "",
    **options: Any,
) -> None:
    """Say how good a trained program and its guide are, with a diagnosis in words, and draw its figures.

    Args:
        run: Run directory.
        seed: Seed of the draws.
        device: ``cpu`` or ``cuda``.
        weights: Those that training ended with, those of the best validation ELBO, or of the last checkpoint.
        trust: Modules that the run may name.
        options: Arguments of ``report.evaluation``.
    """
    check_device(device)
    folder = Path(run).absolute()
    checkpoint.inside(folder, "figures")  # said before the minutes that it takes
    vae, _ = load(run, trust.split(), weights)
    dataset, _ = checkpoint.data_of(run)
    started = time.perf_counter()
    found = report.evaluation(vae.to(device), dataset, seed=seed, **options)
    took = f"{(time.perf_counter() - started) / 60:.1f} minutes"
    print(found, flush=True)  # before what may fail
    found.save(folder, _pictures(found.figures | report.figures(vae, dataset, seed)))
    print(f"\nfigures: {checkpoint.shown(folder / 'figures')}")
    print(f"also:    evaluation.txt, .json and .csv (a line for each {found.called[:-1]}) in {run}")
    print(f"took:    {took}{_peak()}")


def _generate(
    run: str, num: int = 64, seed: int = 0, output: str | None = None, trust: str = "", given: int | None = None
) -> None:
    """Draw data from a trained program: of a VAE mean images at draws of the prior.

    Of a program without a method ``generate`` all that is observed is drawn, given the covariates of test data.

    Args:
        run: Run directory.
        num: How many.
        seed: Seed of the draws.
        output: A ``.png`` for a picture, a ``.npy`` for numbers, a ``.npz`` where several sites are observed. If not
            given, figures/generated.png of the run, or such a .npy or .npz.
        trust: Modules that the run may name.
        given: The label of all, of a program that takes one; else each label in turn, or covariates of test data.
    """
    program, config = load(run, trust.split())
    if num < 1:
        raise ValueError(f"Expected to generate at least 1 image; got num = {num}.")
    with at_test(program, torch.device("cpu"), seed), torch.no_grad():
        takes = "given" in inspect.signature(getattr(program, "generate", lambda: None)).parameters
        if given is not None and not takes:
            raise ValueError(f"Expected no --given, since {type(program).__name__} is given no label; got {given}.")
        rows: Any = ()
        if takes or not hasattr(program, "generate"):
            test = checkpoint.data_of(run)[0].test
            rows = evaluate.rows_of(program, test, torch.arange(num) % len(test))
        if hasattr(program, "generate"):
            covariates = [y for y in rows[1:] if y.is_floating_point()] if given is None else [given]
            drawn = {"x": program.generate(num, *covariates)}
        else:
            rows = posterior_of(program, rows)
            draws = rows.simulate(1)
            drawn = {name: draws[name][0] for name in rows.structure.observed}
    (x, *others) = drawn.values()
    kinds = [".npz"] if others else [".png", ".npy"] if x.dim() in (3, 4) else [".npy"]
    path = Path(output) if output else checkpoint.inside(run, f"figures/generated{kinds[0]}")
    if path.suffix not in kinds:
        raise ValueError(f"Expected output to end in {' or '.join(kinds)}; got {str(path)!r}.")
    content = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(content, **{name: value.numpy() for name, value in drawn.items()})
    elif path.suffix == ".npy":
        np.save(content, x.numpy())
    else:
        content.write(_picture(plots.samples(x / x.max() if config.get("counts") else x)))
    _write(path, content.getvalue())
    print(path)


def _compare(output: str = "comparison.png", trust: str = "", **options: Any) -> None:
    """Rank trained programs side by side: parts, ELBO, -log p(x), active units, seconds; and draw them.

    Args:
        output: A ``.png`` for the figure.
        trust: Modules that the run may name.
        options: Arguments of ``compare.compare``.
    """
    path = Path(output)
    if path.suffix != ".png":
        raise ValueError(f"Expected output to end in .png; got {output!r}.")
    rows = compare.compare(**options, trust=trust.split())
    print(compare.table(rows), flush=True)
    _write(path, _picture(compare.figure(rows)))
    print(f"\nfigure: {path}")


def _peak() -> str:
    """Say how much memory was resident at most, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f", at most {peak / 2 ** (30 if sys.platform == 'darwin' else 20):.2f} GiB of memory"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(path, content)


def _pictures(figures: dict[str, Figure]) -> dict[str, bytes]:
    return {f"figures/{name}.png": _picture(figure) for name, figure in figures.items()}


def _picture(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, dpi=150)
    return content.getvalue()
