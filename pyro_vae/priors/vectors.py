r"""Priors p(z): modules whose ``forward()`` returns a distribution with event shape ``(latent,)``.

A prior may have two more methods. ``VAE.build`` calls ``attach(encoder, event_shape)``. ``fit`` calls ``start_at(x)``
with the training data before the first epoch of an untrained VAE.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, transforms
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import nn

from pyro_vae.flows import Autoregressive, Mixture, SplineCoupling, check, gentle

__all__ = ["Flow", "GaussianMixture", "StandardNormal", "VampPrior"]

BINS = 8


class StandardNormal(nn.Module):
    r"""The standard normal prior.

    .. math:: p(z) = \mathcal{N}(z; 0, I)

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    Example:
        >>> StandardNormal(20)().event_shape
        torch.Size([20])
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.like = nn.Buffer(torch.zeros(latent), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return the prior, with event shape ``(latent,)``."""
        # Constants here, which the graph of a step knows; it does not know the values of a buffer.
        return dist.Normal(torch.zeros_like(self.like), torch.ones_like(self.like)).to_event(1)


class GaussianMixture(nn.Module):
    r"""A mixture of diagonal Gaussians, with learned weights, means and scales.

    .. math:: p(z) = \sum_{k=1}^K \pi_k \, \mathcal{N}(z; \mu_k, \mathrm{diag}\, \sigma_k^2)

    The means of the K ``components`` start at samples of a standard normal, the scales at 1, and the weights at 1 / K.

    References:
        Approximate Inference for Deep Latent Gaussian Mixtures (Nalisnick, Hertel and Smyth, 2016).

    Raises:
        ValueError: If ``components`` is below 1.

    Example:
        >>> GaussianMixture(20, components=10)().event_shape
        torch.Size([20])
    """

    def __init__(self, latent: int, components: int = 10) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(_at_least_one(components)))
        self.loc = nn.Parameter(torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.zeros(components, latent))

    def forward(self) -> TorchDistribution:
        """Return the mixture, with event shape ``(latent,)``."""
        return Mixture(dist.Categorical(logits=self.logits), dist.Normal(self.loc, self.log_scale.exp()).to_event(1))


class VampPrior(nn.Module):
    r"""The variational mixture of posteriors: a mixture of the guide at learned pseudo-inputs.

    .. math:: p(z) = \frac{1}{K} \sum_{k=1}^K q(z \mid u_k)

    ``VAE.build`` passes the encoder. The prior shares and trains the encoder's weights. The K = ``components``
    pseudo-inputs start as uniform noise; ``fit`` sets untrained pseudo-inputs to training data.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018).

    Raises:
        ValueError: If ``components`` is below 1, or the prior is called before :meth:`attach`.
    """

    inputs: nn.Parameter

    def __init__(self, latent: int, components: int = 500) -> None:
        super().__init__()
        self.components = _at_least_one(components)
        self.logits = nn.Buffer(torch.zeros(components), persistent=False)
        self.started = nn.Buffer(torch.tensor(False))
        self._encoder: tuple[nn.Module, ...] = ()

    def attach(self, encoder: nn.Module, event_shape: Sequence[int]) -> None:
        """Take the encoder, and create pseudo-inputs of shape ``(components, *event_shape)``."""
        self._encoder = (encoder,)  # in a tuple it is no submodule, whose weights would be saved and trained twice
        self.inputs = nn.Parameter(torch.rand(self.components, *event_shape))

    @torch.no_grad()
    def start_at(self, x: Any) -> None:
        """Set untrained pseudo-inputs to the first rows of x, ``(N, *event)``."""
        if not self.started:
            rows = x[torch.arange(self.components) % len(x)]
            self.inputs.copy_(torch.where(rows.isnan(), rows.nanmean(0).nan_to_num(), rows))
            self.started.fill_(True)

    def forward(self) -> TorchDistribution:
        """Return the mixture, with event shape ``(latent,)``."""
        if not self._encoder:
            raise ValueError("Expected a VampPrior with an encoder; got none. Use VAE.build, or call attach.")
        return Mixture(dist.Categorical(logits=self.logits), self._encoder[0](self.inputs))


class Flow(nn.Module):
    r"""A normalising flow: a standard normal under learned invertible transforms.

    .. math:: \log p(z) = \log \mathcal{N}(T(z); 0, I) + \log |\det \partial T / \partial z|

    T maps z to noise in ``layers`` steps, and reverses the dimensions between steps. ``affine`` shifts and scales one
    half of the dimensions given the other half. ``spline`` applies monotone splines to one half given the other half.
    ``autoregressive`` shifts and scales each dimension given all previous dimensions, and a sample takes ``latent``
    passes. ``hidden`` has the units of each hidden layer of a step's network.

    Note:
        A z far from all data may have 10,000 times the usual gradient: pass ``clip_norm`` to ``fit`` in long runs.

    References:
        Density Estimation using Real NVP (Dinh, Sohl-Dickstein and Bengio, 2017), for affine coupling.
        Neural Spline Flows (Durkan et al., 2019), for spline coupling.
        Masked Autoregressive Flow for Density Estimation (Papamakarios, Pavlakou and Murray, 2017).

    Raises:
        ValueError: If the transform is unknown, ``layers`` is below 1, or ``latent`` is 1.
    """

    def __init__(
        self,
        latent: int,
        transform: Literal["affine", "spline", "autoregressive"] = "affine",
        layers: int = 4,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        check(latent, transform, ("affine", "spline", "autoregressive"), layers=layers)
        self.noise = StandardNormal(latent)
        self.transform = transform
        self.nets = nn.ModuleList([gentle(_net(transform, latent, [*hidden])) for _ in range(layers)])
        self.reverse = nn.Buffer(torch.arange(latent).flip(0), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return the flow, with event shape ``(latent,)``."""
        steps: list[Any] = []
        for net in self.nets:  # a transform caches its last call: each step has a new one
            steps += [transforms.Permute(self.reverse), _transform(self.transform, net).inv]
        return dist.TransformedDistribution(self.noise(), steps[:0:-1])


def _net(transform: str, latent: int, hidden: list[int]) -> nn.Module:
    """Return a network from z, or the first half of its dimensions, to the parameters of a step."""
    if transform == "autoregressive":
        order: Any = torch.arange(latent)
        return AutoRegressiveNN(latent, hidden, permutation=order)
    rest = latent - latent // 2
    return DenseNN(latent // 2, hidden, [rest, rest] if transform == "affine" else [rest * (3 * BINS - 1)])


def _transform(transform: str, net: Any) -> transforms.Transform:
    if transform == "affine":
        return transforms.AffineCoupling(net.layers[0].in_features, net)
    return SplineCoupling(net, BINS) if transform == "spline" else Autoregressive(net)


def _at_least_one(number: int) -> int:
    if number < 1:
        raise ValueError(f"Expected at least 1 component; got {number}.")
    return number
