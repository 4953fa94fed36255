"""What is checked before training begins, and said in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from torch.distributions import constraints

from pyro_vae.data import Dataset
from pyro_vae.data.supports import Levels, of_element, open_unit_interval
from pyro_vae.missing import observed
from pyro_vae.train.optimizers import check_optimizer
from pyro_vae.vae import VAE

__all__ = ["check_device", "check_differ", "check_resumed", "check_settings", "check_support"]

AT_ONCE = 4096
# What may be another when a run goes on; how many epochs, where nothing follows it.
FREE = {"root", "data", "device", "on_nan", "logger", "epochs"}
KINDS: dict[type, str] = {
    type(constraints.boolean): "binary",
    type(constraints.nonnegative_integer): "counts",
    type(constraints.integer_interval(0, 1)): "counts",
    type(constraints.unit_interval): "[0, 1]",
    type(open_unit_interval): "(0, 1)",
    type(constraints.real): "real",
    Levels: "levels",
}
BINARY = "A density of two values grows without bound: use Bernoulli."
COUNTS = "Use Poisson or NegativeBinomial; pixels are grey levels without --counts."
REAL = "Use Gaussian, Laplace or StudentT; or scale the data to [0, 1]."
# What to do, by what x is and what the likelihood is of, where the two do not go together.
ADVICE = {
    ("binary", "levels"): "Two values are not many levels: use Bernoulli.",
    ("binary", "counts"): "Two values have no rate: use Bernoulli.",
    ("binary", "[0, 1]"): BINARY,
    ("binary", "(0, 1)"): BINARY,
    ("binary", "real"): BINARY,
    ("binary", "a density"): BINARY,
    ("levels", "binary"): "Binarise with --binarize dynamic, or use DiscretizedLogistic or Gaussian for grey levels.",
    ("levels", "levels"): "Use --likelihood.levels {levels}, which the data have.",
    (
        "levels",
        "counts",
    ): "Use --counts true for x that is the pixel as stored, or DiscretizedLogistic for grey levels.",
    ("levels", "(0, 1)"): "At 0 and 1 its density is 0 or infinite: use --dequantize true, or ContinuousBernoulli.",
    (
        "dequantised",
        "binary",
    ): "Leave out --dequantize and binarise with --binarize dynamic, or use ContinuousBernoulli.",
    ("dequantised", "levels"): "Leave out --dequantize: it has the probability of each level itself.",
    ("dequantised", "counts"): "Leave out --dequantize, and use --counts true for x that is the pixel as stored.",
    ("[0, 1]", "binary"): "Binarise with --binarize dynamic, or use ContinuousBernoulli or Gaussian for grey x.",
    ("[0, 1]", "levels"): "Give x as the bytes it was read from, or use ContinuousBernoulli or Gaussian.",
    ("[0, 1]", "counts"): "A part of a whole is no count: use ContinuousBernoulli or Gaussian.",
    ("[0, 1]", "(0, 1)"): "At 0 and 1 its density is 0 or infinite: give x as bytes, with --dequantize true.",
    ("counts", "binary"): COUNTS,
    ("counts", "levels"): COUNTS,
    ("counts", "[0, 1]"): COUNTS,
    ("counts", "(0, 1)"): COUNTS,
    ("real", "binary"): REAL,
    ("real", "levels"): REAL,
    ("real", "counts"): REAL,
    ("real", "[0, 1]"): REAL,
    ("real", "(0, 1)"): REAL,
}


def check_settings(settings: dict) -> None:
    """Check the numbers that ``fit`` was given.

    Raises:
        ValueError: If one is out of range.
    """
    for name in ("epochs", "batch_size"):
        if settings[name] < 1:
            raise ValueError(f"Expected {name} of at least 1; got {settings[name]}.")
    if not 0 < settings["lr"] < math.inf:
        raise ValueError(f"Expected a positive learning rate; got lr = {settings['lr']}.")
    check_optimizer(settings["optimizer"])
    if settings["patience"] is not None and settings["patience"] < 1:
        raise ValueError(f"Expected patience of at least 1 epoch, or None; got {settings['patience']}.")
    if settings["on_nan"] not in ("stop", "skip"):
        raise ValueError(f"Expected on_nan to be stop or skip; got {settings['on_nan']!r}.")
    if settings["lr_schedule"] not in ("constant", "cosine", "one-cycle"):
        raise ValueError(f"Expected lr_schedule to be constant, cosine or one-cycle; got {settings['lr_schedule']!r}.")


def check_resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run goes on with the settings it began with.

    Raises:
        ValueError: If one is another, or the run is to be longer and something follows its length.
    """
    now = yaml.safe_load(yaml.safe_dump(dict(now)))  # as it comes back from a file
    different = [name for name in now if name not in FREE and name in before and before[name] != now[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"Expected the settings that the run began with; {name} was {before[name]!r} and is now {now[name]!r}. "
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


def check_device(device: str) -> None:
    """Check that torch can use a device.

    Raises:
        ValueError: If it cannot, as where there is no GPU.
    """
    try:
        torch.zeros(1, device=device).item()  # which 'meta' has not
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"Expected a device that torch can use, as 'cpu'; got device = {device!r}.") from error


def check_differ(dataset: Dataset) -> None:
    """Check that there is something to learn; of images with missing pixels, what is missing may differ.

    Raises:
        ValueError: If all training images are the same.
    """
    train = dataset.train
    first = train.pixels[:1]
    same = all(bool((train.pixels[i : i + 32] == first).all()) for i in range(0, len(train), 32))
    if same and len(train) > 1 and train.mask is None:
        raise ValueError(
            f"Expected images that differ; all {len(train):,} for training in {dataset.config['data']!r} are the same. "
            "Look at how they were written, or at binarize."
        )


def check_support(vae: VAE, dataset: Dataset, strict: bool = False) -> None:
    """Check that every x can be seen under the likelihood, which Pyro would say in a page; on disk the first 4,096.

    Arguments:
        vae: Any VAE.
        dataset: The data.
        strict: Whether to refuse a density of real numbers for x of two values too. One of fixed scale may be meant,
            as for squared error; one of learned scale grows without bound.

    Raises:
        ValueError: If an x is of another shape or outside the likelihood's support, or of two values, which are in
            many a support, and the likelihood is not of two; or some of it is missing and the likelihood's elements
            are not independent.
    """
    point = vae.reference
    with torch.no_grad():
        law = vae.decoder(vae.prior().sample((1,)))
        if law.event_shape != dataset.event_shape:
            raise ValueError(
                f"Expected data of shape (N, {', '.join(map(str, law.event_shape))}), as the VAE was built for; "
                f"got images of shape {dataset.event_shape}."
            )
        family = getattr(vae.decoder, "family", None) or getattr(law, "base_dist", law)
        name, support = type(family).__name__, of_element(law.support)
        pair = "dequantised" if dataset.config["dequantize"] else _kind(dataset.support), _kind(support)
        advice = ADVICE.get(pair, "Use a likelihood whose support has them, as Gaussian has real numbers.")
        advice = advice.format(levels=getattr(dataset.support, "number", 2))
        if pair[0] == "binary" and pair in ADVICE and (strict or pair[1] != "real"):  # 0 and 1 are in many a support
            raise ValueError(f"Expected a likelihood of two values for {dataset}; got {name}. {advice}")
        for split in dataset.splits.values():
            for start in range(0, AT_ONCE if split.on_disk else len(split), AT_ONCE):
                x = split[slice(start, start + AT_ONCE)].to(point)
                if split.mask is not None:
                    _, x = observed(law, x)  # which has no NaN, and the same extremes
                if not law.support.check(x).all():
                    low, high = x.min().item(), x.max().item()
                    raise ValueError(
                        f"Expected x in the support of {name}, {support}; got values in [{low:g}, {high:g}] "
                        f"({dataset}). {advice}"
                    )


def _kind(support: constraints.Constraint) -> str:
    """Name what numbers a support has, as :data:`ADVICE` does."""
    other = "a mass" if support.is_discrete else "a density"
    return "binary" if getattr(support, "number", 0) == 2 else KINDS.get(type(support), other)
