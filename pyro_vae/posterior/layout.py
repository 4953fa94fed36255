"""Dimensions, coordinates and groups of ArviZ's container for the values of sites."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.program import Draws, Posterior

SAMPLE = ("chain", "draw")
EVENTS = {0: (), 1: ("feature",), 2: ("row", "column"), 3: ("channel", "row", "column")}

Variables = Mapping[str, tuple[Sequence[str], Tensor]]  # name -> dimensions, values


class Layout:
    """The dimensions of each site's variable in ArviZ's container, for a program at data."""

    def __init__(self, posterior: Posterior, covariates: bool) -> None:
        sites, observed = posterior.structure.shapes, posterior.structure.observed
        self.plates = posterior.structure.depth - 1  # inside a datum; size 1 for a site outside them
        self.shapes = {name: self._shape(sites[name]) for name in sites if name not in posterior.structure.model_only}
        self.discrete = {name for name, support in posterior.structure.supports.items() if support.is_discrete}
        self.single = next(iter(sites)) if len(sites) == 1 else None
        self.event = next(iter(observed)) if self.single and len(observed) == 1 and not covariates else None

    def __call__(self, values: Draws, lead: tuple[str, ...]) -> Variables:
        """Return a variable for each site's values ``(K, B, *rest)``, with leading dimensions ``lead``."""
        variables = {}
        for name, value in values.items():
            shape = self._shape(value.shape[2:])
            sizes = {"chain": 1, "draw": len(value), "datum": value.shape[1]}
            value = value.reshape(*(sizes[dim] for dim in lead), *shape)
            variables[name] = (*lead, *self._dims(name, len(shape))), value.long() if name in self.discrete else value
        return variables

    def coords(self, names: Sequence[str] | Mapping[str, Sequence[str]] | None) -> dict[str, np.ndarray]:
        """Return coordinates from element names: a list for the only latent site, or a dictionary of lists by site."""
        if names is None:
            return {}
        by_site = names if isinstance(names, Mapping) else dict.fromkeys(self.shapes, names)
        vectors = {name: shape[0] for name, shape in self.shapes.items() if len(shape) == 1}
        if not (isinstance(names, Mapping) or len(by_site) == 1) or not vectors.keys() >= by_site.keys():
            raise ValueError(
                f"Expected latent_names of the only latent site, or by site, for sites that are vectors, as "
                f"{', '.join(vectors)} of {', '.join(self.shapes)}; got names for {', '.join(by_site)}."
            )
        return {self._dims(n, 1)[0]: names_of("latent_names", values, vectors[n]) for n, values in by_site.items()}

    def _dims(self, name: str, count: int) -> tuple[str, ...]:
        if name == self.single and count == 1:
            return ("latent",)
        if name == self.event:
            return EVENTS.get(count) or tuple(f"feature_{i}" for i in range(count))
        return tuple(f"{name}_dim_{i}" for i in range(count))

    def _shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Return a site's shape without the plates of size 1."""
        return (*(size for size in shape[: self.plates] if size > 1), *shape[self.plates :])


def names_of(argument: str, values: Sequence[Any] | Tensor | None, size: int) -> np.ndarray:
    """Return the coordinate of a dimension: the names in ``values``, or numbers from 0 if ``values`` is None."""
    names = np.arange(size) if values is None else np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    different = len(set(names.ravel().tolist()))
    if names.shape != (size,) or different < size:
        raise ValueError(
            f"Expected {argument} to be {size} different names; got {different} different, of shape {names.shape}."
        )
    return names


def container(groups: Mapping[str, Variables], coords: Mapping[str, np.ndarray]) -> Any:
    """Return ArviZ's container of the groups: ``InferenceData`` with ArviZ 0.x, ``DataTree`` with ArviZ 1.x."""
    with warnings.catch_warnings():
        # ArviZ 0.23 announces 1.x once a day.
        warnings.filterwarnings("ignore", "\nArviZ is undergoing a major refactor", FutureWarning)
        import arviz as az
    import xarray as xr

    def dataset(variables: Variables) -> xr.Dataset:
        sizes = {dim: size for dims, values in variables.values() for dim, size in zip(dims, values.shape, strict=True)}
        return xr.Dataset(
            {name: (dims, values.cpu().numpy()) for name, (dims, values) in variables.items()},
            {dim: coords.get(dim, np.arange(size)) for dim, size in sizes.items()},
            {"inference_library": "pyro_vae"},
        )

    datasets: dict[str, Any] = {group: dataset(variables) for group, variables in groups.items()}
    # In vars, since 1.x has an attribute of this name, too, which warns.
    return az.InferenceData(**datasets) if "InferenceData" in vars(az) else xr.DataTree.from_dict(datasets)
