r"""Quantisers: guide families that map each place of a grid of vectors to the nearest of finitely many codes."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import Family
from pyro_vae.guides.code_vectors import CodeVectors

# Levels of each dimension, by the number of codes: table 1 of Mentzer et al. (2024), and fewer codes.
LEVELS = {4: (2, 2), 9: (3, 3), 16: (5, 3), 64: (8, 8), 256: (8, 6, 5), 512: (8, 8, 8), 1024: (8, 5, 5, 5)}
LEVELS |= {4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5)}

USE_DECAY = 0.99  # of the counts of uses, for a codebook trained by gradients


class Quantiser(Family):
    r"""The base class of quantisers: a family of point masses at the nearest codes.

    A quantiser has K codes, each a vector of D dimensions, and maps the vector at each place of a grid to a code. The
    event is ``(D, height, width)``. The value of a draw is the vectors of the codes. The gradient of a draw goes
    straight through to the encoder's output, as if the draw were that output.

    Arguments:
        shape: Number of codes K, dimensions D, height and width.

    Attributes:
        codes: The number of codes K.
        grid: Height and width.

    Raises:
        ValueError: If there are fewer than 2 codes, or no dimensions or places, or ``shape`` has another length.
    """

    params = 1

    def __init__(self, shape: Sequence[int]) -> None:
        self.check_shape(shape)
        codes, dim, *grid = shape
        if codes < 2:
            raise ValueError(f"Expected codes of at least 2, since one code carries no information; got {codes}.")
        super().__init__((dim, *grid))
        self.codes, self.grid = codes, tuple(grid)

    @classmethod
    def check_shape(cls, shape: Any) -> None:
        """Refuse a shape that a VAE passes, such as 20: a quantiser is for a grid of codes."""
        if not isinstance(shape, Sequence) or len(shape) != 4:
            raise ValueError(
                f"Expected (codes, dim, height, width), as a VQVAE passes, for the quantiser {cls.__name__}; got "
                f"{shape}. Use --program VQVAE, or another guide."
            )

    @property
    @abstractmethod
    def vectors(self) -> Tensor:
        """The vectors of all codes, of shape ``(K, D)``."""

    @abstractmethod
    def nearest(self, z: Tensor) -> Tensor:
        """Return the index of the nearest code, ``(*, height, width)``, for vectors ``(*, D, height, width)``."""

    @abstractmethod
    def distances(self, z: Tensor) -> Tensor:
        """Return distances ``(*, height, width, K)`` from vectors ``(*, D, height, width)`` to all codes."""

    def embed(self, codes: Tensor) -> Tensor:
        """Return the vectors ``(*, D, height, width)`` of codes ``(*, height, width)``."""
        return self.vectors[codes].movedim(-1, -3).contiguous()

    def over(self, prior: TorchDistribution) -> TorchDistribution:
        """Return the distribution of the vectors, for a distribution of the codes."""
        return CodeVectors(prior, self)


class VQ(Quantiser):
    r"""Vector quantisation: the nearest of K learned vectors at each place of the grid.

    .. math:: c = \arg\min_k \| z_e - e_k \|, \qquad z = z_e + \mathrm{sg}[e_c - z_e]

    ``z_e`` is the encoder's output, and sg stops the gradient. The gradient of training has two further terms, summed
    over places and dimensions, which no density and no metric contains: the codebook's
    :math:`\| \mathrm{sg}[z_e] - e_c \|^2` and the encoder's :math:`\beta \, \| z_e - \mathrm{sg}[e_c] \|^2`, where
    :math:`\beta` is ``commitment``. With ``decay`` above 0,
    moving averages of the encoder's outputs replace the first term. A code whose share of use falls below
    ``restart`` times the mean is dead; training restarts the code at an encoder's output of the minibatch, and
    ``restarts`` counts this.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals and Kavukcuoglu, 2017).
        Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi et al., 2019), for moving averages.
        Jukebox (Dhariwal et al., 2020), for restarts.

    Raises:
        ValueError: If there are fewer than 2 codes, or a number is out of range.

    Example:
        >>> VQ((512, 64, 7, 7))(torch.zeros(5, 1, 64, 7, 7)).event_shape
        torch.Size([64, 7, 7])
    """

    def __init__(
        self,
        shape: Sequence[int],
        commitment: float = 0.25,
        decay: float = 0.99,
        restart: float = 0.05,
    ) -> None:
        super().__init__(shape)
        codes, dim, *_ = shape
        if not (commitment >= 0 and 0 <= decay < 1 and 0 <= restart < 1):
            raise ValueError(
                "Expected commitment of at least 0, and decay and restart in [0, 1); got "
                f"{commitment}, {decay} and {restart}."
            )
        self.commitment, self.decay, self.restart = commitment, decay, restart
        start = torch.randn(codes, dim) / math.sqrt(dim)
        if decay:
            self.codebook: Tensor = nn.Buffer(start)
            self.sums = nn.Buffer(start.clone())
        else:
            self.codebook = nn.Parameter(start)
        self.uses = nn.Buffer(torch.ones(codes))
        self.restarts = nn.Buffer(torch.zeros(()))

    @property
    def vectors(self) -> Tensor:
        """The learned vectors of all codes, of shape ``(K, D)``."""
        return self.codebook

    def nearest(self, z: Tensor) -> Tensor:
        """Return the nearest code of each vector."""
        return self.distances(z).argmin(-1)

    def distances(self, z: Tensor) -> Tensor:
        """Return squared distances to all codes, less the squared length of each vector."""
        return self.codebook.square().sum(-1) - 2 * z.movedim(-3, -1) @ self.codebook.T

    def distribution(self, z: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the point mass at the nearest codes of the encoder's outputs ``z``, ``(*, D, height, width)``."""
        if self.training and torch.is_grad_enabled():
            self._update(z.detach())
        nearest = self.embed(self.nearest(z.detach()))
        loss = self.commitment * (z - nearest.detach()).square()
        if not self.decay:
            loss = loss + (z.detach() - nearest).square()
        return point_mass(nearest, z, loss)

    @torch.no_grad()
    def _update(self, z: Tensor) -> None:
        """Update the moving averages by the encoder's outputs, and restart dead codes."""
        rows, codes = z.movedim(-3, -1).reshape(-1, z.shape[-3]), self.nearest(z).reshape(-1)
        decay = self.decay or USE_DECAY
        counts = rows.new_zeros(self.codes).index_add_(0, codes, torch.ones_like(rows[:, 0]))
        uses = self.uses.lerp(counts, 1 - decay)
        dead = uses < self.restart * uses.mean()
        candidates = rows[torch.randint(len(rows), (self.codes,), device=rows.device)]
        if self.decay:
            sums = self.sums.lerp(torch.zeros_like(self.sums).index_add_(0, codes, rows), 1 - decay)
            self.sums.copy_(torch.where(dead.unsqueeze(-1), candidates * uses.mean(), sums))
        codebook = self.codebook if not self.decay else sums / uses.clamp(min=1e-5).unsqueeze(-1)
        self.codebook.copy_(torch.where(dead.unsqueeze(-1), candidates, codebook))
        self.uses.copy_(torch.where(dead, uses.mean(), uses))
        self.restarts.add_(dead.sum())


class FSQ(Quantiser):
    r"""Finite scalar quantisation: each dimension is rounded to one of a few levels. There is no codebook to learn.

    .. math:: z_d = \mathrm{round}\big( h_d \tanh(z_{e,d} + s_d) - o_d \big) / \lfloor L_d / 2 \rfloor

    Dimension d has :math:`L_d` ``levels``; h, s and o place them evenly, as in the paper. The gradient of the rounding
    is 1. The number of codes is the product of the levels. Without ``levels``, a table gives levels for about as many
    codes as ``shape`` has. The dimensions of ``shape`` are ignored: each element of ``levels`` is a dimension.

    References:
        Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer, Minnen, Agustsson and Tschannen, 2024).

    Raises:
        ValueError: If a dimension has fewer than 2 levels.

    Example:
        >>> fsq = FSQ((512, 3, 7, 7), levels=(8, 8, 8))
        >>> fsq.codes, fsq(torch.zeros(5, 1, 3, 7, 7)).event_shape
        (512, torch.Size([3, 7, 7]))
    """

    def __init__(self, shape: Sequence[int], levels: Sequence[int] | None = None) -> None:
        self.check_shape(shape)
        codes, _, *grid = shape
        levels = LEVELS[min(LEVELS, key=lambda number: abs(number - codes))] if levels is None else levels
        if min(levels, default=0) < 2:
            raise ValueError(f"Expected levels of at least 2 in each dimension; got {[*levels]}.")
        super().__init__((math.prod(levels), len(levels), *grid))
        self.levels = tuple(levels)
        column = (len(levels), 1, 1)
        sizes = torch.tensor(levels, dtype=torch.get_default_dtype())
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
        half = (sizes - 1) * (1 + 1e-3) / 2
        self.reach, self.offset, self.shift, self.width, self.last = (
            nn.Buffer(numbers.view(column), persistent=False)
            for numbers in (half, offset, (offset / half).atanh(), sizes // 2, sizes - 1)
        )
        strides = torch.tensor([1, *accumulate(levels[:-1], mul)])
        self.strides = nn.Buffer(strides.view(column), persistent=False)
        digits = torch.arange(self.codes).unsqueeze(-1) // strides % torch.tensor(levels)
        self.table = nn.Buffer((digits - torch.tensor(levels) // 2) / (sizes // 2), persistent=False)

    @property
    def vectors(self) -> Tensor:
        """The vectors of all codes, of shape ``(K, D)``, between -1 and 1."""
        return self.table

    def nearest(self, z: Tensor) -> Tensor:
        """Return the index of the nearest code of each vector."""
        digits = ((z * self.width).round() + self.width).clamp(min=0).minimum(self.last)
        return (digits.long() * self.strides).sum(-3)

    def distances(self, z: Tensor) -> Tensor:
        """Return squared distances from vectors between -1 and 1 to all codes."""
        return (z.movedim(-3, -1).unsqueeze(-2) - self.table).square().sum(-1)

    def squash(self, z: Tensor) -> Tensor:
        """Return encoder's outputs within the levels, before rounding, divided by the width of the levels."""
        return ((z + self.shift).tanh() * self.reach - self.offset) / self.width

    def distribution(self, z: Tensor) -> TorchDistribution:  # type: ignore[override]
        """Return the point mass at the nearest levels of the encoder's outputs ``z``, ``(*, D, height, width)``."""
        levels = self.squash(z)
        return point_mass((levels * self.width).round() / self.width, levels)


def point_mass(nearest: Tensor, outputs: Tensor, loss: Tensor | None = None) -> TorchDistribution:
    """Return a point mass at the nearest codes, whose gradient goes straight through to the encoder's output.

    Two more attributes are ``outputs`` of the encoder, and ``loss``, the further terms of the loss, of the batch shape.
    """
    value = nearest.detach() + (outputs - outputs.detach())  # exactly the codes
    result: Any = dist.Delta(value, event_dim=3)
    result.outputs = outputs
    result.loss = value.new_zeros(value.shape[:-3]) if loss is None else loss.sum((-3, -2, -1))
    return result
