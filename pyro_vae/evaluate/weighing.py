"""Draws weighed a chunk at a time, in bounded memory; by a graph, where there are many."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.compiled import Outputs, Traced, fast_products, how_many_fit
from pyro_vae.missing import log_prob
from pyro_vae.seeds import at_test, forked
from pyro_vae.vae import VAE

__all__ = ["Weighing", "room"]

TOGETHER = 32  # draws of an image at least, where so many fit
MOST = 2_000  # images decoded at once: more do not fit in a CPU's caches, and are slower
MANY = 100  # chunks, in less time than which no graph is recorded


class Weighing:
    """The log-weights of draws from the guide, for some images after others.

    Where there are many chunks they are run as a graph, compiled where that pays, as the steps of ``fit`` are: the same
    draws, and the same numbers to rounding. Each image is first run once by itself, with all of Pyro's validation.

    Arguments:
        vae: Any VAE, in evaluation mode.
        x: Shape ``(B, *event)``, NaN where it is missing: all images that are to come.
        num_particles: K, draws per datum.
        at_once: Images decoded at once, if not as many as fit.
        progress: Whether to show a progress bar.

    Attributes:
        images: How many of them to weigh together.

    Raises:
        ValueError: If there are no particles or no images, ``at_once`` is not positive, or a log-weight is NaN.
    """

    def __init__(self, vae: VAE, x: Tensor, num_particles: int, at_once: int | None, progress: bool) -> None:
        for name, number in {"num_particles": num_particles, "at_once": at_once}.items():
            if number is not None and number < 1:
                raise ValueError(f"Expected {name} of at least 1; got {number}.")
        images, self._draws = room(vae, x) if at_once is None else (at_once, at_once)
        # Few images and many draws of each, since an image is encoded anew for every chunk of its draws.
        self.images = min(images, max(1, self._draws // min(num_particles, TOGETHER)))
        self.vae, self.num_particles = vae, num_particles
        self._missing = bool(x.isnan().any())
        calls = sum(len(self._sizes(rows)) for rows in x.split(self.images))
        self._graph = Traced(self._outputs, "auto", calls, quiet=True) if calls >= MANY else None
        if self._graph:
            with forked(x.device):
                self._rehearse(x)
        self._bar = tqdm(
            total=len(x) * num_particles,
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

    def __call__(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield log-weights of these images, each ``(k, rows)`` in nats, of K draws in all."""
        for some in self._sizes(rows):
            found = self._weigh(rows, some)
            if self._graph and found.isnan().any():
                raise ValueError("Expected log-weights to be numbers; some are NaN. Look at the decoder's parameters.")
            yield found
            self._bar.update(found.numel())

    def _rehearse(self, x: Tensor) -> None:
        """Have Pyro look at every image, and record a graph of some and compare it on others."""
        for rows in x.split(self._draws):
            log_weights(self.vae, rows, 1, self._missing)
        parts = x.split(self.images)
        for rows in (parts[0], parts[0], [rows for rows in parts if len(rows) == len(parts[0])][-1]):
            self._weigh(rows, self._sizes(rows)[0])

    def _weigh(self, rows: Tensor, some: int) -> Tensor:
        with fast_products("auto"):
            if self._graph is None:
                return log_weights(self.vae, rows, some, self._missing)
            return self._graph((rows, some), {}).tensors[0]

    def _outputs(self, rows: Tensor, some: int) -> Outputs:
        return Outputs([log_weights(self.vae, rows, some, self._missing)], None)

    def _sizes(self, rows: Tensor) -> list[int]:
        """Sizes of chunks that add up to all draws, whether or not one divides them."""
        size = max(1, self._draws // len(rows))
        whole, rest = divmod(self.num_particles, size)
        return [size] * whole + [rest] * (rest > 0)


@torch.no_grad()
def log_weights(vae: VAE, x: Tensor, num_particles: int, missing: bool) -> Tensor:
    """Return them of so many draws of each image, all at once."""
    q = vae.encoder(x)
    z = q.sample((num_particles,))
    return vae.prior().log_prob(z) + log_prob(vae.decoder(z), x, missing) - q.log_prob(z)


def room(vae: VAE, x: Tensor, most: int = MOST) -> tuple[int, int]:
    """Return how many images can be weighed at once in a gibibyte, and how many draws of all of them.

    Measured on the first few, for a likelihood, a prior and a guide of any kind.

    Arguments:
        vae: Any VAE.
        x: Shape ``(B, *event)``.
        most: The largest answers; more at once would be no faster.

    Example:
        >>> from pyro_vae import VAE
        >>> room(VAE.build((64,), latent=2), torch.rand(5, 64))
        (2000, 2000)
    """
    if len(x) == 0:
        raise ValueError("Expected at least 1 image; got none.")
    pair = x[:2]  # one image alone may be a case of its own, as for batch normalisation
    missing = bool(x.isnan().any())
    with at_test(vae, x.device):
        images = 2 * how_many_fit(lambda n: log_weights(vae, x[: 2 * n], 1, missing), most // 2, x.device)
        draws = how_many_fit(lambda n: log_weights(vae, pair, n, missing), most // len(pair), x.device)
    return images, draws * len(pair)
