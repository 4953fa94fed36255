"""Comparison of runs in one table and one figure, with a ranking in each group of comparable runs."""

from pyro_vae.compare.display import figure, table
from pyro_vae.compare.rows import Row, compare

__all__ = ["Row", "compare", "figure", "table"]
