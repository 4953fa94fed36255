"""Choose and encode the columns of a table, and write rows as a table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.arrays import narrowed, survey
from pyro_vae.data.on_disk import TABLES, Sparse, Stored, sparse
from pyro_vae.data.schema import Column, Schema
from pyro_vae.data.sources import Source
from pyro_vae.data.table_files import annotated, check_names, frame_of, installed


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
    aside, is_annotated = [*([] if labels is None else [labels]), *covariates], path.suffix.lower() == ".h5ad"
    if layer is not None and not is_annotated:
        raise ValueError(f"Expected a .h5ad file for layer; got {str(path)!r}.")
    array, names, frame = annotated(path, layer, aside) if is_annotated else (None, [], frame_of(path))
    if not is_annotated:
        check_names(path, "x, labels and covariates", [*frame], [*aside, *(x or ())])
        names = [name for name in frame if name not in aside]
    heads = [*x] if x is not None else [column.name for column in schema.x] if schema else names
    check_names(path, "x", names, heads)
    if not heads:
        raise ValueError(f"Expected a column of x in {str(path)!r}; got none beside {', '.join(aside) or 'the index'}.")
    if array is None:
        columns = [numbers(path, name, frame[name]) for name in heads]
        for name, column in zip(heads, columns, strict=True):
            survey([] if standardize else [column], f"column {name!r} of {str(path)!r}")
        array = np.stack([column.astype(float if standardize else np.float32) for column in columns], 1)
    elif heads != names:
        array = array[:, [names.index(name) for name in heads]]
    before = {column.name: column for column in (*schema.of_y, schema.labels) if column} if schema else {}
    codes = {name: _encode(path, frame[name], before.get(name), name == labels) for name in aside}
    y, of_labels = (None, None) if labels is None else codes[labels]
    new = Schema(tuple(map(Column, heads)), of_labels, tuple(codes[name][1] for name in covariates))
    pixels: Any = torch.from_numpy(array) if isinstance(array, np.ndarray) else sparse(array, str(path))
    y = y.float() if y is not None and y.is_floating_point() else y
    return Source(pixels, repr(str(path)), y, extra={name: codes[name][0] for name in covariates}, schema=new)


def prepare(source: Source, train: Tensor, standardize: bool = False, schema: Schema | None = None) -> Source:
    """Return a table with its covariates together as y, standardised by its rows ``train``, or as ``schema`` is."""
    new, x, extra = source.schema or Schema(()), source.x, dict(source.extra)
    if standardize:
        parts = x.part(train).chunks() if isinstance(x, Stored) else x[train].split(1024)
        of_y = {name: values[train] for name, values in extra.items()}
        new = new.with_units_of(schema) if schema else new.standardise(parts, of_y)
        mean, scale = new.units
        if isinstance(x, Stored) and isinstance(x.store, Sparse):
            x = replace(x, store=Sparse(x.store.matrix, str(x.store.path), (mean.numpy(), scale.numpy())))
        else:
            x = (x - mean) / scale
    for column in new.covariates:
        if not column.levels:
            values = (extra[column.name] - column.mean) / column.scale
            extra[column.name] = narrowed(values.numpy(), f"column {column.name!r} of {source.name}")
    y = {"y": new.y_from(extra)} if new.covariates else {}
    return source._replace(x=x, extra=extra | y, schema=new)


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
    frame = frame_of(path)
    check_names(path, "columns", [*frame], names)
    return {name: numbers(path, name, frame[name]) for name in names}


def _encode(path: Path, column: Any, before: Column | None, is_label: bool) -> tuple[Tensor, Column]:
    """Return a column as codes of its levels, or as float64; a label of whole numbers has these as levels.

    ``before`` is the column of another table, which has the levels.
    """
    import pandas as pd

    name, types = str(column.name), pd.api.types
    is_number = types.is_any_real_numeric_dtype(column) and not types.is_bool_dtype(column)
    if (is_label or not is_number) and (missing := int(column.isna().sum())):
        advice = "Fill them in, for example with a level for unknown, or leave the rows out."
        got = f"{missing:,} of {len(column):,} without one"
        raise ValueError(f"Expected a value in each row of column {name!r} of {str(path)!r}; got {got}. {advice}")
    whole = is_number and is_label and bool((column.astype(float) % 1 == 0).all()) and column.abs().max() < 2**53
    if not before.levels if before else is_number and not whole:
        return torch.from_numpy(numbers(path, name, column).astype(float)), Column(name)
    if whole:
        column = column.astype("int64")
    elif not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(str)
    categories = column.astype("category").cat
    own, index = [str(level) for level in categories.categories], categories.codes.to_numpy()
    levels = before.levels if before else tuple(dict.fromkeys(own))
    codes = np.array([levels.index(level) if level in levels else -1 for level in own])[index]
    if (codes < 0).any():
        got = f"{own[index[codes.argmin()]]!r}, which is none of them"
        raise ValueError(f"Expected the levels {', '.join(levels)} in column {name!r} of {str(path)!r}; got {got}.")
    return torch.from_numpy(codes.astype(np.int64)), Column(name, levels)


def file_of(schema: Schema, x: Tensor, y: Tensor | None, path: Path) -> bytes:
    """Return rows in the units of the table as the content of a .csv or .parquet file, with the columns of y."""
    with installed(path):
        import pandas as pd

        frame = pd.DataFrame(x.numpy(), columns=[column.name for column in schema.x])
        for name, values in (schema.columns_from(y) if schema.of_y and y is not None else {}).items():
            frame.insert(len(frame.columns), name, values, allow_duplicates=True)
        return frame.to_csv(index=False).encode() if path.suffix == ".csv" else frame.to_parquet(index=False)
