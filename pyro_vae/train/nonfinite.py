"""Find the site, the parameter and the images of a loss or gradient that is not finite."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro.infer
import torch
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.objectives import Objective

ADVICE = "Try a smaller lr, --clip_norm, or data scaled to [0, 1]; --on_nan skip leaves such batches out."
# Pyro's error for a parameter outside its constraint.
CONSTRAINT = re.compile(r"parameter (\w+) .*? of distribution (\w+).*? the constraint (\S+?),")
TINY = 1e-4
SHOWN = 10


class NotFinite(ValueError):
    """Training stopped at a loss or gradient that is not finite; on a CPU, before the update.

    Attributes:
        record: ``epoch`` and ``step``, from 1; ``rows``, the batch's rows of ``dataset.train``; ``at_fault``, the rows
            whose log density is not finite; ``site``, the first site that is not finite; and ``sites``, the ranges of
            each site's parameters, value and log density.
    """

    def __init__(self, message: str, record: dict[str, Any]) -> None:
        super().__init__(message)
        self.record = record


def not_finite(loss: Any, parameters: Sequence[Tensor]) -> str:
    """Describe a loss or gradient that is not finite; return an empty string if both are finite."""
    gradients = [parameter.grad.sum() for parameter in parameters if parameter.grad is not None]
    if math.isfinite(sum(gradients, torch.as_tensor(loss)).item()):
        return ""
    if math.isfinite(loss):
        return f"expected a finite gradient, of a loss of {float(loss):.6g}; got one that is not"
    return f"expected a finite loss; got {float(loss)}"


def constraint_violation(error: ValueError) -> str:
    """Describe the parameter that violates its constraint; return an empty string for any other error."""
    match = CONSTRAINT.search(str(error))
    return f"expected {match[1]} of a {match[2]} to satisfy {match[3]}" if match else ""


def locate_nonfinite(
    model: Callable[..., Any], guide: Callable[..., Any], objective: pyro.infer.ELBO, batch: tuple, rows: Tensor
) -> dict[str, Any]:
    """Run model and guide again on a batch, and find the first site with a number or a gradient that is not finite.

    Return the entries ``words``, ``site``, ``sites`` and ``at_fault`` of :attr:`NotFinite.record`. ``rows`` are the
    numbers of the batch's rows in the training data.
    """
    with pyro.validation_enabled(False), torch.enable_grad():
        if isinstance(objective, Objective):
            traces = objective.traces(model, guide, *batch)
        else:
            traces = [get_importance_trace("flat", 1, model, guide, batch, {})]
        sites = {key: _tensors_of(site) for pair in traces for key, site in _sites(pair)}
        ranges = {key: {name: _range(value) for name, value in tensors.items()} for key, tensors in sites.items()}
        record = {"words": f"Each site is finite by itself. {ADVICE}", "site": "", "sites": ranges, "at_fault": []}
        for key, tensors in sites.items():
            if not all(value.isfinite().all() for value in tensors.values()):
                finite, at_fault = tensors["log-density"].isfinite(), list[int]()
                words = f"At {key}: {', '.join(f'{name} {text}' for name, text in ranges[key].items())}"
                if finite.dim() and finite.shape[-1] == len(rows):
                    at_fault = rows[~finite.reshape(-1, len(rows)).all(0)].tolist()
                if at_fault:
                    shown = ", ".join(map(str, at_fault[:SHOWN])) + (", ..." if len(at_fault) > SHOWN else "")
                    words += f"; for {len(at_fault)} of the batch's {len(rows)} images, of dataset.train rows {shown}"
                if key.startswith("p(") and "scale" in tensors and (tensors["scale"] < TINY).any():
                    words += ". Its scale is close to zero: fix it, as --likelihood.scale 0.1"
                return record | {"words": f"{words}. {ADVICE}", "site": key, "at_fault": at_fault}
        for pair in traces:
            for key, site in _sites(pair):
                if names := _nonfinite_gradients(pair, site["log_prob"]):
                    words = f"The gradient of {key}'s log density is not finite in {', '.join(names[:3])}. {ADVICE}"
                    return record | {"words": words, "site": key}
    return record


def _sites(pair: tuple[Trace, Trace]) -> Iterator[tuple[str, Any]]:
    """Yield the guide's sites as ``q(name)``, then the model's as ``p(name)``."""
    model_trace, guide_trace = pair
    for name in guide_trace.stochastic_nodes:
        yield f"q({name})", guide_trace.nodes[name]
    for name in [*model_trace.stochastic_nodes, *model_trace.observation_nodes]:
        yield f"p({name})", model_trace.nodes[name]


def _tensors_of(site: Any) -> dict[str, Tensor]:
    """Return the parameters of a site's distribution, its value and its log density."""
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    names = [name for name in fn.arg_constraints if name != "probs" or "logits" not in fn.arg_constraints]
    tensors = {name: getattr(fn, name, None) for name in names}
    tensors |= {"value": site["value"], "log-density": site["log_prob"]}
    return {name: value.detach() for name, value in tensors.items() if isinstance(value, Tensor)}


def _range(value: Tensor) -> str:
    """Return the number of elements that are not finite, and the range of the finite ones."""
    finite = value[value.isfinite()]
    count = value.numel()
    words = [f"not finite in {count - len(finite):,} of {count:,}"] if len(finite) < count else []
    words += [f"in [{finite.min().item():.3g}, {finite.max().item():.3g}]"] if len(finite) else []
    return " and ".join(words)


def _nonfinite_gradients(pair: tuple[Trace, Trace], log_density: Tensor) -> list[str]:
    """Return the names of the parameters in which a log density's gradient is not finite."""
    if not log_density.requires_grad:
        return []
    nodes: list[tuple[str, Any]] = [(name, trace.nodes[name]) for trace in pair for name in trace.param_nodes]
    params = {name: site["value"].unconstrained() for name, site in nodes}
    trained = {name.rpartition("$$$")[2]: value for name, value in params.items() if value.requires_grad}
    gradients = torch.autograd.grad(log_density.sum(), [*trained.values()], retain_graph=True, allow_unused=True)
    pairs = zip(trained, gradients, strict=True)
    return [name for name, gradient in pairs if gradient is not None and not gradient.isfinite().all()]
