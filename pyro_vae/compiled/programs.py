"""What a step asks of a Pyro program: its loss as tensors, and the parameters that Pyro meets in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_vae.objectives import ELBO, Objective
from pyro_vae.objectives.base import Terms

__all__ = ["device_of", "in_store", "met", "terms_of", "trained", "training"]


def terms_of(loss: Any) -> Callable[..., Terms] | None:
    """Return the loss as tensors to the end, where it can be."""
    if type(loss) in (Trace_ELBO, TraceMeanField_ELBO):
        kl: Any = "sampled" if type(loss) is Trace_ELBO else "auto"
        loss = ELBO(loss.num_particles, kl=kl, vectorize_particles=loss.vectorize_particles)
    if isinstance(loss, Objective):
        return loss.terms
    if isinstance(loss, pyro.infer.ELBO):
        if type(loss).__module__.startswith("pyro.") or not hasattr(loss, "differentiable_loss"):
            return None
        loss = loss.differentiable_loss

    def terms(*args: Any, **kwargs: Any) -> Terms:
        return Terms(torch.as_tensor(loss(*args, **kwargs)), torch.tensor(math.nan))

    return terms


def met(capture: Any) -> dict[str, Tensor]:
    """The parameters that Pyro met, unconstrained, by name."""
    return {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}


def trained(found: dict[str, Tensor]) -> list[Tensor]:
    """Those to be trained, each once."""
    return [parameter for parameter in dict.fromkeys(found.values()) if parameter.requires_grad]


def training(program: Any) -> bool | None:
    """Whether the module that a program is, or is a method of, is in training mode."""
    return getattr(getattr(program, "__self__", program), "training", None)


def in_store(found: dict[str, Tensor]) -> Any:
    """Which of these tensors Pyro's store holds: after ``clear_param_store`` it makes others."""
    store = dict(pyro.get_param_store().named_parameters())
    return [store.get(name) is tensor for name, tensor in found.items()]


def device_of(args: tuple, kwargs: dict) -> torch.device:
    """The device of the first tensor among arguments, or the CPU."""
    return next((leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), torch.device("cpu"))
