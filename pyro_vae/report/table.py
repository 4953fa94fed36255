"""The closing table of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch.distributions import constraints

from pyro_vae import evaluate
from pyro_vae.data import Dataset
from pyro_vae.data.supports import Levels, of_element
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.program import point_of, posterior_of
from pyro_vae.seeds import at_test

__all__ = ["table", "written"]


def table(
    program: Any, dataset: Dataset, num_particles: int = 1000, images: int = 1000, seed: int = 0, progress: bool = True
) -> str:
    """Write the ELBO, its two terms and -log p(x) of each split as a table, with what the numbers are.

    Arguments:
        program: A VAE, or any program.
        dataset: What to evaluate it on.
        num_particles: Draws per datum for -log p(x).
        images: How many images of each split, the first ones.
        seed: Seed of the draws; torch's own state is left as it was.
        progress: Whether to show a progress bar.

    Returns:
        Nats per datum, mean and standard error over the images, from :func:`pyro_vae.evaluate.summary`.
    """
    points = {name: part.to(point_of(program).device) for name, part in dataset.splits.items()}
    values = {
        name: evaluate.per_image(program, part, num_particles, images, seed, progress) for name, part in points.items()
    }
    return written(program, dataset, values, num_particles)


def written(program: Any, dataset: Dataset, values: Mapping[str, evaluate.Values], num_particles: int) -> str:
    """Write what was found of each image of each split as a table.

    Arguments:
        program: Whose values they are.
        dataset: What of.
        values: Of each split, by its name.
        num_particles: Of which -log p(x) is.
    """
    with at_test(program, point_of(program).device), torch.no_grad():
        whole = posterior_of(program, evaluate.rows_of(program, dataset.train, slice(0, 2)))
        laws = whole.structure.laws.values()
        kind = "mass" if all(law.is_discrete for law in laws) else "density"
        bits, note = _bits(of_element(next(iter(laws))), dataset) if len(laws) == 1 else (None, "")
        divergence = "in closed form" if evaluate.is_exact(whole) else "sampled"
        given = evaluate.covariates(whole)
    heads = ("ELBO", "E[log p(x|z)]", "KL", "-log p(x)")
    rows = [
        f"{'split':6}{'images':>8}" + "".join(f"{head:>18}" for head in heads) + (f"{'bits/dim':>12}" if bits else "")
    ]
    for name, found in values.items():
        pairs = [mean_and_error(column) for column in found]
        cells = (f"{mean:.2f} ± {error:.2f}" for mean, error in pairs)
        row = f"{name:6}{len(found.nll):8,}" + "".join(f"{cell:>18}" for cell in cells)
        rows.append(f"{row}{bits(pairs[-1][0]):>12.3f}" if bits else row)
    left_out = f"; {dataset.missing:.1%} of the pixels missing, left out" if dataset.missing else ""
    notes = (
        f"nats per datum, mean ± standard error over the images; {dataset}; log p(x{given}) is of a {kind}{left_out}.\n"
        f"ELBO at beta = 1 with {evaluate.DRAWS} draws, KL {divergence}; -log p(x) by importance sampling, "
        f"{num_particles:,} draws from the guide: too large on average.{note}"
    )
    return "\n".join([*rows, notes])


def _bits(support: constraints.Constraint, dataset: Dataset) -> tuple[Callable[[float], float] | None, str]:
    """Return what makes bits/dim of nats, where that has a meaning; and what is to be said of it."""
    if dataset.missing:
        return None, ""
    if isinstance(support, Levels):
        note = f"\nbits/dim of -log p(x), of a mass of {support.number} levels: an optimal code's length."
        return partial(evaluate.bits_per_dim, dimensions=prod(dataset.event_shape)), note
    if support.is_discrete:
        return None, ""
    if dataset.config["dequantize"]:
        number = dataset.train.levels
        note = f"\nbits/dim of -log p(x), of a density of dequantised x, plus log2 of {number} levels."
        return partial(evaluate.bits_per_dim, dimensions=prod(dataset.event_shape), levels=number), note
    if dataset.support is constraints.boolean:
        return None, "\nA density of two values grows without bound: compare it with nothing, or use Bernoulli."
    if isinstance(dataset.support, Levels):
        return None, (
            "\nNo bits/dim: a density of grey levels that are not dequantised grows without bound. For bits/dim use "
            "--dequantize true, or a mass, as DiscretizedLogistic."
        )
    return None, ""
