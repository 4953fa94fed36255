"""From a run directory to a program: looked through before anything of it is made."""

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
from pyro_vae.checkpoint.files import inside, short, tensors_of, unpack
from pyro_vae.checkpoint.parts import arguments, config_of, construct
from pyro_vae.checkpoint.runs import about, check_data, check_settings, load_state
from pyro_vae.data.sources import NAMES
from pyro_vae.objectives.base import check_choice
from pyro_vae.operations import Operations
from pyro_vae.programs import VAE

__all__ = ["data_of", "load", "restore"]

PARTS = ("prior", "likelihood", "guide", "network")
SLACK = 2**26  # numbers that parts may hold beside their weights
MANY = 10_000  # operations


def load(
    run_dir: str | Path,
    trust: Sequence[str] = (),
    weights: Literal["final", "best", "last"] = "final",
    program: Any = None,
) -> tuple[Any, dict[str, Any]]:
    """Load a trained program from a run directory, which may be somebody else's: nothing in it is run.

    Arguments:
        run_dir: The directory that ``fit`` or ``pyro-vae train`` wrote.
        trust: Modules of your own, beside ``pyro_vae``, whose classes the run may name, as ``["my_priors"]``.
        weights: ``final``, those that training ended with; ``best``, those of the best validation ELBO; ``last``, of
            the last checkpoint, as while it goes on.
        program: A module of your own to put the weights into; None: a new one, made as the run says.

    Returns:
        The program on the CPU, in evaluation mode, and the run's configuration.

    Raises:
        FileNotFoundError: If the directory is not there or holds no run.
        ValueError: If a file cannot be read or is a link out of the directory, the weights are of another
            architecture, or the run does not say how its program is made, or names a class that is not trusted.

    Example:
        >>> load("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: Expected a run directory; there is nothing at 'nowhere'.
    """
    run = Path(run_dir)
    check_choice("weights", weights, ("final", "best", "last"))
    config = config_of(run)
    state, event_shape = _weights(run, weights)
    program = program if program is not None else _build(event_shape, config, trust, state, run)
    restore(program, state)
    return program.eval(), config


def _weights(run: Path, which: str) -> tuple[dict[str, Tensor], Any]:
    """Read weights, and the shape of one x, where the program was made for one."""
    path = inside(run, "model.safetensors" if which == "final" else f"checkpoint/{which}.safetensors")
    state = load_state(run)[0] if which == "last" else None
    if state is None and not path.is_file():
        what, advice = ("best weights", "Use final or last.") if which == "best" else (path.name, "Is it a run?")
        if which == "final" and (run / "checkpoint" / "last.safetensors").is_file():
            advice = f"Its training has not ended: pyro-vae train --resume {run}."
        raise FileNotFoundError(f"Expected a run directory with {what}; {str(run)!r} has none. {advice}")
    try:
        if which == "final":
            weights, metadata = tensors_of(path)
            return weights, json.loads(metadata.get("event_shape", "[]"))
        state = unpack(path) if state is None else state
        if not all(isinstance(tensor, Tensor) for tensor in state["vae"].values()):
            raise ValueError("its weights are no tensors")
        return state["vae"], state["event_shape"]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected a run directory; could not read {str(path)!r} ({short(error)}).") from error


def data_of(run: str | Path, known: dict[str, data.Dataset] | None = None) -> tuple[data.Dataset, dict[str, Any]]:
    """Load the data that a run was trained on, a relative path from where the run was made, or else from here.

    Returns the data set, with the paths of ``config.yaml``, and the arguments of ``data.load``, with absolute ones. In
    ``known`` are data sets that are loaded already.
    """
    config, made, known = config_of(Path(run)), about(run), {} if known is None else known
    if config.get("data", "tensor") == "tensor":
        raise ValueError(
            f"Expected a run on a named data set; {str(run)!r} was trained on a tensor. Use report.table, "
            "evaluate.per_image or fit's resume, or save the tensor with numpy.save and train on the file."
        )
    options = {"root": "data"} | arguments(data.load, config)
    check_settings(made.get("config", config), config)
    path = "root" if options["data"] in NAMES else "data"
    if options["data"] not in ("digits", ""):
        there, here = (Path(folder, options[path]).absolute() for folder in (made.get("directory", ""), ""))
        options[path] = str(next(filter(Path.exists, (there, here)), here if path == "root" else there))
    try:
        dataset = known.get(str(options)) or data.load(**options)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Expected the data that {str(run)!r} was trained on; there is no {config['data']!r} at {options[path]!r}. "
            "Put the data there, or run this in a folder that has it."
        ) from error
    known[str(options)] = dataset
    check_data(run, dataset.digests)
    as_named = {name: config[name] for name in ("data", "root") if name in config}
    return replace(dataset, config=dataset.config | as_named), {"columns": None} | dataset.config


def _build(
    event_shape: Any, config: Mapping[str, Any], trust: Iterable[str], state: Mapping[str, Tensor], run: Path
) -> Any:
    """Build the program that a configuration names, no larger than its weights warrant."""
    named = config.get("program")
    of_parts = event_shape and all(part in config for part in (*PARTS, "latent"))
    if not of_parts and not (isinstance(named, dict) and isinstance(named.get("init_args"), dict)):
        raise ValueError(
            f"Expected a run whose config.yaml says how its program is made; {str(run)!r} does not name its parts, or "
            "all its arguments. Make it as before: load(run, program=mine), or to train on, fit(mine, ..., resume=run)."
        )
    make: Any = partial(VAE) if named is None else construct(named, trust)
    if of_parts:
        parts = {part: construct(config[part], trust) for part in PARTS}
        sizes = [config["latent"], *(event_shape if isinstance(event_shape, list) else [None])]
        if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
            raise ValueError(f"Expected whole numbers for latent and the shape of x; the run has {str(sizes)[:80]}.")
        make = partial(getattr(make.func, "build", VAE.build), event_shape, config["latent"], **parts)
    with torch.random.fork_rng(devices=[]), _NoLarger(state):
        try:
            program = make()
            if not of_parts:
                program.made_with = make.keywords
            return program
        except (TypeError, RuntimeError, ArithmeticError, AttributeError, LookupError) as error:
            raise ValueError(f"Expected parts that make a VAE; the run's do not ({short(error)}).") from error


def restore(program: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put weights into a program, if all names and shapes are its own; numbers of float64 make it one of float64."""
    own, state = program.state_dict(), dict(state)
    if "encoder.fill" in own:
        state.setdefault("encoder.fill", own["encoder.fill"])  # runs of before there was one
    expected, got = ({name: tuple(tensor.shape) for name, tensor in side.items()} for side in (own, state))
    if different := [name for name in expected | got if expected.get(name) != got.get(name)]:
        name, more = different[0], f"; {len(different) - 1} others differ too" if different[1:] else ""
        ours, theirs = (f"of shape {side[name]}" if name in side else "not there" for side in (expected, got))
        what = f"{name!r} is {ours} there and {theirs} in the weights{more}"
        raise ValueError(f"Expected weights that fit the architecture in config.yaml; {what}.")
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    program.to(dtype=kinds.pop() if len(kinds) == 1 else None)
    program.load_state_dict(state)


class _NoLarger(Operations):
    """Refuses to make tensors, before they are made, of more numbers in all than known weights warrant, or too many."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.most = SLACK + 16 * sum(tensor.numel() for tensor in state.values())
        self.most_operations = MANY + 100 * len(state)
        self.made = self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if args and not types:  # a tensor of nothing but its size, or its range
            sizes = args[0] if isinstance(args[0], list | tuple) else args[:2]
            self._make(prod(max(1, size) for size in sizes if isinstance(size, int)))
        else:
            self.count += 1
        made = func(*args, **(kwargs or {}))
        if types and isinstance(made, Tensor) and not func.is_view:
            self._make(made.numel())
        return made

    def _make(self, numbers: int) -> None:
        self.made, self.count = self.made + numbers, self.count + 1
        if self.made > self.most or self.count > self.most_operations:
            raise ValueError(
                "Expected parts as large as their weights; those in config.yaml are larger by far, of more than "
                f"{self.made:,} numbers, or {self.count:,} operations."
            )
