"""What goes wrong, in words: where a number that is not finite comes from, and what goes wrong without one."""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro.infer
import torch
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_vae.objectives import Objective

ADVICE = "Try a smaller lr, --clip_norm, or data scaled to [0, 1]; --on_nan skip leaves such batches out."
# Pyro's words for a parameter of a distribution that is out of its range.
BROKEN = re.compile(r"parameter (\w+) .*? of distribution (\w+).*? the constraint (\S+?),")
TINY = 1e-4
SHOWN = 10
NOTHING = 0.001  # nats of KL below which codes say nothing
EPOCHS = 5
LEVEL = 1 / 256  # of the range of x: a scale below it is of single grey levels


class NotFinite(ValueError):
    """Training met a loss or a gradient that is not finite, and stopped: on a CPU, before the step.

    Attributes:
        record: ``epoch`` and ``step``, from 1; ``rows``, the batch's of ``dataset.train``; ``at_fault``, those of them
            whose log-density is not finite; ``site``; and ``sites``, what each is made of.
    """

    def __init__(self, message: str, record: dict[str, Any]) -> None:
        super().__init__(message)
        self.record = record


def not_finite(loss: Any, parameters: Sequence[Tensor]) -> str:
    """Say whether a step's loss or its gradient is not finite; nothing if both are."""
    gradients = [parameter.grad.sum() for parameter in parameters if parameter.grad is not None]
    if math.isfinite(sum(gradients, torch.as_tensor(loss)).item()):
        return ""
    if math.isfinite(loss):
        return f"expected a finite gradient, of a loss of {float(loss):.6g}; got one that is not"
    return f"expected a finite loss; got {float(loss)}"


def out_of_range(error: ValueError) -> str:
    """Say which parameter of a distribution is out of its range, if that is Pyro's error."""
    match = BROKEN.search(str(error))
    return f"expected {match[1]} of a {match[2]} to satisfy {match[3]}" if match else ""


def find_fault(
    model: Callable[..., Any], guide: Callable[..., Any], objective: pyro.infer.ELBO, batch: tuple, rows: Tensor
) -> dict[str, Any]:
    """Run model and guide again on a batch of rows, from generators as before the step; find what is not finite."""
    with pyro.validation_enabled(False), torch.enable_grad():
        if isinstance(objective, Objective):
            traces = objective.traces(model, guide, *batch)
        else:
            traces = [get_importance_trace("flat", 1, model, guide, batch, {})]
        sites = {key: _numbers(site) for pair in traces for key, site in _sites(pair)}
        described = {key: {name: _range(value) for name, value in numbers.items()} for key, numbers in sites.items()}
        fault = {"words": f"Each site is finite by itself. {ADVICE}", "site": "", "sites": described, "at_fault": []}
        for key, numbers in sites.items():
            if not all(value.isfinite().all() for value in numbers.values()):
                finite, at_fault = numbers["log-density"].isfinite(), list[int]()
                words = f"At {key}: {', '.join(f'{name} {text}' for name, text in described[key].items())}"
                if finite.dim() and finite.shape[-1] == len(rows):
                    at_fault = rows[~finite.reshape(-1, len(rows)).all(0)].tolist()
                if at_fault:
                    shown = ", ".join(map(str, at_fault[:SHOWN])) + (", ..." if len(at_fault) > SHOWN else "")
                    words += f"; for {len(at_fault)} of the batch's {len(rows)} images, of dataset.train rows {shown}"
                if key.startswith("p(") and "scale" in numbers and (numbers["scale"] < TINY).any():
                    words += ". Its scale runs to zero: fix it, as --likelihood.scale 0.1"
                return fault | {"words": f"{words}. {ADVICE}", "site": key, "at_fault": at_fault}
        for pair in traces:
            for key, site in _sites(pair):
                if names := _wrong_gradients(pair, site["log_prob"]):
                    words = f"The gradient of {key}'s log-density is not finite in {', '.join(names[:3])}. {ADVICE}"
                    return fault | {"words": words, "site": key}
    return fault


def _sites(pair: tuple[Trace, Trace]) -> Iterator[tuple[str, Any]]:
    """The guide's sites, then the model's, by what they are called in a sentence."""
    model_trace, guide_trace = pair
    for name in guide_trace.stochastic_nodes:
        yield f"q({name})", guide_trace.nodes[name]
    for name in [*model_trace.stochastic_nodes, *model_trace.observation_nodes]:
        yield f"p({name})", model_trace.nodes[name]


def _numbers(site: Any) -> dict[str, Tensor]:
    """A site's numbers: the parameters of its distribution, the value, the log-density."""
    law = site["fn"]
    while hasattr(law, "base_dist"):
        law = law.base_dist
    names = [name for name in law.arg_constraints if name != "probs" or "logits" not in law.arg_constraints]
    numbers = {name: getattr(law, name, None) for name in names}
    numbers |= {"value": site["value"], "log-density": site["log_prob"]}
    return {name: value.detach() for name, value in numbers.items() if isinstance(value, Tensor)}


def _range(value: Tensor) -> str:
    seen = value[value.isfinite()]
    words = [f"not finite in {value.numel() - len(seen):,} of {value.numel():,}"] if len(seen) < value.numel() else []
    within = [f"in [{seen.min().item():.3g}, {seen.max().item():.3g}]"] if len(seen) else []
    return " and ".join(words + within)


def _wrong_gradients(pair: tuple[Trace, Trace], log_density: Tensor) -> list[str]:
    """Names of the parameters in which a log-density's gradient is not finite."""
    if not log_density.requires_grad:
        return []
    nodes: list[tuple[str, Any]] = [(name, trace.nodes[name]) for trace in pair for name in trace.param_nodes]
    params = {name: site["value"].unconstrained() for name, site in nodes}
    trained = {name.rpartition("$$$")[2]: value for name, value in params.items() if value.requires_grad}
    gradients = torch.autograd.grad(log_density.sum(), [*trained.values()], retain_graph=True, allow_unused=True)
    pairs = zip(trained, gradients, strict=True)
    return [name for name, gradient in pairs if gradient is not None and not gradient.isfinite().all()]


class Watch:
    """Warns once of each: nothing is trained, the KL stays at zero, the likelihood's scale runs to zero."""

    def __init__(self, program: nn.Module, spread: float) -> None:
        self.program, self.spread = program, spread or 1.0  # the range of x
        self._said: set[str] = set()
        self._looked = False
        self._first_scale = math.nan

    def parameters(self, trained: Sequence[Tensor]) -> None:
        """Look, once, at which parameters a step has met."""
        if self._looked:
            return
        self._looked = True
        known, own = {*map(id, trained)}, dict(self.program.named_parameters())
        left_out = [name for name, value in own.items() if value.requires_grad and id(value) not in known]
        if not known:
            self.say(
                "Expected parameters that Pyro knows of; the model and the guide show none that may be trained, so "
                "nothing is. Call module or pyro.param in them, and leave requires_grad on."
            )
        elif left_out:
            self.say(
                f"Expected a model and a guide that show Pyro all parameters; {len(left_out)} of the program's, as "
                f"{left_out[0]!r}, are in neither, and are not trained. Call module in the program, or freeze them."
            )
        mine = {*map(id, own.values())}
        others = [name for name, value in pyro.get_param_store().named_parameters() if id(value) not in mine]
        if others:
            self.say(
                f"Expected all parameters in the program, whose weights are what is saved; Pyro's store has "
                f"{others[0]!r} too. Make it an nn.Parameter of the program or of a part of it, or keep it yourself."
            )

    def outside(self, times: float, sites: Sequence[str], total: int) -> None:
        """Look at the latents outside the data's plate, whose prior a step counts so many times too much."""
        if sites and times > 1.001:
            self.say(
                f"The latent site {sites[0]!r} is outside the plate of the data, which is not scaled to them: its "
                f"prior counts in each minibatch, {times:.3g} times too much. Write pyro.plate('data', {total}, "
                "subsample_size=len(x)) in model and guide, or subsample=rows."
            )

    def epoch(self, history: Mapping[str, Sequence[float]], scale: float) -> None:
        """Look at the history up to an epoch, and at the least scale of p(x | z), nan if there is none."""
        if "valid" not in history:
            return
        last = history["valid_kl"][-EPOCHS:]
        if len(last) == EPOCHS and all(kl < NOTHING for kl in last):
            self.say(
                f"The KL has stayed at zero for {EPOCHS} epochs ({last[-1]:.2g} nats): the codes say nothing of the "
                "images. Try --objective.beta Linear, --objective.free_bits 0.1, a smaller beta or decoder."
            )
        if not math.isfinite(history["valid"][-1]):
            self.say(f"Expected a finite ELBO of the validation images; it is {-history['valid'][-1]}.")
        if math.isnan(self._first_scale):
            self._first_scale = scale
        elif scale < min(LEVEL * self.spread, self._first_scale):
            self.say(
                f"The likelihood's scale runs to zero ({scale:.2g}, where x spans {self.spread:.3g}): its density "
                "grows without bound, and the ELBO with it. Fix it, as --likelihood.scale 0.1, use --dequantize true, "
                "or a mass of grey levels, as DiscretizedLogistic."
            )

    def say(self, words: str) -> None:
        """Warn in these words, once."""
        if words[:30] not in self._said:
            self._said.add(words[:30])
            warnings.warn(words, stacklevel=2)
