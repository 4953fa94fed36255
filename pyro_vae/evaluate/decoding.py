"""Decoding of any program: the latents at the centre of the guide, and the mean of an observed site at latents."""

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.conditional import mean
from pyro_vae.program import Draws, Posterior, argument_names
from pyro_vae.program.running import number_of


class Centre(Messenger):
    """A handler that replaces each draw by the mean of its distribution, or by the most probable class."""

    def _pyro_sample(self, msg: Any) -> None:
        if not (msg["is_observed"] or msg["done"] or site_is_subsample(msg)):
            msg["value"], msg["done"] = _centre(msg["fn"]), True


def _centre(distribution: Any) -> Tensor:
    """Return the most probable class of a distribution of classes, else the mean: ``(*batch, *event)``."""
    if not distribution.has_enumerate_support:
        return mean(distribution)
    classes = distribution.enumerate_support()
    best = distribution.log_prob(classes).argmax(0)
    return classes.gather(0, best.reshape(1, *best.shape, *(1,) * distribution.event_dim).expand_as(classes[:1]))[0]


def guide_latents(rows: Posterior, num: int | None = None) -> Draws:
    """Return the latent sites of the guide: ``num`` draws, or with None the centre of each distribution in turn."""
    names = [name for name in rows.structure.supports if name not in rows.structure.model_only]
    if num is not None:
        return rows.runner.values_of(rows.runner.run(rows.program.guide, num), names)
    with Centre():
        return rows.runner.values_of(rows.runner.run(rows.program.guide, 1), names)


def decode(rows: Posterior, latents: Draws, site: str) -> Tensor:
    """Return the mean of an observed site at latents, ``(K, B, *rest)``; sites without values are at their centre."""
    with Centre():
        nodes: Any = rows.runner.run(rows.program.model, number_of(latents), latents).nodes
    return rows.runner.to_rows(mean(nodes[site]["fn"]))


def site_of_x(posterior: Posterior) -> str:
    """Return the observed site with the name of the model's first argument, else the first observed site."""
    first, observed = [*argument_names(posterior.program)][0], [*posterior.structure.observed]
    if not observed:
        raise ValueError("Expected a model that observes x, as pyro.sample('x', ..., obs=x); it has no observed site.")
    return first if first in observed else observed[0]
