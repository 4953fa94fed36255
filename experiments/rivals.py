r"""Rivals of the benchmark: other ways to train the same VAE, each returned as one callable.

A step trains on one minibatch of random x and returns its loss, in nats summed over the minibatch; an epoch reads the
data once. The network is 784-400-20-400-784 with rectifiers and biases everywhere, the likelihood a Gaussian of
scale 0.1 or a Bernoulli; or for the importance weighted bound 784-200-200-50-200-200-784 with tanh and a Bernoulli; or
convolutions on 32x32 pixels of three colours. The optimizer is Adam at 1e-3 in float32. With :math:`z = \mu + \sigma
\epsilon` and d pixels,

.. math::
    -\mathrm{ELBO} = \frac{\|x - \mu_x(z)\|^2}{2 s^2} + \frac{d}{2} \ln 2 \pi s^2
    + \frac{1}{2} \sum_i (\sigma_i^2 + \mu_i^2 - 1 - \ln \sigma_i^2).

The caller sets the number of threads, by :func:`one_thread_environment` for a new process, and the precision of matrix
products, by ``torch.backends.mkldnn.matmul.fp32_precision``. An expert would set the latter where it is faster and as
accurate, so it is then on for :func:`products`, for the handwritten loops and for this package; other libraries run
with their defaults. A compiled step keeps the number of threads at its compilation.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae.networks import Conv

__all__ = [
    "LR",
    "PIXELS",
    "Networks",
    "bernoulli_loss",
    "by_hand",
    "elbo_loss",
    "handwritten",
    "handwritten_convolutions",
    "handwritten_iwae",
    "iwae_loss",
    "one_thread_environment",
    "pixels",
    "products",
]

Step = Callable[[], float]
PIXELS, SCALE, LR = 784, 0.1, 1e-3


def one_thread_environment(threads: int = 1) -> dict[str, str]:
    """Return environment variables that limit torch, its libraries and JAX in a new process to ``threads``.

    NPROC sets the thread pools of JAX 0.10 on a CPU; with XLA_FLAGS ``--xla_cpu_multi_thread_eigen=false
    intra_op_parallelism_threads=1`` it still used 1.8 cores of 2.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    return dict.fromkeys(names, str(threads))


class Networks(nn.Module):
    """Two multilayer perceptrons: x to mu and log sigma, and z to the mean of x or its logits.

    Args:
        hidden: Units of the encoder's hidden layers; the decoder has them in reverse.
        latent: Number of latent dimensions.
        activation: Activation between layers.
        pixels: Number of pixels of x.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (400,),
        latent: int = 20,
        activation: type[nn.Module] = nn.ReLU,
        pixels: int = PIXELS,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = _dense((pixels, *hidden, 2 * latent), activation)
        self.decoder = _dense((latent, *reversed(hidden), pixels), activation)

    @classmethod
    def of_iwae(cls) -> "Networks":
        """Return the networks of Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016)."""
        return cls((200, 200), 50, nn.Tanh)

    @classmethod
    def of_images(cls, colours: int = 3, size: int = 32) -> "Networks":
        """Return convolutional networks, with the layers of ``pyro_vae.networks.Conv``."""
        image = (colours, size, size)
        networks = cls((1,), pixels=math.prod(image))
        relu = partial(Conv, activation="ReLU")
        encoder, decoder = relu(image, (2, networks.latent)), relu((networks.latent,), (1, *image))
        networks.encoder = nn.Sequential(nn.Unflatten(1, image), encoder, nn.Flatten())
        networks.decoder = nn.Sequential(decoder, nn.Flatten())
        return networks

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and log sigma."""
        mu, log_sigma = self.encoder(x).chunk(2, -1)
        return mu, log_sigma


def _dense(sizes: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    layers = [layer for before, after in pairwise(sizes) for layer in (nn.Linear(before, after), activation())]
    return nn.Sequential(*layers[:-1])


def elbo_loss(networks: Networks, x: Tensor, noise: Tensor) -> Tensor:
    """Return minus the ELBO, in nats summed over x of shape ``(B, 784)``, for noise of shape ``(B, latent)``."""
    mean, kl = _decode(networks, x, noise)
    return (x - mean).square().sum() / (2 * SCALE**2) + 0.5 * x.numel() * math.log(2 * math.pi * SCALE**2) + kl


def bernoulli_loss(networks: Networks, x: Tensor, noise: Tensor) -> Tensor:
    """Return minus the ELBO with a Bernoulli likelihood, in nats summed over x, as :func:`elbo_loss`."""
    logits, kl = _decode(networks, x, noise)
    return binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl


def _decode(networks: Networks, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decoder's output at a draw of z, and the KL divergence summed over x."""
    mu, log_sigma = networks.encode(x)
    sigma = log_sigma.exp()
    kl = 0.5 * (sigma.square() + mu.square() - 1).sum() - log_sigma.sum()
    return networks.decoder(mu + sigma * noise), kl


def iwae_loss(networks: Networks, x: Tensor, noise: Tensor) -> Tensor:
    r"""Return :math:`-\ln \frac{1}{K} \sum_k w_k`, in nats summed over x, for noise of shape ``(K, B, latent)``."""
    mu, log_sigma = networks.encode(x)
    z = mu + log_sigma.exp() * noise
    logits = networks.decoder(z)
    log_likelihood = -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    log_w = log_likelihood + (0.5 * (noise.square() - z.square()) + log_sigma).sum(-1)
    return (math.log(len(noise)) - log_w.logsumexp(0)).sum()


def pixels(batch: int, binary: bool = False) -> Tensor:
    """Return random images, of shape ``(batch, 784)``."""
    x = torch.rand(batch, PIXELS)
    return x.bernoulli() if binary else x


def products(batch: int) -> Step:
    """Return the eleven matrix products of one step alone: a lower bound for any step in torch.

    Four are forward; backward are the gradients of four weights and of three inputs (x needs none). The step returns an
    element of the last product, not a loss.
    """
    linears = [layer for layer in Networks().modules() if isinstance(layer, nn.Linear)]

    @torch.no_grad()
    def operands() -> Iterator[tuple[Tensor, Tensor]]:
        layers = [
            (torch.rand(batch, layer.in_features), layer.weight, torch.rand(batch, layer.out_features))
            for layer in linears
        ]
        for a, weight, _ in layers:
            yield a, weight.detach().T
        for a, weight, gradient in reversed(layers):
            yield gradient.T, a
            if a is not layers[0][0]:
                yield gradient, weight.detach()

    pairs = [(left, right, left @ right) for left, right in operands()]

    def step() -> float:
        for left, right, out in pairs:
            torch.mm(left, right, out=out)
        return pairs[-1][-1][0, 0].item()

    return step


def handwritten(batch: int, compiled: bool = True, binary: bool = False) -> Step:
    """Return a step of a handwritten loop: compiled loss, fused Adam, KL in closed form."""
    return by_hand(bernoulli_loss if binary else elbo_loss, Networks(), pixels(batch, binary), (batch,), compiled)


def handwritten_convolutions(batch: int, compiled: bool = True, channels_last: bool = False) -> Step:
    """Return a step of a handwritten loop with convolutions, as :func:`handwritten`."""
    networks = Networks.of_images()
    if channels_last:
        networks = networks.to(memory_format=torch.channels_last)
    return by_hand(elbo_loss, networks, torch.rand(batch, 3 * 32 * 32), (batch,), compiled)


def handwritten_iwae(batch: int, particles: int = 50, compiled: bool = True) -> Step:
    """Return a step of a handwritten loop for the importance weighted bound, as :func:`handwritten`."""
    return by_hand(iwae_loss, Networks.of_iwae(), pixels(batch, True), (particles, batch), compiled)


def by_hand(
    loss_of: Callable[[Networks, Tensor, Tensor], Tensor],
    networks: Networks,
    x: Tensor,
    draws: tuple[int, ...],
    compiled: bool,
) -> Step:
    """Return a step of a handwritten loop for a loss, on the device of x, with noise of shape ``(*draws, latent)``."""
    networks = networks.to(x.device)
    optimizer = torch.optim.Adam(networks.parameters(), lr=LR, fused=True)
    # Static shapes: else torch compiles a second batch size of one process for any size. fullgraph: else torch does not
    # compile the ninth loop of one process, without an error.
    forward = torch.compile(loss_of, dynamic=False, fullgraph=True) if compiled else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        # Outside the graph, since a compiled generator is slower on a CPU.
        loss = forward(networks, x, torch.randn(*draws, networks.latent, device=x.device))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
