"""Rivals of the benchmark in stock Pyro: its SVI with its own losses, and its VAE example."""

from collections.abc import Callable
from itertools import count

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.optim import PyroOptim
from rivals import LR, PIXELS, SCALE, Networks, Step, pixels
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import datasets, transforms

__all__ = ["StockVAE", "pyro_example_epoch", "stock_pyro", "stock_renyi"]


class StockVAE(nn.Module):
    """Model and guide as in Pyro's VAE example, with any networks and likelihood.

    Each instance has unique names in the param store, since Pyro does not train a second module of one name.

    Args:
        networks: Networks of the encoder and the decoder.
        likelihood: Function from the decoder's output to a distribution over pixels.
    """

    _instances = count()

    def __init__(self, networks: Networks, likelihood: Callable[[Tensor], dist.TorchDistribution]) -> None:
        super().__init__()
        self.networks = networks
        self.likelihood = likelihood
        self.name = f"rival {next(self._instances)}"

    def model(self, x: Tensor) -> None:
        """Draw z from N(0, I), and observe x, of shape ``(B, pixels)``."""
        pyro.module(f"{self.name} decoder", self.networks.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = x.new_zeros((x.shape[0], self.networks.latent))
            z = pyro.sample("latent", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("obs", self.likelihood(self.networks.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw z given x."""
        pyro.module(f"{self.name} encoder", self.networks.encoder)
        with pyro.plate("data", x.shape[0]):
            mu, log_sigma = self.networks.encode(x)
            pyro.sample("latent", dist.Normal(mu, log_sigma.exp()).to_event(1))

    @classmethod
    def gaussian(cls, networks: Networks) -> "StockVAE":
        """Return a VAE with the rivals' Gaussian likelihood."""
        return cls(networks, lambda mean: dist.Normal(mean, SCALE))

    @classmethod
    def bernoulli(cls, networks: Networks) -> "StockVAE":
        """Return a VAE with a Bernoulli likelihood."""
        return cls(networks, lambda logits: dist.Bernoulli(logits=logits))

    def svi(self, loss: pyro.infer.ELBO, optim: PyroOptim | None = None) -> SVI:
        """Return Pyro's SVI for this model and guide, by default with ``pyro.optim.Adam`` written out."""
        return SVI(self.model, self.guide, optim or PyroOptim(torch.optim.Adam, {"lr": LR}), loss)


def stock_pyro(batch: int, binary: bool = False) -> Step:
    """Return a step of Pyro's ``SVI`` with ``Trace_ELBO``, which samples the KL, and ``pyro.optim.Adam``."""
    program = (StockVAE.bernoulli if binary else StockVAE.gaussian)(Networks())
    svi, x = program.svi(Trace_ELBO()), pixels(batch, binary)
    return lambda: svi.step(x)


def stock_renyi(batch: int, particles: int = 50) -> Step:
    """Return a step of Pyro's ``RenyiELBO`` at alpha = 0, the importance weighted bound, with vectorised particles."""
    loss = RenyiELBO(alpha=0, num_particles=particles, max_plate_nesting=1, vectorize_particles=True)
    svi, x = StockVAE.bernoulli(Networks.of_iwae()).svi(loss), pixels(batch, True)
    return lambda: svi.step(x)


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
