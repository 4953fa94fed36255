"""Images that stay in their .npy file: rows are read as they are asked for, so memory stays flat."""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

AT_ONCE = 2**20  # bytes of the file
LARGE = 2**28  # bytes from which a .npy file stays on disk
LONG = 2**30  # bytes from which a pass shows its progress
CHANNELS = (1, 3)


class Survey(NamedTuple):
    """How many numbers of an array are NaN or infinite, its extremes, and whether all numbers are whole."""

    wrong: int
    low: float
    high: float
    whole: bool


def survey(x: Tensor) -> Survey:
    """Look at every number of a tensor that is not empty."""
    low, high = x.aminmax()
    if not x.is_floating_point():
        return Survey(0, low.item(), high.item(), whole=True)
    whole = not any(part.frac().any() for part in x.flatten().split(AT_ONCE))
    return Survey(int((~x.isfinite()).sum()), low.item(), high.item(), whole)


def to_tensor(array: np.ndarray) -> Tensor:
    """To float32, which is what networks compute in, and to integers that torch has."""
    kinds = {"f": np.float32, "u": np.uint8 if array.dtype == np.uint8 else np.int64, "i": np.int64, "b": np.bool_}
    return torch.from_numpy(array.astype(kinds[array.dtype.kind]))


def channels_first(x: Tensor) -> Tensor:
    """Bring images of shape ``(N, height, width)`` or ``(N, height, width, channels)`` to channels first."""
    if x.dim() == 3:
        return x.unsqueeze(1)
    if x.dim() == 4 and x.shape[1] not in CHANNELS and x.shape[-1] in CHANNELS:
        return x.movedim(-1, 1).contiguous()
    return x


class File:
    """The rows of a .npy file, which each read opens anew: nothing to close, or to share by a fork.

    Not a memory map, whose pages count as this process's own, and which kills it when the file is cut short.
    """

    def __init__(self, array: np.memmap) -> None:
        self.path = Path(str(array.filename)).absolute()
        if not array.flags.c_contiguous:
            raise ValueError(
                f"Expected an array in C order in {str(self.path)!r}, to read it image by image; got Fortran order. "
                "Save numpy.ascontiguousarray of it."
            )
        self.shape, self.layout = array.shape, np.dtype((array.dtype, array.shape[1:]))
        self._start, self._state = array.offset, _state(os.stat(self.path))

    def parts(self, doing: str) -> Iterator[Tensor]:
        """Read the whole file in its order, some rows at a time, with a progress bar if it is long."""
        total, size = self.shape[0], self.layout.itemsize
        step = max(1, AT_ONCE // size)
        show = {"desc": doing, "unit": "B", "unit_scale": True, "leave": False, "disable": total * size < LONG}
        with tqdm(total=total * size, **show) as bar:
            for first in range(0, total, step):
                count = min(step, total - first)
                yield self.read([first], count)
                bar.update(count * size)

    def read(self, rows: list[int], count: int = 1) -> Tensor:
        """Read ``count`` rows from each of ``rows`` on, channels first."""
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
            raise ValueError(
                f"Expected {str(self.path)!r} as it was when it was loaded, since images are read as they are needed; "
                "got one that was moved, cut or written since. Load it anew, and leave it as it is until the end."
            )
        shape = (len(rows) * count, *self.shape[1:])
        return channels_first(to_tensor(np.ndarray(shape, self.layout.base, buffer=found)))

    @cached_property
    def survey_and_total(self) -> tuple[Survey, Tensor]:
        """What :func:`survey` says of all numbers, and the sum of all images in float64, of one reading."""
        parts, total = [], torch.zeros(())
        for part in self.parts("checking"):
            parts.append(survey(part))
            total = total + part.sum(0, dtype=torch.float64)
        wrong, low, high, whole = zip(*parts, strict=True)
        return Survey(sum(wrong), min(low), max(high), all(whole)), total


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
        parts = rows.split(max(1, AT_ONCE // self.file.layout.itemsize))
        return torch.cat([self._pixels(self.file.read(part.tolist())) for part in parts]).to(self.device)

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
        """The sum over images, in float64: that of the file, read again only for a cut, less the rows left out."""
        if self.cut is None:
            _, total = self.file.survey_and_total
        else:
            parts = self.file.parts("adding up")
            total = sum((self._pixels(part).sum(0, dtype=torch.float64) for part in parts), torch.zeros(()))
        left_out = torch.ones(self.file.shape[0], dtype=torch.bool)
        left_out[self.rows] = False
        for rows in left_out.nonzero().squeeze(1).split(1024):
            total = total - replace(self, rows=rows, device="cpu")[:].sum(0, dtype=torch.float64)
        return total

    def _pixels(self, read: Tensor) -> Tensor:
        return (read if self.cut is None else read > self.cut).to(self.dtype)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file by name, or that of a .npy file as ``x``, on disk where it is large."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file or a folder of images; there is nothing at {str(path)!r}.")
    try:
        with path.open("rb") as opened:  # numpy leaves one open that is no whole .npz
            zipped = opened.read(2) == b"PK"
            opened.seek(0)
            mapped = path.stat().st_size > LARGE and not zipped
            found = np.load(path if mapped else opened, mmap_mode="r" if mapped else None, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {"x": found}
            with found:
                return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"Expected a .npy or .npz file of numbers; could not read {str(path)!r} ({' '.join(str(error).split())}). "
            "Write it anew with numpy.save or numpy.savez, in whole."
        ) from error
