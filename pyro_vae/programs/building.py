"""Parts from classes, and one sentence for a class that is no part."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.conditional import Conditional, Family
from pyro_vae.networks import Joint

Sizes = Sequence[int]


def shape_of(event_shape: Sizes, **sizes: int) -> tuple[int, ...]:
    """Return the shape of x as whole numbers; refuse sizes that are not positive."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"Expected at least 1 of {name}; got {name} = {size}.")
    return tuple(map(int, event_shape))


def family_of(part: str, make: Callable[..., Any], event: Any) -> Family:
    """Make a likelihood or a guide family over an event; refuse one whose law takes other parameters than it says."""
    family = build_part(part, make, event)
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
    return family


def conditional(network: Callable[..., Any], family: Family, *inputs: Sizes, **options: Any) -> Conditional:
    """Make p(a | b, ...) of a network's class, for inputs of these shapes, the further ones vectors."""
    make, out = partial(build_part, "network", network), (family.params, *family.event)
    return Conditional(Joint(make, inputs, out) if inputs[1:] else make(inputs[0], out), family, **options)


def of_image(network: Callable[..., Any], family: Family, p_x: Family, *beside: Sizes) -> Conditional:
    """Make q(a | x, ...), x as the likelihood has it: zeros stand for what is missing, until training starts."""
    fill = torch.zeros(p_x.event)
    return conditional(network, family, p_x.event, *beside, fill=fill, features=p_x.features)


def attach(prior: nn.Module, latent: int, encoder: Conditional, seen: Sizes) -> None:
    """Hand a prior that takes one the encoder, which sees inputs of shape ``seen``; refuse another law."""
    name = type(prior).__name__
    if take := getattr(prior, "attach", None):
        if isinstance(encoder.network, Joint):
            raise ValueError(
                f"Expected a prior that needs no encoder, since the encoder here has several inputs; got {name}."
            )
        take(encoder, seen)
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


def build_part(name: str, part: Callable[..., Any], *shapes: Any) -> Any:
    """Make a part of its class, or a partial of one, for these shapes."""
    try:
        return part(*shapes)
    except TypeError as error:
        call = f"{name}({', '.join(map(str, shapes))})"
        raise ValueError(f"Expected a {name} that can be made by {call}; got: {error}.") from error


def labels_of(x: Tensor, y: Tensor | None = None) -> Any:
    """Return the labels, -1 where there is none, and which are seen: none without y."""
    y = torch.full(x.shape[:1], -1, device=x.device) if y is None else y
    return y, y >= 0
