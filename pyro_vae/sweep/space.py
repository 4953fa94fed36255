"""The space of a sweep: options of ``train`` in a YAML file, some of them with several values."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jsonargparse import get_loader

from pyro_vae import fit
from pyro_vae.compare.rows import format_spec
from pyro_vae.options import error_message, parse

RESERVED = ("config", "overwrite", "progress", "resume", "run_dir", "stage", "trust")  # options that the sweep sets
CHECKED = 20  # settings that are checked together before the first run; each value is checked by itself
LARGEST = 100_000  # settings of a grid


@dataclass(frozen=True)
class Choice:
    """Values of an option, of which a setting takes one."""

    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[Any]:
        """The values as numbers or short texts, by which Optuna knows them."""
        plain = (str, int, float, type(None))
        return [value if isinstance(value, plain) else format_spec(_described(value)) for value in self.values]


@dataclass(frozen=True)
class Range:
    """An interval of numbers; a grid has ``number`` of them."""

    name: str
    low: float
    high: float
    log: bool = False
    number: int | None = None

    def grid(self) -> list[float]:
        """Return numbers at equal distances, or at equal ratios if ``log``."""
        if self.number is None:
            raise ValueError(f"Expected the number of values in the range of {self.name}, as number: 5; got none.")
        numbers = (np.geomspace if self.log else np.linspace)(self.low, self.high, self.number).tolist()
        inner = [round(number) if isinstance(self.low, int) else float(f"{number:.6g}") for number in numbers[1:-1]]
        return [*dict.fromkeys([self.low, *inner, *([self.high] if self.number > 1 else [])])]


@dataclass(frozen=True)
class Space:
    """Options of ``train``, where values may hold a :class:`Choice` or a :class:`Range`, and the seeds."""

    options: dict[str, Any]
    seeds: tuple[int, ...]

    @property
    def searched(self) -> list[str]:
        """The options that have several values."""
        return [option for option, value in self.options.items() if next(_grid(_ends(value)))[1]]

    def sample(self) -> dict[str, Any]:
        """Return the options of one setting."""
        return next(_grid(_ends(self.options)))[0]

    def grid(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return the options of each setting, with the searched values by name."""
        settings = [*itertools.islice(_grid(self.options), LARGEST + 1)]
        if len(settings) > LARGEST:
            raise ValueError(f"Expected at most {LARGEST:,} settings; got more. Use --sampler tpe.")
        return settings

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Return the options of a setting, with values that an Optuna trial suggests."""
        return _suggest(self.options, trial)


def read(file: str | Path) -> Space:
    """Read a space from a YAML file: options of ``train`` and ``seeds``, a number or a list.

    A list is a :class:`Choice`, unless the option itself takes that list. For any option, and for an argument of a
    class, ``values: [...]`` is a :class:`Choice`; ``low`` and ``high``, with ``log: true`` and ``number: 5`` if needed,
    are a :class:`Range`.

    Raises:
        ValueError: If an option or one of its values is unknown, a range or a list is empty, or values repeat.
        OSError: If the file cannot be read.
    """
    path = Path(file)
    try:
        content = get_loader("yaml")(path.read_text())  # reads 1e-3 as a number
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Expected a YAML file of options; could not read {str(path)!r} ({reason}).") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        kind = type(content).__name__
        raise ValueError(f"Expected options of train in {str(path)!r}, as latent: [2, 8]; got a {kind}.")
    try:
        if reserved := [key for key in content if key in RESERVED]:
            raise ValueError(f"Expected no {reserved[0]}, which the sweep sets for each run; got one. Remove it.")
        seeds = _seeds(content.pop("seeds", 1), content.pop("seed", 0))
        options = {}
        for name, value in content.items():
            several = isinstance(value, list) and _refusal({name: value})
            options[name] = _tree(name, {"values": value} if several else value)
            if _ends(options[name]) != value:  # each value by itself
                for setting, _ in itertools.islice(_grid(_ends({name: options[name]})), CHECKED):
                    parsed(setting)
        for setting, _ in itertools.islice(_grid(_ends(options)), CHECKED):
            parsed(setting)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return Space(options, seeds)


def parsed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of ``train`` with defaults, and with instances of classes; raise the parser's sentence."""
    try:
        return parse("train", fit, ["--config", yaml.safe_dump(dict(options), sort_keys=False)])
    except Exception as error:
        if not (message := error_message(error, "pyro-vae train")):
            raise
        raise ValueError(message) from error


def _refusal(options: Mapping[str, Any]) -> str:
    """Return the parser's message about invalid options; empty for valid options."""
    try:
        parsed(options)
    except ValueError as error:
        return str(error)
    return ""


def _tree(name: str, value: Any) -> Any:
    """Replace ``values`` and ``low`` with ``high`` in the value of an option by a choice and a range."""
    if not isinstance(value, dict):
        return value
    if "low" in value or "high" in value:
        return _range(name, value)
    if {*value} != {"values"}:  # a class with arguments
        return {key: _tree(name if key == "init_args" else f"{name}.{key}", item) for key, item in value.items()}
    values = value["values"]
    if not isinstance(values, list) or not values:
        raise ValueError(f"Expected at least one value for {name}, as [2, 8]; got {values!r}.")
    classes = [str(item.get("class_path")).rpartition(".")[2] if isinstance(item, dict) else "" for item in values]
    names = [f"{name}.{kind}" if classes.count(kind) == 1 else f"{name}.{i}" for i, kind in enumerate(classes)]
    choice = Choice(name, tuple(_tree(own, item) for own, item in zip(names, values, strict=True)))
    if repeated := [label for i, label in enumerate(choice.labels) if label in choice.labels[:i]]:
        raise ValueError(f"Expected different values for {name}; got {repeated[0]} twice.")
    return choice


def _range(name: str, value: Mapping[str, Any]) -> Range:
    if absent := {"low", "high"} - {*value} or {*value} - {"low", "high", "log", "number"}:
        raise ValueError(f"Expected low and high, and if needed log and number, in {name}; check {sorted(absent)[0]}.")
    interval = Range(name, **value)
    low, high, number = interval.low, interval.high, interval.number
    if not all(type(end) in (int, float) for end in (low, high)) or not low < high or type(interval.log) is not bool:
        raise ValueError(f"Expected numbers low < high, and log true or false, in {name}; got {low!r} and {high!r}.")
    if interval.log and low <= 0:
        raise ValueError(f"Expected low > 0 in {name}, since log is true; got {low}.")
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"Expected number to be an integer of at least 1 in {name}; got {number!r}.")
    if float in (type(low), type(high)):
        low, high = float(low), float(high)
    return replace(interval, low=low, high=high)


def _seeds(seeds: Any, first: Any) -> tuple[int, ...]:
    numbers = [first + i for i in range(seeds)] if type(seeds) is type(first) is int else seeds
    if not isinstance(numbers, list) or not numbers or any(type(seed) is not int or seed < 0 for seed in numbers):
        raise ValueError(f"Expected seeds to be a number of seeds, or a list of integers from 0; got {seeds!r}.")
    if len({*numbers}) < len(numbers):
        raise ValueError(f"Expected different seeds; got {numbers}.")
    return tuple(numbers)


def _grid(tree: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the settings of a tree, with the searched values by name."""
    if isinstance(tree, Choice):
        for label, value in zip(tree.labels, tree.values, strict=True):
            yield from ((setting, {tree.name: label} | names) for setting, names in _grid(value))
    elif isinstance(tree, Range):
        yield from ((number, {tree.name: number}) for number in tree.grid())
    elif isinstance(tree, dict):
        for settings in itertools.product(*([*_grid(value)] for value in tree.values())):
            names = {name: label for _, inner in settings for name, label in inner.items()}
            yield dict(zip(tree, (setting for setting, _ in settings), strict=True)), names
    else:
        yield tree, {}


def _suggest(tree: Any, trial: Any) -> Any:
    if isinstance(tree, Choice):
        return _suggest(tree.values[tree.labels.index(trial.suggest_categorical(tree.name, tree.labels))], trial)
    if isinstance(tree, Range):
        suggest = trial.suggest_int if isinstance(tree.low, int) else trial.suggest_float
        return suggest(tree.name, tree.low, tree.high, log=tree.log)
    return {key: _suggest(value, trial) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _ends(tree: Any) -> Any:
    """Return a tree with the two ends of each range, and with ``Choice`` for each place that is searched."""
    if isinstance(tree, Range):
        return Choice(tree.name, (tree.low, tree.high))
    if isinstance(tree, Choice):
        return Choice(tree.name, tuple(map(_ends, tree.values)))
    return {key: _ends(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _described(tree: Any) -> Any:
    """Return the value of an option with texts in place of its choices and ranges."""
    if isinstance(tree, Choice):
        return [*map(_described, tree.values)]
    if isinstance(tree, Range):
        return f"{tree.low} to {tree.high}"
    return {key: _described(value) for key, value in tree.items()} if isinstance(tree, dict) else tree
