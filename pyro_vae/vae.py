r"""The program: a model, a guide, and what one does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.conditional import Conditional, Family, mean, module, stddev
from pyro_vae.guides import DiagonalNormal
from pyro_vae.hooks import Hooks
from pyro_vae.likelihoods import Gaussian
from pyro_vae.missing import impute
from pyro_vae.networks import Auto, Network
from pyro_vae.parts import check_family, check_prior, made
from pyro_vae.priors import StandardNormal

__all__ = ["VAE"]


class VAE(Hooks):
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
        network: Callable[[Sequence[int], Sequence[int]], Network] = Auto,
    ) -> VAE:
        """Build a VAE from one name for each part.

        A part with arguments is a ``functools.partial``, as ``partial(networks.MLP, hidden=(200, 200))``.

        Arguments:
            event_shape: Shape of one x, as ``(1, 28, 28)``.
            latent: Number of latent dimensions.
            prior: Class of p(z), called with ``latent``.
            likelihood: Class of p(x | z), a family called with ``event_shape``.
            guide: Class of q(z | x), a family called with ``latent``.
            network: Class of the encoder's and the decoder's network, called with the shapes of input and output;
                if none is named, one that suits the shape of x.

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
        p_z, p_x, q_z = (
            made("prior", prior, latent),
            made("likelihood", likelihood, event_shape),
            made("guide", guide, latent),
        )
        check_family("likelihood", p_x)
        check_family("guide", q_z)
        vae = cls(
            prior=p_z,
            decoder=Conditional(made("network", network, (latent,), (p_x.params, *p_x.event)), p_x),
            encoder=Conditional(
                made("network", network, event_shape, (q_z.params, *q_z.event)),
                q_z,
                fill=torch.zeros(event_shape),
                features=p_x.features,
            ),
        )
        if attach := getattr(p_z, "attach", None):
            attach(vae.encoder, event_shape)
        check_prior(p_z, latent)
        vae.parts = {
            "event_shape": event_shape,
            "latent": latent,
            "prior": prior,
            "likelihood": likelihood,
            "guide": guide,
            "network": network,
        }
        return vae

    @torch.no_grad()
    def blank(self, num: int) -> Tensor:
        """Return ``num`` draws of x, ``(num, *event)``: rows of the right shape, to simulate data in place of."""
        return self.decoder(self.prior().sample((num,))).sample()

    @torch.no_grad()
    def generate(self, num: int = 64) -> Tensor:
        """Return the mean image E[x | z] for ``num`` draws of z from the prior, of shape ``(num, *event)``."""
        return mean(self.decoder(self.prior().sample((num,))))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean image at the guide's mean for each x, of x's shape."""
        return mean(self.decoder(mean(self.encoder(x))))

    def impute(self, x: Tensor, num: int = 100, num_particles: int = 100) -> Tensor:
        r"""Draw what is missing of x, its NaN, given what is observed.

        .. math:: p(x_m \mid x_o) = \int p(x_m \mid z) \, p(z \mid x_o) \, dz

        For each draw, z is taken from ``num_particles`` draws of the guide, with probability in proportion to their
        weight :math:`p(z) \, p(x_o \mid z) / q(z \mid x)`, and :math:`x_m` drawn from the likelihood given z. With
        one particle z is the guide's own; as their number grows, the posterior's. Their mean is an imputation of least
        squared error, their quantiles are its intervals.

        References:
            MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei and Frellsen, 2019).

        Arguments:
            x: Shape ``(B, *event)``, NaN where it is missing.
            num: Draws for each x, independent of each other.
            num_particles: Draws of z for each of them, of which it takes one.

        Returns:
            Shape ``(num, B, *event)``; what is observed is in each draw as it was.

        Raises:
            ValueError: If there are no draws or no particles, or the likelihood's elements are not independent.

        Example:
            >>> x = torch.rand(5, 64)
            >>> x[:, :20] = float("nan")
            >>> drawn = VAE.build((64,), latent=2).impute(x, num=10)
            >>> drawn.shape, bool((drawn[:, :, 20:] == x[:, 20:]).all())
            (torch.Size([10, 5, 64]), True)
        """
        return impute(self.prior(), self.encoder, self.decoder, x, num, num_particles)

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
        a, b = (mean(self.encoder(x)).unsqueeze(1) for x in (start, end))
        return mean(self.decoder(a.lerp(b, torch.linspace(0, 1, steps).to(a).unsqueeze(-1))))

    @torch.no_grad()
    def traverse(self, x: Tensor, span: float = 3.0, steps: int = 11) -> Tensor:
        """Return mean images as one latent dimension at a time goes through the prior, from ``-span`` to ``span``.

        Arguments:
            x: One image, of shape ``event``; the other dimensions stay at its guide's mean.
            span: How far to go from the prior's mean, in its standard deviations.
            steps: Number of points.

        Returns:
            Shape ``(latent, steps, *event)``.
        """
        z = mean(self.encoder(x.unsqueeze(0))).repeat(steps, 1)
        rows = z.repeat(z.shape[1], 1, 1)
        walk = torch.linspace(-span, span, steps).to(z).unsqueeze(-1)
        rows.diagonal(dim1=0, dim2=2).copy_(mean(self.prior()) + walk * stddev(self.prior()))
        return mean(self.decoder(rows))

    @torch.no_grad()
    def manifold(self, steps: int = 20) -> Tensor:
        """Return mean images on a grid over a 2-D latent space, evenly spaced in the probability of a normal.

        The normal has the prior's mean and standard deviations; a standard normal prior is just that.

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
        grid = torch.stack([right, up], dim=-1)
        return mean(self.decoder(mean(self.prior()) + grid * stddev(self.prior())))
