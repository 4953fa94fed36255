"""A run's configuration in a few words."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyro_vae.checkpoint import describe

__all__ = ["defaults", "short"]


def short(spec: Any) -> str:
    """Write a part or a setting in a few words: of a class the arguments that are not its defaults."""
    if isinstance(spec, list):
        return f"[{', '.join(map(short, spec))}]"
    if not (isinstance(spec, dict) and "class_path" in spec):
        if isinstance(spec, bool | None):
            return str(spec).lower()
        return f"{spec:g}" if isinstance(spec, float) else str(spec)
    module, _, name = spec["class_path"].rpartition(".")
    usual = defaults(getattr(sys.modules.get(module), name, lambda: None))  # not imported: that would run its code
    given = {key: value for key, value in (spec.get("init_args") or {}).items() if usual.get(key, spec) != value}
    arguments = ", ".join(f"{key}={short(value)}" for key, value in given.items())
    return f"{name}({arguments})" if arguments else name


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Default arguments as plain data, as a run's configuration has them."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            with suppress(ValueError):  # a function, which is no plain data
                found[name] = describe(parameter.default)
    return found
