"""Arguments from the command line of ``pyro-vae``, and errors in one line."""

import os
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, get_loader, set_loader
from torch.utils._pytree import tree_leaves

from pyro_vae import VAE, checkpoint, data, fit
from pyro_vae.options.classes import ROOMS, class_names, class_of, expand_name, expected, is_of_parts, program
from pyro_vae.train import Settings

PARTS = ("latent", "prior", "likelihood", "guide", "network")  # of VAE.build
RUN = ("environment.json", "model.safetensors", "checkpoint/last.safetensors")  # beside a run's config.yaml
TRUST = "Modules beside pyro_vae whose classes a run or its --config may name, as my_parts; separated by spaces."
WORDS = {f"--{option}{end}": option for option in ROOMS for end in ("", ".help")}


def parse(name: str, command: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a subcommand from the words after the subcommand's name."""
    words = expand_names(words)
    first = final = _kept_parser(name, command, ())
    if name == "train":
        # If a class replaces the default one, jsonargparse keeps the default values of arguments that both have:
        # --objective IWAE would take one particle from ELBO. So a second parser has the chosen classes as defaults.
        chosen = first.parse_args([word for word in words if not word.startswith("--print_config")])
        parts = {option: chosen[option]["class_path"] for option in ROOMS if "." not in option and chosen.get(option)}
        own = all(path.startswith("pyro_vae.") for path in parts.values())  # a user's class may change
        final = (_kept_parser if own else parser)(name, command, tuple(parts.items()))
    parsed = final.parse_args(words)
    options = final.instantiate(parsed).as_dict()
    options.pop("config", None)
    defaults = final.get_defaults()
    for option, value in options.items():  # jsonargparse accepts these values
        if value is None and defaults.get(option) is not None:
            raise ValueError(f"Expected a value for --{option}; got null. Leave the option out for its default.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"Expected --{option} to fit into 64 bits; got {value}.")
    if name == "train" and not is_of_parts(kind := class_of(options["program"])[0]):
        usual, takes = first.parse_args([]), signature(kind).parameters
        own_words = {word.partition("=")[0].partition(".")[0] for word in words}
        for part in PARTS:
            if f"--{part}" not in own_words and parsed[part] == usual[part]:
                options.pop(part)  # the program has a default
            elif part not in takes:
                raise ValueError(f"Expected no --{part}, a part of a VAE, with the program {kind.__name__}; got one.")
    return options


@cache
def _kept_parser(name: str, command: Callable[..., Any], parts: tuple[tuple[str, str], ...]) -> ArgumentParser:
    """Return a parser with default classes, made once: a sweep parses the options of many runs."""
    return parser(name, command, parts)


def check_config(words: Sequence[str]) -> None:
    """Check that a run's ``config.yaml``, passed as ``--config``, has only settings of a run and trusted classes."""
    values: dict[str, list[str]] = {"--config": [], "--trust": []}
    for word, after in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        values.get(name, []).append(value if equals else after)
    settings = {*signature(data.load).parameters, *Settings.__dataclass_fields__, *PARTS, *ROOMS}
    for file in (Path(os.path.realpath(file)) for file in values["--config"]):
        if any((file.parent / name).exists() for name in RUN):
            config = checkpoint.config_of(file.parent, file.name)
            if unknown := [key for key in map(str, config) if key.split(".")[0] not in settings]:
                got = f"{unknown[0]}, which is no setting of a run. Remove it, or pass it as --{unknown[0]}."
                raise ValueError(f"Expected the settings of a run in {checkpoint.display_path(file)!r}; got {got}")
            parts = [value for key, value in config.items() if str(key).split(".")[0] in ROOMS]
            paths = (leaf for leaf in tree_leaves(parts) if isinstance(leaf, str) and "." in leaf)
            checkpoint.check_trust([{"class_path": path} for path in paths], " ".join(values["--trust"]).split())


def expand_names(words: Sequence[str]) -> list[str]:
    """Replace short names of classes on a command line by import paths, and --on-nan by --on_nan."""
    expanded = []
    for before, word in pairwise(["", *words]):
        if word.startswith("--"):
            dashed = word.partition("=")[0]
            word = f"--{dashed[2:].replace('-', '_')}{word.removeprefix(dashed)}"
        option, _, name = word.rpartition("=")  # --prior=Flow, or Flow after --prior
        expanded.append(word.removesuffix(name) + expand_name(WORDS.get(option or before, ""), name))
    return expanded


def parser(name: str, command: Callable[..., Any], parts: Sequence[tuple[str, str]] = ()) -> ArgumentParser:
    """Return the parser of a subcommand; ``parts`` are options of ``train`` with the paths of their default classes."""
    result = _Parser(
        prog=f"pyro-vae {'train' if name == 'stage' else name}",
        description=(command.__doc__ or "").split("\n")[0],
        parser_mode="parts",
        allow_abbrev=False,  # check_config does not see --conf
    )
    result.add_argument("--config", action="config", help="YAML file of options, as --print_config prints.")
    if name != "sweep":
        result.add_argument("--trust", type=str, default="", help=TRUST)
    if name in ("compare", "report"):
        studies = ", or directories of studies" if name == "compare" else ""
        result.add_argument("runs", nargs="+", help=f"Run directories{studies}.")
    if name != "train":
        skipped: set[str | int] = {"runs", "progress", "trust"}
        skipped |= {"resume", "on_epoch", "sleep"} if name == "stage" else set()
        result.add_function_arguments(command, as_positional=True, skip=skipped)
        return result
    result.add_function_arguments(data.load)
    # The user's class may have arguments without types.
    result.add_function_arguments(program, fail_untyped=False)
    result.add_method_arguments(VAE, "build", skip={"event_shape"}, fail_untyped=False)
    result.add_function_arguments(fit, skip={"program", "data", "progress", "resume", "on_epoch"}, fail_untyped=False)
    result.add_argument("--resume", type=str | None, help="Run directory to resume; no other option is needed.")
    result.add_argument(
        "--stage", type=str | None, help="prior RUN: train only a new prior of RUN; see --stage prior --help."
    )
    usual = {"program": {"class_path": "pyro_vae.VAE"}, "objective": {"class_path": "pyro_vae.objectives.ELBO"}}
    result.set_defaults(usual | {option: {"class_path": path} for option, path in parts})
    return result


class _Parser(ArgumentParser):
    """A parser that raises errors, as must the one that jsonargparse makes of its class for --prior.help."""

    def __init__(self, **options: Any) -> None:
        usual: dict[str, Any] = {"exit_on_error": False, "formatter_class": _HelpFormatter}
        super().__init__(**usual | options)


class _HelpFormatter(DefaultHelpFormatter):
    """Prints docstrings without Sphinx's roles, and the classes of an option's module: not every imported subclass."""

    def _expand_help(self, action: Any) -> str:
        text = re.sub(r":\w+:`~?([^`]+)`", r"\1", super()._expand_help(action))
        if action.dest in ROOMS:
            text = re.sub(r"known subclasses: [^)]*", f"known: {', '.join(class_names(action.dest))}", text)
        return text


def _read(text: str) -> Any:
    content = get_loader("yaml")(text)
    if isinstance(content, dict) and content.get("config") is not None:
        raise yaml.YAMLError("Expected options; got config. A file of options cannot include another one.")
    return expand_name("", content)


set_loader("parts", _read, (yaml.YAMLError,))


def error_message(error: Exception, name: str) -> str:
    """Return an error in one line, with the line of the user's code; return an empty text for a bug in this package."""
    cause: BaseException | None = error
    while cause:
        if place := _place(cause):
            kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
            return f"{place}: {kind}{_short(cause.msg if isinstance(cause, SyntaxError) else str(cause))}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), flags=re.IGNORECASE)
        advice = "Use a smaller latent, network, likelihood, prior or batch_size, or fewer draws."
        return f"Out of memory{f', allocating {size[1]}' if size else ''}. {advice}"
    if isinstance(error, OverflowError) or re.search("Overflow when unpacking|without overflow", str(error)):
        return "A number is too large for its type. Use a smaller one."
    if isinstance(error, ArgumentError):
        return f"{_of_parser(str(error), name)} See {name} --help."
    # For a union of types, jsonargparse lists one message per type; pick the one of this package.
    ours = re.search(r"^ *- (Expected (?!an? <class).*)$", str(error), flags=re.MULTILINE)
    if isinstance(error, OSError) and error.strerror:  # raised by the system
        return f"Expected a file or folder that can be read and written; got {str(error.filename)!r}: {error.strerror}."
    return _short(ours[1] if ours else str(error)) if isinstance(error, ValueError | OSError) else ""


def _place(error: BaseException) -> str:
    """Return the file and line of the user's code where an error comes from; empty for other code."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    here, installed = Path.cwd(), {"site-packages", "dist-packages"}
    libraries = (Path(__file__).parent.parent, Path(sysconfig.get_path("stdlib")))
    for name, line in reversed(lines):
        file = Path(name)
        of_library = installed.intersection(file.parts) or any(map(file.is_relative_to, libraries))
        if file.is_relative_to(here) and not of_library:
            return f"{file.relative_to(here)}, line {line}"
    return ""


def _short(message: str) -> str:
    """Return a message in one line, without the shapes of all sites that Pyro adds."""
    return textwrap.shorten(message.partition("Trace Shapes:")[0], 400, placeholder=" ...")


def _of_parser(message: str, name: str) -> str:
    """Return an error of jsonargparse in one line: expected, got."""
    message = re.sub(r"\S{200,}", lambda long: f"{long[0][:100]}...", " ".join(message.split()))
    option = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    got = re.search(r"(?:(?:Got|Given) value|import path string): (.+?)(?:\. Got value|\.?$)", message)
    part = re.search(r"class_path='([\w.]+)'", message)
    kinds = [*dict.fromkeys(re.findall(r"Expected an? (?:<class ')?(.+?)(?:'>)?(?=\. Got| - | Given|$)", message))]
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        owner = re.findall(r"class_path(?:=| )'(?:\w+\.)*(\w+)'", message)
        if not (owner or option):
            return f"Expected an option of {name.removeprefix('pyro-vae ')}; got {unknown[1]}."
        return f"Expected an argument of {owner[-1] if owner else option}; got --{option}.{unknown[1]}."
    if absent := re.findall(r"callable class: the following arguments are required: (\w+)", message):
        return f"Expected --{option}.{absent[-1]}, which {part[1] if part else option} requires; got none."
    if option in ROOMS and got:
        number = "a number, or " if kinds and kinds[0].startswith("float") else ""
        value = part[1] if part else re.split(" Given | - ", got[1])[0]
        return f"{expected(option).replace('one of', f'{number}one of')}; got {value}."
    if option and got and kinds:
        kinds = [kind for kind in kinds if kind != "NoneType"] or kinds
        kind = " or ".join(re.sub(r"typing\.Literal\[(.*)\]|(?:\w+\.)*(\w+)", r"\1\2", kind) for kind in kinds)
        value = re.split(" Given | - ", got[1])[0]
        return f"Expected --{option} to be {kind.replace('Sequence', 'a list, as [200, 200]')}; got {value}."
    return re.sub(r'Parser key "([\w.]+)": ', r"--\1: ", message).rstrip(".") + "."
