"""From plain data to parts: a class by its import path and its arguments, and no class that is not trusted."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pyro.infer
import yaml
from torch import nn

from pyro_vae.checkpoint.files import inside, short

__all__ = ["arguments", "check_config", "check_trust", "construct", "construct_objective", "read_config"]

LARGEST, BRACKETS = 2**20, 1000  # bytes of a configuration, and what takes a parser the square of their number


def read_config(run: str | Path, name: str = "config.yaml") -> dict[str, Any]:
    """Read the configuration of a run: plain data, and no class of it imported.

    Raises:
        ValueError: If it cannot be read, or holds what a run does not write: tags, references, a page of brackets.
    """
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


def arguments(function: Callable[..., Any], config: Mapping[str, Any], skip: Sequence[str] = ()) -> dict[str, Any]:
    """Return the arguments of a function that a configuration gives, each of the kind that it is annotated with.

    Raises:
        ValueError: If one is of another kind.

    Example:
        >>> def bake(minutes: int, at: float = 200.0) -> None: ...
        >>> arguments(bake, {"minutes": 20, "color": "brown"})
        {'minutes': 20}
    """
    hints = get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name in config and name not in skip]
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
    kinds = {int: (int,), float: (int, float), bool: (bool,), str: (str,), type(None): (type(None),)}
    return type(value) in kinds.get(hint, ())


def check_config(path: Path, options: Container[str], trust: Iterable[str]) -> None:
    """Check that a file of options, if it lies in a run, names no class that is not trusted.

    One that lies in no run is the user's own.

    Arguments:
        path: The file.
        options: Those that are parts. Any word with a dot in them may be an import path.
        trust: Modules of the user's own.

    Raises:
        ValueError: If it does.
    """
    if any((path.parent / name).exists() for name in ("environment.json", "model.safetensors", "checkpoint")):
        config = read_config(path.parent, path.name)
        parts = [value for key, value in config.items() if str(key).split(".")[0] in options]
        check_trust([{"class_path": word} for word in _words(parts) if "." in word], trust)


def _words(part: Any) -> list[str]:
    if isinstance(part, dict | list):
        return [word for item in (part.values() if isinstance(part, dict) else part) for word in _words(item)]
    return [part] if isinstance(part, str) else []


def check_trust(spec: Any, trust: Iterable[str]) -> None:
    """Check that plain data names classes of ``pyro_vae`` alone, or of modules that are trusted.

    Raises:
        ValueError: If it names another, whose import would run its code.
    """
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
    """Return the module's class that :func:`describe` made plain data of, as a partial of it with its arguments.

    Raises:
        ValueError: If the class is not trusted, not there, or of another kind.
    """
    check_trust(spec, trust)
    return _class(spec, nn.Module)


def construct_objective(spec: Any, trust: Iterable[str] = ()) -> pyro.infer.ELBO:
    """Return the objective that :func:`describe` made plain data of, and what it is made of, as a schedule of beta.

    Raises:
        ValueError: If a class is not trusted, not there, of another kind, or does not take its arguments.
    """
    check_trust(spec, trust)
    made = _class(spec, pyro.infer.ELBO)
    try:
        return made(**{name: value() if callable(value) else value for name, value in made.keywords.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected an objective; {made.func.__name__} could not be made ({short(error)}).") from error


def _class(spec: Any, kind: type) -> functools.partial:
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
    if not (own and issubclass(found, kind)):
        raise ValueError(f"Expected a class of {module} that is a {kind.__name__}; the run names {path!r}.")
    known = inspect.signature(found).parameters
    anything = any(one.kind is one.VAR_KEYWORD for one in known.values())
    if unknown := [str(key) for key in arguments if key not in known and not anything]:
        raise ValueError(f"Expected arguments of {name}, {', '.join(known)}; the run has {', '.join(unknown)}.")
    inner = {key: _class(value, object) if _names(value) else value for key, value in arguments.items()}
    return functools.partial(found, **inner)


def _names(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value
