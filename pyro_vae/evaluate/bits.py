"""Bits per dimension: what likelihoods of grey levels are compared in, whatever the size of the image."""

import math
from typing import TypeVar

from torch import Tensor

__all__ = ["bits_per_dim"]

Number = TypeVar("Number", float, Tensor)


def bits_per_dim(nats: Number, dimensions: int, levels: int | None = None) -> Number:
    r"""Return bits per dimension, of a mass of grey levels or of a density of dequantised ones.

    .. math:: \frac{-\log p(x)}{D \ln 2} \text{ of a mass}, \qquad
        \frac{-\log p(x)}{D \ln 2} + \log_2 L \text{ of a density of } x = (p + u) / L

    The first is how long an optimal code of x is. The second is on average at least as many bits as the mass that the
    density gives to each level has, so the two compare: a density that is constant, as one of noise, has
    :math:`\log_2 L`. A density of x that is not dequantised has no bits: it may be as large as one likes.

    References:
        A Note on the Evaluation of Generative Models (Theis, van den Oord and Bethge, 2016).

    Arguments:
        nats: :math:`-\log p(x)`, or a bound on it, in nats: a number, or a tensor of any shape.
        dimensions: D, how many elements x has.
        levels: L, if the nats are of a density of dequantised x; None if they are of a mass.

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
