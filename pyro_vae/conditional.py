r"""The one abstraction: a module whose ``forward`` returns a distribution.

A prior is ``prior()``, a decoder ``decoder(z)``, an encoder ``encoder(x)``. The last two are a :class:`Conditional`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

__all__ = ["Conditional", "Family", "mean", "module", "stddev"]


class Family(nn.Module, ABC):
    r"""Turns parameters into a distribution over an event.

    To write a likelihood or a guide family, subclass this and give :attr:`params`, how many parameters each element of
    the event has, and :meth:`law`, from that many tensors of shape ``(*, *event)`` to a distribution. The base class
    splits the network's output into the parameters and declares the event: leave out ``to_event``.

        >>> import pyro.distributions as dist
        >>> class Poisson(Family):
        ...     params = 1
        ...     def law(self, log_rate):
        ...         return dist.Poisson(log_rate.exp())
        >>> law = Poisson((1, 8, 8))(torch.zeros(32, 1, 1, 8, 8))
        >>> law.batch_shape, law.event_shape
        (torch.Size([32]), torch.Size([1, 8, 8]))

    A family may also have :attr:`link`, the link function of generalised linear models, from the mean of the event to
    the first parameter (McCullagh and Nelder, Generalized Linear Models, 1989): with it training starts where the
    decoder's mean is the data's. And :attr:`features`, from the event and its mean to what an encoder sees of it, where
    numbers have no bound. ``event`` is the shape of the event, or its size where it is a vector.

    Raises:
        ValueError: If a dimension of the event is not positive.
    """

    params: int
    link: Callable[[Tensor], Tensor] | None = None
    features: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(self, event: int | Sequence[int]) -> None:
        super().__init__()
        self.event = (int(event),) if isinstance(event, int | np.integer) else tuple(event)
        if not self.event or any(size < 1 for size in self.event):
            raise ValueError(f"Expected an event of at least one element; got shape {self.event}.")

    def forward(self, phi: Tensor) -> TorchDistribution:
        """Return the distribution with parameters ``phi``, of shape ``(*, params, *event)``; refuse other shapes."""
        name, shape = type(self).__name__, (self.params, *self.event)
        if phi.shape[-len(shape) :] != shape:
            raise ValueError(
                f"Expected a network whose output ends in {shape} for {name}, (params, *event); got {tuple(phi.shape)}."
            )
        law = self.law(*phi.unbind(-len(shape)))
        if not isinstance(law, TorchDistributionMixin):
            got = f"{type(law).__module__}.{type(law).__name__}"
            raise ValueError(f"Expected {name}.law() to return a distribution of pyro.distributions; got {got}.")
        over = tuple(law.shape())[-max(len(self.event), law.event_dim) :]
        if over != self.event:
            raise ValueError(
                f"Expected {name}.law() to return a distribution over {self.event}; got one over {over}. "
                "Give it parameters of that shape, and leave to_event to the base class."
            )
        return law.to_event(len(self.event) - law.event_dim)

    @abstractmethod
    def law(self, *parameters: Tensor) -> TorchDistribution:
        """Return the distribution of these parameters, each of shape ``(*, *event)``."""


class Conditional(nn.Module):
    r"""A conditional distribution :math:`p(a \mid b)`: a network proposes, a family disposes.

    The network maps ``(*, *b)`` to ``(*, params, *event)``, and the family that to a distribution over the event. A
    network of several inputs, as :class:`pyro_vae.networks.Joint`, gives :math:`p(a \mid b, c, \dots)`. In place of
    missing elements of b, NaN, the network sees those of ``fill``, of the shape of b, if it is given; in place of b it
    sees ``features``, a function of b and of ``fill``, if there are any.

    Raises:
        ValueError: If there are features and no ``fill``.
    """

    fill: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        fill: Tensor | None = None,
        features: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.family = family
        self.features = features
        self.looks = True
        if features and fill is None:
            raise ValueError("Expected fill, a mean of b, for features of b; got none. Use zeros where it is unknown.")
        self.register_buffer("fill", fill)

    def forward(self, b: Tensor, *others: Tensor) -> TorchDistribution:
        """Return the distribution given ``b``, and what else the network takes."""
        return self.family(self.propose(b, *others))

    def propose(self, b: Tensor, *others: Tensor) -> Tensor:
        """Return its parameters, of shape ``(*, params, *event)``."""
        if self.fill is not None:
            b = torch.where(b.isnan(), self.fill, b) if self.looks else b
            b = self.features(b, self.fill) if self.features else b
        return self.network(b, *others)

    @torch.no_grad()
    def start_at(self, mean: Tensor, off: Tensor | None = None) -> None:
        """Start where the distribution's mean is ``mean``, if there is a link and a bias of the output as yet zero.

        A family that has a scale starts it where ``off``, rows of x less that mean, are likeliest.
        """
        bias, shape = getattr(self.network, "bias", None), (self.family.params, *self.family.event)
        bias = bias if bias is not None and bias.shape == shape and not bias.any() else None
        if self.family.link and bias is not None:
            bias[0] = self.family.link(mean.to(bias))
        if off is not None and (start_scale := getattr(self.family, "start_scale", None)):
            start_scale(off, bias)

    @torch.no_grad()
    def fill_with(self, mean: Tensor) -> None:
        """Put ``mean``, of the shape of b, in place of missing elements, if these are zeros as yet."""
        if self.fill is not None and not self.fill.any():
            self.fill.copy_(mean)

    @contextmanager
    def complete(self) -> Iterator[None]:
        """Look for no missing elements while the context lasts: to look costs some percent of a step."""
        looks, self.looks = self.looks, False
        try:
            yield
        finally:
            self.looks = looks


def mean(law: TorchDistribution, draws: int = 100) -> Tensor:
    """Return the mean of a distribution, ``(*batch, *event)``; the average of draws where it has no closed form."""
    try:
        return law.mean
    except NotImplementedError:
        return law.sample(torch.Size([draws])).mean(0)


def stddev(law: TorchDistribution, draws: int = 1000) -> Tensor:
    """Return the standard deviation of elements, ``(*batch, *event)``; that of draws where it has no closed form."""
    try:
        return law.stddev
    except NotImplementedError:
        return law.sample(torch.Size([draws])).std(0)


def module(name: str, nn_module: nn.Module) -> None:
    """Do as ``pyro.module``, but where gradients are on refuse a second module under one name.

    Pyro would go on to step the first module's tensors, in silence. A parameter that is not contiguous is refused too.
    """
    pyro.module(name, nn_module)
    if not torch.is_grad_enabled():
        return
    held = dict(pyro.get_param_store().named_parameters())
    for key, value in nn_module.named_parameters():
        if held.get(f"{name}$$${key}", value) is not value:
            if not value.is_contiguous():
                raise ValueError(
                    f"Expected contiguous parameters, since Pyro would train a copy of others; {key!r} is not. "
                    "Make it so: nn.Parameter(value.contiguous())."
                )
            raise ValueError(
                f"Expected Pyro's param store to hold this module under {name!r}; it holds another one, and this "
                "one would never train. Call pyro.clear_param_store() before you go on to a new module."
            )
