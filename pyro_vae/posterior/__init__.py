"""Questions to a posterior: in ArviZ, against NUTS, against one guide for each datum, and whether it is calibrated."""

from pyro_vae.posterior.arviz import to_arviz
from pyro_vae.posterior.local import Gaps, gaps, refine

__all__ = ["Gaps", "gaps", "refine", "to_arviz"]
