"""Build the parts of a program from classes, and refuse a class that does not suit the part."""

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
LOSS: Any = {"is_loss": True}  # marks a term of the loss that is not a density


def shape_of(event_shape: Sizes, **sizes: int) -> tuple[int, ...]:
    """Return the shape of x as integers; refuse a shape or ``sizes`` that are not positive."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"Expected {name} of at least 1; got {size}.")
    return tuple(map(int, event_shape))


def family_of(part: str, make: Callable[..., Any], event: Any) -> Family:
    """Build a likelihood or a guide family over an event; refuse a family whose ``params`` does not fit."""
    family = build_part(part, make, event)
    name = type(family).__name__
    if not isinstance(family, Family):
        raise ValueError(f"Expected the {part} to be a subclass of conditional.Family; got {name}.")
    if not isinstance(getattr(family, "params", None), int):
        raise ValueError(f"Expected {name}.params, the number of parameters of an element; got none. Add params = 1.")
    try:
        inspect.signature(family.distribution).bind(*range(family.params))
    except TypeError as error:
        raise ValueError(
            f"Expected {name}.distribution() to take params = {family.params} arguments; got: {error}."
        ) from error
    return family


def conditional(network: Callable[..., Any], family: Family, *inputs: Sizes, **options: Any) -> Conditional:
    """Build p(a | b, ...) from a network's class, for inputs of the given shapes; inputs after b are vectors."""
    make, out = partial(build_part, "network", network), (family.params, *family.event)
    return Conditional(Joint(make, inputs, out) if inputs[1:] else make(inputs[0], out), family, **options)


def of_image(network: Callable[..., Any], family: Family, p_x: Family, *beside: Sizes) -> Conditional:
    """Build q(a | x, ...), where x has the likelihood's shape; before training, zeros replace missing elements."""
    fill = torch.zeros(p_x.event)
    return conditional(network, family, p_x.event, *beside, fill=fill, features=p_x.features)


def build_prior(make: Callable[..., Any], encoder: Conditional) -> nn.Module:
    """Build a prior of vectors, and pass the encoder and its input's shape to a prior that needs an encoder."""
    (latent,) = encoder.family.event
    prior: nn.Module = build_part("prior", make, latent)
    if take := getattr(prior, "attach", None):
        if isinstance(encoder.network, Joint):
            name = type(prior).__name__
            raise ValueError(f"Expected a prior that needs no encoder, for an encoder of several inputs; got {name}.")
        take(encoder, encoder.network.in_shape if encoder.fill is None else encoder.fill.shape)
    check_prior(prior, (latent,))
    return prior


def check_prior(prior: nn.Module, event_shape: Sizes) -> None:
    """Refuse a prior that returns no distribution, or a distribution of another event shape."""
    name = type(prior).__name__
    try:
        distribution = prior()
    except TypeError as error:
        raise ValueError(f"Expected a prior whose forward() takes no arguments; {name} raised: {error}.") from error
    if not isinstance(distribution, Distribution):
        got = type(distribution)
        raise ValueError(f"Expected a prior whose forward() returns a distribution; {name} returned {got}.")
    if distribution.event_shape != tuple(event_shape):
        raise ValueError(
            f"Expected a prior over event shape {tuple(event_shape)}; got {tuple(distribution.event_shape)}. "
            f"Add .to_event({len(event_shape)}) to the distribution it returns."
        )


def build_part(name: str, part: Callable[..., Any], *shapes: Any) -> Any:
    """Build a part from a class, or from a partial of a class, for the given shapes."""
    try:
        return part(*shapes)
    except TypeError as error:
        call = f"{name}({', '.join(map(str, shapes))})"
        raise ValueError(f"Expected a {name} that accepts the call {call}; got: {error}.") from error


def labels_of(x: Tensor, y: Tensor | None = None) -> Any:
    """Return labels, -1 where unknown, and a mask of the known labels; without y all labels are unknown."""
    y = torch.full(x.shape[:1], -1, device=x.device) if y is None else y
    return y, y >= 0
