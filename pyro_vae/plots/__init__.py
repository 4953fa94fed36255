"""Functions that plot tensors and return a ``matplotlib.figure.Figure``; and sliders over a program's latents.

A notebook shows the figure after ``%matplotlib inline`` or an import of pyplot; ``savefig`` writes a file. Images are
float tensors ``(..., channels, height, width)`` or ``(..., height, width)``: 0 is black, 1 is white, and NaN (a missing
pixel) is greyish blue.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure

    from pyro_vae.plots.draws import columns, latent_space, posteriors
    from pyro_vae.plots.exploring import explore
    from pyro_vae.plots.images import MISSING as MISSING
    from pyro_vae.plots.images import interpolation, manifold, mosaic, reconstructions, samples, traversal, worst
    from pyro_vae.plots.style import BLUE as BLUE
    from pyro_vae.plots.style import CLASSES as CLASSES
    from pyro_vae.plots.style import GREEN as GREEN
    from pyro_vae.plots.style import GREY as GREY
    from pyro_vae.plots.style import ORANGE as ORANGE
    from pyro_vae.plots.style import RED as RED
    from pyro_vae.plots.sweeps import slices
    from pyro_vae.plots.values import bounds, calibration, comparison, curves, dimensions, gaps, weights

__all__ = ["bounds", "calibration", "columns", "comparison", "curves", "dimensions", "explore", "gaps"]
__all__ += ["interpolation", "latent_space", "manifold", "mosaic", "posteriors", "reconstructions", "samples"]
__all__ += ["slices", "traversal", "weights", "worst"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a plot at first use: other rooms import this one, and matplotlib takes half a second."""
        for home in ("style", "draws", "images", "values", "sweeps", "exploring") if not name.startswith("_") else ():
            if hasattr(module := import_module(f"{__name__}.{home}"), name):
                return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
