r"""The program: a model, a guide, and what one does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.conditional import Conditional, Family, module
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Gaussian
from pyro_vae.networks import MLP, Network
from pyro_vae.priors import StandardNormal

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""A latent variable model and its guide.

    .. math:: p(x, z) = p(z) \, p(x \mid z), \qquad q(z \mid x) \approx p(z \mid x)

    Most users call :meth:`build`. The three modules may also be given as they are: a module of any kind will do
    whose ``forward`` returns a distribution.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    Arguments:
        prior: ``prior()`` is p(z), with event shape ``(latent,)``.
        decoder: ``decoder(z)`` is p(x | z), for z of shape ``(*, latent)``.
        encoder: ``encoder(x)`` is q(z | x), for x of shape ``(*, *event)``.
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.decoder = decoder
        self.encoder = encoder
        self.parts: dict[str, Any] | None = None

    def model(self, x: Tensor) -> Tensor:
        """Draw z from the prior, then see x, of shape ``(B, *event)``, under the likelihood."""
        module("vae", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Draw z from the encoder, given x of shape ``(B, *event)``."""
        module("vae", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", self.encoder(x))

    @classmethod
    def build(
        cls,
        event_shape: Sequence[int],
        latent: int = 20,
        prior: Callable[[int], nn.Module] = StandardNormal,
        likelihood: Callable[[Sequence[int]], Family] = Gaussian,
        guide: Callable[[int], Family] = DiagonalNormal,
        network: Callable[[Sequence[int], Sequence[int]], Network] = MLP,
    ) -> VAE:
        """Build a VAE from one name for each part.

        A part with arguments is a ``functools.partial``, as ``partial(MLP, hidden=(200, 200))``.

        Arguments:
            event_shape: Shape of one x, as ``(1, 28, 28)``.
            latent: Number of latent dimensions.
            prior: Class of p(z), called with ``latent``.
            likelihood: Class of p(x | z), a family called with ``event_shape``.
            guide: Class of q(z | x), a family called with ``latent``.
            network: Class of the encoder's and the decoder's network, called with the shapes of input and output.

        Raises:
            ValueError: If ``latent`` is not positive, or the parts do not fit together.

        Example:
            >>> vae = VAE.build((1, 8, 8), latent=2)
            >>> vae.encoder(torch.zeros(5, 1, 8, 8)).event_shape, vae.decoder(torch.zeros(5, 2)).event_shape
            (torch.Size([2]), torch.Size([1, 8, 8]))
        """
        event_shape = tuple(event_shape)
        if latent < 1:
            raise ValueError(f"Expected at least 1 latent dimension; got latent = {latent}.")
        p_z, p_x, q_z = prior(latent), likelihood(event_shape), guide(latent)
        _check_prior(p_z, latent)
        _check_family("likelihood", p_x)
        _check_family("guide", q_z)
        vae = cls(
            prior=p_z,
            decoder=Conditional(network((latent,), (p_x.params, *p_x.event)), p_x),
            encoder=Conditional(network(event_shape, (q_z.params, *q_z.event)), q_z),
        )
        vae.parts = {
            "event_shape": event_shape,
            "latent": latent,
            "prior": prior,
            "likelihood": likelihood,
            "guide": guide,
            "network": network,
        }
        return vae

    @property
    def reference(self) -> Tensor:
        """A tensor of the VAE's own: ``x.to(vae.reference)`` has its dtype and device."""
        return next(chain(self.parameters(), self.buffers()))

    @torch.no_grad()
    def generate(self, num: int = 64) -> Tensor:
        """Return the mean image E[x | z] for ``num`` draws of z from the prior, of shape ``(num, *event)``."""
        return self.decoder(self.prior().sample((num,))).mean

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean image at the guide's mean for each x, of x's shape."""
        return self.decoder(self.encoder(x).mean).mean

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, steps: int = 10) -> Tensor:
        """Return mean images on the straight line in latent space from ``start`` to ``end``.

        Arguments:
            start: Images of shape ``(B, *event)``.
            end: Images of the same shape.
            steps: Number of points, ends included.

        Returns:
            Shape ``(B, steps, *event)``.
        """
        a, b = self.encoder(start).mean.unsqueeze(1), self.encoder(end).mean.unsqueeze(1)
        return self.decoder(a.lerp(b, torch.linspace(0, 1, steps).to(a).unsqueeze(-1))).mean

    @torch.no_grad()
    def traverse(self, x: Tensor, span: float = 3.0, steps: int = 11) -> Tensor:
        """Return mean images as one latent dimension at a time goes from ``-span`` to ``span``.

        Arguments:
            x: One image, of shape ``event``; the other dimensions stay at its guide's mean.
            span: How far to go, in standard deviations of a standard normal prior.
            steps: Number of points.

        Returns:
            Shape ``(latent, steps, *event)``.
        """
        z = self.encoder(x.unsqueeze(0)).mean.repeat(steps, 1)
        rows = z.repeat(z.shape[1], 1, 1)
        rows.diagonal(dim1=0, dim2=2).copy_(torch.linspace(-span, span, steps).to(z).unsqueeze(-1))
        return self.decoder(rows).mean

    @torch.no_grad()
    def manifold(self, steps: int = 20) -> Tensor:
        """Return mean images on a grid over a 2-D latent space, evenly spaced in standard normal probability.

        Returns:
            Shape ``(steps, steps, *event)``; the first latent dimension goes right, the second goes up.

        Raises:
            ValueError: If the latent space is not of 2 dimensions.
        """
        latent = self.prior().event_shape[0]
        if latent != 2:
            raise ValueError(f"Expected 2 latent dimensions for a manifold; got {latent}. Use traverse instead.")
        quantiles = torch.special.ndtri((torch.arange(steps) + 0.5) / steps).to(self.reference)
        up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
        return self.decoder(torch.stack([right, up], dim=-1)).mean


def _check_prior(prior: nn.Module, latent: int) -> None:
    name = type(prior).__name__
    try:
        law = prior()
    except TypeError as error:
        raise ValueError(f"Expected a prior whose forward() takes no arguments; {name}'s raised: {error}.") from error
    if not isinstance(law, Distribution):
        raise ValueError(f"Expected a prior whose forward() returns a distribution; {name}'s returned {type(law)}.")
    if law.event_shape != (latent,):
        raise ValueError(
            f"Expected a prior over event shape {(latent,)}; got {tuple(law.event_shape)}. "
            "Add .to_event(1) to the distribution it returns."
        )


def _check_family(part: str, family: Family) -> None:
    if not isinstance(family, Family):
        raise ValueError(f"Expected the {part} to be a subclass of conditional.Family; got {type(family).__name__}.")
