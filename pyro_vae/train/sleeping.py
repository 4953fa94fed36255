r"""The guide trained on data that the model draws, of which there are as many as one likes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.optim import PyroLRScheduler
from torch import Tensor
from torch.distributions import constraints
from tqdm.auto import tqdm

from pyro_vae.compiled import CompiledSVI
from pyro_vae.data.supports import of_element
from pyro_vae.objectives import ELBO
from pyro_vae.objectives.base import check_least
from pyro_vae.program import Draws, Posterior, drawn_posterior, point_of, posterior_of
from pyro_vae.seeds import at_test, forked, modules_of
from pyro_vae.train.optimizers import Choice, recipe

POOL = 50  # minibatches that are drawn together
SOME = 1000  # data, and draws of each, for the ELBO before and after
DRAWS = 10


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
    update: Callable[[], Any] = lambda: None,
) -> Sleep:
    r"""Train a program's guide on data that its model draws, and leave the model as it is, to the last bit.

    .. math:: \max_\phi \; \mathbb{E}_{x \sim p} \left[ \mathbb{E}_{q_\phi(z \mid x)}
        [\log p(x, z) - \log q_\phi(z \mid x)] \right]

    An encoder that has seen few data fits them too well, and the ELBO of other data is short of log p(x): the
    amortisation gap. The model draws new ones for each step. With ``data``, those it was trained on, half of a
    minibatch are drawn with z from the prior, and half are these data with the noise of p(x | z) added to them, as the
    difference of two draws given one z; where x may not be any number, a quarter are the data, and a quarter are drawn
    with z from the guide to them. The learning rate is one cycle up to ``lr``, and layers are in evaluation mode.

    Covariates are those of ``data``, which a program with a method ``blank``, as a VAE, does not need.

    References:
        The Wake-Sleep Algorithm for Unsupervised Neural Networks (Hinton, Dayan, Frey and Neal, 1995), whose sleep
        phase minimises the divergence the other way round.

        Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018).

    Returns:
        The ELBO before and after, of ``data`` or of some that are drawn.

    Raises:
        ValueError: If a number is not positive, the guide shares parameters with the model or has none, or data cannot
            be drawn, as :func:`pyro_vae.posterior.sbc` says.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> vae = LinearGaussian(torch.ones(4, 1), torch.zeros(4), scale=0.5).vae()
        >>> with torch.no_grad():
        ...     vae.encoder.network.bias.add_(1.0)  # too large a mean
        >>> before, after = sleep(vae, steps=200, lr=0.05, seed=0)
        >>> before < after - 1
        True
    """
    check_least(steps=steps, batch_size=batch_size)
    if not lr > 0:
        raise ValueError(f"Expected a positive lr; got {lr}.")
    with (
        at_test(program, device := point_of(program).device, seed),
        torch.enable_grad(),
        tqdm(total=steps, desc="sleep", unit=" steps", leave=False, disable=not progress) as bar,
    ):
        real = None if data is None else posterior_of(program, data)
        rows = real or drawn_posterior(program, None, batch_size)
        drawn, latent = _from_prior(rows[:SOME])
        others = _parameters_of_model(drawn, latent)
        before = _elbo(real or drawn, device)
        gradient: Any = "stl" if rows.structure.supports.keys() == rows.structure.continuous.keys() else "pathwise"
        optim = recipe(optimizer, lr, "one-cycle", steps, program)
        svi = CompiledSVI(rows.model, program.guide, optim, ELBO(gradient=gradient), steps=steps)
        with _without_gradients(others):
            for step in range(steps):
                if step % POOL == 0:
                    pool = _pool(rows, real is not None, batch_size * min(POOL, steps - step))
                first = step % POOL * batch_size
                _, parameters = svi.gradients(tuple(column[first : first + batch_size] for column in pool))
                norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
                svi.apply(parameters, finite=bool(torch.stack(norms).sum().isfinite()))
                if isinstance(svi.optim, PyroLRScheduler):
                    svi.optim.step()
                update()
                bar.update()
        return Sleep(before, _elbo(real or drawn, device))


@torch.no_grad()
def _pool(rows: Posterior, real: bool, num: int) -> tuple[Tensor, ...]:
    """Return so many data that the model draws, in random order; half of them near ``real`` ones."""
    chosen = rows[torch.randint(len(rows), (num,), device=rows.data[0].device)]
    half = num // 2 * real
    parts = [_from_prior(chosen[half:])[0].data]
    if half:
        parts.append(_near(chosen[:half]))
    order = torch.randperm(num, device=rows.data[0].device)
    return tuple(torch.cat(columns)[order] for columns in zip(*parts, strict=True))


def _near(rows: Posterior) -> tuple[Tensor, ...]:
    """Return data with noise of the model, where they may be any numbers; else in part what it draws of their codes."""
    codes = rows.complete(1, rows.propose(1)[0])
    one, other = (rows.at(rows.simulate(1, codes)).data for _ in range(2))
    if all(of_element(support) is constraints.real for support in rows.structure.laws.values()):
        return tuple(
            x + (a - b) / 2**0.5 if x.is_floating_point() else x for x, a, b in zip(rows.data, one, other, strict=True)
        )
    first = len(rows) // 2
    return tuple(torch.cat([a[:first], x[first:]]) for x, a in zip(rows.data, one, strict=True))


@torch.no_grad()
def _from_prior(rows: Posterior) -> tuple[Posterior, Draws]:
    """Return a program at data that its model draws, and the draws of latent sites that they are of."""
    draws = rows.simulate(1)
    return rows.at(draws), {name: draws[name] for name in rows.structure.supports}


def _elbo(rows: Posterior, device: torch.device) -> float:
    with torch.no_grad(), forked(device, 0):
        return rows[:SOME].log_weights(DRAWS).mean().item()


def _parameters_of_model(rows: Posterior, draws: Draws) -> list[Tensor]:
    """Return all parameters but the guide's; refuse a guide that has some of the model's, or none."""
    named = {
        name: parameter
        for module in modules_of(rows.program)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    own = {name: value for name, value in draws.items() if name not in rows.structure.alone}
    losses = (rows.log_q(own).sum(), rows.log_joint(draws).sum())
    of_guide, of_model = (_reached(loss, named) for loss in losses)
    if shared := sorted(of_guide & of_model):
        raise ValueError(
            f"Expected a guide with parameters of its own, to leave the model as it is; {shared[0]!r} is of both, as "
            "where a VampPrior sees through the encoder."
        )
    if not of_guide:
        raise ValueError("Expected a guide with parameters in a module, to train; it has none.")
    return [parameter for name, parameter in named.items() if name not in of_guide]


def _reached(loss: Tensor, named: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the parameters that a number depends on."""
    if not loss.requires_grad:
        return set()
    gradients = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


@contextmanager
def _without_gradients(parameters: list[Tensor]) -> Iterator[None]:
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
