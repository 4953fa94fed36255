"""Comparison of runs in one table and one figure, ranked in groups of runs whose numbers compare."""

from pyro_vae.compare.display import figure, table
from pyro_vae.compare.rows import Row, compare

__all__ = ["Row", "compare", "figure", "table"]
