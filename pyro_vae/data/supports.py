"""Supports that torch does not have: the grid of grey levels, and the open unit interval."""

from functools import cache

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Levels", "levels", "of_element", "open_unit_interval"]

ROUNDING = 0.01  # of a level: 255 * (p / 255) in float32 is off by 1e-5


class Levels(constraints.Constraint):
    """The constraint that :func:`levels` returns.

    Attributes:
        number: How many levels there are.
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def check(self, value: Tensor) -> Tensor:
        """Return where ``value`` is on the grid."""
        index = value * (self.number - 1)
        nearest = index.round().clamp(0, self.number - 1)
        return (index - nearest).abs() < ROUNDING

    def __repr__(self) -> str:
        return f"Levels({self.number})"


@cache
def levels(number: int) -> Levels:
    r"""Return the grid :math:`\{0, \frac{1}{L - 1}, \dots, 1\}` that grey levels are on, up to float32's rounding.

    Arguments:
        number: L, how many levels there are.

    Raises:
        ValueError: If there are fewer than 2.

    Example:
        >>> levels(17).check(torch.tensor([0.0, 1 / 16, 0.5, 1.0, 0.51, -1 / 16]))
        tensor([ True,  True,  True,  True, False, False])
    """
    if number < 2:
        raise ValueError(f"Expected at least 2 levels; got {number}.")
    return Levels(number)


class _OpenUnitInterval(constraints.Constraint):
    """Numbers above 0 and below 1."""

    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        """Return where ``value`` is inside."""
        return torch.logical_and(value > 0, value < 1)

    def __repr__(self) -> str:
        return "OpenUnitInterval()"


open_unit_interval = _OpenUnitInterval()


def of_element(support: constraints.Constraint) -> constraints.Constraint:
    """Return the support of one element, without what ``to_event`` or a mixture puts around it."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support
