"""What is checked of parts when a VAE is built of them, and said in a sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.distributions import Distribution

from pyro_vae.conditional import Family

__all__ = ["check_family", "check_prior", "made"]


def made(name: str, part: Callable[..., Any], *shapes: Any) -> Any:
    """Make a part of a class that was given, or a partial of one.

    Raises:
        ValueError: If it does not take the arguments.
    """
    try:
        return part(*shapes)
    except TypeError as error:
        call = f"{name}({', '.join(map(str, shapes))})"
        raise ValueError(f"Expected a {name} that can be made by {call}; got: {error}.") from error


def check_prior(prior: nn.Module, latent: int) -> None:
    """Check that a prior returns a distribution over ``(latent,)``.

    Raises:
        ValueError: If it does not.
    """
    name = type(prior).__name__
    try:
        law = prior()
    except TypeError as error:
        raise ValueError(f"Expected a prior whose forward() takes no arguments; {name}'s raised: {error}.") from error
    if not isinstance(law, Distribution):
        raise ValueError(f"Expected a prior whose forward() returns a distribution; {name}'s returned {type(law)}.")
    if law.event_shape != (latent,):
        raise ValueError(
            f"Expected a prior over event shape {(latent,)}; got {tuple(law.event_shape)}. "
            "Add .to_event(1) to the distribution it returns."
        )


def check_family(part: str, family: Family) -> None:
    """Check that a likelihood or a guide is a family whose law takes as many parameters as it says.

    Raises:
        ValueError: If it is not.
    """
    name = type(family).__name__
    if not isinstance(family, Family):
        raise ValueError(f"Expected the {part} to be a subclass of conditional.Family; got {name}.")
    if not isinstance(getattr(family, "params", None), int):
        raise ValueError(f"Expected params, how many parameters an element has, as 'params = 1'; {name} has none.")
    try:
        inspect.signature(family.law).bind(*range(family.params))
    except TypeError as error:
        raise ValueError(
            f"Expected {name}.law() to take {family.params} parameters, as its params says; {error}."
        ) from error
