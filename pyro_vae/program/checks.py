"""A program's arguments, as users give them; and whether a row's density is its own, and what observed sites show."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions.constraints import real

from pyro_vae.data.arrays import tensor_of
from pyro_vae.data.supports import of_element
from pyro_vae.program.structure import FEW, Draws
from pyro_vae.seeds import forked, modules_of
from pyro_vae.traces.particles import close
from pyro_vae.traces.sites import check_support

AT_ONCE = 2**20  # elements of the data


def argument_names(program: Any) -> dict[str, bool]:
    """Return the names of a program's arguments, and whether each must be given."""
    parameters = inspect.signature(program.model).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {one.name: one.default is one.empty for one in parameters if one.kind in kinds}


def point_of(program: Any) -> Tensor:
    """Return a tensor of a program's own, whose dtype and device its data are given."""
    tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules_of(program))
    store = (value for _, value in pyro.get_param_store().named_parameters())
    return next(chain((tensor for tensor in tensors if tensor.is_floating_point()), store), torch.zeros(()))


def arguments(program: Any, data: Any) -> tuple[Tensor, ...]:
    """Return data, a tensor, a tuple or a dictionary, as a program's arguments: floats in its dtype, on its device.

    Whole numbers and booleans stay as they are, for they may be labels, lengths or masks; but x, the first argument of
    a program that has a method ``check_data``, as a VAE, becomes floats too.

    Raises:
        ValueError: If an argument is missing, unknown or complex, or they are of different numbers of rows, or of none.
    """
    names = argument_names(program)
    if isinstance(data, Mapping):
        first = [*names][: len(data)]
        if {*first} != {*data} or len(first) < sum(names.values()):
            raise ValueError(
                f"Expected data by the names of the model's arguments, from the first on: {', '.join(names)}; got "
                f"{', '.join(map(str, data))}."
            )
        data = tuple(data[name] for name in first)
    data = data if isinstance(data, tuple | list) else (data,)
    if names and not sum(names.values()) <= len(data) <= len(names):
        raise ValueError(f"Expected data for the model's arguments, {', '.join(names)}; got {len(data)} of them.")
    tensors = [tensor_of(column, name) for name, column in zip(chain(names, repeat("data")), data, strict=False)]
    sizes = {len(column) if column.dim() else 0 for column in tensors}
    if sizes == {0}:
        raise ValueError("Expected at least 1 image; got none.")
    if len(sizes) != 1 or any(column.is_complex() for column in tensors):
        shapes = ", ".join(f"{tuple(column.shape)} of {column.dtype}" for column in tensors)
        raise ValueError(f"Expected real arguments with as many rows each; got {shapes}.")
    point, floats = point_of(program), hasattr(program, "check_data")  # x, its first argument
    return tuple(
        # In one piece, since the last bit of a product depends on how its factors lie.
        column.to(point.device, point.dtype if column.is_floating_point() or (floats and not i) else None).contiguous()
        for i, column in enumerate(tensors)
    )


def check_methods(program: Any) -> None:
    """Refuse a program that has not two Pyro programs."""
    if absent := [name for name in ("model", "guide") if not callable(getattr(program, name, None))]:
        raise ValueError(
            f"Expected a program: an nn.Module with methods model and guide; {type(program).__name__} has no "
            f"{absent[0]}."
        )


@torch.no_grad()
def check_rows(posterior: Any) -> None:
    """Refuse a program whose density of a row differs among other rows and alone, as with batch normalisation."""
    outside = posterior.structure.outside
    given = {name: value if value.shape == outside[name][0] else value[0] for name, value in posterior.given.items()}
    few = replace(posterior[:FEW], given=given)  # of several draws one, which all runs have
    if len(few) < 2 or posterior.structure.whole:
        return
    head = slice(0, max(1, len(few) - 1))  # of one row alone batch normalisation knows no spread
    part = few[head]
    with forked(posterior.data[0].device):
        draws, _ = few.propose(1)
        own = {name: value[:, head] for name, value in draws.items()}
        for what in ("log_joint", "log_q") if not posterior.structure.hidden else ("log_joint",):
            with suppress(NotImplementedError):  # a density that is known at its own draws only
                among, alone = getattr(few, what)(draws)[:, head], getattr(part, what)(own)
                # A program with noise of its own differs from itself, too.
                if not close(among, alone) and close(among, getattr(few, what)(draws)[:, head]):
                    name = "guide" if what == "log_q" else "model"
                    raise ValueError(
                        f"Expected a density of each row by itself; that of the {name} for the first row is "
                        f"{alone[0, 0].item():.6g}, and beside other rows {among[0, 0].item():.6g}. Call "
                        "program.eval() if it has batch normalisation, and leave other rows out of the program."
                    )


@torch.no_grad()
def check_supports(posterior: Any) -> None:
    """Refuse rows outside the support of their distribution, as :func:`pyro_vae.traces.sites.check_support` does."""
    if all(of_element(law) is real for law in posterior.structure.laws.values()):
        return
    one = sum(column[0].numel() for column in posterior.data)
    size = len(posterior) if posterior.structure.whole else max(1, AT_ONCE // one)
    with forked(posterior.data[0].device), pyro.validation_enabled(False):
        for start in range(0, len(posterior), size):
            rows = posterior[start : start + size]
            check_support(rows.runner.run(rows.model, 1))


@torch.no_grad()
def sources(posterior: Any) -> dict[str, tuple[int, Tensor]]:
    """Return for each observed site which argument it shows, and the places of its elements in a row of that.

    The model runs with numbered elements: a site that shows element 7 has the number 7. Refuse a site that shows no
    elements of one argument, or changes them.
    """
    one, found = posterior[:1], {}
    names = [*argument_names(posterior.program)]
    values, seen = _observed(one, one.data), one.seen()
    for site, value in values.items():
        own = [names[i] in (site, site.removesuffix("_observed")) for i in range(len(one.data))]
        shown = seen[site].reshape(-1, 1).expand(-1, value.numel() // seen[site].numel()).reshape(-1)
        for i in sorted(range(len(one.data)), key=lambda i: not own[i]):
            column = one.data[i].reshape(-1)
            # What is masked, as the label of a row that has none, is known by its name.
            fits = value.numel() == column.numel() and (own[i] or shown.all())
            if fits and _same(value[shown], column[shown]):
                found[site] = i, torch.arange(column.numel())
                break
    for i, column in enumerate(one.data):
        rest = [site for site in values if site not in found]
        if rest and column.is_floating_point():
            numbers = torch.arange(1, column.numel() + 1).to(column).reshape(column.shape)
            runs = [_observed(one, (*one.data[:i], n, *one.data[i + 1 :])) for n in (numbers, 2 * numbers)]
            for site in rest:
                first, second = (run[site] for run in runs)
                places = first.round().long() - 1
                shown = (places >= 0).all() and (places < column.numel()).all()
                if shown and _same(second, 2 * first) and _same(first, places + 1):
                    found[site] = i, places.cpu()
    if rest := [site for site in values if site not in found]:
        raise ValueError(
            f"Expected each observed site to show elements of an argument as they are; {rest[0]!r} does not. Write "
            f"pyro.sample({rest[0]!r}, ..., obs=x), or obs=x[:, t], with x an argument of the model."
        )
    return found


@torch.no_grad()
def check_drawn(old: Any, new: Any, draws: Draws) -> None:
    """Refuse a program whose densities of drawn values change with the argument that these stand in place of."""
    values = {name: draws[name] for name in (*old.structure.supports, *old.structure.observed)}
    with forked(old.data[0].device), suppress(NotImplementedError):
        runs = [old.runner.trace(poutine.uncondition(old.program.model), 1, values) for _ in range(2)]
        runs.append(new.runner.trace(new.model, 1, {name: draws[name] for name in old.structure.supports}))
        for name in values:
            one, again, other = (old.runner.total(run, 1, [name]) for run in runs)
            if close(one, again) and not close(one, other):
                raise ValueError(
                    f"Expected sites that depend on drawn values alone; the density of {name!r} changes with an "
                    "argument that is observed, so that data drawn in its place would not be the model's. Use what "
                    "pyro.sample(..., obs=x) returns in place of x."
                )


def _observed(posterior: Any, data: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return what each observed site of one row shows, flat."""
    with forked(posterior.data[0].device), pyro.validation_enabled(False), poutine.block():
        trace = poutine.trace(posterior.program.model).get_trace(*data)
    return {name: trace.nodes[name]["value"].reshape(-1) for name in posterior.structure.observed}


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-6, atol=0, equal_nan=True)
