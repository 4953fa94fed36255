"""What training and reports ask of a program beside its two Pyro programs. Others may have methods of these names."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import wraps
from itertools import chain
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import Conditional, mean
from pyro_vae.data import Dataset
from pyro_vae.data.supports import ADVICE, kind_of, of_element
from pyro_vae.missing import observed
from pyro_vae.program import arguments
from pyro_vae.seeds import undisturbed, unmoved

AT_ONCE = 4096
SOME = 2**20  # numbers that a scale is started at
Draw = Callable[[TorchDistribution], Tensor]  # from a distribution of a latent site to its value


def quietly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a program's method without gradients, and else as in a script of its own, whatever is around."""

    @wraps(method)
    def run(program: Any, *args: Any, **options: Any) -> Any:
        with undisturbed(program, program.reference.device), torch.no_grad():
            return method(program, *args, **options)

    return run


class Hooks(nn.Module, ABC):
    """Methods of the programs here, which ``fit`` and the posterior call by name where a program has them.

    To write a program with them, subclass this, and give :meth:`at_prior` and :meth:`at_guide`. ``inputs`` is the
    number of arguments of the model: a subclass whose own model takes another number says more than its parts do.
    """

    decoder: nn.Module
    model: Callable[..., Any]
    inputs = 1

    @abstractmethod
    def at_prior(self, num: int) -> TorchDistribution:
        """Return p(x | z) at ``num`` draws of all that is latent from the prior."""

    @abstractmethod
    def at_guide(self, draw: Draw, x: Tensor, *given: Tensor) -> TorchDistribution:
        """Return p(x | z) with ``draw`` of the guide's distribution for each latent site."""

    @quietly
    def generate(self, num: int = 64) -> Tensor:
        """Return the mean image E[x | z] for ``num`` draws of z from the prior, of shape ``(num, *event)``."""
        return mean(self.at_prior(num))

    @quietly
    def reconstruct(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return the mean image at the guide's mean for each x, of x's shape."""
        return mean(self.at_guide(mean, *self.checked(x, *given)))

    def checked(self, *data: Any) -> tuple[Tensor, ...]:
        """Return data as the model's arguments, as a posterior takes them; refuse what :meth:`check_data` refuses."""
        rows = arguments(self, data) if self._is_of_its_parts else data
        self.check_data(*rows)
        return rows

    @property
    def reference(self) -> Tensor:
        """A tensor of the program's own: ``x.to(vae.reference)`` has its dtype and device."""
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
        for part in self._that_fill():
            part.fill_with(mean)
        if start_at := getattr(getattr(self, "prior", None), "start_at", None):
            start_at(self.seen_by_prior(dataset.train.to(self.reference.device)))

    def seen_by_prior(self, x: Any) -> Any:
        """Return what a prior with pseudo-inputs starts at, of training images, ``(N, *event)``."""
        return x

    def complete(self) -> AbstractContextManager:
        """Return a context in which no element of x is missing, so that none is looked for."""
        contexts = ExitStack()
        for part in self._that_fill():
            contexts.enter_context(part.complete())
        return contexts

    def _that_fill(self) -> Iterator[Conditional]:
        return (part for part in self.modules() if isinstance(part, Conditional) and part.fill is not None)

    def check_dataset(self, dataset: Dataset, strict: bool = False) -> None:
        """Refuse x of another shape or outside the likelihood's support; on disk look at the first 4,096.

        x of two values are in many a support: they are refused too where the likelihood is not of two, a density of
        real numbers only if ``strict``, since one of fixed scale may be meant, as for squared error.
        """
        if not self._is_of_its_parts:
            return
        with torch.no_grad():
            law: Any = self.at_prior(1)
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
            names = [*inspect.signature(self.model).parameters][1:]
            for split in dataset.splits.values():
                if given := [split.columns[name] for name in names if name in split.columns]:
                    self.check_given(*given)
                for start in range(0, AT_ONCE if split.on_disk else len(split), AT_ONCE):
                    x = split[slice(start, start + AT_ONCE)].to(self.reference)
                    if split.mask is not None:
                        _, x = observed(law, x)  # which has no NaN, and the same extremes
                    if not law.support.check(x).all():
                        low, high = x.min().item(), x.max().item()
                        raise ValueError(
                            f"Expected x in the support of {name}, {support}; got values in [{low:g}, {high:g}] "
                            f"({dataset}). {advice}"
                        )

    def check_data(self, x: Tensor, *given: Tensor) -> None:
        """Refuse x that is not of shape ``(B, *event)``, and what :meth:`check_given` refuses."""
        if not self._is_of_its_parts:
            return
        with torch.no_grad(), unmoved(self.reference.device):
            event = self.at_prior(1).event_shape
        if x.shape[1:] != event or x.dim() != len(event) + 1 or not len(x):
            raise ValueError(
                f"Expected x of shape (B, {', '.join(map(str, event))}) with B of at least 1; got {tuple(x.shape)}. "
                "Of one datum, x.unsqueeze(0) is such."
            )
        self.check_given(*given)

    def check_given(self, *given: Tensor) -> None:
        """Refuse what the model cannot be given beside x."""

    @torch.no_grad()
    def pictures(self, x: Tensor, *given: Tensor) -> dict[str, tuple[Tensor, str]]:
        """Return grids of images, ``(rows, columns, *event)``, and their titles, by the names of their files."""
        rows = torch.stack([x, self.reconstruct(x, *given)])
        return {
            "reconstructions": (rows, "Originals above, reconstructions below"),
            "samples": (self.generate(100).unflatten(0, (10, 10)), "Samples from the prior"),
        }

    def unlabelled(self, *data: Tensor) -> tuple[Tensor, ...]:
        """Return the data without labels that the program can infer: those that reports ask for log p(x) of."""
        return data

    def measures(self, *data: Tensor) -> dict[str, Tensor]:
        """Return numbers of each row by name, beside the ELBO; NaN where there is none."""
        return {}

    @torch.no_grad()
    def smallest_scale(self, x: Tensor, *given: Tensor) -> float:
        """Return the least scale of p(x | z) at a draw of z for each x; nan where it is no density or has none."""
        law: Any = self.at_guide(lambda law: law.sample(), x, *given) if self._is_of_its_parts else None
        if law is None or law.support.is_discrete:
            return math.nan
        while hasattr(law, "base_dist"):
            law = law.base_dist
        scale = getattr(law, "scale", None)
        return scale.min().item() if isinstance(scale, Tensor) else math.nan

    @property
    def _is_of_its_parts(self) -> bool:
        return len(inspect.signature(self.model).parameters) == self.inputs
