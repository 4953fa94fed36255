"""Old names of renamed objects: an old name works for one release and emits a warning."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["attribute_renamed", "renamed", "warn"]


def renamed(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module with deprecated names; ``names`` maps old names to new names.

    Raises:
        AttributeError: If a name is not in ``names``.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return __getattr__


def attribute_renamed(owner: Any, name: str, names: dict[str, str]) -> Any:
    """Return an attribute by its deprecated name; ``names`` maps old names to new names.

    Raises:
        AttributeError: If a name is not in ``names``.
    """
    kind = type(owner).__name__
    if name not in names:
        raise AttributeError(f"{kind!r} object has no attribute {name!r}")
    warn(f"{kind}.{name}", f"{kind}.{names[name]}", stacklevel=4)
    return getattr(owner, names[name])


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that ``old`` is deprecated; by default the warning points at the line of the caller's caller."""
    warnings.warn(f"{old} is deprecated. Use {new}.", DeprecationWarning, stacklevel)
