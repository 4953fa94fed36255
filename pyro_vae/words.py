"""Numbers, tables and verdicts as text, for everything that the package prints."""

import math
import re
from collections.abc import Sequence
from itertools import takewhile

BELOW_TWO = 0.97725  # probability of a standard normal below 2


def above(mean: float, error: float, num: float = math.inf, line: float = 0.0, slack: float = 0.0) -> bool | None:
    """Decide by an error bar whether a mean lies above a line; return None if the error bar cannot tell.

    The bar extends 2 standard errors to each side. For a mean of ``num`` data, the quantile of Student's t distribution
    at the same probability replaces the 2; a single datum has no bar. The answer is no if the whole bar is at most
    ``line + slack``, since differences up to ``slack`` do not matter, and yes if the whole bar is above ``line``.

    Example:
        >>> above(0.05, 0.02, slack=0.1), above(16.1, 2.0, slack=0.1), above(16.1, 8.2, slack=0.1)
        (False, True, None)
    """
    from scipy.special import stdtrit  # a slow import

    bar = (2.0 if num == math.inf else stdtrit(num - 1, BELOW_TWO)) * error
    return False if mean + bar <= line + slack else True if mean - bar > line else None


def nats(value: float, sign: str = "") -> str:
    """Format a number with two decimals, or with 2 significant digits below 5e-4 and 7 significant digits above 1e7."""
    size = abs(value)
    return format(value, f"{sign}.2g" if 0 < size < 5e-4 else f"{sign}.7g" if size > 1e7 else f"{sign}.2f")


def pair(values: tuple[float, float], sign: str = "") -> str:
    """Format a mean and its standard error."""
    return f"{nats(values[0], sign)} ± {nats(values[1])}"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return rows of cells as lines with aligned columns: the first ``left`` to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if i < left else ">" for i in range(len(widths))]
    return ["  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip() for row in rows]


def cells(lines: Sequence[str]) -> list[list[str]]:
    """Return the rows of :func:`aligned` from the lines of a text; the first line with fewer or more cells ends them.

    Example:
        >>> cells([*aligned([["split", "ELBO"], ["test", "-2.10 ± 0.02"]]), "A note."])
        [['split', 'ELBO'], ['test', '-2.10 ± 0.02']]
    """
    rows = [re.split(" {2,}", line.strip()) for line in lines]
    return [*takewhile(lambda row: len(row) == len(rows[0]), rows)]


def images_or_rows(shape: Sequence[int]) -> str:
    """Return the noun for data of an event shape: rows for one dimension, else images."""
    return "images" if len(shape) > 1 else "rows"
