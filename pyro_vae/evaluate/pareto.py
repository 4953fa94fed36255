r"""Whether importance sampling from the guide can be trusted, datum by datum: the tail of its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["pareto_k"]

FEWEST = 25  # draws, of which the tail is then 5
AT_ONCE = 10_000_000  # numbers


@torch.no_grad()
def pareto_k(log_w: Tensor) -> Tensor:
    r"""Return the Pareto shape k of the tail of the importance weights per datum, from ``(K, B)`` to ``(B,)``.

    The weights above a threshold are nearly of a generalised Pareto distribution,

    .. math:: p(w) \propto \Big(1 + k \, \frac{w - u}{\sigma}\Big)^{-1/k - 1}, \qquad w > u,

    which has moments of an order less than 1/k. Below 0.5 their variance is finite, and importance sampling from the
    guide reliable; up to 0.7 it is usable with many draws; above, the guide leaves out a part of the posterior, and no
    practical number of draws makes up for it: what is estimated of that datum, its log p(x) too, is not to be trusted.
    Below 0 the weights are bounded. It is an estimate: other draws give another, the further off the larger it is.

    Fitted to the :math:`\lceil \min(K / 5, 3 \sqrt K) \rceil` largest weights by the approximately Bayesian estimate of
    Zhang and Stephens, drawn to 0.5 by a prior worth ten draws. It is 0 where weights are constant up to rounding, as
    those of the exact posterior; and infinite where all but a few are too small to be represented beside the largest.

    References:
        Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao and Gabry, 2024).

        Yes, but Did It Work?: Evaluating Variational Inference (Yao, Vehtari, Simpson and Gelman, 2018).

        A New and Efficient Estimation Method for the Generalized Pareto Distribution (Zhang and Stephens, 2009).

    Arguments:
        log_w: Log-weights, from :func:`pyro_vae.evaluate.log_weights`; K of a few hundred or more.

    Raises:
        ValueError: If it is not ``(K, B)`` with K of at least 25, or some of it is NaN or infinite.

    Example:
        >>> tail = torch.distributions.Pareto(1.0, 1 / torch.tensor([0.2, 1.0]))  # k = 0.2 and k = 1
        >>> pareto_k(tail.sample((20_000,)).log()) > 0.7
        tensor([False,  True])
    """
    if log_w.dim() != 2 or len(log_w) < FEWEST:
        raise ValueError(f"Expected log-weights (K, B) with K of at least {FEWEST}; got shape {tuple(log_w.shape)}.")
    if not log_w.isfinite().all():
        raise ValueError("Expected finite log-weights; some are NaN or infinite. Look at the decoder's parameters.")
    size = math.ceil(min(len(log_w) / 5, 3 * math.sqrt(len(log_w))))
    columns = max(1, AT_ONCE // (size * (30 + math.isqrt(size))))
    return torch.cat([_of_tail(part, size) for part in log_w.split(columns, dim=1)]).to(log_w.dtype)


def _of_tail(log_w: Tensor, size: int) -> Tensor:
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
    """Return k of columns of exceedances, in ascending order: the mean of b = -k / sigma under a quasi-posterior."""
    size = len(above)
    grid = 30 + math.isqrt(size)
    steps = 1 - (grid / (torch.arange(grid).to(above) + 0.5)).sqrt()
    b = steps.unsqueeze(1) / (3 * _quartile(above)) + 1 / above[-1]
    k = (-b.unsqueeze(1) * above).log1p().mean(1)
    weight = (size * ((-b / k).log() - k - 1)).softmax(0)
    return (-(weight * b).sum(0) * above).log1p().mean(0)


def _quartile(above: Tensor) -> Tensor:
    return above[int(len(above) / 4 + 0.5) - 1]
