"""Numbers, tables and verdicts in words: one way for all that is printed."""

import math
from collections.abc import Sequence

SURE = 0.97725  # of a Gaussian is below 2 standard errors


def above(mean: float, error: float, num: float = math.inf, line: float = 0.0, slack: float = 0.0) -> bool | None:
    """Say by its error bar whether a mean is above a line; None where the bar cannot tell.

    The bar is of 2 standard errors to each side, and of a mean over few data, ``num``, of as many as Student's t asks:
    over one there is none. No, where all of it is at most ``line + slack``, and differences up to ``slack`` do not
    matter; else yes, where all of it is above ``line``; else it cannot tell.

    Example:
        >>> above(0.05, 0.02, slack=0.1), above(16.1, 2.0, slack=0.1), above(16.1, 8.2, slack=0.1)
        (False, True, None)
    """
    from scipy.special import stdtrit  # takes a while to import

    bar = (2.0 if num == math.inf else stdtrit(num - 1, SURE)) * error
    return False if mean + bar <= line + slack else True if mean - bar > line else None


def nats(value: float, sign: str = "") -> str:
    """Write a number with two decimals; one below a thousandth or above ten millions with two digits or seven."""
    size = abs(value)
    return format(value, f"{sign}.2g" if 0 < size < 5e-4 else f"{sign}.7g" if size > 1e7 else f"{sign}.2f")


def pair(values: tuple[float, float], sign: str = "") -> str:
    """Write a mean and its standard error."""
    return f"{nats(values[0], sign)} ± {nats(values[1])}"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Write rows of cells as lines of a table, as wide as the cells are: the first columns to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if i < left else ">" for i in range(len(widths))]
    return ["  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip() for row in rows]


def images_or_rows(shape: Sequence[int]) -> str:
    """Say what data are called whose events are of a shape: of one dimension they are the rows of a table."""
    return "images" if len(shape) > 1 else "rows"
