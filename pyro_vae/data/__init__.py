"""Data sets as tensors: images stored as bytes, tables, fixed splits, batches by index, and the support of x."""

from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.labels import labelled
from pyro_vae.data.loading import from_columns, from_tensor, load
from pyro_vae.data.schema import Column, Schema
from pyro_vae.data.supports import levels, open_unit_interval

__all__ = ["Column", "Dataset", "Schema", "Split", "from_columns", "from_tensor", "labelled", "levels", "load"]
__all__ += ["open_unit_interval"]
