"""What a run's directory holds, and how it is made and read."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save
from torch import nn

from pyro_vae.checkpoint.describing import event_shape
from pyro_vae.checkpoint.environment import changes, environment
from pyro_vae.checkpoint.files import hold, inside, short, write
from pyro_vae.checkpoint.nests import unpack

__all__ = ["begin", "begin_again", "create", "hold_new", "load_metrics", "load_state", "save_metrics", "save_weights"]

# What training and evaluation write. In this order --overwrite takes it away: without the first it is no run.
WRITTEN = (
    "config.yaml",
    "checkpoint/*.safetensors",
    "model.safetensors",
    "metrics.csv",
    "seconds.csv",
    "environment.json",
    "diverged.json",
    "evaluation.*",
    "figures/*.png",
    "tensorboard/events.out.tfevents.*",
)


def create(run_dir: str | Path, config: dict[str, Any], overwrite: bool = False) -> Path:
    """Make a run directory: ``environment.json`` and ``config.yaml``.

    Arguments:
        run_dir: The directory, new, or with other things in it.
        config: Plain data.
        overwrite: Whether to take a run that is there away.

    Raises:
        ValueError: If the directory holds a run already, or another process is making one there.
        OSError: If it cannot be made.
    """
    with hold_new(run_dir, overwrite) as run:
        begin(run, config)
    return run


def begin(run: Path, config: dict[str, Any]) -> None:
    """Write ``environment.json`` and then ``config.yaml``, which makes a directory a run."""
    write(inside(run, "environment.json"), json.dumps(environment(config.get("seed")), indent=2) + "\n")
    write(inside(run, "config.yaml"), yaml.safe_dump(config, sort_keys=False))


@contextmanager
def hold_new(run_dir: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Make a directory that holds no run, and keep other processes from it for as long as this lasts.

    If it comes to an error before the directory is a run, what was made of it is taken away.

    Raises:
        ValueError: If it holds a run already, or another process is writing to it.
        OSError: If it cannot be made.
    """
    run = Path(run_dir)
    if (run / "config.yaml").exists() and not overwrite:
        raise ValueError(
            f"Expected a new run directory; {str(run)!r} holds a run already. Choose another --run_dir, go on with "
            f"that run by --resume {run}, or write over it with --overwrite true."
        )
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Expected to make a folder for the run; could not make {str(run)!r} ({error}).") from error
    with hold(run):
        if (run / "config.yaml").exists():
            if not overwrite:  # made since
                raise ValueError(f"Expected a new run directory; {str(run)!r} has become another run's.")
            _clear(run)
        try:
            yield run
        finally:
            if made and not (run / "config.yaml").exists():
                _clear(run)
                for folder in (run / "checkpoint", *made):
                    with suppress(OSError):
                        folder.rmdir()


def _clear(run: Path) -> None:
    for pattern in WRITTEN:
        for path in sorted(run.glob(pattern)):
            inside(run, str(path.relative_to(run))).unlink()


def save_weights(run: Path, program: nn.Module) -> None:
    """Write ``model.safetensors``: the parameters, with the shape of x that a VAE was built for in its metadata."""
    shape = event_shape(program)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in program.state_dict().items()}
    write(inside(run, "model.safetensors"), save(tensors, metadata={"event_shape": json.dumps(shape)}))


def save_metrics(run: Path, history: Mapping[str, list[float]]) -> None:
    """Write ``metrics.csv``, and ``seconds.csv`` beside it: one line an epoch, one column for each of the history.

    How long an epoch took is no part of what a seed decides: without it the same run writes the same file.
    """
    for name, columns in (
        ("metrics.csv", {key: values for key, values in history.items() if key != "seconds"}),
        ("seconds.csv", {key: values for key, values in history.items() if key == "seconds"}),
    ):
        if columns:
            text = io.StringIO(newline="")
            writer = csv.writer(text)
            writer.writerow(["epoch", *columns])
            writer.writerows([i + 1, *row] for i, row in enumerate(zip(*columns.values(), strict=True)))
            write(inside(run, name), text.getvalue())


def load_metrics(run_dir: str | Path) -> dict[str, list[float]]:
    """Return the history that :func:`save_metrics` wrote; empty where there is no file, or no epoch in it.

    Raises:
        ValueError: If it is no table of numbers.
    """
    return _table(Path(run_dir) / "metrics.csv") | _table(Path(run_dir) / "seconds.csv")


def _table(path: Path) -> dict[str, list[float]]:
    if not path.is_file():
        return {}
    try:
        names, *lines = csv.reader(path.read_text().splitlines())
        epochs = [dict(zip(names, map(float, line), strict=True)) for line in lines]
        return {name: [epoch[name] for epoch in epochs] for name in names[1:] if epochs}
    except (ValueError, csv.Error) as error:
        raise ValueError(f"Expected a table of numbers; could not read {str(path)!r} ({short(error)}).") from error


def load_state(run: Path) -> tuple[dict[str, Any], str]:
    """Return the state to go on from, the last one written or else the one before; and a line where it is that.

    Raises:
        ValueError: If there is none, or neither can be read.
    """
    found: list[str] = []
    for name in ("last", "previous"):
        path = inside(run, f"checkpoint/{name}.safetensors")
        if not path.is_file():
            continue
        try:
            state = unpack(path)
        except ValueError as error:
            found.append(f"{str(path)!r} cannot be read ({error})")
            continue
        return state, f"{found[0]}; going on from the one before it." if found else ""
    raise ValueError(
        f"Expected a run to go on with; {' and '.join(found) or f'there is no checkpoint in {str(run)!r}'}. "
        "Train anew: pyro-vae train --config RUN/config.yaml --run_dir ANOTHER."
    )


def begin_again(run: Path, config: dict[str, Any]) -> None:
    """Add to ``environment.json`` that a run went on, and with what; warn of what differs that last bits depend on.

    Raises:
        ValueError: If the file cannot be read.
    """
    path, now = inside(run, "environment.json"), environment(None)
    try:
        before = json.loads(path.read_text()) if path.is_file() else {}
        changed = changes(before, now)
        resumed = [*before.get("resumed", []), now | {"seed": before.get("seed")}]
    except (ValueError, OSError, RecursionError, AttributeError, TypeError) as error:
        raise ValueError(f"Expected the run's environment; could not read {str(path)!r} ({short(error)}).") from error
    write(path, json.dumps(before | {"resumed": resumed}, indent=2) + "\n")
    write(inside(run, "config.yaml"), yaml.safe_dump(config, sort_keys=False))
    if changed:
        warnings.warn(f"Going on, but the last bits may be others: {changed}.", stacklevel=2)
