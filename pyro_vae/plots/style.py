"""The colours and axes of plots, and conversions of tensors to arrays."""

import numpy as np
from matplotlib import rc_context
from numpy.typing import ArrayLike
from torch import Tensor

# Safe for colour-blind readers (Okabe and Ito, 2008). RED is vermilion, and marks what is poor.
BLUE, SKY, GREEN, GREY = "#0072b2", "#56b4e9", "#009e73", "#6b7280"
RED, ORANGE, PURPLE = "#d55e00", "#e69f00", "#cc79a7"
LINES = (BLUE, RED, GREEN, PURPLE, SKY, ORANGE, GREY)  # for curves, in order
# Ten colours for ten classes (Petroff, 2021, Accessible Color Sequences for Data Visualization).
CLASSES = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
# Decorates a function that draws.
styled = rc_context(
    {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "legend.frameon": False}
)


def numbers(values: Tensor) -> np.ndarray:
    """Return a tensor as an array of float64."""
    return values.detach().cpu().double().numpy()


def finite(values: ArrayLike) -> np.ndarray:
    """Return values with NaN in place of infinite values, since matplotlib does not plot NaN."""
    array = np.asarray(values, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)
