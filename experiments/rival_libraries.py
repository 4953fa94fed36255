"""Rivals of the benchmark from other libraries: NumPyro, pythae, and Pyro's example.

Only the benchmark needs NumPyro and pythae: ``pip install '.[bench]'``.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from rivals import LR, PIXELS, SCALE, Networks, Step, StockVAE
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import datasets, transforms

__all__ = ["numpyro_programs", "numpyro_update", "pyro_example_epoch", "pythae_epoch"]


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


def numpyro_update(batch: int) -> Step:
    """Return a step of NumPyro: ``svi.update``, jitted, with a donated state on the device.

    The KL is in closed form (``TraceMeanField_ELBO``). The step waits for the loss, as all rivals do.
    """
    import jax
    import numpyro
    from numpyro.infer import SVI, TraceMeanField_ELBO

    svi = SVI(*numpyro_programs(batch), numpyro.optim.Adam(LR), TraceMeanField_ELBO())
    start, data = jax.random.split(jax.random.PRNGKey(0))
    x = jax.random.uniform(data, (batch, PIXELS))
    state = svi.init(start, x)
    update = jax.jit(svi.update, donate_argnums=0)

    def step() -> float:
        nonlocal state
        state, loss = update(state, x)
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


def pyro_example_epoch(root: str, batch: int, cached: bool = False) -> Step:
    """Return an epoch of Pyro's VAE example: its loop over MNIST's 60,000 training images, with the rivals' network.

    The epoch returns nats per image, as the example prints.

    Args:
        root: Folder where torchvision finds MNIST.
        batch: Images in a minibatch.
        cached: Whether images become tensors once, as in the example's script (examples/vae/vae.py), or at every
            reading by ``ToTensor``, as in the tutorial (pyro.ai/examples/vae.html). The tutorial's loader runs in a
            further process; the script's loader and this one do not.
    """
    mnist = datasets.MNIST(root, train=True, transform=transforms.ToTensor())
    images: Dataset = TensorDataset(mnist.data.flatten(1) / 255, mnist.targets) if cached else mnist
    loader = DataLoader(images, batch_size=batch, shuffle=True)
    svi = StockVAE.gaussian(Networks()).svi(Trace_ELBO())

    def epoch() -> float:
        total = 0.0
        for x, _ in loader:
            total += svi.step(x.reshape(-1, PIXELS))
        return total / len(mnist)

    return epoch
