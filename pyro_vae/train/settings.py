"""Settings of ``fit``, and checks of its program and data before training starts."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal, get_args

import torch
import yaml
from torch import Tensor, nn

from pyro_vae.checkpoint import check_settings
from pyro_vae.compiled.device import Precision
from pyro_vae.compiled.traced import Compile
from pyro_vae.data import Dataset, Split, from_columns, from_tensor
from pyro_vae.data.arrays import tensor_of
from pyro_vae.objectives.base import check_choice
from pyro_vae.program import argument_names, autoguide_rows, check_methods, reference_tensor
from pyro_vae.train.optimizers import OF_LENGTH, Choice, Schedule

Logger = Literal["tensorboard"]
WRAPPERS = {"OptimizedModule", "DataParallel", "DistributedDataParallel"}  # by torch.compile and torch.nn.parallel


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`pyro_vae.fit` in ``config.yaml``; an argument out of range raises a ValueError."""

    epochs: int
    batch_size: int
    lr: float
    optimizer: Choice
    seed: int
    device: str
    lr_schedule: Schedule
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
                condition = "of at least 1" if isinstance(value, int) else "to be a whole number"
                raise ValueError(f"Expected {name} {condition}; got {value!r}.")
        if not isinstance(self.lr, int | float) or not 0 < self.lr < math.inf:
            raise ValueError(f"Expected a positive learning rate; got lr = {self.lr!r}.")
        if isinstance(self.sleep, bool) or not isinstance(self.sleep, int) or self.sleep < 0:
            raise ValueError(f"Expected sleep to be a number of steps, 0 for none; got {self.sleep!r}.")
        check_choice("optimizer", self.optimizer, get_args(Choice))
        check_choice("on_nan", self.on_nan, ("stop", "skip"))
        check_choice("lr_schedule", self.lr_schedule, get_args(Schedule))
        check_device(self.device)
        if self.logger not in (None, "tensorboard"):
            raise ValueError(f"Expected logger to be tensorboard, or None; got {self.logger!r}.")
        if self.logger:
            try:
                import torch.utils.tensorboard  # noqa: F401
            except ImportError as error:
                message = "Expected an installed tensorboard for --logger tensorboard. Run pip install tensorboard."
                raise ValueError(message) from error


def learning_rate(
    lr: float | None, schedule: Schedule | None, patience: int | None, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the learning rate and its schedule; None is the value of the resumed run ``before``, or the default.

    A run with ``patience`` has no known length, and so a constant rate.
    """
    usual = (1e-3, "constant") if before or patience else (3e-3, "trapezoid")
    rate, kind = before.get("lr", usual[0]), before.get("lr_schedule", usual[1])
    return {"lr": rate if lr is None else lr, "lr_schedule": kind if schedule is None else schedule}


def check_resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a ValueError if settings differ from the saved run's settings, or more epochs would change a schedule."""
    now = yaml.safe_load(yaml.safe_dump(dict(now)))  # as a file returns it
    check_settings(before, {name: value for name, value in now.items() if name in before})
    beta = ((now.get("objective") or {}).get("init_args") or {}).get("beta")
    warmup = (beta.get("init_args") or {}).get("warmup") if isinstance(beta, dict) else None
    rate = f"the {now['lr_schedule']} learning rate" if now["lr_schedule"] in OF_LENGTH else ""
    schedule = "beta" if isinstance(warmup, float) else rate
    epochs = before.get("epochs", now["epochs"])
    if epochs > now["epochs"] or (schedule and epochs != now["epochs"]):
        more, reason = ("", f", since {schedule} depends on the number of epochs") if schedule else (" or more", "")
        raise ValueError(f"Expected epochs = {epochs}{more}, as in the run{reason}; got {now['epochs']}.")


def hook(program: Any, name: str) -> Callable[..., Any] | None:
    """Return a program's method ``name``, or None if the program has no such method."""
    method = getattr(program, name, None)
    return method if inspect.ismethod(method) else None


@contextmanager
def without_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Set ``requires_grad`` to False within the context."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def outside(part: nn.Module, program: nn.Module) -> list[Tensor]:
    """Return a program's trainable parameters outside a part."""
    own = {*part.parameters()}
    return [parameter for parameter in program.parameters() if parameter.requires_grad and parameter not in own]


def check_program(program: Any) -> None:
    """Raise a ValueError unless a program is an ``nn.Module`` with model and guide, without a wrapper of torch."""
    for name, module in program.named_modules() if isinstance(program, nn.Module) else ():
        if (kind := type(module).__name__) in WRAPPERS:
            raise ValueError(
                f"Expected modules without a wrapper; got a {kind} around {name or 'the program'}. Pass the module "
                "inside it: fit runs steps as a graph, and in several processes under torchrun."
            )
    check_methods(program)
    if not isinstance(program, nn.Module):
        raise ValueError(f"Expected a program that is an nn.Module; got {type(program).__name__}.")


def splits_of(program: Any, data: Any) -> Dataset:
    """Return the data of ``fit`` as a Dataset; the columns of each split are the program's arguments."""
    check_program(program)
    names, columns = argument_names(program), dict[str, Any]()
    if not isinstance(data, Dataset | Mapping | tuple | list):
        # A program that checks images takes bytes as images, another program takes them as numbers.
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
    extra = data.train.columns if isinstance(data, Dataset) else {}
    used = [*takewhile(extra.__contains__, rest)]
    incomplete = any(names[name] and name not in used for name in rest)
    if incomplete or not isinstance(data, Dataset) or (columns and {*columns} != {first, *used}):
        got = ", ".join(columns or [first, *extra])
        raise ValueError(f"Expected data by the names of the model's arguments, {', '.join(names)}; got {got}.")
    unused = [column.name for column in data.schema.covariates if column.name not in used] if data.schema else []
    if unused and "y" not in used:
        takes = f"{type(program).__name__}.model takes {', '.join(names)}"
        raise ValueError(f"Expected a program with an argument y or {unused[0]}, for the covariates; {takes}.")
    splits = {name: getattr(data, name).with_columns(used) for name in ("train", "valid", "test")}
    if hook(program, "check_data"):  # such a program takes x in its dtype, as a posterior does
        splits = {name: _in_dtype(split, reference_tensor(program).dtype) for name, split in splits.items()}
    data = replace(data, **splits)
    _check_differ(data)
    return data


def _in_dtype(split: Split, dtype: torch.dtype) -> Split:
    """Return a split with x in a dtype, unless x is whole grey levels, on disk or sparse."""
    converts = not split.stored and (split.pixels.dtype.is_floating_point or not split.levels)
    return replace(split, pixels=split.pixels[:].to(dtype)) if converts else split


def check_device(device: str) -> None:
    """Raise a ValueError if torch cannot use a device, such as a GPU that is absent."""
    try:
        torch.zeros(1, device=device).item()  # fails on 'meta'
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"Expected a device that torch can use, as 'cpu'; got device = {device!r}.") from error


def _check_differ(dataset: Dataset) -> None:
    """Raise a ValueError if all training images are equal; images with missing pixels may differ in these."""
    train = dataset.train
    if len(train) < 2 or train.mask is not None or train.extra:
        return
    first = train.pixels[:1]
    if all(bool((train.pixels[i : i + 32] == first).all()) for i in range(0, len(train), 32)):
        raise ValueError(
            f"Expected images that differ; all {len(train):,} for training in {dataset.config['data']!r} are the same. "
            "Check how the images were written, and binarize."
        )


def check_autoguide(program: Any, batch_size: int, total: int, held_out: int) -> None:
    """Raise a ValueError if an autoguide with parameters for each row would see only some of the rows."""
    if (rows := autoguide_rows(program)) and (batch_size < total or held_out):
        raise ValueError(
            "Expected one batch of all rows and none held out, for an autoguide with parameters of each row; got "
            f"batch_size = {rows}, {total} rows and {held_out} held out. Use data.from_columns(..., valid=0), and a "
            "new guide."
        )


def check_one_row(loss: Callable[[int], Any], world: int, total: int, batch_size: int) -> None:
    """Raise a ValueError if ``loss`` fails on one row but not on two rows, as with batch normalisation."""
    errors = list[str]()
    for rows in (world, min(2 * world, total)):
        try:
            loss(rows)
        except ValueError as error:
            errors.append(str(error).splitlines()[0])
    if errors and (len(errors) == 1 or total == 1):
        raise ValueError(
            f"Expected batches of at least 2 rows; {total} rows in batches of {batch_size} give one of 1 row, and the "
            f"program fails on it: {errors[0].rstrip('.')}. Choose another batch_size."
        )


def check_support(program: Any, dataset: Dataset, strict: bool = False) -> None:
    """Raise a ValueError if a dataset is outside the support of a program with a method ``check_dataset``."""
    if check := hook(program, "check_dataset"):
        check(dataset, strict)
