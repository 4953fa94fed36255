"""Training: Pyro's SVI over minibatches, on one process or several."""

from pyro_vae.train.checks import check_device, check_support
from pyro_vae.train.fitting import fit
from pyro_vae.train.processes import is_first

__all__ = ["check_device", "check_support", "fit", "is_first"]
