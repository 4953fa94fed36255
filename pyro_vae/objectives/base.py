r"""What all objectives share: traces of a Pyro model and guide in, a loss with its gradient out."""

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
from pyro_vae.traces.enumeration import MOST, Expectation, enumerate_pair, marked
from pyro_vae.traces.particles import OneSubsample, OwnRows, Unseen, depth_of, importance_traces, probe
from pyro_vae.traces.sites import PARTICLES, Program, check_guide, loss_terms, mean_scale

Traces = list[tuple[Trace, Trace]]


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a value that is none of its choices."""
    if value not in choices:
        raise ValueError(f"Expected {name} to be {', '.join(choices[:-1])} or {choices[-1]}; got {value!r}.")


def check_least(least: int = 1, **numbers: int) -> None:
    """Refuse a number, given by its name, that is too small."""
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"Expected {name} of at least {least}; got {number}.")


class Terms(NamedTuple):
    """Two scalars of one run of model and guide, in nats, summed over the data."""

    loss: Tensor  # is optimised, its gradient the estimator's
    plain: Tensor  # is minus the ELBO at beta = 1 from the same draws, without a gradient


class Objective(pyro.infer.ELBO, ABC):
    """An ELBO estimator for any Pyro model and guide.

    To write one, subclass this and give :meth:`terms`. It is then the ``loss`` of a stock ``pyro.infer.SVI``, an
    objective of ``fit``, and ``objective(model, guide)`` is a module.

    Arguments:
        num_particles: Draws per datum.
        vectorize_particles: Whether to make them at once, in a plate to the left of the model's, so that the guide's
            networks run once; else one after another, for a program that cannot be batched.
        sampled: Why no divergence is in closed form, for :meth:`report`; empty where some may be.
        beta: Weight of the divergence, or a schedule of it.

    Attributes:
        plain: Minus the ELBO at beta = 1 of the last training step, in nats summed over the data.
    """

    def __init__(
        self, num_particles: int, vectorize_particles: bool, sampled: str = "", beta: float | Schedule = 1.0
    ) -> None:
        check_least(num_particles=num_particles)
        # Pyro guesses no depth of plates by itself: it would say so at every new program, and draw in between.
        super().__init__(num_particles, max_plate_nesting=sys.maxsize, vectorize_particles=vectorize_particles)
        self.sampled = sampled
        self.plain = torch.tensor(float("nan"))
        self._step = 0
        self._steps: int | None = None
        with torch.inference_mode(False):  # written in place, so that the graph of a step reads each new number
            self._beta = torch.tensor(0.0, device="cpu")
        self.beta = beta
        self._seen: tuple[Program, Program] | None = None
        self._marks: dict[tuple[Program, Program], tuple[tuple[str, ...], int]] = {}
        self._classes: tuple[str, ...] = ()  # sites that are summed out, of the program that runs
        self._subsample = OneSubsample()

    @abstractmethod
    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run the guide and the model; return the loss, and minus the ELBO at beta = 1."""

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
        """Begin a run of so many steps, or go on after those done; refuse a schedule that would not have reached 1."""
        self._step, self._steps = done, steps
        if isinstance(self.beta, Schedule):
            self.beta.check(steps)
            self._beta.fill_(self.beta(done, steps))

    def advance(self) -> None:
        """Go on by one step of the schedule; a loss with a gradient does so by itself."""
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
                    "Expected parameters that Pyro knows of; the model and the guide show none, so SVI steps nothing. "
                    "Call pyro.module or pyro.param in them, or use differentiable_loss with a torch optimizer.",
                    stacklevel=2,
                )
            loss.backward(retain_graph=self.retain_graph)
        warn_if_nan(loss, "loss")
        return loss.item()

    def report(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Report:
        """Say for each latent site whether its divergence is analytic or sampled, its nats at beta = 1, its scale."""
        return self.split(model, guide, *args, **kwargs)[1]

    @torch.no_grad()
    def split(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> tuple[float, Report]:
        """Return the ELBO's two terms at beta = 1, in nats summed over data: E[log p(x | z)], and :meth:`report`."""
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
        """Return the mean over classes that the two enumerate, if any."""
        return Expectation(model_trace, guide_trace, min(self.max_plate_nesting, MOST))

    def extra(self, traces: Traces) -> Tensor:
        """Return the gradient of the guide's terms of the loss, whose value is zero: no bound has them in it."""
        terms = total(site["log_prob_sum"] for pair in traces for site in loss_terms(*pair).values())
        terms = terms / self.num_particles
        return terms - terms.detach()

    def traces(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Traces:
        """Return the traces of model and guide that the loss is made of, all particles in one or one for each."""
        return self._traces(model, guide, args, kwargs)

    def _traces(self, model: Program, guide: Program, args: tuple, kwargs: dict, gradients: bool = True) -> Traces:
        """Trace the two; without ``gradients`` the model's networks run for their numbers alone."""
        traces: Traces
        batched = self.vectorize_particles and self.num_particles > 1
        if batched and self._seen != (model, guide):
            # The plates of a new program may nest deeper than those of the last.
            self.max_plate_nesting = 1 + probe(model, guide, args, kwargs)[0]
            self._seen = (model, guide)
        self._classes, nesting = self._marks.get((model, guide), ((), 0))
        run = model if gradients else torch.no_grad()(model)
        with OneSubsample() as self._subsample:
            while True:
                if not batched:
                    self.max_plate_nesting = nesting or sys.maxsize
                rows = OwnRows()
                traces = list(self._get_traces(Unseen()(rows(run)), rows(guide), args, kwargs))
                if self._classes or not (classes := marked(*traces[0], rows.marks)):
                    break
                # Run the two again, with the classes of these sites in dimensions of their own.
                self._classes, nesting = classes, max(map(depth_of, traces))
                self._marks = {(model, guide): (classes, nesting)}
        for pair in traces:
            check_guide(*pair, self._classes)
        return traces

    def _again(self, program: Program, num: int | None = None) -> Program:
        """Return a program to run once more on the same data, for as many particles, or for so many."""
        program = Unseen()(program)
        if num is not None:
            return self._subsample(pyro.plate(PARTICLES, num, dim=-self.max_plate_nesting)(program))
        return self._subsample(self._vectorized_num_particles(program) if self.vectorize_particles else program)

    def _get_trace(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        model, guide = enumerate_pair(model, guide, self._classes, self.max_plate_nesting)
        return importance_traces(model, guide, args, kwargs, self.max_plate_nesting)
