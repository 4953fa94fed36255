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
Site = Any  # a node of a trace: one of Pyro's messages
PARTICLES = "num_particles_vectorized"  # Pyro's name of the plate


def samples(trace: Trace) -> dict[str, Site]:
    """Return the sample sites in order, without ``pyro.deterministic`` sites, which have no density."""
    nodes = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {name: site for name, site in nodes.items() if not (site["infer"] or {}).get("_deterministic")}


def latent(trace: Trace) -> dict[str, Site]:
    """Return the latent sites."""
    return {name: site for name, site in samples(trace).items() if not site["is_observed"]}


def observed(trace: Trace) -> dict[str, Site]:
    """Return the observed sites."""
    return {name: site for name, site in samples(trace).items() if site["is_observed"]}


def loss_terms(model_trace: Trace, guide_trace: Trace) -> dict[str, Site]:
    """Return the guide's sites that are no factor of q(z | x): observed sites, and draws that the model lacks.

    Draws marked ``infer={"is_auxiliary": True}`` are factors of q(z | x). Unmarked draws would make q(z | x) a mixture.
    """
    factors = density_sites(model_trace, guide_trace)
    return {name: site for name, site in samples(guide_trace).items() if name not in factors}


def density_sites(model_trace: Trace, guide_trace: Trace) -> dict[str, Site]:
    """Return the guide's sites that are factors of q(z | x); :func:`loss_terms` returns all other sites."""
    sites, of_model = latent(guide_trace), latent(model_trace)
    return {name: site for name, site in sites.items() if name in of_model or (site["infer"] or {}).get("is_auxiliary")}


def check_guide(model_trace: Trace, guide_trace: Trace, summed: Container[str]) -> None:
    """Refuse a latent site that is neither in the guide nor in ``summed``; warn once of unmarked loss terms."""
    for name in latent(model_trace):
        if name not in guide_trace and name not in summed:
            raise ValueError(
                f"Expected the guide to draw every latent site; {name!r} is in the model alone. Draw it in the guide, "
                "or observe it."
            )
    terms = loss_terms(model_trace, guide_trace)
    if names := [name for name, site in terms.items() if not (site["infer"] or {}).get("is_loss")]:
        _warn_of_unmarked(*names)


@cache
def _warn_of_unmarked(*names: str) -> None:
    warnings.warn(
        f"The guide's {', '.join(map(repr, names))} is not in the model. It is a term of the training loss and part of "
        "no density. Mark it infer={'is_auxiliary': True} if it is a factor of q(z | x), else infer={'is_loss': True}.",
        stacklevel=5,
    )


def enumerated(sites: dict[str, Site]) -> dict[str, int]:
    """Return a dictionary from each enumerated site to its dimension of classes, where -1 is the last dimension."""
    dims = {name: (site["infer"] or {}).get("_enumerate_dim") for name, site in sites.items()}
    return {name: dim for name, dim in dims.items() if dim is not None}


def plates(site: Site) -> list[Any]:
    """Return the plates around a site, vectorized or in a loop, without the plate of the particles."""
    return [frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES]


def family(site: Site) -> str:
    """Return the name of a site's distribution."""
    return type(inner(site["fn"])).__name__


def is_delta(site: Site) -> bool:
    """Return whether a site's distribution is a point mass."""
    return isinstance(inner(site["fn"]), Delta)


def inner(fn: Any) -> Any:
    """Return a distribution without the ``to_event``, ``mask`` and ``expand`` around it."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def mean_scale(site: Site) -> float:
    """Return a site's scale as a number: the mean of a tensor."""
    return torch.as_tensor(site["scale"], dtype=torch.float64).mean().item()


def same(a: float | Tensor | None, b: float | Tensor | None) -> bool | Tensor:
    """Return whether two scales or masks are equal, for each element of a tensor; a mask of None counts as True."""
    if a is b or not (isinstance(a, Tensor) or isinstance(b, Tensor)):
        return a is b or a == b
    one, other = (True if value is None else value for value in (a, b))
    return torch.as_tensor(one) == torch.as_tensor(other)


def differ(agree: bool | Tensor) -> bool:
    """Return whether :func:`same` gave False; read a tensor only under Pyro's validation, never in a graph."""
    return agree is False or (isinstance(agree, Tensor) and is_validation_enabled() and not agree.all())


def is_fixed(support: Constraint) -> bool:
    """Return whether a support is independent of all draws: the support holds no tensor."""
    return not any(isinstance(value, Tensor) for value in vars(of_element(support)).values())


def check_support(model_trace: Trace) -> None:
    """Refuse unmasked observations outside a fixed support, even if Pyro's validation is off."""
    for name, site in observed(model_trace).items():
        support, value = site["fn"].support, site["value"]
        mask = torch.as_tensor(True if site["mask"] is None else site["mask"])
        if is_fixed(support) and not (support.check(value) | ~mask).all():
            raise ValueError(
                f"Expected {name!r} in the support of its distribution, {of_element(support)}; got values in "
                f"[{value.min().item():g}, {value.max().item():g}]. Use other data, or another distribution."
            )
