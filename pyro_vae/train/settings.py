"""The settings of ``fit``, its program and its data, and the sentences that refuse them before training begins."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal, get_args

import torch
import yaml
from torch import nn

from pyro_vae.checkpoint import check_settings
from pyro_vae.compiled.device import Precision
from pyro_vae.compiled.traced import Compile
from pyro_vae.data import Dataset, Split, from_columns, from_tensor
from pyro_vae.data.arrays import tensor_of
from pyro_vae.objectives.base import check_choice
from pyro_vae.program import argument_names, check_methods, point_of
from pyro_vae.train.optimizers import Choice

Logger = Literal["tensorboard"]
WRAPPERS = {"OptimizedModule", "DataParallel", "DistributedDataParallel"}  # by torch.compile and torch.nn.parallel


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
    sleep: int

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", *(["patience"] if self.patience is not None else [])):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                what = "of at least 1" if isinstance(value, int) else "to be a whole number"
                raise ValueError(f"Expected {name} {what}; got {value!r}.")
        if not isinstance(self.lr, int | float) or not 0 < self.lr < math.inf:
            raise ValueError(f"Expected a positive learning rate; got lr = {self.lr!r}.")
        if isinstance(self.sleep, bool) or not isinstance(self.sleep, int) or self.sleep < 0:
            raise ValueError(f"Expected sleep to be a number of steps, 0 for none; got {self.sleep!r}.")
        check_choice("optimizer", self.optimizer, get_args(Choice))
        check_choice("on_nan", self.on_nan, ("stop", "skip"))
        check_choice("lr_schedule", self.lr_schedule, ("constant", "cosine", "one-cycle"))
        check_device(self.device)
        if self.logger not in (None, "tensorboard"):
            raise ValueError(f"Expected logger to be tensorboard, or None; got {self.logger!r}.")
        if self.logger:
            try:
                import torch.utils.tensorboard  # noqa: F401
            except ImportError as error:
                words = "Expected tensorboard to be installed for --logger tensorboard: pip install"
                raise ValueError(f"{words} 'pyro_vae[tensorboard]'.") from error


def check_resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other settings than a run began with, and a longer run where something follows its length."""
    now = yaml.safe_load(yaml.safe_dump(dict(now)))  # as it comes back from a file
    check_settings(before, {name: value for name, value in now.items() if name in before})
    beta = ((now.get("objective") or {}).get("init_args") or {}).get("beta")
    warmup = (beta.get("init_args") or {}).get("warmup") if isinstance(beta, dict) else None
    rate = "" if now["lr_schedule"] == "constant" else f"the {now['lr_schedule']} learning rate"
    follows = "beta" if isinstance(warmup, float) else rate
    epochs = before.get("epochs", now["epochs"])
    if epochs > now["epochs"] or (follows and epochs != now["epochs"]):
        more, why = ("", f", since {follows} follows that") if follows else (" or more", "")
        raise ValueError(f"Expected {epochs} epochs{more}, as the run began with{why}; got {now['epochs']}.")


def hook(program: Any, name: str) -> Callable[..., Any] | None:
    """Return a program's method of a name, or None if it has none; something else of that name is none."""
    method = getattr(program, name, None)
    return method if inspect.ismethod(method) else None


def check_program(program: Any) -> None:
    """Refuse a program that is no module with two Pyro programs, or that is in a wrapper of torch's."""
    for name, part in program.named_modules() if isinstance(program, nn.Module) else ():
        if (kind := type(part).__name__) in WRAPPERS:
            raise ValueError(
                f"Expected a program of modules as they are; got {name or 'one'} in a {kind}. Give the module in it: "
                "fit runs its steps as a graph, and on several devices under torchrun."
            )
    check_methods(program)
    if not isinstance(program, nn.Module):
        raise ValueError(f"Expected a program that is an nn.Module; got {type(program).__name__}.")


def splits_of(program: Any, data: Any) -> Dataset:
    """Return a Dataset, a tensor, or a program's arguments in a tuple or by name, as three splits of all arguments."""
    check_program(program)
    names, columns = argument_names(program), dict[str, Any]()
    if not isinstance(data, Dataset | Mapping | tuple | list):
        # Bytes are images to a program that checks images, and numbers to any other.
        data = tensor_of(data, "data")
        data = from_tensor(data) if hook(program, "check_dataset") else from_columns({"x": data})
    elif isinstance(data, Mapping):
        columns = dict(data)
    elif isinstance(data, tuple | list):
        labels = [*names, *(f"argument {i + 1}" for i in range(len(names), len(data)))]
        columns = dict(zip(labels, data, strict=False))
    names = names or dict.fromkeys(columns, True)
    first, *rest = names or ["x"]
    if first in columns:
        data = from_columns({name: columns[name] for name in (*names, *columns) if name in columns})
    known = data.train.columns if isinstance(data, Dataset) else {}
    served = [*takewhile(known.__contains__, rest)]
    lacks = any(names[name] and name not in served for name in rest)
    if lacks or not isinstance(data, Dataset) or (columns and {*columns} != {first, *served}):
        got = ", ".join(columns or [first, *known])
        raise ValueError(f"Expected data by the names of the model's arguments, {', '.join(names)}; got {got}.")
    splits = {name: getattr(data, name).with_columns(served) for name in ("train", "valid", "test")}
    if hook(program, "check_data"):  # whose x is in its dtype, as for a posterior
        splits = {name: _in_dtype(split, point_of(program).dtype) for name, split in splits.items()}
    data = replace(data, **splits)
    _check_differ(data)
    return data


def _in_dtype(split: Split, dtype: torch.dtype) -> Split:
    """Return a split with x in a dtype, unless it is whole grey levels."""
    as_it_is = not split.on_disk and (split.pixels.dtype.is_floating_point or not split.levels)
    return replace(split, pixels=split.pixels[:].to(dtype)) if as_it_is else split


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use, as where there is no GPU."""
    try:
        torch.zeros(1, device=device).item()  # which 'meta' has not
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"Expected a device that torch can use, as 'cpu'; got device = {device!r}.") from error


def _check_differ(dataset: Dataset) -> None:
    """Refuse images that are all the same; those with missing pixels may differ in these."""
    train = dataset.train
    if len(train) < 2 or train.mask is not None or train.extra:
        return
    first = train.pixels[:1]
    if all(bool((train.pixels[i : i + 32] == first).all()) for i in range(0, len(train), 32)):
        raise ValueError(
            f"Expected images that differ; all {len(train):,} for training in {dataset.config['data']!r} are the same. "
            "Look at how they were written, or at binarize."
        )


def check_support(program: Any, dataset: Dataset, strict: bool = False) -> None:
    """Refuse an x that a program cannot see, where it says what it can see: :meth:`pyro_vae.VAE.check_dataset`."""
    if check := hook(program, "check_dataset"):
        check(dataset, strict)
