"""Parts and programs as plain data: a class by its import path, and its arguments."""

from __future__ import annotations

import functools
import inspect
import sys
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from pyro_vae.vae import VAE

__all__ = ["describe", "describe_program", "event_shape", "parts_of"]


def describe(part: Any) -> Any:
    """Return a part as plain data: a class, or a partial of one, as its import path and its arguments.

    An instance, as an objective, is described by the arguments it was made with, read from attributes of the same
    names.

    Raises:
        ValueError: If the part is a function or a lambda, which has no arguments to write down; or an instance that
            does not keep one.

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
        kind = None if inspect.isroutine(part) or isinstance(part, nn.Module | Tensor) else type(part)
        arguments = _kept(part) if kind else {}
    if kind is None:
        raise ValueError(
            f"Expected a class or a functools.partial of one, which a run directory can name; got {part!r}."
        )
    path = {"class_path": f"{_home(kind)}.{kind.__qualname__}"}
    return path | {"init_args": {k: describe(v) for k, v in arguments.items()}} if arguments else path


def describe_program(program: nn.Module) -> dict[str, Any]:
    """Return a program as entries of a configuration: the parts it was built of, and its class if it is not VAE's.

    A program that was not built of parts is described by the arguments it was made with, where it keeps all of them
    under their names, as plain data or classes; otherwise by its class alone.

    Raises:
        ValueError: If a part cannot be described.
    """
    parts = {name: describe(part) for name, part in parts_of(program).items() if name != "event_shape"}
    kind = type(program)
    if parts and kind is VAE:
        return parts
    described: dict[str, Any] = {"class_path": f"{_home(kind)}.{kind.__qualname__}"}
    if not parts and "<" not in kind.__qualname__:
        with suppress(ValueError, TypeError):
            arguments = getattr(program, "made_with", None) or _kept(program)  # the command notes what it was given
            described["init_args"] = {name: describe(value) for name, value in arguments.items()}
    return {"program": described} | parts


def parts_of(program: Any) -> dict[str, Any]:
    """Return what :meth:`pyro_vae.VAE.build` made a program of; nothing of one that it did not make."""
    parts = getattr(program, "parts", None)
    return parts if isinstance(parts, dict) and "event_shape" in parts else {}


def event_shape(program: Any) -> list[int]:
    """Return the shape of one x that a program was built for, if it was built of parts."""
    return [*parts_of(program).get("event_shape", ())]


def _kept(instance: Any) -> dict[str, Any]:
    """Return the arguments that an instance was made with, from attributes of the same names.

    Raises:
        ValueError: If it does not keep one.
    """
    found = {}
    for name, owner in _parameters(type(instance)).items():
        if hasattr(instance, name):
            found[name] = getattr(instance, name)
        elif owner.__module__.split(".")[0] != "pyro":  # of whose losses some take what they no longer use
            raise ValueError(
                f"Expected {type(instance).__name__} to keep its argument {name!r} under that name, to write it down "
                f"in config.yaml; it does not. Write self.{name} = {name} in its __init__."
            )
    return found


def _parameters(kind: type) -> dict[str, type]:
    """Return the arguments of a class, and whose each is: those that ``**kwargs`` hands on are a base's."""
    found: dict[str, type] = {}
    for owner in kind.__mro__:
        if (init := vars(owner).get("__init__")) and owner is not object:
            parameters = [*inspect.signature(init).parameters.values()][1:]
            named = (one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD))
            found = {one.name: owner for one in named} | found
            if all(one.kind is not one.VAR_KEYWORD for one in parameters):
                break
    return found


def _home(kind: type) -> str:
    """Return the module to import a class from: the outermost that offers it, as files inside a room may move."""
    home = kind.__module__
    while getattr(sys.modules.get(home.rpartition(".")[0]), kind.__qualname__, None) is kind:
        home = home.rpartition(".")[0]
    return home
