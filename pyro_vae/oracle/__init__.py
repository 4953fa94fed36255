"""Programs with exact answers, to test guides and estimators against: of one latent, layers, covariates, classes."""

from pyro_vae.oracle.layers import Layers
from pyro_vae.oracle.linear import LinearGaussian
from pyro_vae.oracle.mixtures import Classes, Covariates

__all__ = ["Classes", "Covariates", "Layers", "LinearGaussian"]
