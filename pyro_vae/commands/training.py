"""The subcommand ``train``: a new run, a second stage, or a resumed run."""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pyro_vae import checkpoint, data, fit, fit_prior, load, plots, report
from pyro_vae.commands.files import pictures
from pyro_vae.options import dataset_of, fit_arguments, program_of
from pyro_vae.train import Settings, is_first


def _train(**options: Any) -> None:
    """Train a VAE or another program, print its ELBO and -log p(x) on each split, and draw figures."""
    run = options["run_dir"] = _new_run(options["run_dir"], options["data"])
    dataset = dataset_of(options)
    if is_first():
        counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.splits.items())
        print(f"{dataset}: {counts} {dataset.words}")
        if (size := options["batch_size"]) > len(dataset.train):
            print(f"batch_size {size:,} exceeds the training data: each step takes all {len(dataset.train):,}")
    program = program_of(options, dataset)
    _close(program, dataset, fit(program, dataset, **fit_arguments(options)), run)


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
        checkpoint.write_all(run, pictures({"curves": plots.curves(history)} | report.figures(program, dataset)))
        print(f"figures: {checkpoint.display_path(run / 'figures')}")
    finally:
        print(f"run:     {checkpoint.display_path(run)}\nmore:    {checkpoint.command_on('evaluate', run)}")
