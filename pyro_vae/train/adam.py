"""Pyro's recipe of the optimizer: Adam, at a learning rate that may change from step to step."""

from __future__ import annotations

from pyro.optim import PyroLRScheduler, PyroOptim
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

__all__ = ["adam"]


def adam(lr: float, schedule: str, steps: int) -> PyroOptim:
    """Return Adam at a rate that is ``constant``, falls as a ``cosine``, or makes ``one-cycle`` of so many steps."""
    recipe = {"optimizer": Adam, "optim_args": {"lr": lr}}
    if schedule == "cosine":
        return PyroLRScheduler(CosineAnnealingLR, recipe | {"T_max": steps})
    if schedule == "one-cycle":
        return PyroLRScheduler(OneCycleLR, recipe | {"max_lr": lr, "total_steps": steps + 1})
    return PyroOptim(Adam, {"lr": lr})
