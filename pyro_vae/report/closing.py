"""The table and the figures at the end of a run."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import evaluate, plots
from pyro_vae.data import Column, Dataset
from pyro_vae.data.supports import Levels, of_element, white
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.program import coordinates, posterior_of, reference_tensor
from pyro_vae.report import proposals
from pyro_vae.seeds import eval_mode
from pyro_vae.words import aligned, images_or_rows, nats, pair

COLUMNS = ("ELBO", "E[log p(x|z)]", "KL", "-log p(x)")


def table(
    program: Any, dataset: Dataset, num_particles: int = 1000, images: int = 1000, seed: int = 0, progress: bool = True
) -> str:
    """Return a table of the ELBO, the two terms of the ELBO, and -log p(x) of each split, with notes on the numbers.

    Numbers are means and standard errors over the images, in nats per datum; see :func:`pyro_vae.evaluate.summary`.
    For the arguments, see :func:`evaluation`. If ``num_particles`` draws would take more than about a minute, the table
    has fewer draws. If a million draws suffice, a further column gives -log p(x) of test images by an adapted proposal.

    See Also:
        :func:`evaluation`: The same table, with a judgement of the model, the guide and the codes.
    """
    device = reference_tensor(program).device
    with eval_mode(program, device, seed):
        target = posterior_of(program, evaluate.rows_of(program, dataset.test.to(device), slice(0, images)))
        number = sum(min(images, len(part)) for part in dataset.splits.values())
        draws = proposals.affordable_draws(target, number, num_particles)
        most = proposals.OF_TABLE if draws == num_particles else 0
        log_w, _ = proposals.adapted_log_weights(program, target, draws, most, progress)
    rest = (draws, images, seed, progress)
    values = {name: evaluate.per_image(program, part.to(device), *rest) for name, part in dataset.splits.items()}
    adapted = None if log_w is None else -evaluate.iwae(log_w)
    return format_table(program, dataset, values, draws, adapted=adapted)


def format_table(
    program: Any,
    dataset: Dataset,
    values: Mapping[str, evaluate.Values],
    num_particles: int,
    proposal: evaluate.Proposal = "guide",
    adapted: Tensor | None = None,
) -> str:
    """Return the values of each split as a table; ``adapted`` is -log p(x) of test data by an adapted proposal."""
    with eval_mode(program, reference_tensor(program).device), torch.no_grad():
        target = posterior_of(program, evaluate.rows_of(program, dataset.train, slice(0, 2)))
        supports = target.structure.observed_supports.values()
        kind = "mass" if all(support.is_discrete for support in supports) else "density"
        bits, note = _bits(of_element(next(iter(supports))), dataset) if len(supports) == 1 else (None, "")
        divergence = "in closed form" if evaluate.is_exact(target) else "sampled"
        condition = evaluate.covariates(target)
    images, splits = images_or_rows(dataset.event_shape), dataset.splits
    measures = {name: evaluate.measures(program, splits[name], len(columns.nll)) for name, columns in values.items()}
    also = [] if adapted is None else ["adapted"]
    rows = [["split", images, *COLUMNS, *also, *(["bits/dim"] if bits else []), *next(iter(measures.values()))]]
    for name, columns in values.items():
        pairs = [mean_and_error(column) for column in columns]
        nll, cells = pairs[-1][0], ["-"] if also else []
        if adapted is not None and name == "test":
            nll, cells = float(np.fmin(nll, adapted.mean().item())), [pair(mean_and_error(adapted))]
        cells += [f"{bits(nll):.3f}"] if bits else []
        cells += ["-" if math.isnan(mean) else f"{mean:.1%} ± {error:.1%}" for mean, error in measures[name].values()]
        rows.append([name, f"{len(columns.nll):,}", *map(pair, pairs), *cells])
    elements = "pixels" if images == "images" else "numbers"
    missing = f"; {dataset.missing:.1%} of the {elements} missing, left out" if dataset.missing else ""
    notes = (
        f"Nats per datum, mean ± standard error over the {images}; {dataset}; log p(x{condition}) is of a {kind}"
        f"{missing}.\nELBO at beta = 1 with {evaluate.DRAWS} draws, KL {divergence}; -log p(x) "
        f"{evaluate.method(program, num_particles, proposals.origin(target, proposal))}."
    )
    if dataset.schema and dataset.schema.standardised and kind == "density":
        mask = None if dataset.test.mask is None else dataset.test.mask[: len(values["test"].nll)]
        number = nats(dataset.schema.log_scale(mask))
        notes += f"\nx is standardised: in the units of the table, -log p(x) of test rows is {number} nats larger."
    notes += f"\nAdapted: -log p(x) by as many draws {proposals.origin(target, 'adapted')}." if also else ""
    return "\n".join([*aligned(rows), notes + note])


def _bits(support: constraints.Constraint, dataset: Dataset) -> tuple[Callable[[float], float] | None, str]:
    """Return a function from nats to bits/dim, None if these are undefined, and a note on them."""
    bits, number, note = partial(evaluate.bits_per_dim, dimensions=prod(dataset.event_shape)), dataset.train.levels, ""
    if isinstance(support, Levels) and not dataset.missing:
        return bits, f"\nbits/dim of -log p(x), of a mass of {support.number} levels: the length of an optimal code."
    if dataset.missing or support.is_discrete:
        return None, ""
    if dataset.config["dequantize"]:
        note = f"\nbits/dim of -log p(x), of a density of dequantised x, plus log2 of {number} levels."
        return partial(bits, levels=number), note
    if dataset.support is constraints.boolean:
        note = "\nA density of two values grows without bound: do not compare its numbers, or use Bernoulli."
    if isinstance(dataset.support, Levels):
        note = "\nNo bits/dim: without dequantisation a density of grey levels grows without bound. "
        note += "Use --dequantize true, or a mass, as DiscretizedLogistic."
    return None, note


def figures(program: Any, dataset: Dataset, seed: int = 0) -> dict[str, "plots.Figure"]:
    """Plot the codes of a program, and images or table columns. The random state of torch does not change.

    Returns:
        Figures by name. ``latent_space`` shows the codes of training data. For images, the program's method
        ``pictures``, if present, adds figures of test images, and a VAE adds ``traversal``. For a table, ``marginals``
        shows the columns; a program of this package adds ``reconstructions`` of test rows.
    """
    figures, images = {}, images_or_rows(dataset.event_shape)
    with eval_mode(program, reference_tensor(program).device, seed), torch.no_grad():
        train = posterior_of(program, evaluate.rows_of(program, dataset.train, slice(0, 2000)))
        codes = evaluate.guide_means(train)
        if codes.shape[1]:
            labels = None if dataset.train.labels is None else dataset.train.labels[: len(train)]
            title = f"Means of q(z | x), {len(train):,} training {images}"
            column = (dataset.schema and dataset.schema.labels) or Column("label")
            figures["latent_space"] = plots.latent_space(codes, labels, title, column.levels, column.name)
        if images == "rows":
            figures |= _column_figures(program, dataset)
        elif len(dataset.event_shape) in (2, 3) and has_method(program, "pictures", train.data):
            x, *covariates = evaluate.rows_of(program, dataset.test, slice(0, 1000))
            brightest = white(x, dataset.support)
            few = (column[:16] for column in (x, *covariates))
            pages = program.pictures(*few)
            figures |= {name: plots.mosaic(page / brightest, title) for name, (page, title) in pages.items()}
            if has_method(program, "traverse", train.data):
                kl = evaluate.mean_kl(program, x)
                nats, order = (None, None) if kl is None else (kl.tolist(), kl.argsort(descending=True)[:20].tolist())
                figures["traversal"] = plots.traversal(program.traverse(x[0]) / brightest, order=order, nats=nats)
    return figures


def has_method(program: Any, method: str, data: tuple[Tensor, ...]) -> bool:
    """Return whether a program has a method that takes the data."""
    return hasattr(program, method) and len(data) == getattr(program, "inputs", 1)


def _column_figures(program: Any, dataset: Dataset) -> dict[str, "plots.Figure"]:
    """Draw test rows against draws of the model, if it can draw data, and against their reconstructions."""
    target = posterior_of(program, evaluate.rows_of(program, dataset.test, slice(0, 1000)))
    x, figures = target.data[0], {}
    names = dataset.names or coordinates("x", x.shape[1:])

    def draw(other: Tensor, noun: str, pairs: bool) -> "plots.Figure":
        table, other = (dataset.in_units(rows).reshape(len(x), -1) for rows in (x, other))
        return plots.columns(table, other, names, f"{len(x):,} test rows, and {noun}", pairs)

    with suppress(ValueError):  # data that cannot be drawn
        figures["marginals"] = draw(target.at(target.simulate(1)).data[0], "as many draws of the model", False)
    if has_method(program, "reconstruct", target.data):
        figures["reconstructions"] = draw(program.reconstruct(*target.data), "their reconstructions (up)", True)
    return figures
