"""The run directory: its creation, its tables, and its checkpoints."""

import csv
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import nn

from pyro_vae.checkpoint.environment import environment
from pyro_vae.checkpoint.files import deserialize, display_path, lock, one_line, safe_path, write
from pyro_vae.checkpoint.former import with_former
from pyro_vae.checkpoint.spec import event_shape
from pyro_vae.data import Schema

__all__ = ["append_resume", "check_data", "check_settings", "load_environment", "load_metrics", "load_schema"]
__all__ += ["load_state", "load_state_before_fall", "lock_new", "save_metrics", "save_weights", "to_csv"]
__all__ += ["write_header"]

Digests = dict[str, dict[str, str]]  # by split and column
# Entries on which, beside the packages, the last bits of a number depend.
BITS = ("python", "threads", "processor", "instructions", "gpus")
# Files of training and evaluation, in the order in which --overwrite deletes them: without the first the directory is
# no run, and the last shows that the files belong to one.
RUN_FILES = ["config.yaml", "checkpoint/*.safetensors", "model.safetensors", "metrics.csv", "seconds.csv"]
RUN_FILES += ["schema.json", "diverged.json", "evaluation.*", "report.html", "figures/*.png"]
RUN_FILES += ["tensorboard/events.out.tfevents.*"]
RUN_FILES += ["environment.json"]
# Settings that a resumed run may change; the number of epochs only if no schedule depends on it.
CHANGEABLE = {"root", "data", "device", "on_nan", "logger", "epochs"}
KINDS = {"config": dict, "data": dict, "packages": dict, "resumed": list, "directory": str}  # in environment.json


def write_header(
    run: Path,
    config: dict[str, Any],
    digests: Digests,
    save: Callable[[], None] = lambda: None,
    schema: Schema | None = None,
) -> None:
    """Write ``environment.json`` and a table's ``schema.json``, call ``save()``, then mark the run by ``config.yaml``.

    ``save()`` saves a first state.
    """
    content = environment(config.get("seed")) | {"config": config, "data": digests}
    write(safe_path(run, "environment.json"), json.dumps(content, indent=2) + "\n")
    if schema:
        write(safe_path(run, "schema.json"), schema.to_json())
    save()
    write(safe_path(run, "config.yaml"), yaml.safe_dump(config, sort_keys=False))


def load_schema(run: str | Path) -> Schema | None:
    """Read the columns of a run's table from ``schema.json``; return None for a run on other data."""
    path = safe_path(run, "schema.json")
    return Schema.read(path) if path.is_file() else None


def load_environment(run: str | Path) -> dict[str, Any]:
    """Read ``environment.json`` and drop entries of a wrong type; return an empty dictionary for an unreadable file."""
    try:
        path = safe_path(run, "environment.json")
        content = with_former(json.loads(path.read_text()) if path.is_file() else {})
    except (OSError, ValueError, RecursionError):
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in items if isinstance(value, KINDS.get(key, object))}


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a setting that differs from the original setting of a run."""
    for name, value in now.items():
        if name not in CHANGEABLE and before.get(name) != value:
            raise ValueError(
                f"Expected the settings that the run began with; {name} was {before.get(name)!r} and is now {value!r}. "
                "Restore the old value, or start a new run."
            )


def check_data(run: str | Path, digests: Digests) -> None:
    """Refuse data that differ from a run's training data; compare the digests in ``environment.json``, if present."""
    entries = load_environment(run).get("data", {})
    known = {split: columns for split, columns in entries.items() if isinstance(columns, dict)}
    # Every split has x; the other columns are the ones that the program takes.
    now = {split: columns | {"x": ""} | digests.get(split, {}) for split, columns in known.items()}
    if changed := [split for split in known if not known[split].items() <= now[split].items()]:
        raise ValueError(
            f"Expected the data that {str(run)!r} was trained on; its {', '.join(changed)} data have changed since. "
            "Restore the data, or train a new run."
        )


@contextmanager
def lock_new(run_dir: str | Path, overwrite: bool = False) -> Iterator[Callable[[], Path]]:
    """Lock a new run directory, and delete the directory if no run is written; refuse to overwrite a user's files."""
    run = Path(run_dir).absolute()
    new = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Could not make the run directory {display_path(run)!r} ({error}).") from error
    with lock(run) as place:
        if (files := _run_files(run)) and "pyro_vae" not in load_environment(run).get("packages", {}):
            raise ValueError(
                f"Expected a new run directory; {display_path(run)!r} is no run, and its {files[0]!r} would be "
                "overwritten. Choose another --run_dir, or move your files."
            )
        if (run / "config.yaml").exists() and not overwrite:
            raise ValueError(
                f"Expected a new run directory; {display_path(run)!r} holds a run already. Choose another --run_dir, "
                f"resume that run with --resume {display_path(run)}, or replace it with --overwrite true."
            )
        _clear(run)
        try:
            yield place
        finally:
            if not (place() / "config.yaml").exists():
                _clear(place())
                for folder in (place() / "checkpoint", *new):
                    with suppress(OSError):
                        folder.rmdir()


def _run_files(run: Path) -> list[str]:
    """Return the names of files in a folder that match ``RUN_FILES``, in that order."""
    return [str(path.relative_to(run)) for pattern in RUN_FILES for path in sorted(run.glob(pattern))]


def _clear(run: Path) -> None:
    for path in [safe_path(run, name) for name in _run_files(run)]:  # check all before the first is deleted
        path.unlink()


def save_weights(run: Path, program: nn.Module) -> None:
    """Write the weights to ``model.safetensors``; for a VAE, add the shape of one x to the metadata of the file."""
    state = program.state_dict().items()  # cloned below, since a layer used twice is one tensor with two names
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state}
    write(
        safe_path(run, "model.safetensors"), save(tensors, metadata={"event_shape": json.dumps(event_shape(program))})
    )


def save_metrics(run: Path, history: Mapping[str, list[float]]) -> None:
    """Write one line per epoch to ``metrics.csv`` and to ``seconds.csv``; the seconds differ between equal runs."""
    for name in ("metrics.csv", "seconds.csv"):
        timed = name == "seconds.csv"
        if columns := {key: values for key, values in history.items() if (key == "seconds") is timed}:
            rows = ([i + 1, *row] for i, row in enumerate(zip(*columns.values(), strict=True)))
            write(safe_path(run, name), to_csv([["epoch", *columns], *rows]))


def to_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def load_metrics(run_dir: str | Path) -> dict[str, list[float]]:
    """Return the history that ``save_metrics`` wrote; return an empty dictionary if there is no file or no epoch."""
    history: dict[str, list[float]] = {}
    for path in (safe_path(run_dir, "metrics.csv"), safe_path(run_dir, "seconds.csv")):
        try:
            names, *lines = csv.reader(path.read_text().splitlines()) if path.is_file() else [[]]
            epochs = [dict(zip(names, map(float, line), strict=True)) for line in lines]
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"Expected a table of numbers; could not read {str(path)!r} ({one_line(error)})."
            ) from error
        history |= {name: [epoch[name] for epoch in epochs] for name in names[1:] if epochs}
    return history


def load_state(run: Path) -> tuple[dict[str, Any], str]:
    """Return the last checkpoint; if the file cannot be read, return the previous checkpoint and a warning."""
    errors: list[str] = []
    for name in ("last", "previous"):
        path = safe_path(run, f"checkpoint/{name}.safetensors")
        if path.is_file():
            try:
                return deserialize(path), f"{errors[0]}. Resuming from the previous checkpoint." if errors else ""
            except ValueError as error:
                errors.append(f"{str(path)!r} cannot be read ({error})")
    raise ValueError(
        f"Expected a checkpoint to resume from; {' and '.join(errors) or f'there is no checkpoint in {str(run)!r}'}. "
        "Start a new run: pyro-vae train --config RUN/config.yaml --run_dir ANOTHER."
    )


def load_state_before_fall(run: Path) -> dict[str, Any]:
    """Return the state before the learning rate fell: a run with more epochs starts there."""
    path = safe_path(run, "checkpoint/before_fall.safetensors")
    try:
        return deserialize(path)
    except ValueError as error:
        raise ValueError(
            "Expected the state before the learning rate fell, to train for more epochs; "
            f"{display_path(path)!r} cannot be read ({error}). Put the file back, or start a new run."
        ) from error


def append_resume(run: Path, config: dict[str, Any]) -> None:
    """Add the current environment to ``environment.json``; warn of a change that may alter the last bits of results."""
    before, now = load_environment(run), environment(None)
    pairs = [(name, before[name], now[name]) for name in BITS if name in before]
    pairs += [(name, old, now["packages"].get(name)) for name, old in before.get("packages", {}).items()]
    resumed = [*before.get("resumed", []), now | {"seed": before.get("seed")}]
    if config.get("data") != before.get("config", config).get("data"):  # a relative path starts at the new directory
        before["directory"] = now["directory"]
    write(safe_path(run, "config.yaml"), yaml.safe_dump(config, sort_keys=False))
    content = (before or now) | {"config": config, "resumed": resumed}
    write(safe_path(run, "environment.json"), json.dumps(content, indent=2) + "\n")
    if changed := "; ".join(f"{name} {old}, now {new}" for name, old, new in pairs if old != new):
        warnings.warn(f"The environment has changed, so results may differ in the last bits: {changed}.", stacklevel=2)
