"""The VAE: a model and a guide as Pyro programs, with methods to generate, reconstruct and impute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import Family, mean, module, stddev
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Gaussian
from pyro_vae.missing import impute
from pyro_vae.networks import Auto, Network
from pyro_vae.priors import StandardNormal
from pyro_vae.programs.building import build_prior, conditional, family_of, of_image, shape_of
from pyro_vae.programs.hooks import Draw, Hooks, quietly
from pyro_vae.seeds import reset_modes


class VAE(Hooks):
    r"""A latent variable model and its guide.

    .. math:: p(x, z) = p(z) \, p(x \mid z), \qquad q(z \mid x) \approx p(z \mid x)

    Most users call :meth:`build`. The constructor takes three modules whose ``forward`` returns a distribution:
    ``prior()`` is p(z), with event shape ``(latent,)``, ``decoder(z)`` is p(x | z), for z of shape ``(*, latent)``, and
    ``encoder(x)`` is q(z | x), for x of shape ``(*, *event)``.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    See Also:
        :class:`HierarchicalVAE`, :class:`ConditionalVAE` and :class:`SemiSupervisedVAE`, programs with more sites.
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.decoder = decoder
        self.encoder = encoder
        self.parts: dict[str, Any] | None = None

    def model(self, x: Tensor) -> Tensor:
        """Sample z from the prior, and observe x, of shape ``(B, *event)``, under the likelihood."""
        module("vae", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Sample z from the encoder given x of shape ``(B, *event)``."""
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
        """Build a VAE from a class for each part, or a partial such as ``partial(networks.MLP, hidden=(200, 200))``.

        ``event_shape`` is the shape of one x, for example ``(1, 28, 28)``. The prior and the guide family are called
        with ``latent``, the number of dimensions of z; the likelihood family with ``event_shape``; the network with the
        shapes of its input and output, once for the encoder and once for the decoder.

        Raises:
            ValueError: If ``latent`` is not positive, or the parts do not fit together.

        Example:
            >>> vae = VAE.build((1, 8, 8), latent=2)
            >>> vae.encoder(torch.zeros(5, 1, 8, 8)).event_shape, vae.decoder(torch.zeros(5, 2)).event_shape
            (torch.Size([2]), torch.Size([1, 8, 8]))
        """
        event_shape = shape_of(event_shape, latent=latent)
        p_x = family_of("likelihood", likelihood, event_shape)
        q_z = family_of("guide", guide, latent)
        decoder = conditional(network, p_x, (latent,))
        encoder = of_image(network, q_z, p_x)
        vae = cls(prior=build_prior(prior, encoder), decoder=decoder, encoder=encoder)
        vae.parts = dict(
            event_shape=event_shape, latent=latent, prior=prior, likelihood=likelihood, guide=guide, network=network
        )
        return vae

    def at_prior(self, num: int) -> TorchDistribution:
        """Return p(x | z) at ``num`` draws of z from the prior."""
        return self.decoder(self.prior().sample((num,)))

    def at_guide(self, draw: Draw, x: Tensor, *given: Tensor) -> TorchDistribution:
        """Return p(x | z) at a draw of z from the guide, or at the guide's mean."""
        return self.decoder(draw(self.encoder(x)))

    @quietly
    def blank(self, num: int) -> Tensor:
        """Return ``num`` draws of x, of shape ``(num, *event)``."""
        return self.at_prior(num).sample()

    @quietly
    def pictures(self, x: Tensor, *given: Tensor) -> dict[str, tuple[Tensor, str]]:
        """Return reconstructions, samples, interpolations, and a grid over the latent space if ``latent = 2``."""
        lines = self.interpolate(x[:8], x.roll(-8, 0)[:8]), "Straight lines in latent space, from image to image"
        pictures = super().pictures(x) | {"interpolation": lines}
        if self.prior().event_shape == (2,):
            pictures["manifold"] = self.manifold(), "The 2-D latent space, decoded"
        return pictures

    def impute(self, x: Tensor, num: int = 100, num_particles: int = 100) -> Tensor:
        r"""Draw the missing elements of x, marked by NaN, given the observed elements.

        .. math:: p(x_m \mid x_o) = \int p(x_m \mid z) \, p(z \mid x_o) \, dz

        The method draws ``num_particles`` values of z from the guide. Each imputation selects one z with probability
        proportional to the weight :math:`p(z) \, p(x_o \mid z) / q(z \mid x)`, and draws :math:`x_m` from the
        likelihood given z. The mean of the draws minimises squared error; the quantiles give intervals. x has shape
        ``(B, *event)``; the result has shape ``(num, B, *event)``.

        References:
            MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei and Frellsen, 2019).

        Raises:
            ValueError: If ``num`` or ``num_particles`` is below 1, or the likelihood's elements are not independent.

        Example:
            >>> x = torch.rand(5, 64)
            >>> x[:, :20] = float("nan")
            >>> draws = VAE.build((64,), latent=2).impute(x, num=10)
            >>> draws.shape, bool((draws[:, :, 20:] == x[:, 20:]).all())
            (torch.Size([10, 5, 64]), True)
        """
        with reset_modes(self, self.reference.device):
            (x,) = self.checked(x)
            return impute(self.prior(), self.encoder, self.decoder, x, num, num_particles)

    @quietly
    def interpolate(self, start: Tensor, end: Tensor, steps: int = 10) -> Tensor:
        """Return mean images ``(B, steps, *event)`` on latent lines from ``start`` to ``end``, both ``(B, *event)``."""
        a, b = (mean(self.encoder(*self.checked(x))).unsqueeze(1) for x in (start, end))
        return mean(self.decoder(a.lerp(b, torch.linspace(0, 1, steps).to(a).unsqueeze(-1))))

    @quietly
    def traverse(self, x: Tensor, span: float = 3.0, steps: int = 11) -> Tensor:
        """Vary one latent dimension at a time; return mean images of shape ``(latent, steps, *event)``.

        The dimension runs from ``-span`` to ``span`` standard deviations of the prior around the prior's mean. The
        other dimensions stay at the guide's mean for x. x is one image, of shape ``event``.
        """
        z = mean(self.encoder(*self.checked(x[None]))).repeat(steps, 1)
        rows = z.repeat(z.shape[1], 1, 1)
        offsets = torch.linspace(-span, span, steps).to(z).unsqueeze(-1)
        rows.diagonal(dim1=0, dim2=2).copy_(mean(self.prior()) + offsets * stddev(self.prior()))
        return mean(self.decoder(rows))

    @quietly
    def manifold(self, steps: int = 20) -> Tensor:
        """Return mean images, of shape ``(steps, steps, *event)``, on a grid over a 2-D latent space.

        The grid points are equally spaced quantiles of a normal with the prior's mean and standard deviations. The
        first latent dimension runs from left to right, the second from bottom to top.
        """
        latent = self.prior().event_shape[0]
        if latent != 2:
            raise ValueError(f"Expected 2 latent dimensions for a manifold; got {latent}. Use traverse instead.")
        quantiles = torch.special.ndtri((torch.arange(steps) + 0.5) / steps).to(self.reference)
        up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
        grid = torch.stack([right, up], dim=-1)
        return mean(self.decoder(mean(self.prior()) + grid * stddev(self.prior())))
