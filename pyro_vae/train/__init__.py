"""Training: Pyro's SVI over minibatches, on one process or several, that can be stopped and gone on with."""

from pyro_vae.train.fitting import fit
from pyro_vae.train.processes import is_first
from pyro_vae.train.settings import Settings, check_device, check_program, check_support
from pyro_vae.train.trouble import NotFinite

__all__ = ["NotFinite", "Settings", "check_device", "check_program", "check_support", "fit", "is_first"]
