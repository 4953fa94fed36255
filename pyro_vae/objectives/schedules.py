"""Schedules of beta: a warm-up that ends at beta = 1. After the warm-up the loss is minus the ELBO."""

import math
from abc import ABC, abstractmethod


class Schedule(ABC):
    r"""Base class of a schedule of beta: beta rises from ``start`` to 1 over the warm-up, and stays at 1.

    .. math:: \beta_t = \beta_0 + (1 - \beta_0) \, r(\min(1, t / (T - 1)))

    at step :math:`t = 0, 1, \dots` of a warm-up of T steps. To write a schedule, subclass this and define :meth:`rise`.

    Arguments:
        warmup: T, as an ``int`` number of steps, or as a ``float`` fraction of the run (1.0 for the whole run).
        start: :math:`\beta_0`, the first beta.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, warmup: int | float = 0.5, start: float = 0.0) -> None:
        if not (warmup >= 1 if isinstance(warmup, int) else 0 < warmup <= 1):
            raise ValueError(
                "Expected warmup to be a whole number of steps, as 2000, or a fraction of the run, above 0 and at most "
                f"1.0; got {warmup}."
            )
        if not 0 <= start <= 1:
            raise ValueError(f"Expected start, the first beta, between 0 and 1; got {start}.")
        self.warmup, self.start = warmup, start

    @abstractmethod
    def rise(self, u: float) -> float:
        """Return r(u) for u in [0, 1]; r(1) is 1."""

    def __call__(self, step: int, steps: int | None = None) -> float:
        """Return beta at a step, counted from 0, of a run of ``steps`` steps."""
        length = self._length(steps)
        u = 1.0 if step >= length - 1 else step / (length - 1)
        return self.start + (1 - self.start) * (1.0 if u == 1 else self.rise(u))

    def check(self, steps: int) -> None:
        """Raise a ValueError if beta does not reach 1 within a run of ``steps`` steps."""
        if self._length(steps) > steps:
            raise ValueError(
                f"Expected beta to reach 1 within the run, of {steps:,} steps; the warm-up takes {self.warmup:,}. "
                "Train longer, or set a fraction of the run, as warmup=0.5."
            )

    def _length(self, steps: int | None) -> int:
        """Return the number of steps of the warm-up."""
        if isinstance(self.warmup, int):
            return self.warmup
        if steps is None:
            raise ValueError(
                f"Expected the number of steps, for a warmup of {self.warmup:g} of the run; got None. Call "
                "objective.start(steps) first, as fit does, or set warmup to a whole number of steps."
            )
        return max(1, round(self.warmup * steps))


class Linear(Schedule):
    r"""A linear warm-up: :math:`r(u) = u`.

    References:
        `Generating Sentences from a Continuous Space <https://arxiv.org/abs/1511.06349>`_ (Bowman et al., 2016).
        `Ladder Variational Autoencoders <https://arxiv.org/abs/1602.02282>`_ (Sønderby et al., 2016).

    Example:
        >>> [Linear(warmup=5)(step) for step in range(7)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
        >>> [Linear(0.5)(step, steps=6) for step in range(6)]
        [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    """

    def rise(self, u: float) -> float:
        """Return u."""
        return u


class Cosine(Schedule):
    r"""A cosine warm-up, flat at both ends: :math:`r(u) = \frac{1}{2} (1 - \cos \pi u)`.

    Example:
        >>> [round(Cosine(warmup=5)(step), 3) for step in range(5)]
        [0.0, 0.146, 0.5, 0.854, 1.0]
    """

    def rise(self, u: float) -> float:
        """Return the half cosine at u."""
        return 0.5 * (1 - math.cos(math.pi * u))


class Cyclical(Schedule):
    r"""Several linear warm-ups in a row: in each cycle beta rises linearly to 1, then stays at 1.

    .. math:: r(u) = \min(1, (u M - \lfloor u M \rfloor) / R)

    References:
        `Cyclical Annealing Schedule <https://arxiv.org/abs/1903.10145>`_ (Fu et al., 2019).

    Arguments:
        warmup: Length of all cycles together, as an ``int`` number of steps or a ``float`` fraction of the run.
        start: The first beta of each cycle.
        cycles: M, the number of cycles.
        ramp: R, the fraction of a cycle in which beta rises.

    Example:
        >>> beta = Cyclical(warmup=9, cycles=2, ramp=0.5)
        >>> [beta(step) for step in range(10)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, warmup: int | float = 1.0, start: float = 0.0, cycles: int = 4, ramp: float = 0.5) -> None:
        super().__init__(warmup, start)
        if cycles < 1 or not 0 < ramp <= 1:
            raise ValueError(f"Expected at least 1 cycle, and a ramp above 0 and at most 1; got {cycles} and {ramp}.")
        self.cycles, self.ramp = cycles, ramp

    def rise(self, u: float) -> float:
        """Return the height of the cycle's ramp at u."""
        return min(1.0, u * self.cycles % 1 / self.ramp)
