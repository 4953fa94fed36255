"""Parts from classes, and one sentence for a class that is no part."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.conditional import Conditional, Family, mean
from pyro_vae.networks import Joint

Sizes = Sequence[int]


def shape_of(event_shape: Sizes, **sizes: int) -> tuple[int, ...]:
    """Return the shape of x as whole numbers; refuse sizes that are not positive."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"Expected at least 1 of {name}; got {name} = {size}.")
    return tuple(map(int, event_shape))


def family_of(name: str, part: Callable[..., Any], event: Any) -> Family:
    """Make a likelihood or a guide family over an event, and check it."""
    family = build_part(name, part, event)
    check_family(name, family)
    return family


def conditional(network: Callable[..., Any], family: Family, *inputs: Sizes, **options: Any) -> Conditional:
    """Make p(a | b, ...) of a network's class, for inputs of these shapes, the further ones vectors."""
    make, out = partial(build_part, "network", network), (family.params, *family.event)
    return Conditional(Joint(make, inputs, out) if inputs[1:] else make(inputs[0], out), family, **options)


def attach(prior: nn.Module, latent: int, encoder: Conditional, seen: Sizes) -> None:
    """Hand a prior that takes one the encoder, which sees inputs of shape ``seen``; check the prior."""
    if take := getattr(prior, "attach", None):
        if isinstance(encoder.network, Joint):
            raise ValueError(
                f"Expected a prior that needs no encoder, since the encoder here has several inputs; got "
                f"{type(prior).__name__}."
            )
        take(encoder, seen)
    check_prior(prior, latent)


def one_hot(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """Return labels ``(*,)`` as vectors ``(*, classes)``, of which one element is 1, in the dtype of ``like``.

    Of a label that is no class all are 0: nothing here looks at values, so that a step can be a graph.
    """
    return (y.unsqueeze(-1) == torch.arange(classes, device=y.device)).to(like)


def of_labels(program: Any, x: Tensor, y: Tensor, number: int) -> dict[str, tuple[Tensor, str]]:
    """Return samples of each label, at the same noise, and the z of each image under each label, as pictures."""

    def drawn(label: int) -> Tensor:
        with torch.random.fork_rng():
            return program.generate(len(x), label)

    style, labels = mean(program.encoder(x, program.vector(y))), range(number)
    held = [mean(program.decoder(style, program.vector(torch.full_like(y, label)))) for label in labels]
    return {
        "samples": (torch.stack([*map(drawn, labels)]), "Samples: a row for each label, a column for each style"),
        "styles": (torch.stack([x, *held]), "Images above; below, their style under each label"),
    }


def check_labels(y: Tensor, classes: int, argument: str, least: int = 0) -> None:
    """Refuse labels that are no classes."""
    low, high = int(y.min()), int(y.max())
    if not least <= low <= high < classes:
        unknown = ", or -1 where there is none" if least < 0 else ""
        raise ValueError(
            f"Expected labels y from 0 to {classes - 1}, {argument} = {classes}{unknown}; got {low} to {high}. "
            f"Build the program with more of {argument}, or count the labels from 0."
        )


def build_part(name: str, part: Callable[..., Any], *shapes: Any) -> Any:
    """Make a part of its class, or a partial of one, for these shapes."""
    try:
        return part(*shapes)
    except TypeError as error:
        call = f"{name}({', '.join(map(str, shapes))})"
        raise ValueError(f"Expected a {name} that can be made by {call}; got: {error}.") from error


def check_prior(prior: nn.Module, latent: int) -> None:
    """Refuse a prior that returns no distribution over ``(latent,)``."""
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
    """Refuse a likelihood or a guide that is no family, or whose law does not take as many parameters as it says."""
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
