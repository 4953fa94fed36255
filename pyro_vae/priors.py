r"""Priors p(z): modules whose ``forward()`` returns a distribution over ``(latent,)``.

A prior of your own is one class with one method, anywhere, even in a notebook:

    >>> import pyro.distributions as dist
    >>> import torch
    >>> from torch import nn
    >>> class Laplace(nn.Module):
    ...     def __init__(self, latent):
    ...         super().__init__()
    ...         self.loc = nn.Parameter(torch.zeros(latent))
    ...         self.log_scale = nn.Parameter(torch.zeros(latent))
    ...     def forward(self):
    ...         return dist.Laplace(self.loc, self.log_scale.exp()).to_event(1)

Two more methods are called where a prior has them: ``attach(encoder, event_shape)`` by ``VAE.build``, for a prior that
asks the encoder; and ``start_at(x)`` by ``fit``, with the training images, before an untrained VAE is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, transforms
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import Tensor, nn

from pyro_vae.flows import Autoregressive, SplineCoupling, check, gentle
from pyro_vae.mixtures import Mixture

__all__ = ["Flow", "GaussianMixture", "StandardNormal", "VampPrior"]

BINS = 8


class StandardNormal(nn.Module):
    r"""The standard normal prior.

    .. math:: p(z) = \mathcal{N}(z; 0, I)

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    Arguments:
        latent: Number of latent dimensions.

    Example:
        >>> StandardNormal(20)().event_shape
        torch.Size([20])
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.register_buffer("one", torch.ones(latent), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return the prior, with event shape ``(latent,)``."""
        return dist.Normal(self.zero, self.one).to_event(1)


class GaussianMixture(nn.Module):
    r"""A mixture of diagonal Gaussians, with learned weights, means and scales.

    .. math:: p(z) = \sum_{k=1}^K \pi_k \, \mathcal{N}(z; \mu_k, \mathrm{diag}\, \sigma_k^2)

    The means start as draws from a standard normal, the scales at 1, the weights alike. The divergence of a guide from
    it has no closed form, and is sampled.

    References:
        Approximate Inference for Deep Latent Gaussian Mixtures (Nalisnick, Hertel and Smyth, 2016).

    Arguments:
        latent: Number of latent dimensions.
        components: K.

    Raises:
        ValueError: If there are no components.

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
    r"""The variational mixture of posteriors: the guide itself, at learned pseudo-inputs.

    .. math:: p(z) = \frac{1}{K} \sum_{k=1}^K q(z \mid u_k)

    ``VAE.build`` hands it the encoder, whose weights it shares and trains with, and ``fit`` starts the pseudo-inputs
    at training images (else they start as uniform noise). With any guide it is a mixture of that guide's laws.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018).

    Arguments:
        latent: Number of latent dimensions.
        components: K, the number of pseudo-inputs.

    Raises:
        ValueError: If there are no components, or the prior is asked for before it has an encoder.
    """

    inputs: nn.Parameter
    logits: Tensor
    started: Tensor

    def __init__(self, latent: int, components: int = 500) -> None:
        super().__init__()
        self.components = _at_least_one(components)
        self.register_buffer("logits", torch.zeros(components), persistent=False)
        self.register_buffer("started", torch.tensor(False))
        self._encoder: tuple[nn.Module, ...] = ()

    def attach(self, encoder: nn.Module, event_shape: Sequence[int]) -> None:
        """Take the encoder, and make the pseudo-inputs u, of shape ``(components, *event_shape)``."""
        self._encoder = (encoder,)  # in a tuple it is no submodule, whose weights would be saved and trained twice
        self.inputs = nn.Parameter(torch.rand(self.components, *event_shape))

    @torch.no_grad()
    def start_at(self, x: Any) -> None:
        """Start untrained pseudo-inputs at the first of x, images ``(N, *event)`` or what is indexed for such."""
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
    r"""A normalising flow: a standard normal, carried along by learned invertible transforms.

    .. math:: \log p(z) = \log \mathcal{N}(T(z); 0, I) + \log |\det \partial T / \partial z|

    T goes from z to noise, in ``layers`` steps with the dimensions reversed between them; each step shifts and scales
    (``affine``) or bends by monotone splines (``spline``) half of the dimensions given the others, or shifts and scales
    each given those before it (``autoregressive``, whose density is as fast, and whose draws take a step a dimension).
    One z far from all codes may have a gradient of 10,000 times the usual: for long runs give ``fit`` a ``clip_norm``.

    References:
        Density Estimation using Real NVP (Dinh, Sohl-Dickstein and Bengio, 2017), for affine coupling.

        Neural Spline Flows (Durkan et al., 2019), for spline coupling.

        Masked Autoregressive Flow for Density Estimation (Papamakarios, Pavlakou and Murray, 2017).

    Arguments:
        latent: Number of latent dimensions.
        transform: ``affine``, ``spline`` or ``autoregressive``.
        layers: Number of steps.
        hidden: Units of each hidden layer of the network in a step.

    Raises:
        ValueError: If the transform is unknown, there are no layers, or there is one dimension alone.
    """

    reverse: Tensor

    def __init__(
        self,
        latent: int,
        transform: Literal["affine", "spline", "autoregressive"] = "affine",
        layers: int = 4,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        check(latent, transform, NETS, layers=layers)
        self.noise = StandardNormal(latent)
        self.transform = transform
        self.nets = nn.ModuleList([gentle(NETS[transform](latent, [*hidden])) for _ in range(layers)])
        self.register_buffer("reverse", torch.arange(latent).flip(0), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return the flow, with event shape ``(latent,)``."""
        steps: list[Any] = []
        for net in self.nets:  # a transform remembers its last call, so that each has its own
            steps += [transforms.Permute(self.reverse), TRANSFORMS[self.transform](net).inv]
        return dist.TransformedDistribution(self.noise(), steps[:0:-1])


def _order(latent: int) -> Any:
    return torch.arange(latent)


def _halves(latent: int, hidden: list[int], numbers: Sequence[int]) -> nn.Module:
    """A network from the first half of the dimensions to so many numbers for each of the second half."""
    rest = latent - latent // 2
    return DenseNN(latent // 2, hidden, [rest * number for number in numbers])


NETS: dict[str, Callable[[int, list[int]], nn.Module]] = {
    "affine": lambda latent, hidden: _halves(latent, hidden, (1, 1)),
    "spline": lambda latent, hidden: _halves(latent, hidden, (3 * BINS - 1,)),
    "autoregressive": lambda latent, hidden: AutoRegressiveNN(latent, hidden, permutation=_order(latent)),
}
TRANSFORMS: dict[str, Callable[[Any], transforms.Transform]] = {
    "affine": lambda net: transforms.AffineCoupling(net.layers[0].in_features, net),
    "spline": lambda net: SplineCoupling(net, BINS),
    "autoregressive": Autoregressive,
}


def _at_least_one(number: int) -> int:
    if number < 1:
        raise ValueError(f"Expected at least 1 component; got {number}.")
    return number
