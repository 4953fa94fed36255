"""Pyro's recipe of the optimizer: Adam or Muon, at a learning rate that may change from step to step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

__all__ = ["OPTIMIZERS", "Choice", "Muon", "check_optimizer", "matrices_of", "recipe"]

Choice = Literal["adam", "muon"]
OPTIMIZERS = ("adam", "muon")
ITERATIONS = 3  # of Newton and Schulz; five, as is usual, cost small networks on a CPU more than they gain


def recipe(name: Choice, lr: float, schedule: str, steps: int, vae: nn.Module) -> PyroOptim:
    """Return an optimizer at a rate that is ``constant``, a ``cosine`` that falls, or a ``one-cycle`` of so many steps.

    Arguments:
        name: ``adam`` or ``muon``.
        lr: The rate; with ``one-cycle`` the largest.
        schedule: How the rate goes.
        steps: Of the whole run.
        vae: What is trained.
    """
    make: Callable[..., Any] = Adam if name == "adam" else partial(Muon, matrices=matrices_of(vae))
    arguments = {"optimizer": make, "optim_args": {"lr": lr}}
    if schedule == "cosine":
        return PyroLRScheduler(CosineAnnealingLR, arguments | {"T_max": steps})
    if schedule == "one-cycle":
        cycle = {"max_lr": lr, "total_steps": steps + 1, "cycle_momentum": name == "adam"}
        return PyroLRScheduler(OneCycleLR, arguments | cycle)
    return PyroOptim(make, {"lr": lr})


def matrices_of(vae: nn.Module) -> list[Tensor]:
    """Return the weights of the dense layers, which are linear maps from one layer's units to another's."""
    return [layer.weight for layer in vae.modules() if type(layer) is nn.Linear]


def check_optimizer(name: str) -> None:
    """Check that there is such an optimizer.

    Raises:
        ValueError: If it is unknown, or this torch has none.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"Expected optimizer to be {' or '.join(OPTIMIZERS)}; got {name!r}.")
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise ValueError(f"Expected torch 2.9 or later for optimizer = 'muon'; got {torch.__version__}. Use 'adam'.")


class Muon(torch.optim.Optimizer):
    r"""Muon for matrices, Adam for all else.

    .. math:: B_t = \mu B_{t-1} + G_t, \qquad
        \theta_t = \theta_{t-1} - 0.2 \, \gamma_t \sqrt{\max(m, n)} \; U V^\top
        \quad \text{where } G_t + \mu B_t = U S V^\top

    for a matrix of shape (m, n). A step is as long in every direction of a matrix as in every other, however long the
    gradient is there, so directions that few images ask for are learned as fast as those that all do. The factor
    makes an update as large as one of Adam's, so that one learning rate :math:`\gamma` serves both. The product
    :math:`U V^\top` comes of three Newton-Schulz iterations of bfloat16 products, whose cost does not depend on the
    size of a batch; directions with less than a thirtieth of the gradient's norm come out shorter.

    References:
        Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024).

        Muon is Scalable for LLM Training (Liu et al., 2025), for the factor.

    Arguments:
        params: Parameters, or groups of them, of real numbers.
        matrices: Which of them are stepped by Muon, each of two dimensions.
        lr: The learning rate.

    Raises:
        RuntimeError: If this torch has no Muon, as before 2.9.
    """

    def __init__(self, params: Any, matrices: list[Tensor], lr: float = 1e-3) -> None:
        chosen = {id(matrix) for matrix in matrices}
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        halves = [
            group | {"params": half, "muon": muon}
            for group in groups
            for muon in (True, False)
            if (half := [parameter for parameter in group["params"] if (id(parameter) in chosen) is muon])
        ]
        super().__init__(halves, {"lr": lr, "muon": False})
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        self._join()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step the parameters along their ``grad``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._join()
        for part in self._parts.values():
            part.step()
        return loss

    def _join(self) -> None:
        """Have the two step this one's groups and state, which are others after ``load_state_dict``."""
        for muon, make in (
            (True, partial(torch.optim.Muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw", ns_steps=ITERATIONS)),
            (False, partial(Adam, fused=True)),
        ):
            groups = [group for group in self.param_groups if group["muon"] is muon]
            if groups and (muon not in self._parts or any("eps" not in group for group in groups)):
                self._parts[muon] = make(groups, lr=self.defaults["lr"])
            if groups:
                self._parts[muon].param_groups, self._parts[muon].state = groups, self.state
