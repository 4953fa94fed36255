r"""A data set: three splits of images, kept as they came and read as x when they are asked for."""

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data.arrays import digest, rows_of, tensor_of, total
from pyro_vae.data.on_disk import OnDisk

Noise = Literal["bernoulli", "uniform"]
WAYS = {"none": "not binarised", "static": "binarised statically", "dynamic": "binarised dynamically"}
WAYS |= {"threshold": "binarised at one half"}
EDGE = 2.0**-24  # 1 - EDGE is the largest float32 below 1


@dataclass(frozen=True, eq=False)
class Split:
    r"""Images on a device or on disk. ``split[index]`` reads a batch of x, as floats, with its noise drawn afresh.

    From pixel p of L grey levels, :math:`x = p / (L - 1)`; with ``noise`` ``bernoulli``, x is drawn with that
    probability (dynamic binarisation); with ``uniform``, :math:`x = (p + u) / L`, u uniform (dequantisation), off 0
    and 1, to which float32 would round it; with a ``scale`` for each element, :math:`x = p + \sigma \epsilon`,
    normal. With ``counts``, :math:`x = p`. What is missing is NaN.

    References:
        On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov and Murray, 2008), for binarisation.

        A Note on the Evaluation of Generative Models (Theis, van den Oord and Bethge, 2016), for dequantisation.

    Arguments:
        pixels: Shape ``(N, *event)``: bytes, or floats that are x already; or the same on disk, read as needed.
        labels: Shape ``(N,)``, or None.
        levels: L, how many grey levels the bytes have; 0 where x is any tensor as it is.
        noise: Drawn when a batch is read.
        counts: Whether x is the pixel as it is.
        mask: True where a pixel is observed, of the shape of the pixels; None: all are.
        extra: Further arguments of a program by name, each of N rows, for :meth:`batch`.
        scale: Standard deviations of normal noise, of the shape of the pixels; None: there is none.

    Example:
        >>> Split(torch.tensor([[0, 255]], dtype=torch.uint8), levels=256)[:]
        tensor([[0., 1.]])
    """

    pixels: Tensor | OnDisk
    labels: Tensor | None = None
    levels: int = 256
    noise: Noise | None = None
    counts: bool = False
    mask: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.pixels, OnDisk) or getattr(self.pixels, "layout", None) == torch.strided):
            tensor_of(self.pixels, "pixels")  # which says what is wrong

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        pixels = rows_of(self.pixels, index)
        x = pixels / self.white if self.levels else pixels
        if self.noise == "uniform":
            x = self._dequantised(pixels, torch.rand(pixels.shape, device=pixels.device))
        elif self.noise == "bernoulli":
            x = (torch.rand_like(x) < x).to(x.dtype)  # as torch.bernoulli, faster
        elif self.scale is not None:
            x = torch.addcmul(x, rows_of(self.scale, index), torch.randn_like(x))
        return x if self.mask is None else torch.where(rows_of(self.mask, index), x, torch.nan)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, ...]:
        """Read a batch of x and of the other columns, in their order: the arguments of a program."""
        return self[index], *(rows_of(column, index) for column in self.extra.values())

    @property
    def columns(self) -> dict[str, Tensor]:
        """What may be columns beside x; the labels are ``y`` and ``labels``, where no other is called so."""
        return ({} if self.labels is None else {"y": self.labels, "labels": self.labels}) | self.extra

    @property
    def digests(self) -> dict[str, str]:
        """A digest of its pixels, mask and each column, by which a run knows the data that it was trained on."""
        parts = {"x": self.pixels, "mask": self.mask, "scale": self.scale} | self.columns
        return {name: digest(column) for name, column in parts.items() if column is not None and len(column)}

    def with_columns(self, names: Iterable[str]) -> Self:
        """Return the split with these columns beside x, in this order."""
        return replace(self, extra={name: self.columns[name] for name in names})

    def to(self, device: str | torch.device) -> Self:
        """Return the split on another device; of one on disk, each batch is moved there when it is read."""
        return self._each(lambda column: column.to(device))

    def part(self, rows: Tensor) -> Self:
        """Return the split of some rows; of one on disk it stays on disk."""
        return self._each(lambda column: column.part(rows) if isinstance(column, OnDisk) else column[rows])

    def _each(self, change: Callable[[Any], Any]) -> Self:
        beside = {"labels": self.labels, "mask": self.mask, "scale": self.scale}
        changed: dict[str, Any] = {name: change(column) for name, column in beside.items() if column is not None}
        extra = {name: change(column) for name, column in self.extra.items()}
        return replace(self, pixels=change(self.pixels), extra=extra, **changed)

    @property
    def on_disk(self) -> bool:
        """Whether images are read from a file as they are asked for."""
        return isinstance(self.pixels, OnDisk)

    def frozen(self, generator: torch.Generator) -> Self:
        """Return the split with its noise drawn once for all, in memory."""
        pixels, levels = self.pixels[:], self.levels
        if self.noise == "uniform":
            pixels = self._dequantised(pixels, torch.rand(pixels.shape, generator=generator))
        elif self.noise == "bernoulli":
            pixels, levels = torch.bernoulli(pixels / self.white, generator=generator).byte(), 2
        elif self.scale is not None:
            pixels = torch.addcmul(pixels, self.scale, torch.randn(pixels.shape, generator=generator))
        return replace(self, pixels=pixels, levels=levels, noise=None, scale=None)

    def _dequantised(self, pixels: Tensor, u: Tensor) -> Tensor:
        return ((pixels + u) / self.levels).clamp(EDGE, 1 - EDGE)

    @property
    def mean(self) -> Tensor:
        """The mean of x, of shape ``event``, with the noise averaged out, over what is observed.

        An element that is observed in no image has the mean of all the others.
        """
        whole = self.pixels.total if isinstance(self.pixels, OnDisk) else total(self.pixels, self.mask)
        count = torch.full_like(whole, len(self)) if self.mask is None else total(self.mask)
        mean = torch.where(count > 0, whole / count, whole.sum() / count.sum())
        mean = mean.to(torch.promote_types(self.pixels.dtype, torch.float32))
        return (mean + 0.5) / self.levels if self.noise == "uniform" else mean / self.white

    @property
    def missing(self) -> float:
        """The share of pixels that are missing."""
        return 0.0 if self.mask is None else 1 - total(self.mask).sum().item() / self.mask.numel()

    @property
    def incomplete(self) -> bool:
        """Whether anything is missing, of x or of another column."""
        floats = (column for column in self.extra.values() if column.is_floating_point())
        return self.mask is not None or any(bool(column.isnan().any()) for column in floats)

    @property
    def white(self) -> int:
        """The pixel at which x is 1."""
        return 1 if self.counts or not self.levels or self.pixels.dtype.is_floating_point else self.levels - 1


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one source, and how they came from its pixels.

    Arguments:
        train: For training; noise is drawn afresh at every reading.
        valid: For validation while training; noise drawn once for all, as of ``test``. May be of no images.
        test: For the end.
        support: The constraint that every x satisfies: ``boolean``; ``levels(L)``; ``unit_interval``, dequantised grey
            levels, which keep off its ends, or floats; ``nonnegative_integer``, counts; ``real``.
        config: The arguments of :func:`load` that give the data set again.
        names: Of the columns of a table, where it has them.
        notes: What was done to read the data, in words.
    """

    train: Split
    valid: Split
    test: Split
    support: constraints.Constraint
    config: dict[str, Any]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name; valid where it has images."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: split for name, split in splits.items() if len(split)}

    @property
    def digests(self) -> dict[str, dict[str, str]]:
        """The digests of each split: :attr:`Split.digests`."""
        return {name: split.digests for name, split in self.splits.items()}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one x."""
        return tuple(self.train.pixels.shape[1:])

    @property
    def mean(self) -> Tensor:
        """The mean of x over the training images, of shape ``event``."""
        return self.train.mean

    @property
    def missing(self) -> float:
        """The share of pixels that are missing, of all splits together."""
        return sum(part.missing * len(part) for part in self.splits.values()) / sum(map(len, self.splits.values()))

    def __str__(self) -> str:
        how = "dequantised" if self.config["dequantize"] else WAYS[self.config["binarize"]]
        how = "counts" if self.config.get("counts") else how
        missing = [f"{100 * self.missing:.3g}% missing"] if self.missing else []
        return ", ".join([self.config["data"], how, *self.notes, *missing])

    @property
    def words(self) -> str:
        """What x is, in words: images of a shape, or rows of columns."""
        shape, names = "x".join(map(str, self.event_shape)) or "1", textwrap.shorten(", ".join(self.names), 100)
        if columns := self.config.get("columns"):
            return f"rows of {', '.join(columns)}; x is of {shape}"
        table = f"rows of {shape} column{'s' * (shape != '1')}" + f" ({names})" * bool(names)
        return table if len(self.event_shape) < 2 else f"images of {shape}"
