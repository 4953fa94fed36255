"""Steps of this package, for the benchmark."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from rivals import LR
from torch import Tensor

from pyro_vae import VAE, CompiledSVI, likelihoods
from pyro_vae.networks import MLP
from pyro_vae.objectives import Objective

__all__ = ["ours", "vae"]

Step = Callable[[], Any]


def vae(event: tuple[int, ...] = (784,), latent: int = 20, hidden: int = 400, binary: bool = False) -> VAE:
    """Return a VAE of 784-400-20-400-784 with a Gaussian likelihood of scale 0.1, or a Bernoulli."""
    likelihood: Any = likelihoods.Bernoulli if binary else partial(likelihoods.Gaussian, scale=0.1)
    return VAE.build(event, latent, likelihood=likelihood, network=partial(MLP, hidden=(hidden,)))


def ours(model: VAE, objective: Objective, x: Tensor, how: Any, precision: Any = "auto") -> Step:
    """Return a step of ``CompiledSVI`` on one minibatch, on the device of x, after 5 steps of warm-up."""
    adam = PyroOptim(torch.optim.Adam, {"lr": LR})
    svi = CompiledSVI(model.model, model.guide, adam, objective, compile=how, precision=precision)
    step = partial(svi.step, x)
    for _ in range(5):
        step()
    assert svi.mode == how, f"expected mode {how}; got {svi.mode}: {svi._gradients.reason}"
    return step
