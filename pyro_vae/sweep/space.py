"""The space of a sweep: options of ``train``, some of them with several values."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyro_vae.compare.rows import format_spec

LARGEST = 2000  # settings of a grid
SETTINGS = "settings"  # the entry of a file whose options change together


@dataclass(frozen=True)
class Choice:
    """Values of an option, of which a setting takes one."""

    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[Any]:
        """The values as numbers or short texts, by which Optuna knows them."""
        plain = (str, int, float, type(None))
        labels = [value if isinstance(value, plain) else format_spec(_described(value)) for value in self.values]
        return [f"{label}, {i}" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


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
    """Options of ``train``, where values may hold a :class:`Choice` or a :class:`Range`, and the seeds.

    The option ``settings`` is a :class:`Choice` of options that change together.
    """

    options: dict[str, Any]
    seeds: tuple[int, ...]

    @property
    def searched(self) -> list[str]:
        """The options that have several values."""
        together = [name for setting in self.settings for name in setting]
        options = [option for option, value in self.options.items() if is_searched(value) and option != SETTINGS]
        return [*dict.fromkeys([*together, *options])]

    @property
    def settings(self) -> tuple[dict[str, Any], ...]:
        """The options that change together."""
        choice = self.options.get(SETTINGS)
        return choice.values if choice else ()

    def sample(self) -> dict[str, Any]:
        """Return the options of one setting."""
        return _flat(first(self.options))

    def grid(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return the options of each setting, with the searched values by name."""
        settings = [(_flat(options), names) for options, names in itertools.islice(_grid(self.options), LARGEST + 1)]
        if len(settings) > LARGEST:
            raise ValueError(f"Expected at most {LARGEST:,} settings; got more. Use --sampler tpe.")
        return settings

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Return the options of a setting, with values that an Optuna trial suggests."""
        return _flat(_suggest(self.options, trial))


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Replace the entry ``settings`` by its options."""
    return {**{name: value for name, value in options.items() if name != SETTINGS}, **options.get(SETTINGS, {})}


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


def first(tree: Any) -> Any:
    """Return the first value of each choice and range."""
    if isinstance(tree, Choice):
        return first(tree.values[0])
    if isinstance(tree, Range):
        return tree.low
    return {key: first(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def alternatives(tree: Any) -> Iterator[Any]:
    """Yield each value of each choice, and the ends of each range, beside the first values of the rest."""
    if isinstance(tree, Choice):
        for value in tree.values:
            yield from alternatives(value)
    elif isinstance(tree, Range):
        yield from (tree.low, tree.high)
    elif is_searched(tree):
        for key in filter(lambda key: is_searched(tree[key]), tree):
            yield from (first(tree) | {key: value} for value in alternatives(tree[key]))
    else:
        yield tree


def as_floats(tree: Any) -> Any:
    """Return a tree whose ranges are of floats."""
    if isinstance(tree, Range):
        return replace(tree, low=float(tree.low), high=float(tree.high))
    if isinstance(tree, Choice):
        return Choice(tree.name, tuple(map(as_floats, tree.values)))
    return {key: as_floats(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def is_searched(tree: Any) -> bool:
    """Return whether a tree has a choice or a range."""
    return isinstance(tree, Choice | Range) or (isinstance(tree, dict) and any(map(is_searched, tree.values())))


def _described(tree: Any) -> Any:
    """Return the value of an option with texts in place of its choices and ranges."""
    if isinstance(tree, Choice):
        return [*map(_described, tree.values)]
    if isinstance(tree, Range):
        return f"{tree.low} to {tree.high}"
    return {key: _described(value) for key, value in tree.items()} if isinstance(tree, dict) else tree
