"""Modules with two Pyro programs, ``model`` and ``guide``; a user can exchange the parts of each module."""

from pyro_vae.programs.conditional import ConditionalVAE
from pyro_vae.programs.hierarchical import HierarchicalVAE
from pyro_vae.programs.semi_supervised import SemiSupervisedVAE
from pyro_vae.programs.vae import VAE

__all__ = ["VAE", "ConditionalVAE", "HierarchicalVAE", "SemiSupervisedVAE"]
