"""Reading of the YAML file of a sweep, with checks of each option and value."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from pyro_vae import fit
from pyro_vae.compare.rows import format_spec
from pyro_vae.options import error_message, parse
from pyro_vae.sweep.space import LARGEST, SETTINGS, Choice, Range, Space, alternatives, as_floats, first, is_searched

RESERVED = ("config", "overwrite", "progress", "resume", "run_dir", "stage", "trust")  # options that the sweep sets
CHECKED = 500  # values of an option that are checked before the first run


def read(file: str | Path) -> Space:
    """Read a space from a YAML file: options of ``train`` and ``seeds``, a number or a list.

    A list is a :class:`Choice`, unless the option itself takes that list. For any option, and for an argument of a
    class, ``values: [...]`` is a :class:`Choice`; ``low`` and ``high``, with ``log: true`` and ``number: 5`` if needed,
    are a :class:`Range`. ``settings`` is a list of options that change together.

    Raises:
        ValueError: If an option or one of its values is unknown, a range or a list is empty, or values repeat.
        OSError: If the file cannot be read.
    """
    path = Path(file)
    try:
        text = path.read_text()
        content = get_loader("yaml")(text)  # reads 1e-3 as a number
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Expected a YAML file of options; could not read {str(path)!r} ({reason}).") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        got = [key for key in content if not isinstance(key, str)] if isinstance(content, dict) else content
        raise ValueError(f"Expected options of train in {str(path)!r}, as latent: [2, 8]; got {got!r}.")
    if repeated := [*_repeated(yaml.compose(text))]:
        raise ValueError(f"Expected each option once in {str(path)!r}; got {repeated[0]} twice.")
    try:
        seeds = _seeds(content.pop("seeds", None), content.pop("seed", None))
        settings = content.pop(SETTINGS, None)
        options = _options(content)
        if settings is not None:
            options[SETTINGS] = _settings(settings, options)
        for setting in options[SETTINGS].values if settings else ({},):
            parsed(first({name: value for name, value in options.items() if name != SETTINGS} | setting))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return Space(options, seeds)


def _options(content: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Replace the lists and intervals in options by choices and ranges, and check each value."""
    if reserved := [key for key in content if key in RESERVED]:
        raise ValueError(f"Expected no {reserved[0]}, which the sweep sets for each run; got one. Remove it.")
    options = {}
    for name, value in content.items():
        several = isinstance(value, list) and _refusal({name: value})
        tree = _tree(f"{place}{name}", {"values": value} if several else value)
        if is_searched(tree):
            floats = as_floats(tree)
            tree = tree if _refusal({name: first(floats)}) else floats  # an option for integers takes no 2.0
            for alternative in itertools.islice(alternatives(tree), CHECKED):
                parsed({name: alternative})
        options[name] = tree
    return options


def _settings(settings: Any, options: Mapping[str, Any]) -> Choice:
    """Return the choice of options that change together."""
    if not isinstance(settings, list) or not settings or not all(isinstance(item, dict) and item for item in settings):
        example = "as [{lr: 1e-3, epochs: 9}, {lr: 3e-3, epochs: 3}]"
        raise ValueError(f"Expected settings to be a list of options, {example}; got {settings!r}.")
    for name in (name for item in settings for name in item):
        if name in (*options, "seed", "seeds", SETTINGS):
            raise ValueError(f"Expected {name} either in settings or beside settings; got both.")
    if repeated := [item for i, item in enumerate(settings) if item in settings[:i]]:
        raise ValueError(f"Expected different settings; got {repeated[0]} twice.")
    return Choice(SETTINGS, tuple(_options(item, f"{SETTINGS}.{i}.") for i, item in enumerate(settings)))


def parsed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of ``train`` with defaults, and with instances of classes; raise the parser's sentence."""
    try:
        return parse("train", fit, words_of(options))
    except Exception as error:
        if not (message := error_message(error, "pyro-vae train")):
            raise
        raise ValueError(message) from error


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Return options of ``train`` as the words of a command, with all texts quoted."""
    return ["--config", json.dumps(dict(options), default=str)]


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
    if repeated := [item for i, item in enumerate(values) if any(_same(item, other) for other in values[:i])]:
        raise ValueError(f"Expected different values for {name}; got {format_spec(repeated[0])} twice.")
    return choice


def _range(name: str, value: Mapping[str, Any]) -> Range:
    if not {"low", "high"} <= {*value} <= {"low", "high", "log", "number"}:
        raise ValueError(f"Expected low and high, and if needed log and number, in {name}; got {', '.join(value)}.")
    interval = Range(name, **value)
    low, high, number = interval.low, interval.high, interval.number
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)) or not low < high:
        raise ValueError(f"Expected numbers low < high in {name}; got {low!r} and {high!r}.")
    if type(interval.log) is not bool:
        raise ValueError(f"Expected log to be true or false in {name}; got {interval.log!r}.")
    if interval.log and low <= 0:
        raise ValueError(f"Expected low > 0 in {name}, since log is true; got {low}.")
    if number is not None and (type(number) is not int or not 1 <= number <= LARGEST):
        raise ValueError(f"Expected number to be an integer from 1 to {LARGEST:,} in {name}; got {number!r}.")
    if float in (type(low), type(high)):
        low, high = float(low), float(high)
    return replace(interval, low=low, high=high)


def _seeds(seeds: Any, start: Any) -> tuple[int, ...]:
    """Return the seeds: a list, or so many from ``start``."""
    if isinstance(start, list) and seeds is None:
        seeds, start = start, None
    if isinstance(seeds, list) and start is not None:
        raise ValueError(
            f"Expected seed with a number of seeds, or a list of seeds alone; got {start!r} and {seeds!r}."
        )
    numbers = seeds
    if not isinstance(seeds, list):
        count, lowest = (1 if seeds is None else seeds), (0 if start is None else start)
        is_count = type(count) is int and type(lowest) is int and count <= LARGEST
        numbers = [lowest + i for i in range(count)] if is_count else []
    if not numbers or not all(type(seed) is int and 0 <= seed < 2**63 for seed in numbers):
        got = start if seeds is None else seeds
        raise ValueError(f"Expected seeds to be a number of seeds, or a list of integers from 0; got {got!r}.")
    if len({*numbers}) < len(numbers):
        raise ValueError(f"Expected different seeds; got {numbers}.")
    return tuple(numbers)


def _repeated(node: Any) -> Iterator[str]:
    """Yield the keys that come twice in a mapping of a YAML file."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        yield from (key for i, key in enumerate(keys) if key in keys[:i])
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            yield from _repeated(part)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
