"""Read tables: .csv, .tsv and .parquet files by pandas, .h5ad files by anndata; choose and encode their columns."""

import difflib
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from pyro_vae.data.arrays import AT_ONCE, narrowed, survey
from pyro_vae.data.on_disk import TABLES, Sparse, Stored, check_file, sparse
from pyro_vae.data.schema import Column, Schema
from pyro_vae.data.sources import Source

MATRICES = ("csr_matrix", "csc_matrix")  # encodings of a sparse X in a .h5ad file


def is_table(path: Path) -> bool:
    """Return whether a file is a table, by its suffix."""
    return path.suffix.lower() in TABLES


def table(
    path: Path,
    x: Sequence[str] | None = None,
    labels: str | None = None,
    covariates: Sequence[str] = (),
    standardize: bool = False,
    layer: str | None = None,
    schema: Schema | None = None,
) -> Source:
    """Return columns of a table: x, the labels, and each covariate; categories become codes.

    A category has the levels that ``schema`` has for it. Without ``x``, x is the columns of ``schema``, or else all
    columns but the labels and covariates.
    """
    aside, annotated = [*([] if labels is None else [labels]), *covariates], path.suffix.lower() == ".h5ad"
    if layer is not None and not annotated:
        raise ValueError(f"Expected a .h5ad file for layer; got {str(path)!r}.")
    array, names, frame = _annotated(path, layer, aside) if annotated else (None, [], _frame(path))
    if not annotated:
        check_names(path, "x, labels and covariates", [*frame], [*aside, *(x or ())])
        names = [name for name in frame if name not in aside]
    chosen = [*x] if x is not None else [column.name for column in schema.x] if schema else names
    check_names(path, "x", names, chosen)
    if not chosen:
        got = f"none beside {', '.join(aside) or 'the index'}"
        raise ValueError(f"Expected a column of x in {str(path)!r}; got {got}.")
    if array is None:
        columns = [numbers(path, name, frame[name]) for name in chosen]
        for name, column in zip(chosen, columns, strict=True):
            survey([] if standardize else [column], f"column {name!r} of {str(path)!r}")
        array = np.stack([column.astype(float if standardize else np.float32) for column in columns], 1)
    elif chosen != names:
        array = array[:, [names.index(name) for name in chosen]]
    known = {column.name: column for column in (*schema.given, schema.labels) if column} if schema else {}
    coded = {name: _encoded(path, frame[name], known.get(name), name == labels) for name in aside}
    made = Schema(
        tuple(map(Column, chosen)),
        None if labels is None else coded[labels][1],
        tuple(coded[name][1] for name in covariates),
    )
    if labels is not None and coded[labels][0].is_floating_point():
        coded[labels] = (narrowed(coded[labels][0].numpy(), f"column {labels!r} of {str(path)!r}"), coded[labels][1])
    pixels: Any = torch.from_numpy(array) if isinstance(array, np.ndarray) else sparse(array, str(path))
    extra = {name: coded[name][0] for name in covariates}
    return Source(pixels, repr(str(path)), None if labels is None else coded[labels][0], extra=extra, schema=made)


def prepared(source: Source, train: Tensor, standardize: bool = False, schema: Schema | None = None) -> Source:
    """Return a table with its covariates together as y, standardised by its rows ``train``, or as ``schema`` is."""
    made, x, extra = source.schema or Schema(()), source.x, dict(source.extra)
    if standardize:
        parts = x.part(train).chunks() if isinstance(x, Stored) else x[train].split(1024)
        of_y = {name: values[train] for name, values in extra.items()}
        made = made.with_units_of(schema) if schema else made.standardised_by(parts, of_y)
        mean, scale = made.units
        if isinstance(x, Stored) and isinstance(x.store, Sparse):
            x = replace(x, store=Sparse(x.store.matrix, str(x.store.path), (mean.numpy(), scale.numpy())))
        else:
            x = (x - mean) / scale
    for column in made.covariates:
        if not column.levels:
            values = (extra[column.name] - column.mean) / column.scale
            extra[column.name] = narrowed(values.numpy(), f"column {column.name!r} of {source.name}")
    y = {"y": made.y_of(extra)} if made.covariates else {}
    return source._replace(x=x, extra=extra | y, schema=made)


def numbers(path: Path, name: str, column: Any) -> np.ndarray:
    """Return a column of a frame as numbers, with NaN where a number is missing; refuse text."""
    import pandas as pd

    if not pd.api.types.is_any_real_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        text = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
        got = f"{str([*text, *column][0])!r} in {name!r}"
        advice = "Choose the columns of x, or make this one the labels or a covariate; leave cells empty where missing."
        raise ValueError(f"Expected numbers in the columns of {str(path)!r}; got {got}. {advice}")
    return column.to_numpy(**({"dtype": float, "na_value": np.nan} if column.hasnans else {}))


def columns_of(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return columns of a table as numbers, by name."""
    if path.suffix.lower() == ".h5ad":
        raise ValueError(f"Expected labels and covariates for {str(path)!r}, to choose columns of obs; got columns.")
    frame = _frame(path)
    check_names(path, "columns", [*frame], names)
    return {name: numbers(path, name, frame[name]) for name in names}


def check_names(path: Path, option: str, names: Collection[str], chosen: Sequence[str]) -> None:
    """Refuse a column that does not exist, and a column that is chosen twice."""
    for i, name in enumerate(chosen):
        if name in chosen[:i]:
            raise ValueError(f"Expected different columns for {option}; got {name!r} twice.")
        if name not in names:
            near = difflib.get_close_matches(str(name), names, cutoff=0.5) or names
            advice = f"Near names: {textwrap.shorten(', '.join(near), 100)}." if near else "It has none."
            raise ValueError(f"Expected columns of {str(path)!r} for {option}; got {name!r}. {advice}")


def _encoded(path: Path, column: Any, known: Column | None, is_label: bool) -> tuple[Tensor, Column]:
    """Return a column as codes of its levels, or as float64; a label of whole numbers has these as levels."""
    import pandas as pd

    name, types = str(column.name), pd.api.types
    is_number = types.is_any_real_numeric_dtype(column) and not types.is_bool_dtype(column)
    if (is_label or not is_number) and (missing := int(column.isna().sum())):
        advice = "Fill them in, for example with a level for unknown, or leave the rows out."
        got = f"{missing:,} of {len(column):,} without one"
        raise ValueError(f"Expected a value in each row of column {name!r} of {str(path)!r}; got {got}. {advice}")
    whole = is_number and is_label and bool((column.astype(float) % 1 == 0).all()) and column.abs().max() < 2**53
    if not known.levels if known else is_number and not whole:
        return torch.from_numpy(numbers(path, name, column).astype(float)), Column(name)
    if whole:
        column = column.astype("int64")
    elif not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(str)
    categories = column.astype("category").cat
    own = [str(level) for level in categories.categories]
    levels = known.levels if known and known.levels else tuple(dict.fromkeys(own))
    index = {level: i for i, level in enumerate(levels)}
    codes = np.array([index.get(level, -1) for level in own])[categories.codes]
    if (codes < 0).any():
        got = f"{own[categories.codes[codes.argmin()]]!r}, which is none of them"
        raise ValueError(f"Expected the levels {', '.join(levels)} in column {name!r} of {str(path)!r}; got {got}.")
    return torch.from_numpy(codes.astype(np.int64)), Column(name, levels)


def file_of(schema: Schema, x: Tensor, y: Tensor | None, path: Path) -> bytes:
    """Return rows in the units of the table as the content of a .csv or .parquet file, with the columns of y."""
    with _installed(path):
        import pandas as pd

        frame = pd.DataFrame(x.numpy(), columns=[column.name for column in schema.x])
        for name, values in (schema.columns_of(y) if schema.given and y is not None else {}).items():
            frame.insert(len(frame.columns), name, values, allow_duplicates=True)
        return frame.to_csv(index=False).encode() if path.suffix == ".csv" else frame.to_parquet(index=False)


@contextmanager
def _installed(path: Path) -> Iterator[None]:
    """Raise one sentence if a library for tables is absent."""
    try:
        yield
    except ImportError as error:
        got = f'no {getattr(error, "name", None) or "pyarrow"}. Run pip install "pyro_vae[tables]"'
        raise ValueError(f"Expected pandas, pyarrow and anndata, for {str(path)!r}; got {got}.") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise the errors of pandas, pyarrow, anndata and h5py as one sentence."""
    check_file(path)
    with _installed(path):
        try:
            yield
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split()).split(". ")[0]
            raise ValueError(f"Expected a table; could not read {str(path)!r} ({reason}). Write it again.") from error


def _frame(path: Path) -> Any:
    """Return a .csv, .tsv or .parquet table as a frame of pandas, with names that are text."""
    with _reading(path):
        import pandas as pd

        if path.suffix.lower() == ".parquet":
            from pyarrow.parquet import read_schema

            names = pd.Index(read_schema(path).names)
            frame = pd.DataFrame() if names.has_duplicates else pd.read_parquet(path)
        else:
            frame, names = _separated(pd, path)
    frame.columns = frame.columns.map(str)
    _check(path, len(frame), names)
    return frame


def _check(path: Path, rows: int, names: Any) -> None:
    """Refuse a name of two columns, and fewer than 3 rows."""
    if names.has_duplicates:
        got = f"{str(names[names.duplicated()][0])!r} twice"
        raise ValueError(f"Expected a name for each column of {str(path)!r}; got {got}. Rename one of them.")
    if rows < 3:
        raise ValueError(f"Expected at least 3 rows, one for each split, in {str(path)!r}; got {rows}.")


def _separated(pd: Any, path: Path) -> tuple[Any, Any]:
    """Read a text table and its first line, if it has names: numbers but 0, 1, 2, ... are data.

    A first column without a name is an index.
    """
    options = {"sep": "\t" if path.suffix.lower() == ".tsv" else ",", "skipinitialspace": True}
    first = pd.read_csv(path, **options, header=None, nrows=1, dtype=str).iloc[0]
    values = pd.to_numeric(first[first.notna()], errors="coerce")
    named = bool(values.isna().any()) or [*values] == [*range(len(values))]
    index = 0 if named and first.isna()[0] else None
    frame = pd.read_csv(path, **options, header=0 if named else None, index_col=index)
    return frame, pd.Index(first[first.notna()]) if named else frame.columns  # pandas renames a second one


def _annotated(path: Path, layer: str | None, aside: Sequence[str]) -> tuple[Any, list[str], Any]:
    """Return x of a .h5ad file, dense or sparse, the names of its columns, and the columns ``aside`` of its rows."""
    with _reading(path), h5py.File(path, rdcc_nbytes=AT_ONCE) as file:
        import pandas as pd
        from anndata.io import read_elem

        node = file.get("X" if layer is None else f"layers/{layer}")
        layers, of_rows = [*file.get("layers", ())], [*file["obs"].attrs["column-order"]]
        index = pd.Index(read_elem(file["var"][file["var"].attrs["_index"]])).map(str)
        kind = "null" if node is None else node.attrs.get("encoding-type", "")
        if kind in MATRICES:  # read as float32, without a copy of another type
            parts = (node["data"].astype(np.float32)[:], node["indices"][:], node["indptr"][:])
            array = getattr(scipy.sparse, kind)(parts, shape=tuple(node.attrs["shape"])).tocsr()
        else:
            array = None if kind == "null" else read_elem(node)
        frame = pd.DataFrame({name: read_elem(file["obs"][name]) for name in aside if name in of_rows})
    if array is None:
        place = "X" if layer is None else f"a layer {layer!r}"
        got = f"the layers {', '.join(layers)}. Choose one of them as layer" if layers else "no layers either"
        raise ValueError(f"Expected {place} in {str(path)!r}; got {got}.")
    check_names(path, "labels and covariates", of_rows, aside)
    if isinstance(array, np.ndarray):
        array = array.astype(float if array.dtype.itemsize > 4 else np.float32)
    _check(path, array.shape[0], index)
    return array, [*index], frame
