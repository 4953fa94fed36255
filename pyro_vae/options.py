"""From the words of ``pyro-vae`` to parts: options, classes by name, and one sentence for what is wrong."""

from __future__ import annotations

import inspect
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro.infer
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, get_loader, set_loader

from pyro_vae import VAE, checkpoint, data, fit, guides, likelihoods, networks, objectives, priors
from pyro_vae.conditional import Family

__all__ = ["ROOMS", "check_config", "in_full", "parse", "parser", "sentence"]

# Where the classes of each option live, and what they are subclasses of.
ROOMS: dict[str, tuple[ModuleType, type]] = {
    "prior": (priors, torch.nn.Module),
    "likelihood": (likelihoods, Family),
    "guide": (guides, Family),
    "network": (networks, networks.Network),
    "objective": (objectives, pyro.infer.ELBO),
    "objective.beta": (objectives, objectives.Schedule),
    "objective.penalty": (objectives, objectives.Penalty),
}
TRUST = "Modules of your own whose classes a run's --config or --resume may name, as my_parts; spaces between."
WORDS = {f"--{option}{end}": option for option in ROOMS for end in ("", ".help")}


def parse(commands: dict[str, Callable[..., None]], given: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the subcommand that was given, and the arguments to call it with.

    Raises:
        ArgumentError: If there is no such option, or it does not take the value.
        ValueError: If a class of the user's own is not to be had.
    """
    words = in_full(given)
    made = parser(commands, _chosen(parser(commands), words))
    parsed = made.parse_args(words)
    options = made.instantiate(parsed)[parsed.subcommand].as_dict()
    options.pop("config", None)
    return parsed.subcommand, options


def check_config(given: Sequence[str]) -> None:
    """Check that a run's configuration, given as ``--config``, names no class that ``--trust`` does not.

    Raises:
        ValueError: If it does.
    """
    options = {"config": "", "trust": ""}
    for word, after in pairwise([*given, ""]):
        name, equals, value = word.partition("=")
        if name.removeprefix("--") in options:
            options[name.removeprefix("--")] = value if equals else after
    if options["config"]:
        checkpoint.check_config(Path(options["config"]), ROOMS, options["trust"].split())


def in_full(given: Sequence[str]) -> list[str]:
    """Return the words of a command with import paths for short names of classes, each of its option's own room."""
    words = []
    for before, word in pairwise(["", *given]):
        option, _, name = word.rpartition("=")  # --prior=Flow, or Flow after --prior
        words.append(word.removesuffix(name) + _in_full(WORDS.get(option or before, ""), name))
    return words


def parser(commands: dict[str, Callable[..., None]], parts: dict[str, Any] | None = None) -> ArgumentParser:
    """Return a parser of the subcommands, with ``parts`` for defaults of ``train``."""
    settings: dict[str, Any] = {"exit_on_error": False, "formatter_class": _HelpFormatter, "parser_mode": "parts"}
    made = ArgumentParser(prog="pyro-vae", **settings)
    subcommands = made.add_subcommands()
    for name, command in commands.items():
        sub = ArgumentParser(description=(command.__doc__ or "").split("\n")[0], **settings)
        sub.add_argument("--config", action="config", help="YAML file of options, as --print_config prints.")
        if name == "train":
            sub.add_function_arguments(data.load)
            # A class of the user's own may leave out the types of its arguments.
            sub.add_method_arguments(VAE, "build", skip={"event_shape"}, fail_untyped=False)
            sub.add_function_arguments(fit, skip={"vae", "dataset", "progress", "resume"}, fail_untyped=False)
            sub.add_argument(
                "--resume", type=str | None, help="Run directory to go on with; no other option is needed."
            )
            sub.add_argument("--trust", type=str, default="", help=TRUST)
            sub.set_defaults(parts or {})
        elif name == "compare":
            sub.add_argument("runs", nargs="+", help="Run directories.")
            sub.add_function_arguments(command, skip={"runs", "progress"})
        else:
            sub.add_function_arguments(command, as_positional=True)
        subcommands.add_subcommand(name, sub)
    return made


def sentence(error: Exception, name: str) -> str:
    """Say in one sentence what is wrong, with file and line where it is in the user's code.

    Arguments:
        error: What a command raised.
        name: The command, whose ``--help`` says more.

    Returns:
        Nothing if the error is neither in the user's code nor one of bad input.
    """
    cause: BaseException | None = error
    while cause:
        if place := _place(cause):
            kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
            return f"{place}: {kind}{_short(cause.msg if isinstance(cause, SyntaxError) else str(cause))}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ArgumentError):
        return f"{_one_sentence(str(error))} See {name} --help."
    # Of a union of types jsonargparse lists what each said; ours is the sentence.
    ours = re.search(r"^ *- (Expected (?!an? <class).*)$", str(error), flags=re.MULTILINE)
    return _short(ours[1] if ours else str(error)) if isinstance(error, ValueError | OSError) else ""


class _HelpFormatter(DefaultHelpFormatter):
    """Names the classes of an option's own room, where jsonargparse names every subclass that was ever imported."""

    def _expand_help(self, action: Any) -> str:
        text = super()._expand_help(action)
        if action.dest in ROOMS:
            text = re.sub(r"known subclasses: [^)]*", f"known: {', '.join(_known(action.dest))}", text)
        return text


def _chosen(parser: ArgumentParser, given: Sequence[str]) -> dict[str, Any]:
    """Return the classes that were chosen, to be the defaults of another parse.

    Where a class replaces another, jsonargparse keeps the arguments that both have: ``--objective IWAE`` would take
    the single particle of the default ELBO.
    """
    parsed = parser.parse_args([word for word in given if not word.startswith("--print_config")])
    options = parsed[parsed.subcommand] if parsed.subcommand else {}
    return {
        option: {"class_path": options[option]["class_path"]}
        for option in ROOMS
        if "." not in option and options.get(option)
    }


def _known(option: str) -> list[str]:
    """Names of the classes that an option may be, in its room."""
    room, base = ROOMS[option]
    found = (getattr(room, name) for name in room.__all__)
    parts = (part for part in found if inspect.isclass(part) and issubclass(part, base) and part is not base)
    return [part.__name__ for part in parts if not inspect.isabstract(part)]


def _in_full(option: str, part: Any) -> Any:
    """Return a part with the import paths of the classes it names: a short name is of the option's own room.

    Where two rooms, or a room and a file of the user's, have classes of one name, jsonargparse asks which is meant.

    Arguments:
        option: Which option, or the empty string for the dictionary of all options.
        part: A name, or a dictionary as YAML files have. Anything else is returned as it is.
    """
    if isinstance(part, dict) and option in {"", *ROOMS}:
        inside = {"class_path": option, "init_args": option}
        return {key: _in_full(inside.get(key, f"{option}.{key}".lstrip(".")), value) for key, value in part.items()}
    if option in ROOMS and isinstance(part, str):
        if part in _known(option):
            return f"{ROOMS[option][0].__name__}.{part}"
        if "." in part and all(word.isidentifier() for word in part.split(".")):
            _check(option, part)
    return part


set_loader("parts", lambda text: _in_full("", get_loader("yaml")(text)), (yaml.YAMLError,))


def _check(option: str, path: str) -> None:
    """Import a class by its path, and say in one sentence if it is not there or of another kind."""
    home, _, name = path.rpartition(".")
    base = ROOMS[option][1]
    try:
        module = import_module(home)
    except ModuleNotFoundError as error:
        if not home.startswith(str(error.name)):
            raise  # something that the user's file imports
        file = f"{home.replace('.', '/')}.py"
        raise ValueError(f"{_expected(option)}; got {path}, and there is no {file} here.") from None
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == home]
        raise ValueError(f"Expected a class {name} in {home}; there is {', '.join(own) or 'no class in it'}.")
    found = getattr(module, name)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"{_expected(option)}; got {path}.")


def _place(error: BaseException) -> str:
    """Return the file and line of the user's own code where an error comes from, if it does."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    here, others = Path.cwd(), (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))
    for name, line in reversed(lines):
        file = Path(name)
        installed = {"site-packages", "dist-packages"}.intersection(file.parts) or any(
            file.is_relative_to(other) for other in others
        )
        if file.is_relative_to(here) and not installed:
            return f"{file.relative_to(here)}, line {line}"
    return ""


def _expected(option: str) -> str:
    base = ROOMS[option][1]
    kind = "" if base is torch.nn.Module else f", a subclass of {base.__name__}"
    names = ", ".join(_known(option))
    return f"Expected --{option} to be one of {names}, or the import path of a class of yours{kind}"


def _short(message: str) -> str:
    """One line, without the shapes of every site that Pyro adds."""
    return textwrap.shorten(message.partition("Trace Shapes:")[0], 400, placeholder=" ...")


def _one_sentence(message: str) -> str:
    """Say what jsonargparse found wrong in one line: expected, got."""
    message = " ".join(message.split())
    option = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    got = re.search(r"(?:(?:Got|Given) value|import path string): (.+?)(?:\. Got value|\.?$)", message)
    part = re.search(r"class_path='([\w.]+)'", message)
    kinds = [*dict.fromkeys(re.findall(r"Expected an? (?:<class ')?(.+?)(?:'>)?(?=\. Got| - | Given|$)", message))]
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        owner = re.findall(r"class_path(?:=| )'(?:\w+\.)*(\w+)'", message)
        return f"Expected an argument of {owner[-1] if owner else option}; got --{option}.{unknown[1]}."
    if option in ROOMS and got:
        number = "a number, or " if kinds and kinds[0].startswith("float") else ""
        found = part[1] if part else re.split(" Given | - ", got[1])[0]
        return f"{_expected(option).replace('one of', f'{number}one of')}; got {found}."
    if option and got and kinds:
        kinds = [kind for kind in kinds if kind != "NoneType"] or kinds
        kind = " or ".join(re.sub(r"typing\.Literal\[(.*)\]|(?:\w+\.)*(\w+)", r"\1\2", kind) for kind in kinds)
        found = re.split(" Given | - ", got[1])[0]
        return f"Expected --{option} to be {kind.replace('Sequence', 'a list, as [200, 200]')}; got {found}."
    return re.sub(r'Parser key "([\w.]+)": ', r"--\1: ", message).rstrip(".") + "."
