"""How values of sites become the variables of ArviZ's own container: their dimensions, coordinates and groups."""

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
    """Which dimensions the variables of sites have, of a program at its data, with covariates or without."""

    def __init__(self, posterior: Posterior, covariates: bool) -> None:
        sites, seen = posterior.structure.shapes, posterior.structure.observed
        self.plates = posterior.structure.depth - 1  # inside a datum, of size 1 where a site is in none of them
        self.drawn = {name: self._own(sites[name]) for name in sites if name not in posterior.structure.alone}
        self.discrete = {name for name, support in posterior.structure.supports.items() if support.is_discrete}
        self.single = next(iter(sites)) if len(sites) == 1 else None
        self.event = next(iter(seen)) if self.single and len(seen) == 1 and not covariates else None

    def __call__(self, values: Draws, lead: tuple[str, ...]) -> Variables:
        """Return the variables of values ``(K, B, *rest)``: of draws, of data, or of both."""
        variables = {}
        for name, value in values.items():
            own = self._own(value.shape[2:])
            sizes = {"chain": 1, "draw": len(value), "datum": value.shape[1]}
            shaped = value.reshape(*(sizes[dim] for dim in lead), *own)
            variables[name] = (*lead, *self._dims(name, len(own))), shaped.long() if name in self.discrete else shaped
        return variables

    def coords(self, names: Sequence[str] | Mapping[str, Sequence[str]] | None) -> dict[str, np.ndarray]:
        """Return the coordinates that names of elements are: of the only latent site, or by site."""
        if names is None:
            return {}
        by_site = names if isinstance(names, Mapping) else dict.fromkeys(self.drawn, names)
        vectors = {name: shape[0] for name, shape in self.drawn.items() if len(shape) == 1}
        if not (isinstance(names, Mapping) or len(by_site) == 1) or not vectors.keys() >= by_site.keys():
            raise ValueError(
                f"Expected latent_names of the only latent site, or by site, each a vector, as {', '.join(vectors)} "
                f"of {', '.join(self.drawn)}; got names of {', '.join(by_site)}."
            )
        return {self._dims(name, 1)[0]: names_of("latent_names", own, vectors[name]) for name, own in by_site.items()}

    def _dims(self, name: str, count: int) -> tuple[str, ...]:
        if name == self.single and count == 1:
            return ("latent",)
        if name == self.event:
            return EVENTS.get(count) or tuple(f"feature_{i}" for i in range(count))
        return tuple(f"{name}_dim_{i}" for i in range(count))

    def _own(self, shape: torch.Size) -> tuple[int, ...]:
        return (*(size for size in shape[: self.plates] if size > 1), *shape[self.plates :])


def names_of(argument: str, given: Sequence[Any] | Tensor | None, size: int) -> np.ndarray:
    """Return the coordinate of a dimension: names, or else numbers from 0."""
    names = np.arange(size) if given is None else np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    different = len(set(names.ravel().tolist()))
    if names.shape != (size,) or different < size:
        raise ValueError(
            f"Expected {argument} to be {size} names, all different; got {different} different, of shape {names.shape}."
        )
    return names


def container(groups: Mapping[str, Variables], coords: Mapping[str, np.ndarray]) -> Any:
    """Make an ``InferenceData`` of ArviZ 0.x, or a ``DataTree`` of 1.x: ``from_dict`` gives a name one shape in all."""
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
    # Asked of vars: an attribute of this name is there in 1.x too, and warns.
    return az.InferenceData(**datasets) if "InferenceData" in vars(az) else xr.DataTree.from_dict(datasets)
