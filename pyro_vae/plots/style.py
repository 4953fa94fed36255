"""What figures share: colours, the look of axes, and tensors as arrays."""

import numpy as np
from matplotlib import rc_context
from numpy.typing import ArrayLike
from torch import Tensor

BLUE, ORANGE, GREEN, GREY, RED = "#2b6cb0", "#dd6b20", "#2f855a", "#718096", "#c53030"
# Decorates a function that draws.
styled = rc_context(
    {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "legend.frameon": False}
)


def numbers(values: Tensor) -> np.ndarray:
    """Return values in float64, on the CPU and apart from any graph."""
    return values.detach().cpu().double().numpy()


def finite(values: ArrayLike) -> np.ndarray:
    """Return values with NaN, which is not drawn, for what is not finite."""
    array = np.asarray(values, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)
