"""Read files of arrays and tables, and keep images in their .npy file to read them by batch."""

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

LARGE = 2**28  # a .npy file of more bytes stays on disk
LONG = 2**30  # a pass over as many bytes shows a progress bar
TABLES = (".csv", ".tsv", ".parquet")


class File:
    """The rows of a .npy file. Each read opens and closes the file, so no process shares an open file with a fork.

    With a memory map, the pages would count as the process's memory, and a truncated file would kill the process.
    """

    def __init__(self, array: np.memmap) -> None:
        self.path = Path(str(array.filename)).absolute()
        if not array.flags.c_contiguous:
            raise ValueError(
                f"Expected an array in C order in {str(self.path)!r}, to read it by image; got Fortran order. "
                "Save numpy.ascontiguousarray(x)."
            )
        self.shape, self.layout = array.shape, np.dtype((array.dtype, array.shape[1:]))
        self.step = max(1, AT_ONCE // self.layout.itemsize)
        self._start, self._state = array.offset, _state(os.stat(self.path))

    def parts(self) -> Iterator[np.ndarray]:
        """Read the file from start to end in chunks of rows; a long file gets a progress bar."""
        total, short = self.shape[0], self.shape[0] * self.layout.itemsize < LONG
        for first in tqdm(range(0, total, self.step), "checking", unit=" MiB", leave=False, disable=short):
            yield self.read([first], min(self.step, total - first))

    def read(self, rows: list[int], count: int = 1) -> np.ndarray:
        """Read ``count`` rows starting at each index of ``rows``."""
        size = count * self.layout.itemsize
        offsets = [self._start + row * self.layout.itemsize for row in rows]
        try:
            with open(self.path, "rb", buffering=0) as file:
                number = file.fileno()
                if hasattr(os, "posix_fadvise"):  # the disk then fetches all rows in parallel
                    for offset in offsets:
                        os.posix_fadvise(number, offset, size, os.POSIX_FADV_WILLNEED)
                data = b"".join([os.pread(number, size, offset) for offset in offsets])
                unchanged = _state(os.fstat(number)) == self._state and len(data) == len(offsets) * size
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise ValueError(
                f"Expected {str(self.path)!r} not to change, since images are read from it by batch; it was moved, "
                "truncated or modified after it was loaded. Load it again, and keep it unchanged during training."
            )
        return np.ndarray((len(rows) * count, *self.shape[1:]), self.layout.base, buffer=data)


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Images of a file in a given order. Indexing reads the images; memory holds 8 bytes for each image, the order."""

    file: File
    rows: Tensor
    dtype: torch.dtype
    cut: float | None = None  # a threshold: pixels are 1 above it, else 0
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        rows = self.rows[index if isinstance(index, slice) else index.cpu()]
        arrays = (self.file.read(chunk.tolist()) for chunk in rows.split(self.file.step))
        images = (channels_first(to_tensor(array, repr(str(self.file.path)))) for array in arrays)
        pixels = [(x if self.cut is None else x > self.cut).to(self.dtype) for x in images]
        return torch.cat(pixels).to(self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images, channels first."""
        return (len(self), *channels_first(torch.empty(1, *self.file.shape[1:], device="meta")).shape[1:])

    def to(self, device: torch.device | str) -> Self:
        """Return the images on disk with a new device, to which each read moves its batch."""
        return replace(self, device=device)

    def part(self, rows: Tensor) -> Self:
        """Return a subset of the images, on disk."""
        return replace(self, rows=self.rows[rows])

    @cached_property
    def total(self) -> Tensor:
        """The sum over images in float64. The images are read in the order of the file."""
        chunks = self.rows.sort().values.split(self.file.step)
        images = (replace(self, rows=rows, device="cpu")[:] for rows in chunks)
        return sum((x.sum(0, dtype=torch.float64) for x in images), torch.zeros(()))


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Return arrays by name: of a .npz file, of a table's columns, or ``x`` of a .npy file, memory-mapped if large."""
    if not path.is_file():
        where = f"{str(path)!r}, which is {str(path.absolute())!r} from the working directory {str(Path.cwd())!r}"
        raise FileNotFoundError(f"Expected a file or a folder of images; there is nothing at {where}.")
    if path.suffix.lower() in TABLES:
        return _table(path)
    try:
        with path.open("rb") as opened:  # numpy does not close a truncated .npz
            zipped = opened.read(2) == b"PK"
            opened.seek(0)
            mapped = path.stat().st_size > LARGE and not zipped
            loaded = np.load(path if mapped else opened, mmap_mode="r" if mapped else None, allow_pickle=False)
            single = isinstance(loaded, np.ndarray)
            arrays = {"x": loaded} if single else {name: loaded[name] for name in loaded.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds objects that are not arrays")
            return arrays
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        # numpy calls any other file a pickle
        numpys = path.suffix.lower() in (".npy", ".npz")
        formats, reason = ("", f" ({' '.join(str(error).split())})") if numpys else (f", or {', '.join(TABLES)}", "")
        got = f"could not read {str(path)!r}{reason}. Write the file again with numpy.save or numpy.savez."
        raise ValueError(f"Expected a .npy or .npz file of numbers{formats}; {got}") from error


def _table(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a table by name, read by pandas, with NaN where a number is missing."""
    try:
        import pandas as pd  # type: ignore[import-untyped, unused-ignore]

        frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _separated(pd, path)
        if frame.empty:
            raise ValueError("it has no rows")
    except (ImportError, ValueError, OSError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        advice = "Install pandas, and pyarrow for .parquet" if isinstance(error, ImportError) else "Write it again"
        raise ValueError(f"Expected a table; could not read {str(path)!r} ({reason}). {advice}.") from error
    columns = {}
    for name, column in frame.items():
        if not pd.api.types.is_any_real_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            text = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
            got = f"{str([*text, *column][0])!r} in {str(name)!r}"
            advice = "Leave the column out, or encode it as numbers, with empty cells where missing."
            raise ValueError(f"Expected numbers in every column of {str(path)!r}; got {got}. {advice}")
        columns[str(name)] = column.to_numpy(**({"dtype": float, "na_value": np.nan} if column.hasnans else {}))
    return columns


def _separated(pd: Any, path: Path) -> Any:
    """Read a text table. A first line of numbers but 0, 1, 2, ... is data; a first column without name is an index."""
    options = {"sep": "\t" if path.suffix.lower() == ".tsv" else ",", "skipinitialspace": True}
    first = pd.read_csv(path, **options, header=None, nrows=1, dtype=str).iloc[0]
    numbers = pd.to_numeric(first[first.notna()], errors="coerce")
    named = bool(numbers.isna().any()) or [*numbers] == [*range(len(numbers))]
    index = 0 if named and first.isna()[0] else None
    return pd.read_csv(path, **options, header=0 if named else None, index_col=index)
