"""Arguments from the command line of ``pyro-vae``."""

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader
from torch.utils._pytree import tree_leaves

from pyro_vae import VAE, checkpoint, data, fit
from pyro_vae.options.classes import ROOMS, class_names, class_of, expand_name, is_of_parts, program
from pyro_vae.train import Settings

PARTS = ("latent", "prior", "likelihood", "guide", "network")  # of VAE.build
RUN = ("environment.json", "model.safetensors", "checkpoint/last.safetensors")  # beside a run's config.yaml
TRUST = "Modules beside pyro_vae whose classes a run or its --config may name, as my_parts; separated by spaces."
WORDS = {f"--{option}{end}": option for option in ROOMS for end in ("", ".help")}


def parse(name: str, command: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a subcommand from the words after the subcommand's name."""
    return Options(name, command, words).instances()


class Options:
    """The options of a subcommand as plain values; :meth:`instances` makes the instances of classes.

    Args:
        name: Name of the subcommand.
        command: Its function; ``fit`` for ``train``.
        words: The words after the name.
    """

    def __init__(self, name: str, command: Callable[..., Any], words: Sequence[str]) -> None:
        self.name, self.words = name, expand_names(words)
        self._first = self._final = _kept_parser(name, command, ())
        if name == "train":
            # If a class replaces the default one, jsonargparse keeps the default values of arguments that both have:
            # --objective IWAE would take one particle from ELBO. So a second parser has the chosen classes as defaults.
            if (parts := _classes(self.words)) is None:
                plain = [word for word in self.words if not word.startswith("--print_config")]
                first = self._first.parse_args(plain)
                parts = {option: first[option]["class_path"] for option in ROOMS if "." not in option and first[option]}
            own = all(path.startswith("pyro_vae.") for path in parts.values())  # a user's class may change
            self._final = (_kept_parser if own else parser)(name, command, tuple(parts.items()))
        self.values = self._final.parse_args(self.words)

    def instances(self) -> dict[str, Any]:
        """Return the arguments of the subcommand's function, with new instances of classes."""
        options = self._final.instantiate(self.values).as_dict()
        options.pop("config", None)
        for option, value in options.items():  # jsonargparse accepts these values
            if value is None and self._final.get_default(option) is not None:
                raise ValueError(f"Expected a value for --{option}; got null. Leave the option out for its default.")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"Expected --{option} to fit into 64 bits; got {value}.")
        if self.name == "train" and not is_of_parts(kind := class_of(options["program"])[0]):
            usual, takes = self._first.parse_args([]), signature(kind).parameters
            own_words = {word.partition("=")[0].partition(".")[0] for word in self.words}
            for part in PARTS:
                if f"--{part}" not in own_words and self.values[part] == usual[part]:
                    options.pop(part)  # the program has a default
                elif part not in takes:
                    got = f"with the program {kind.__name__}; got one"
                    raise ValueError(f"Expected no --{part}, a part of a VAE, {got}.")
        return options


def _classes(words: Sequence[str]) -> dict[str, str] | None:
    """Return the package's classes that words and files of options name; None if only a parser can tell them."""
    classes = dict[str, str]()
    for word, after in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name == "--config":
            try:
                content = _read(
                    value or after if (value or after).startswith("{") else Path(value or after).read_text()
                )
            except (OSError, yaml.YAMLError):
                return None
        elif name.removeprefix("--") in ROOMS and "." not in name:
            content = {name.removeprefix("--"): value if equals else after}
        else:
            continue
        for option, part in content.items() if isinstance(content, dict) else ():
            path: Any = part.get("class_path") if isinstance(part, dict) else part
            if option in ROOMS and "." not in option:
                if path not in (f"{ROOMS[option][0].__name__}.{kind}" for kind in class_names(option)):
                    return None
                classes[option] = path
    return classes


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
    if isinstance(content, dict) and content.get("compile") is False:
        content["compile"] = "off"  # YAML reads off as false
    return expand_name("", content)


set_loader("parts", _read, (yaml.YAMLError,))
