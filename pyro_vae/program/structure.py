"""What a program is made of: its data's plate, its sites, and what is not fit for a density of each datum."""

from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

from pyro_vae.data.supports import of_element
from pyro_vae.missing import Missing
from pyro_vae.seeds import modules_of
from pyro_vae.traces.enumeration import marked
from pyro_vae.traces.particles import OwnRows, probe
from pyro_vae.traces.sites import check_guide, is_fixed, latent, loss_terms, mean_scale, observed, plates, samples

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
    """What one run of a program shows."""

    depth: int  # how deep its plates nest
    dim: int  # of the data's plate, counted from the right; 0 where there is none
    size: int  # of the whole data set, as that plate has it
    scale: float  # of what is observed: 1 unless the plate is subsampled or the program scaled
    supports: dict[str, Constraint]  # of each latent site of the model, in its order
    shapes: dict[str, torch.Size]  # of one draw of one datum, for the same sites
    observed: dict[str, torch.Size]  # the same of each observed site
    laws: dict[str, Constraint]  # the supports of the observed sites
    summed: tuple[str, ...]  # discrete sites to sum out: marked, or in the model alone
    alone: tuple[str, ...]  # those that the model alone has
    outside: dict[str, tuple[torch.Size, int]]  # shapes and batch dimensions of latent sites outside the data's plate
    terms: tuple[str, ...]  # sites of the guide that are terms of the loss alone
    hidden: tuple[str, ...]  # draws of the guide that the model does not have
    missing: bool  # whether elements of the data are missing
    unseen: bool  # whether classes are observed under a mask
    whole: bool  # whether the program runs on all of its rows together only
    fixed: bool  # whether no support depends on other draws

    @property
    def continuous(self) -> dict[str, torch.Size]:
        """Shapes of the unconstrained draws of one datum, of the sites that are continuous."""
        shapes = {name: self.shapes[name] for name, support in self.supports.items() if not support.is_discrete}
        for name, shape in shapes.items():
            # A bound of each row, as of Uniform(0, z), has a shape that is not the event's.
            if of_element(self.supports[name]).event_dim:
                shapes[name] = torch.Size(bijection(self.supports[name]).inverse_shape(shape))
        return shapes


def structure(program: Any, data: tuple[Tensor, ...]) -> Structure:
    """Return what a program is made of, from a run on a few of its data, or on all if it runs on all of them only."""
    if not check_own_rows(program, len(data[0])):  # the first run of an autoguide decides how many rows it is for
        try:
            return _structure(program, tuple(column[:FEW] for column in data), data)
        except (RuntimeError, IndexError, ValueError):
            if len(data[0]) <= FEW:
                raise
    return _structure(program, data, data, whole=True)


@torch.no_grad()
def _structure(program: Any, few: tuple, data: tuple, whole: bool = False) -> Structure:
    missing = any(column.is_floating_point() and bool(column.isnan().any()) for column in data)
    model = Missing()(program.model) if missing else program.model
    rows = OwnRows()
    depth, (model_trace, guide_trace) = probe(rows(model), rows(program.guide), few, {})
    summed = marked(model_trace, guide_trace, rows.marks)
    check_guide(model_trace, guide_trace, summed)
    terms, drawn = loss_terms(model_trace, guide_trace), latent(model_trace)
    frame = _data_plate(model_trace, len(few[0]))
    dim = frame.dim if frame else 0

    def in_plate(sites: dict[str, Any]) -> dict[str, Any]:
        return {n: one for n, one in sites.items() if not frame or frame.name in [other.name for other in plates(one)]}

    inside, seen = in_plate(drawn), in_plate(observed(model_trace))
    outside = {name: site for name, site in drawn.items() if name not in inside}
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


def _of_one(site: Any, depth: int, dim: int) -> torch.Size:
    """Return the shape of a site's value for one datum, other plates first, all of them."""
    value, event_dim = site["value"], site["fn"].event_dim
    batch = (1,) * (depth - (value.dim() - event_dim)) + tuple(value.shape[: value.dim() - event_dim])
    batch = batch[: len(batch) + dim] + batch[len(batch) + dim + 1 :] if dim else batch
    return torch.Size((*batch, *value.shape[value.dim() - event_dim :]))


def own_rows(program: Any) -> int | None:
    """Return for how many rows an autoguide of a program has parameters of their own; None where none has."""
    for part in modules_of(program):
        if isinstance(part, AutoGuide) and part.prototype_trace is not None:
            given = part.prototype_trace.nodes["_INPUT"]["args"]
            sites = latent(prune_subsample_sites(part.prototype_trace.copy())).values()
            sizes = {frame.size for site in sites for frame in plates(site) if frame.vectorized}
            if given and len(given[0]) in sizes:
                return len(given[0])
    return None


def check_own_rows(program: Any, number: int) -> bool:
    """Refuse another number of rows than an autoguide was made for; return whether the program has one."""
    rows = own_rows(program)
    if rows not in (None, number):
        raise ValueError(
            f"Expected the {rows} rows that the autoguide was made for, since it has parameters for each; got "
            f"{number}. Write a guide that reads the data, for others."
        )
    return any(isinstance(part, AutoGuide) for part in modules_of(program))


def bijection(support: Constraint) -> Any:
    """Return the map from real numbers to a support; a mixture's is that of its parts, which torch does not say."""
    parts: Any = support
    return biject_to(parts.base_constraint if isinstance(parts, constraints.MixtureSameFamilyConstraint) else support)


def coordinates(site: str, shape: torch.Size) -> list[str]:
    """Return the names of a site's elements, as ``z[3]``; of one alone, the site's."""
    if not shape.numel() or shape == (1,) * len(shape):
        return [site]
    return [f"{site}[{','.join(map(str, index))}]" for index in product(*map(range, shape))]
