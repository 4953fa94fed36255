"""A program of the user's own: its class by import path, made with the arguments that were given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from torch import nn

from pyro_vae import VAE
from pyro_vae.data.on_disk import arrays_of
from pyro_vae.program import argument_names
from pyro_vae.train import check_program

__all__ = ["PARTS", "columns_of", "is_of_parts", "kind_of", "make", "program"]

PARTS = ("latent", "prior", "likelihood", "guide", "network")  # of VAE.build


class Made(Protocol):
    """A class all of whose arguments are to be given."""

    def __call__(self) -> nn.Module:
        """Make the program."""


class Given(Protocol):
    """A class with arguments that are not options: the data's shape, and what :meth:`VAE.build` makes."""

    def __call__(self, *, event_shape: Any, prior: Any, decoder: Any, encoder: Any) -> nn.Module:
        """Make the program."""


def program(program: Made | Given) -> None:
    """Train VAE, or a program of your own.

    Arguments:
        program: VAE, of the parts below; or the import path of a class of your own with methods model and guide, as
            my_programs.Mine, and its arguments, as --program.hidden 64. Of --data then each array is the argument of
            its name.
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
    """Return the names of the arrays that a program is given, if the data are a file of them, and not images for a VAE.

    Raises:
        ValueError: If an argument of the model is not there, or an array is no argument.
    """
    path, images = Path(options["data"]), options["binarize"] != "none" or options["dequantize"] or options["counts"]
    if options["columns"] is not None or images or path.suffix != ".npz" or hasattr(kind, "check_dataset"):
        return options["columns"]
    names, arrays = argument_names(SimpleNamespace(model=partial(kind.model, None))), arrays_of(path)
    if {*arrays} - {*names} or any(needed and name not in arrays for name, needed in names.items()):
        raise ValueError(
            f"Expected arrays named as the arguments of {kind.__name__}.model, {', '.join(names)}; got "
            f"{', '.join(arrays) or 'none'} in {str(path)!r}. Rename them, or say which they are, as --columns [x]."
        )
    return [name for name in names if name in arrays]


def make(kind: Any, arguments: Mapping[str, Any], event_shape: Sequence[int], parts: Mapping[str, Any]) -> nn.Module:
    """Make a program: of parts, or with its arguments, and the data's shape if it takes that and was not given one.

    Raises:
        ValueError: If an argument is not there, or what is made is no program.
    """
    if is_of_parts(kind):
        return kind.build(event_shape, **parts)
    if "event_shape" in inspect.signature(kind).parameters and arguments.get("event_shape") is None:
        arguments = {**arguments, "event_shape": tuple(event_shape)}
    if absent := [name for name in _needed(kind) if name not in arguments]:
        raise ValueError(f"Expected --program.{absent[0]}, an argument of {kind.__name__}; it was not given.")
    made = kind(**arguments)
    check_program(made)
    made.made_with = arguments  # for the run's configuration
    return made


def _needed(kind: type) -> list[str]:
    found = inspect.signature(kind).parameters.values()
    return [
        one.name for one in found if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
