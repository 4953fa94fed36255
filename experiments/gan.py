r"""A small GAN with the decoder of a VAE as generator: the contrast of ``blur.py``.

.. math:: L_D = \mathbb{E}[\mathrm{softplus}(-D(x))] + \mathbb{E}[\mathrm{softplus}(D(G(z)))]
    + \frac{\gamma}{2} \mathbb{E} \|\nabla_x D(x)\|^2, \qquad L_G = \mathbb{E}[\mathrm{softplus}(-D(G(z)))]

The generator's loss does not saturate, x is real, and z is standard normal. Samples are of a moving average of the
generator's weights. Weights start at He's initialisation: from torch's, which is smaller, all samples were alike for
hundreds of steps.

References:
    Generative Adversarial Nets (Goodfellow et al., 2014).

    Delving Deep into Rectifiers (He, Zhang, Ren and Sun, 2015): the initialisation.

    Which Training Methods for GANs do actually Converge? (Mescheder, Geiger and Nowozin, 2018): the R1 penalty.

    Progressive Growing of GANs for Improved Quality, Stability, and Variation (Karras et al., 2018): Adam without
    momentum, and the average of the generator.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from tqdm.auto import tqdm

from pyro_vae import networks
from pyro_vae.data import Dataset

__all__ = ["GAN", "r1_penalty", "train"]


def r1_penalty(discriminator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the squared norm of the gradient of the discriminator at images x, a mean over images."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


class GAN(nn.Module):
    """A generator from noise to images in [0, 1], its moving average, and a discriminator.

    Args:
        event_shape: Shape of one image.
        latent: Dimensions of the noise.
        channels: Channels after each halving, of both networks.
    """

    def __init__(self, event_shape: Sequence[int], latent: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.latent = latent
        self.generator = networks.Conv((latent,), (1, *event_shape), channels)
        self.discriminator = networks.Conv(event_shape, (1, 1), channels, activation="LeakyReLU")
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.average = deepcopy(self.generator).requires_grad_(False)

    def images(self, z: Tensor) -> Tensor:
        """Return the generator's images of noise ``(N, latent)``."""
        return self.generator(z)[:, 0].sigmoid()

    def logits(self, x: Tensor) -> Tensor:
        """Return the discriminator's logits ``(N,)`` of images: large for real ones."""
        return self.discriminator(x).flatten()

    @torch.no_grad()
    def generate(self, num: int) -> Tensor:
        """Return ``num`` samples of the averaged generator."""
        return self.average(torch.randn(num, self.latent))[:, 0].sigmoid()

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the average towards the generator."""
        for own, new in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            own.lerp_(new, 1 - decay)


def train(
    gan: GAN,
    dataset: Dataset,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    gamma: float = 1.0,
    decay: float = 0.995,
    seed: int = 0,
    path: Path | None = None,
    progress: bool = True,
) -> list[float]:
    """Train a GAN; return the seconds of each epoch.

    Args:
        gan: The GAN, trained in place.
        dataset: Its training images are real.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch, and as many fakes.
        lr: Learning rate of both networks.
        gamma: Factor of the R1 penalty.
        decay: Decay of the average, for each step.
        seed: Seed of the order of images and of the noise.
        path: File for the state after each epoch. A training that stopped continues from it.
        progress: Whether to show a progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    players = [torch.optim.Adam(part.parameters(), lr, (0.0, 0.99)) for part in (gan.generator, gan.discriminator)]
    seconds: list[float] = []
    if path and path.is_file():
        state = torch.load(path, weights_only=True)
        gan.load_state_dict(state["gan"])
        for player, saved in zip(players, state["players"], strict=True):
            player.load_state_dict(saved)
        generator.set_state(state["generator"])
        seconds = state["seconds"]
    for _ in tqdm(range(len(seconds), epochs), unit=" epochs", disable=not progress):
        start = time.perf_counter()
        for rows in torch.randperm(len(dataset.train), generator=generator).split(batch_size):
            step(gan, players, dataset.train[rows], gamma, generator)
            gan.follow(decay)
        seconds.append(time.perf_counter() - start)
        if path:
            players_now = [player.state_dict() for player in players]
            state = {"gan": gan.state_dict(), "players": players_now, "generator": generator.get_state()}
            torch.save(state | {"seconds": seconds}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
    return seconds


def step(gan: GAN, players: Sequence[Any], x: Tensor, gamma: float, generator: torch.Generator) -> None:
    """Take a step of the discriminator, then a step of the generator, with the same fakes."""
    ours, theirs = players
    fake = gan.images(torch.randn(len(x), gan.latent, generator=generator))
    theirs.zero_grad()
    loss = softplus(-gan.logits(x)).mean() + softplus(gan.logits(fake.detach())).mean()
    (loss + gamma / 2 * r1_penalty(gan.logits, x)).backward(inputs=[*gan.discriminator.parameters()])
    theirs.step()
    ours.zero_grad()
    softplus(-gan.logits(fake)).mean().backward(inputs=[*gan.generator.parameters()])
    ours.step()
