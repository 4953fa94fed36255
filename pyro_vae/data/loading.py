"""From a name, a path or a tensor to a :class:`Dataset`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyro_vae.data.arrays import Survey, narrowed, survey, tensor_of
from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.labels import labelled as show_labels
from pyro_vae.data.on_disk import OnDisk, arrays_of
from pyro_vae.data.sources import NAMES, Source, digits, file, folder, images_of, support_of, torchvision_images

Binarize = Literal["none", "static", "dynamic", "threshold"]
SEED = 20140416
MOST = 10_000  # images held out of a source that has no test split


def load(
    data: str = "digits",
    root: str = "data",
    binarize: Binarize = "none",
    dequantize: bool = False,
    valid: int | None = None,
    counts: bool = False,
    columns: Sequence[str] | None = None,
    labelled: int | None = None,
    labelled_seed: int = 0,
) -> Dataset:
    """Load a data set by name, or your own by path.

    The splits are fixed, whatever the seed. A test split of the source is kept, and a sixth of the rest is held out for
    validation; otherwise a tenth is held out for each, but at most 10,000.

    A .npy file of more than 256 MiB stays on disk. It is read through twice, to check it and for the mean, and
    then batch by batch: in memory are 16 bytes an image, and the held-out images.

    Arguments:
        data: ``digits`` (8x8, inside scikit-learn); ``mnist``, ``fashion-mnist``, ``kmnist``, ``omniglot``,
            ``cifar10`` or ``svhn``, through torchvision; a .npy or .npz file (arrays ``x`` and, if any, ``labels``
            and ``mask``; others of as many rows are further arguments of a program, by name); a .csv, .tsv or .parquet
            table, whose rows are x (through pandas); or a folder of images (subfolders, if any, are the labels), turned
            as their EXIF data say, on white where they are transparent, the first of several frames. NaN is missing,
            and what ``mask`` says: booleans, True where observed, of the shape of x or with one channel.
        root: Folder where torchvision finds the data set, or puts it.
        binarize: ``none``; ``static``, drawn once with the grey level as probability; ``dynamic``, drawn afresh
            for every training batch, and once for the validation and test images; ``threshold``, 1 above one half.
        dequantize: Whether to add uniform noise within a grey level, which makes a density of grey pixels a bound
            on their probability.
        valid: How many images to hold out for validation, if not the usual part; may be 0.
        counts: Whether x is the pixel as it is stored, a whole number from 0 on. Floats that are all whole numbers
            from 0 on are counts, or binary, without it.
        columns: Names of arrays of a .npz file, or of columns of a table, for :func:`from_columns`: the arguments of a
            program, x first.
        labelled: How many training labels a program sees as y, as many of each class: see :func:`labelled`; None: all.
        labelled_seed: Which.

    Returns:
        Images as float x in [0, 1] of shape ``(channels, height, width)``, NaN where it is missing. Arrays keep
        their shape; floats outside [0, 1], and counts, are left as they are.

    Raises:
        FileNotFoundError: If there is nothing at the path, or torchvision finds no data and no network.
        ValueError: If the name is unknown, or the data cannot be read, are infinite, differ by too little for float32,
            are fewer than 3, wholly missing in an image, missing at all on disk, or do not suit the options; later, if
            a file on disk has changed.

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
    if not isinstance(data, str | os.PathLike):
        kind = type(data).__name__
        raise ValueError(f"Expected data to be a name or a path; got a {kind}. Give arrays to data.from_tensor.")
    data = os.fspath(data)
    config = dict(data=data, root=str(root), binarize=binarize, dequantize=dequantize, valid=valid, counts=counts)
    _check_ways(config | {"columns": columns})
    path = Path(data)
    if columns is not None:
        arrays = {name: array for name, array in arrays_of(path).items() if array.dtype.kind in "buif"}
        if absent := [name for name in columns if name not in arrays]:
            raise ValueError(f"Expected numbers named {absent[0]} in {data!r}; got {', '.join(arrays) or 'none'}.")
        dataset = from_columns({name: narrowed(arrays[name], f"{name} of {data!r}") for name in columns}, valid)
        return show_labels(replace(dataset, config=config | {"columns": [*columns]}), labelled, labelled_seed)
    if data in NAMES:
        source = torchvision_images(data, root)
    elif data == "digits":
        source = digits()
    elif data and path.is_dir():  # '' would be the folder one is in
        source = folder(path)
    elif path.is_file() or path.suffix or path.name != data:
        source = file(path)
    else:
        got = f"{data!r}, and nothing is of that name in {str(Path.cwd())!r}"
        raise ValueError(f"Expected one of digits, {', '.join(NAMES)}, or a path; got {got}.")
    return show_labels(_dataset(source, config), labelled, labelled_seed)


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

    x, of shape ``(N, *event)``, is bytes (256 grey levels), booleans, or floats, which are x as they are; labels are of
    shape ``(N,)``. All else, ``Raises`` too, is as in :func:`load`.

    Example:
        >>> [len(split) for split in from_tensor(torch.rand(100, 5)).splits.values()]
        [80, 10, 10]
        >>> print(from_tensor(torch.rand(100, 5), mask=torch.arange(5).expand(100, 5) > 0))
        tensor, not binarised, 20% missing
    """
    config = dict(data="tensor", root="", binarize=binarize, dequantize=dequantize, valid=valid, counts=counts)
    _check_ways(config)
    rest = {"labels": labels, "mask": mask}
    labels, mask = (None if given is None else _held(given, name) for name, given in rest.items())
    return _dataset(Source(_held(x, "x"), "a tensor", labels, mask, floats=None), config)


def from_columns(columns: Mapping[str, Any], valid: int | None = None) -> Dataset:
    """Make a data set of columns: a tenth held out for validation, a tenth for test, as in :func:`load`.

    The first column is x. Whole numbers and booleans stay as they are, where :func:`from_tensor` takes them for pixels;
    NaN is missing.

    Arguments:
        columns: Tensors by the names of a program's arguments, each with the data along its first dimension.
        valid: As in :func:`load`.

    Raises:
        ValueError: If there are no columns, or fewer than 3 rows, or columns differ in length or are infinite.

    Example:
        >>> dataset = from_columns({"x": torch.rand(100, 5), "y": torch.arange(100) % 3})
        >>> [column.shape for column in dataset.train.batch(slice(0, 7))]
        [torch.Size([7, 5]), torch.Size([7])]
    """
    tensors = {name: _held(column, name) for name, column in columns.items()}
    sizes = {len(column) if column.dim() else 0 for column in tensors.values()}
    if len(sizes) != 1 or min(sizes) < 3:
        shapes = ", ".join(f"{name} {tuple(column.shape)}" for name, column in tensors.items())
        raise ValueError(f"Expected columns of as many rows each, at least 3; got {shapes or 'none'}.")
    surveys = list[Survey]()
    for name, column in tensors.items():
        if column.dtype.is_complex or (column.is_floating_point() and column.isinf().any()):
            raise ValueError(f"Expected finite real numbers, or NaN where they are missing, in {name!r}; got others.")
        if column.is_floating_point() or not surveys:  # other whole numbers stay as they are
            surveys.append(survey(column.split(1024) if column.numel() else [], repr(name)))
    first, *_ = tensors
    x, seen = tensors.pop(first), surveys[0]
    mask = ~x.isnan() if seen.missing else None
    if seen.low > seen.high:
        raise ValueError(f"Expected numbers in {first!r}; got none.")
    whole = Split(x if mask is None else x.masked_fill(~mask, 0), levels=0, mask=mask, extra=tensors)
    config = dict(data="tensor", root="", binarize="none", dequantize=False, valid=valid, counts=False)
    return _in_splits(whole, seen, config)


def _check_ways(config: Mapping[str, Any]) -> None:
    """Refuse an unknown way to read x, and two at once."""
    if config["binarize"] not in (ways := get_args(Binarize)):
        raise ValueError(f"Expected binarize to be {', '.join(ways)}; got {config['binarize']!r}.")
    chosen = {name: config.get(name) for name in ("binarize", "dequantize", "counts", "columns")}
    if len(both := [f"{name}={way!r}" for name, way in chosen.items() if way and way != "none"]) > 1:
        raise ValueError(f"Expected at most one of {', '.join(chosen)}; got {' and '.join(both)}.")


def _held(given: Any, argument: str) -> Tensor:
    return tensor_of(given, argument).detach().cpu()


def _dataset(source: Source, config: dict[str, Any]) -> Dataset:
    binarize, dequantize = config["binarize"], config["dequantize"]
    whole, seen = images_of(source, config["counts"])
    pixels = whole.pixels
    if dequantize and pixels.dtype.is_floating_point:
        raise ValueError(f"Expected whole grey levels to dequantize; got {pixels.dtype} in {source.name}.")
    if binarize == "static" and whole.on_disk:
        got = f"for {source.name}, which stays on disk; got 'static', whose draws would have to be kept"
        raise ValueError(f"Expected binarize to be none, dynamic or threshold {got}. Use dynamic.")
    extremes = f"[{seen.low:g}, {seen.high:g}]"
    if whole.counts and not (seen.low >= 0 and seen.whole):
        raise ValueError(f"Expected whole numbers from 0 on as counts; got others, in {extremes}, in {source.name}.")
    if binarize != "none" and not 0 <= seen.low <= seen.high <= whole.white:
        raise ValueError(f"Expected pixels in [0, 1] to binarise; got {extremes} in {source.name}.")
    if binarize == "threshold":
        cut = whole.white / 2
        above = replace(pixels, cut=cut, dtype=torch.uint8) if isinstance(pixels, OnDisk) else (pixels > cut).byte()
        whole = replace(whole, pixels=above, levels=2)
    elif binarize != "none" or dequantize:
        whole = replace(whole, noise="uniform" if dequantize else "bernoulli")
    return replace(_in_splits(whole, seen, config, source.test), names=source.names, notes=source.notes)


def _in_splits(whole: Split, seen: Survey, config: dict[str, Any], test: int = 0) -> Dataset:
    """Take all images apart; ``test`` of the last are for test, and the held-out ones have their noise once for all."""
    total, valid, generator = len(whole), config["valid"], torch.Generator().manual_seed(SEED)
    if test:
        rest, last = torch.randperm(total - test, generator=generator), torch.arange(total)[-test:]
        usual = len(rest) // 6
    else:
        order, usual = torch.randperm(total, generator=generator), min(max(1, round(total / 10)), MOST)
        last, rest = order[:usual], order[usual:]
    held_out = usual if valid is None else valid
    if not hasattr(held_out, "__index__") or not 0 <= held_out < len(rest):
        right = f"a whole number of at least 0 and fewer than the {len(rest)} that are not for test"
        raise ValueError(f"Expected valid, {right}; got {held_out!r}.")
    parts = [whole.part(rows) for rows in (rest[held_out:], rest[:held_out], last)]
    for i in range(0 if config["binarize"] == "static" else 1, 3):
        parts[i] = parts[i].frozen(torch.Generator().manual_seed(SEED + i))
    return Dataset(parts[0], parts[1], parts[2], support_of(whole, seen), config)
