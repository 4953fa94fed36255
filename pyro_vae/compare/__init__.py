"""Comparison of runs in one table and one figure, with a ranking in each group of comparable runs."""

from pyro_vae.compare.display import figure, figure_over_seeds, table, table_over_seeds
from pyro_vae.compare.rows import Row, compare
from pyro_vae.compare.seeds import Setting, importance, is_study, over_seeds, runs_of

__all__ = ["Row", "Setting", "compare", "figure", "figure_over_seeds", "importance", "is_study", "over_seeds"]
__all__ += ["runs_of", "table", "table_over_seeds"]
