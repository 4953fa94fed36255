r"""The No-U-Turn Sampler for many independent chains at once: all chains take each leapfrog step together.

A chain doubles its trajectory, forward or backward in time at random, until an end moves toward the other end. The
chains of one datum share the step size and the scales of the coordinates, which warm-up adapts.

References:
    - The No-U-Turn Sampler (Hoffman and Gelman, 2014), https://arxiv.org/abs/1111.4246.
    - A Conceptual Introduction to Hamiltonian Monte Carlo (Betancourt, 2017), https://arxiv.org/abs/1701.02434, for
      draws from the trajectory in proportion to their weights.
    - Composable Effects for Flexible and Accelerated Probabilistic Programming in NumPyro (Phan, Pradhan and Jankowiak,
      2019), https://arxiv.org/abs/1912.11554, for the loop in place of a recursion.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.annealing import LOST

DEPTH = 10  # doublings of a trajectory at most
TARGET = 0.8  # share of accepted steps
FIRST, WINDOW, LAST = 75, 25, 50  # iterations of warm-up, as in Stan
SHORT = 20  # iterations of warm-up, below which the scales stay
DOUBLINGS = 50  # of a first step size
PRIOR_DRAWS, PRIOR_VARIANCE = 5, 1e-3  # toward which a variance of few draws shrinks, relative to the first scale


class Point(NamedTuple):
    """States u of chains ``(C, B, D)``, momenta in units of the scales, and the log-density with its gradient at u."""

    u: Tensor
    momentum: Tensor
    log_p: Tensor
    grad: Tensor

    def where(self, mask: Tensor, other: "Point") -> "Point":
        """Return this point for chains in ``mask``, ``(C, B)``, and the other point for the rest."""
        wide = mask.unsqueeze(-1)
        return Point(*(torch.where(wide if a.dim() > 2 else mask, a, b) for a, b in zip(self, other, strict=True)))

    @property
    def energy(self) -> Tensor:
        """The log-density of state and momentum, ``(C, B)``."""
        return self.log_p - 0.5 * self.momentum.square().sum(-1)


class Target:
    """A density that chains draw from, inside a box.

    Arguments:
        density: Maps u ``(C, B, D)`` to the log-density ``(C, B)`` and its gradient.
        low: Lower bounds ``(B, D)``.
        high: Upper bounds ``(B, D)``.
    """

    def __init__(self, density: Callable[[Tensor], Sequence[Tensor]], low: Tensor, high: Tensor) -> None:
        self._density, self._low, self._high = density, low, high

    def at(self, u: Tensor) -> Point:
        """Return the point at u, without a momentum."""
        log_p, grad = self._density(u)
        return Point(u, torch.zeros_like(u), log_p, grad)

    def leapfrog(self, point: Point, step: Tensor) -> Point:
        """Take one step; a chain that would leave the box keeps its u, and its density is zero."""
        momentum = torch.addcmul(point.momentum, step, point.grad, value=0.5)
        u = torch.addcmul(point.u, step, momentum)
        inside = ((u > self._low) & (u < self._high)).all(-1)
        u = torch.where(inside.unsqueeze(-1), u, point.u)
        log_p, grad = self._density(u)
        momentum = torch.addcmul(momentum, step, grad, value=0.5)
        return Point(u, momentum, torch.where(inside, log_p, -math.inf), grad)


class Subtree(NamedTuple):
    """One half of a doubled trajectory: a draw from it, its last point, and sums over its points."""

    draw: Point
    end: Point
    weight: Tensor
    momenta: Tensor
    complete: Tensor
    lost: Tensor
    accepted: Tensor
    number: Tensor


def transition(target: Target, point: Point, step: Tensor) -> tuple[Point, Tensor, Tensor]:
    """Move chains; return the new points, the acceptance rate ``(B,)`` and whether a trajectory diverged ``(C, B)``.

    ``step`` is the step size of each coordinate, ``(B, D)``.
    """
    point = point._replace(momentum=torch.randn_like(point.u))
    left = right = draw = point
    momenta, weight, energy = point.momentum, torch.zeros_like(point.log_p), point.energy
    active, diverged = torch.ones_like(weight, dtype=torch.bool), torch.zeros_like(weight, dtype=torch.bool)
    accepted, number = torch.zeros_like(weight), torch.zeros_like(weight)
    for depth in range(DEPTH):
        forward = torch.rand_like(weight) < 0.5
        sign = torch.where(forward, 1.0, -1.0).to(step).unsqueeze(-1)
        half = extend(target, right.where(forward, left), sign * step, 2**depth, energy, active)
        accepted, number, diverged = accepted + half.accepted, number + half.number, diverged | half.lost
        active = half.complete
        draw = half.draw.where(active & (torch.rand_like(weight).log() < half.weight - weight), draw)
        right, left = half.end.where(active & forward, right), half.end.where(active & ~forward, left)
        weight = torch.where(active, torch.logaddexp(weight, half.weight), weight)
        momenta = torch.where(active.unsqueeze(-1), momenta + half.momenta, momenta)
        active = active & ~turns(left.momentum, right.momentum, momenta)
        if not active.any():
            break
    return draw, (accepted / number).mean(0), diverged


def extend(target: Target, end: Point, step: Tensor, number: int, energy: Tensor, active: Tensor) -> Subtree:
    """Take ``number`` steps from the end of trajectories; a chain stops where a part of its steps turns or diverges."""
    draw, weight, momenta = end, torch.full_like(energy, -math.inf), torch.zeros_like(end.momentum)
    lost, accepted, count = torch.zeros_like(active), torch.zeros_like(energy), torch.zeros_like(energy)
    starts: dict[int, tuple[Tensor, Tensor]] = {}  # of the parts that end later, by the bits of the step's number
    for i in range(number):
        end = target.leapfrog(end, step)
        gain = (end.energy - energy).nan_to_num(-math.inf)
        accepted, count = accepted + torch.where(active, gain.clamp(max=0).exp(), 0.0), count + active
        lost, active = lost | (active & (gain < -LOST)), active & (gain >= -LOST)
        together = torch.logaddexp(weight, gain)
        draw = end.where(torch.rand_like(weight).log() < gain - together, draw)
        weight, momenta = together, momenta + end.momentum
        last = (i >> 1).bit_count()
        if i % 2 == 0:
            starts[last] = end.momentum, momenta
        else:
            ones = (~i & (i + 1)).bit_length() - 1  # trailing ones of i: that many parts end here
            for part in range(last - ones + 1, last + 1):
                momentum, before = starts[part]
                active = active & ~turns(momentum, end.momentum, momenta - before + momentum)
        if not active.any():
            break
    return Subtree(draw, end, weight, momenta, active, lost, accepted, count)


def turns(first: Tensor, last: Tensor, momenta: Tensor) -> Tensor:
    """Whether the ends of a trajectory approach each other, given the sum of its momenta."""
    inner = momenta - 0.5 * (first + last)
    return ((first * inner).sum(-1) <= 0) | ((last * inner).sum(-1) <= 0)


class StepSize:
    """The step size of each datum, adapted to the target rate of acceptance by dual averaging."""

    def __init__(self, first: Tensor) -> None:
        self.center, self.error, self.average, self.count = (10 * first).log(), 0.0 * first, 0.0 * first, 0
        self.value = first

    def update(self, accepted: Tensor) -> None:
        """Adapt to the acceptance rate of a transition."""
        self.count += 1
        rate, weight = 1 / (self.count + 10), self.count**-0.75
        self.error = (1 - rate) * self.error + rate * (TARGET - accepted)
        log_step = self.center - self.error * self.count**0.5 / 0.05
        self.average = weight * log_step + (1 - weight) * self.average
        self.value = log_step.exp()


def first_step(target: Target, point: Point, scale: Tensor, step: Tensor) -> Tensor:
    """Double or halve the step size of each datum until the acceptance of one step crosses the target rate."""
    larger, moving = None, torch.ones_like(step, dtype=torch.bool)
    for _ in range(DOUBLINGS):
        start = point._replace(momentum=torch.randn_like(point.u))
        end = target.leapfrog(start, step.unsqueeze(-1) * scale)
        accepted = (end.energy - start.energy).nan_to_num(-math.inf).clamp(max=0).exp().mean(0) > TARGET
        larger = accepted if larger is None else larger
        moving = moving & (accepted == larger)
        if not moving.any():
            break
        step = torch.where(moving, torch.where(larger, 2 * step, step / 2), step)
    return step


def window_ends(warmup: int) -> list[int]:
    """Return the iterations of warm-up at which the scales are estimated, from longer and longer windows."""
    if warmup < SHORT:
        return []
    first, size, last = FIRST, WINDOW, LAST
    if warmup < first + size + last:
        first, last = int(0.15 * warmup), int(0.1 * warmup)
        size = warmup - first - last
    ends = [first]
    while ends[-1] < warmup - last:
        end = ends[-1] + size
        size *= 2
        ends.append(end if end + size <= warmup - last else warmup - last)
    return ends


def sample(target: Target, u: Tensor, scale: Tensor, warmup: int, draws: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield u and whether the trajectory diverged, after each iteration: ``warmup`` ones, then ``draws``.

    Chains start at u, ``(C, B, D)``; ``scale``, ``(B, D)``, is a first guess of the scales of the coordinates.
    """
    point, guess, ends, window = target.at(u), scale, window_ends(warmup), list[Tensor]()
    size = StepSize(first_step(target, point, scale, torch.ones_like(scale[:, 0])))
    for i in range(warmup + draws):
        step = size.value if i < warmup else size.average.exp()
        point, accepted, diverged = transition(target, point, step.unsqueeze(-1) * scale)
        if i < warmup:
            size.update(accepted)
            if ends and ends[0] <= i < ends[-1]:
                window.append(point.u)
            if i + 1 in ends[1:]:
                number = len(window) * u.shape[0]
                variance = torch.stack(window).var(0).mean(0)  # of each chain: chains may be in separate modes
                prior = PRIOR_DRAWS * PRIOR_VARIANCE * guess.square()
                scale, window = ((number * variance + prior) / (number + PRIOR_DRAWS)).sqrt(), []
                size = StepSize(first_step(target, point, scale, size.average.exp()))
        yield point.u, diverged
