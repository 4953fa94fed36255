"""SVI as a traced graph: Pyro's handlers run once, and the step is what they left behind."""

from pyro_vae.compiled.device import fast_products, how_many_fit, warn_if_slower
from pyro_vae.compiled.svi import CompiledSVI
from pyro_vae.compiled.traced import Compile, Outputs, Traced

__all__ = ["Compile", "CompiledSVI", "Outputs", "Traced", "fast_products", "how_many_fit", "warn_if_slower"]
