"""Modules with two Pyro programs, ``model`` and ``guide``; a user can exchange the parts of each module."""

from pyro_vae.programs.conditional import ConditionalVAE
from pyro_vae.programs.hierarchical import HierarchicalVAE
from pyro_vae.programs.semi_supervised import SemiSupervisedVAE
from pyro_vae.programs.vae import VAE
from pyro_vae.programs.vector_quantised import VQVAE

__all__ = ["VAE", "VQVAE", "ConditionalVAE", "HierarchicalVAE", "SemiSupervisedVAE"]
