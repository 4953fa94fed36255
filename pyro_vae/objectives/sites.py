"""The sample sites of a trace."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent

__all__ = ["family", "is_delta", "latent", "mean_scale", "observed", "plates", "same", "samples"]

Site = Any  # a node of a trace, one of Pyro's messages
PARTICLES = "num_particles_vectorized"  # Pyro's name of the plate


def samples(trace: Trace) -> dict[str, Site]:
    """Return the sample sites, in order, without those of ``pyro.deterministic``, which have no density."""
    nodes = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {name: site for name, site in nodes.items() if not (site["infer"] or {}).get("_deterministic")}


def latent(trace: Trace) -> dict[str, Site]:
    """Return the sites that are drawn."""
    return {name: site for name, site in samples(trace).items() if not site["is_observed"]}


def observed(trace: Trace) -> dict[str, Site]:
    """Return the sites that are observed."""
    return {name: site for name, site in samples(trace).items() if site["is_observed"]}


def plates(site: Site) -> list[Any]:
    """Return the plates that a site is in, loops too, without that of the particles."""
    return [frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES]


def family(site: Site) -> str:
    """Return the name of a site's distribution."""
    return type(_inner(site["fn"])).__name__


def is_delta(site: Site) -> bool:
    """Whether a site is drawn from a point mass."""
    return isinstance(_inner(site["fn"]), Delta)


def _inner(fn: Any) -> Any:
    """Return a distribution without ``to_event``, ``mask`` and ``expand`` around it."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def mean_scale(site: Site) -> float:
    """Return a site's scale as a number, the mean of it where it is a tensor."""
    return torch.as_tensor(site["scale"], dtype=torch.float64).mean().item()


def same(a: float | Tensor | None, b: float | Tensor | None) -> bool:
    """Whether two scales or masks are the same, without a look at the numbers in a tensor."""
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
