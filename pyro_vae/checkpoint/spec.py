"""Conversion of parts and programs to plain data and back, with classes from trusted modules only."""

import functools
import importlib
import inspect
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from inspect import Parameter
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyro.infer
import yaml
from torch import Tensor, nn

from pyro_vae.checkpoint.files import display_path, one_line, safe_path
from pyro_vae.checkpoint.former import changed_defaults, with_former
from pyro_vae.objectives import Penalty, Schedule
from pyro_vae.programs import VAE

__all__ = ["event_shape", "from_spec", "objective_from_spec", "parts_of", "program_spec", "to_spec"]
__all__ += ["arguments", "check_trust", "command_on", "config_of"]

VAR_KEYWORD = Parameter.VAR_KEYWORD
LARGEST, BRACKETS = 2**20, 1000  # limits of a configuration: bytes; brackets, since parsing takes their square


def to_spec(part: Any) -> Any:
    """Return a class, a partial of a class, or an instance as plain data: the import path and the arguments."""
    if isinstance(part, str | int | float | bool | np.generic | None):
        return part.item() if isinstance(part, np.generic) else part
    if isinstance(part, list | tuple):
        return [to_spec(item) for item in part]
    if isinstance(part, functools.partial):
        # jsonargparse gives a partial of an internal function, with the class as the last argument.
        kind = next((item for item in (*reversed(part.args), part.func) if isinstance(item, type)), None)
        arguments = part.keywords
    elif isinstance(part, type):
        kind, arguments = part, {}
    else:
        kind = None if inspect.isroutine(part) or isinstance(part, nn.Module | Tensor) else type(part)
        arguments = _arguments_of(part) if kind else {}
    if kind is None:
        raise ValueError(f"Expected a class, or a functools.partial of one, to name in config.yaml; got {part!r}.")
    return _spec_of(kind, arguments)


def _spec_of(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    path = _path(kind)
    arguments = {**changed_defaults(kind, path), **arguments}
    spec = {"init_args": {name: to_spec(value) for name, value in arguments.items()}} if arguments else {}
    return {"class_path": path} | spec


def program_spec(program: nn.Module) -> dict[str, Any]:
    """Return the configuration entries of a program: the parts, and the class unless the class is VAE.

    For a program without parts, return the class and the arguments, if attributes of the same names keep all arguments.
    """
    parts = {name: to_spec(part) for name, part in parts_of(program).items() if name != "event_shape"}
    kind = type(program)
    if parts and kind is VAE:
        return parts
    spec: dict[str, Any] = {"class_path": _path(kind)}
    if not parts and "<" not in kind.__qualname__:
        with suppress(ValueError, TypeError):
            spec |= {"init_args": {}} | _spec_of(kind, getattr(program, "made_with", None) or _arguments_of(program))
    return {"program": spec} | parts


def parts_of(program: Any) -> dict[str, Any]:
    """Return the arguments of :meth:`pyro_vae.VAE.build` for a program, or ``{}`` for a program without parts."""
    parts = getattr(program, "parts", None)
    return parts if isinstance(parts, dict) and "event_shape" in parts else {}


def event_shape(program: Any) -> list[int]:
    """Return the shape of one x for a program with parts; return an empty list for other programs."""
    return [*parts_of(program).get("event_shape", ())]


def _arguments_of(instance: Any) -> dict[str, Any]:
    """Return the constructor arguments of an instance, from its attributes of the same names."""
    owners = _parameters(type(instance))
    for name, owner in owners.items():
        if not hasattr(instance, name) and owner.__module__.split(".")[0] != "pyro":  # Pyro's losses ignore some
            raise ValueError(
                f"Expected {type(instance).__name__} to keep its argument {name!r} as an attribute, for config.yaml; "
                f"it has no attribute {name!r}. Add self.{name} = {name} to its __init__."
            )
    return {name: getattr(instance, name) for name in owners if hasattr(instance, name)}


def _parameters(kind: type) -> dict[str, type]:
    """Return the arguments of a class, and the class that declares each; ``**kwargs`` passes on to a base class."""
    owners: dict[str, type] = {}
    for owner in kind.__mro__[:-1]:
        if init := vars(owner).get("__init__"):
            kinds = {p.name: p.kind for p in [*inspect.signature(init).parameters.values()][1:]}
            names = [name for name, k in kinds.items() if k not in (Parameter.VAR_POSITIONAL, VAR_KEYWORD)]
            owners = dict.fromkeys(names, owner) | owners
            if VAR_KEYWORD not in kinds.values():
                break
    return owners


def _path(kind: type) -> str:
    """Return the import path of a class, from the outermost module that offers it, since inner files may move."""
    home = kind.__module__
    while getattr(sys.modules.get(home.rpartition(".")[0]), kind.__qualname__, None) is kind:
        home = home.rpartition(".")[0]
    return f"{home}.{kind.__qualname__}"


def config_of(run: Path, name: str = "config.yaml") -> dict[str, Any]:
    """Read a run's configuration as plain data, without imports; refuse YAML tags, aliases and too many brackets."""
    if not run.is_dir():
        raise FileNotFoundError(f"Expected a run directory; there is nothing at {str(run)!r}.")
    if not (run / name).is_file():
        raise FileNotFoundError(f"Expected a run directory with {name}; {str(run)!r} has none. Is it a run?")
    path = safe_path(run, name)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        text = path.read_text()
        if text.count("[") + text.count("{") > BRACKETS:
            raise ValueError(f"it has more than {BRACKETS:,} brackets")
        if any(isinstance(token, yaml.AliasToken | yaml.AnchorToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise ValueError("it has a YAML alias, such as *name; a run may not have one")
        config = with_former(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"Expected a run directory; could not read {str(path)!r} ({one_line(error)}).") from error
    return config if isinstance(config, dict) else {}


def arguments(function: Callable[..., Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a function from a configuration; refuse a value that does not fit the annotation."""
    hints = get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name in config]
    for name in names:
        if not _fits(config[name], hints[name]):
            kind = str(getattr(hints[name], "__name__", hints[name])).replace("typing.", "")
            raise ValueError(f"Expected {name} to be {kind}; the run's config.yaml has {str(config[name])[:80]!r}.")
    return {name: config[name] for name in names}


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is Sequence:
        return isinstance(value, list) and all(_fits(item, *get_args(hint)) for item in value)
    return type(value) in ((int, float) if hint is float else (hint,))


def check_trust(spec: Any, trust: Iterable[str]) -> None:
    """Check that plain data names only classes of ``pyro_vae`` or of trusted modules."""
    for path in _foreign(spec):
        if (module := path.rpartition(".")[0]) not in trust:
            raise ValueError(
                f"Expected parts of pyro_vae; the run names {path!r}, whose import would run its code. "
                f"If you trust it: load(run, trust=[{module!r}]), or --trust {module}."
            )


def command_on(words: str, place: Path, runs: Iterable[Path] = ()) -> str:
    """Return a command on a run, or on another place with runs, with the option ``--trust`` that their classes need."""
    specs = [config_of(run) for run in (*runs,) or (place,)]
    modules = [*dict.fromkeys(path.rpartition(".")[0] for path in _foreign(specs))]
    trust = f" --trust {shlex.quote(' '.join(modules))}" if modules else ""
    return f"pyro-vae {words} {display_path(place)}{trust}"


def _foreign(spec: Any) -> Iterator[str]:
    """Yield the import paths of classes outside of ``pyro_vae`` in plain data."""
    if isinstance(spec, dict) and str(spec.get("class_path", "pyro_vae")).split(".")[0] != "pyro_vae":
        yield str(spec["class_path"])
    if isinstance(spec, list | dict):
        for item in spec.values() if isinstance(spec, dict) else spec:
            yield from _foreign(item)


def from_spec(spec: Any, trust: Iterable[str] = ()) -> functools.partial:
    """Return a partial of a module class with arguments, from the plain data that :func:`to_spec` returns."""
    check_trust(spec, trust)
    return _class(spec, (nn.Module,))


def objective_from_spec(spec: Any, trust: Iterable[str] = ()) -> pyro.infer.ELBO:
    """Build an objective, with its schedule and penalty, from the plain data that :func:`to_spec` returns."""
    check_trust(spec, trust)
    make = _class(spec, (pyro.infer.ELBO,))
    try:
        return make(**{name: value() if callable(value) else value for name, value in make.keywords.items()})
    except (TypeError, ValueError) as error:
        name = make.func.__name__
        raise ValueError(f"Expected arguments that {name} accepts; it raised: {one_line(error)}.") from error


def _class(spec: Any, bases: tuple[type, ...]) -> functools.partial:
    arguments = (spec.get("init_args") or {}) if isinstance(spec, dict) else None
    if not isinstance(arguments, dict) or "class_path" not in spec:
        raise ValueError(f"Expected class_path and init_args of a part; the run has {str(spec)[:80]!r}.")
    path = str(spec["class_path"])
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Expected to import {path!r}, which the run names ({error}).") from error
    # A module also offers the classes that it imports: refuse a class of another package.
    own = inspect.isclass(kind) and kind.__module__.split(".")[0] in ("pyro_vae", module.split(".")[0])
    if not (own and issubclass(kind, bases)):
        names = " or ".join(base.__name__ for base in bases)
        raise ValueError(f"Expected a subclass of {names} from {module}; the run names {path!r}.")
    parameters = inspect.signature(kind).parameters
    any_name = any(parameter.kind is VAR_KEYWORD for parameter in parameters.values())
    if (unknown := [str(key) for key in arguments if key not in parameters]) and not any_name:
        raise ValueError(f"Expected arguments of {name} ({', '.join(parameters)}); the run has {', '.join(unknown)}.")
    for key, value in arguments.items():
        if isinstance(value, dict) and "class_path" in value:
            hint = parameters[key].annotation if key in parameters else Any
            arguments = arguments | {key: _class(value, _bases(hint))}
    return functools.partial(kind, **arguments)


def _bases(hint: Any) -> tuple[type, ...]:
    """Return the classes in an annotation; the base classes of parts if it has none."""
    leaves = [hint]
    while any(map(get_args, leaves)):
        leaves = [inner for leaf in leaves for inner in get_args(leaf) or [leaf]]
    classes = (leaf for leaf in leaves if isinstance(leaf, type) and leaf not in (Any, Parameter.empty))
    return (*classes,) or (nn.Module, pyro.infer.ELBO, Schedule, Penalty)
