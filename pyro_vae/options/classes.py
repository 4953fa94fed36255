"""The classes that options name: those of each option's own room, and the user's own; and programs made of them."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import pyro.infer
from torch import nn

from pyro_vae import VAE, guides, likelihoods, networks, objectives, priors, programs
from pyro_vae.conditional import Family
from pyro_vae.data.on_disk import arrays_of
from pyro_vae.program import argument_names
from pyro_vae.train import check_program

# Where the classes of each option live, and what they are of.
PARTS: dict[str, tuple[ModuleType, type]] = {"prior": (priors, nn.Module), "likelihood": (likelihoods, Family)}
PARTS |= {"guide": (guides, Family), "network": (networks, networks.Network)}
ROOMS = {"program": (programs, nn.Module), **PARTS, "objective": (objectives, pyro.infer.ELBO)}
ROOMS |= {f"program.{name}": room for name, room in PARTS.items()}
ROOMS |= {"program.family": PARTS["guide"], "program.inner": PARTS["network"]}
ROOMS |= {"objective.beta": (objectives, objectives.Schedule), "objective.penalty": (objectives, objectives.Penalty)}


def known(option: str) -> list[str]:
    """Names of the classes that an option may be, in its room."""
    room, base = ROOMS[option]
    found = (getattr(room, name) for name in room.__all__)
    parts = (part for part in found if inspect.isclass(part) and issubclass(part, base) and part is not base)
    return [part.__name__ for part in parts if not inspect.isabstract(part)]


def part_in_full(option: str, part: Any) -> Any:
    """Return a name, or a dictionary as in YAML files, with import paths for short names, of the option's own room.

    Where two rooms, or a room and a file of the user's, have classes of one name, jsonargparse would ask which.
    ``option`` is empty for the dictionary of all options.
    """
    if isinstance(part, dict) and option in {"", *ROOMS}:
        inside = {"class_path": option, "init_args": option}
        return {key: part_in_full(inside.get(key, f"{option}.{key}".lstrip(".")), value) for key, value in part.items()}
    if option in ROOMS and isinstance(part, str):
        if part in known(option):
            return f"{ROOMS[option][0].__name__}.{part}"
        if "." in part and all(word.isidentifier() for word in part.split(".")):
            _check_part(option, part)
    return part


def _check_part(option: str, path: str) -> None:
    """Import a class by its path, and say in one sentence if it is not there or of another kind."""
    home, _, name = path.rpartition(".")
    base = ROOMS[option][1]
    try:
        module = import_module(home)
    except ModuleNotFoundError as error:
        if not home.startswith(str(error.name)):
            raise  # something that the user's file imports
        file = f"{home.replace('.', '/')}.py"
        raise ValueError(f"{expected(option)}; got {path}, and there is no {file} here.") from None
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == home]
        raise ValueError(f"Expected a class {name} in {home}; there is {', '.join(own) or 'no class in it'}.")
    found = getattr(module, name)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"{expected(option)}; got {path}.")
    if option == "program" and not callable(getattr(found, "model", None)):
        raise ValueError(f"Expected a program: a class with methods model and guide; {path} has no model.")


def expected(option: str) -> str:
    """Say what an option may be."""
    base = ROOMS[option][1]
    kind = "" if base is nn.Module else f", a subclass of {base.__name__}"
    return f"Expected --{option} to be one of {', '.join(known(option))}, or the import path of a class of yours{kind}"


class Made(Protocol):
    """A class all of whose arguments are options."""

    def __call__(self) -> nn.Module:
        """Make it."""


class Shaped(Protocol):
    """A class with an argument that is no option: the data's shape."""

    def __call__(self, *, event_shape: Any) -> nn.Module:
        """Make it."""


class OfParts(Protocol):
    """A class with arguments that are no options: what :meth:`VAE.build` makes."""

    def __call__(self, *, prior: Any, decoder: Any, encoder: Any) -> nn.Module:
        """Make it."""


def program(program: Made | OfParts | Shaped) -> None:  # jsonargparse fills in what is missing by the last
    """Train a program of pyro_vae, or of your own.

    Arguments:
        program: VAE, of the parts below; ConditionalVAE, HierarchicalVAE or SemiSupervisedVAE, of parts too, and of
            arguments of its own, as --program.latents [100,50]; or the import path of a class of your own with methods
            model and guide, as my_programs.Mine, and its arguments. Of --data then each array is the argument of its
            name.
    """


def kind_of(part: Any) -> tuple[Any, dict[str, Any]]:
    """Return the class that an option names, and the arguments it was given."""
    if not isinstance(part, partial):
        return part, {}
    kind = part.args[-1]
    needed = _needed(kind)  # where one has no type, jsonargparse has None for what was not given
    return kind, {name: value for name, value in part.keywords.items() if value is not None or name not in needed}


def is_of_parts(kind: type) -> bool:
    """Whether a class is made by :meth:`VAE.build`."""
    return issubclass(kind, VAE) and kind.__init__ is VAE.__init__


def columns_of(kind: Any, options: Mapping[str, Any]) -> Sequence[str] | None:
    """Return the names of the arrays that a program takes, if the data are a file of them, and not images for a VAE."""
    path, images = Path(options["data"]), options["binarize"] != "none" or options["dequantize"] or options["counts"]
    if options["columns"] is not None or images or path.suffix != ".npz" or hasattr(kind, "check_dataset"):
        return options["columns"]
    names, arrays = argument_names(SimpleNamespace(model=partial(kind.model, None))), arrays_of(path)
    if {*arrays} - {*names} or any(needed and name not in arrays for name, needed in names.items()):
        right = f"named as the arguments of {kind.__name__}.model, {', '.join(names)}"
        got = f"{', '.join(arrays) or 'none'} in {str(path)!r}. Rename them, or say which they are, as --columns [x]."
        raise ValueError(f"Expected arrays {right}; got {got}")
    return [name for name in names if name in arrays]


def make(kind: Any, arguments: Mapping[str, Any], event_shape: Sequence[int], parts: Mapping[str, Any]) -> nn.Module:
    """Make a program: of parts, or with its arguments, and the data's shape if it takes that and was not given one."""
    if is_of_parts(kind):
        return kind.build(event_shape, **parts)
    arguments = {**arguments, **parts}
    if "event_shape" in inspect.signature(kind).parameters and arguments.get("event_shape") is None:
        arguments["event_shape"] = tuple(event_shape)
    if absent := [name for name in _needed(kind) if name not in arguments]:
        raise ValueError(f"Expected --program.{absent[0]}, an argument of {kind.__name__}; it was not given.")
    made = kind(**arguments)
    check_program(made)
    made.made_with = arguments  # for the run's configuration
    return made


def _needed(kind: type) -> list[str]:
    parameters = [one for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    return [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
