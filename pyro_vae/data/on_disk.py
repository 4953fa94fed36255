"""Read files of arrays. A large .npy file stays on disk and a sparse matrix stays sparse: each batch is dense."""

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
TABLES = (".csv", ".tsv", ".parquet", ".h5ad")
SPARSE = {"data", "indices", "indptr", "shape", "format"}  # the arrays of scipy.sparse.save_npz


class File:
    """The rows of a .npy file. Each read opens and closes the file, so no process shares an open file with a fork.

    With a memory map, the pages would count as the process's memory, and a truncated file would kill the process.
    """

    in_memory = False

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


class Sparse:
    """The rows of a sparse matrix in memory. Each read makes dense rows, standardised if there are units.

    Arguments:
        matrix: A CSR matrix of float32, of scipy.
        name: The file of the matrix.
        units: The mean and the scale of each column; None: the numbers stay unchanged.
    """

    in_memory = True

    def __init__(self, matrix: Any, name: str, units: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        self.matrix, self.path, self.units, self.shape = matrix, name, units, matrix.shape
        self.step = max(1, AT_ONCE // (16 * self.shape[1]))

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all numbers in chunks; numbers without units are the stored elements, and one zero for the rest."""
        if self.units:
            yield from (self.read([row], self.step) for row in range(0, self.shape[0], self.step))
        else:
            rest = np.zeros(int(self.matrix.nnz < self.shape[0] * self.shape[1]), np.float32)
            yield from filter(len, (rest, *np.array_split(self.matrix.data, 1 + 64 * self.matrix.nnz // AT_ONCE)))

    def read(self, rows: list[int], count: int = 1) -> np.ndarray:
        """Return ``count`` dense rows starting at the first of ``rows``, or each of ``rows``."""
        dense = self.matrix[np.array(rows, int) if count == 1 else slice(rows[0], rows[0] + count)].toarray()
        return dense if self.units is None else ((dense - self.units[0]) / self.units[1]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Stored:
    """Rows of a file or of a sparse matrix, in an order of 8 bytes for each row. Indexing reads dense rows."""

    store: File | Sparse
    rows: Tensor
    dtype: torch.dtype = torch.float32
    cut: float | None = None  # a threshold: pixels are 1 above it, else 0
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        rows = self.rows[index if isinstance(index, slice) else index.cpu()]
        pixels, name = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype), repr(str(self.store.path))
        for part, chunk in zip(pixels.split(self.store.step), rows.split(self.store.step), strict=True):
            array = self.store.read(chunk.tolist())
            x = channels_first(to_tensor(array, name, copy=not array.flags.writeable))
            part.copy_(x if self.cut is None else x > self.cut)
        return pixels.to(self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images, channels first."""
        return (len(self), *channels_first(torch.empty(1, *self.store.shape[1:], device="meta")).shape[1:])

    def to(self, device: torch.device | str) -> Self:
        """Return the rows with a new device, to which each read moves its batch."""
        return replace(self, device=device)

    def part(self, rows: Tensor) -> Self:
        """Return a subset of the rows, in the same store."""
        return replace(self, rows=self.rows[rows])

    def chunks(self) -> Iterator[Tensor]:
        """Yield all rows on the CPU, in the order of the store."""
        for rows in self.rows.sort().values.split(self.store.step):
            yield replace(self, rows=rows, device="cpu")[:]

    @cached_property
    def total(self) -> Tensor:
        """The sum over images in float64."""
        return sum((x.sum(0, dtype=torch.float64) for x in self.chunks()), torch.zeros(()))


def sparse(matrix: Any, name: str) -> Stored:
    """Return the rows of a sparse matrix of scipy, as float32."""
    if matrix.dtype.kind not in "buif":
        raise ValueError(f"Expected numbers in {name!r}; got {matrix.dtype}.")
    matrix.check_format()  # an index out of the matrix would be read from other memory
    return Stored(Sparse(matrix.tocsr().astype(np.float32, copy=False), name), torch.arange(matrix.shape[0]))


def check_file(path: Path) -> None:
    """Refuse a path without a file."""
    if not path.is_file():
        where = f"{str(path)!r}, which is {str(path.absolute())!r} from the working directory {str(Path.cwd())!r}"
        raise FileNotFoundError(f"Expected a file or a folder of images; there is nothing at {where}.")


def arrays_of(path: Path) -> dict[str, Any]:
    """Return arrays by name: of a .npz file, which may be sparse, or ``x`` of a .npy file, memory-mapped if large."""
    check_file(path)
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
            if {*arrays} == SPARSE:
                from scipy.sparse import load_npz

                return {"x": sparse(load_npz(path), str(path))}
            return arrays
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        # numpy calls any other file a pickle
        numpys = path.suffix.lower() in (".npy", ".npz")
        formats, reason = ("", f" ({' '.join(str(error).split())})") if numpys else (f", or {', '.join(TABLES)}", "")
        got = f"could not read {str(path)!r}{reason}. Write the file again with numpy.save or numpy.savez."
        raise ValueError(f"Expected a .npy or .npz file of numbers{formats}; {got}") from error
