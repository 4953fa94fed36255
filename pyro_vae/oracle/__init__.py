"""Programs with exact answers, to test guides and estimators: linear Gaussians, layers, covariates, classes.

Training changes each argument of type ``nn.Parameter``; other tensors are constants. ``random`` draws normal parameters
from a seed, with one scale. Each program raises a ValueError if shapes do not fit, a scale is not positive, or the
guide is unknown.
"""

from pyro_vae.oracle.layers import Layers
from pyro_vae.oracle.linear import LinearGaussian
from pyro_vae.oracle.mixtures import Classes, Covariates

__all__ = ["Classes", "Covariates", "Layers", "LinearGaussian"]
