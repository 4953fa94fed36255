"""Load a :class:`Dataset` from a name, a path or tensors."""

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
MOST = 10_000  # the largest split held out of a source without a test split


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
    """Load a data set by name, or from a file or folder.

    The splits are fixed and do not depend on a seed. ``load`` keeps the test split of the source, and uses a sixth of
    the other data for validation. Without a test split, validation and test get a tenth each, at most 10,000 images.

    A .npy file of more than 256 MiB stays on disk. ``load`` reads the file twice, for the checks and for the mean, and
    training reads batches. Memory holds 16 bytes for each image, and all validation and test images.

    Arguments:
        data: ``digits`` (8x8, part of scikit-learn); ``mnist``, ``fashion-mnist``, ``kmnist``, ``omniglot``,
            ``cifar10`` or ``svhn`` (through torchvision); a .npy or .npz file, with arrays ``x`` and optionally
            ``labels`` and ``mask``, and arrays named as further arguments of a program, with as many rows; a
            .csv, .tsv or .parquet table (through pandas), with x in the rows; or a folder of images, with subfolders as
            labels, if any. ``load`` rotates images by their EXIF data, puts a white background behind transparency, and
            reads the first of several frames. An element is missing if x is NaN or ``mask`` is False; ``mask`` has the
            shape of x, or one channel.
        root: The folder of torchvision's data sets. ``load`` downloads a missing data set to this folder.
        binarize: ``none``; ``static``, one sample with the grey level as probability; ``dynamic``, a new sample for
            each training batch, and one for the validation and test images; ``threshold``, 1 above one half.
        dequantize: Whether to add uniform noise within a grey level. The log density of noisy pixels is then, on
            average, a lower bound on the log probability of the grey levels.
        valid: The number of validation images, in place of the default share. The number may be 0.
        counts: Whether x is the stored pixel, an integer of at least 0. Without this option, floats that are all
            integers of at least 0 are counts, or binary.
        columns: The names of a program's arguments, x first: arrays of a .npz file, or columns of a table, for
            :func:`from_columns`.
        labelled: The number of training labels that a program sees as y, with equally many of each class, as in
            :func:`labelled`. None keeps all labels.
        labelled_seed: The seed that selects the labelled data.

    Returns:
        Images as float x in [0, 1] of shape ``(channels, height, width)``, NaN where missing. Arrays keep their shape;
        floats outside [0, 1] and counts keep their values.

    Raises:
        FileNotFoundError: If the path does not exist, or torchvision finds no data and cannot download the data.
        ValueError: If the name is unknown, the data are unreadable, infinite, too close for float32 or fewer than 3, an
            image has no observed pixel, a file on disk has missing pixels, or the data do not suit the options. A later
            read raises the error if a file on disk has changed.

    See Also:
        :func:`from_tensor` and :func:`from_columns`, for data in memory.

    Note:
        Statically binarised images differ from the images of Larochelle and Murray (2011). Results on the two sets of
        images may differ by a tenth of a nat.

    Example:
        >>> digits = load("digits", binarize="dynamic")
        >>> digits.event_shape, [len(split) for split in digits.splits.values()]
        ((1, 8, 8), [1437, 180, 180])
        >>> digits.support
        Boolean()
    """
    if not isinstance(data, str | os.PathLike):
        kind = type(data).__name__
        raise ValueError(f"Expected data to be a name or a path; got a {kind}. Pass arrays to data.from_tensor.")
    data = os.fspath(data)
    config = dict(data=data, root=str(root), binarize=binarize, dequantize=dequantize, valid=valid, counts=counts)
    _check_options(config | {"columns": columns})
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
    elif data and path.is_dir():  # Path('') is the working directory
        source = folder(path)
    elif path.is_file() or path.suffix or path.name != data:
        source = file(path)
    else:
        got = f"{data!r}, and {str(Path.cwd())!r} has no file of that name"
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
    """Return a data set of a tensor: a tenth is for validation and a tenth for test, as in :func:`load`.

    x has shape ``(N, *event)``: bytes (256 grey levels), booleans, or floats, which keep their values. ``labels`` have
    shape ``(N,)``. The other arguments and ``Raises`` are as in :func:`load`.

    Example:
        >>> [len(split) for split in from_tensor(torch.rand(100, 5)).splits.values()]
        [80, 10, 10]
        >>> print(from_tensor(torch.rand(100, 5), mask=torch.arange(5).expand(100, 5) > 0))
        tensor, not binarised, 20% missing
    """
    config = dict(data="tensor", root="", binarize=binarize, dequantize=dequantize, valid=valid, counts=counts)
    _check_options(config)
    optional = {"labels": labels, "mask": mask}
    labels, mask = (None if value is None else _on_cpu(value, name) for name, value in optional.items())
    return _dataset(Source(_on_cpu(x, "x"), "a tensor", labels, mask, floats=None), config)


def from_columns(columns: Mapping[str, Any], valid: int | None = None) -> Dataset:
    """Return a data set of columns: a tenth is for validation and a tenth for test, as in :func:`load`.

    The first column is x. Integers and booleans keep their values; :func:`from_tensor` would read both as
    pixels. NaN is missing.

    Arguments:
        columns: A tensor for each argument of a program, by name, with the data along the first dimension.
        valid: As in :func:`load`.

    Raises:
        ValueError: If there are no columns or fewer than 3 rows, or columns differ in length or are infinite.

    Example:
        >>> dataset = from_columns({"x": torch.rand(100, 5), "y": torch.arange(100) % 3})
        >>> [column.shape for column in dataset.train.batch(slice(0, 7))]
        [torch.Size([7, 5]), torch.Size([7])]
    """
    tensors = {name: _on_cpu(column, name) for name, column in columns.items()}
    sizes = {len(column) if column.dim() else 0 for column in tensors.values()}
    if len(sizes) != 1 or min(sizes) < 3:
        shapes = ", ".join(f"{name} {tuple(column.shape)}" for name, column in tensors.items())
        raise ValueError(f"Expected columns with the same number of rows, at least 3; got {shapes or 'none'}.")
    surveys = list[Survey]()
    for name, column in tensors.items():
        if column.dtype.is_complex or (column.is_floating_point() and column.isinf().any()):
            kind = "complex numbers" if column.dtype.is_complex else "infinite ones"
            raise ValueError(f"Expected finite real numbers, or NaN where missing, in {name!r}; got {kind}.")
        if column.is_floating_point() or not surveys:  # integers beside x keep their values
            surveys.append(survey(column.split(1024) if column.numel() else [], repr(name)))
    first, *_ = tensors
    x, summary = tensors.pop(first), surveys[0]
    mask = ~x.isnan() if summary.missing else None
    if summary.low > summary.high:
        raise ValueError(f"Expected numbers in {first!r}; got only NaN.")
    rows = Split(x if mask is None else x.masked_fill(~mask, 0), levels=0, mask=mask, extra=tensors)
    config = dict(data="tensor", root="", binarize="none", dequantize=False, valid=valid, counts=False)
    return _in_splits(rows, summary, config)


def _check_options(config: Mapping[str, Any]) -> None:
    """Refuse an unknown binarisation, and two options that exclude each other."""
    if config["binarize"] not in (ways := get_args(Binarize)):
        raise ValueError(f"Expected binarize to be one of {', '.join(ways)}; got {config['binarize']!r}.")
    options = {name: config.get(name) for name in ("binarize", "dequantize", "counts", "columns")}
    if len(both := [f"{name}={value!r}" for name, value in options.items() if value and value != "none"]) > 1:
        raise ValueError(f"Expected at most one of {', '.join(options)}; got {' and '.join(both)}.")


def _on_cpu(value: Any, argument: str) -> Tensor:
    return tensor_of(value, argument).detach().cpu()


def _dataset(source: Source, config: dict[str, Any]) -> Dataset:
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
        above = replace(pixels, cut=cut, dtype=torch.uint8) if isinstance(pixels, OnDisk) else (pixels > cut).byte()
        images = replace(images, pixels=above, levels=2)
    elif binarize != "none" or dequantize:
        images = replace(images, noise="uniform" if dequantize else "bernoulli")
    return replace(_in_splits(images, summary, config, source.test), names=source.names, notes=source.notes)


def _in_splits(images: Split, summary: Survey, config: dict[str, Any], test: int = 0) -> Dataset:
    """Split images, the last ``test`` for test; the validation and test images get fixed noise."""
    total, valid, generator = len(images), config["valid"], torch.Generator().manual_seed(SEED)
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
    splits = [images.part(rows) for rows in (rest[held_out:], rest[:held_out], last)]
    for i in range(0 if config["binarize"] == "static" else 1, 3):
        splits[i] = splits[i].with_fixed_noise(torch.Generator().manual_seed(SEED + i))
    return Dataset(splits[0], splits[1], splits[2], support_of(images, summary), config)
