"""From a name, a path or a tensor to a :class:`Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyro_vae.data.columns import from_columns, is_whole, split_rows, support_of
from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.on_disk import OnDisk, arrays_of, to_tensor
from pyro_vae.data.sources import NAMES, Images, digits, file, folder, torchvision_images

__all__ = ["from_tensor", "load"]

Binarize = Literal["none", "static", "dynamic", "threshold"]
SEED = 20140416


def load(
    data: str = "digits",
    root: str = "data",
    binarize: Binarize = "none",
    dequantize: bool = False,
    valid: int | None = None,
    counts: bool = False,
    columns: Sequence[str] | None = None,
) -> Dataset:
    """Load a data set by name, or your own by path.

    The splits are fixed. Where the source has a test split it is kept, and a sixth of the rest is held out for
    validation; otherwise a tenth is held out for each, but at most 10,000. Which images those are does not depend on
    any seed.

    A .npy file of more than 256 MiB stays on disk. It is read through once, to check it (and once more for the mean
    where binarize is ``threshold``), and then the training images are read batch by batch. In memory are the order,
    some 16 bytes an image, and the images that are held out.

    Arguments:
        data: ``digits`` (8x8, inside scikit-learn); ``mnist``, ``fashion-mnist``, ``kmnist``, ``omniglot``,
            ``cifar10`` or ``svhn``, through torchvision; a .npy or .npz file (arrays ``x`` and, if any, ``labels``
            and ``mask``; others of as many rows are further arguments of a program, by name); or a folder of images
            (subfolders, if any, are the labels). In an array of floats NaN is
            missing, in any array what ``mask`` says: booleans, True where observed, of the shape of x or with one
            channel.
        root: Folder where torchvision finds the data set, or puts it.
        binarize: ``none``; ``static``, drawn once with the grey level as probability; ``dynamic``, drawn afresh
            for every training batch, and once for the validation and test images; ``threshold``, 1 above one half.
        dequantize: Whether to add uniform noise within a grey level, which makes a density of grey pixels a bound
            on their probability.
        valid: How many images to hold out for validation, if not the usual part; 0 to train on all that are not for
            test, once there is nothing left to choose.
        counts: Whether x is the pixel as it is stored, a whole number from 0 on. Floats that are all whole numbers
            from 0 on are counts, or binary, without it.
        columns: Names of arrays of a .npz file, each to be taken as it is, by :func:`from_columns`: the arguments of a
            program, x first.

    Returns:
        Images as float x in [0, 1] of shape ``(channels, height, width)``, NaN where it is missing. Arrays keep
        their shape; floats outside [0, 1], and counts, are left as they are.

    Raises:
        FileNotFoundError: If there is nothing at the path, or torchvision finds no data and no network.
        ValueError: If the name is unknown, the data cannot be read, are infinite, are fewer than 3 images, have an
            image of which nothing is observed or are on disk and have missing numbers, or do not suit the options;
            and, when a batch is read, if a file on disk is not what it was.

    References:
        The split of static binarisation is ours, not that of Larochelle and Murray (2011): numbers on the two do
        not compare to the last tenth of a nat.

    Example:
        >>> digits = load("digits", binarize="dynamic")
        >>> digits.event_shape, [len(split) for split in digits.splits.values()]
        ((1, 8, 8), [1437, 180, 180])
        >>> digits.support
        Boolean()
    """
    config = {"data": str(data), "root": str(root), "binarize": binarize, "dequantize": dequantize, "valid": valid}
    config["counts"] = counts
    if columns is not None:
        if binarize != "none" or dequantize or counts:
            raise ValueError("Expected columns as they are; got binarize, dequantize or counts too, for images.")
        arrays = {name: array for name, array in arrays_of(Path(data)).items() if array.dtype.kind in "buif"}
        if absent := [name for name in columns if name not in arrays]:
            raise ValueError(f"Expected numbers named {absent[0]} in {data!r}; got {', '.join(arrays) or 'none'}.")
        dataset = from_columns({name: to_tensor(arrays[name]) for name in columns}, valid)
        return replace(dataset, config=config | {"columns": [*columns]})
    if data in NAMES:
        return _dataset(torchvision_images(data, root), config)
    path = Path(data)
    if data == "digits":
        images = digits()
    elif data and path.is_dir():  # '' would be the folder one is in
        images = folder(path)
    elif path.is_file() or path.suffix or path.name != data:
        images = file(path)
    else:
        raise ValueError(f"Expected one of digits, {', '.join(NAMES)}, or a path; got {data!r}.")
    return _dataset(images, config)


def from_tensor(
    x: Tensor,
    labels: Tensor | None = None,
    binarize: Binarize = "none",
    dequantize: bool = False,
    valid: int | None = None,
    counts: bool = False,
    mask: Tensor | None = None,
) -> Dataset:
    """Make a data set of a tensor: a tenth held out for validation, a tenth for test, as in :func:`load`.

    Arguments:
        x: Shape ``(N, *event)``: bytes (256 grey levels), booleans, or floats, which are x as they are.
        labels: Shape ``(N,)``, or None.
        binarize: As in :func:`load`.
        dequantize: As in :func:`load`.
        valid: As in :func:`load`.
        counts: As in :func:`load`.
        mask: As in :func:`load`.

    Raises:
        ValueError: As :func:`load`.

    Example:
        >>> [len(split) for split in from_tensor(torch.rand(100, 5)).splits.values()]
        [80, 10, 10]
        >>> print(from_tensor(torch.rand(100, 5), mask=torch.arange(5).expand(100, 5) > 0))
        tensor, not binarised, 20% missing
    """
    config = {"data": "tensor", "root": "", "binarize": binarize, "dequantize": dequantize, "valid": valid}
    config["counts"] = counts
    labels, mask = (None if given is None else given.detach().cpu() for given in (labels, mask))
    return _dataset(Images.of(x.detach().cpu(), labels, "a tensor", mask=mask), config)


def _dataset(images: Images, config: dict[str, Any]) -> Dataset:
    binarize, dequantize = config["binarize"], config["dequantize"]
    whole = Split(images.pixels, images.labels, images.levels, None, config["counts"], images.mask, images.extra)
    _check(whole, images.source, binarize, dequantize)
    if whole.counts and not (images.low >= 0 and is_whole(images.pixels)):
        raise ValueError(
            f"Expected whole numbers from 0 on as counts; got others, in [{images.low:g}, {images.high:g}], in "
            f"{images.source}."
        )
    low, high = images.low / whole.white, images.high / whole.white
    if binarize != "none" and not 0 <= low <= high <= 1:
        raise ValueError(f"Expected pixels in [0, 1] to binarise; got [{low:g}, {high:g}] in {images.source}.")
    if binarize == "threshold":
        whole = replace(whole, pixels=_above(whole.pixels, whole.white / 2), levels=2)
    elif binarize != "none" or dequantize:
        whole = replace(whole, noise="uniform" if dequantize else "bernoulli")
    parts = []
    for i, rows in enumerate(split_rows(len(images.pixels), config["valid"], images.test)):
        part = whole.part(rows)
        part = replace(part, pixels=part.pixels[:]) if i and part.on_disk else part
        frozen = i > 0 or binarize == "static"
        parts.append(part.frozen(torch.Generator().manual_seed(SEED + i)) if frozen else part)
    train, valid, test = parts
    return Dataset(train, valid, test, support_of(whole, low, high), config)


def _check(whole: Split, source: str, binarize: str, dequantize: bool) -> None:
    if binarize not in get_args(Binarize):
        raise ValueError(f"Expected binarize to be {', '.join(get_args(Binarize))}; got {binarize!r}.")
    if dequantize and binarize != "none":
        raise ValueError(f"Expected either binarize or dequantize; got both, binarize={binarize!r}.")
    if whole.counts and (dequantize or binarize != "none"):
        other = "dequantize" if dequantize else f"binarize={binarize!r}"
        raise ValueError(f"Expected counts alone, which are the pixels as they are stored; got {other} too.")
    if dequantize and whole.pixels.dtype.is_floating_point:
        raise ValueError(f"Expected whole grey levels to dequantize; got {whole.pixels.dtype} in {source}.")
    if binarize == "static" and isinstance(whole.pixels, OnDisk):
        raise ValueError(
            f"Expected binarize to be none, dynamic or threshold for {source}, which stays on disk; got 'static', "
            "whose draws would have to be kept. Use dynamic."
        )


def _above(pixels: Tensor | OnDisk, cut: float) -> Tensor | OnDisk:
    """Return 1 where a pixel is above ``cut``, and 0 elsewhere."""
    if isinstance(pixels, OnDisk):
        return replace(pixels, cut=cut, dtype=torch.uint8)
    return (pixels > cut).byte()
