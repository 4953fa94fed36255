"""To evaluate leaves all as it was: torch's random state, and the mode of a VAE's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["at_test", "forked"]


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


@contextmanager
def at_test(vae: nn.Module, device: torch.device, seed: int | None = None) -> Iterator[None]:
    """As :func:`forked`, with all layers in evaluation mode; put that back too.

    Dropout leaves nothing out, and batch normalisation learns nothing from what is only looked at.

    Example:
        >>> layer = torch.nn.Dropout()
        >>> with at_test(layer, torch.device("cpu")):
        ...     print(layer.training)
        False
        >>> layer.training
        True
    """
    # A prior may hold an encoder that is none of its modules, in a tuple.
    held = [
        item for layer in vae.modules() for value in vars(layer).values() if isinstance(value, tuple) for item in value
    ]
    modules = [layer for module in (vae, *held) if isinstance(module, nn.Module) for layer in module.modules()]
    modes = [(layer, layer.training) for layer in dict.fromkeys(modules)]
    with forked(device, seed):
        try:
            for layer, _ in modes:
                layer.training = False
            yield
        finally:
            for layer, training in modes:
                layer.training = training
