"""Run directories: a trained VAE as files that anyone can read, and nothing that can run.

``config.yaml`` names the parts and the settings, ``model.safetensors`` holds the weights, ``metrics.csv`` one line
an epoch, ``environment.json`` the versions and the command. Nothing in it is pickle.
"""

from __future__ import annotations

import csv
import functools
import importlib
import inspect
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pyro_vae.vae import VAE

__all__ = ["create", "describe", "load", "load_metrics", "save_metrics", "save_weights"]

PACKAGES = ("pyro_vae", "pyro-ppl", "torch", "torchvision", "numpy", "arviz", "scikit-learn")


def create(run_dir: str | Path, config: dict[str, Any]) -> Path:
    """Make a run directory and write ``config.yaml`` and ``environment.json``.

    Raises:
        ValueError: If the directory holds a run already.
        OSError: If it cannot be made.
    """
    run = Path(run_dir)
    if (run / "config.yaml").exists():
        raise ValueError(f"Expected a new run directory; {str(run)!r} holds a run already. Choose another --run_dir.")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Expected to make a folder for the run; could not make {str(run)!r} ({error}).") from error
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
    }
    (run / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    return run


def save_weights(run: Path, vae: VAE) -> None:
    """Write ``model.safetensors``: the parameters, with the shape of x in the file's metadata."""
    shape = list(vae.parts["event_shape"]) if vae.parts else []
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    save_file(tensors, run / "model.safetensors", metadata={"event_shape": json.dumps(shape)})


def save_metrics(run: Path, history: dict[str, list[float]]) -> None:
    """Write ``metrics.csv``: one line an epoch, one column for each entry of the history."""
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", *history])
        writer.writerows([i + 1, *row] for i, row in enumerate(zip(*history.values(), strict=True)))


def load_metrics(run_dir: str | Path) -> dict[str, list[float]]:
    """Return the history that :func:`save_metrics` wrote; empty where there is no file, or no epoch in it.

    Raises:
        ValueError: If it is no table of numbers.
    """
    path = Path(run_dir) / "metrics.csv"
    if not path.is_file():
        return {}
    try:
        names, *lines = csv.reader(path.read_text().splitlines())
        epochs = [dict(zip(names, map(float, line), strict=True)) for line in lines]
        return {name: [epoch[name] for epoch in epochs] for name in names[1:] if epochs}
    except (ValueError, csv.Error) as error:
        raise ValueError(f"Expected a table of numbers; could not read {str(path)!r} ({_short(error)}).") from error


def load(run_dir: str | Path, trust: Sequence[str] = ()) -> tuple[VAE, dict[str, Any]]:
    """Load a trained VAE from a run directory.

    Arguments:
        run_dir: What ``fit`` or ``pyro-vae train`` wrote.
        trust: Modules of your own, beside ``pyro_vae``, whose classes the run may name, as ``["my_priors"]``.

    Returns:
        The VAE on the CPU, in evaluation mode, and the run's configuration.

    Raises:
        FileNotFoundError: If the directory is not there or holds no run.
        ValueError: If a file cannot be read, the weights are of another architecture, or the run names a class
            outside ``pyro_vae`` that is not trusted.

    Example:
        >>> load("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: Expected a run directory; there is nothing at 'nowhere'.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise FileNotFoundError(f"Expected a run directory; there is nothing at {str(run)!r}.")
    for name in ("config.yaml", "model.safetensors"):
        if not (run / name).is_file():
            raise FileNotFoundError(f"Expected a run directory with {name}; {str(run)!r} has none. Is it a run?")
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
        with safe_open(run / "model.safetensors", framework="pt") as file:
            event_shape = json.loads((file.metadata() or {}).get("event_shape", "[]"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (yaml.YAMLError, SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected a run directory; could not read {str(run)!r} ({_short(error)}).") from error
    if not isinstance(config, dict) or not event_shape or "prior" not in config:
        raise ValueError(
            f"Expected a run of a VAE made by VAE.build; {str(run)!r} does not name its parts. "
            "Build the VAE as before and use load_state_dict."
        )
    parts = {name: _construct(config[name], trust) for name in ("prior", "likelihood", "guide", "network")}
    with torch.random.fork_rng(devices=[]):
        vae = VAE.build(event_shape, config["latent"], **parts)
    state.setdefault("encoder.fill", torch.zeros(event_shape))  # runs of before there was one
    try:
        vae.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"Expected weights of the architecture in config.yaml; got others ({_short(error)})."
        ) from error
    return vae.eval(), config


def describe(part: Any) -> Any:
    """Return a part as plain data: a class, or a partial of one, as its import path and its arguments.

    An instance, as an objective, is described by the arguments it was made with, read from attributes of the same
    names.

    Raises:
        ValueError: If the part is a function or a lambda, which has no arguments to write down.

    Example:
        >>> from pyro_vae import networks
        >>> describe(functools.partial(networks.MLP, hidden=(200, 200)))
        {'class_path': 'pyro_vae.networks.MLP', 'init_args': {'hidden': [200, 200]}}
    """
    if isinstance(part, str | int | float | bool | None):
        return part
    if isinstance(part, list | tuple):
        return [describe(item) for item in part]
    if isinstance(part, functools.partial):
        # jsonargparse hands over a partial of its own functions, with the class as the last argument.
        kind = next((item for item in (*reversed(part.args), part.func) if isinstance(item, type)), None)
        arguments = part.keywords
    elif isinstance(part, type):
        kind, arguments = part, {}
    else:
        kind = None if inspect.isroutine(part) else type(part)
        names = inspect.signature(type(part)).parameters
        arguments = {name: getattr(part, name) for name in names if hasattr(part, name)}
    if kind is None:
        raise ValueError(
            f"Expected a class or a functools.partial of one, which a run directory can name; got {part!r}."
        )
    path = {"class_path": f"{_home(kind)}.{kind.__qualname__}"}
    return path | {"init_args": {k: describe(v) for k, v in arguments.items()}} if arguments else path


def _home(kind: type) -> str:
    """Return the module to import a class from: the outermost that offers it, as files inside a room may move."""
    home = kind.__module__
    while getattr(sys.modules.get(home.rpartition(".")[0]), kind.__qualname__, None) is kind:
        home = home.rpartition(".")[0]
    return home


def _construct(spec: Any, trust: Iterable[str]) -> Any:
    """The inverse of :func:`describe`, for classes: import nothing that is not trusted."""
    if isinstance(spec, list):
        return [_construct(item, trust) for item in spec]
    if not (isinstance(spec, dict) and "class_path" in spec):
        return spec
    module, _, name = str(spec["class_path"]).rpartition(".")
    if module.split(".")[0] != "pyro_vae" and module not in trust:
        raise ValueError(
            f"Expected parts of pyro_vae; the run names {spec['class_path']!r}, whose import would run its code. "
            f"If you trust it: load(run, trust=[{module!r}]), or --trust {module}."
        )
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Expected to import {spec['class_path']!r}, which the run names ({error}).") from error
    arguments = spec.get("init_args") or {}
    return functools.partial(kind, **{key: _construct(value, trust) for key, value in arguments.items()})


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
