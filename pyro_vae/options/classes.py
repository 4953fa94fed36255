"""Classes that options name, from the package or from the user, and programs made of the classes."""

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

# The module with the classes of each option, and their base class.
PARTS: dict[str, tuple[ModuleType, type]] = {"prior": (priors, nn.Module), "likelihood": (likelihoods, Family)}
PARTS |= {"guide": (guides, Family), "network": (networks, networks.Network)}
ROOMS = {"program": (programs, nn.Module), **PARTS, "objective": (objectives, pyro.infer.ELBO)}
ROOMS |= {f"program.{name}": room for name, room in PARTS.items()}
ROOMS |= {"program.family": PARTS["guide"], "program.inner": PARTS["network"]}
ROOMS |= {"objective.beta": (objectives, objectives.Schedule), "objective.penalty": (objectives, objectives.Penalty)}


def class_names(option: str) -> list[str]:
    """Return the names of the package's classes that an option accepts."""
    module, base = ROOMS[option]
    objects = (getattr(module, name) for name in module.__all__)
    classes = (c for c in objects if inspect.isclass(c) and issubclass(c, base) and c is not base)
    return [c.__name__ for c in classes if not inspect.isabstract(c)]


def expand_name(option: str, part: Any) -> Any:
    """Replace the short name of a class by the import path, also inside a dictionary from a YAML file.

    A short name is looked up in the option's module: jsonargparse refuses a name that two modules share.
    ``option`` is empty for the dictionary of all options.
    """
    if isinstance(part, dict) and option in {"", *ROOMS}:
        inner = {"class_path": option, "init_args": option}
        return {key: expand_name(inner.get(key, f"{option}.{key}".lstrip(".")), value) for key, value in part.items()}
    if option in ROOMS and isinstance(part, str):
        if part in class_names(option):
            return f"{ROOMS[option][0].__name__}.{part}"
        if "." in part and all(word.isidentifier() for word in part.split(".")):
            _check_class(option, part)
    return part


def _check_class(option: str, path: str) -> None:
    """Import a class by its path; refuse one that is missing or has another base class."""
    home, _, name = path.rpartition(".")
    base = ROOMS[option][1]
    try:
        module = import_module(home)
    except ModuleNotFoundError as error:
        if not home.startswith(str(error.name)):
            raise  # the user's file imports it
        file = f"{home.replace('.', '/')}.py"
        raise ValueError(f"{expected(option)}; got {path}, and there is no {file} here.") from None
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == home]
        raise ValueError(f"Expected a class {name} in {home}; it defines {', '.join(own) or 'no class'}.")
    kind = getattr(module, name)
    if not (inspect.isclass(kind) and issubclass(kind, base)):
        raise ValueError(f"{expected(option)}; got {path}.")
    if option == "program" and not callable(getattr(kind, "model", None)):
        raise ValueError(f"Expected a program: a class with methods model and guide; {path} has no model.")


def expected(option: str) -> str:
    """Return the start of a message on an option: the values that it accepts."""
    base = ROOMS[option][1]
    kind = "your class" if base is nn.Module else f"your subclass of {base.__name__}"
    return f"Expected --{option} to be one of {', '.join(class_names(option))}, or the import path of {kind}"


class FromOptions(Protocol):
    """A class whose arguments are all options."""

    def __call__(self) -> nn.Module:
        """Make an instance."""


class FromShape(Protocol):
    """A class that takes options and the shape of the data; the shape is not an option."""

    def __call__(self, *, event_shape: Any) -> nn.Module:
        """Make an instance."""


class FromParts(Protocol):
    """A class that takes parts; parts are not options, so :meth:`VAE.build` makes an instance."""

    def __call__(self, *, prior: Any, decoder: Any, encoder: Any) -> nn.Module:
        """Make an instance."""


# jsonargparse takes the default arguments from the last of these types.
def program(program: FromOptions | FromParts | FromShape) -> None:
    """Train a program.

    Args:
        program: Class to train. VAE takes the parts below. VQVAE, ConditionalVAE, HierarchicalVAE and
            SemiSupervisedVAE take parts and further arguments, for example --program.latents "[100, 50]". For your own
            class with methods model and guide, give the import path, for example my_programs.Mine. Its model receives
            each array of --data as the argument of the same name.
    """


def class_of(part: Any) -> tuple[Any, dict[str, Any]]:
    """Return the class and the arguments that the value of an option holds."""
    if not isinstance(part, partial):
        return part, {}
    kind = part.args[-1]
    needed = _needed(kind)  # jsonargparse gives None for a missing argument without a type
    return kind, {name: value for name, value in part.keywords.items() if value is not None or name not in needed}


def is_of_parts(kind: type) -> bool:
    """Return whether :meth:`VAE.build` makes instances of a class."""
    return issubclass(kind, VAE) and kind.__init__ is VAE.__init__


def columns_of(kind: Any, options: Mapping[str, Any]) -> Sequence[str] | None:
    """Return ``columns``; for a ``.npz`` file and a program other than a VAE, the default is the model's arrays."""
    path, images = Path(options["data"]), options["binarize"] != "none" or options["dequantize"] or options["counts"]
    if options["columns"] is not None or images or path.suffix != ".npz" or hasattr(kind, "check_dataset"):
        return options["columns"]
    names, arrays = argument_names(SimpleNamespace(model=partial(kind.model, None))), arrays_of(path)
    if {*arrays} - {*names} or any(needed and name not in arrays for name, needed in names.items()):
        got = f"{', '.join(arrays) or 'none'} in {str(path)!r}. Rename them, or select them, as --columns [x]"
        raise ValueError(
            f"Expected arrays with the names of the arguments of {kind.__name__}.model, {', '.join(names)}; got {got}."
        )
    return [name for name in names if name in arrays]


def make(kind: Any, arguments: Mapping[str, Any], event_shape: Sequence[int], parts: Mapping[str, Any]) -> nn.Module:
    """Make a program from parts or from arguments; ``event_shape`` is the default of an argument with the same name."""
    if is_of_parts(kind):
        return kind.build(event_shape, **parts)
    arguments = {**arguments, **parts}
    if "event_shape" in inspect.signature(kind).parameters and arguments.get("event_shape") is None:
        arguments["event_shape"] = tuple(event_shape)
    if absent := [name for name in _needed(kind) if name not in arguments]:
        raise ValueError(f"Expected --program.{absent[0]}, an argument of {kind.__name__}; got none.")
    instance = kind(**arguments)
    check_program(instance)
    instance.made_with = arguments  # for config.yaml
    return instance


def _needed(kind: type) -> list[str]:
    """Return the names of arguments without a default."""
    parameters = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
