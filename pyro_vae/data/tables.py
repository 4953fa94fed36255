"""Tables of numbers: .csv, .tsv and .parquet files, through pandas."""

from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".csv", ".tsv", ".parquet")


def table(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a table by name, with NaN where a number is missing."""
    try:
        import pandas as pd  # type: ignore[import-untyped, unused-ignore]

        frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _separated(pd, path)
        if frame.empty:
            raise ValueError("it has no rows")
    except (ImportError, ValueError, OSError) as error:
        why = " ".join(str(error).split()).split(". ")[0]
        advice = "Install pandas, and pyarrow for .parquet" if isinstance(error, ImportError) else "Write it anew"
        raise ValueError(f"Expected a table; could not read {str(path)!r} ({why}). {advice}.") from error
    columns = {}
    for name, column in frame.items():
        if not pd.api.types.is_any_real_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            words = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
            raise ValueError(
                f"Expected numbers in every column of {str(path)!r}; got {str([*words, *column][0])!r} in "
                f"{str(name)!r}. Leave it out, or write numbers in it, and nothing where one is missing."
            )
        missing = {"dtype": float, "na_value": np.nan} if column.hasnans else {}
        columns[str(name)] = column.to_numpy(**missing)
    return columns


def _separated(pd: Any, path: Path) -> Any:
    """Read text; a first line of numbers is no line of names, but for 0, 1, 2, ..., and a column of no name no data."""
    options = {"sep": "\t" if path.suffix.lower() == ".tsv" else ",", "skipinitialspace": True}
    first = pd.read_csv(path, **options, header=None, nrows=1, dtype=str).iloc[0]
    numbers = pd.to_numeric(first[first.notna()], errors="coerce")
    named = bool(numbers.isna().any()) or [*numbers] == [*range(len(numbers))]
    index = 0 if named and first.isna()[0] else None
    return pd.read_csv(path, **options, header=0 if named else None, index_col=index)
