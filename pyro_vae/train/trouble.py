"""Where a loss or a gradient that is not finite comes from: which site, which of its parameters, which images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.infer
import torch
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.objectives import Objective

__all__ = ["Fault", "NotFinite", "find_fault", "not_finite"]

ADVICE = "Try a smaller lr, --clip_norm, or data scaled to [0, 1]; --on_nan skip leaves such batches out."
TINY = 1e-4
SHOWN = 10


class NotFinite(ValueError):
    """Training met a loss or a gradient that is not finite, and stopped: on a CPU, before it was taken in.

    Attributes:
        record: ``epoch`` and ``step``, from 1; ``rows``, the batch's of ``dataset.train``; ``at_fault``, those of them
            whose log-density is not finite; ``site``; and ``sites``, what each is made of.
    """

    def __init__(self, message: str, record: dict[str, Any]) -> None:
        super().__init__(message)
        self.record = record


class Fault(NamedTuple):
    """What is known of a step that gave no finite number: in words, as data, and which of its rows are at fault."""

    words: str
    site: str
    sites: dict[str, dict[str, str]]
    at_fault: list[int]


def not_finite(loss: Any, parameters: Sequence[Tensor]) -> str:
    """Say what is wrong with a step whose loss or gradient is not finite; nothing if they are."""
    gradients = [parameter.grad.sum() for parameter in parameters if parameter.grad is not None]
    if math.isfinite(sum(gradients, torch.as_tensor(loss)).item()):
        return ""
    got = f"a finite gradient, of a loss of {float(loss):.6g}; got one that is not"
    return f"expected {got if math.isfinite(loss) else f'a finite loss; got {float(loss)}'}"


def find_fault(
    model: Callable[..., Any], guide: Callable[..., Any], objective: pyro.infer.ELBO, batch: tuple, rows: Tensor
) -> Fault:
    """Run model and guide once more, from the random state that the step began with, and look for what is not finite.

    Arguments:
        model: The model.
        guide: The guide.
        objective: What was optimised, whose draws these are.
        batch: The arguments of both.
        rows: Which rows of the training images it is.
    """
    with pyro.validation_enabled(False), torch.enable_grad():
        if isinstance(objective, Objective):
            traces = objective.traces(model, guide, *batch)
        else:
            traces = [get_importance_trace("flat", 1, model, guide, batch, {})]
        sites = {key: _numbers(site) for pair in traces for key, site in _sites(pair)}
        described = {key: {name: _range(value) for name, value in numbers.items()} for key, numbers in sites.items()}
        for key, numbers in sites.items():
            if any(not value.isfinite().all() for value in numbers.values()):
                at_fault = _wrong_rows(numbers["log-density"], rows)
                return Fault(_words(key, described[key], numbers, at_fault, len(rows)), key, described, at_fault)
        for pair in traces:
            for key, site in _sites(pair):
                if names := _wrong_gradients(pair, site["log_prob"]):
                    words = f"The gradient of {key}'s log-density is not finite in {', '.join(names[:3])}. {ADVICE}"
                    return Fault(words, key, described, [])
    return Fault(f"Each site is finite by itself. {ADVICE}", "", described, [])


def _sites(pair: tuple[Trace, Trace]) -> Iterator[tuple[str, Any]]:
    """The guide's sites, then the model's, by what they are called in a sentence."""
    model_trace, guide_trace = pair
    for name in guide_trace.stochastic_nodes:
        yield f"q({name})", guide_trace.nodes[name]
    for name in [*model_trace.stochastic_nodes, *model_trace.observation_nodes]:
        yield f"p({name})", model_trace.nodes[name]


def _numbers(site: Any) -> dict[str, Tensor]:
    """What a site is made of: the parameters of its distribution, the value, the log-density."""
    law = site["fn"]
    while hasattr(law, "base_dist"):
        law = law.base_dist
    found = {name: getattr(law, name, None) for name in law.arg_constraints}
    if {"probs", "logits"} <= found.keys():
        del found["probs"]
    numbers = {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}
    return numbers | {"value": site["value"].detach(), "log-density": site["log_prob"].detach()}


def _range(value: Tensor) -> str:
    wrong = int((~value.isfinite()).sum())
    seen = value[value.isfinite()]
    within = f"in [{seen.min().item():.3g}, {seen.max().item():.3g}]" if len(seen) else ""
    count = f"not finite in {wrong:,} of {value.numel():,}" if wrong else ""
    return " and ".join(word for word in (count, within) if word)


def _wrong_rows(log_density: Tensor, rows: Tensor) -> list[int]:
    if not log_density.dim() or log_density.shape[-1] != len(rows):
        return []
    wrong = ~log_density.isfinite()
    return rows[wrong.flatten(0, -2).any(0) if wrong.dim() > 1 else wrong].tolist()


def _words(key: str, described: dict[str, str], numbers: dict[str, Tensor], at_fault: Sequence[int], size: int) -> str:
    parameters = ", ".join(f"{name} {text}" for name, text in described.items())
    which = ""
    if at_fault:
        shown = ", ".join(map(str, at_fault[:SHOWN])) + (", ..." if len(at_fault) > SHOWN else "")
        which = f"; for {len(at_fault)} of the batch's {size} images, of dataset.train rows {shown}"
    scale = numbers.get("scale")
    runs = scale is not None and key.startswith("p(") and bool((scale < TINY).any())
    advice = "Its scale runs to zero: fix it, as --likelihood.scale 0.1. " if runs else ""
    return f"At {key}: {parameters}{which}. {advice}{ADVICE}"


def _wrong_gradients(pair: tuple[Trace, Trace], log_density: Tensor) -> list[str]:
    """Names of the parameters in which a log-density's gradient is not finite."""
    if not log_density.requires_grad:
        return []
    met: dict[str, Any] = {name: site for trace in pair for name, site in trace.nodes.items()}
    params = {name: site["value"] for name, site in met.items() if site["type"] == "param"}
    trained = {name.rpartition("$$$")[2]: value.unconstrained() for name, value in params.items()}
    trained = {name: value for name, value in trained.items() if value.requires_grad}
    found = torch.autograd.grad(log_density.sum(), [*trained.values()], retain_graph=True, allow_unused=True)
    pairs = zip(trained, found, strict=True)
    return [name for name, gradient in pairs if gradient is not None and not gradient.isfinite().all()]
