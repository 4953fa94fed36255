"""Splits of a data set for training, validation and test, and the options that change x."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyro_vae.data.arrays import Survey
from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.on_disk import Stored
from pyro_vae.data.sources import Source, images_of, support_of

Binarize = Literal["none", "static", "dynamic", "threshold"]
SEED = 20140416
MOST = 10_000  # the largest split held out of a source without a test split


def check_options(config: Mapping[str, Any]) -> None:
    """Refuse an unknown binarisation, and two options that exclude each other."""
    if config["binarize"] not in (ways := get_args(Binarize)):
        raise ValueError(f"Expected binarize to be one of {', '.join(ways)}; got {config['binarize']!r}.")
    options = {name: config.get(name) for name in ("binarize", "dequantize", "counts", "columns", "standardize")}
    if len(both := [f"{name}={value!r}" for name, value in options.items() if value and value != "none"]) > 1:
        raise ValueError(f"Expected at most one of {', '.join(options)}; got {' and '.join(both)}.")


def dataset_of(source: Source, config: dict[str, Any]) -> Dataset:
    """Check a source, and return its data set as the options of ``config`` ask."""
    binarize, dequantize = config["binarize"], config["dequantize"]
    images, summary = images_of(source, config["counts"])
    pixels = images.pixels
    if dequantize and pixels.dtype.is_floating_point:
        raise ValueError(f"Expected integer grey levels for dequantize; got {pixels.dtype} in {source.name}.")
    if binarize == "static" and images.on_disk:
        got = f"for {source.name}, which stays on disk; got 'static', whose draws need memory"
        raise ValueError(f"Expected binarize to be none, dynamic or threshold {got}. Use dynamic.")
    extremes = f"[{summary.low:g}, {summary.high:g}]"
    if images.counts and not (summary.low >= 0 and summary.whole):
        raise ValueError(f"Expected counts to be 0, 1, 2, and so on; got numbers in {extremes} in {source.name}.")
    if binarize != "none" and not 0 <= summary.low <= summary.high <= images.max_value:
        raise ValueError(f"Expected pixels in [0, 1] for binarize; got {extremes} in {source.name}.")
    if binarize == "threshold":
        cut = images.max_value / 2
        above = replace(pixels, cut=cut, dtype=torch.uint8) if isinstance(pixels, Stored) else (pixels > cut).byte()
        images = replace(images, pixels=above, levels=2)
    elif binarize != "none" or dequantize:
        images = replace(images, noise="uniform" if dequantize else "bernoulli")
    return replace(in_splits(images, summary, config, source.test), schema=source.schema, notes=source.notes)


def in_splits(images: Split, summary: Survey, config: dict[str, Any], test: int = 0) -> Dataset:
    """Split images, the last ``test`` for test; the validation and test images get fixed noise."""
    splits = [images.part(rows) for rows in split_rows(len(images), config["valid"], test)]
    for i in range(0 if config["binarize"] == "static" else 1, 3):
        splits[i] = splits[i].with_fixed_noise(torch.Generator().manual_seed(SEED + i))
    return Dataset(splits[0], splits[1], splits[2], support_of(images, summary), config)


def split_rows(total: int, valid: int | None, test: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows for training, validation and test: always the same, with the last ``test`` rows for test."""
    generator = torch.Generator().manual_seed(SEED)
    if test:
        rest, last = torch.randperm(total - test, generator=generator), torch.arange(total)[-test:]
        default = len(rest) // 6
    else:
        order, default = torch.randperm(total, generator=generator), min(max(1, round(total / 10)), MOST)
        last, rest = order[:default], order[default:]
    held_out = default if valid is None else valid
    if not hasattr(held_out, "__index__") or not 0 <= held_out < len(rest):
        got = f"fewer than the {len(rest)} images outside the test split; got {held_out!r}"
        raise ValueError(f"Expected valid to be an integer of at least 0 and {got}.")
    return rest[held_out:], rest[:held_out], last
