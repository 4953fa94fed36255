"""Latent dimensions of a program: which are active, where the codes lie, and images along a dimension."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae import evaluate
from pyro_vae.conditional import mean, stddev
from pyro_vae.evaluate.codes import draws_for_means
from pyro_vae.evaluate.decoding import decode
from pyro_vae.evaluate.weighing import batches_that_fit
from pyro_vae.program import Draws, Posterior, coordinates
from pyro_vae.program.checks import sources

SPAN, STEPS = 3.0, 13  # standard deviations of the prior to each side, and images along a dimension


@dataclass(frozen=True, eq=False)
class Codes:
    """The latent dimensions, the most active first.

    Attributes:
        names: Names, such as ``z[3]``.
        activity: The variance of each dimension's mean over the data.
        kl: The mean KL of each dimension in nats, or None where it has no closed form.
        points: The guide's means of the two first dimensions, ``(N, 2)``; of a single dimension, ``(N, 2)`` with zeros.
    """

    names: list[str]
    activity: list[float]
    kl: list[float] | None
    points: np.ndarray

    @property
    def active(self) -> list[str]:
        """The names of the active dimensions."""
        return [name for name, activity in zip(self.names, self.activity, strict=True) if activity > 0.01]


def codes(target: Posterior) -> Codes | None:
    """Return the latent dimensions of a program at data; None without dimensions, and for fewer than 2 data."""
    if len(target) < 2 or not (names := evaluate.dimensions(target)):
        return None
    activity, kl = evaluate.latent_activity(target.program, target), evaluate.mean_kl(target.program, target)
    order = activity.nan_to_num(-1.0).argsort(descending=True).tolist()
    means_of = partial(evaluate.guide_means, num=draws_for_means(target))
    means = torch.cat([means_of(rows) for rows in batches_that_fit(target, means_of)]).double().cpu()
    return Codes(
        names=[names[i] for i in order],
        activity=[activity[i].item() for i in order],
        kl=None if kl is None or len(kl) != len(names) else [kl[i].item() for i in order],
        points=np.column_stack([means[:, order[:2]].numpy(), np.zeros((len(means), max(0, 2 - len(order))))]),
    )


def walk(target: Posterior, dimensions: Sequence[str], span: float = SPAN, steps: int = STEPS) -> Tensor | None:
    r"""Vary one latent dimension at a time; return the mean of x, of shape ``(len(dimensions), steps, B, *event)``.

    The dimension runs from ``-span`` to ``span`` standard deviations of the prior around the prior's mean. The other
    dimensions stay at the guide's mean. A site below another one has the prior given the guide's means above it. The
    result is None if x has no such mean, or the codes are discrete.
    """
    runner, shapes = target.runner, target.structure.shapes
    continuous = [name for name in shapes if not target.structure.supports[name].is_discrete]
    places = {part: (name, i) for name in continuous for i, part in enumerate(coordinates(name, shapes[name]))}
    event = target.data[0].shape[1:]
    sites = [site for site, shape in target.structure.observed.items() if shape == event]
    if evaluate.sums_codes(target.program) or not {*dimensions} <= {*places} or not sites:
        return None
    columns = dict(
        zip(evaluate.dimensions(target), evaluate.guide_means(target, draws_for_means(target)).T, strict=True)
    )
    means = {
        name: torch.stack([columns[part] for part in coordinates(name, shapes[name])], -1).reshape(1, -1, *shapes[name])
        for name in continuous
    }
    means = target.complete(1, means)
    priors: Any = runner.run(target.model, 1, means).nodes
    frames = []
    for part in dimensions:
        name, i = places[part]
        loc, scale = (
            runner.to_rows(moment(priors[name]["fn"])).expand(means[name].shape).flatten(2)[0, :, i]
            for moment in (mean, stddev)
        )
        draws: Draws = {name: value.repeat(steps, *[1] * (value.dim() - 1)) for name, value in means.items()}
        offsets = torch.linspace(-span, span, steps).to(loc).unsqueeze(-1)
        draws[name].reshape(steps, len(target), -1)[:, :, i] = loc + offsets * scale
        frames.append(decode(target, draws, sites[0]).expand(steps, len(target), *event))
    return torch.stack(frames)


def predictive(target: Posterior, num: int = 100) -> Tensor | None:
    """Draw x given the codes of each datum, from q(z | x) and p(x | z): ``(num, B, *event)``; None if it cannot."""
    draws, _ = target.propose(num)
    try:
        simulated = target.simulate(num, target.complete(num, draws))
        target.at(simulated)
    except ValueError:  # data that cannot be drawn
        return None
    return torch.stack([target.with_values(simulated, sources(target), k).data[0] for k in range(num)])
