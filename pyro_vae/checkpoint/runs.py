"""The directory of a run: how it is made and read, and what the run was made with."""

import csv
import io
import json
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import nn

from pyro_vae.checkpoint.files import hold, inside, short, shown, unpack, write
from pyro_vae.checkpoint.parts import event_shape

__all__ = ["FREE", "about", "begin", "begin_again", "check_data", "check_settings", "hold_new"]
__all__ += ["load_metrics", "load_state", "save_metrics", "save_weights", "table"]

Digests = dict[str, dict[str, str]]  # of each split and column
PACKAGES = ("pyro_vae", "pyro-ppl", "torch", "torchvision", "numpy", "arviz", "scikit-learn")
# On these, and on packages, the last bits of a number depend.
BITS = ("python", "threads", "processor", "instructions", "gpus")
# What training and evaluation write. In this order --overwrite takes it away: without the first it is no run, and
# without the last nobody knows that the others are a run's.
WRITTEN = ["config.yaml", "checkpoint/*.safetensors", "model.safetensors", "metrics.csv", "seconds.csv"]
WRITTEN += ["diverged.json", "evaluation.*", "figures/*.png", "tensorboard/events.out.tfevents.*", "environment.json"]
# What may change when a run goes on; how many epochs, where nothing follows it.
FREE = {"root", "data", "device", "on_nan", "logger", "epochs"}
KINDS = {"config": dict, "data": dict, "packages": dict, "resumed": list, "directory": str}  # in environment.json


def begin(run: Path, config: dict[str, Any], digests: Digests, save: Callable[[], None] = lambda: None) -> None:
    """Write ``environment.json``, save a state to go on from, and write ``config.yaml``, which makes it a run."""
    made = environment(config.get("seed")) | {"config": config, "data": digests}
    write(inside(run, "environment.json"), json.dumps(made, indent=2) + "\n")
    save()
    write(inside(run, "config.yaml"), yaml.safe_dump(config, sort_keys=False))


def about(run: str | Path) -> dict[str, Any]:
    """Read ``environment.json``, what a run was made with; what cannot be read of it is left out."""
    try:
        path = inside(run, "environment.json")
        known = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, KINDS.get(k, object))} if isinstance(known, dict) else {}


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other settings than a run began with."""
    for name, value in now.items():
        if name not in FREE and before.get(name) != value:
            raise ValueError(
                f"Expected the settings that the run began with; {name} was {before.get(name)!r} and is now {value!r}. "
                "Put the old value back, or start a new run."
            )


def check_data(run: str | Path, digests: Digests) -> None:
    """Refuse other data than a run was trained on, by the digests in its ``environment.json``, if it has these."""
    known = {split: columns for split, columns in about(run).get("data", {}).items() if isinstance(columns, dict)}
    # x is always there; other columns are those that the program takes.
    now = {split: columns | {"x": ""} | digests.get(split, {}) for split, columns in known.items()}
    if changed := [split for split in known if not known[split].items() <= now[split].items()]:
        raise ValueError(
            f"Expected the data that {str(run)!r} was trained on; its {', '.join(changed)} data have changed since. "
            "Restore the data, or train a new run."
        )


@contextmanager
def hold_new(run_dir: str | Path, overwrite: bool = False) -> Iterator[Callable[[], Path]]:
    """As :func:`hold`, of a new directory, which goes again if it becomes no run; refuse files of a user's own."""
    run = Path(run_dir).absolute()
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Expected to make a folder for the run; could not make {shown(run)!r} ({error}).") from error
    with hold(run) as place:
        if (there := _written(run)) and "pyro_vae" not in about(run).get("packages", {}):
            raise ValueError(
                f"Expected a new run directory; {shown(run)!r} is no run and holds {there[0]!r}, which one would write "
                "over. Choose another --run_dir, or move your files away."
            )
        if (run / "config.yaml").exists() and not overwrite:
            raise ValueError(
                f"Expected a new run directory; {shown(run)!r} holds a run already. Choose another --run_dir, go on "
                f"with that run by --resume {shown(run)}, or write over it with --overwrite true."
            )
        _clear(run)
        try:
            yield place
        finally:
            if not (place() / "config.yaml").exists():
                _clear(place())
                for folder in (place() / "checkpoint", *made):
                    with suppress(OSError):
                        folder.rmdir()


def _written(run: Path) -> list[str]:
    """Names of files in a folder that are as those of a run, in the order of ``WRITTEN``."""
    return [str(path.relative_to(run)) for pattern in WRITTEN for path in sorted(run.glob(pattern))]


def _clear(run: Path) -> None:
    for path in [inside(run, name) for name in _written(run)]:  # all are looked at before the first goes
        path.unlink()


def save_weights(run: Path, program: nn.Module) -> None:
    """Write ``model.safetensors``: the parameters, with the shape of x that a VAE was built for in its metadata."""
    state = program.state_dict().items()  # cloned, since a layer used twice is one tensor of two names
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state}
    write(inside(run, "model.safetensors"), save(tensors, metadata={"event_shape": json.dumps(event_shape(program))}))


def save_metrics(run: Path, history: Mapping[str, list[float]]) -> None:
    """Write ``metrics.csv``, and beside it ``seconds.csv``, which no seed decides: one line an epoch."""
    for name in ("metrics.csv", "seconds.csv"):
        of_time = name == "seconds.csv"
        if columns := {key: values for key, values in history.items() if (key == "seconds") is of_time}:
            rows = ([i + 1, *row] for i, row in enumerate(zip(*columns.values(), strict=True)))
            write(inside(run, name), table([["epoch", *columns], *rows]))


def table(rows: Iterable[Iterable[Any]]) -> str:
    """Write rows as CSV."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def load_metrics(run_dir: str | Path) -> dict[str, list[float]]:
    """Return the history that :func:`save_metrics` wrote; empty where there is no file, or no epoch in it."""
    history: dict[str, list[float]] = {}
    for path in (inside(run_dir, "metrics.csv"), inside(run_dir, "seconds.csv")):
        try:
            names, *lines = csv.reader(path.read_text().splitlines()) if path.is_file() else [[]]
            epochs = [dict(zip(names, map(float, line), strict=True)) for line in lines]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"Expected a table of numbers; could not read {str(path)!r} ({short(error)}).") from error
        history |= {name: [epoch[name] for epoch in epochs] for name in names[1:] if epochs}
    return history


def load_state(run: Path) -> tuple[dict[str, Any], str]:
    """Return the state to go on from, the last one written or else the one before; and a line where it is that."""
    broken: list[str] = []
    for name in ("last", "previous"):
        path = inside(run, f"checkpoint/{name}.safetensors")
        if path.is_file():
            try:
                return unpack(path), f"{broken[0]}; going on from the one before it." if broken else ""
            except ValueError as error:
                broken.append(f"{str(path)!r} cannot be read ({error})")
    raise ValueError(
        f"Expected a run to go on with; {' and '.join(broken) or f'there is no checkpoint in {str(run)!r}'}. "
        "Start a new run: pyro-vae train --config RUN/config.yaml --run_dir ANOTHER."
    )


def begin_again(run: Path, config: dict[str, Any]) -> None:
    """Add to ``environment.json`` with what a run goes on; warn where its last bits may be others."""
    before, now = about(run), environment(None)
    pairs = [(name, before[name], now[name]) for name in BITS if name in before]
    pairs += [(name, was, now["packages"].get(name)) for name, was in before.get("packages", {}).items()]
    resumed = [*before.get("resumed", []), now | {"seed": before.get("seed")}]
    if config.get("data") != before.get("config", config).get("data"):  # a relative path, from where one is now
        before["directory"] = now["directory"]
    write(inside(run, "config.yaml"), yaml.safe_dump(config, sort_keys=False))
    made = (before or now) | {"config": config, "resumed": resumed}
    write(inside(run, "environment.json"), json.dumps(made, indent=2) + "\n")
    if changed := "; ".join(f"{name} {was}, now {is_now}" for name, was, is_now in pairs if was != is_now):
        warnings.warn(f"Going on, but the last bits may be others: {changed}.", stacklevel=2)


def environment(seed: int | None) -> dict[str, Any]:
    """Versions, command, seed, git commit and hardware."""
    known, memory = Path("/proc/cpuinfo"), None
    processors = re.findall(r"^model name\s*: *(.*\S)", known.read_text() if known.is_file() else "", re.MULTILINE)
    with suppress(AttributeError, ValueError, OSError):  # not on Windows
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "command": sys.argv,
        "directory": str(Path.cwd()),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": next(iter(processors), platform.processor()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_GiB": memory,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: version(name) for name in PACKAGES},
    }


def _git() -> dict[str, Any] | None:
    """The commit of the repository that one is in, and whether files differ from it."""
    changes = "git -c core.fsmonitor=false status --porcelain --untracked-files=no"
    told: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
    try:
        commit, changed = (subprocess.run(words.split(), **told).stdout for words in ("git rev-parse HEAD", changes))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": bool(changed)}
