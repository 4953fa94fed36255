"""The sample sites of a trace."""

import warnings
from collections.abc import Callable, Container
from functools import cache
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent
from torch.distributions.constraints import Constraint

from pyro_vae.data.supports import of_element

Program = Callable[..., Any]
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


def loss_terms(model_trace: Trace, guide_trace: Trace) -> dict[str, Site]:
    """Return the sites of the guide that are no part of log q(z | x): what it observes, and draws of its own.

    Draws that are marked ``infer={"is_auxiliary": True}`` are part of it. Without the others the guide is a mixture.
    """
    ours = density_sites(model_trace, guide_trace)
    return {name: site for name, site in samples(guide_trace).items() if name not in ours}


def density_sites(model_trace: Trace, guide_trace: Trace) -> dict[str, Site]:
    """Return the sites of the guide whose product is q(z | x): the others are :func:`loss_terms`."""
    sites, drawn = latent(guide_trace), latent(model_trace)
    return {name: site for name, site in sites.items() if name in drawn or (site["infer"] or {}).get("is_auxiliary")}


def check_guide(model_trace: Trace, guide_trace: Trace, summed: Container[str]) -> None:
    """Refuse latent sites that are not drawn or summed out; warn once of terms of the loss not marked ``is_loss``."""
    for name in latent(model_trace):
        if name not in guide_trace and name not in summed:
            raise ValueError(
                f"Expected a guide that draws every latent site; {name!r} is in the model alone. Draw it in the guide, "
                "or observe it."
            )
    terms = loss_terms(model_trace, guide_trace)
    if names := [name for name, site in terms.items() if not (site["infer"] or {}).get("is_loss")]:
        _say(*names)


@cache
def _say(*names: str) -> None:
    warnings.warn(
        f"The guide's {', '.join(map(repr, names))} is not in the model: it is trained with, as a term of the loss, "
        "and is left out of every density. Mark it infer={'is_auxiliary': True} if it is part of q(z | x), or "
        "infer={'is_loss': True} if it is not.",
        stacklevel=5,
    )


def enumerated(sites: dict[str, Site]) -> dict[str, int]:
    """Return the sites whose classes are laid out along a dimension, and which one: -1 is the last."""
    dims = {name: (site["infer"] or {}).get("_enumerate_dim") for name, site in sites.items()}
    return {name: dim for name, dim in dims.items() if dim is not None}


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


def same(a: float | Tensor | None, b: float | Tensor | None) -> bool | Tensor:
    """Say whether two scales or masks are the same, by element where they are tensors; a mask of None is True."""
    if a is b or not (isinstance(a, Tensor) or isinstance(b, Tensor)):
        return a is b or a == b
    one, other = (True if value is None else value for value in (a, b))
    return torch.as_tensor(one) == torch.as_tensor(other)


def differ(agree: bool | Tensor) -> bool:
    """Whether what :func:`same` says is no: a tensor is looked at under Pyro's validation, which no graph has."""
    return agree is False or (isinstance(agree, Tensor) and is_validation_enabled() and not agree.all())


def is_fixed(support: Constraint) -> bool:
    """Whether a support is the same whatever is drawn before: it has no tensor in it."""
    return not any(isinstance(value, Tensor) for value in vars(of_element(support)).values())


def check_support(model_trace: Trace) -> None:
    """Refuse what is observed, not masked, and outside a support that no draw changes: Pyro's validation may be off."""
    for name, site in observed(model_trace).items():
        law, value, mask = site["fn"].support, site["value"], site["mask"]
        if is_fixed(law) and not (law.check(value) | ~torch.as_tensor(True if mask is None else mask)).all():
            raise ValueError(
                f"Expected {name!r} in the support of its distribution, {of_element(law)}; got values in "
                f"[{value.min().item():g}, {value.max().item():g}]. Use other data, or another distribution of them."
            )
