"""Training: Pyro's SVI over minibatches, in one or several processes. A run can stop and resume."""

from pyro_vae.train.fitting import fit
from pyro_vae.train.nonfinite import NotFinite
from pyro_vae.train.processes import is_first
from pyro_vae.train.second_stage import fit_prior
from pyro_vae.train.settings import Settings, check_device, check_program, check_support

__all__ = ["NotFinite", "Settings", "check_device", "check_program", "check_support", "fit", "fit_prior"]
__all__ += ["is_first"]
