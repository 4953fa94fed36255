r"""Functions of log-weights, per datum: bounds on log p(x), the effective sample size and Pareto k."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

FEWEST = 25  # draws that k is estimated from: its tail is then 5
AT_ONCE = 10_000_000  # numbers

Number = TypeVar("Number", float, Tensor)


def elbo(log_w: Tensor) -> Tensor:
    r"""Return the ELBO per datum, :math:`\frac{1}{K} \sum_k \log w_k`, from ``(K, B)`` to ``(B,)``, in nats.

    Example:
        >>> elbo(torch.tensor([[0.0], [2.0]]))
        tensor([1.])
    """
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    r"""Return the importance weighted bound per datum, from ``(K, B)`` to ``(B,)``, in nats.

    .. math:: \log \frac{1}{K} \sum_k w_k

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519.

    Example:
        >>> iwae(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.6931])

    See Also:
        :func:`nll` returns minus this bound and needs less memory; :func:`pareto_k` tells if the bound is reliable.
    """
    return log_w.logsumexp(0) - math.log(len(log_w))


def iwae_curve(log_w: Tensor, particles: Sequence[int]) -> Tensor:
    r"""Return the importance weighted bound per datum for fewer particles, in nats.

    .. math:: \mathcal{L}_k = \frac{1}{\lfloor K / k \rfloor} \sum_g \log \frac{1}{k} \sum_{i \in g} w_i

    The sum is over disjoint groups g of k weights. The estimate of the bound with k particles is unbiased. Log-weights
    ``(K, B)`` and P numbers of particles give ``(P, B)``.

    Raises:
        ValueError: If a number is not from 1 to K.

    Example:
        >>> iwae_curve(torch.tensor([[1.0], [3.0]]).log(), [1, 2])
        tensor([[0.5493],
                [0.6931]])
    """
    if not all(1 <= k <= len(log_w) for k in particles):
        raise ValueError(f"Expected numbers of particles from 1 to {len(log_w)}; got {[*particles]}.")
    groups = (log_w[: len(log_w) // k * k].unflatten(0, (-1, k)) for k in particles)
    return torch.stack([(group.logsumexp(1) - math.log(group.shape[1])).mean(0) for group in groups])


def ess(log_w: Tensor) -> Tensor:
    r"""Return the effective sample size per datum, from ``(K, B)`` to ``(B,)``, between 1 and K.

    .. math:: \Big(\sum_k w_k\Big)^2 \Big/ \sum_k w_k^2

    References:
        A Note on Importance Sampling using Standardized Weights (Kong, 1992).

    Example:
        >>> ess(torch.zeros(8, 1)).round()
        tensor([8.])
    """
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


def bits_per_dim(nats: Number, dimensions: int, levels: int | None = None) -> Number:
    r"""Convert :math:`-\log p(x)` from nats to bits per dimension.

    .. math:: \frac{-\log p(x)}{D \ln 2} \text{ of a mass}, \qquad
        \frac{-\log p(x)}{D \ln 2} + \log_2 L \text{ of a density of } x = (v + u) / L

    ``nats`` is :math:`-\log p(x)`, a number or a tensor. D is ``dimensions``, the number of dimensions of x. For a
    mass, omit ``levels``. For a density of dequantised pixels, with the grey level v and uniform noise u, ``levels`` is
    L. The bits of a mass are the length of an optimal code of x. The bits of such a density are on average an upper
    bound on the bits of the mass of v. For another density, bits per dimension have no meaning.

    References:
        A Note on the Evaluation of Generative Models (Theis, van den Oord and Bethge, 2016),
        https://arxiv.org/abs/1511.01844.

    Raises:
        ValueError: If there are no dimensions, or fewer than 2 levels.

    Example:
        >>> bits_per_dim(0.0, dimensions=784, levels=256)  # uniform over [0, 1]
        8.0
        >>> bits_per_dim(torch.tensor([784 * 0.6931]), dimensions=784)
        tensor([0.9999])
    """
    if dimensions < 1 or (levels is not None and levels < 2):
        raise ValueError(f"Expected at least 1 dimension and 2 levels; got {dimensions} and {levels}.")
    return nats / (dimensions * math.log(2)) + (0.0 if levels is None else math.log2(levels))


@torch.no_grad()
def pareto_k(log_w: Tensor) -> Tensor:
    r"""Return the Pareto shape k of the tail of the importance weights per datum, from ``(K, B)`` to ``(B,)``.

    The weights above a threshold follow nearly a generalised Pareto distribution,

    .. math:: p(w) \propto \Big(1 + k \, \frac{w - u}{\sigma}\Big)^{-1/k - 1}, \qquad w > u,

    with finite moments of order less than 1/k. For k below 0.5 the weights have finite variance and importance sampling
    is reliable. For k up to 0.7, importance sampling works with many draws. For k above 0.7, the proposal misses a part
    of the posterior, and no practical number of draws suffices: do not trust log p(x) or other estimates for the datum.

    The method of Zhang and Stephens fits k to the :math:`\lceil \min(K / 5, 3 \sqrt K) \rceil` largest weights; a prior
    at k = 0.5 has the weight of ten draws. k is 0 if the weights are constant up to rounding, and infinite if nearly
    all weights underflow relative to the largest weight. K should be a few hundred or more.

    References:
        - Pareto Smoothed Importance Sampling (Vehtari et al., 2024), https://arxiv.org/abs/1507.02646.
        - Yes, but Did It Work?: Evaluating Variational Inference (Yao et al., 2018), https://arxiv.org/abs/1802.02538.
        - A New and Efficient Estimation Method for the Generalized Pareto Distribution (Zhang and Stephens, 2009),
          https://doi.org/10.1198/tech.2009.08017.

    Raises:
        ValueError: If the shape is not ``(K, B)`` with K at least 25, or a weight is NaN or infinite.

    Example:
        >>> tail = torch.distributions.Pareto(1.0, 1 / torch.tensor([0.2, 1.0]))  # k = 0.2 and k = 1
        >>> pareto_k(tail.sample((20_000,)).log()) > 0.7
        tensor([False,  True])

    See Also:
        :func:`ess` can be large although k is above 0.7; :func:`pyro_vae.ais.ais` estimates log p(x) for such data.
    """
    if log_w.dim() != 2 or len(log_w) < FEWEST:
        raise ValueError(f"Expected log-weights (K, B) with K at least {FEWEST}; got shape {tuple(log_w.shape)}.")
    if not log_w.isfinite().all():
        raise ValueError("Expected finite log-weights; some are NaN or infinite. Check the decoder's parameters.")
    size = math.ceil(min(len(log_w) / 5, 3 * math.sqrt(len(log_w))))
    columns = max(1, AT_ONCE // (size * (30 + math.isqrt(size))))
    return torch.cat([_tail_shape(part, size) for part in log_w.split(columns, dim=1)]).to(log_w.dtype)


def _tail_shape(log_w: Tensor, size: int) -> Tensor:
    rounding = 64 * torch.finfo(log_w.dtype).eps * log_w.abs().amax(0).clamp(min=1)
    constant = log_w.amax(0) - log_w.amin(0) <= rounding
    largest = log_w.topk(size + 1, dim=0).values.flip(0).double()  # the first is the threshold
    w = (largest - largest[-1]).exp()
    above = w[1:] - w[0]
    few = _quartile(above) <= 0
    k = _zhang_stephens(torch.where(constant | few, torch.linspace(0, 1, size).to(w).unsqueeze(1), above))
    k = (size * k + 10 * 0.5) / (size + 10)
    return torch.where(constant, 0.0, torch.where(few, math.inf, k))


def _zhang_stephens(above: Tensor) -> Tensor:
    """Return k for each column of ascending exceedances; the quasi-posterior mean of b = -k / sigma gives k."""
    size = len(above)
    grid = 30 + math.isqrt(size)
    steps = 1 - (grid / (torch.arange(grid).to(above) + 0.5)).sqrt()
    b = steps.unsqueeze(1) / (3 * _quartile(above)) + 1 / above[-1]
    k = (-b.unsqueeze(1) * above).log1p().mean(1)
    weight = (size * ((-b / k).log() - k - 1)).softmax(0)
    return (-(weight * b).sum(0) * above).log1p().mean(0)


def _quartile(above: Tensor) -> Tensor:
    return above[int(len(above) / 4 + 0.5) - 1]
