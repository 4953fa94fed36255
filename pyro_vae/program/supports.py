"""The supports of latent sites, and their maps from real numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

from pyro_vae.data.supports import of_element

__all__ = ["bijection", "is_fixed", "unconstrained"]


def bijection(support: Constraint) -> Any:
    """Return the map from real numbers to a support; a mixture's is that of its parts, which torch does not say."""
    parts: Any = support
    return biject_to(parts.base_constraint if isinstance(parts, constraints.MixtureSameFamilyConstraint) else support)


def is_fixed(support: Constraint) -> bool:
    """Whether a support is the same whatever is drawn before: it has no tensor in it."""
    return not any(isinstance(value, Tensor) for value in vars(of_element(support)).values())


def unconstrained(support: Constraint, shape: torch.Size) -> torch.Size:
    """Return the shape of the real numbers that stand for a value of some shape."""
    # A bound of each row, as of Uniform(0, z), has a shape that is not the event's.
    return torch.Size(bijection(support).inverse_shape(shape)) if of_element(support).event_dim else shape
