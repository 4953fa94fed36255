"""The guide trained on data that the model draws."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import pyro
import torch
from pyro.optim import PyroLRScheduler
from torch import Tensor, nn
from torch.distributions import constraints
from tqdm.auto import tqdm

from pyro_vae.compiled import CompiledSVI, how_many_fit
from pyro_vae.compiled.device import Precision
from pyro_vae.compiled.traced import Compile
from pyro_vae.data.supports import of_element
from pyro_vae.objectives import ELBO
from pyro_vae.objectives.base import check_least
from pyro_vae.program import Posterior, drawn_posterior, point_of, posterior_of
from pyro_vae.program.checks import sources
from pyro_vae.seeds import at_test, forked, modules_of
from pyro_vae.train.optimizers import Choice, recipe
from pyro_vae.train.validation import showing

POOL = 50  # minibatches, at most, that are drawn together
SOME = 1000  # data whose ELBO is compared, at most
DRAWS = 10  # of each of these
FEW = 2  # rows that show which parameters are the guide's
Places = dict[str, tuple[int, Tensor]]


class Sleep(NamedTuple):
    """The ELBO before and after, mean over the first of the data, nats; log p(x) is the same."""

    before: float
    after: float


def sleep(
    program: Any,
    steps: int = 10_000,
    data: Any = None,
    batch_size: int = 128,
    lr: float = 5e-3,
    optimizer: Choice = "adam",
    seed: int | None = None,
    progress: bool = False,
    compile: Compile = "auto",
    precision: Precision = "auto",
    update: Callable[[], Any] = lambda: None,
) -> Sleep:
    r"""Train a program's guide on data that its model draws, and leave the model as it is, to the last bit.

    .. math:: \max_\phi \; \mathbb{E}_{x \sim p} \left[ \mathbb{E}_{q_\phi(z \mid x)}
        [\log p(x, z) - \log q_\phi(z \mid x)] \right]

    An encoder that has seen few data fits them too well, and the ELBO of other data is short of log p(x): the
    amortisation gap. The model draws new ones for each step. With ``data``, those it was trained on, a quarter of a
    minibatch are drawn with z from the prior, and the rest are these data plus the difference of two draws from
    p(x | z), of z from the guide to them; where x may not be any number, half of the rest are the data, and half such a
    draw. The learning rate is one cycle up to ``lr``, and layers are in evaluation mode.

    A program with a method ``blank``, as a VAE, needs no data; of another one covariates are those of ``data``.

    References:
        The Wake-Sleep Algorithm for Unsupervised Neural Networks (Hinton, Dayan, Frey and Neal, 1995), whose sleep
        phase minimises the divergence the other way round.

        Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018).

    Returns:
        The ELBO before and after, of ``data`` or of some that are drawn.

    Raises:
        ValueError: If a number is not positive; the guide shares parameters with the model, has none, sees all rows
            together, or draws sites that the model does not have; or data cannot be drawn, as
            :func:`pyro_vae.posterior.sbc` says.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> vae = LinearGaussian(torch.ones(4, 1), torch.zeros(4), scale=0.5).vae()
        >>> with torch.no_grad():
        ...     _ = vae.encoder.network.bias.add_(1.0)  # too large a mean
        >>> before, after = sleep(vae, steps=200, lr=0.05, seed=0)
        >>> before < after - 1
        True
    """
    check_least(steps=steps, batch_size=batch_size)
    if not 0 < lr < math.inf:
        raise ValueError(f"Expected a positive lr; got {lr}.")
    with (
        at_test(program, device := point_of(program).device, seed),
        tqdm(total=steps, desc="sleep", unit=" steps", leave=False, disable=not progress) as bar,
    ):
        real = None if data is None else posterior_of(program, data)
        rows = real or drawn_posterior(program, None, batch_size)
        guides, others = parameters_of(rows)
        judges = (real or _from_prior(rows))[:SOME]
        before, start = _elbo(judges, device), [parameter.detach().clone() for parameter in guides]
        gradient: Any = "stl" if rows.structure.supports.keys() == rows.structure.continuous.keys() else "pathwise"
        svi = CompiledSVI(
            showing(program, rows.model) if isinstance(program, nn.Module) else rows.model,
            program.guide,
            recipe(optimizer, lr, "one-cycle", steps, program),
            ELBO(gradient=gradient),
            compile=compile,
            precision=precision,
            steps=steps,
        )
        places, pool = sources(rows), list[tuple[Tensor, ...]]()
        most = 4 * how_many_fit(lambda n: _batch(rows, places, real is not None, 4 * n), batch_size * POOL // 4, device)
        with _without_gradients(others):
            for step in range(steps):
                if not pool:
                    size = batch_size * max(1, min(most // batch_size, steps - step))
                    columns = _batch(rows, places, real is not None, size)
                    pool = [*zip(*(column.split(batch_size) for column in columns), strict=True)]
                _, parameters = svi.gradients(pool.pop())
                if not (gradients := [parameter.grad for parameter in guides if parameter.grad is not None]):
                    raise ValueError("Expected a guide that shows Pyro its parameters, by pyro.module; it shows none.")
                svi.apply(guides, finite=bool(torch.stack(torch._foreach_norm(gradients)).sum().isfinite()))
                for parameter in parameters:  # those of the model too, where Pyro's store holds them
                    parameter.grad = None
                cast(PyroLRScheduler, svi.optim).step()
                update()
                bar.update()
        if math.isfinite(after := _elbo(judges, device)):
            return Sleep(before, after)
        warnings.warn(f"The guide is as before the sleep, which came to an ELBO of {after}: lower lr.", stacklevel=2)
        with torch.no_grad():
            for parameter, value in zip(guides, start, strict=True):
                parameter.copy_(value)
        return Sleep(before, before)


@torch.no_grad()
def _batch(rows: Posterior, places: Places, real: bool, num: int) -> tuple[Tensor, ...]:
    """Return so many data that the model draws, in random order; most of them near ``real`` ones."""
    device = rows.data[0].device
    some = rows[torch.randint(len(rows), (num,), device=device)]
    near = 3 * num // 4 * real
    parts = [some[near:].put(some[near:].simulate(1), places).data]
    if near:
        parts.append(_near(some[:near], places))
    order = torch.randperm(num, device=device)
    return tuple(torch.cat(columns)[order] for columns in zip(*parts, strict=True))


def _near(rows: Posterior, places: Places) -> tuple[Tensor, ...]:
    """Return data with noise of the model, where they may be any numbers; else in part what it draws of their codes."""
    codes = rows.complete(1, rows.propose(1)[0])
    one, other = (rows.put(rows.simulate(1, codes), places).data for _ in range(2))
    if all(of_element(support) is constraints.real for support in rows.structure.laws.values()):
        return tuple(x + a - b if x.is_floating_point() else x for x, a, b in zip(rows.data, one, other, strict=True))
    half = len(rows) // 2
    return tuple(torch.cat([a[:half], x[half:]]) for x, a in zip(rows.data, one, strict=True))


@torch.no_grad()
def _from_prior(rows: Posterior) -> Posterior:
    """Return a program at data that its model draws."""
    return rows.at(rows.simulate(1))


def _elbo(rows: Posterior, device: torch.device) -> float:
    with torch.no_grad(), forked(device, 0):
        return sum(rows.log_weights(1).mean().item() for _ in range(DRAWS)) / DRAWS


def parameters_of(rows: Posterior) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of the guide, and all others, of a program that can sleep; refuse one that cannot."""
    structure = rows.structure
    if structure.whole or structure.hidden:
        reason = f"the model has no {structure.hidden[0]!r}" if structure.hidden else "this one is of all rows together"
        raise ValueError(
            f"Expected a guide to any row, which draws the model's sites alone; {reason}. Do without sleep."
        )
    lasting = [parameter for _, parameter in pyro.get_param_store().named_parameters()]
    with torch.no_grad():
        draws = rows[:FEW].simulate(1)
    some = rows[:FEW].at(draws)
    latent = {name: draws[name] for name in structure.supports}
    of_guide = some.log_q({name: value for name, value in latent.items() if name not in structure.alone}).sum()
    of_model = some.log_joint(latent).sum()
    modules = [pair for module in modules_of(rows.program) for pair in module.named_parameters()]
    names = {parameter: name for name, parameter in [*pyro.get_param_store().named_parameters(), *modules[::-1]]}
    parameters = [parameter for parameter in names if parameter.requires_grad]
    guides, models = (_reached(number, parameters) for number in (of_guide, of_model))
    if both := [names[parameter] for parameter in guides if any(parameter is other for other in models)]:
        raise ValueError(
            f"Expected a guide that shares no parameter with the model, which stays as it is; both have {both[0]!r}. "
            "Do without sleep; or, where the prior is a VampPrior, which asks the encoder, take another prior."
        )
    lasting += [parameter for _, parameter in modules]
    if not guides or not all(any(parameter is other for other in lasting) for parameter in guides):
        raise ValueError("Expected a guide with parameters in a module, or in Pyro's store, to train; it has none.")
    return guides, [parameter for parameter in parameters if not any(parameter is guide for guide in guides)]


def _reached(number: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Return the parameters that a number depends on."""
    if not number.requires_grad:
        return []
    gradients = torch.autograd.grad(number, parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


@contextmanager
def _without_gradients(parameters: list[Tensor]) -> Iterator[None]:
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
