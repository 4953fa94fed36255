"""Directions of a code for sliders: latent dimensions, or principal directions of draws."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SPAN = 3.0  # standard deviations of draws, on each side of their mean


class Axes(NamedTuple):
    """Orthonormal directions of a code, one for each slider: the slider shows ``(code - origin) @ vector``."""

    names: Sequence[str]
    vectors: Tensor  # (sliders, D)
    origin: Tensor  # (D,)
    low: Tensor  # (sliders,), the least value of each slider
    high: Tensor

    def coordinates(self, code: Tensor) -> Tensor:
        """Return the values of the sliders at a code."""
        return self.vectors @ (code - self.origin)


def latent_axes(draws: Tensor, columns: Sequence[int], names: Sequence[str]) -> Axes:
    """Return the axes of some dimensions of draws, ``(N, D)``; ``names`` has the names of these dimensions."""
    vectors = torch.eye(draws.shape[1]).to(draws)[columns]
    mean, reach = draws.mean(0)[columns], SPAN * _spread(draws.std(0)[columns])
    return Axes(names, vectors, torch.zeros_like(draws[0]), mean - reach, mean + reach)


def principal_axes(draws: Tensor, columns: Sequence[int], most: int) -> Axes:
    """Return at most ``most`` principal directions of some dimensions of draws, ``(N, D)``, around the draws' mean."""
    variances, vectors = torch.linalg.eigh(draws[:, columns].T.double().cov().reshape(len(columns), len(columns)))
    variances, vectors = variances.flip(0).clamp(min=0)[:most], vectors.flip(1)[:, :most].T.to(draws)
    shares = variances / variances.new_tensor([draws[:, columns].double().var(0).sum(), 1e-300]).max()
    full = draws.new_zeros(len(vectors), draws.shape[1])
    full[:, columns] = vectors
    reach = SPAN * _spread(variances.sqrt().to(draws))
    names = [f"direction {i + 1}, {share:.0%} of variance" for i, share in enumerate(shares.tolist())]
    return Axes(names, full, draws.mean(0), -reach, reach)


def _spread(stddev: Tensor) -> Tensor:
    """Return the standard deviation, or 1 where all draws are equal."""
    return torch.where(stddev > 0, stddev, 1.0)
