"""The structure of a program: the plate of the data, the sites, and the reasons why a datum has no density."""

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
from pyro_vae.traces.enumeration import sites_to_sum
from pyro_vae.traces.particles import CheckRows, probe
from pyro_vae.traces.sites import check_guide, is_fixed, latent, loss_terms, mean_scale, observed, plates, samples

Draws = dict[str, Tensor]  # site -> (K, B, *rest): draw, datum, one draw of one datum
FEW = 3  # rows that a program is probed on


class Program(Protocol):
    """A model and a guide, such as a VAE; both take the same arguments, and the first dimension indexes the data."""

    def model(self, *data: Tensor) -> Any:
        """Draw the latent sites and observe the data."""

    def guide(self, *data: Tensor) -> Any:
        """Draw the latent sites given the data."""


@dataclass(frozen=True, eq=False)
class Structure:
    """The structure of a program, read from one run."""

    depth: int  # how deep the plates nest
    dim: int  # dimension of the data's plate, counted from the right; 0 without one
    size: int  # of the whole data set, according to that plate
    scale: float  # of the observed sites: 1 unless the plate is subsampled or the program scaled
    supports: dict[str, Constraint]  # of each latent site of the model, in the model's order
    shapes: dict[str, torch.Size]  # of one draw of one datum, for the same sites
    observed: dict[str, torch.Size]  # of one datum, for each observed site
    observed_supports: dict[str, Constraint]
    summed: tuple[str, ...]  # discrete sites to sum out: marked, or in the model alone
    model_only: tuple[str, ...]  # the summed sites that are in the model alone
    outside: dict[str, tuple[torch.Size, int]]  # shapes and batch dimensions of latent sites outside the data's plate
    loss_terms: tuple[str, ...]  # sites of the guide that are terms of the loss alone
    auxiliary: tuple[str, ...]  # draws of the guide that the model does not have
    missing: bool  # whether elements of the data are missing
    masked_classes: bool  # whether classes are observed under a mask
    all_rows: bool  # whether the program runs only on all its rows together
    fixed_supports: bool  # whether no support depends on a draw

    @property
    def continuous(self) -> dict[str, torch.Size]:
        """The shapes of one datum's unconstrained draws, for the continuous sites."""
        shapes = {name: self.shapes[name] for name, support in self.supports.items() if not support.is_discrete}
        for name, shape in shapes.items():
            # A bound for each row, as of Uniform(0, z), has a shape that is not the event's.
            if of_element(self.supports[name]).event_dim:
                shapes[name] = torch.Size(bijection(self.supports[name]).inverse_shape(shape))
        return shapes


def structure(program: Any, data: tuple[Tensor, ...]) -> Structure:
    """Return a program's structure from a run on a few rows, or on all rows if a run on a few rows fails."""
    if not check_autoguide_rows(program, len(data[0])):  # the first run of an autoguide fixes its number of rows
        try:
            return _structure(program, tuple(column[:FEW] for column in data), data)
        except (RuntimeError, IndexError, ValueError):
            if len(data[0]) <= FEW:
                raise
    return _structure(program, data, data, all_rows=True)


@torch.no_grad()
def _structure(program: Any, few: tuple, data: tuple, all_rows: bool = False) -> Structure:
    missing = any(column.is_floating_point() and bool(column.isnan().any()) for column in data)
    model = Missing()(program.model) if missing else program.model
    rows = CheckRows()
    depth, (model_trace, guide_trace) = probe(rows(model), rows(program.guide), few, {})
    summed = sites_to_sum(model_trace, guide_trace, rows.marks)
    check_guide(model_trace, guide_trace, summed)
    terms, drawn = loss_terms(model_trace, guide_trace), latent(model_trace)
    frame = _data_plate(model_trace, len(few[0]))
    dim = frame.dim if frame else 0

    def in_plate(sites: dict[str, Any]) -> dict[str, Any]:
        return {n: site for n, site in sites.items() if not frame or frame.name in [f.name for f in plates(site)]}

    inside, of_data = in_plate(drawn), in_plate(observed(model_trace))
    outside = {name: site for name, site in drawn.items() if name not in inside}
    supports = {name: site["fn"].support for name, site in inside.items()}
    auxiliary = {name: site for name, site in latent(guide_trace).items() if name not in drawn and name not in terms}
    # The draw from which an autoguide computes a site outside the plate is given together with the site.
    of_outside = {f"{name}_unconstrained" for name in outside} if inside else {*auxiliary}
    return Structure(
        depth=depth,
        dim=dim,
        size=frame.full_size if frame and frame.full_size != frame.size else len(data[0]),
        scale=mean_scale(next(iter(of_data.values()))) if of_data else 1.0,
        supports=supports,
        shapes={name: _datum_shape(site, depth, dim) for name, site in inside.items()},
        observed={name: _datum_shape(site, depth, dim) for name, site in of_data.items()},
        observed_supports={name: site["fn"].support for name, site in of_data.items()},
        summed=summed,
        model_only=tuple(name for name in summed if name not in guide_trace),
        outside={n: (site["value"].shape, site["value"].dim() - site["fn"].event_dim) for n, site in outside.items()},
        loss_terms=(*terms, *(name for name in auxiliary if outside and name in of_outside)),
        auxiliary=tuple(name for name in latent(guide_trace) if name not in drawn and name not in of_outside),
        missing=missing,
        masked_classes=any(
            isinstance(site["mask"], Tensor) and site["fn"].has_enumerate_support for site in of_data.values()
        ),
        all_rows=all_rows,
        fixed_supports=all(map(is_fixed, supports.values())),
    )


def _data_plate(trace: Trace, rows: int) -> Any:
    """Return the plate of the data's rows, around all observed sites; None if there is no plate."""
    sites = [*observed(trace).values()] or [*samples(trace).values()]
    shared = frozenset.intersection(*(frozenset(f for f in plates(site) if f.vectorized) for site in sites))
    fit = sorted((frame for frame in shared if frame.size == rows), key=lambda frame: (frame.name != "data", frame.dim))
    if not fit and shared:
        frame = min(shared, key=lambda frame: frame.dim)
        raise ValueError(
            f"Expected a plate over the {rows} rows of the data; plate {frame.name!r} has size {frame.size}. Write it "
            f"as pyro.plate({frame.name!r}, x.shape[0]), and pass the program the rows of the plate."
        )
    return fit[0] if fit else None


def _datum_shape(site: Any, depth: int, dim: int) -> torch.Size:
    """Return the shape of a site's value for one datum, with all other plates first."""
    value, event_dim = site["value"], site["fn"].event_dim
    batch = (1,) * (depth - (value.dim() - event_dim)) + tuple(value.shape[: value.dim() - event_dim])
    batch = batch[: len(batch) + dim] + batch[len(batch) + dim + 1 :] if dim else batch
    return torch.Size((*batch, *value.shape[value.dim() - event_dim :]))


def autoguide_rows(program: Any) -> int | None:
    """Return the number of rows that a program's autoguide has parameters for; None if there are no such rows."""
    for module in modules_of(program):
        if isinstance(module, AutoGuide) and module.prototype_trace is not None:
            args = module.prototype_trace.nodes["_INPUT"]["args"]
            sites = latent(prune_subsample_sites(module.prototype_trace.copy())).values()
            sizes = {frame.size for site in sites for frame in plates(site) if frame.vectorized}
            if args and len(args[0]) in sizes:
                return len(args[0])
    return None


def check_autoguide_rows(program: Any, number: int) -> bool:
    """Refuse ``number`` rows if an autoguide has parameters for more or fewer; return whether there is an autoguide."""
    rows = autoguide_rows(program)
    if rows not in (None, number):
        raise ValueError(
            f"Expected the {rows} rows that the autoguide has parameters for; got {number}. Write a guide that reads "
            "the data to use other rows."
        )
    return any(isinstance(module, AutoGuide) for module in modules_of(program))


def bijection(support: Constraint) -> Any:
    """Return the map from real numbers to a support; torch has no map for a mixture: use the components' map."""
    mixture: Any = support
    is_mixture = isinstance(mixture, constraints.MixtureSameFamilyConstraint)
    return biject_to(mixture.base_constraint if is_mixture else support)


def coordinates(site: str, shape: torch.Size) -> list[str]:
    """Return the names of a site's elements, such as ``z[3]``; the site's name if the site has one element."""
    if not shape.numel() or shape == (1,) * len(shape):
        return [site]
    return [f"{site}[{','.join(map(str, index))}]" for index in product(*map(range, shape))]
