"""Train a guide on data that the model draws."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pyro
import torch
from pyro.optim import PyroLRScheduler
from torch import Tensor, nn
from torch.distributions import constraints
from tqdm.auto import tqdm

from pyro_vae.compiled import CompiledSVI, max_batch_size
from pyro_vae.compiled.device import Precision
from pyro_vae.compiled.traced import Compile
from pyro_vae.data.supports import of_element
from pyro_vae.objectives import ELBO
from pyro_vae.objectives.base import check_least
from pyro_vae.program import Posterior, drawn_posterior, posterior_of, reference_tensor
from pyro_vae.program.checks import sources
from pyro_vae.seeds import eval_mode, fork_rng, modules_of
from pyro_vae.train.optimizers import Choice, recipe
from pyro_vae.train.settings import without_gradients
from pyro_vae.train.validation import with_params

POOL = 50  # minibatches that the model draws in one run, at most
MAX_COMPARED = 1000  # data of the ELBO before and after
DRAWS = 10  # of each of these data
FEW = 2  # rows that show which parameters are the guide's
Places = dict[str, tuple[int, Tensor]]


class Sleep(NamedTuple):
    """The mean ELBO of the first data before and after a sleep, in nats; log p(x) stays the same."""

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
    r"""Train a program's guide on data that its model draws; the model stays unchanged.

    .. math:: \max_\phi \; \mathbb{E}_{x \sim p} \left[ \mathbb{E}_{q_\phi(z \mid x)}
        [\log p(x, z) - \log q_\phi(z \mid x)] \right]

    An encoder trained on few data overfits the data. On new data the ELBO then falls short of log p(x): the
    amortisation gap (amortization gap). A sleep trains the encoder on new data in each step. ``data`` is the training
    data and the covariates. With ``data``, a quarter of each minibatch is drawn with z from the prior. The rest is
    training data plus the difference of two draws from p(x | z), with z from the guide. If x cannot be any real number,
    half of the rest is training data, and half is draws from p(x | z). A program with a method ``blank``, such as a
    VAE, needs no ``data``. The learning rate is one cycle up to ``lr``, and layers are in evaluation mode. Each step
    ends with a call of ``update``. All other arguments are the same as in :func:`pyro_vae.fit`.

    Returns:
        The mean ELBO before and after the sleep, of the first rows of ``data``; without ``data``, of model draws.

    Raises:
        ValueError: If a number is not positive; the guide shares parameters with the model, has none, takes all rows
            together, or draws sites that the model does not have; or the model cannot draw data, as in
            :func:`pyro_vae.posterior.sbc`.

    References:
        `The Wake-Sleep Algorithm <https://doi.org/10.1126/science.7761831>`_ (Hinton, Dayan, Frey and Neal, 1995),
        whose sleep phase minimises the other direction of the divergence.
        `Inference Suboptimality in VAEs <https://arxiv.org/abs/1801.03558>`_ (Cremer, Li and Duvenaud, 2018).

    See Also:
        :func:`pyro_vae.posterior.refine`, which optimises q(z | x) for each datum instead.

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
        eval_mode(program, device := reference_tensor(program).device, seed),
        tqdm(total=steps, desc="sleep", unit=" steps", leave=False, disable=not progress) as bar,
    ):
        real = None if data is None else posterior_of(program, data)
        rows = real or drawn_posterior(program, None, batch_size)
        of_guide, others = parameters_of(rows)
        compared = (real or _from_prior(rows))[:MAX_COMPARED]
        before, start = _elbo(compared, device), [parameter.detach().clone() for parameter in of_guide]
        gradient: Any = "stl" if rows.structure.supports.keys() == rows.structure.continuous.keys() else "pathwise"
        svi = CompiledSVI(
            with_params(program, rows.model) if isinstance(program, nn.Module) else rows.model,
            program.guide,
            recipe(optimizer, lr, "one-cycle", steps, program),
            ELBO(gradient=gradient),
            compile=compile,
            precision=precision,
            steps=steps,
        )
        places, pool = sources(rows), list[tuple[Tensor, ...]]()

        def draw(num: int) -> tuple[Tensor, ...]:
            return _batch(rows, places, real is not None, num)

        most = 4 * max_batch_size(lambda n: draw(4 * n), batch_size * POOL // 4, device)
        with without_gradients(others):
            for step in range(steps):
                if not pool:
                    columns = draw(batch_size * max(1, min(most // batch_size, steps - step)))
                    pool = [*zip(*(column.split(batch_size) for column in columns), strict=True)]
                _, parameters = svi.gradients(pool.pop())
                if not (gradients := [parameter.grad for parameter in of_guide if parameter.grad is not None]):
                    raise ValueError("Expected a guide that registers parameters, by pyro.module; it has none.")
                svi.apply(of_guide, finite=bool(torch.stack(torch._foreach_norm(gradients)).sum().isfinite()))
                for parameter in parameters:  # also parameters of the model in Pyro's store
                    parameter.grad = None
                cast(PyroLRScheduler, svi.optim).step()
                update()
                bar.update()
        if math.isfinite(after := _elbo(compared, device)):
            return Sleep(before, after)
        message = f"Expected a finite ELBO after the sleep; got {after}. The guide is restored. Use a smaller lr."
        warnings.warn(message, stacklevel=2)
        with torch.no_grad():
            for parameter, value in zip(of_guide, start, strict=True):
                parameter.copy_(value)
        return Sleep(before, before)


@torch.no_grad()
def _batch(rows: Posterior, places: Places, real: bool, num: int) -> tuple[Tensor, ...]:
    """Return ``num`` data that the model draws, in random order; three quarters near the rows if these are real."""
    device = rows.data[0].device
    sampled = rows[torch.randint(len(rows), (num,), device=device)]
    near = 3 * num // 4 * real
    parts = [sampled[near:].with_values(sampled[near:].simulate(1), places).data]
    if near:
        parts.append(_near(sampled[:near], places))
    order = torch.randperm(num, device=device)
    return tuple(torch.cat(columns)[order] for columns in zip(*parts, strict=True))


def _near(rows: Posterior, places: Places) -> tuple[Tensor, ...]:
    """Return data plus noise of the model if they are real numbers; else half data, half draws at their codes."""
    codes = rows.complete(1, rows.propose(1)[0])
    first, second = (rows.with_values(rows.simulate(1, codes), places).data for _ in range(2))
    if all(of_element(support) is constraints.real for support in rows.structure.observed_supports.values()):
        triples = zip(rows.data, first, second, strict=True)
        return tuple(x + a - b if x.is_floating_point() else x for x, a, b in triples)
    half = len(rows) // 2
    return tuple(torch.cat([a[:half], x[half:]]) for x, a in zip(rows.data, first, strict=True))


@torch.no_grad()
def _from_prior(rows: Posterior) -> Posterior:
    """Return the posterior at data that the model draws."""
    return rows.at(rows.simulate(1))


def _elbo(rows: Posterior, device: torch.device) -> float:
    """Return the mean ELBO, in nats per datum, with the same draws in every call."""
    with torch.no_grad(), fork_rng(device, 0):
        return sum(rows.log_weights(1).mean().item() for _ in range(DRAWS)) / DRAWS


def parameters_of(rows: Posterior) -> tuple[list[Tensor], list[Tensor]]:
    """Return the guide's parameters and all other parameters; refuse a guide that cannot be trained alone."""
    structure = rows.structure
    if structure.all_rows or structure.auxiliary:
        extra = structure.auxiliary
        reason = f"the model has no site {extra[0]!r}" if extra else "the guide takes all rows together"
        raise ValueError(f"Expected an amortised guide with no site outside the model; {reason}. Train without sleep.")
    stored = [parameter for _, parameter in pyro.get_param_store().named_parameters()]
    with torch.no_grad():
        draws = rows[:FEW].simulate(1)
    few = rows[:FEW].at(draws)
    latent = {name: draws[name] for name in structure.supports}
    log_q = few.log_q({name: value for name, value in latent.items() if name not in structure.model_only}).sum()
    log_joint = few.log_joint(latent).sum()
    modules = [pair for module in modules_of(rows.program) for pair in module.named_parameters()]
    names = {parameter: name for name, parameter in [*pyro.get_param_store().named_parameters(), *modules[::-1]]}
    parameters = [parameter for parameter in names if parameter.requires_grad]
    of_guide, of_model = (_parameters_in(value, parameters) for value in (log_q, log_joint))
    if shared := [names[parameter] for parameter in of_guide if any(parameter is other for other in of_model)]:
        raise ValueError(
            f"Expected a guide that shares no parameter with the model, since sleep trains the guide alone; both have "
            f"{shared[0]!r}. Train without sleep, or replace a VampPrior, which uses the encoder, by another prior."
        )
    stored += [parameter for _, parameter in modules]
    if not of_guide or not all(any(parameter is other for other in stored) for parameter in of_guide):
        raise ValueError(
            "Expected a guide whose density depends on parameters of a module or of Pyro's store; it depends on none."
        )
    return of_guide, [parameter for parameter in parameters if not any(parameter is own for own in of_guide)]


def _parameters_in(value: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Return the parameters that a scalar depends on."""
    if not value.requires_grad:
        return []
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
