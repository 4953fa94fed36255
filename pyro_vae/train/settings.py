"""The arguments of ``fit`` that a run keeps, and which of them may change where it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml

from pyro_vae.compiled.precision import Precision
from pyro_vae.compiled.traced import Compile
from pyro_vae.train.optimizers import Choice

__all__ = ["Logger", "Settings", "check_resumed"]

Logger = Literal["tensorboard"]
# What may change when a run goes on; how many epochs, where nothing follows it.
FREE = {"root", "data", "device", "on_nan", "logger", "epochs"}


@dataclass(frozen=True)
class Settings:
    """Arguments of ``fit``, which says what they mean, as ``config.yaml`` has them; none out of its range."""

    epochs: int
    batch_size: int
    lr: float
    optimizer: Choice
    seed: int
    device: str
    lr_schedule: str
    clip_norm: float | None
    compile: Compile
    precision: Precision
    patience: int | None
    on_nan: str
    logger: str | None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} of at least 1; got {getattr(self, name)}.")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"Expected a positive learning rate; got lr = {self.lr}.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"Expected patience of at least 1 epoch, or None; got {self.patience}.")
        for name, choices in (
            ("optimizer", get_args(Choice)),
            ("on_nan", ("stop", "skip")),
            ("lr_schedule", ("constant", "cosine", "one-cycle")),
        ):
            if (value := getattr(self, name)) not in choices:
                words = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise ValueError(f"Expected {name} to be {words}; got {value!r}.")
        if self.logger not in (None, "tensorboard"):
            raise ValueError(f"Expected logger to be tensorboard, or None; got {self.logger!r}.")
        if self.logger:
            try:
                import torch.utils.tensorboard  # noqa: F401
            except ImportError as error:
                raise ValueError(
                    "Expected tensorboard to be installed for --logger tensorboard: pip install "
                    "'pyro_vae[tensorboard]'."
                ) from error


def check_resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other settings than a run began with, and a longer run where something follows its length."""
    now = yaml.safe_load(yaml.safe_dump(dict(now)))  # as it comes back from a file
    for name, value in now.items():
        if name not in FREE and name in before and before[name] != value:
            raise ValueError(
                f"Expected the settings that the run began with; {name} was {before[name]!r} and is now {value!r}. "
                "Leave it as it was, or train anew."
            )
    if (epochs := before.get("epochs", now["epochs"])) > now["epochs"]:
        raise ValueError(f"Expected {epochs} epochs or more, as the run began with; got {now['epochs']}.")
    if epochs != now["epochs"]:
        beta = ((now.get("objective") or {}).get("init_args") or {}).get("beta")
        warmup = (beta.get("init_args") or {}).get("warmup") if isinstance(beta, dict) else None
        if now["lr_schedule"] != "constant" or isinstance(warmup, float):
            what = "beta" if isinstance(warmup, float) else f"the {now['lr_schedule']} learning rate"
            raise ValueError(
                f"Expected {epochs} epochs, as the run began with, since {what} follows that; got {now['epochs']}."
            )
