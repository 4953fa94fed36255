"""The VQ-VAE: an image is decoded from discrete codes on a grid."""

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import Conditional, Family, module
from pyro_vae.guides import VQ, Quantiser
from pyro_vae.likelihoods import Gaussian
from pyro_vae.networks import ResNet
from pyro_vae.priors import Independent
from pyro_vae.programs.building import LOSS, build_part, check_prior, family_of, shape_of
from pyro_vae.programs.built import Built
from pyro_vae.programs.hooks import Draw, quietly


class VQVAE(Built):
    r"""A VAE with discrete codes on a grid; the guide is a point mass at the nearest codes.

    .. math:: p(x, c) = p(c) \, p(x \mid z = e_c), \qquad q(c \mid x) = 1 \;\text{at}\; c^* = \mathrm{nearest}(x)

    The latent site ``z`` has the codes' vectors e, of shape ``(dim, height, width)``. The ELBO is
    :math:`\log p(c^*) + \log p(x \mid c^*)`, a bound on :math:`\log p(x)` for a mass p(c). The gap is
    :math:`-\log p(c^* \mid x)`. The gradient of training adds the quantiser's terms, which are part of no density, and
    goes straight through the codes. :func:`pyro_vae.evaluate.nll` sums over further codes near :math:`c^*`, for a
    tighter bound; over all codes if there are few, and then the result is exact.

    Training has two stages: ``fit``, with independent codes, and :func:`pyro_vae.fit_prior` with
    :class:`pyro_vae.priors.Autoregressive`.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals and Kavukcuoglu, 2017).

    Arguments:
        event_shape: Shape of one image, ``(channels, height, width)``.
        codes: Number of codes.
        dim: Dimensions of a code's vector.
        grid: Height and width of the grid of codes; by default a quarter of the image's. They divide the image's.
        prior: Class of the prior, called with height, width and the number of codes.
        likelihood: Class of the likelihood, as in :meth:`pyro_vae.VAE.build`.
        guide: Class of the quantiser, :class:`pyro_vae.guides.VQ` or :class:`pyro_vae.guides.FSQ`, called with
            the number of codes, ``dim``, height and width.
        network: Class of the networks between the image and the grid; by default :class:`pyro_vae.networks.ResNet`,
            whose ``channels`` have one number for each halving of the image.

    Raises:
        ValueError: If the grid does not divide the image, there are fewer than 2 codes, or the parts do not fit
            together.

    Example:
        >>> vae = VQVAE.build((1, 28, 28), codes=64, dim=8)
        >>> vae.codes(torch.rand(5, 1, 28, 28)).shape
        torch.Size([5, 7, 7])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        codes: int = 512,
        dim: int = 64,
        grid: Sequence[int] | None = None,
        prior: Callable[[Sequence[int]], nn.Module] = Independent,
        likelihood: Callable[[Sequence[int]], Family] = Gaussian,
        guide: Callable[[Sequence[int]], Family] = VQ,
        network: Callable[[Sequence[int], Sequence[int]], nn.Module] = ResNet,
    ) -> None:
        super().__init__()
        event_shape = shape_of(event_shape, dim=dim)
        grid = _grid(event_shape, grid)
        self.quantiser: Quantiser = build_part("guide", guide, (codes, dim, *grid))
        if not isinstance(self.quantiser, Quantiser):
            got = type(self.quantiser).__name__
            raise ValueError(f"Expected the guide to be a quantiser, as guides.VQ or guides.FSQ; got {got}.")
        p_x = family_of("likelihood", likelihood, event_shape)
        shape = self.quantiser.event
        self.decoder = Conditional(build_part("network", network, shape, (p_x.params, *event_shape)), p_x)
        to_grid = build_part("network", network, event_shape, (1, *shape))
        self.encoder = Conditional(to_grid, self.quantiser, torch.zeros(event_shape), p_x.features)
        self.prior = self.new_prior(prior)

    def model(self, x: Tensor) -> Tensor:
        """Sample the codes' vectors from the prior, and observe x, of shape ``(B, *event)``, under the likelihood."""
        module("vae", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.quantiser.over(self.prior()))
            return pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Sample the vectors of the nearest codes; add the quantiser's terms of the loss."""
        module("vae", self)
        q: Any = self.encoder(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", q)
            pyro.sample("codebook", dist.Unit(q.loss), obs=q.loss.new_empty(*q.loss.shape, 0), infer=LOSS)

    def new_prior(self, prior: Callable[..., nn.Module]) -> nn.Module:
        """Build a prior over the grid of codes from a class."""
        over_codes: nn.Module = build_part("prior", prior, (*self.quantiser.grid, self.quantiser.codes))
        check_prior(over_codes, self.quantiser.grid)
        return over_codes

    def at_prior(self, num: int) -> TorchDistribution:
        """Return p(x | c) at ``num`` draws of the codes from the prior."""
        return self.decoder(self.quantiser.over(self.prior()).sample((num,)))

    def at_guide(self, draw: Draw, x: Tensor, *given: Tensor) -> TorchDistribution:
        """Return p(x | c) at the nearest codes."""
        return self.decoder(draw(self.encoder(x)))

    @quietly
    def codes(self, x: Tensor) -> Tensor:
        """Return the nearest codes of each x: integers of shape ``(B, height, width)``."""
        return self.quantiser.nearest(self.encoder(*self.checked(x)).mean)

    @quietly
    def usage(self, x: Tensor) -> Tensor:
        """Return how often the images x use each code, of shape ``(codes,)``; a code that no x uses is dead."""
        return self.codes(x).flatten().bincount(minlength=self.quantiser.codes)

    @quietly
    def blank(self, num: int) -> Tensor:
        """Return ``num`` draws of x, of shape ``(num, *event)``."""
        return self.at_prior(num).sample()

    @torch.no_grad()
    def neighbours(self, x: Tensor, num: int) -> dict[str, Tensor]:
        """Return ``{"z": vectors}`` of at most ``num`` distinct codes of each x, ``(num, B, dim, height, width)``.

        The first are the guide's codes. The rest change one place to another code, nearest first. If there are at most
        ``num`` grids of codes, all are returned.
        """
        quantiser = self.quantiser
        number, places = quantiser.codes, prod(quantiser.grid)
        if number**places <= num:
            every = torch.tensor([*product(range(number), repeat=places)], device=x.device)
            return {"z": quantiser.embed(every.reshape(-1, 1, *quantiser.grid).expand(-1, len(x), -1, -1))}
        q: Any = self.encoder(x)
        best = quantiser.nearest(q.mean).flatten(1)
        distances = quantiser.distances(q.outputs).flatten(1, 2)
        extra = distances - distances.gather(-1, best.unsqueeze(-1))
        extra = extra.scatter(-1, best.unsqueeze(-1), torch.inf).flatten(1)
        few = min(num, 1 + places * (number - 1))
        moves = extra.topk(few - 1, largest=False, sorted=True).indices.T.unsqueeze(-1)  # place * number + code
        grids = best.expand(few, *best.shape).clone()
        grids[1:].scatter_(-1, moves // number, moves % number)
        return {"z": quantiser.embed(grids.reshape(few, len(x), *quantiser.grid))}


def _grid(event_shape: Sequence[int], grid: Sequence[int] | None) -> tuple[int, int]:
    """Return the grid; refuse x that is no image, and a grid that does not divide the image."""
    if len(event_shape) != 3:
        raise ValueError(f"Expected images of shape (channels, height, width) for a VQVAE; got {tuple(event_shape)}.")
    _, height, width = event_shape
    sizes = (height / 4, width / 4) if grid is None else tuple(grid)
    if len(sizes) != 2 or min(sizes) < 1 or any(size % 1 for size in sizes) or height % sizes[0] or width % sizes[1]:
        got = f"images of {height}x{width}" + (", and no grid" if grid is None else f" and grid {[*grid]}")
        raise ValueError(f"Expected a grid, height and width, that divides the image's height and width; got {got}.")
    return int(sizes[0]), int(sizes[1])
