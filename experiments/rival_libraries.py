"""Rivals of the benchmark from other libraries: NumPyro, JAX and pythae.

Only the benchmark needs NumPyro and pythae: ``pip install '.[bench]'``.
"""

import logging
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from rivals import LR, PIXELS, SCALE, Networks, Step
from torch import Tensor

__all__ = ["jax_convolutions", "numpyro_programs", "numpyro_update", "pythae_epoch"]


def numpyro_programs(
    batch: int, pixels: int = PIXELS, likelihood: Callable[[Any], Any] | None = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return a NumPyro model and guide of x of shape ``(batch, pixels)``, as NumPyro's VAE example writes them.

    ``likelihood`` maps the decoder's output to a distribution; by default it is the rivals' Gaussian.
    """
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries.stax import Dense, Relu, serial

    def gaussian(mean: Any) -> Any:
        return dist.Normal(mean, SCALE)

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", serial(Dense(400), Relu, Dense(pixels)), (batch, 20))
        with numpyro.plate("data", batch):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((batch, 20)), 1.0).to_event(1))
            numpyro.sample("x", (likelihood or gaussian)(decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", serial(Dense(400), Relu, Dense(2 * 20)), (batch, pixels))
        mu, log_sigma = jnp.split(encode(x), 2, axis=-1)
        with numpyro.plate("data", batch):
            numpyro.sample("z", dist.Normal(mu, jnp.exp(log_sigma)).to_event(1))

    return model, guide


def numpyro_update(batch: int, binary: bool = False) -> Step:
    """Return a step of NumPyro: ``svi.update``, jitted, with a donated state on the device.

    The KL is in closed form (``TraceMeanField_ELBO``). The step waits for the loss, as all rivals do.
    """
    import jax
    import numpyro
    from numpyro.infer import SVI, TraceMeanField_ELBO

    likelihood = (lambda logits: numpyro.distributions.Bernoulli(logits=logits)) if binary else None
    svi = SVI(*numpyro_programs(batch, PIXELS, likelihood), numpyro.optim.Adam(LR), TraceMeanField_ELBO())
    start, data = jax.random.split(jax.random.PRNGKey(0))
    x = jax.random.uniform(data, (batch, PIXELS))
    x = (x > 0.5).astype(x.dtype) if binary else x
    state = svi.init(start, x)
    update = jax.jit(svi.update, donate_argnums=0)

    def step() -> float:
        nonlocal state
        state, loss = update(state, x)
        return float(loss)

    return step


def jax_convolutions(batch: int, latent: int = 20) -> Step:
    """Return a step of a handwritten loop in JAX: the layers of ``Networks.of_images``, Adam, KL in closed form."""
    import jax
    import jax.numpy as jnp
    from jax.example_libraries.optimizers import adam
    from jax.nn import relu

    layout = ("NHWC", "HWIO", "NHWC")
    shapes = {"c1": (3, 3, 3, 32), "c2": (3, 3, 32, 64), "d1": (4096, 256), "d2": (256, 2 * latent)}
    shapes |= {"d3": (latent, 256), "d4": (256, 4096), "c3": (3, 3, 64, 32), "c4": (3, 3, 32, 3)}

    def conv(w: Any, x: Any, stride: int = 1) -> Any:
        return jax.lax.conv_general_dilated(x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layout)

    def larger(x: Any) -> Any:
        return x.repeat(2, 1).repeat(2, 2)

    def loss_of(w: Any, x: Any, key: Any) -> Any:
        h = relu(conv(w["c2"], relu(conv(w["c1"], x, 2) + w["b1"]), 2) + w["b2"]).reshape(batch, -1)
        mu, log_sigma = jnp.split(relu(h @ w["d1"] + w["b3"]) @ w["d2"] + w["b4"], 2, -1)
        sigma = jnp.exp(log_sigma)
        h = relu((mu + sigma * jax.random.normal(key, mu.shape)) @ w["d3"] + w["b5"]) @ w["d4"] + w["b6"]
        h = relu(conv(w["c3"], larger(relu(h).reshape(batch, 8, 8, 64))) + w["b7"])
        error = ((x - conv(w["c4"], larger(h)) - w["b8"]) ** 2).sum() / (2 * SCALE**2)
        return error + 0.5 * (sigma**2 + mu**2 - 1).sum() - log_sigma.sum()

    key = jax.random.PRNGKey(0)
    w = {name: 0.05 * jax.random.normal(key, shape) for name, shape in shapes.items()}
    w |= {f"b{i}": jnp.zeros(shapes[name][-1]) for i, name in enumerate(shapes, 1)}
    x = jax.random.uniform(key, (batch, 32, 32, 3))
    start, move, weights_of = adam(LR)

    @partial(jax.jit, donate_argnums=1)
    def update(number: Any, state: Any, x: Any) -> Any:
        loss, gradient = jax.value_and_grad(loss_of)(weights_of(state), x, jax.random.fold_in(key, number))
        return move(number, gradient, state), loss

    numbers, state = count(), start(w)

    def step() -> float:
        nonlocal state
        state, loss = update(next(numbers), state, x)
        return float(loss)

    return step


def pythae_epoch(x: Tensor, batch: int, networks: Networks | None = None, loss: str = "mse", rate: float = LR) -> Step:
    """Return an epoch of pythae's ``BaseTrainer``, without callbacks, copies of the best model and files.

    The squared error is a Gaussian likelihood of scale 1 without its constant, and the encoder returns log variances.
    The loss is a mean over images, in nats without that constant.

    Args:
        x: Images, of shape ``(N, ...)``.
        batch: Images in a minibatch.
        networks: Networks to train, by default new ones.
        loss: ``mse``, or ``bce`` for a Bernoulli likelihood of the decoder's output as logits.
        rate: Learning rate.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler

    class Encoder(BaseEncoder):
        def __init__(self, layers: torch.nn.Module) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> ModelOutput:
            mu, log_variance = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=mu, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self, layers: torch.nn.Module) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, z: Tensor) -> ModelOutput:
            output = self.layers(z)
            return ModelOutput(reconstruction=output.sigmoid() if loss == "bce" else output)

    networks = networks or Networks()
    config = VAEConfig(input_dim=(x[0].numel(),), latent_dim=networks.latent, reconstruction_loss=loss)
    model = VAE(config, Encoder(networks.encoder), Decoder(networks.decoder))
    logging.getLogger(BaseTrainer.__module__).setLevel(logging.WARNING)
    trainer = BaseTrainer(
        model,
        BaseDataset(x.flatten(1), torch.zeros(len(x))),
        training_config=BaseTrainerConfig(per_device_train_batch_size=batch, learning_rate=rate, no_cuda=True),
    )
    trainer.set_optimizer()
    trainer.callback_handler = CallbackHandler([], model)
    return lambda: trainer.train_step(1)
