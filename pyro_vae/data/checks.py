"""From an array of any kind to a :class:`Split` of all its images, once it is checked."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data.dataset import Split
from pyro_vae.data.on_disk import OnDisk, Survey, channels_first, survey
from pyro_vae.data.sources import Source
from pyro_vae.data.supports import levels as grid

__all__ = ["images_of", "support_of"]


def images_of(source: Source, counts: bool) -> tuple[Split, Survey]:
    """Check an array, and bring images to ``(N, channels, height, width)``.

    Booleans, and integers that are all 0 or 1, have 2 grey levels; other integers from 0 to 255 have those of the
    source; floats are x as they are. Missing pixels, NaN or not in the mask, are kept as 0.
    """
    x, mask, name = source.x, source.mask, source.name
    if len(x.shape) < 2 or 0 in x.shape:
        raise ValueError(f"Expected an array of shape (images, ...), not empty, in {name}; got shape {tuple(x.shape)}.")
    if len(x) < 3:
        raise ValueError(f"Expected at least 3 images, one for each split, in {name}; got {len(x)}.")
    if x.dtype.is_complex:
        raise ValueError(f"Expected real numbers in {name}; got complex ones.")
    if source.labels is not None and source.labels.shape != x.shape[:1]:
        raise ValueError(f"Expected {len(x)} labels, one an image, in {name}; got shape {tuple(source.labels.shape)}.")
    if isinstance(x, OnDisk):
        seen, _ = x.file.survey_and_total
        advice = (
            "NaN or infinite, in a file that stays on disk. Fill them in, leave those images out, or save it as "
            ".npz, which is read into memory, where NaN is missing."
        )
    else:
        x = channels_first(x)
        mask = _observed(x, mask, name)
        seen = survey(x if mask is None else x[mask])
        advice = "infinite. Fill them in, leave those images out, or make them NaN, which is missing."
    if seen.wrong:
        raise ValueError(
            f"Expected finite numbers in {name}; got {seen.wrong:,} of {math.prod(x.shape):,} that are {advice}"
        )
    dtype, levels = x.dtype, source.levels
    if not dtype.is_floating_point:
        grey = 0 <= seen.low <= seen.high <= 255
        dtype, levels = torch.uint8 if grey else torch.float32, 2 if grey and seen.high <= 1 else levels
    if isinstance(x, OnDisk):
        pixels: Tensor | OnDisk = replace(x, dtype=dtype)
    else:
        pixels = (x if mask is None else x.masked_fill(~mask, 0)).to(dtype)
    return Split(pixels, source.labels, levels, None, counts, mask, source.extra), seen


def _observed(x: Tensor, mask: Tensor | None, name: str) -> Tensor | None:
    """Where x is observed: in the mask, if there is one, and not NaN. None, if all of it is."""
    if mask is None and not x.is_floating_point():
        return None
    observed = ~x.isnan()
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"Expected a mask of booleans, True where observed, in {name}; got {mask.dtype}.")
        mask = channels_first(mask)
        if mask.shape not in (x.shape, (len(x), 1, *x.shape[2:]) if x.dim() == 4 else None):
            raise ValueError(
                f"Expected a mask of the shape of x, {tuple(x.shape)}, or with one channel, in {name}; "
                f"got {tuple(mask.shape)}."
            )
        observed &= mask
    if observed.all():
        return None
    if none := int((~observed.flatten(1).any(1)).sum()):
        raise ValueError(
            f"Expected something observed of every image in {name}; got {none:,} of {len(x):,} that are NaN or "
            "masked all over. Leave those images out."
        )
    return observed


def support_of(whole: Split, seen: Survey) -> constraints.Constraint:
    """The support of x, of pixels that were ``seen`` before any noise."""
    if whole.noise:
        return constraints.boolean if whole.noise == "bernoulli" else constraints.unit_interval
    if whole.counts:
        return constraints.nonnegative_integer
    if whole.levels and not whole.pixels.dtype.is_floating_point:
        return constraints.boolean if whole.levels == 2 else grid(whole.levels)
    if seen.low >= 0 and seen.whole:
        return constraints.nonnegative_integer if seen.high > 1 else constraints.boolean
    return constraints.unit_interval if 0 <= seen.low <= seen.high <= 1 else constraints.real
