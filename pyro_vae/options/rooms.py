"""Where the classes of each option live, and how they are named in full."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

import pyro.infer
import torch

from pyro_vae import guides, likelihoods, networks, objectives, priors, vae
from pyro_vae.conditional import Family

__all__ = ["ROOMS", "expected", "known", "part_in_full"]

# Where the classes of each option live, and what they are of.
ROOMS: dict[str, tuple[ModuleType, type]] = {
    "program": (vae, torch.nn.Module),
    "prior": (priors, torch.nn.Module),
    "likelihood": (likelihoods, Family),
    "guide": (guides, Family),
    "network": (networks, networks.Network),
    "objective": (objectives, pyro.infer.ELBO),
    "objective.beta": (objectives, objectives.Schedule),
    "objective.penalty": (objectives, objectives.Penalty),
}


def known(option: str) -> list[str]:
    """Names of the classes that an option may be, in its room."""
    room, base = ROOMS[option]
    found = (getattr(room, name) for name in room.__all__)
    parts = (part for part in found if inspect.isclass(part) and issubclass(part, base) and part is not base)
    return [part.__name__ for part in parts if not inspect.isabstract(part)]


def part_in_full(option: str, part: Any) -> Any:
    """Return a part with the import paths of the classes it names: a short name is of the option's own room.

    Where two rooms, or a room and a file of the user's, have classes of one name, jsonargparse asks which is meant.

    Arguments:
        option: Which option, or the empty string for the dictionary of all options.
        part: A name, or a dictionary as YAML files have. Anything else is returned as it is.
    """
    if isinstance(part, dict) and option in {"", *ROOMS}:
        inside = {"class_path": option, "init_args": option}
        return {key: part_in_full(inside.get(key, f"{option}.{key}".lstrip(".")), value) for key, value in part.items()}
    if option in ROOMS and isinstance(part, str):
        if part in known(option):
            return f"{ROOMS[option][0].__name__}.{part}"
        if "." in part and all(word.isidentifier() for word in part.split(".")):
            check_part(option, part)
    return part


def check_part(option: str, path: str) -> None:
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
    kind = "" if base is torch.nn.Module else f", a subclass of {base.__name__}"
    names = ", ".join(known(option))
    return f"Expected --{option} to be one of {names}, or the import path of a class of yours{kind}"
