r"""Rivals of ``minute.py``: other ways to train the VAE of :class:`rivals.Networks` on binarised images.

Each rival is a generator: it trains for an epoch, and yields a program with the weights so far. ``rate`` maps a step to
a learning rate, as a number or by tensor operations. All draw the pixels of a minibatch anew, x ~ Bernoulli(grey
level), but pythae, which has no such option and fits grey levels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.optim import PyroLRScheduler
from rival_libraries import pythae_epoch
from rival_pyro import StockVAE
from rivals import Networks, bernoulli_loss
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["by_hand", "numpyro_example", "pythae", "pyro_example"]

Rate = Callable[[Any], Any]


def batches(x: Tensor, batch: int) -> Iterator[Tensor]:
    """Return the minibatches of an epoch, binarised; leave out the last images if they are fewer."""
    for rows in torch.randperm(len(x)).split(batch):
        if len(rows) == batch:
            yield x[rows].bernoulli()


def by_hand(x: Tensor, batch: int, rate: Rate) -> Iterator[StockVAE]:
    """Train by a handwritten loop: ``torch.compile``, fused Adam."""
    networks = Networks(pixels=x.shape[1])
    optimizer = torch.optim.Adam(networks.parameters(), lr=1.0, fused=True)  # times the schedule's rate
    schedule = LambdaLR(optimizer, rate)
    forward = torch.compile(bernoulli_loss, dynamic=False, fullgraph=True)
    while True:
        for images in batches(x, batch):
            optimizer.zero_grad(set_to_none=True)
            forward(networks, images, torch.randn(batch, networks.latent)).backward()
            optimizer.step()
            schedule.step()
        yield StockVAE.bernoulli(networks)


def pyro_example(x: Tensor, batch: int, rate: Rate) -> Iterator[StockVAE]:
    """Train by Pyro's SVI with ``Trace_ELBO``, as Pyro's VAE example does."""
    program = StockVAE.bernoulli(Networks(pixels=x.shape[1]))
    options = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1.0}, "lr_lambda": rate}
    optim = PyroLRScheduler(LambdaLR, options)
    svi = program.svi(Trace_ELBO(), optim)
    while True:
        for images in batches(x, batch):
            svi.step(images)
            optim.step()
        yield program


def numpyro_example(x: Tensor, batch: int, rate: Rate) -> Iterator[StockVAE]:
    """Train by NumPyro's SVI with ``Trace_ELBO``, an epoch in one compiled loop, as NumPyro's VAE example does."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import SVI
    from numpyro.infer import Trace_ELBO as Loss
    from rival_libraries import numpyro_programs

    programs = numpyro_programs(batch, x.shape[1], lambda logits: numpyro.distributions.Bernoulli(logits=logits))
    svi = SVI(*programs, numpyro.optim.Adam(rate), Loss())
    images, steps = jnp.asarray(x.numpy()), len(x) // batch
    key = jax.random.PRNGKey(torch.initial_seed() % 2**31)
    state = svi.init(key, images[:batch])

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, key: Any, images: Any) -> Any:
        order = jax.random.permutation(key, len(images))[: steps * batch].reshape(steps, batch)

        def step(i: Any, state: Any) -> Any:
            pixels = jax.random.bernoulli(jax.random.fold_in(key, i + 1), images[order[i]])
            return svi.update(state, pixels.astype(images.dtype))[0]

        return jax.lax.fori_loop(0, steps, step, state)

    networks = Networks(pixels=x.shape[1])
    while True:
        key, now = jax.random.split(key)
        state = jax.block_until_ready(epoch(state, now, images))
        parameters = svi.get_params(state)
        for name, module in (("encoder", networks.encoder), ("decoder", networks.decoder)):
            arrays = [array for layer in parameters[f"{name}$params"] for array in jax.device_get(layer)]
            for parameter, array in zip(module.parameters(), arrays, strict=True):
                parameter.data = torch.tensor(array.T)  # a weight of JAX has the other order
        yield StockVAE.bernoulli(networks)


def pythae(x: Tensor, batch: int, rate: Rate) -> Iterator[StockVAE]:
    """Train by pythae's ``BaseTrainer``, with its constant learning rate, on grey levels."""
    networks = Networks(pixels=x.shape[1])
    epoch = pythae_epoch(x, batch, networks, "bce", rate(0))
    while True:
        epoch()
        copy = Networks(pixels=x.shape[1])
        copy.load_state_dict(networks.state_dict())
        with torch.no_grad():  # pythae's encoder returns the log variance
            for parameter in copy.encoder[-1].parameters():
                parameter[networks.latent :] /= 2
        yield StockVAE.bernoulli(copy)
