"""Evaluation changes no state: torch's random state, Pyro's param store, and the mode of a program's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import nn

__all__ = ["at_test", "forked", "modules_of", "own_store"]


@contextmanager
def forked(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Draw from a seed, or if there is none from torch's state as it is; put that state back afterwards.

    So a second call draws the same, unless another seed is given to it or to torch. No generator of another device
    is touched, as ``torch.manual_seed`` would.

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
    waiting = [program, getattr(program, "model", None), getattr(program, "guide", None)]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            modules |= dict.fromkeys(item.modules())
            # A prior may hold an encoder that is none of its modules, in a tuple.
            held = [value for layer in item.modules() for value in vars(layer).values() if isinstance(value, tuple)]
            waiting += [part for value in held for part in value if isinstance(part, nn.Module)]
        elif item is program:
            waiting += [value for value in getattr(item, "__dict__", {}).values() if isinstance(value, nn.Module)]
    return [*modules]


@contextmanager
def own_store() -> Iterator[None]:
    """Leave Pyro's param store as it was, and take the modules out of it that programs showed Pyro before.

    So a program may show it a module under a name that another module was trained under.
    """
    store = pyro.get_param_store()
    state = store.get_state()
    kept = {name: value for name, value in state["params"].items() if "$$$" not in name}
    limits = {name: value for name, value in state["constraints"].items() if name in kept}
    with store.scope({"params": kept, "constraints": limits}):
        yield


@contextmanager
def at_test(program: Any, device: torch.device, seed: int | None = None) -> Iterator[None]:
    """As :func:`forked`, with all layers in evaluation mode and a param store of its own; put these back too.

    Dropout leaves nothing out, and batch normalisation learns nothing from what is only looked at.

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
