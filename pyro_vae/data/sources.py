"""Read images from scikit-learn, torchvision, a file or a folder, and check them."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.distributions import constraints
from tqdm.auto import tqdm

from pyro_vae.data.arrays import Survey, channels_first, narrowed, survey, to_tensor
from pyro_vae.data.dataset import Split
from pyro_vae.data.on_disk import File, Stored, arrays_of
from pyro_vae.data.schema import Schema
from pyro_vae.data.supports import levels as grid

# The class of each data set in torchvision.datasets, and the arguments that select its splits, if not ``train``.
NAMES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "omniglot": "Omniglot"}
NAMES |= {"cifar10": "CIFAR10", "svhn": "SVHN"}
SPLITS: dict[str, Any] = {"svhn": ({"split": "train"}, {"split": "test"})}
SPLITS["omniglot"] = ({"background": True}, {"background": False})
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
GREY = ("1", "L", "LA")
CLEAR, FRAME = "transparency of {} on white", "the first frame of {}"  # notes, with a number of images


class Source(NamedTuple):
    """An array of unchecked images, with labels, a mask and further columns."""

    x: Tensor | Stored
    name: str
    labels: Tensor | None = None
    mask: Tensor | None = None  # True where a pixel is observed
    levels: int | None = None  # the number of grey levels of integers that are not all 0 or 1, if known
    test: int = 0  # the last images are for test, this many
    extra: dict[str, Tensor] = {}
    schema: Schema | None = None  # of a table
    notes: tuple[str, ...] = ()  # changes made to the images, for the user
    floats: torch.dtype | None = torch.float32  # the dtype for floats; None: unchanged


def digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits, 8x8 with 17 grey levels (Alpaydin and Kaynak, UCI, 1998)."""
    package = find_spec("sklearn")  # importing sklearn.datasets takes over a second
    path = Path(str(package and package.origin)).parent / "datasets/data/digits.csv.gz"
    if path.is_file():
        table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.int64))
        x, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    else:
        from sklearn.datasets import load_digits

        x, labels = (torch.from_numpy(array) for array in (load_digits().images, load_digits().target))
    return Source(x.byte(), "digits", labels, levels=17)


def torchvision_images(name: str, root: str) -> Source:
    """Return a data set of torchvision from the folder ``root``; download a missing data set."""
    from torchvision import datasets

    make, splits = getattr(datasets, NAMES[name]), SPLITS.get(name, ({"train": True}, {"train": False}))
    halves = [_arrays(_torchvision(make, name, root, options)) for options in splits]
    x, labels = (torch.cat(both) for both in zip(*halves, strict=True))
    return Source(x, name, labels, levels=256, test=len(halves[1][0]))


def _torchvision(make: Callable[..., Any], name: str, root: str, options: dict[str, Any]) -> Any:
    with suppress(RuntimeError):  # the data are absent
        return make(root, **options)
    inner = [Path(root, make.__name__, "raw"), Path(root, make.__name__), Path(root, "omniglot-py")]
    absent = [folder for folder in (*inner, Path(root), *Path(root).parents) if not folder.exists()]
    try:
        return make(root, **options, download=True)
    except (RuntimeError, OSError) as error:
        for folder in absent:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        reason = f"could not download it ({' '.join(str(error).split())[:100]})"
        advice = "Pass the folder that holds it as --root, or run once with a network."
        raise FileNotFoundError(f"Found no {name} under {str(root)!r}, and {reason}. {advice}") from error


def _arrays(dataset: Any) -> tuple[Tensor, Tensor]:
    if type(dataset).__name__ == "Omniglot":  # drawings, at 28x28 and white on black, as in Burda et al. (2016)
        drawings, labels = [], []
        for image, label in tqdm(dataset, desc="omniglot", unit=" images", leave=False):
            drawings.append(np.array(image.convert("L").resize((28, 28), Image.Resampling.BOX)))
            labels.append(label)
        return 255 - torch.from_numpy(np.stack(drawings)), torch.tensor(labels)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return torch.as_tensor(dataset.data), torch.as_tensor(labels)


def file(path: Path) -> Source:
    """Return x of a .npy or .npz file, and any ``labels``, ``mask`` and further columns."""
    arrays, name = arrays_of(path), repr(str(path))
    if "x" not in arrays and len(arrays) != 1:
        raise ValueError(f"Expected an array named x in {name}; got {', '.join(arrays) or 'none'}.")
    x = arrays.pop("x" if "x" in arrays else next(iter(arrays)))
    labels, mask = (arrays.pop(key, None) for key in ("labels", "mask"))
    for array in (x, labels, mask):
        if isinstance(array, np.ndarray) and array.dtype.kind not in "buif":
            raise ValueError(f"Expected numbers in {name}; got {array.dtype}.")
    if isinstance(x, Stored):
        images: Any = x
    elif isinstance(x, np.memmap) and x.ndim:
        images = Stored(File(x), torch.arange(len(x)), to_tensor(x[:0], name).dtype)
    else:
        images = to_tensor(x, name, True)
    rest = {key: a for key, a in arrays.items() if a.dtype.kind in "buif" and a.shape[:1] == x.shape[:1]}
    extra = {key: narrowed(array, f"{key} of {name}") for key, array in rest.items()}
    y, observed = (None if array is None else narrowed(array, name) for array in (labels, mask))
    return Source(images, name, y, observed, extra=extra)


def folder(path: Path) -> Source:
    """Return the images in a folder, upright and on white; any subfolders are labels, in alphabetical order."""
    paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"Expected images ({', '.join(SUFFIXES)}) in {str(path)!r}; got none.")
    classes = sorted({file.parent for file in paths})
    labels = torch.tensor([classes.index(file.parent) for file in paths]) if len(classes) > 1 else None
    arrays, changes = list[np.ndarray](), Counter[str]()
    for file in tqdm(paths, desc="reading", unit=" images", leave=False, disable=len(paths) < 1000):
        array, notes_of_image = _image(file)
        arrays.append(array)
        changes.update(notes_of_image)
        if array.shape[:2] != arrays[0].shape[:2]:
            got = f"{arrays[0].shape[:2]} in {paths[0].name} and {array.shape[:2]} in {file.name}"
            raise ValueError(f"Expected images of one size; got {got}, (height, width). Resize them first.")
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.stack([array] * 3, -1) for array in arrays]
    notes = tuple(change.format(f"{number:,} images") for change, number in changes.items())
    return Source(torch.from_numpy(np.stack(arrays)), repr(str(path)), labels, notes=notes)


def _image(path: Path) -> tuple[np.ndarray, list[str]]:
    """Return an image as grey or RGB, upright and on white, the first of several frames, with notes of the changes."""
    try:
        with path.open("rb") as opened:  # given a path, Pillow maps some .tif files and does not turn them upright
            with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
                image: Image.Image = Image.open(opened)
            changes = [FRAME] if getattr(image, "n_frames", 1) > 1 else []
            image.load()
            with suppress(SyntaxError):  # broken EXIF data
                ImageOps.exif_transpose(image, in_place=True)
    except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError, RuntimeWarning) as error:
        large = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        advice = f"Save it with at most {Image.MAX_IMAGE_PIXELS} pixels" if large else "Save it again"
        raise ValueError(f"Expected an image; could not read {str(path)!r}. {advice}, or leave it out.") from error
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"Expected 8-bit images; got mode {image.mode} in {str(path)!r}. Save the images as .npy.")
    mode = "L" if image.mode in GREY else "RGB"
    if not image.has_transparency_data:
        return np.array(image.convert(mode)), changes
    layered = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    changes += [CLEAR] if layered.getchannel("A").getextrema() != (255, 255) else []
    return np.array(flat.convert(mode)), changes


def images_of(source: Source, counts: bool) -> tuple[Split, Survey]:
    """Check an array; return images ``(N, channels, height, width)``, with 0 for missing pixels, and a summary."""
    x, mask, name = source.x, source.mask, source.name
    if len(x.shape) < 2 or 0 in x.shape:
        raise ValueError(f"Expected a non-empty array of shape (N, ...) in {name}; got shape {tuple(x.shape)}.")
    what = "image" if len(x.shape) > 2 else "row"
    if len(x) < 3:
        raise ValueError(f"Expected at least 3 {what}s, one for each split, in {name}; got {len(x)}.")
    if x.dtype.is_complex:
        raise ValueError(f"Expected real numbers in {name}; got complex numbers.")
    if source.labels is not None and source.labels.shape != x.shape[:1]:
        raise ValueError(f"Expected {len(x)} labels, one for each {what}, in {name}; got {(*source.labels.shape,)}.")
    if isinstance(x, Stored):
        summary = survey(x.store.parts(), name)
        advice = "Fill them in, or save a dense x as .npz, which is read into memory with NaN as missing."
    else:
        x = channels_first(x)
        mask = _observed(x, mask, name, what)
        parts: Iterable[Tensor] = x.split(1024)
        if mask is not None:
            pairs = zip(parts, mask.split(1024), strict=True)
            parts = (part.double().masked_fill(~observed, torch.nan) for part, observed in pairs)
        summary = survey(parts, name)
        x = x.to(source.floats) if source.floats and x.is_floating_point() else x
        advice = f"Fill them in, leave out their {what}s, or set them to NaN, which is missing."
    if count := summary.infinite + summary.missing * isinstance(x, Stored):
        got = f"{count:,} of {math.prod(x.shape):,} that are {'NaN or ' * isinstance(x, Stored)}infinite"
        raise ValueError(f"Expected finite numbers in {name}; got {got}. {advice}")
    dtype, levels = x.dtype, source.levels or 256
    if not dtype.is_floating_point:
        low, high = summary.low, summary.high
        grey = 0 <= low <= high <= 255
        dtype, levels = torch.uint8 if grey else torch.float32, 2 if grey and high <= 1 else levels
        if grey and max(1, low) < high < 128 and not (counts or source.levels):
            largest = f"the largest in {name} is {high:g}, so x is at most {high / 255:.2g}"
            advice = f"Use the option counts for counts, or divide by {high:g} and pass floats."
            warnings.warn(f"Integers are grey levels from 0 to 255, but {largest}. {advice}", stacklevel=2)
    x = x if mask is None or isinstance(x, Stored) else x.masked_fill(~mask, 0)
    pixels = replace(x, dtype=dtype) if isinstance(x, Stored) else x.to(dtype)
    return Split(pixels, source.labels, levels, None, counts, mask, source.extra), summary


def _observed(x: Tensor, mask: Tensor | None, name: str, what: str) -> Tensor | None:
    """Return the mask of elements that are not NaN and observed by ``mask``, if any; None if all are observed."""
    if mask is None and not x.is_floating_point():
        return None
    observed = ~x.isnan()
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"Expected a mask of booleans, True where observed, in {name}; got {mask.dtype}.")
        mask = channels_first(mask)
        if mask.shape not in (x.shape, (len(x), 1, *x.shape[2:]) if x.dim() == 4 else None):
            shape = f"the shape of x, {tuple(x.shape)}, or with one channel"
            raise ValueError(f"Expected a mask of {shape}, in {name}; got {tuple(mask.shape)}.")
        observed &= mask
    if observed.all():
        return None
    if empty := int((~observed.flatten(1).any(1)).sum()):
        got = f"{empty:,} of {len(x):,} {what}s without any. Leave these {what}s out"
        raise ValueError(f"Expected an observed element in every {what} in {name}; got {got}.")
    return observed


def support_of(images: Split, summary: Survey) -> constraints.Constraint:
    """Return the support of x from the summary of the pixels without noise."""
    if images.noise:
        return constraints.boolean if images.noise == "bernoulli" else constraints.unit_interval
    if images.counts:
        return constraints.nonnegative_integer
    if images.levels and not images.pixels.dtype.is_floating_point:
        return constraints.boolean if images.levels == 2 else grid(images.levels)
    if summary.low >= 0 and summary.whole:
        return constraints.nonnegative_integer if summary.high > 1 else constraints.boolean
    return constraints.unit_interval if 0 <= summary.low <= summary.high <= 1 else constraints.real
