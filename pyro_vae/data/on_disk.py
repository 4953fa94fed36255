"""Files of arrays and tables; and images that stay in their .npy file, read as they are asked for."""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.data.arrays import AT_ONCE, channels_first, to_tensor

LARGE = 2**28  # bytes from which a .npy file stays on disk
LONG = 2**30  # bytes from which a pass shows its progress
TABLES = (".csv", ".tsv", ".parquet")


class File:
    """The rows of a .npy file, which each read opens: nothing to close, or to share by a fork.

    Not a memory map, whose pages count as this process's own, and which kills it when the file is cut short.
    """

    def __init__(self, array: np.memmap) -> None:
        self.path = Path(str(array.filename)).absolute()
        if not array.flags.c_contiguous:
            got = f"in {str(self.path)!r}, to read it image by image; got Fortran order"
            raise ValueError(f"Expected an array in C order {got}. Save numpy.ascontiguousarray of it.")
        self.shape, self.layout = array.shape, np.dtype((array.dtype, array.shape[1:]))
        self.step = max(1, AT_ONCE // self.layout.itemsize)
        self._start, self._state = array.offset, _state(os.stat(self.path))

    def parts(self) -> Iterator[np.ndarray]:
        """Read the whole file in its order, some rows at a time, with a progress bar if it is long."""
        total, short = self.shape[0], self.shape[0] * self.layout.itemsize < LONG
        for first in tqdm(range(0, total, self.step), "checking", unit=" MiB", leave=False, disable=short):
            yield self.read([first], min(self.step, total - first))

    def read(self, rows: list[int], count: int = 1) -> np.ndarray:
        """Read ``count`` rows from each of ``rows`` on."""
        size = count * self.layout.itemsize
        offsets = [self._start + row * self.layout.itemsize for row in rows]
        try:
            with open(self.path, "rb", buffering=0) as file:
                number = file.fileno()
                if hasattr(os, "posix_fadvise"):  # the disk then fetches all rows at a time, not one after another
                    for offset in offsets:
                        os.posix_fadvise(number, offset, size, os.POSIX_FADV_WILLNEED)
                found = b"".join([os.pread(number, size, offset) for offset in offsets])
                same = _state(os.fstat(number)) == self._state and len(found) == len(offsets) * size
        except FileNotFoundError:
            same = False
        if not same:
            why = "since images are read from it as they are needed; it was moved, cut or written"
            advice = "Load it again, and do not change it before the end."
            raise ValueError(f"Expected {str(self.path)!r} not to change after it was loaded, {why}. {advice}")
        return np.ndarray((len(rows) * count, *self.shape[1:]), self.layout.base, buffer=found)


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Images of a file, in some order, read when they are indexed. In memory is the order alone, 8 bytes an image."""

    file: File
    rows: Tensor
    dtype: torch.dtype
    cut: float | None = None  # pixels are 1 above it and 0 elsewhere
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        rows = self.rows[index if isinstance(index, slice) else index.cpu()]
        parts = (self.file.read(part.tolist()) for part in rows.split(self.file.step))
        x = (channels_first(to_tensor(part, repr(str(self.file.path)))) for part in parts)
        pixels = [(part if self.cut is None else part > self.cut).to(self.dtype) for part in x]
        return torch.cat(pixels).to(self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all images, channels first."""
        return (len(self), *channels_first(torch.empty(1, *self.file.shape[1:], device="meta")).shape[1:])

    def to(self, device: torch.device | str) -> Self:
        """Return the images, still on disk, to be read onto another device."""
        return replace(self, device=device)

    def part(self, rows: Tensor) -> Self:
        """Return some of the images, still on disk."""
        return replace(self, rows=self.rows[rows])

    @cached_property
    def total(self) -> Tensor:
        """The sum over images, in float64, read in the order of the file."""
        parts = self.rows.sort().values.split(self.file.step)
        images = (replace(self, rows=rows, device="cpu")[:] for rows in parts)
        return sum((part.sum(0, dtype=torch.float64) for part in images), torch.zeros(()))


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file or the columns of a table by name, or a .npy's as ``x``, on disk if large."""
    if not path.is_file():
        where = f"{str(path)!r}, which is {str(path.absolute())!r} from the working directory {str(Path.cwd())!r}"
        raise FileNotFoundError(f"Expected a file or a folder of images; there is nothing at {where}.")
    if path.suffix.lower() in TABLES:
        return _table(path)
    try:
        with path.open("rb") as opened:  # numpy leaves one open that is no whole .npz
            zipped = opened.read(2) == b"PK"
            opened.seek(0)
            mapped = path.stat().st_size > LARGE and not zipped
            found = np.load(path if mapped else opened, mmap_mode="r" if mapped else None, allow_pickle=False)
            arrays = {"x": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds more than arrays")
            return arrays
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        # Of any other file numpy says that it is a pickle.
        numpys = path.suffix.lower() in (".npy", ".npz")
        what, why = ("", f" ({' '.join(str(error).split())})") if numpys else (f", or {', '.join(TABLES)}", "")
        got = f"could not read {str(path)!r}{why}. Write the whole file again with numpy.save or numpy.savez."
        raise ValueError(f"Expected a .npy or .npz file of numbers{what}; {got}") from error


def _table(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a table by name, through pandas, with NaN where a number is missing."""
    try:
        import pandas as pd  # type: ignore[import-untyped, unused-ignore]

        frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _separated(pd, path)
        if frame.empty:
            raise ValueError("it has no rows")
    except (ImportError, ValueError, OSError) as error:
        why = " ".join(str(error).split()).split(". ")[0]
        advice = "Install pandas, and pyarrow for .parquet" if isinstance(error, ImportError) else "Write it again"
        raise ValueError(f"Expected a table; could not read {str(path)!r} ({why}). {advice}.") from error
    columns = {}
    for name, column in frame.items():
        if not pd.api.types.is_any_real_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            words = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
            got = f"{str([*words, *column][0])!r} in {str(name)!r}"
            advice = "Leave it out, or write numbers in it, and nothing where one is missing."
            raise ValueError(f"Expected numbers in every column of {str(path)!r}; got {got}. {advice}")
        columns[str(name)] = column.to_numpy(**({"dtype": float, "na_value": np.nan} if column.hasnans else {}))
    return columns


def _separated(pd: Any, path: Path) -> Any:
    """Read text; a first line of numbers is no line of names, but for 0, 1, 2, ..., and a column of no name no data."""
    options = {"sep": "\t" if path.suffix.lower() == ".tsv" else ",", "skipinitialspace": True}
    first = pd.read_csv(path, **options, header=None, nrows=1, dtype=str).iloc[0]
    numbers = pd.to_numeric(first[first.notna()], errors="coerce")
    named = bool(numbers.isna().any()) or [*numbers] == [*range(len(numbers))]
    index = 0 if named and first.isna()[0] else None
    return pd.read_csv(path, **options, header=0 if named else None, index_col=index)
