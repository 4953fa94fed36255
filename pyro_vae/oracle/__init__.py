"""Programs with exact answers, to test guides and estimators against: of one latent, layers, covariates, classes.

Tensors that are given as ``nn.Parameter`` are trained; ``random`` makes a program of normal ones, the same for a seed,
and one scale. All raise a ValueError if the shapes do not fit, a scale is not positive, or the guide is unknown.
"""

from pyro_vae.oracle.layers import Layers
from pyro_vae.oracle.linear import LinearGaussian
from pyro_vae.oracle.mixtures import Classes, Covariates

__all__ = ["Classes", "Covariates", "Layers", "LinearGaussian"]
