"""Where images come from: scikit-learn, torchvision, a file, a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.data.on_disk import File, OnDisk, arrays_of, to_tensor

__all__ = ["NAMES", "Source", "digits", "file", "folder", "torchvision_images"]

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
    """An array of images and what belongs to it, as they came.

    ``levels`` are the grey levels of integers that are not all 0 or 1, ``test`` is how many of the last are for test,
    ``mask`` is True where a pixel is observed, ``extra`` are further columns by name.
    """

    x: Tensor | OnDisk
    name: str
    labels: Tensor | None = None
    mask: Tensor | None = None
    levels: int = 256
    test: int = 0
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
    try:
        return make(root, **which)
    except RuntimeError:
        pass  # so torchvision says that it is not there
    try:
        return make(root, **which, download=True)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"Found no {name} under {str(root)!r}, and could not download it ({' '.join(str(error).split())[:100]}). "
            "Give the folder that holds it with --root, or run once with a network."
        ) from error


def _arrays(found: Any) -> tuple[Tensor, Tensor]:
    if type(found).__name__ == "Omniglot":
        pairs = [(_ink(image), label) for image, label in tqdm(found, desc="omniglot", unit=" images", leave=False)]
        pixels, labels = zip(*pairs, strict=True)
        return torch.stack(pixels), torch.tensor(labels)
    labels = found.labels if hasattr(found, "labels") and not hasattr(found, "targets") else found.targets
    return torch.as_tensor(found.data), torch.as_tensor(labels)


def _ink(image: Image.Image) -> Tensor:
    """A drawing at 28x28, ink on paper turned to white on black, as in Burda et al. (2016)."""
    return 255 - torch.from_numpy(np.array(image.convert("L").resize((28, 28), Image.Resampling.BOX)))


def file(path: Path) -> Source:
    """Return the images of a .npy file, or of a .npz file with arrays ``x`` and, if any, ``labels``, ``mask`` and more.

    A .npy file of more than 256 MiB stays on disk.
    """
    arrays = arrays_of(path)
    if "x" not in arrays and len(arrays) != 1:
        raise ValueError(f"Expected an array named x in {str(path)!r}; got {', '.join(arrays) or 'none'}.")
    x = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    for array in (x, *(arrays[name] for name in ("labels", "mask") if name in arrays)):
        if array.dtype.kind not in "buif":
            raise ValueError(f"Expected numbers in {str(path)!r}; got {array.dtype}.")
    images = OnDisk.of(File(x)) if isinstance(x, np.memmap) and x.ndim else to_tensor(x)
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
