"""Optional methods of a program: training and reports call each method that a program has.

Any program may define methods of these names; :class:`Hooks` defines them for the programs of this package.
"""

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
from pyro_vae.programs.building import build_prior
from pyro_vae.seeds import preserve_state, reset_modes

AT_ONCE = 4096  # rows
SOME = 2**20  # elements of x from which a scale is initialised
Draw = Callable[[TorchDistribution], Tensor]  # from a distribution of a latent site to its value


def quietly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method: it runs without gradients and autocast, and the default dtype is the program's."""

    @wraps(method)
    def run(program: Any, *args: Any, **options: Any) -> Any:
        with reset_modes(program, program.reference.device), torch.no_grad():
            return method(program, *args, **options)

    return run


class Hooks(nn.Module, ABC):
    """The base class of this package's programs, with the methods that ``fit`` and a posterior call by name.

    A subclass defines :meth:`at_prior` and :meth:`at_guide`. ``inputs`` is the number of arguments of the model. If a
    subclass overrides the model with another number of arguments, the checks of the data are skipped.
    """

    decoder: nn.Module
    model: Callable[..., Any]
    prior: nn.Module
    encoder: Any
    inputs = 1

    @abstractmethod
    def at_prior(self, num: int) -> TorchDistribution:
        """Return p(x | z) at ``num`` draws of all latent sites from the prior."""

    @abstractmethod
    def at_guide(self, draw: Draw, x: Tensor, *given: Tensor) -> TorchDistribution:
        """Return p(x | z) at z = ``draw(q)``, where q is the guide's distribution of each latent site."""

    @quietly
    def generate(self, num: int = 64) -> Tensor:
        """Return the mean image E[x | z] for ``num`` draws of z from the prior, of shape ``(num, *event)``."""
        return mean(self.at_prior(num))

    @quietly
    def reconstruct(self, x: Tensor, *given: Tensor) -> Tensor:
        """Return the mean image E[x | z] for each x, at the guide's mean of z; the result has the shape of x."""
        return mean(self.at_guide(mean, *self.checked(x, *given)))

    def checked(self, *data: Any) -> tuple[Tensor, ...]:
        """Return the data as the model's arguments, after the checks of :meth:`check_data`."""
        data = arguments(self, data) if self._fits_parts else data
        self.check_data(*data)
        return data

    @property
    def reference(self) -> Tensor:
        """A tensor of the program; ``x.to(vae.reference)`` has the program's dtype and device."""
        return next(chain(self.parameters(), self.buffers()), torch.zeros(()))

    @torch.no_grad()
    def start(self, dataset: Dataset) -> None:
        """Set untrained parts from the data: the decoder's mean, the fill value of missing elements, the prior."""
        mean = dataset.mean
        if isinstance(self.decoder, Conditional):
            train, some = dataset.train, max(1, SOME // mean.numel())
            rows = torch.arange(0, len(train), max(1, len(train) // some))
            # An untrained scale already suits x in [0, 1].
            unbounded = kind_of(dataset.support) in ("real", "counts")
            self.decoder.start_at(mean, train[rows] - mean if unbounded else None)
        for part in self._with_fill():
            part.fill_with(mean)
        self.start_prior(dataset)

    @torch.no_grad()
    def start_prior(self, dataset: Dataset) -> None:
        """Start an untrained prior at training data, if the prior has a method ``start_at``."""
        if start_at := getattr(getattr(self, "prior", None), "start_at", None):
            start_at(self.pseudo_inputs(dataset.train.to(self.reference.device)))

    def replace_prior(self, prior: Callable[..., nn.Module]) -> None:
        """Replace the prior by a new one from a class, as in :meth:`pyro_vae.VAE.build`; keep the other parts."""
        self.prior = self.new_prior(prior).to(self.reference)
        for record in (getattr(self, "parts", None), getattr(self, "made_with", None)):
            if record:
                record["prior"] = prior

    def new_prior(self, prior: Callable[..., nn.Module]) -> nn.Module:
        """Build a prior from a class for this program's latent site."""
        if not isinstance(self.top_encoder, Conditional):
            raise ValueError(f"Expected a program from build, to build its prior; got {type(self).__name__}(...).")
        return build_prior(prior, self.top_encoder)

    @property
    def top_encoder(self) -> Any:
        """The encoder of the latent site with the prior."""
        return self.encoder

    def pseudo_inputs(self, x: Any) -> Any:
        """Return the initial pseudo-inputs of a prior from training images ``(N, *event)``."""
        return x

    def complete(self) -> AbstractContextManager:
        """Return a context for complete data: it skips the search for missing elements."""
        contexts = ExitStack()
        for part in self._with_fill():
            contexts.enter_context(part.complete())
        return contexts

    def _with_fill(self) -> Iterator[Conditional]:
        return (part for part in self.modules() if isinstance(part, Conditional) and part.fill is not None)

    def check_dataset(self, dataset: Dataset, strict: bool = False) -> None:
        """Refuse x of another shape or outside the likelihood's support; check only the first 4,096 stored rows.

        Two kinds of likelihood accept x with two values: likelihoods of two values and, unless ``strict``, densities of
        real numbers. A density with a fixed scale may stand for a squared error.
        """
        if not self._fits_parts:
            return
        with torch.no_grad():
            distribution: Any = self.at_prior(1)
            if distribution.event_shape != dataset.event_shape:
                raise ValueError(
                    f"Expected data of shape (N, {', '.join(map(str, distribution.event_shape))}), the event_shape of "
                    f"the VAE; got images of shape {dataset.event_shape}."
                )
            family = getattr(self.decoder, "family", None) or getattr(distribution, "base_dist", distribution)
            name, support = type(family).__name__, of_element(distribution.support)
            of_data = ADVICE.get("dequantised" if dataset.config["dequantize"] else kind_of(dataset.support), {})
            kind = kind_of(support)
            advice = of_data.get(kind, "Use a likelihood whose support contains x; Gaussian takes all real numbers.")
            advice = advice.format(levels=getattr(dataset.support, "number", 2))
            if of_data is ADVICE["binary"] and kind in of_data and (strict or kind != "real"):
                raise ValueError(f"Expected a likelihood of binary data for {dataset}; got {name}. {advice}")
            names = [*inspect.signature(self.model).parameters][1:]
            for split in dataset.splits.values():
                if columns := [split.columns[name] for name in names if name in split.columns]:
                    self.check_given(*columns)
                step = max(1, SOME // math.prod(dataset.event_shape)) if split.stored else AT_ONCE
                for start in range(0, min(AT_ONCE, len(split)) if split.stored else len(split), step):
                    x = split[slice(start, start + step)].to(self.reference)
                    if split.mask is not None:
                        _, x = observed(distribution, x)  # without NaN, with the same extremes
                    if not distribution.support.check(x).all():
                        low, high = x.min().item(), x.max().item()
                        raise ValueError(
                            f"Expected x in the support of {name}, {support}; got values in [{low:g}, {high:g}] "
                            f"({dataset}). {advice}"
                        )

    def check_data(self, x: Tensor, *given: Tensor) -> None:
        """Refuse x of another shape than ``(B, *event)``, and arguments that :meth:`check_given` refuses."""
        if not self._fits_parts:
            return
        with torch.no_grad(), preserve_state(self.reference.device):
            event = self.at_prior(1).event_shape
        if x.shape[1:] != event or x.dim() != len(event) + 1 or not len(x):
            raise ValueError(
                f"Expected x of shape (B, {', '.join(map(str, event))}) with B of at least 1; got {tuple(x.shape)}. "
                "For one datum, pass x.unsqueeze(0)."
            )
        self.check_given(*given)

    def check_given(self, *given: Tensor) -> None:
        """Refuse unsuitable arguments of the model other than x."""

    @torch.no_grad()
    def pictures(self, x: Tensor, *given: Tensor) -> dict[str, tuple[Tensor, str]]:
        """Return a dictionary from file names to grids of images, ``(rows, columns, *event)``, with titles."""
        rows = torch.stack([x, self.reconstruct(x, *given)])
        return {
            "reconstructions": (rows, "Originals above, reconstructions below"),
            "samples": (self.generate(100).unflatten(0, (10, 10)), "Samples from the prior"),
        }

    def unlabelled(self, *data: Tensor) -> tuple[Tensor, ...]:
        """Return the data that reports estimate log p of; labels that the program infers become unknown."""
        return data

    def measures(self, *data: Tensor) -> dict[str, Tensor]:
        """Return a dictionary of further metrics: one number for each row, NaN where a metric is undefined."""
        return {}

    @torch.no_grad()
    def smallest_scale(self, x: Tensor, *given: Tensor) -> float:
        """Return the smallest scale of p(x | z), at one draw of z for each x; nan for a mass or without a scale."""
        if not self._fits_parts:
            return math.nan
        distribution: Any = self.at_guide(lambda q: q.sample(), x, *given)
        if distribution.support.is_discrete:
            return math.nan
        while hasattr(distribution, "base_dist"):
            distribution = distribution.base_dist
        scale = getattr(distribution, "scale", None)
        return scale.min().item() if isinstance(scale, Tensor) else math.nan

    @property
    def _fits_parts(self) -> bool:
        """Whether the model has as many arguments as ``inputs``."""
        return len(inspect.signature(self.model).parameters) == self.inputs
