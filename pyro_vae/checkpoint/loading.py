"""Load programs and data from run directories, and check all files before use."""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_vae import data
from pyro_vae.checkpoint.files import deserialize, load_tensors, one_line, safe_path
from pyro_vae.checkpoint.runs import check_data, check_settings, load_environment, load_schema, load_state
from pyro_vae.checkpoint.spec import arguments, command_on, config_of, from_spec
from pyro_vae.data.sources import NAMES
from pyro_vae.objectives.base import check_choice
from pyro_vae.operations import Operations
from pyro_vae.programs import VAE

__all__ = ["data_of", "load", "restore"]

PARTS = ("prior", "likelihood", "guide", "network")
# What building a program may take, beside multiples of the size of its weights.
NUMBERS, OPERATIONS = 2**26, 10_000


def load(
    run_dir: str | Path,
    trust: Sequence[str] = (),
    weights: Literal["final", "best", "last"] = "final",
    program: Any = None,
) -> tuple[Any, dict[str, Any]]:
    """Load a trained program from a run directory. Loading executes no code of the run, so a stranger's run is safe.

    Args:
        run_dir: The directory that :func:`pyro_vae.fit` or ``pyro-vae train`` wrote.
        trust: Modules whose classes the run may name, besides ``pyro_vae``; for example ``["my_priors"]``.
        weights: ``final`` for the weights after training; ``best`` for the weights with the best validation ELBO;
            ``last`` for the weights of the last checkpoint, even of an unfinished run.
        program: Program that receives the weights; by default a new program from ``config.yaml``.

    Returns:
        The program, on the CPU and in evaluation mode, and the run's configuration.

    Raises:
        FileNotFoundError: If there is no run in the directory, or the run lacks the chosen weights. An unfinished run
            has no final weights.
        ValueError: If a file cannot be read or is a link out of the directory, the weights do not fit the program, or
            ``config.yaml`` does not specify the program or names a class that is not trusted.

    Example:
        >>> load("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: Expected a run directory; there is nothing at 'nowhere'.

    See Also:
        :func:`pyro_vae.fit`: The argument ``resume`` continues the training of a run.
    """
    run = Path(run_dir)
    check_choice("weights", weights, ("final", "best", "last"))
    config = config_of(run)
    state, event_shape = _weights(run, weights)
    program = program if program is not None else _build(event_shape, config, trust, state, run)
    restore(program, state)
    return program.eval(), config


def _weights(run: Path, which: str) -> tuple[dict[str, Tensor], Any]:
    """Read weights, and the shape of one x if the program was built for one."""
    path = safe_path(run, "model.safetensors" if which == "final" else f"checkpoint/{which}.safetensors")
    state = load_state(run)[0] if which == "last" else None
    if state is None and not path.is_file():
        content, advice = ("best weights", "Use final or last.") if which == "best" else (path.name, "Is it a run?")
        if which == "final" and (run / "checkpoint" / "last.safetensors").is_file():
            advice = f"Its training has not ended: {command_on('train --resume', run)}."
        raise FileNotFoundError(f"Expected a run directory with {content}; {str(run)!r} has none. {advice}")
    try:
        if which == "final":
            weights, metadata = load_tensors(path)
            return weights, json.loads(metadata.get("event_shape", "[]"))
        state = deserialize(path) if state is None else state
        if not all(isinstance(tensor, Tensor) for tensor in state["vae"].values()):
            raise ValueError("its weights are no tensors")
        return state["vae"], state["event_shape"]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected a run directory; could not read {str(path)!r} ({one_line(error)}).") from error


def data_of(run: str | Path, loaded: dict[str, data.Dataset] | None = None) -> tuple[data.Dataset, dict[str, Any]]:
    """Load the data of a run; look for a relative path in the training's directory, then in the current directory.

    Return the data set that ``config.yaml`` names, and the arguments of ``data.load`` with absolute paths.
    ``loaded`` is a cache of data sets.
    """
    config, environment, loaded = config_of(Path(run)), load_environment(run), {} if loaded is None else loaded
    if config.get("data", "tensor") == "tensor":
        raise ValueError(
            f"Expected a run on a named data set; {str(run)!r} was trained on a tensor. Use report.table, "
            "evaluate.per_image or fit's resume, or save the tensor with numpy.save and train on the file."
        )
    options = {"root": "data"} | arguments(data.load, config)
    if schema := load_schema(run):
        options["schema"] = str(safe_path(run, "schema.json"))
    check_settings(environment.get("config", config), config)
    path = "root" if options["data"] in NAMES else "data"
    if options["data"] not in ("digits", ""):
        there, here = (Path(f, options[path]).absolute() for f in (environment.get("directory", ""), ""))
        options[path] = str(next(filter(Path.exists, (there, here)), here if path == "root" else there))
    key = str(options | {"schema": schema})
    try:
        dataset = loaded.get(key) or data.load(**options)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Expected the data that {str(run)!r} was trained on; there is no {config['data']!r} at {options[path]!r}. "
            "Put the data there, or run this in a folder that has it."
        ) from error
    loaded[key] = dataset
    check_data(run, dataset.digests)
    paths: dict[str, Any] = {name: config[name] for name in ("data", "root", "schema") if name in config}
    own = {name: value for name, value in dataset.config.items() if name != "schema"}
    usual = {name: parameter.default for name, parameter in inspect.signature(data.load).parameters.items()}
    return replace(dataset, config=own | paths), usual | dataset.config


def _build(
    event_shape: Any, config: Mapping[str, Any], trust: Iterable[str], state: Mapping[str, Tensor], run: Path
) -> Any:
    """Build the program of a configuration, within a size that its weights justify."""
    spec = config.get("program")
    of_parts = event_shape and all(part in config for part in (*PARTS, "latent"))
    if not of_parts and not (isinstance(spec, dict) and isinstance(spec.get("init_args"), dict)):
        raise ValueError(
            f"Expected config.yaml to specify the program; that of {str(run)!r} lacks its parts or arguments. "
            "Build the program yourself: load(run, program=mine), or to resume, fit(mine, ..., resume=run)."
        )
    make: Any = partial(VAE) if spec is None else from_spec(spec, trust)
    if of_parts:
        parts = {part: from_spec(config[part], trust) for part in PARTS}
        sizes = [config["latent"], *(event_shape if isinstance(event_shape, list) else [None])]
        if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
            raise ValueError(f"Expected whole numbers for latent and the shape of x; the run has {str(sizes)[:80]}.")
        make = partial(getattr(make.func, "build", VAE.build), event_shape, config["latent"], **parts)
    with torch.random.fork_rng(devices=[]), _SizeLimit(state):
        try:
            program = make()
            if not of_parts:
                program.made_with = make.keywords
            return program
        except (TypeError, RuntimeError, ArithmeticError, AttributeError, LookupError) as error:
            raise ValueError(f"Expected parts that make a VAE; the run's do not ({one_line(error)}).") from error


def restore(program: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights into a program, and cast the program to the weights' float type; refuse wrong names or shapes."""
    own, state = program.state_dict(), dict(state)
    if "encoder.fill" in own:
        state.setdefault("encoder.fill", own["encoder.fill"])  # runs of an earlier release lack it
    expected, got = ({name: tuple(tensor.shape) for name, tensor in side.items()} for side in (own, state))
    if different := [name for name in expected | got if expected.get(name) != got.get(name)]:
        name, more = different[0], f"; {len(different) - 1} more names differ" if different[1:] else ""
        ours, theirs = (f"of shape {side[name]}" if name in side else "missing" for side in (expected, got))
        difference = f"{name!r} is {ours} in the program and {theirs} in the weights{more}"
        raise ValueError(f"Expected weights that fit the architecture in config.yaml; {difference}.")
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    program.to(dtype=kinds.pop() if len(kinds) == 1 else None)
    program.load_state_dict(state)


class _SizeLimit(Operations):
    """Limits the operations on tensors, and the numbers in all tensors, before these are allocated."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.most_numbers = NUMBERS + 16 * sum(tensor.numel() for tensor in state.values())
        self.most_operations = OPERATIONS + 100 * len(state)
        self.numbers = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if args and not types:  # creates a tensor from its size, or from its range
            sizes = args[0] if isinstance(args[0], list | tuple) else args[:2]
            self._count(prod(max(1, size) for size in sizes if isinstance(size, int)))
        else:
            self.operations += 1
        result = func(*args, **(kwargs or {}))
        if types and isinstance(result, Tensor) and not func.is_view:
            self._count(result.numel())
        return result

    def _count(self, numbers: int) -> None:
        self.numbers, self.operations = self.numbers + numbers, self.operations + 1
        if self.numbers > self.most_numbers or self.operations > self.most_operations:
            raise ValueError(
                "Expected parts as large as their weights; the parts in config.yaml need at least "
                f"{self.numbers:,} numbers and {self.operations:,} operations."
            )
