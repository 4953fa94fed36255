"""From the words of ``pyro-vae`` to arguments, and one sentence for what is wrong."""

import os
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Sequence
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, get_loader, set_loader
from torch.utils._pytree import tree_leaves

from pyro_vae import VAE, checkpoint, data, fit
from pyro_vae.options.classes import ROOMS, expected, is_of_parts, kind_of, known, part_in_full, program
from pyro_vae.train import Settings

PARTS = ("latent", "prior", "likelihood", "guide", "network")  # of VAE.build
RUN = ("environment.json", "model.safetensors", "checkpoint/last.safetensors")  # beside a run's configuration
TRUST = "Modules of your own whose classes a run or its --config may name, as my_parts; spaces between."
WORDS = {f"--{option}{end}": option for option in ROOMS for end in ("", ".help")}


def parse(name: str, command: Callable[..., None], given: Sequence[str]) -> dict[str, Any]:
    """Return the arguments to call a command with, of the words that follow its name."""
    words = in_full(given)
    usual = final = parser(name, command)
    if name == "train":
        # Where a class replaces another, jsonargparse keeps the arguments that both have: --objective IWAE would take
        # the single particle of the default ELBO. So the classes that are chosen are the defaults of another parser.
        chosen = usual.parse_args([word for word in words if not word.startswith("--print_config")])
        parts = [option for option in ROOMS if "." not in option and chosen.get(option)]
        final = parser(name, command, {option: {"class_path": chosen[option]["class_path"]} for option in parts})
    parsed = final.parse_args(words)
    options = final.instantiate(parsed).as_dict()
    options.pop("config", None)
    defaults = final.get_defaults()
    for option, value in options.items():  # what jsonargparse lets pass
        if value is None and defaults.get(option) is not None:
            raise ValueError(f"Expected a value for --{option}; got null. Leave it out for the usual one.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"Expected --{option} to fit into 64 bits; got {value}.")
    if name == "train" and not is_of_parts(kind := kind_of(options["program"])[0]):
        left_out, takes = usual.parse_args([]), signature(kind).parameters
        own_words = {word.partition("=")[0].partition(".")[0] for word in words}
        for part in PARTS:
            if f"--{part}" not in own_words and parsed[part] == left_out[part]:
                options.pop(part)  # the program has its own
            elif part not in takes:
                raise ValueError(f"Expected no --{part}, a part of a VAE, with the program {kind.__name__}; got one.")
    return options


def check_config(given: Sequence[str]) -> None:
    """Check that a run's configuration, given as ``--config``, has a run's settings alone, and classes trusted."""
    found: dict[str, list[str]] = {"--config": [], "--trust": []}
    for word, after in pairwise([*given, ""]):
        name, equals, value = word.partition("=")
        found.get(name, []).append(value if equals else after)
    settings = {*signature(data.load).parameters, *Settings.__dataclass_fields__, *PARTS, *ROOMS}
    for file in (Path(os.path.realpath(file)) for file in found["--config"]):
        if any((file.parent / name).exists() for name in RUN):
            config = checkpoint.config_of(file.parent, file.name)
            if others := [key for key in map(str, config) if key.split(".")[0] not in settings]:
                got = f"{others[0]}, which no run writes there. Take it out, or give it as --{others[0]}."
                raise ValueError(f"Expected the settings of a run in {checkpoint.shown(file)!r}; got {got}")
            parts = [value for key, value in config.items() if str(key).split(".")[0] in ROOMS]
            words = (word for word in tree_leaves(parts) if isinstance(word, str) and "." in word)  # perhaps paths
            checkpoint.check_trust([{"class_path": word} for word in words], " ".join(found["--trust"]).split())


def in_full(given: Sequence[str]) -> list[str]:
    """Return the words of a command with import paths for short names of classes, and --on_nan for --on-nan."""
    words = []
    for before, word in pairwise(["", *given]):
        if word.startswith("--"):
            dashed = word.partition("=")[0]
            word = f"--{dashed[2:].replace('-', '_')}{word.removeprefix(dashed)}"
        option, _, name = word.rpartition("=")  # --prior=Flow, or Flow after --prior
        words.append(word.removesuffix(name) + part_in_full(WORDS.get(option or before, ""), name))
    return words


def parser(name: str, command: Callable[..., None], parts: dict[str, Any] | None = None) -> ArgumentParser:
    """Return the parser of a command, with ``parts`` for defaults of ``train``."""
    made = _Parser(
        prog=f"pyro-vae {name}",
        description=(command.__doc__ or "").split("\n")[0],
        formatter_class=_HelpFormatter,
        parser_mode="parts",
        allow_abbrev=False,  # --conf would be read, and not be looked through before
    )
    made.add_argument("--config", action="config", help="YAML file of options, as --print_config prints.")
    made.add_argument("--trust", type=str, default="", help=TRUST)
    if name == "compare":
        made.add_argument("runs", nargs="+", help="Run directories.")
    if name != "train":
        made.add_function_arguments(command, as_positional=True, skip={"runs", "progress", "trust"})
        return made
    made.add_function_arguments(data.load)
    # A class of the user's own may leave out the types of its arguments.
    made.add_function_arguments(program, fail_untyped=False)
    made.add_method_arguments(VAE, "build", skip={"event_shape"}, fail_untyped=False)
    made.add_function_arguments(fit, skip={"program", "data", "progress", "resume", "on_epoch"}, fail_untyped=False)
    made.add_argument("--resume", type=str | None, help="Run directory to go on with; no other option is needed.")
    usual = {"program": {"class_path": "pyro_vae.VAE"}, "objective": {"class_path": "pyro_vae.objectives.ELBO"}}
    made.set_defaults(usual | (parts or {}))
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


def _read(text: str) -> Any:
    found = get_loader("yaml")(text)
    if isinstance(found, dict) and found.get("config") is not None:
        raise yaml.YAMLError("Expected options; got config, which one file cannot take from another.")
    return part_in_full("", found)


set_loader("parts", _read, (yaml.YAMLError,))


def sentence(error: Exception, name: str) -> str:
    """Say in one sentence what is wrong, with file and line in the user's code; empty for a bug of ours."""
    cause: BaseException | None = error
    while cause:
        if place := _place(cause):
            kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
            return f"{place}: {kind}{_short(cause.msg if isinstance(cause, SyntaxError) else str(cause))}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), flags=re.IGNORECASE)
        advice = "Use a smaller latent, network, likelihood, prior or batch_size, or fewer draws."
        return f"Expected what fits into memory; got more{f', {size[1]} at a time' if size else ''}. {advice}"
    if isinstance(error, OverflowError) or re.search("Overflow when unpacking|without overflow", str(error)):
        return "Expected numbers that fit into the bits a computer has for them; got one too large. Use a smaller one."
    if isinstance(error, ArgumentError):
        return f"{_one_sentence(str(error))} See {name} --help."
    # Of a union of types jsonargparse lists what each said; ours is the sentence.
    ours = re.search(r"^ *- (Expected (?!an? <class).*)$", str(error), flags=re.MULTILINE)
    if isinstance(error, OSError) and error.strerror:  # the system's own
        return f"Expected a file or folder that can be read and written; got {str(error.filename)!r}: {error.strerror}."
    return _short(ours[1] if ours else str(error)) if isinstance(error, ValueError | OSError) else ""


def _place(error: BaseException) -> str:
    """Return the file and line of the user's own code where an error comes from, if it does."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    here, installed = Path.cwd(), {"site-packages", "dist-packages"}
    others = (Path(__file__).parent.parent, Path(sysconfig.get_path("stdlib")))
    for name, line in reversed(lines):
        file = Path(name)
        elsewhere = installed.intersection(file.parts) or any(map(file.is_relative_to, others))
        if file.is_relative_to(here) and not elsewhere:
            return f"{file.relative_to(here)}, line {line}"
    return ""


def _short(message: str) -> str:
    """One line, without the shapes of every site that Pyro adds."""
    return textwrap.shorten(message.partition("Trace Shapes:")[0], 400, placeholder=" ...")


def _one_sentence(message: str) -> str:
    """Say what jsonargparse found wrong in one line: expected, got."""
    message = re.sub(r"\S{200,}", lambda long: f"{long[0][:100]}...", " ".join(message.split()))
    option = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    got = re.search(r"(?:(?:Got|Given) value|import path string): (.+?)(?:\. Got value|\.?$)", message)
    part = re.search(r"class_path='([\w.]+)'", message)
    kinds = [*dict.fromkeys(re.findall(r"Expected an? (?:<class ')?(.+?)(?:'>)?(?=\. Got| - | Given|$)", message))]
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        owner = re.findall(r"class_path(?:=| )'(?:\w+\.)*(\w+)'", message)
        return f"Expected an argument of {owner[-1] if owner else option}; got --{option}.{unknown[1]}."
    if absent := re.findall(r"callable class: the following arguments are required: (\w+)", message):
        return f"Expected --{option}.{absent[-1]}, which {part[1] if part else option} must be given; got none."
    if option in ROOMS and got:
        number = "a number, or " if kinds and kinds[0].startswith("float") else ""
        found = part[1] if part else re.split(" Given | - ", got[1])[0]
        return f"{expected(option).replace('one of', f'{number}one of')}; got {found}."
    if option and got and kinds:
        kinds = [kind for kind in kinds if kind != "NoneType"] or kinds
        kind = " or ".join(re.sub(r"typing\.Literal\[(.*)\]|(?:\w+\.)*(\w+)", r"\1\2", kind) for kind in kinds)
        found = re.split(" Given | - ", got[1])[0]
        return f"Expected --{option} to be {kind.replace('Sequence', 'a list, as [200, 200]')}; got {found}."
    return re.sub(r'Parser key "([\w.]+)": ', r"--\1: ", message).rstrip(".") + "."
