"""Draws weighed a chunk at a time, in bounded memory; by a graph, where there are many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.compiled import Outputs, Traced, fast_products, how_many_fit
from pyro_vae.program import Posterior
from pyro_vae.seeds import forked

__all__ = ["Weighing", "batches", "room"]

TOGETHER = 32  # draws of an image at least, where so many fit
MOST = 2_000  # images decoded at once: more do not fit in a CPU's caches, and are slower
MANY = 100  # chunks, in less time than which no graph is recorded


class Weighing:
    """The log-weights of draws from the guide, for some data after others.

    Where there are many chunks they are run as a graph, compiled where that pays, as the steps of ``fit`` are: the same
    draws, and the same numbers to rounding. Each datum is first run once by itself, with all of Pyro's validation.

    Arguments:
        posterior: A program, in evaluation mode, at all data that are to come.
        num_particles: K, draws per datum.
        at_once: Rows run at once, if not as many as fit.
        progress: Whether to show a progress bar.

    Attributes:
        images: How many data to weigh together.

    Raises:
        ValueError: If there are no particles, ``at_once`` is not positive, or a log-weight is NaN.
    """

    def __init__(self, posterior: Posterior, num_particles: int, at_once: int | None, progress: bool) -> None:
        for name, number in {"num_particles": num_particles, "at_once": at_once}.items():
            if number is not None and number < 1:
                raise ValueError(f"Expected {name} of at least 1; got {number}.")
        images, self._draws = room(posterior) if at_once is None else (at_once, at_once)
        # Few images and many draws of each, since an image is encoded anew for every chunk of its draws.
        self.images = min(images, max(1, self._draws // min(num_particles, TOGETHER)))
        self.num_particles = num_particles
        self._posterior = posterior
        calls = sum(len(self._sizes(len(rows))) for rows in self.batches())
        self._graph = Traced(self._outputs, "auto", calls, quiet=True, frozen=True) if calls >= MANY else None
        if self._graph:
            with forked(posterior.data[0].device):
                self._rehearse()
        self._bar = tqdm(
            total=len(posterior) * num_particles,
            desc="-log p(x)",
            unit=" draws",
            unit_scale=True,
            leave=False,
            disable=not progress,
        )

    def __enter__(self) -> Weighing:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def batches(self, images: int | None = None) -> list[Posterior]:
        """Return the data in parts, each to be weighed together."""
        return batches(self._posterior, images or self.images)

    def __call__(self, rows: Posterior) -> Iterator[Tensor]:
        """Yield log-weights of these data, each ``(k, rows)`` in nats, of K draws in all."""
        for some in self._sizes(len(rows)):
            log_w = self._weigh(rows, some)
            if self._graph and log_w.isnan().any():
                raise ValueError("Expected log-weights to be numbers; some are NaN. Look at the decoder's parameters.")
            yield log_w
            self._bar.update(log_w.numel())

    def _rehearse(self) -> None:
        """Have Pyro look at every datum, and record a graph of some and compare it on others."""
        for rows in self.batches(self._draws):
            with torch.no_grad():
                rows.log_weights(1)
        parts = self.batches()
        for rows in (parts[0], parts[0], [rows for rows in parts if len(rows) == len(parts[0])][-1]):
            self._weigh(rows, self._sizes(len(rows))[0])

    @torch.no_grad()
    def _weigh(self, rows: Posterior, some: int) -> Tensor:
        with fast_products("auto"):
            if self._graph is None:
                return rows.log_weights(some)
            return self._graph((rows.data, some), {}).tensors[0]

    def _outputs(self, data: tuple[Tensor, ...], some: int) -> Outputs:
        return Outputs([replace(self._posterior, data=data).log_weights(some)], None)

    def _sizes(self, rows: int) -> list[int]:
        """Sizes of chunks that add up to all draws, whether or not one divides them."""
        size = max(1, self._draws // rows)
        whole, rest = divmod(self.num_particles, size)
        return [size] * whole + [rest] * (rest > 0)


@torch.no_grad()
def room(posterior: Posterior, most: int = MOST) -> tuple[int, int]:
    """Return how many data can be weighed at once in a gibibyte, and how many draws of all of them.

    Measured on the first few, for a program of any kind.

    Arguments:
        posterior: A program at some data.
        most: The largest answers; more at once would be no faster.

    Example:
        >>> from pyro_vae import VAE
        >>> from pyro_vae.program import posterior_of
        >>> room(posterior_of(VAE.build((64,), latent=2), torch.rand(5, 64)))
        (2000, 2000)
    """
    pair, device = posterior[:2], posterior.data[0].device  # one alone may be a case of its own
    if posterior.structure.whole:
        draws = how_many_fit(lambda n: posterior.log_weights(n), max(2, most // len(posterior)), device)
        return len(posterior), draws * len(posterior)
    images = 2 * how_many_fit(lambda n: posterior[: 2 * n].log_weights(1), most // 2, device)
    draws = how_many_fit(lambda n: pair.log_weights(n), most // len(pair), device)
    return images, draws * len(pair)


def batches(posterior: Posterior, size: int) -> list[Posterior]:
    """Return the data in parts of so many rows; in one, where the program runs on all of them only."""
    size = len(posterior) if posterior.structure.whole else size
    return [posterior[slice(i, i + size)] for i in range(0, len(posterior), size)]
