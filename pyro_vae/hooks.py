"""What training asks of a VAE beside its two programs. Other programs may have methods of these names, or none."""

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.conditional import Conditional
from pyro_vae.data import Dataset
from pyro_vae.data.supports import ADVICE, kind_of, of_element
from pyro_vae.missing import observed

__all__ = ["Hooks"]

AT_ONCE = 4096
SOME = 2**20  # numbers that a scale is started at


class Hooks(nn.Module):
    """Methods of :class:`pyro_vae.VAE` that ``fit`` and the posterior call by name, where a program has them."""

    prior: nn.Module
    decoder: nn.Module
    encoder: nn.Module
    model: Callable[..., Any]

    @property
    def reference(self) -> Tensor:
        """A tensor of the VAE's own: ``x.to(vae.reference)`` has its dtype and device."""
        return next(chain(self.parameters(), self.buffers()), torch.zeros(()))

    @torch.no_grad()
    def start(self, dataset: Dataset) -> None:
        """Start untrained parts where the data are: the decoder's mean, what stands for missing x, the prior."""
        mean = dataset.mean
        if isinstance(self.decoder, Conditional):
            train, some = dataset.train, max(1, SOME // mean.numel())
            rows = torch.arange(0, len(train), max(1, len(train) // some))
            # Scales start where they suit x in [0, 1].
            free = kind_of(dataset.support) in ("real", "counts")
            self.decoder.start_at(mean, train[rows] - mean if free else None)
        if isinstance(self.encoder, Conditional):
            self.encoder.fill_with(mean)
        if start_at := getattr(self.prior, "start_at", None):
            start_at(dataset.train.to(self.reference.device))

    def complete(self) -> AbstractContextManager:
        """Return a context in which no element of x is missing, so that none is looked for."""
        return self.encoder.complete() if isinstance(self.encoder, Conditional) else nullcontext()

    def check_dataset(self, dataset: Dataset, strict: bool = False) -> None:
        """Refuse x of another shape or outside the likelihood's support; on disk look at the first 4,096.

        x of two values are in many a support: they are refused too where the likelihood is not of two, a density of
        real numbers only if ``strict``, since one of fixed scale may be meant, as for squared error.
        """
        if not self._of_x_alone:
            return
        with torch.no_grad():
            z = self.prior().sample((1,))
            law = self.decoder(z)
            if law.event_shape != dataset.event_shape:
                raise ValueError(
                    f"Expected data of shape (N, {', '.join(map(str, law.event_shape))}), as the VAE was built for; "
                    f"got images of shape {dataset.event_shape}."
                )
            family = getattr(self.decoder, "family", None) or getattr(law, "base_dist", law)
            name, support = type(family).__name__, of_element(law.support)
            ours = ADVICE.get("dequantised" if dataset.config["dequantize"] else kind_of(dataset.support), {})
            theirs = kind_of(support)
            advice = ours.get(theirs, "Use a likelihood whose support has them, as Gaussian has real numbers.")
            advice = advice.format(levels=getattr(dataset.support, "number", 2))
            if ours is ADVICE["binary"] and theirs in ours and (strict or theirs != "real"):  # 0 and 1 are in many
                raise ValueError(f"Expected a likelihood of two values for {dataset}; got {name}. {advice}")
            for split in dataset.splits.values():
                for start in range(0, AT_ONCE if split.on_disk else len(split), AT_ONCE):
                    x = split[slice(start, start + AT_ONCE)].to(z)
                    if split.mask is not None:
                        _, x = observed(law, x)  # which has no NaN, and the same extremes
                    if not law.support.check(x).all():
                        low, high = x.min().item(), x.max().item()
                        raise ValueError(
                            f"Expected x in the support of {name}, {support}; got values in [{low:g}, {high:g}] "
                            f"({dataset}). {advice}"
                        )

    def check_data(self, x: Tensor, *covariates: Tensor) -> None:
        """Refuse x that is not of shape ``(B, *event)``."""
        if not self._of_x_alone:
            return
        with torch.no_grad():
            event = self.decoder(torch.zeros(1, *self.prior().event_shape).to(self.reference)).event_shape
        if x.shape[1:] != event or x.dim() != len(event) + 1 or not len(x):
            raise ValueError(
                f"Expected x of shape (B, {', '.join(map(str, event))}) with B of at least 1; got {tuple(x.shape)}. "
                "Of one datum, x.unsqueeze(0) is such."
            )

    @torch.no_grad()
    def smallest_scale(self, x: Tensor, *covariates: Tensor) -> float:
        """Return the least scale of p(x | z) at a draw of z for each x; nan where it is no density or has none."""
        law = self.decoder(self.encoder(x).sample()) if self._of_x_alone else None
        if law is None or law.support.is_discrete:
            return math.nan
        while hasattr(law, "base_dist"):
            law = law.base_dist
        scale = getattr(law, "scale", None)
        return scale.min().item() if isinstance(scale, Tensor) else math.nan

    @property
    def _of_x_alone(self) -> bool:
        """Whether the model is made of the parts alone: a model of more arguments says more than they do."""
        return len(inspect.signature(self.model).parameters) == 1
