r"""The ELBO's two terms, and what each latent dimension has to do with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.compiled import how_many_fit
from pyro_vae.conditional import mean
from pyro_vae.evaluate.weighing import room
from pyro_vae.missing import log_prob
from pyro_vae.objectives import closed_form_kl
from pyro_vae.seeds import at_test
from pyro_vae.vae import VAE

__all__ = ["active_units", "activity", "kl_per_dim", "split"]


@torch.no_grad()
def split(vae: VAE, x: Tensor, num_particles: int = 1, seed: int | None = None) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of the ELBO per datum, each of shape ``(B,)``, in nats.

    .. math:: \mathrm{ELBO} = \mathbb{E}_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    The first is a mean over ``num_particles`` draws; the second is in closed form where there is one, else a mean
    over the same draws. Memory is bounded, as in :func:`pyro_vae.evaluate.log_weights`.

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``.
        num_particles: Draws per datum.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Raises:
        ValueError: If there are no particles or no images.
    """
    if num_particles < 1:
        raise ValueError(f"Expected num_particles of at least 1; got {num_particles}.")
    images, draws = room(vae, x)
    with at_test(vae, x.device, seed):
        terms = [_split(vae, rows, num_particles) for rows in x.split(max(1, min(images, draws // num_particles)))]
    reconstruction, kl = (torch.cat(column) for column in zip(*terms, strict=True))
    return reconstruction, kl


def _split(vae: VAE, x: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
    q, p = vae.encoder(x), vae.prior()
    z = q.sample((num_particles,))
    kl = closed_form_kl(q, p)
    if kl is None:
        kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
    return log_prob(vae.decoder(z), x).mean(0), kl


@torch.no_grad()
def kl_per_dim(vae: VAE, x: Tensor) -> Tensor:
    r"""Return the divergence of each latent dimension per datum, in nats, of shape ``(B, latent)``.

    .. math:: \mathrm{KL}(q(z_i \mid x_b) \,\|\, p(z_i))

    Their sum over dimensions is the divergence, since guide and prior are independent over them.

    Raises:
        ValueError: If the guide or the prior is not independent over dimensions, or no closed form is known.

    Example:
        >>> from pyro_vae import VAE
        >>> kl_per_dim(VAE.build((64,), latent=2), torch.rand(5, 64)).shape
        torch.Size([5, 2])
    """
    with at_test(vae, x.device):
        fit = 2 * how_many_fit(lambda n: vae.encoder(x[: 2 * n]), len(x), x.device)
        return torch.cat([_kl_per_dim(vae.encoder(rows), vae.prior()) for rows in x.split(fit)])


def _kl_per_dim(q: Any, p: Any) -> Tensor:
    kl = None
    if isinstance(q, Independent) and isinstance(p, Independent):
        kl = closed_form_kl(q.base_dist, p.base_dist)
    if kl is None or kl.shape != (*q.batch_shape, *q.event_shape):
        raise ValueError(
            "Expected a guide and a prior that are independent over latent dimensions, with a divergence in closed "
            f"form; got {type(q).__name__} and {type(p).__name__}. Use split for the whole divergence."
        )
    return kl


@torch.no_grad()
def activity(vae: VAE, x: Tensor, seed: int | None = None) -> Tensor:
    r"""Return how much each latent dimension knows of x, of shape ``(latent,)``: 0 where it knows nothing.

    .. math:: \mathrm{Var}_x \big( \mathbb{E}_{q(z \mid x)}[z_i] \big)

    The variance is over the images. Where the guide has no mean in closed form, as a flow, it is the covariance of two
    averages of independent draws, whose noise cancels: the variance of one of them would be too large. So a dimension
    that knows nothing may come out a little below 0.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``, of some hundred images or more.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Raises:
        ValueError: If there are fewer than 2 images.

    Example:
        >>> from pyro_vae import VAE
        >>> activity(VAE.build((64,), latent=2), torch.rand(50, 64)).shape
        torch.Size([2])
    """
    if len(x) < 2:
        raise ValueError(f"Expected at least 2 images, to see what changes from one to the other; got {len(x)}.")

    def means(rows: Tensor) -> Tensor:
        q = vae.encoder(rows)
        return torch.stack([mean(q), mean(q)])

    with at_test(vae, x.device, seed):
        fit = 2 * how_many_fit(lambda n: means(x[: 2 * n]), len(x), x.device)
        one, other = torch.cat([means(rows) for rows in x.split(fit)], dim=1)
    return ((one - one.mean(0)) * (other - other.mean(0))).sum(0) / (len(x) - 1)


def active_units(vae: VAE, x: Tensor, threshold: float = 0.01, seed: int | None = None) -> int:
    r"""Return how many latent dimensions are used: those whose :func:`activity` is above a threshold.

    None is used where the posterior has collapsed to the prior. The threshold is that of the paper, for a prior of
    unit scale; activities tend to be near 0 or near 1, so that it seldom matters.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``, of some hundred images or more.
        threshold: In the units of z, squared.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Raises:
        ValueError: If there are fewer than 2 images.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model = LinearGaussian(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2), scale=0.5)
        >>> active_units(model.vae(), torch.randn(100, 2))
        1
    """
    return int((activity(vae, x, seed) > threshold).sum())
