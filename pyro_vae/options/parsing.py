"""From the words of ``pyro-vae`` to parts: options, and classes by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader

from pyro_vae import VAE, checkpoint, data, fit
from pyro_vae.options.programs import PARTS, is_of_parts, kind_of, program
from pyro_vae.options.rooms import ROOMS, known, part_in_full

__all__ = ["check_config", "in_full", "parse", "parser"]

TRUST = "Modules of your own whose classes a run's --config or --resume may name, as my_parts; spaces between."
WORDS = {f"--{option}{end}": option for option in ROOMS for end in ("", ".help")}


def parse(commands: dict[str, Callable[..., None]], given: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the subcommand that was given, and the arguments to call it with.

    Raises:
        ArgumentError: If there is no such option, or it does not take the value.
        ValueError: If a class of the user's own is not to be had, or an option is null that has to be something.
    """
    words = in_full(given)
    made = parser(commands, _chosen(parser(commands), words))
    parsed = made.parse_args(words)
    options = made.instantiate(parsed)[parsed.subcommand].as_dict()
    options.pop("config", None)
    subcommands = next(action for action in made._actions if action.dest == "subcommand").choices
    assert isinstance(subcommands, dict)
    _check(options, subcommands[parsed.subcommand].get_defaults())
    if "program" in options and not is_of_parts(kind := kind_of(options["program"])[0]):
        usual, own = (p[parsed.subcommand] for p in (parser(commands).parse_args([parsed.subcommand]), parsed))
        own_words = {word.partition("=")[0].partition(".")[0] for word in words}
        if others := [part for part in PARTS if f"--{part}" in own_words or own[part] != usual[part]]:
            raise ValueError(f"Expected no --{others[0]}, a part of a VAE, with the program {kind.__name__}; got one.")
    return parsed.subcommand, options


def _check(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check what jsonargparse lets pass: null for any option, and whole numbers of any length."""
    for name, value in options.items():
        if value is None and defaults.get(name) is not None:
            raise ValueError(f"Expected a value for --{name}; got null. Leave it out for the usual one.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"Expected --{name} to fit into 64 bits; got {value}.")


def check_config(given: Sequence[str]) -> None:
    """Check that a run's configuration, given as ``--config``, names no class that ``--trust`` does not.

    Raises:
        ValueError: If it does.
    """
    found: dict[str, list[str]] = {"--config": [], "--trust": []}
    for word, after in pairwise([*given, ""]):
        name, equals, value = word.partition("=")
        found.get(name, []).append(value if equals else after)
    for file in found["--config"]:
        checkpoint.check_config(Path(file), ROOMS, " ".join(found["--trust"]).split())


def in_full(given: Sequence[str]) -> list[str]:
    """Return the words of a command with import paths for short names of classes, each of its option's own room.

    And with --on_nan for --on-nan.
    """
    words = []
    for before, word in pairwise(["", *given]):
        if word.startswith("--"):
            dashed = word.partition("=")[0]
            word = f"--{dashed[2:].replace('-', '_')}{word.removeprefix(dashed)}"
        option, _, name = word.rpartition("=")  # --prior=Flow, or Flow after --prior
        words.append(word.removesuffix(name) + part_in_full(WORDS.get(option or before, ""), name))
    return words


def parser(commands: dict[str, Callable[..., None]], parts: dict[str, Any] | None = None) -> ArgumentParser:
    """Return a parser of the subcommands, with ``parts`` for defaults of ``train``."""
    settings: dict[str, Any] = {"formatter_class": _HelpFormatter, "parser_mode": "parts"}
    settings["allow_abbrev"] = False  # --conf would be read, and not be looked through before
    made = _Parser(prog="pyro-vae", **settings)
    subcommands = made.add_subcommands()
    for name, command in commands.items():
        sub = _Parser(description=(command.__doc__ or "").split("\n")[0], **settings)
        sub.add_argument("--config", action="config", help="YAML file of options, as --print_config prints.")
        if name == "train":
            sub.add_function_arguments(data.load)
            sub.add_function_arguments(program, fail_untyped=False)
            # A class of the user's own may leave out the types of its arguments.
            sub.add_method_arguments(VAE, "build", skip={"event_shape"}, fail_untyped=False)
            sub.add_function_arguments(
                fit, skip={"program", "data", "progress", "resume", "on_epoch"}, fail_untyped=False
            )
            sub.add_argument(
                "--resume", type=str | None, help="Run directory to go on with; no other option is needed."
            )
            sub.add_argument("--trust", type=str, default="", help=TRUST)
            usual = {"program": {"class_path": "pyro_vae.VAE"}, "objective": {"class_path": "pyro_vae.objectives.ELBO"}}
            sub.set_defaults(usual | (parts or {}))
        elif name == "compare":
            sub.add_argument("runs", nargs="+", help="Run directories.")
            sub.add_function_arguments(command, skip={"runs", "progress"})
        else:
            sub.add_function_arguments(command, as_positional=True)
        subcommands.add_subcommand(name, sub)
    return made


class _Parser(ArgumentParser):
    """Raises what is wrong, as does the one that jsonargparse makes of its class for --prior.help."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"exit_on_error": False} | options)


class _HelpFormatter(DefaultHelpFormatter):
    """Names the classes of an option's own room, where jsonargparse names every subclass that was ever imported."""

    def _expand_help(self, action: Any) -> str:
        text = super()._expand_help(action)
        if action.dest in ROOMS:
            text = re.sub(r"known subclasses: [^)]*", f"known: {', '.join(known(action.dest))}", text)
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


def _read(text: str) -> Any:
    found = get_loader("yaml")(text)
    if isinstance(found, dict) and found.get("config") is not None:
        raise yaml.YAMLError("Expected options; got config, which one file cannot take from another.")
    return part_in_full("", found)


set_loader("parts", _read, (yaml.YAMLError,))
