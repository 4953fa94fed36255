"""Load a :class:`Dataset` from a name, a path or tensors."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae.data.arrays import Survey, narrowed, survey, tensor_of
from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.labels import labelled as show_labels
from pyro_vae.data.on_disk import TABLES, arrays_of
from pyro_vae.data.schema import Schema
from pyro_vae.data.sources import NAMES, Source, digits, file, folder, torchvision_images
from pyro_vae.data.splits import Binarize, check_options, dataset_of, in_splits, split_rows
from pyro_vae.data.tables import columns_of, is_table, prepare, table


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
    x: Sequence[str] | str | None = None,
    labels: str | None = None,
    covariates: Sequence[str] | str | None = None,
    standardize: bool = False,
    layer: str | None = None,
    schema: str | None = None,
) -> Dataset:
    """Load a data set by name, or from a file or folder.

    The splits are fixed and do not depend on a seed. ``load`` keeps the test split of the source, and uses a sixth of
    the other data for validation. Without a test split, validation and test get a tenth each, at most 10,000 images.

    A .npy file of more than 256 MiB stays on disk. ``load`` reads the file twice, for the checks and for the mean, and
    training reads batches. Memory holds 16 bytes for each image, and all validation and test images. A sparse X of a
    .h5ad file, or a sparse matrix that ``scipy.sparse.save_npz`` wrote, stays sparse; each batch is dense.

    Arguments:
        data: ``digits`` (8x8, part of scikit-learn); ``mnist``, ``fashion-mnist``, ``kmnist``, ``omniglot``,
            ``cifar10`` or ``svhn`` (through torchvision); a .npy or .npz file, with arrays ``x`` and optionally
            ``labels`` and ``mask``, and arrays named as further arguments of a program, with as many rows; a
            .csv, .tsv, .parquet or .h5ad table (``pip install "pyro_vae[tables]"``), with x in the rows; or a folder of
            images, with subfolders as labels, if any. ``load`` rotates images by their EXIF data, puts a white
            background behind transparency, and reads the first of several frames. An element is missing if x is NaN or
            ``mask`` is False; ``mask`` has the shape of x, or one channel.
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
        x: The columns of x in a table, by name. By default x is all columns but the labels and the covariates; of a
            .h5ad file, all variables.
        labels: The column of a table's labels, which a program sees as y if there are no covariates. Text, booleans,
            categories and whole numbers become codes from 0, in the order of the categories, or sorted.
        covariates: The columns of a table that a program sees as further arguments: each by its name, and all together
            as y. A category, as for ``labels``, becomes its code, and a one-hot vector in a y of several columns.
            Numbers stay numbers.
        standardize: Whether to subtract from each number of a table the mean of its column over the training rows, and
            divide by the standard deviation (US spelling, as ``binarize``). A run undoes this in its rows and figures.
        layer: The layer of a .h5ad file that is x, in place of its X.
        schema: The ``schema.json`` of a run: another table gets the columns, levels, means and scales of that run.

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
    x, covariates = ([value] if isinstance(value, str) else value and [*value] for value in (x, covariates))
    of_table = dict(x=x, labels=labels, covariates=covariates, standardize=standardize, layer=layer, schema=schema)
    config |= {name: value for name, value in of_table.items() if value}
    check_options(config | {"columns": columns})
    path, own = Path(data), [name for name in of_table if name in config]
    if own and not is_table(path):
        raise ValueError(f"Expected a table ({', '.join(TABLES)}) for {own[0]}; got {data!r}.")
    if own and columns is not None:
        raise ValueError(f"Expected columns, or {own[0]}, to choose the columns of a table; got both.")
    if labelled is not None and covariates:
        raise ValueError("Expected labelled, which hides labels that are y, or covariates, which are y; got both.")
    if columns is not None:
        return show_labels(_by_columns(path, columns, config), labelled, labelled_seed)
    if is_table(path):
        before = Schema.read(schema) if schema else None
        source = table(path, x, labels, covariates or (), standardize, layer, before)
        source = prepare(source, split_rows(len(source.x), valid)[0], standardize, before)
    elif data in NAMES:
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
    return show_labels(dataset_of(source, config), labelled, labelled_seed)


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
    check_options(config)
    optional = {"labels": labels, "mask": mask}
    labels, mask = (None if value is None else _on_cpu(value, name) for name, value in optional.items())
    return dataset_of(Source(_on_cpu(x, "x"), "a tensor", labels, mask, floats=None), config)


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
    return in_splits(rows, summary, config)


def _by_columns(path: Path, columns: Sequence[str], config: dict[str, Any]) -> Dataset:
    """Return a data set of arrays of a .npz file, or of columns of a table, as arguments of a program."""
    arrays = columns_of(path, columns) if is_table(path) else arrays_of(path)
    arrays = {name: array for name, array in arrays.items() if array.dtype.kind in "buif"}
    if absent := [name for name in columns if name not in arrays]:
        raise ValueError(f"Expected numbers named {absent[0]} in {str(path)!r}; got {', '.join(arrays) or 'none'}.")
    tensors = {name: narrowed(arrays[name], f"{name} of {str(path)!r}") for name in columns}
    return replace(from_columns(tensors, config["valid"]), config=config | {"columns": [*columns]})


def _on_cpu(value: Any, argument: str) -> Tensor:
    return tensor_of(value, argument).detach().cpu()
