"""Checks of the approximate posterior: ArviZ, NUTS, refined guides, simulation-based calibration, the sleep phase.

The arguments ``program``, ``data``, ``seed`` and ``progress`` are as in :mod:`pyro_vae.evaluate`.
"""

from pyro_vae.posterior.arviz import to_arviz
from pyro_vae.posterior.calibration import Calibration, sbc
from pyro_vae.posterior.comparison import Comparison, Grid, Moments, compare, grid
from pyro_vae.posterior.local import Gaps, gaps, refine
from pyro_vae.posterior.nuts import Chains, nuts
from pyro_vae.train.sleeping import Sleep, sleep

__all__ = ["Calibration", "Chains", "Comparison", "Gaps", "Grid", "Moments", "compare", "gaps", "grid", "nuts"]
__all__ += ["Sleep", "refine", "sbc", "sleep", "to_arviz"]
