"""Runs side by side: one table and one figure. Only runs that may be ranked together are."""

from pyro_vae.compare.rows import Row, compare
from pyro_vae.compare.shown import figure, table

__all__ = ["Row", "compare", "figure", "table"]
