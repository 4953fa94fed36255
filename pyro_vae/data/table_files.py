"""Read tables: .csv, .tsv and .parquet files by pandas, .h5ad files by anndata."""

import difflib
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse

from pyro_vae.data.arrays import AT_ONCE
from pyro_vae.data.on_disk import check_file

BYTES = 40  # of memory for each number of a block of columns


def check_names(path: Path, option: str, names: Collection[str], heads: Sequence[str]) -> None:
    """Refuse a column that does not exist, and a column that is named twice."""
    for i, name in enumerate(heads):
        if name in heads[:i]:
            raise ValueError(f"Expected different columns for {option}; got {name!r} twice.")
        if name not in names:
            near = difflib.get_close_matches(str(name), names, cutoff=0.5) or names
            advice = f"Near names: {textwrap.shorten(', '.join(near), 100)}." if near else "It has none."
            raise ValueError(f"Expected columns of {str(path)!r} for {option}; got {name!r}. {advice}")


@contextmanager
def installed(path: Path) -> Iterator[None]:
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
    with installed(path):
        try:
            yield
        except (ValueError, OSError, RuntimeError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split()).split(". ")[0]
            raise ValueError(f"Expected a table; could not read {str(path)!r} ({reason}). Write it again.") from error


def frame_of(path: Path) -> Any:
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


def _by_rows(node: Any) -> Any:
    """Return a matrix that a file stores by columns, by rows; memory has the result and a block of columns."""
    (height, width), starts = node.attrs["shape"], node["indptr"][:].astype(np.int64)
    if len(starts) != width + 1 or starts[0] or (np.diff(starts) < 0).any() or starts[-1] != len(node["indices"]):
        raise ValueError("its indptr is not that of its columns")
    ends = [0]  # of blocks
    while ends[-1] < width:
        last = np.searchsorted(starts, starts[ends[-1]] + AT_ONCE / BYTES, side="right") - 1
        ends.append(max(int(last), ends[-1] + 1))

    def blocks() -> Iterator[tuple[int, Any]]:
        for first, last in pairwise(ends):
            part = slice(starts[first], starts[last])
            numbers = (
                node["data"][part].astype(np.float32),
                node["indices"][part],
                starts[first : last + 1] - part.start,
            )
            block = scipy.sparse.csc_matrix(numbers, shape=(height, last - first))
            block.check_format()
            yield first, block.tocsr()

    indptr = np.zeros(height + 1, dtype=np.int64)
    for _, block in blocks():
        indptr[1:] += np.diff(block.indptr)
    np.cumsum(indptr, out=indptr)
    places = indptr[:-1].copy()  # of the next number of each row
    data, indices = np.empty(starts[-1], dtype=np.float32), np.empty(starts[-1], dtype=np.int32)
    for first, block in blocks():
        counts = np.diff(block.indptr)
        targets = np.repeat(places - block.indptr[:-1], counts) + np.arange(block.nnz)
        data[targets], indices[targets] = block.data, block.indices + first
        places += counts
    return scipy.sparse.csr_matrix((data, indices, indptr), shape=(height, width))


def _array(dataset: h5py.Dataset, dtype: Any) -> np.ndarray:
    """Read an array of one dimension as a type, in parts: without a copy, and with little memory for the library."""
    array = np.empty(dataset.shape, dtype)
    for start in range(0, len(array), AT_ONCE // 4):
        rows = np.s_[start : start + AT_ONCE // 4]
        dataset.read_direct(array, rows, rows)
    return array


def annotated(path: Path, layer: str | None, aside: Sequence[str]) -> tuple[Any, list[str], Any]:
    """Return x of a .h5ad file, dense or sparse, the names of its columns, and the columns ``aside`` of its rows."""
    with _reading(path), h5py.File(path, rdcc_nbytes=AT_ONCE) as file:
        import pandas as pd
        from anndata.io import read_elem

        node = file.get("X" if layer is None else f"layers/{layer}")
        layers, of_rows = [*file.get("layers", ())], [*file["obs"].attrs["column-order"]]
        index = pd.Index(read_elem(file["var"][file["var"].attrs["_index"]])).map(str)
        kind = "null" if node is None else node.attrs.get("encoding-type", "")
        if kind == "csr_matrix":
            data, indices = _array(node["data"], np.float32), _array(node["indices"], node["indices"].dtype)
            array = scipy.sparse.csr_matrix((data, indices, node["indptr"][:]), shape=tuple(node.attrs["shape"]))
            array.check_format()  # an index out of the matrix would be read from other memory
        elif kind == "csc_matrix":
            array = _by_rows(node)
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
