"""Latent dimensions of a program: which are active, where the codes lie, and images along a dimension."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae import evaluate
from pyro_vae.conditional import mean, stddev
from pyro_vae.evaluate.codes import draws_for_means
from pyro_vae.program import Draws, Posterior, coordinates
from pyro_vae.program.checks import sources
from pyro_vae.report.closing import mean_kl

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
    activity, kl = evaluate.latent_activity(target.program, target), mean_kl(target.program, target)
    order = activity.nan_to_num(-1.0).argsort(descending=True).tolist()
    means = evaluate.guide_means(target, draws_for_means(target)).double().cpu()
    return Codes(
        names=[names[i] for i in order],
        activity=[activity[i].item() for i in order],
        kl=None if kl is None or len(kl) != len(names) else [kl[i].item() for i in order],
        points=np.column_stack([means[:, order[:2]].numpy(), np.zeros((len(means), max(0, 2 - len(order))))]),
    )


def walk(target: Posterior, chosen: Sequence[str], span: float = SPAN, steps: int = STEPS) -> Tensor | None:
    r"""Vary one latent dimension at a time; return the mean of x, of shape ``(len(chosen), steps, B, *event)``.

    The dimension runs from ``-span`` to ``span`` standard deviations of the prior around the prior's mean. The other
    dimensions stay at the guide's mean. A site below another one has the prior given the guide's means above it. The
    result is None if x has no such mean, or the codes are discrete.
    """
    runner, shapes = target.runner, target.structure.shapes
    sites = {name: shapes[name] for name in shapes if not {*coordinates(name, shapes[name])}.isdisjoint(chosen)}
    continuous = [name for name in shapes if not target.structure.supports[name].is_discrete]
    if evaluate.sums_codes(target.program) or not {*sites} <= {*continuous}:
        return None
    means = evaluate.guide_means(target, draws_for_means(target))
    columns = dict(zip(evaluate.dimensions(target), means.T, strict=True))
    centre = {
        name: torch.stack([columns[part] for part in coordinates(name, shapes[name])], -1).reshape(1, -1, *shapes[name])
        for name in continuous
    }
    centre = target.complete(1, centre)
    nodes: Any = runner.run(target.model, 1, centre).nodes
    draws: Draws = {name: value.expand(len(chosen) * steps, *value.shape[1:]).clone() for name, value in centre.items()}
    for name, shape in sites.items():
        prior = nodes[name]["fn"]
        loc, scale = (runner.to_rows(part(prior)).expand(centre[name].shape).flatten(2)[0] for part in (mean, stddev))
        offsets = torch.linspace(-span, span, steps).to(loc).reshape(-1, 1)
        rows = draws[name].reshape(len(chosen), steps, len(target), -1)
        for column, part in enumerate(coordinates(name, shape)):
            if part in chosen:
                rows[chosen.index(part), :, :, column] = loc[:, column] + offsets * scale[:, column]
    nodes = runner.run(target.model, len(chosen) * steps, draws).nodes
    for name in target.structure.observed:
        x = runner.to_rows(mean(nodes[name]["fn"]))
        if x.shape[2:] == target.data[0].shape[1:]:
            return x.expand(len(chosen) * steps, len(target), *x.shape[2:]).unflatten(0, (len(chosen), steps))
    return None


def predictive(target: Posterior, num: int = 100) -> Tensor | None:
    """Draw x given the codes of each datum, from q(z | x) and p(x | z): ``(num, B, *event)``; None if it cannot."""
    draws, _ = target.propose(num)
    try:
        drawn = target.simulate(num, target.complete(num, draws))
        target.at(drawn)
    except ValueError:  # data that cannot be drawn
        return None
    shown = sources(target)
    return torch.stack([target.with_values(drawn, shown, k).data[0] for k in range(num)])
