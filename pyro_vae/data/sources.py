"""Where images come from: scikit-learn, torchvision, a file, a folder; and checks of what came."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.distributions import constraints
from tqdm.auto import tqdm

from pyro_vae.data.dataset import Split
from pyro_vae.data.on_disk import File, OnDisk, Survey, arrays_of, channels_first, survey, to_tensor
from pyro_vae.data.supports import levels as grid

# The name of each data set's class in torchvision.datasets, and the arguments of its two splits.
NAMES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "fashion-mnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "kmnist": ("KMNIST", {"train": True}, {"train": False}),
    "omniglot": ("Omniglot", {"background": True}, {"background": False}),
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
GREY = ("1", "L", "LA")


class Source(NamedTuple):
    """An array of images and what belongs to it, as they came."""

    x: Tensor | OnDisk
    name: str
    labels: Tensor | None = None
    mask: Tensor | None = None  # True where a pixel is observed
    levels: int = 256  # of integers that are not all 0 or 1
    test: int = 0  # how many of the last are for test
    extra: dict[str, Tensor] = {}


def digits() -> Source:
    """Return the 1,797 real handwritten digits inside scikit-learn, 8x8 with 17 grey levels.

    References:
        Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI Machine Learning Repository, 1998).
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    return Source(torch.from_numpy(found.images).byte(), "digits", torch.from_numpy(found.target), levels=17)


def torchvision_images(name: str, root: str) -> Source:
    """Return a data set of torchvision, found under ``root`` or downloaded there."""
    from torchvision import datasets

    kind, train, test = NAMES[name]
    make = getattr(datasets, kind)
    halves = [_arrays(_found_or_downloaded(make, name, root, which)) for which in (train, test)]
    x, labels = (torch.cat(both) for both in zip(*halves, strict=True))
    return Source(x, name, labels, test=len(halves[1][0]))


def _found_or_downloaded(make: Callable[..., Any], name: str, root: str, which: dict[str, Any]) -> Any:
    with suppress(RuntimeError):  # so torchvision says that it is not there
        return make(root, **which)
    inner = [Path(root, make.__name__, "raw"), Path(root, make.__name__), Path(root, "omniglot-py")]
    absent = [folder for folder in (*inner, Path(root), *Path(root).parents) if not folder.exists()]
    try:
        return make(root, **which, download=True)
    except (RuntimeError, OSError) as error:
        for folder in absent:
            with suppress(OSError):  # with something in it
                folder.rmdir()
        raise FileNotFoundError(
            f"Found no {name} under {str(root)!r}, and could not download it ({' '.join(str(error).split())[:100]}). "
            "Give the folder that holds it with --root, or run once with a network."
        ) from error


def _arrays(found: Any) -> tuple[Tensor, Tensor]:
    if type(found).__name__ == "Omniglot":  # drawings, at 28x28 and white on black, as in Burda et al. (2016)
        drawings, labels = [], []
        for image, label in tqdm(found, desc="omniglot", unit=" images", leave=False):
            drawings.append(np.array(image.convert("L").resize((28, 28), Image.Resampling.BOX)))
            labels.append(label)
        return 255 - torch.from_numpy(np.stack(drawings)), torch.tensor(labels)
    labels = found.labels if hasattr(found, "labels") and not hasattr(found, "targets") else found.targets
    return torch.as_tensor(found.data), torch.as_tensor(labels)


def file(path: Path) -> Source:
    """Return the images of a .npy file, or of a .npz file: arrays ``x`` and, if any, ``labels``, ``mask`` and more."""
    arrays = arrays_of(path)
    if "x" not in arrays and len(arrays) != 1:
        raise ValueError(f"Expected an array named x in {str(path)!r}; got {', '.join(arrays) or 'none'}.")
    x = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    for array in (x, *(arrays[name] for name in ("labels", "mask") if name in arrays)):
        if array.dtype.kind not in "buif":
            raise ValueError(f"Expected numbers in {str(path)!r}; got {array.dtype}.")
    if isinstance(x, np.memmap) and x.ndim:
        images: Tensor | OnDisk = OnDisk(File(x), torch.arange(len(x)), to_tensor(x[:0]).dtype)
    else:
        images = to_tensor(x)
    labels, mask = (to_tensor(arrays[name]) if name in arrays else None for name in ("labels", "mask"))
    rest = {name: array for name, array in arrays.items() if array is not x and name not in ("labels", "mask")}
    columns = {n: to_tensor(a) for n, a in rest.items() if a.dtype.kind in "buif" and a.shape[:1] == x.shape[:1]}
    return Source(images, repr(str(path)), labels, mask, extra=columns)


def folder(path: Path) -> Source:
    """Return the images in a folder; where they are in subfolders, those are the labels, in alphabetical order."""
    paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"Expected images ({', '.join(SUFFIXES)}) in {str(path)!r}; found none.")
    classes = sorted({file.parent for file in paths})
    labels = torch.tensor([classes.index(file.parent) for file in paths]) if len(classes) > 1 else None
    grey = all(mode in GREY for mode in _each(paths, lambda image: image.mode, "looking"))
    arrays = _each(paths, lambda image: np.array(image.convert("L" if grey else "RGB")), "reading")
    for file, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"Expected images of one size; got {arrays[0].shape[:2]} in {paths[0].name} and {array.shape[:2]} "
                f"in {file.name}, (height, width). Resize them first."
            )
    return Source(torch.from_numpy(np.stack(arrays)), repr(str(path)), labels)


def _each(paths: Sequence[Path], read: Callable[[Image.Image], Any], what: str) -> list[Any]:
    found = []
    for path in tqdm(paths, desc=what, unit=" images", leave=False, disable=len(paths) < 1000):
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"Expected 8-bit images; got mode {image.mode} in {str(path)!r}. Save as .npy.")
                found.append(read(image))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(
                f"Expected an image; could not read {str(path)!r}. Save it anew, or leave it out of the folder."
            ) from error
    return found


def images_of(source: Source, counts: bool) -> tuple[Split, Survey]:
    """Check an array, and bring images to ``(N, channels, height, width)``; missing pixels become 0."""
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
