"""The base class of objectives. An objective maps traces of a Pyro model and guide to a loss with a gradient."""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pyro.infer
import torch
from pyro.poutine import Trace
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vae.objectives.divergence import Report, SiteKL, divergences, reconstruction_terms, total
from pyro_vae.objectives.schedules import Schedule
from pyro_vae.traces.enumeration import MAX_DIMS, Expectation, enumerate_pair, sites_to_sum
from pyro_vae.traces.particles import CheckRows, FillMasked, SharedSubsample, importance_traces, plate_depth, probe
from pyro_vae.traces.sites import PARTICLES, Program, check_guide, loss_terms, mean_scale

Traces = list[tuple[Trace, Trace]]


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a ValueError if ``value`` is not one of ``choices``."""
    if value not in choices:
        raise ValueError(f"Expected {name} to be {', '.join(choices[:-1])} or {choices[-1]}; got {value!r}.")


def check_least(least: int = 1, **numbers: int) -> None:
    """Raise a ValueError if a keyword argument is no whole number or is below ``least``."""
    for name, number in numbers.items():
        if not hasattr(number, "__index__"):
            raise ValueError(f"Expected {name} to be a whole number; got {number!r}.")
        if number < least:
            raise ValueError(f"Expected {name} of at least {least}; got {number}.")


class Terms(NamedTuple):
    """The loss and minus the ELBO of one run of model and guide, in nats, summed over the data."""

    loss: Tensor  # to minimise; its gradient is the estimator's
    plain: Tensor  # minus the ELBO at beta = 1 of the same draws, without a gradient


class Objective(pyro.infer.ELBO, ABC):
    """Base class of an ELBO estimator for any Pyro model and guide.

    To write an objective, subclass :class:`Objective` and define :meth:`terms`. Pass an objective as ``loss`` to
    ``pyro.infer.SVI`` or as ``objective`` to :func:`pyro_vae.fit`. ``objective(model, guide)`` is a torch module.

    Arguments:
        num_particles: Draws per datum.
        vectorize_particles: Whether one run draws all particles, in a plate left of the model's plates. If False, each
            particle has a separate run, for a program that cannot be batched.
        sampled: The reason to sample every divergence, shown by :meth:`report`; empty to allow closed forms.
        beta: Weight of the divergence, or a :class:`Schedule` of it.

    Attributes:
        plain: Minus the ELBO at beta = 1 of the last training step, in nats summed over the data.
    """

    def __init__(
        self, num_particles: int, vectorize_particles: bool, sampled: str = "", beta: float | Schedule = 1.0
    ) -> None:
        check_least(num_particles=num_particles)
        # A number, since Pyro's guess of the depth of plates would warn at every new program, and draw.
        super().__init__(num_particles, max_plate_nesting=sys.maxsize, vectorize_particles=vectorize_particles)
        self.sampled = sampled
        self.plain = torch.tensor(float("nan"))
        self._step = 0
        self._steps: int | None = None
        with torch.inference_mode(False):  # written in place, so that the graph of a step reads each new value
            self._beta = torch.tensor(0.0, device="cpu")
        self.beta = beta
        self._probed: tuple[Program, Program] | None = None
        self._enumerated: dict[tuple[Program, Program], tuple[tuple[str, ...], int]] = {}
        self._classes: tuple[str, ...] = ()  # sites of the current program to sum out
        self._subsample = SharedSubsample()

    @abstractmethod
    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run the guide and the model; return the loss and minus the ELBO at beta = 1."""

    def part_of(self, program: Any) -> Any:
        """Return the part of a program that the objective trains: the whole program, unless a subclass says less."""
        return program

    @property
    def beta(self) -> float | Schedule:
        """The weight of the divergence, or its schedule."""
        return self._weight

    @beta.setter
    def beta(self, beta: float | Schedule) -> None:
        if not isinstance(beta, Schedule) and not 0 <= beta < float("inf"):
            raise ValueError(f"Expected a finite beta of at least 0, or a schedule; got {beta}.")
        self._weight = beta
        self._beta.fill_(beta.start if isinstance(beta, Schedule) else beta)

    @property
    def beta_now(self) -> float:
        """The weight of the divergence at the next step."""
        return self._beta.item()

    def start(self, steps: int, done: int = 0) -> None:
        """Start the schedule of a run, or resume it after ``done`` steps; refuse a warm-up longer than ``steps``."""
        self._step, self._steps = done, steps
        if isinstance(self.beta, Schedule):
            self.beta.check(steps)
            self._beta.fill_(self.beta(done, steps))

    def advance(self) -> None:
        """Advance the schedule by one step; each loss with a gradient already calls this method."""
        self._step += 1
        if isinstance(self.beta, Schedule):
            self._beta.fill_(self.beta(self._step, self._steps))

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data."""
        warn_if_nan(loss := self.terms(model, guide, *args, **kwargs).loss, "loss")
        return loss.item()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a scalar whose ``backward()`` gives the gradient estimate."""
        terms = self.terms(model, guide, *args, **kwargs)
        self.plain = terms.plain
        if torch.is_grad_enabled():
            self.advance()
        return terms.loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data, and add its gradient to each parameter's ``grad``."""
        with pyro.poutine.trace(param_only=True) as params:
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            if not params.trace.nodes:
                warnings.warn(
                    "Expected parameters registered with Pyro; model and guide have none, so SVI trains nothing. "
                    "Call pyro.module or pyro.param in them, or use differentiable_loss with a torch optimizer.",
                    stacklevel=2,
                )
            loss.backward(retain_graph=self.retain_graph)
        warn_if_nan(loss, "loss")
        return loss.item()

    def report(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Report:
        """Return each latent site's divergence at beta = 1, in nats, and whether it is analytic or sampled."""
        return self.split(model, guide, *args, **kwargs)[1]

    @torch.no_grad()
    def split(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> tuple[float, Report]:
        """Return E[log p(x | z)], in nats summed over the data, and :meth:`report`: the ELBO's terms at beta = 1."""
        reconstruction, report = 0.0, Report()
        for model_trace, guide_trace in self._traces(model, guide, args, kwargs):
            expect = self.expectation(model_trace, guide_trace)
            terms = reconstruction_terms(model_trace, expect)
            reconstruction += sum(term.sum().item() for term in terms) / self.num_particles
            for name, divergence in divergences(model_trace, guide_trace, expect, self.sampled).items():
                nats = (report[name].nats if name in report else 0.0) + divergence.nats.item() / self.num_particles
                kind: Literal["analytic", "sampled"] = "sampled" if divergence.reason else "analytic"
                report[name] = SiteKL(kind, nats, mean_scale(guide_trace.nodes[name]), divergence.reason)
        return reconstruction, report

    def expectation(self, model_trace: Trace, guide_trace: Trace) -> Expectation:
        """Return the mean over the classes that model and guide enumerate, if any."""
        return Expectation(model_trace, guide_trace, min(self.max_plate_nesting, MAX_DIMS))

    def extra(self, traces: Traces) -> Tensor:
        """Return a zero with the gradient of the guide's own loss terms; the bound does not contain these terms."""
        terms = total(site["log_prob_sum"] for pair in traces for site in loss_terms(*pair).values())
        terms = terms / self.num_particles
        return terms - terms.detach()

    def traces(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Traces:
        """Return the pairs of traces of model and guide that the loss uses: one pair, or one for each particle."""
        return self._traces(model, guide, args, kwargs)

    def _traces(self, model: Program, guide: Program, args: tuple, kwargs: dict, gradients: bool = True) -> Traces:
        """Trace model and guide, the model without gradients unless ``gradients``."""
        traces: Traces
        batched = self.vectorize_particles and self.num_particles > 1
        if batched and self._probed != (model, guide):
            # A new program may have deeper plates than the last one.
            self.max_plate_nesting = 1 + probe(model, guide, args, kwargs)[0]
            self._probed = (model, guide)
        self._classes, nesting = self._enumerated.get((model, guide), ((), 0))
        run = model if gradients else torch.no_grad()(model)
        with SharedSubsample() as self._subsample:
            while True:
                if not batched:
                    self.max_plate_nesting = nesting or sys.maxsize
                rows = CheckRows()
                traces = list(self._get_traces(FillMasked()(rows(run)), rows(guide), args, kwargs))
                if self._classes or not (classes := sites_to_sum(*traces[0], rows.marks)):
                    break
                # Run model and guide again, with one dimension for the classes of each of these sites.
                self._classes, nesting = classes, max(map(plate_depth, traces))
                self._enumerated = {(model, guide): (classes, nesting)}
        for pair in traces:
            check_guide(*pair, self._classes)
        return traces

    def _rerun(self, program: Program, num: int | None = None) -> Program:
        """Return a program that runs again on the same rows, for ``num`` particles or for all."""
        program = FillMasked()(program)
        if num is not None:
            return self._subsample(pyro.plate(PARTICLES, num, dim=-self.max_plate_nesting)(program))
        return self._subsample(self._vectorized_num_particles(program) if self.vectorize_particles else program)

    def _get_trace(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        model, guide = enumerate_pair(model, guide, self._classes, self.max_plate_nesting)
        return importance_traces(model, guide, args, kwargs, self.max_plate_nesting)
