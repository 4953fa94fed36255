"""One rule for verdicts, and one way to write numbers and tables."""

import math

import pytest

from pyro_vae.words import above, aligned, nats, pair

NAN, INF = math.nan, math.inf
# The line, slack, mean, error and number of data; the verdict. Of 2 data the bar is of 13.97 errors, of 10 of 2.32.
VERDICTS = [
    (0, 0.1, 0.05, 0.02, INF, False),
    (0, 0.1, 0.5, 0.02, INF, True),
    (0, 0.1, 0.5, 0.3, INF, None),
    (0, 2.0, 16.1, 8.2, INF, None),
    (0, 2.0, 16.1, 40.0, 1000, None),
    (0, 2.0, -3.0, 1.0, INF, False),
    (0, 0.1, 0.5, NAN, 1, None),
    (0, 0.1, 0.5, 0.03, 2, True),
    (0, 0.1, 0.5, 0.04, 2, None),
    (0, 0.1, 1.0, 0.43, 10, True),
    (0, 0.1, 1.0, 0.44, 10, None),
    (0.1, 0.0, 0.1, 0.0, INF, False),
    (0, 0.1, INF, NAN, 100, None),
    (0, 0.1, NAN, NAN, 100, None),
    (0, 0.1, 1.0, 0.0, 0, None),
]


@pytest.mark.parametrize(("line", "slack", "mean", "error", "num", "expected"), VERDICTS)
def test_a_verdict_is_yes_or_no_or_that_the_error_bar_cannot_tell(line, slack, mean, error, num, expected):
    assert above(mean, error, num, line, slack) is expected


@pytest.mark.parametrize(
    ("value", "written"),
    [(1.005e6, "1005000.00"), (-12345.678, "-12345.68"), (1e30, "1e+30"), (-INF, "-inf"), (NAN, "nan"), (0.0, "0.00")]
    + [(1e-9, "1e-09"), (-2.5e-5, "-2.5e-05"), (0.004, "0.00"), (123456789.0, "1.234568e+08")],
)
def test_a_number_is_never_long_nor_a_tiny_one_written_as_zero(value, written):
    assert nats(value) == written
    assert len(written) < 13


def test_columns_are_as_wide_as_their_cells():
    cells = [["run", "nll"], ["a run", pair((-123456.7, 1234.5))], ["b", pair((1e30, INF), "+")], ["c", "-"]]
    lines = aligned(cells)
    assert [line.split("  ", 1)[0] for line in lines] == ["run", "a run", "b", "c"]
    assert [line.rpartition("  ")[2] for line in lines] == ["nll", "-123456.70 ± 1234.50", "+1e+30 ± inf", "-"]
    assert len({*map(len, lines)}) == 1
