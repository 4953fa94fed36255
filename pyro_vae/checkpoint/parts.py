"""Parts and programs as plain data, and back: classes by their import paths, and none that is not trusted."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyro.infer
import yaml
from torch import Tensor, nn

from pyro_vae.checkpoint.files import inside, short
from pyro_vae.objectives import Penalty, Schedule
from pyro_vae.programs import VAE

__all__ = ["describe", "describe_program", "event_shape", "parts_of"]
__all__ += ["arguments", "check_trust", "config_of", "construct", "construct_objective"]

LARGEST, BRACKETS = 2**20, 1000  # bytes of a configuration, and what takes a parser the square of their number


def describe(part: Any) -> Any:
    """Return a part as plain data: a class, a partial of one, or an instance, as its import path and its arguments."""
    if isinstance(part, str | int | float | bool | np.generic | None):
        return part.item() if isinstance(part, np.generic) else part
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
        raise ValueError(f"Expected a class or a functools.partial of one, for a run directory to name; got {part!r}.")
    made = {"init_args": {name: describe(value) for name, value in arguments.items()}} if arguments else {}
    return {"class_path": _path(kind)} | made


def describe_program(program: nn.Module) -> dict[str, Any]:
    """Return a program as entries of a configuration: the parts it was built of, and its class if it is not VAE's.

    One that was not built of parts has its arguments in their place, if it keeps all under their names, as plain data.
    """
    parts = {name: describe(part) for name, part in parts_of(program).items() if name != "event_shape"}
    kind = type(program)
    if parts and kind is VAE:
        return parts
    described: dict[str, Any] = {"class_path": _path(kind)}
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
    """Return the shape of one x that a program was built of parts for."""
    return [*parts_of(program).get("event_shape", ())]


def _kept(instance: Any) -> dict[str, Any]:
    """The arguments that an instance was made with, from attributes of the same names."""
    owners = _parameters(type(instance))
    for name, owner in owners.items():
        if not hasattr(instance, name) and owner.__module__.split(".")[0] != "pyro":  # whose losses have some of no use
            raise ValueError(
                f"Expected {type(instance).__name__} to keep its argument {name!r} under that name, to write it down "
                f"in config.yaml; it does not. Write self.{name} = {name} in its __init__."
            )
    return {name: getattr(instance, name) for name in owners if hasattr(instance, name)}


def _parameters(kind: type) -> dict[str, type]:
    """The arguments of a class, and whose each is: those that ``**kwargs`` hands on are a base's."""
    found: dict[str, type] = {}
    for owner in kind.__mro__[:-1]:
        if init := vars(owner).get("__init__"):
            kinds = {one.name: one.kind for one in [*inspect.signature(init).parameters.values()][1:]}
            found = {
                name: owner for name, one in kinds.items() if one not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            } | found
            if inspect.Parameter.VAR_KEYWORD not in kinds.values():
                break
    return found


def _path(kind: type) -> str:
    """The path to import a class by: of the outermost module that offers it, as files inside a room may move."""
    home = kind.__module__
    while getattr(sys.modules.get(home.rpartition(".")[0]), kind.__qualname__, None) is kind:
        home = home.rpartition(".")[0]
    return f"{home}.{kind.__qualname__}"


def config_of(run: Path, name: str = "config.yaml") -> dict[str, Any]:
    """Read the configuration of a run: plain data with no tags, no references and few brackets. It imports nothing."""
    if not run.is_dir():
        raise FileNotFoundError(f"Expected a run directory; there is nothing at {str(run)!r}.")
    if not (run / name).is_file():
        raise FileNotFoundError(f"Expected a run directory with {name}; {str(run)!r} has none. Is it a run?")
    path = inside(run, name)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        text = path.read_text()
        if text.count("[") + text.count("{") > BRACKETS:
            raise ValueError("it has brackets without end")
        if any(isinstance(token, yaml.AliasToken | yaml.AnchorToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise ValueError("it refers to itself, as *name, which no run's does")
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"Expected a run directory; could not read {str(path)!r} ({short(error)}).") from error
    return config if isinstance(config, dict) else {}


def arguments(function: Callable[..., Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a function that a configuration gives, each of the kind that it is annotated with."""
    hints = get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name in config]
    for name in names:
        if not _is(config[name], hints[name]):
            kind = str(getattr(hints[name], "__name__", hints[name])).replace("typing.", "")
            raise ValueError(f"Expected {name} to be {kind}; the run's config.yaml has {str(config[name])[:80]!r}.")
    return {name: config[name] for name in names}


def _is(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_is(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is Sequence:
        return isinstance(value, list) and all(_is(item, *get_args(hint)) for item in value)
    return type(value) in ((int, float) if hint is float else (hint,))


def check_trust(spec: Any, trust: Iterable[str]) -> None:
    """Check that plain data names classes of ``pyro_vae`` alone, or of modules that are trusted."""
    if isinstance(spec, list | dict):
        for item in spec.values() if isinstance(spec, dict) else spec:
            check_trust(item, trust)
    if isinstance(spec, dict) and "class_path" in spec:
        module = str(spec["class_path"]).rpartition(".")[0]
        if module.split(".")[0] != "pyro_vae" and module not in trust:
            raise ValueError(
                f"Expected parts of pyro_vae; the run names {spec['class_path']!r}, whose import would run its code. "
                f"If you trust it: load(run, trust=[{module!r}]), or --trust {module}."
            )


def construct(spec: Any, trust: Iterable[str] = ()) -> functools.partial:
    """Return the module's class that :func:`describe` made plain data of, as a partial of it with its arguments."""
    check_trust(spec, trust)
    return _class(spec, (nn.Module,))


def construct_objective(spec: Any, trust: Iterable[str] = ()) -> pyro.infer.ELBO:
    """Return the objective that :func:`describe` made plain data of, with its schedule and penalty."""
    check_trust(spec, trust)
    made = _class(spec, (pyro.infer.ELBO,))
    try:
        return made(**{name: value() if callable(value) else value for name, value in made.keywords.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected an objective; {made.func.__name__} could not be made ({short(error)}).") from error


def _class(spec: Any, kinds: tuple[type, ...]) -> functools.partial:
    arguments = (spec.get("init_args") or {}) if isinstance(spec, dict) else None
    if not isinstance(arguments, dict) or "class_path" not in spec:
        raise ValueError(f"Expected a part by its class_path and init_args; the run has {str(spec)[:80]!r}.")
    path = str(spec["class_path"])
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Expected to import {path!r}, which the run names ({error}).") from error
    # Offered by a module is also what it imports: a class of another package is none of the module's.
    own = inspect.isclass(found) and found.__module__.split(".")[0] in ("pyro_vae", module.split(".")[0])
    if not (own and issubclass(found, kinds)):
        due = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"Expected a class of {module} that is a {due}; the run names {path!r}.")
    known = inspect.signature(found).parameters
    anything = any(one.kind is one.VAR_KEYWORD for one in known.values())
    if (unknown := [str(key) for key in arguments if key not in known]) and not anything:
        raise ValueError(f"Expected arguments of {name}, {', '.join(known)}; the run has {', '.join(unknown)}.")
    for key, value in arguments.items():
        if isinstance(value, dict) and "class_path" in value:
            arguments = arguments | {key: _class(value, _due(known[key].annotation if key in known else Any))}
    return functools.partial(found, **arguments)


def _due(hint: Any) -> tuple[type, ...]:
    """The classes that an argument of an annotation may be of; those of parts where it names none."""
    leaves = [hint]
    while any(map(get_args, leaves)):
        leaves = [inner for leaf in leaves for inner in get_args(leaf) or [leaf]]
    kinds = (leaf for leaf in leaves if isinstance(leaf, type) and leaf not in (Any, inspect.Parameter.empty))
    return (*kinds,) or (nn.Module, pyro.infer.ELBO, Schedule, Penalty)
