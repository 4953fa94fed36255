"""Figures. They see arrays only, and return a ``matplotlib.figure.Figure`` that a notebook shows and ``savefig`` saves.

A notebook shows them once ``%matplotlib inline`` has been run in it, or pyplot imported. Images are float tensors
``(..., channels, height, width)`` or ``(..., height, width)``; 0 is drawn black, 1 white, and NaN, which is missing, a
flat greyish blue.
"""

from pyro_vae.plots.draws import columns, latent_space, posteriors
from pyro_vae.plots.images import MISSING as MISSING
from pyro_vae.plots.images import interpolation, manifold, mosaic, reconstructions, samples, traversal, worst
from pyro_vae.plots.values import bounds, calibration, comparison, curves, dimensions, gaps, weights

__all__ = ["bounds", "calibration", "columns", "comparison", "curves", "dimensions", "gaps", "interpolation"]
__all__ += ["latent_space", "manifold", "mosaic", "posteriors", "reconstructions", "samples", "traversal", "weights"]
__all__ += ["worst"]
