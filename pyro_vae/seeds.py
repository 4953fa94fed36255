"""Evaluation changes no state: torch's random state, Pyro's param store, and the mode of a program's layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import nn

__all__ = ["at_test", "forked", "modules_of", "own_store"]


@contextmanager
def forked(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Draw from a seed, or without one from torch's state; put that state back afterwards.

    A second call draws the same, unless it or torch gets another seed. Unlike ``torch.manual_seed``, it touches no
    generator of another device.

    Example:
        >>> before = torch.get_rng_state()
        >>> with forked(torch.device("cpu"), seed=1):
        ...     draw = torch.randn(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield


def modules_of(program: Any) -> list[nn.Module]:
    """Return every module of a program, each once: those that it holds as attributes or in tuples, too."""
    modules: dict[nn.Module, None] = {}
    attributes = [] if isinstance(program, nn.Module) else getattr(program, "__dict__", {}).values()
    waiting = [*attributes, program, getattr(program, "model", None), getattr(program, "guide", None)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, nn.Module) and item not in modules:
            modules |= dict.fromkeys(item.modules())
            # A prior may hold an encoder that is none of its modules, in a tuple.
            for layer in item.modules():
                for value in vars(layer).values():
                    waiting += value if isinstance(value, tuple) else ()
    return [*modules]


@contextmanager
def own_store() -> Iterator[None]:
    """Put Pyro's param store back, and give a store without modules, whose names other modules may then have."""
    store = pyro.get_param_store()
    state = store.get_state()
    kept = {name: value for name, value in state["params"].items() if "$$$" not in name}
    limits = {name: value for name, value in state["constraints"].items() if name in kept}
    with store.scope({"params": kept, "constraints": limits}):
        yield


@contextmanager
def at_test(program: Any, device: torch.device, seed: int | None = None) -> Iterator[None]:
    """As :func:`forked`, with all layers in evaluation mode and a param store of its own; put these back too.

    Example:
        >>> layer = torch.nn.Dropout()
        >>> with at_test(layer, torch.device("cpu")):
        ...     print(layer.training)
        False
        >>> layer.training
        True
    """
    modes = [(layer, layer.training) for layer in modules_of(program)]
    with forked(device, seed), own_store():
        try:
            for layer, _ in modes:
                layer.training = False
            yield
        finally:
            for layer, training in modes:
                layer.training = training
