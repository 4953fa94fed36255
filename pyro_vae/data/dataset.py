"""A data set of three splits. A split stores pixels, and converts the pixels to x at each read."""

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data.arrays import digest, rows_of, tensor_of, total
from pyro_vae.data.on_disk import Stored
from pyro_vae.data.schema import Schema
from pyro_vae.deprecated import attribute_renamed

Noise = Literal["bernoulli", "uniform"]
WAYS = {"none": "not binarised", "static": "binarised statically", "dynamic": "binarised dynamically"}
WAYS |= {"threshold": "binarised at one half"}
EDGE = 2.0**-24  # 1 - EDGE is the largest float32 below 1


@dataclass(frozen=True, eq=False)
class Split:
    r"""Images on a device or on disk. ``split[index]`` reads a batch of x, as floats, with new noise at each read.

    A pixel p of L grey levels becomes :math:`x = p / (L - 1)`. With ``noise`` ``bernoulli``, x is 1 with probability
    :math:`p / (L - 1)` (dynamic binarisation, US: binarization). With ``uniform``, :math:`x = (p + u) / L` for a
    uniform u (dequantisation, US: dequantization); a clamp keeps x off 0 and 1 despite rounding. With a ``scale`` for
    each element, :math:`x = p + \sigma \epsilon` for a normal :math:`\epsilon`. With ``counts``, :math:`x = p`.
    Missing elements are NaN.

    References:
        On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov and Murray, 2008), for binarisation.

        A Note on the Evaluation of Generative Models (Theis, van den Oord and Bethge, 2016), for dequantisation.

    Arguments:
        pixels: Shape ``(N, *event)``: bytes; or floats, used as x unchanged; or rows on disk or of a sparse matrix,
            read by batch.
        labels: Shape ``(N,)``, or None.
        levels: L, the number of grey levels of the bytes. If L is 0, x is the tensor unchanged.
        noise: The noise drawn at each read.
        counts: Whether x is the pixel unchanged.
        mask: True where a pixel is observed, of the shape of the pixels; None: all are observed.
        extra: Further arguments of a program by name, each with N rows, for :meth:`batch`.
        scale: Standard deviations of normal noise, of the shape of the pixels; None: no normal noise.

    Example:
        >>> Split(torch.tensor([[0, 255]], dtype=torch.uint8), levels=256)[:]
        tensor([[0., 1.]])
    """

    pixels: Tensor | Stored
    labels: Tensor | None = None
    levels: int = 256
    noise: Noise | None = None
    counts: bool = False
    mask: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.pixels, Stored) or getattr(self.pixels, "layout", None) == torch.strided):
            tensor_of(self.pixels, "pixels")  # raises

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        pixels = rows_of(self.pixels, index)
        x = pixels if pixels.is_floating_point() or not self.levels else pixels / self.max_value
        if self.noise == "uniform":
            x = self._dequantised(pixels, torch.rand(pixels.shape, device=pixels.device))
        elif self.noise == "bernoulli":
            x = torch.rand_like(x).lt_(x)  # faster than torch.bernoulli, and than a tensor of booleans
        elif self.scale is not None:
            x = torch.addcmul(x, rows_of(self.scale, index), torch.randn_like(x))
        return x if self.mask is None else torch.where(rows_of(self.mask, index), x, torch.nan)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, ...]:
        """Read a batch of a program's arguments: x, then the columns of ``extra`` in order."""
        return self[index], *(rows_of(column, index) for column in self.extra.values())

    @property
    def columns(self) -> dict[str, Tensor]:
        """All columns but x, by name. The labels appear as ``y`` and ``labels`` unless ``extra`` has these names."""
        return ({} if self.labels is None else {"y": self.labels, "labels": self.labels}) | self.extra

    @property
    def digests(self) -> dict[str, str]:
        """The hashes of the pixels, the mask and each column. A resumed run checks its data against the hashes."""
        tensors = {"x": self.pixels, "mask": self.mask, "scale": self.scale} | self.columns
        return {name: digest(column) for name, column in tensors.items() if column is not None and len(column)}

    def with_columns(self, names: Iterable[str]) -> Self:
        """Return the split with new columns: :meth:`batch` reads x, then the columns ``names`` in order."""
        return replace(self, extra={name: self.columns[name] for name in names})

    def to(self, device: str | torch.device) -> Self:
        """Return the split on another device; a split on disk moves each batch when it reads the batch."""
        return self._map(lambda column: column.to(device))

    def part(self, rows: Tensor) -> Self:
        """Return a split with a subset of the rows; a split on disk stays on disk, and a sparse one sparse."""
        return self._map(lambda column: column.part(rows) if isinstance(column, Stored) else column[rows])

    def _map(self, change: Callable[[Any], Any]) -> Self:
        optional = {"labels": self.labels, "mask": self.mask, "scale": self.scale}
        fields: dict[str, Any] = {name: change(column) for name, column in optional.items() if column is not None}
        extra = {name: change(column) for name, column in self.extra.items()}
        return replace(self, pixels=change(self.pixels), extra=extra, **fields)

    @property
    def stored(self) -> bool:
        """Whether each read makes x from a file or from a sparse matrix."""
        return isinstance(self.pixels, Stored)

    @property
    def on_disk(self) -> bool:
        """Whether images are read from a file by batch."""
        return isinstance(self.pixels, Stored) and not self.pixels.store.in_memory

    def with_fixed_noise(self, generator: torch.Generator) -> Self:
        """Return the split in memory, with one fixed sample of the noise for all reads; a sparse x stays sparse."""
        pixels: Any = self.pixels if self.noise is None and not self.on_disk else self.pixels[:]
        levels = self.levels
        if self.noise == "uniform":
            pixels = self._dequantised(pixels, torch.rand(pixels.shape, generator=generator))
        elif self.noise == "bernoulli":
            pixels, levels = torch.bernoulli(pixels / self.max_value, generator=generator).byte(), 2
        elif self.scale is not None:
            pixels = torch.addcmul(pixels, self.scale, torch.randn(pixels.shape, generator=generator))
        return replace(self, pixels=pixels, levels=levels, noise=None, scale=None)

    def _dequantised(self, pixels: Tensor, u: Tensor) -> Tensor:
        return ((pixels + u) / self.levels).clamp(EDGE, 1 - EDGE)

    @property
    def mean(self) -> Tensor:
        """The mean of the observed x, of shape ``event``, averaged over the noise.

        An element that is missing in all images has the mean of the other elements.
        """
        sums = self.pixels.total if isinstance(self.pixels, Stored) else total(self.pixels, self.mask)
        count = torch.full_like(sums, len(self)) if self.mask is None else total(self.mask)
        mean = torch.where(count > 0, sums / count, sums.sum() / count.sum())
        mean = mean.to(torch.promote_types(self.pixels.dtype, torch.float32))
        return (mean + 0.5) / self.levels if self.noise == "uniform" else mean / self.max_value

    @property
    def missing(self) -> float:
        """The share of missing pixels."""
        return 0.0 if self.mask is None else 1 - total(self.mask).sum().item() / self.mask.numel()

    @property
    def incomplete(self) -> bool:
        """Whether x or another column has a missing value."""
        floats = (column for column in self.extra.values() if column.is_floating_point())
        return self.mask is not None or any(bool(column.isnan().any()) for column in floats)

    @property
    def max_value(self) -> int:
        """The pixel value that becomes x = 1."""
        return 1 if self.counts or not self.levels or self.pixels.dtype.is_floating_point else self.levels - 1

    def __getattr__(self, name: str) -> Any:
        """Return an attribute by its deprecated name, with a warning."""
        return attribute_renamed(self, name, {"frozen": "with_fixed_noise", "white": "max_value"})


@dataclass(frozen=True, eq=False)
class Dataset:
    """The training, validation and test splits of one source, and the options of the splits.

    Arguments:
        train: The split for training; each read draws new noise.
        valid: The split for validation during training, with fixed noise. The split may be empty.
        test: The split for the final evaluation, with fixed noise.
        support: The constraint that every x satisfies: ``boolean``; ``levels(L)``; ``unit_interval``, for floats and
            for dequantised grey levels (strictly between 0 and 1); ``nonnegative_integer``, for counts; ``real``.
        config: The arguments of :func:`load` that reproduce the data set.
        schema: The columns of a table by role, with levels and units; None for other data.
        notes: Changes made when the data were read, in words.
    """

    train: Split
    valid: Split
    test: Split
    support: constraints.Constraint
    config: dict[str, Any]
    schema: Schema | None = None
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name; an empty split is left out."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: split for name, split in splits.items() if len(split)}

    @property
    def digests(self) -> dict[str, dict[str, str]]:
        """The hashes of each split; see :attr:`Split.digests`."""
        return {name: split.digests for name, split in self.splits.items()}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        return tuple(self.train.pixels.shape[1:])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns of a table's x; empty without names."""
        return self.schema.names if self.schema else ()

    def in_units(self, x: Tensor) -> Tensor:
        """Return x in the units of the table; x of other data, and without standardising, stays unchanged."""
        return self.schema.in_units(x) if self.schema else x

    @property
    def mean(self) -> Tensor:
        """The mean of x over the training images, of shape ``event``."""
        return self.train.mean

    @property
    def missing(self) -> float:
        """The share of missing pixels over all splits."""
        splits = self.splits.values()
        return sum(split.missing * len(split) for split in splits) / sum(map(len, splits))

    def __str__(self) -> str:
        how = "dequantised" if self.config["dequantize"] else WAYS[self.config["binarize"]]
        how = "standardised" if self.config.get("standardize") else "counts" if self.config.get("counts") else how
        missing = [f"{100 * self.missing:.3g}% missing"] if self.missing else []
        return ", ".join([self.config["data"], how, *self.notes, *missing])

    @property
    def words(self) -> str:
        """A description of the type and shape of x, for example ``images of 1x8x8``."""
        shape, names = "x".join(map(str, self.event_shape)) or "1", textwrap.shorten(", ".join(self.names), 100)
        if columns := self.config.get("columns"):
            return f"rows of {', '.join(columns)}; x is of {shape}"
        table = f"rows of {shape} column{'s' * (shape != '1')}" + f" ({names})" * bool(names)
        for role, columns in (("labels", [self.schema.labels]), ("y", self.schema.covariates)) if self.schema else ():
            table += f"; {role}: {', '.join(map(str, columns))}" if any(columns) else ""
        return table if len(self.event_shape) < 2 else f"images of {shape}"
