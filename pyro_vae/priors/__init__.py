"""Priors: modules whose ``forward()`` returns a distribution.

Priors p(z) of vectors have event shape ``(latent,)``. Priors p(c) of codes, for a VQVAE, have the shape of the grid.

A prior may have two more methods. ``VAE.build`` calls ``attach(encoder, event_shape)``. ``fit`` calls ``start_at(x)``
with the training data before the first epoch of an untrained VAE. The distribution may have a method ``bound``, an
estimate of a bound on -log p(z), by which ``fit_prior`` trains the prior.
"""

from pyro_vae.priors.codes import Autoregressive, Independent
from pyro_vae.priors.diffusion import Diffusion
from pyro_vae.priors.vectors import Flow, GaussianMixture, StandardNormal, VampPrior

__all__ = ["Autoregressive", "Diffusion", "Flow", "GaussianMixture", "Independent", "StandardNormal", "VampPrior"]
