"""The subcommands of ``pyro-vae``. Options are the arguments of ``data.load``, ``VAE.build`` and ``fit``."""

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

from pyro_vae import VAE, checkpoint, compare, data, evaluate, fit, fit_prior, load, plots, report
from pyro_vae.objectives import PriorCrossEntropy
from pyro_vae.options import check_config, class_of, columns_of, error_message, make, parse
from pyro_vae.program import posterior_of
from pyro_vae.seeds import eval_mode, fork_rng
from pyro_vae.train import Settings, check_device, check_support, is_first

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Run the subcommand that the first argument names. Return the exit code 0, 2 after bad input, 130 after Ctrl-C."""
    subcommand, *words = arguments
    name = f"pyro-vae {subcommand}"
    names = {word.split("=")[0] for word in words} if subcommand == "train" else set()
    resumes = "--resume" in names
    sys.path.append(str(Path.cwd()))  # for the user's classes
    show, warnings.showwarning = warnings.showwarning, lambda message, *_: print(f"{name}: {message}", file=sys.stderr)
    try:
        check_config(words)
        if resumes:
            subcommand, words = "resume", [word.removeprefix("--resume=") for word in words if word != "--resume"]
            if not words:
                raise ValueError("Expected a run directory after --resume, as --resume runs/first; got none.")
        elif "--stage" in names:
            subcommand = "stage"
        command: Callable[..., None] = globals()[f"_{subcommand}"]
        command(**parse(subcommand, command, words))
    except KeyboardInterrupt as interrupt:
        if is_first():
            print(f"\n{name}: interrupted. {interrupt}".rstrip(), file=sys.stderr)
        return 130
    except Exception as error:
        if not (message := error_message(error, name)):
            raise
        if resumes and isinstance(error, ArgumentError):
            message += " --resume allows only --epochs, --on_nan, --device, --logger and --trust: "
            message += "RUN/config.yaml has the other settings."
        print(f"{name}: {message}", file=sys.stderr)
        return 2
    finally:
        sys.path.pop()
        warnings.showwarning = show
    return 0


def _train(**options: Any) -> None:
    """Train a VAE or another program, print its ELBO and -log p(x) on each split, and draw figures."""

    def take(function: Callable[..., Any]) -> dict[str, Any]:
        return {name: options[name] for name in inspect.signature(function).parameters if name in options}

    run = options["run_dir"] = _new_run(options["run_dir"], options["data"])
    kind, arguments = class_of(options.pop("program"))
    options["columns"] = columns_of(kind, options)
    dataset = data.load(**take(data.load))
    del options["data"]  # ``fit`` takes the data set
    if is_first():
        counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.splits.items())
        print(f"{dataset}: {counts} {dataset.words}")
        if (size := options["batch_size"]) > len(dataset.train):
            print(f"batch_size {size:,} exceeds the training data: each step takes all {len(dataset.train):,}")
    with fork_rng(torch.device("cpu"), options["seed"]):
        program = make(kind, arguments, dataset.event_shape, take(VAE.build))
        check_support(program, dataset, strict=True)
        if isinstance(options["objective"], PriorCrossEntropy):
            kind = type(options["objective"]).__name__
            raise ValueError(f"Expected --stage prior RUN for {kind}, which trains the prior of a trained program.")
    _close(program, dataset, fit(program, dataset, **take(fit)), run)


def _stage(
    run: str, stage: Literal["prior"] = "prior", run_dir: str | None = None, trust: str = "", **options: Any
) -> None:
    """Train only the prior of a trained program, on draws of its guide, in a new run.

    Args:
        run: Run directory of the trained program.
        stage: ``prior``, the second stage; its options are these. Without ``--stage``, train trains a whole program.
        run_dir: Directory of the new run; by default a new directory in runs/.
        trust: Modules whose classes the run may name.
        options: Arguments of ``fit_prior``.
    """
    program, config = load(run, trust.split())
    dataset, _ = checkpoint.data_of(run)
    folder = _new_run(run_dir, f"{config['data']}-prior")
    if is_first():
        print(f"{dataset}: the prior of {run}, on draws of its guide")
    _close(program, dataset, fit_prior(program, dataset, run_dir=folder, **options), folder)


def _new_run(run_dir: str | None, data: str) -> Path:
    """Return the directory of a new run as an absolute path, since a program may change the current directory."""
    default = f"runs/{Path(data).stem or 'data'}-{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3]
    return Path(run_dir or default).absolute()


def _resume(
    resume: str,
    epochs: int | None = None,
    on_nan: Literal["stop", "skip"] | None = None,
    device: str | None = None,
    logger: Literal["tensorboard"] | None = None,
    trust: str = "",
) -> None:
    """Resume a run; on the same machine the result is bit-identical to an uninterrupted run.

    Args:
        resume: Run directory.
        epochs: Total number of epochs; by default the number of the run.
        on_nan: Replaces on_nan of the run.
        device: Replaces the device of the run.
        logger: Replaces the logger of the run.
        trust: Modules whose classes the run may name.
    """
    run = Path(resume).absolute()
    vae, config = load(resume, trust.split(), weights="last")
    changes = {"epochs": epochs, "on_nan": on_nan, "device": device, "logger": logger}
    config |= {name: value for name, value in changes.items() if value is not None}
    objective = checkpoint.objective_from_spec(config.get("objective"), trust.split())
    dataset, _ = checkpoint.data_of(resume)
    if is_first():
        print(f"{dataset}: resuming {resume}")
    _close(vae, dataset, fit(vae, dataset, objective, **checkpoint.arguments(Settings, config), resume=run), run)


def _close(program: Any, dataset: data.Dataset, history: dict[str, list[float]], run: Path) -> None:
    """Print the closing table of a training, and draw its figures."""
    if not is_first():
        return
    print(f"\n{report.table(program, dataset)}\n", flush=True)
    if not run.is_dir():
        return  # it was moved: fit has warned
    try:
        checkpoint.write_all(run, _pictures({"curves": plots.curves(history)} | report.figures(program, dataset)))
        print(f"figures: {checkpoint.display_path(run / 'figures')}")
    finally:
        print(f"run:     {checkpoint.display_path(run)}\nmore:    pyro-vae evaluate {checkpoint.display_path(run)}")


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
    evaluation.save(folder, _pictures(evaluation.figures | report.figures(vae, dataset, seed)))
    print(f"\nfigures: {checkpoint.display_path(folder / 'figures')}")
    print(f"also:    evaluation.txt, .json and .csv (a line for each {evaluation.called[:-1]}) in {run}")
    print(f"took:    {minutes:.1f} minutes{_peak_memory()}")


def _generate(
    run: str, num: int = 64, seed: int = 0, output: str | None = None, trust: str = "", given: int | None = None
) -> None:
    """Draw data from a trained program; from a VAE, mean images at draws of the prior.

    From a program without a method ``generate``, draw all observed sites, given the covariates of test data.

    Args:
        run: Run directory.
        num: Number of draws.
        seed: Seed of the draws.
        output: A ``.png`` file for a picture, a ``.npy`` file for numbers, or a ``.npz`` file for several observed
            sites; by default figures/generated.png, .npy or .npz in the run directory.
        trust: Modules whose classes the run may name.
        given: Label of all draws, for a program that takes one; by default each label in turn, or the covariates of
            test data.
    """
    program, config = load(run, trust.split())
    if num < 1:
        raise ValueError(f"Expected to generate at least 1 image; got num = {num}.")
    with eval_mode(program, torch.device("cpu"), seed), torch.no_grad():
        takes = "given" in inspect.signature(getattr(program, "generate", lambda: None)).parameters
        if given is not None and not takes:
            raise ValueError(f"Expected no --given, since {type(program).__name__} takes no label; got {given}.")
        rows: Any = ()
        if takes or not hasattr(program, "generate"):
            test = checkpoint.data_of(run)[0].test
            rows = evaluate.rows_of(program, test, torch.arange(num) % len(test))
        if hasattr(program, "generate"):
            covariates = [y for y in rows[1:] if y.is_floating_point()] if given is None else [given]
            draws = {"x": program.generate(num, *covariates)}
        else:
            rows = posterior_of(program, rows)
            simulated = rows.simulate(1)
            draws = {name: simulated[name][0] for name in rows.structure.observed}
    (x, *further) = draws.values()
    kinds = [".npz"] if further else [".png", ".npy"] if x.dim() in (3, 4) else [".npy"]
    path = Path(output) if output else checkpoint.safe_path(run, f"figures/generated{kinds[0]}")
    if path.suffix not in kinds:
        raise ValueError(f"Expected output to end in {' or '.join(kinds)}; got {str(path)!r}.")
    content = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(content, **{name: value.numpy() for name, value in draws.items()})
    elif path.suffix == ".npy":
        np.save(content, x.numpy())
    else:
        content.write(_picture(plots.samples(x / x.max() if config.get("counts") else x)))
    _write(path, content.getvalue())
    print(path)


def _compare(output: str = "comparison.png", trust: str = "", **options: Any) -> None:
    """Rank trained programs by -log p(x), in a table and a figure.

    Args:
        output: A ``.png`` file for the figure.
        trust: Modules whose classes the runs may name.
        options: Arguments of ``compare.compare``.
    """
    path = Path(output)
    if path.suffix != ".png":
        raise ValueError(f"Expected output to end in .png; got {output!r}.")
    rows = compare.compare(**options, trust=trust.split())
    print(compare.table(rows), flush=True)
    _write(path, _picture(compare.figure(rows)))
    print(f"\nfigure: {path}")


def _peak_memory() -> str:
    """Return the peak of resident memory in words; empty on Windows."""
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
