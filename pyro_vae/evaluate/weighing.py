"""Log importance weights of programs at data. Chunks fit in memory; many chunks run as a graph."""

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

from pyro_vae.annealing import log_density, unconstrained_draws
from pyro_vae.compiled import GraphedFunction, Outputs, fast_products, max_batch_size
from pyro_vae.evaluate.adapted import AdaptedProposals, data_at_once, fitting_draws
from pyro_vae.objectives.base import check_choice, check_least
from pyro_vae.program import Draws, Posterior, Structure, drawn_posterior, posterior_of, reference_tensor
from pyro_vae.seeds import eval_mode, fork_rng

Proposal = Literal["guide", "adapted"]

ORIGINS = {"guide": "from the guide", "adapted": "from a proposal adapted to each datum"}  # for reports
TOGETHER = 32  # least draws of an image in a chunk, where so many fit
MOST = 2_000  # images decoded at once: more do not fit in a CPU's caches and are slower
MANY = 50  # chunks, below which recording a graph does not pay

_sizes = WeakKeyDictionary[Structure, dict[tuple[int, int], tuple[int, int]]]()  # cached chunk_sizes


@contextmanager
def at_data(
    program: Any, data: Any, seed: int | None = None, given: Draws | None = None, num: int | None = None
) -> Iterator[Posterior]:
    """Yield a program at data, or at ``num`` rows to simulate, in :func:`eval_mode` and without gradients."""
    with eval_mode(program, reference_tensor(program).device, seed), torch.no_grad():
        yield posterior_of(program, data, given) if num is None else drawn_posterior(program, data, num)


def batches(posterior: Posterior, size: int) -> list[Posterior]:
    """Split the data into parts of ``size`` rows, or one part if the program runs only on all rows together."""
    size = len(posterior) if posterior.structure.all_rows else size
    return [posterior[slice(i, i + size)] for i in range(0, len(posterior), size)]


def batches_that_fit(posterior: Posterior, run: Callable[[Posterior], Any], unit: int = 1) -> list[Posterior]:
    """Split the data into parts for which ``run`` fits in memory; the size is a multiple of ``unit`` rows."""
    size = len(posterior)
    if not posterior.structure.all_rows:
        size = unit * max_batch_size(lambda n: run(posterior[: unit * n]), size, posterior.data[0].device)
    return batches(posterior, size)


@torch.no_grad()
def chunk_sizes(posterior: Posterior, most: int = MOST) -> tuple[int, int]:
    """Return the number of data and the total number of draws that fit in a gibibyte, each at most ``most``."""
    few = posterior if posterior.structure.all_rows else posterior[:2]  # one row may be a special case
    known = _sizes.setdefault(posterior.structure, {})
    if (most, len(few)) not in known:
        device, images = posterior.data[0].device, len(posterior)
        if not posterior.structure.all_rows:
            images = 2 * max_batch_size(lambda n: posterior[: 2 * n].log_weights(1), most // 2, device)
        draws = len(few) * max_batch_size(few.log_weights, max(2, most // len(few)), device)
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
    r"""Return the log importance weights of draws from a proposal, of shape ``(K, B)``, in nats, unscaled.

    .. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q(z \mid x_b)

    z denotes all latent sites together; K is ``num_particles``. Discrete sites in the model alone, or marked with
    ``infer={"enumerate": "parallel"}``, are summed out exactly. ``given`` holds values of the latent sites outside the
    data's plate, for conditional weights, or draws, for predictive weights. ``at_once`` rows run together; None
    means as many rows as fit in memory. The draws depend on ``at_once``, but the distribution of the draws does not.

    The ``adapted`` proposal is a Student t with full covariance in unconstrained coordinates of the continuous sites;
    classes are summed out. Rounds of weighted draws, 175 or more per dimension, fit the proposal to the posterior of
    each datum. The result does not contain the draws of these rounds. A datum keeps the guide if the guide has the
    larger effective sample size, as an exact guide has. With either proposal, the mean of w is unbiased for p(x).

    References:
        Population Monte Carlo (Cappé, Guillin, Marin and Robert, 2004), for the adapted proposal,
        https://doi.org/10.1198/106186004X12803.

    Raises:
        ValueError: If there are no particles or no images, or ``at_once`` is not positive.

    See Also:
        :func:`nll` for weights that do not fit in memory; :func:`pyro_vae.ais.log_weights` for annealed weights.
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

    With covariates y, the function estimates :math:`-\log p(x \mid y)`. The estimate equals minus :func:`iwae`. The
    estimate is too large on average, but less so with more draws. Arguments and errors are as for :func:`log_weights`.

    If a program has a method ``neighbours``, as a :class:`pyro_vae.programs.VQVAE`, its guide is a point mass, and the
    result is a sum over distinct codes in place of draws. It is never too small, and exact over all codes:

    .. math:: -\log \sum_{c \in S} p(c) \, p(x \mid c), \qquad |S| \le K

    Example:
        >>> from pyro_vae import VAE
        >>> nll(VAE.build((64,), latent=2), torch.rand(5, 64), num_particles=100).shape
        torch.Size([5])

    See Also:
        :func:`pareto_k` tells whether the estimate is reliable; :func:`pyro_vae.ais.ais` needs no good guide.
    """
    totals: dict[int, Tensor] = {}
    with at_data(program, data, seed, given) as posterior:
        if sums_codes(posterior.program):
            check_least(num_particles=num_particles)
            return -_log_sums(posterior, num_particles, progress)
        for part, log_w in _chunks(posterior, num_particles, at_once, progress, proposal):
            total = log_w.logsumexp(0)
            totals[part] = torch.logaddexp(totals[part], total) if part in totals else total
    return math.log(num_particles) - torch.cat([*totals.values()])


def sums_codes(program: Any) -> bool:
    """Return whether -log p(x) of a program is a sum over distinct codes: its guide is a point mass."""
    return callable(getattr(program, "neighbours", None))


def method(program: Any, num_particles: int, origin: str) -> str:
    """Describe in words how :func:`nll` computes -log p(x); ``origin`` says where its draws come from."""
    if sums_codes(program):
        return f"by a sum over the guide's codes and their neighbours, at most {num_particles:,}: an upper bound"
    return f"by importance sampling, {num_particles:,} draws {origin}: on average an upper bound"


def _log_sums(posterior: Posterior, num: int, progress: bool) -> Tensor:
    """Return the log of the summed joint probabilities, ``(B,)``, of the guide's codes and their neighbours."""
    images, draws = chunk_sizes(posterior)
    parts = batches(posterior, max(1, min(images, draws // num)))
    sums = []
    for rows in tqdm(parts, desc="-log p(x)", unit=" parts", leave=False, disable=not progress):
        codes = rows.program.neighbours(*rows.data, num)
        number, total = len(next(iter(codes.values()))), rows.data[0].new_full((len(rows),), -math.inf)
        size = max(1, draws // len(rows))
        for start in range(0, number, size):
            part = {name: value[start : start + size] for name, value in codes.items()}
            total = torch.logaddexp(total, rows.log_joint(part).logsumexp(0))
        sums.append(total)
    return torch.cat(sums)


def _chunks(
    posterior: Posterior, num: int, at_once: int | None, progress: bool, proposal: Proposal
) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of a part of the data and log-weights ``(k, rows)``, chunk by chunk.

    Pyro first validates the program once on each datum. Many chunks then run as a graph, compiled if this saves time.
    """
    check_least(num_particles=num, at_once=1 if at_once is None else at_once)
    check_choice("proposal", proposal, get_args(Proposal))
    adapted = proposal == "adapted" and bool(posterior.structure.continuous)
    images, draws = chunk_sizes(posterior) if at_once is None else (at_once, at_once)
    # Few images with many draws each, since an image is encoded again for every chunk of its draws.
    most = min(images, max(1, draws // min(num, TOGETHER)))
    if adapted:  # parts of one size, since a graph is of one size
        number = math.ceil(len(posterior) / min(most, data_at_once(posterior)))
        most = math.ceil(len(posterior) / number)
    parts = batches(posterior, most)
    sizes = [max(1, draws // len(rows)) for rows in parts]
    fitting = fitting_draws(posterior)[0] if adapted else 0
    calls = sum(math.ceil((num + fitting) / size) for size in sizes)

    def outputs(data: tuple[Tensor, ...], argument: Any) -> Outputs:
        """Return log p(x, u) at u = ``argument`` if adapted, else log-weights of ``argument`` draws from the guide."""
        rows = replace(posterior, data=data)
        return Outputs([log_density(rows, argument) if adapted else rows.log_weights(argument)], None)

    graph = GraphedFunction(outputs, "auto", calls, quiet=True, frozen=True) if calls >= MANY else None

    def run(data: tuple[Tensor, ...], argument: Any) -> Tensor:
        with fast_products("auto"):
            values: Tensor = (graph((data, argument), {}) if graph else outputs(data, argument)).tensors[0]
            return values

    if graph:
        with fork_rng(posterior.data[0].device):
            for rows in batches(posterior, draws):
                rows.log_weights(1)
            # Record the graph, and compare it on other rows.
            for rows in (parts[0], parts[0], [rows for rows in parts if len(rows) == len(parts[0])][-1]):
                run(rows.data, unconstrained_draws(rows, "guide", sizes[0]) if adapted else min(sizes[0], num))
    total = len(posterior) * (num + fitting)
    with tqdm(total=total, desc="-log p(x)", unit=" draws", unit_scale=True, leave=False, disable=not progress) as bar:
        for part, (rows, size) in enumerate(zip(parts, sizes, strict=True)):
            weigh: Callable[[int], Tensor] = partial(run, rows.data)
            if adapted:
                fixed = len(parts[0]) if graph else None
                weigh = AdaptedProposals(rows, run, sizes[0] if graph else size, bar.update, fixed).log_weights
            for start in range(0, num, size):
                log_w = weigh(min(size, num - start))
                if graph and log_w.isnan().any():
                    raise ValueError("Expected finite log-weights; some are NaN. Check the decoder's parameters.")
                yield part, log_w
                if not adapted:
                    bar.update(log_w.numel())
