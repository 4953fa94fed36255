"""Two supports that torch lacks (the grid of grey levels and the open unit interval), and advice on supports."""

from functools import cache

import torch
from torch import Tensor
from torch.distributions import constraints

ROUNDING = 0.01  # of a level: 255 * (p / 255) in float32 is off by 1e-5


class Levels(constraints.Constraint):
    r"""The grid of grey levels, :math:`\{0, \frac{1}{L - 1}, \dots, 1\}`, up to float32's rounding.

    Arguments:
        number: L, the number of levels.

    Raises:
        ValueError: If there are fewer than 2 levels.

    Example:
        >>> levels(17).check(torch.tensor([0.0, 1 / 16, 0.5, 1.0, 0.51, -1 / 16]))
        tensor([ True,  True,  True,  True, False, False])
    """

    is_discrete = True

    def __init__(self, number: int) -> None:
        if number < 2:
            raise ValueError(f"Expected at least 2 levels; got {number}.")
        self.number = number

    def check(self, value: Tensor) -> Tensor:
        """Return True for each element of ``value`` on the grid, and False for each element off the grid."""
        index = value * (self.number - 1)
        return (index - index.round().clamp(0, self.number - 1)).abs() < ROUNDING

    def __repr__(self) -> str:
        return f"Levels({self.number})"


levels = cache(Levels)  # one instance for each number of levels, so that ``is`` compares constraints


class _OpenUnitInterval(constraints.Constraint):
    """The numbers between 0 and 1, both excluded."""

    def check(self, value: Tensor) -> Tensor:
        return torch.logical_and(value > 0, value < 1)


open_unit_interval = _OpenUnitInterval()


def of_element(support: constraints.Constraint) -> constraints.Constraint:
    """Return the support of one element, without the wrappers of ``to_event`` or of a mixture."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


SUPPORTS = {"binary": constraints.boolean, "counts": constraints.nonnegative_integer, "real": constraints.real}
SUPPORTS |= {"[0, 1]": constraints.unit_interval, "(0, 1)": open_unit_interval}
KINDS: dict[type, str] = {type(support): kind for kind, support in SUPPORTS.items()}
KINDS |= {type(constraints.integer_interval(0, 1)): "counts", Levels: "levels"}
UNIT, GREY = ("[0, 1]", "(0, 1)"), ("binary", "levels", "[0, 1]", "(0, 1)")
# Advice for a likelihood that does not suit x: by the kind of x, then by the kind of the likelihood's support.
ADVICE: dict[str, dict[str, str]] = {
    "binary": {
        "levels": "Two values are not many levels: use Bernoulli.",
        "counts": "Two values have no rate: use Bernoulli.",
        **dict.fromkeys((*UNIT, "real", "a density"), "A density of two values grows without bound: use Bernoulli."),
    },
    "counts": dict.fromkeys(GREY, "Use Poisson or NegativeBinomial. Without --counts pixels are grey levels."),
    "real": dict.fromkeys((*GREY, "counts"), "Use Gaussian, Laplace or StudentT; or scale the data to [0, 1]."),
    "levels": {
        "binary": "Binarise with --binarize dynamic, or use DiscretizedLogistic or Gaussian for grey levels.",
        "levels": "Use --likelihood.levels {levels}, the number of levels of the data.",
        "counts": "Use --counts true to read x as the stored integers, or DiscretizedLogistic for grey levels.",
        "(0, 1)": "At 0 and 1 its density is 0 or infinite: use --dequantize true, or ContinuousBernoulli.",
    },
    "dequantised": {
        "binary": "Leave out --dequantize and binarise with --binarize dynamic, or use ContinuousBernoulli.",
        "levels": "Leave out --dequantize: the likelihood gives the probability of each level.",
        "counts": "Leave out --dequantize, and use --counts true to read x as the stored integers.",
    },
    "[0, 1]": {
        "binary": "Binarise with --binarize dynamic, or use ContinuousBernoulli or Gaussian for grey x.",
        "levels": "Pass x as bytes, or use ContinuousBernoulli or Gaussian.",
        "counts": "Fractions are no counts: use ContinuousBernoulli or Gaussian.",
        "(0, 1)": "At 0 and 1 its density is 0 or infinite: pass x as bytes, with --dequantize true.",
    },
}


def kind_of(support: constraints.Constraint) -> str:
    """Return the kind of a support, for example ``binary`` or ``counts``, for the table :data:`ADVICE`."""
    other = "a mass" if support.is_discrete else "a density"
    return "binary" if getattr(support, "number", 0) == 2 else KINDS.get(type(support), other)


def white(x: Tensor, support: constraints.Constraint) -> float:
    """Return the value that images of x show as white: 1, or the largest value of counts."""
    counts = of_element(support) is constraints.nonnegative_integer
    return max(x.nan_to_num(0.0).max().item(), 1.0) if counts else 1.0
