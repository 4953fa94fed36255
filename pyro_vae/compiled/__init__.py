"""SVI as a graph of tensor operations: Pyro's handlers run only while a step is recorded."""

from pyro_vae.compiled.device import fast_products, max_batch_size, product_operations, warn_if_slower
from pyro_vae.compiled.svi import CompiledSVI
from pyro_vae.compiled.traced import Compile, GraphedFunction, Outputs
from pyro_vae.deprecated import renamed

__all__ = ["Compile", "CompiledSVI", "Outputs", "GraphedFunction", "fast_products", "max_batch_size"]
__all__ += ["product_operations", "warn_if_slower"]

__getattr__ = renamed(__name__, {"Traced": "GraphedFunction", "how_many_fit": "max_batch_size"})
