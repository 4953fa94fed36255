"""What a run closes with: a table and figures."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import evaluate, plots
from pyro_vae.data import Dataset
from pyro_vae.data.supports import Levels, of_element
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.program import coordinates, point_of, posterior_of
from pyro_vae.report import proposals
from pyro_vae.seeds import at_test
from pyro_vae.words import aligned, images_or_rows, pair

COLUMNS = ("ELBO", "E[log p(x|z)]", "KL", "-log p(x)")


def table(
    program: Any, dataset: Dataset, num_particles: int = 1000, images: int = 1000, seed: int = 0, progress: bool = True
) -> str:
    """Write the ELBO, its two terms and -log p(x) of each split as a table, with what the numbers are.

    Nats per datum, mean and standard error over the images, as of :func:`pyro_vae.evaluate.summary`. Arguments are
    those of :func:`evaluation`. Where a million draws are enough for it, -log p(x) of test images is by an adapted
    proposal, too.
    """
    device, rest = point_of(program).device, (num_particles, images, seed, progress)
    values = {name: evaluate.per_image(program, part.to(device), *rest) for name, part in dataset.splits.items()}
    with at_test(program, device, seed):
        whole = posterior_of(program, evaluate.rows_of(program, dataset.test.to(device), slice(0, images)))
        log_w, _ = proposals.by_adapted(program, whole, num_particles, proposals.OF_TABLE, progress)
    adapted = None if log_w is None else -evaluate.iwae(log_w)
    return write_table(program, dataset, values, num_particles, adapted=adapted)


def write_table(
    program: Any,
    dataset: Dataset,
    values: Mapping[str, evaluate.Values],
    num_particles: int,
    proposal: evaluate.Proposal = "guide",
    adapted: Tensor | None = None,
) -> str:
    """Write the values of each split, by its name, as a table; ``adapted`` is -log p(x) of test data once more."""
    with at_test(program, point_of(program).device), torch.no_grad():
        whole = posterior_of(program, evaluate.rows_of(program, dataset.train, slice(0, 2)))
        laws = whole.structure.laws.values()
        kind = "mass" if all(law.is_discrete for law in laws) else "density"
        bits, note = _bits(of_element(next(iter(laws))), dataset) if len(laws) == 1 else (None, "")
        divergence = "in closed form" if evaluate.is_exact(whole) else "sampled"
        given = evaluate.covariates(whole)
    images, splits = images_or_rows(dataset.event_shape), dataset.splits
    measures = {name: evaluate.measures(program, splits[name], len(found.nll)) for name, found in values.items()}
    also = [] if adapted is None else ["adapted"]
    rows = [["split", images, *COLUMNS, *also, *(["bits/dim"] if bits else []), *next(iter(measures.values()))]]
    for name, found in values.items():
        pairs = [mean_and_error(column) for column in found]
        nll, cells = pairs[-1][0], ["-"] if also else []
        if adapted is not None and name == "test":
            nll, cells = float(np.fmin(nll, adapted.mean().item())), [pair(mean_and_error(adapted))]
        cells += [f"{bits(nll):.3f}"] if bits else []
        cells += ["-" if math.isnan(mean) else f"{mean:.1%} ± {error:.1%}" for mean, error in measures[name].values()]
        rows.append([name, f"{len(found.nll):,}", *map(pair, pairs), *cells])
    what = "pixels" if images == "images" else "numbers"
    left_out = f"; {dataset.missing:.1%} of the {what} missing, left out" if dataset.missing else ""
    notes = (
        f"nats per datum, mean ± standard error over the {images}; {dataset}; log p(x{given}) is of a {kind}{left_out}."
        f"\nELBO at beta = 1 with {evaluate.DRAWS} draws, KL {divergence}; -log p(x) by importance sampling, "
        f"{num_particles:,} draws {proposals.origin(whole, proposal)}: too large on average."
    )
    notes += f"\nAdapted: -log p(x) by as many draws {proposals.origin(whole, 'adapted')}." if also else ""
    return "\n".join([*aligned(rows), notes + note])


def _bits(support: constraints.Constraint, dataset: Dataset) -> tuple[Callable[[float], float] | None, str]:
    """Return a function from nats to bits/dim, where that has a meaning; and a note on it."""
    bits, number, note = partial(evaluate.bits_per_dim, dimensions=prod(dataset.event_shape)), dataset.train.levels, ""
    if isinstance(support, Levels) and not dataset.missing:
        return bits, f"\nbits/dim of -log p(x), of a mass of {support.number} levels: an optimal code's length."
    if dataset.missing or support.is_discrete:
        return None, ""
    if dataset.config["dequantize"]:
        note = f"\nbits/dim of -log p(x), of a density of dequantised x, plus log2 of {number} levels."
        return partial(bits, levels=number), note
    if dataset.support is constraints.boolean:
        note = "\nA density of two values grows without bound: compare it with nothing, or use Bernoulli."
    if isinstance(dataset.support, Levels):
        note = "\nNo bits/dim: a density of grey levels that are not dequantised grows without bound. "
        note += "For bits/dim use --dequantize true, or a mass, as DiscretizedLogistic."
    return None, note


def figures(program: Any, dataset: Dataset, seed: int = 0) -> dict[str, Figure]:
    """Draw a program's codes and its images, or the columns of a table; torch's own state is left alone.

    Returns:
        By name: ``latent_space``, of training data; of images those of the program's method ``pictures``, if any, of
        test images, and of a VAE ``traversal``; of a table ``marginals`` and, of a program here, ``reconstructions``,
        of test rows.
    """
    drawn, images = {}, images_or_rows(dataset.event_shape)
    with at_test(program, point_of(program).device, seed), torch.no_grad():
        train = posterior_of(program, evaluate.rows_of(program, dataset.train, slice(0, 2000)))
        codes = evaluate.guide_means(train)
        if codes.shape[1]:
            labels = None if dataset.train.labels is None else dataset.train.labels[: len(train)]
            title = f"Means of q(z | x), {len(train):,} training {images}"
            drawn["latent_space"] = plots.latent_space(codes, labels, title)
        if images == "rows":
            drawn |= _of_columns(program, dataset)
        elif len(dataset.event_shape) in (2, 3) and shows(program, "pictures", train.data):
            x, *given = evaluate.rows_of(program, dataset.test, slice(0, 1000))
            white = max(x.max().item(), 1.0) if dataset.support is constraints.nonnegative_integer else 1.0
            few = (column[:16] for column in (x, *given))
            drawn |= {name: plots.mosaic(page / white, title) for name, (page, title) in program.pictures(*few).items()}
            if shows(program, "traverse", train.data):
                kl = mean_kl(program, x)
                nats, order = (None, None) if kl is None else (kl.tolist(), kl.argsort(descending=True)[:20].tolist())
                drawn["traversal"] = plots.traversal(program.traverse(x[0]) / white, order=order, nats=nats)
    return drawn


def shows(program: Any, method: str, data: tuple[Tensor, ...]) -> bool:
    """Return whether a program has a method for figures, of as many arguments as the data are."""
    return hasattr(program, method) and len(data) == getattr(program, "inputs", 1)


def _of_columns(program: Any, dataset: Dataset) -> dict[str, Figure]:
    """Draw test rows beside rows that the model draws, where it can draw them, and beside their reconstructions."""
    whole = posterior_of(program, evaluate.rows_of(program, dataset.test, slice(0, 1000)))
    x, drawn = whole.data[0], {}
    names = dataset.names or coordinates("x", x.shape[1:])

    def draw(other: Tensor, what: str, pairs: bool) -> Figure:
        table, other = (rows.reshape(len(x), -1) for rows in (x, other))
        return plots.columns(table, other, names, f"{len(x):,} test rows, and {what}", pairs)

    with suppress(ValueError):  # data that cannot be drawn
        drawn["marginals"] = draw(whole.at(whole.simulate(1)).data[0], "as many that the model draws", False)
    if shows(program, "reconstruct", whole.data):
        drawn["reconstructions"] = draw(program.reconstruct(*whole.data), "their reconstructions (up)", True)
    return drawn


def mean_kl(program: Any, data: Any) -> Tensor | None:
    """Return the mean divergence of each dimension; None where guide or prior are not independent over them."""
    with suppress(ValueError):
        return evaluate.kl_per_dim(program, data).mean(0)
    return None
