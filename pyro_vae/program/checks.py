"""Checks of a program and its arguments: names and shapes, independent rows, supports, observed elements."""

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
from pyro_vae.seeds import fork_rng, modules_of
from pyro_vae.traces.particles import close
from pyro_vae.traces.sites import check_support

AT_ONCE = 2**20  # elements of the data


def argument_names(program: Any) -> dict[str, bool]:
    """Return the names of a program's positional arguments, and whether each is required."""
    parameters = inspect.signature(program.model).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {parameter.name: parameter.default is parameter.empty for parameter in parameters if parameter.kind in kinds}


def reference_tensor(program: Any) -> Tensor:
    """Return a tensor of a program; the data need the dtype and device of this tensor."""
    tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules_of(program))
    store = (value for _, value in pyro.get_param_store().named_parameters())
    return next(chain((tensor for tensor in tensors if tensor.is_floating_point()), store), torch.zeros(()))


def arguments(program: Any, data: Any) -> tuple[Tensor, ...]:
    """Convert a tensor, a tuple or a dictionary to a program's arguments, on the program's device.

    Floats get the program's dtype. Integers and booleans keep their dtype: they may be labels, lengths or masks. But x,
    the first argument, becomes floats if the program has a method ``check_data``, as a VAE has.

    Raises:
        ValueError: If an argument is missing, unknown, complex or without rows, or the numbers of rows differ.
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
    like, x_is_float = reference_tensor(program), hasattr(program, "check_data")
    dtypes = [
        like.dtype if column.is_floating_point() or (x_is_float and not i) else None for i, column in enumerate(tensors)
    ]
    # Contiguous, since the last bit of a product depends on the layout of its factors.
    return tuple(column.to(like.device, dtype).contiguous() for column, dtype in zip(tensors, dtypes, strict=True))


def check_methods(program: Any) -> None:
    """Refuse a program without a callable ``model`` or ``guide``."""
    if absent := [name for name in ("model", "guide") if not callable(getattr(program, name, None))]:
        raise ValueError(
            f"Expected a program: an nn.Module with methods model and guide; {type(program).__name__} has no "
            f"{absent[0]}."
        )


@torch.no_grad()
def check_rows(posterior: Any) -> None:
    """Refuse a program if the density of a row depends on the other rows, as under batch normalisation."""
    outside = posterior.structure.outside
    given = {name: value if value.shape == outside[name][0] else value[0] for name, value in posterior.given.items()}
    few = replace(posterior[:FEW], given=given)  # one of several draws, the same for all runs
    if len(few) < 2 or posterior.structure.all_rows:
        return
    head = slice(0, max(1, len(few) - 1))  # two rows, since batch normalisation has no spread of one row
    fewer = few[head]
    with fork_rng(posterior.data[0].device):
        draws, _ = few.propose(1)
        draws_of_head = {name: value[:, head] for name, value in draws.items()}
        for density in ("log_joint", "log_q") if not posterior.structure.auxiliary else ("log_joint",):
            with suppress(NotImplementedError):  # of a density that is known at its own draws only
                together, apart = getattr(few, density)(draws)[:, head], getattr(fewer, density)(draws_of_head)
                # A program that draws inner noise differs from itself, too.
                if not close(together, apart) and close(together, getattr(few, density)(draws)[:, head]):
                    name = "guide" if density == "log_q" else "model"
                    raise ValueError(
                        f"Expected a density of a row that does not depend on other rows; the {name}'s for row 0 "
                        f"is {apart[0, 0].item():.6g}, and {together[0, 0].item():.6g} with one more row. Call "
                        "program.eval() if it has batch normalisation, and compute each row from that row alone."
                    )


@torch.no_grad()
def check_supports(posterior: Any) -> None:
    """Refuse rows outside a distribution's support, as :func:`pyro_vae.traces.sites.check_support` does."""
    if all(of_element(support) is real for support in posterior.structure.observed_supports.values()):
        return
    row_size = sum(column[0].numel() for column in posterior.data)
    size = len(posterior) if posterior.structure.all_rows else max(1, AT_ONCE // row_size)
    with fork_rng(posterior.data[0].device), pyro.validation_enabled(False):
        for start in range(0, len(posterior), size):
            rows = posterior[start : start + size]
            check_support(rows.runner.run(rows.model, 1))


@torch.no_grad()
def sources(posterior: Any) -> dict[str, tuple[int, Tensor]]:
    """Return an argument and element indices for each observed site: the site's value is these elements of a row.

    The model runs with numbered elements: a site with element 7 of the argument has the value 7. A site must show
    unchanged elements of one argument; the function refuses every other site.
    """
    row, shown = posterior[:1], {}
    names = [*argument_names(posterior.program)]
    values, masks = _observed(row, row.data), row.masks()
    for site, value in values.items():
        named = [names[i] in (site, site.removesuffix("_observed")) for i in range(len(row.data))]
        mask = masks[site].reshape(-1, 1).expand(-1, value.numel() // masks[site].numel()).reshape(-1)
        for i in sorted(range(len(row.data)), key=lambda i: not named[i]):
            column = row.data[i].reshape(-1)
            # A masked value, as a missing label, is recognised by its name.
            fits = value.numel() == column.numel() and (named[i] or mask.all())
            if fits and _same(value[mask], column[mask]):
                shown[site] = i, torch.arange(column.numel())
                break
    for i, column in enumerate(row.data):
        rest = [site for site in values if site not in shown]
        if rest and column.is_floating_point():
            numbers = torch.arange(1, column.numel() + 1).to(column).reshape(column.shape)
            runs = [_observed(row, (*row.data[:i], n, *row.data[i + 1 :])) for n in (numbers, 2 * numbers)]
            for site in rest:
                first, second = (run[site] for run in runs)
                places = first.round().long() - 1
                in_row = (places >= 0).all() and (places < column.numel()).all()
                if in_row and _same(second, 2 * first) and _same(first, places + 1):
                    shown[site] = i, places.cpu()
    if rest := [site for site in values if site not in shown]:
        raise ValueError(
            f"Expected each observed site to show unchanged elements of an argument; {rest[0]!r} does not. Write "
            f"pyro.sample({rest[0]!r}, ..., obs=x), or obs=x[:, t], with x an argument of the model."
        )
    return shown


@torch.no_grad()
def check_drawn(old: Any, new: Any, draws: Draws) -> None:
    """Refuse a program if the densities of fixed draws change when the draws replace the arguments."""
    values = {name: draws[name] for name in (*old.structure.supports, *old.structure.observed)}
    with fork_rng(old.data[0].device), suppress(NotImplementedError):
        runs = [old.runner.trace(poutine.uncondition(old.program.model), 1, values) for _ in range(2)]
        runs.append(new.runner.trace(new.model, 1, {name: draws[name] for name in old.structure.supports}))
        for name in values:
            first, repeated, replaced = (old.runner.total(run, 1, [name]) for run in runs)
            if close(first, repeated) and not close(first, replaced):
                raise ValueError(
                    f"Expected densities that depend on x through its observed site alone; the density of {name!r} "
                    "changes with the argument itself, so simulated data would not come from the model. In place of x, "
                    "use the value that pyro.sample(..., obs=x) returns."
                )


def _observed(posterior: Any, data: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the flattened value of each observed site for one row."""
    with fork_rng(posterior.data[0].device), pyro.validation_enabled(False), poutine.block():
        trace = poutine.trace(posterior.program.model).get_trace(*data)
    return {name: trace.nodes[name]["value"].reshape(-1) for name in posterior.structure.observed}


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-6, atol=0, equal_nan=True)
