"""Programs at data, and the log-weights of their guides' draws: a chunk at a time, by a graph where there are many."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.annealing import drawn
from pyro_vae.compiled import Outputs, Traced, fast_products, how_many_fit
from pyro_vae.evaluate.adapted import Adapted, data_at_once, density, fitting_draws
from pyro_vae.objectives.base import check_choice, check_least
from pyro_vae.program import Draws, Posterior, Structure, drawn_posterior, point_of, posterior_of
from pyro_vae.seeds import at_test, forked

Proposal = Literal["guide", "adapted"]

ORIGINS = {"guide": "from the guide", "adapted": "from a proposal adapted to each datum"}  # in words
TOGETHER = 32  # draws of an image at least, where so many fit
MOST = 2_000  # images decoded at once: more do not fit in a CPU's caches, and are slower
MANY = 100  # chunks, in less time than which no graph is recorded

_rooms = WeakKeyDictionary[Structure, dict[tuple[int, int], tuple[int, int]]]()  # of programs at data


@contextmanager
def at_data(
    program: Any, data: Any, seed: int | None = None, given: Draws | None = None, num: int | None = None
) -> Iterator[Posterior]:
    """Give a program at data, or at ``num`` rows to be drawn over, as :func:`at_test` runs it, without gradients."""
    with at_test(program, point_of(program).device, seed), torch.no_grad():
        yield posterior_of(program, data, given) if num is None else drawn_posterior(program, data, num)


def batches(posterior: Posterior, size: int) -> list[Posterior]:
    """Return the data in parts of so many rows; in one, where the program runs on all of them only."""
    size = len(posterior) if posterior.structure.whole else size
    return [posterior[slice(i, i + size)] for i in range(0, len(posterior), size)]


def batches_that_fit(posterior: Posterior, run: Callable[[Posterior], Any], unit: int = 1) -> list[Posterior]:
    """Return the data in parts for which ``run`` fits in memory, each of a multiple of ``unit`` rows."""
    size = len(posterior)
    if not posterior.structure.whole:
        size = unit * how_many_fit(lambda n: run(posterior[: unit * n]), size, posterior.data[0].device)
    return batches(posterior, size)


@torch.no_grad()
def room(posterior: Posterior, most: int = MOST) -> tuple[int, int]:
    """Return how many data can be weighed at once in a gibibyte, and how many draws of all, each at most ``most``."""
    few = posterior if posterior.structure.whole else posterior[:2]  # one alone may be a case of its own
    known = _rooms.setdefault(posterior.structure, {})
    if (most, len(few)) not in known:
        device, images = posterior.data[0].device, len(posterior)
        if not posterior.structure.whole:
            images = 2 * how_many_fit(lambda n: posterior[: 2 * n].log_weights(1), most // 2, device)
        draws = len(few) * how_many_fit(few.log_weights, max(2, most // len(few)), device)
        known[most, len(few)] = images, draws
    return known[most, len(few)]


def log_weights(
    program: Any,
    data: Any,
    num_particles: int,
    at_once: int | None = None,
    progress: bool = False,
    seed: int | None = None,
    given: Draws | None = None,
    proposal: Proposal = "guide",
) -> Tensor:
    r"""Return the log importance weights of draws from the guide, of shape ``(K, B)``, in nats, unscaled.

    .. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q(z \mid x_b)

    z are all latent sites together. Discrete ones that are marked ``infer={"enumerate": "parallel"}``, or that the
    model alone has, are summed out exactly. Where values, or draws, of latent sites outside the data's plate are
    ``given``, all is given these, or predictive. As many rows are run at once as fit, or ``at_once``: the draws depend
    on it, what they estimate does not. Where the answer is too large for memory, :func:`nll` adds up as it goes.

    With the ``adapted`` proposal draws are of a Student t with full covariance in real coordinates of the continuous
    sites, fitted to the posterior of each datum by rounds of weighted draws, 175 for each dimension or more, before
    those that count; classes are summed out. A datum keeps the guide where more of the guide's draws counted in the
    rounds, as of an exact one. Either way the mean of w is p(x).

    References:
        Population Monte Carlo (Cappé, Guillin, Marin and Robert, 2004), for the adapted proposal.

    Raises:
        ValueError: If there are no particles or no images, or ``at_once`` is not positive.
    """
    columns = defaultdict(list)
    with at_data(program, data, seed, given) as posterior:
        for part, log_w in _chunks(posterior, num_particles, at_once, progress, proposal):
            columns[part].append(log_w)
    return torch.cat([torch.cat(chunks) for chunks in columns.values()], dim=1)


def nll(
    program: Any,
    data: Any,
    num_particles: int = 5000,
    at_once: int | None = None,
    progress: bool = False,
    seed: int | None = None,
    given: Draws | None = None,
    proposal: Proposal = "guide",
) -> Tensor:
    r"""Estimate :math:`-\log p(x)` per datum by importance sampling, of shape ``(B,)``, in nats.

    Given covariates y, it is :math:`-\log p(x \mid y)`. It is minus :func:`pyro_vae.evaluate.iwae` of as many draws,
    so it is too large on average, and falls to the truth as their number grows. Arguments and ``Raises`` are those of
    :func:`log_weights`.

    Example:
        >>> from pyro_vae import VAE
        >>> nll(VAE.build((64,), latent=2), torch.rand(5, 64), num_particles=100).shape
        torch.Size([5])
    """
    totals: dict[int, Tensor] = {}
    with at_data(program, data, seed, given) as posterior:
        for part, log_w in _chunks(posterior, num_particles, at_once, progress, proposal):
            total = log_w.logsumexp(0)
            totals[part] = torch.logaddexp(totals[part], total) if part in totals else total
    return math.log(num_particles) - torch.cat([*totals.values()])


def _chunks(
    posterior: Posterior, num: int, at_once: int | None, progress: bool, proposal: Proposal
) -> Iterator[tuple[int, Tensor]]:
    """Yield log-weights ``(k, rows)``, each with the number of the part of the data that its rows are.

    Many chunks are run as a graph, compiled where that pays, after each datum was run once with Pyro's validation.
    """
    check_least(num_particles=num, at_once=1 if at_once is None else at_once)
    check_choice("proposal", proposal, get_args(Proposal))
    adapted = proposal == "adapted" and bool(posterior.structure.continuous)
    images, draws = room(posterior) if at_once is None else (at_once, at_once)
    # Few images and many draws of each, since an image is encoded again for every chunk of its draws.
    most = min(images, max(1, draws // min(num, TOGETHER)))
    parts = batches(posterior, min(most, data_at_once(posterior)) if adapted else most)
    sizes = [max(1, draws // len(rows)) for rows in parts]
    fitting = fitting_draws(posterior)[0] if adapted else 0
    calls = sum(math.ceil((num + fitting) / size) for size in sizes)

    def outputs(data: tuple[Tensor, ...], what: Any) -> Outputs:
        rows = replace(posterior, data=data)
        return Outputs([density(rows, what) if adapted else rows.log_weights(what)], None)

    graph = Traced(outputs, "auto", calls, quiet=True, frozen=True) if calls >= MANY else None

    def run(data: tuple[Tensor, ...], what: Any) -> Tensor:
        with fast_products("auto"):
            values: Tensor = (graph((data, what), {}) if graph else outputs(data, what)).tensors[0]
            return values

    if graph:
        with forked(posterior.data[0].device):
            for rows in batches(posterior, draws):
                rows.log_weights(1)
            # The graph is recorded, and compared on other rows.
            for rows in (parts[0], parts[0], [rows for rows in parts if len(rows) == len(parts[0])][-1]):
                run(rows.data, drawn(rows, "guide", sizes[0]) if adapted else min(sizes[0], num))
    total = len(posterior) * (num + fitting)
    with tqdm(total=total, desc="-log p(x)", unit=" draws", unit_scale=True, leave=False, disable=not progress) as bar:
        for part, (rows, size) in enumerate(zip(parts, sizes, strict=True)):
            weigh = Adapted(rows, run, size, bar.update).log_weights if adapted else partial(run, rows.data)
            for start in range(0, num, size):
                log_w = weigh(min(size, num - start))
                if graph and log_w.isnan().any():
                    raise ValueError(
                        "Expected log-weights to be numbers; some are NaN. Look at the decoder's parameters."
                    )
                yield part, log_w
                if not adapted:
                    bar.update(log_w.numel())
