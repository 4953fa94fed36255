"""Data sets as tensors: images kept as bytes, batches indexed, splits fixed, and the support of x stated."""

from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.loading import from_tensor, load

__all__ = ["Dataset", "Split", "from_tensor", "load"]
