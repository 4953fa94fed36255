"""What a program is made of: its data's plate, its sites, and what is not fit for a density of each datum."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, product
from typing import Any, Protocol

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_vae.missing import Missing
from pyro_vae.program.autoguides import check_own_rows
from pyro_vae.program.supports import is_fixed, unconstrained
from pyro_vae.seeds import modules_of
from pyro_vae.traces.enumeration import marked
from pyro_vae.traces.particles import OwnRows, probe
from pyro_vae.traces.sites import latent, loss_terms, mean_scale, observed, plates, samples, say_loss_terms

__all__ = [
    "Draws",
    "Program",
    "Structure",
    "arguments",
    "argument_names",
    "coordinates",
    "point_of",
    "structure",
]

Draws = dict[str, Tensor]  # site -> (K, B, *rest): draw, datum, one draw of one datum
FEW = 3  # rows that a program is looked at on


class Program(Protocol):
    """Two Pyro programs of the same arguments, each with the data along its first dimension. A VAE is one."""

    def model(self, *data: Tensor) -> Any:
        """Draw what is latent and observe the data."""

    def guide(self, *data: Tensor) -> Any:
        """Draw what is latent, given the data."""


@dataclass(frozen=True, eq=False)
class Structure:
    """What one run of a program shows.

    Attributes:
        depth: How deep its plates nest.
        dim: The dimension of the data's plate, counted from the right; 0 where there is none.
        size: The whole data set, as that plate has it.
        scale: Of what is observed, which is 1 unless the plate is subsampled or the program scaled.
        supports: Of each latent site of the model, in its order.
        shapes: Of one draw of one datum, the same.
        observed: Shapes of what is observed of one datum.
        laws: The supports of what is observed.
        summed: Discrete sites that are summed out, those that are marked and those that the model alone has.
        alone: Those that the model alone has.
        outside: Latent sites outside the data's plate, with their shapes and their batch dimensions.
        terms: Sites of the guide that are terms of the loss alone.
        hidden: What the guide draws and the model does not have.
        missing: Whether elements of the data are missing.
        unseen: Whether classes are observed under a mask.
        whole: Whether the program runs on all of its rows together only.
    """

    depth: int
    dim: int
    size: int
    scale: float
    supports: dict[str, Constraint]
    shapes: dict[str, torch.Size]
    observed: dict[str, torch.Size]
    laws: dict[str, Constraint]
    summed: tuple[str, ...]
    alone: tuple[str, ...]
    outside: dict[str, tuple[torch.Size, int]]
    terms: tuple[str, ...]
    hidden: tuple[str, ...]
    missing: bool = False
    unseen: bool = False
    whole: bool = False
    fixed: bool = field(default=True)

    @property
    def continuous(self) -> dict[str, torch.Size]:
        """Shapes of the unconstrained draws of one datum, of the sites that are continuous."""
        sites = {name: support for name, support in self.supports.items() if not support.is_discrete}
        return {name: unconstrained(support, self.shapes[name]) for name, support in sites.items()}


def argument_names(program: Any) -> dict[str, bool]:
    """Return the names of a program's arguments, and whether each must be given."""
    parameters = inspect.signature(program.model).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {one.name: one.default is one.empty for one in parameters if one.kind in kinds}


def coordinates(site: str, shape: torch.Size) -> list[str]:
    """Return the names of a site's elements, as ``z[3]``; of one alone, the site's."""
    if not shape.numel() or shape == (1,) * len(shape):
        return [site]
    return [f"{site}[{','.join(map(str, index))}]" for index in product(*map(range, shape))]


def point_of(program: Any) -> Tensor:
    """Return a tensor of a program's own, whose dtype and device its data are given."""
    tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules_of(program))
    own = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if own is None:
        own = next((value for _, value in pyro.get_param_store().named_parameters()), torch.zeros(()))
    return own


def arguments(program: Any, data: Any) -> tuple[Tensor, ...]:
    """Return the data as the arguments of a program, floats in its dtype, on its device.

    Arguments:
        program: A program.
        data: A tensor, a tuple of the arguments, or a dictionary of them by name.

    Raises:
        ValueError: If an argument is missing or unknown, or they are of different numbers of rows, or of none.
    """
    if isinstance(data, Mapping):
        names = argument_names(program)
        unknown = [name for name in data if name not in names]
        absent = [name for name, needed in names.items() if needed and name not in data]
        if unknown or absent:
            raise ValueError(
                f"Expected data by the names of the model's arguments, {', '.join(names)}; got {', '.join(data)}."
            )
        data = tuple(data[name] for name in names if name in data)
    data = data if isinstance(data, tuple | list) else (data,)
    names = argument_names(program)
    if names and not sum(names.values()) <= len(data) <= len(names):
        raise ValueError(f"Expected data for the model's arguments, {', '.join(names)}; got {len(data)} of them.")
    point = point_of(program)
    try:
        tensors = tuple(torch.as_tensor(column) for column in data)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"Expected tensors; got {', '.join(type(column).__name__ for column in data)}.") from error
    sizes = {len(column) if column.dim() else 0 for column in tensors}
    if sizes == {0}:
        raise ValueError("Expected at least 1 image; got none.")
    if len(sizes) != 1:
        raise ValueError(f"Expected arguments with as many rows each; got {[tuple(each.shape) for each in tensors]}.")
    return tuple(
        each.to(point) if each.is_floating_point() and each.dtype != point.dtype else each.to(point.device)
        for each in tensors
    )


def structure(program: Any, data: tuple[Tensor, ...], given: Draws | None = None) -> Structure:
    """Return what a program is made of, from a run on a few of its data.

    A program that runs on all of its data only, as one with a parameter for each datum, is run on these.

    Raises:
        ValueError: If a plate's rows are not those of the data, or a latent site is not to be had from the guide.
    """
    auto = check_own_rows(program, len(data[0]))
    few = tuple(column[:FEW] for column in data)
    if auto:  # its first run decides for how many rows it has parameters
        return _structure(program, data, data, given or {}, whole=True)
    if len(data[0]) > FEW:
        try:
            return _structure(program, few, data, given or {})
        except (RuntimeError, IndexError, ValueError):
            return _structure(program, data, data, given or {}, whole=True)
    return _structure(program, few, data, given or {})


@torch.no_grad()
def _structure(program: Any, few: tuple, data: tuple, given: Draws, whole: bool = False) -> Structure:
    missing = any(column.is_floating_point() and bool(column.isnan().any()) for column in data)
    model = Missing()(program.model) if missing else program.model
    rows = OwnRows()
    depth, (model_trace, guide_trace) = probe(rows(model), rows(program.guide), few, {})
    summed = marked(model_trace, guide_trace, rows.marks)
    terms = tuple(loss_terms(model_trace, guide_trace))
    drawn = latent(model_trace)
    for name in drawn:
        if name not in guide_trace and name not in summed:
            raise ValueError(
                f"Expected a guide that draws every latent site; {name!r} is in the model alone. Draw it in the guide, "
                "or observe it."
            )
    say_loss_terms([*terms])
    frame = _data_plate(model_trace, len(few[0]))
    dim = frame.dim if frame else 0
    inside = {name: site for name, site in drawn.items() if frame is None or frame.name in _names(site)}
    outside = {name: site for name, site in drawn.items() if name not in inside}
    seen = {name: site for name, site in observed(model_trace).items() if frame is None or frame.name in _names(site)}
    supports = {name: site["fn"].support for name, site in inside.items()}
    hidden = {name: site for name, site in latent(guide_trace).items() if name not in drawn and name not in terms}
    # What an autoguide draws a site outside from is given with it.
    of_outside = {f"{name}_unconstrained" for name in outside} if inside else {*hidden}
    return Structure(
        depth=depth,
        dim=dim,
        size=frame.full_size if frame and frame.full_size != frame.size else len(data[0]),
        scale=mean_scale(next(iter(seen.values()))) if seen else 1.0,
        supports=supports,
        shapes={name: _of_one(site, depth, dim) for name, site in inside.items()},
        observed={name: _of_one(site, depth, dim) for name, site in seen.items()},
        laws={name: site["fn"].support for name, site in seen.items()},
        summed=summed,
        alone=tuple(name for name in summed if name not in guide_trace),
        outside={n: (site["value"].shape, site["value"].dim() - site["fn"].event_dim) for n, site in outside.items()},
        terms=(*terms, *(name for name in hidden if outside and name in of_outside)),
        hidden=tuple(name for name in latent(guide_trace) if name not in drawn and name not in of_outside),
        missing=missing,
        unseen=any(isinstance(one["mask"], Tensor) and one["fn"].has_enumerate_support for one in seen.values()),
        whole=whole,
        fixed=all(map(is_fixed, supports.values())),
    )


def _data_plate(trace: Trace, rows: int) -> Any:
    """Return the plate of the data: of those of the observed sites the one that has their rows; None if none is."""
    sites = [*observed(trace).values()] or [*samples(trace).values()]
    shared = frozenset.intersection(*(frozenset(f for f in plates(site) if f.vectorized) for site in sites))
    fit = sorted((frame for frame in shared if frame.size == rows), key=lambda frame: (frame.name != "data", frame.dim))
    if not fit and shared:
        frame = min(shared, key=lambda frame: frame.dim)
        raise ValueError(
            f"Expected a plate over the {rows} rows of the data; plate {frame.name!r} is of {frame.size}. Write it as "
            f"pyro.plate({frame.name!r}, x.shape[0]), and give the program the rows that it is to see."
        )
    return fit[0] if fit else None


def _names(site: Any) -> set[str]:
    return {frame.name for frame in plates(site)}


def _of_one(site: Any, depth: int, dim: int) -> torch.Size:
    """Return the shape of a site's value for one datum, other plates first, all of them."""
    value, event_dim = site["value"], site["fn"].event_dim
    batch = (1,) * (depth - (value.dim() - event_dim)) + tuple(value.shape[: value.dim() - event_dim])
    batch = batch[: len(batch) + dim] + batch[len(batch) + dim + 1 :] if dim else batch
    return torch.Size((*batch, *value.shape[value.dim() - event_dim :]))
