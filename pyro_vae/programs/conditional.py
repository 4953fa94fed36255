"""The conditional VAE, given a label or covariates."""

from collections.abc import Callable, Sequence
from typing import Literal

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import Family, module
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Gaussian
from pyro_vae.networks import Auto
from pyro_vae.programs.building import conditional, family_of, of_image, shape_of
from pyro_vae.programs.built import OfLabels, are_labels
from pyro_vae.programs.hooks import Draw


class ConditionalVAE(OfLabels):
    r"""A VAE of x given y: a label, or a vector of covariates.

    .. math:: p(x, z \mid y) = p(z \mid y) \, p(x \mid z, y), \qquad q(z \mid x, y) \approx p(z \mid x, y)

    All results concern :math:`\log p(x \mid y)`, in nats. Labels are integers from 0 to ``given - 1``, of shape
    ``(B,)``; covariates have shape ``(B, given)``. The parts are ``prior(y)``, ``decoder(z, y)`` and
    ``encoder(x, y)``. The parts take covariates as vectors and labels as one-hot vectors.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014).
        Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee and Yan, 2015).

    Arguments:
        event_shape: Shape of one x, for example ``(1, 28, 28)``.
        latent: Dimensions of z.
        given: Number of classes of the label, or of covariates.
        prior: ``learned`` or a class, as in :meth:`pyro_vae.VAE.build`. A learned prior is a Gaussian; a network maps
            y to the mean and the scales. With a class, z does not depend on y.
        likelihood, guide, network: Classes, as in :meth:`pyro_vae.VAE.build`.

    Raises:
        ValueError: If a size is not positive, or the parts do not fit together.

    See Also:
        :class:`SemiSupervisedVAE`, if some labels are unknown.

    Example:
        >>> vae = ConditionalVAE.build((64,), latent=2, given=10)
        >>> vae.generate(3, given=torch.tensor([0, 1, 9])).shape
        torch.Size([3, 64])
    """

    number_is = "given"

    def __init__(
        self,
        event_shape: Sequence[int],
        latent: int = 20,
        given: int = 10,
        prior: Literal["learned"] | Callable[[int], nn.Module] = "learned",
        likelihood: Callable[[Sequence[int]], Family] = Gaussian,
        guide: Callable[[int], Family] = DiagonalNormal,
        network: Callable[[Sequence[int], Sequence[int]], nn.Module] = Auto,
    ) -> None:
        super().__init__()
        event_shape = shape_of(event_shape, latent=latent, given=given)
        p_x = family_of("likelihood", likelihood, event_shape)
        q_z = family_of("guide", guide, latent)
        self.given = given
        self.decoder = conditional(network, p_x, (latent,), (given,))
        self.encoder = of_image(network, q_z, p_x, (given,))
        self.prior: nn.Module
        if prior == "learned":
            self.prior = conditional(network, DiagonalNormal(latent), (given,))
        elif callable(prior):
            self.prior = self.new_prior(prior)
        else:
            raise ValueError(f"Expected prior to be 'learned' or a class for p(z); got {prior!r}.")

    def model(self, x: Tensor, y: Tensor) -> Tensor:
        """Sample z given y, and observe x, of shape ``(B, *event)``, given both."""
        module("vae", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior(self.vector(y)))
            return pyro.sample("x", self.decoder(z, self.vector(y)), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> Tensor:
        """Sample z from the encoder given x and y."""
        module("vae", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            return pyro.sample("z", self.encoder(x, self.vector(y)))

    def vector(self, y: Tensor) -> Tensor:
        """Return labels, integers ``(B,)``, or covariates, ``(B, given)``, as vectors ``(B, given)``."""
        if are_labels(y):
            return self.one_hot(y)
        return y.to(self.reference).reshape(len(y), -1)

    def new_prior(self, prior: Callable[..., nn.Module]) -> nn.Module:
        """Build a prior p(z) from a class; the prior ignores y."""
        return _Unconditional(super().new_prior(prior))

    def at_prior(self, num: int, given: Tensor | None = None) -> TorchDistribution:
        """Return p(x | z, y) at one draw of z for each y; without y, at ``num`` draws with zeros for y."""
        y = self.reference.new_zeros(num, self.given) if given is None else self.vector(given)
        distribution = self.prior(y)
        return self.decoder(distribution.sample(y.shape[: 1 - len(distribution.batch_shape)]), y)

    def at_guide(self, draw: Draw, x: Tensor, *given: Tensor) -> TorchDistribution:
        """Return p(x | z, y) at a draw of z from the guide, or at the guide's mean."""
        y = self.vector(*given)
        return self.decoder(draw(self.encoder(x, y)), y)

    @torch.no_grad()
    def pictures(self, x: Tensor, *given: Tensor) -> dict[str, tuple[Tensor, str]]:
        """Return reconstructions and samples; for labels, also decode the z of each image under each label."""
        (y,), pictures = given, super().pictures(x, *given)
        if are_labels(y):
            return pictures | self.pictures_of(x, y)
        samples = torch.stack([self.generate(len(y), y) for _ in range(8)])
        return pictures | {"samples": (samples, "Samples: a column for each y")}

    def check_given(self, *given: Tensor) -> None:
        """Refuse labels that are not classes; refuse missing covariates, and a number other than ``given``."""
        (y,) = given
        if are_labels(y):
            self.check_labels(y)
        elif self.vector(y).shape[1] != self.given or y.isnan().any():
            missing = ", some of them missing" if y.isnan().any() else ""
            raise ValueError(
                f"Expected y to be labels, integers of shape (B,), or covariates of shape (B, {self.given}), for "
                f"given = {self.given}; got numbers of shape {tuple(y.shape)}{missing}."
            )


class _Unconditional(nn.Module):
    """A prior p(z) that ignores y."""

    def __init__(self, distribution: nn.Module) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, y: Tensor) -> TorchDistribution:
        return self.distribution()
