r"""Conditional distributions: a network gives the parameters, a family turns them into a distribution.

A decoder, p(x | z), and an encoder, q(z | x), are each a :class:`Conditional`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.deprecated import warn

__all__ = ["Conditional", "Family", "mean", "module", "stddev"]


class Family(nn.Module, ABC):
    r"""The base class of likelihoods and guide families: a family maps parameters to a distribution over an event.

    A subclass defines :attr:`params`, the number of parameters of each element of the event, and :meth:`distribution`.
    This method maps ``params`` tensors of shape ``(*, *event)`` to a distribution. The base class splits the network's
    output into the parameters, and calls ``to_event``: the subclass must not call ``to_event``.

        >>> import pyro.distributions as dist
        >>> class Poisson(Family):
        ...     params = 1
        ...     def distribution(self, log_rate):
        ...         return dist.Poisson(log_rate.exp())
        >>> p = Poisson((1, 8, 8))(torch.zeros(32, 1, 1, 8, 8))
        >>> p.batch_shape, p.event_shape
        (torch.Size([32]), torch.Size([1, 8, 8]))

    Two attributes are optional. :attr:`link` is the link function of a generalised linear model (McCullagh and Nelder,
    Generalized Linear Models, 1989), from the mean of the event to the first parameter: with a link, training starts
    with a decoder at the mean of the data. :attr:`features` maps the event and the event's mean to an encoder's
    input, for unbounded values. ``event`` is the shape of the event, or the size of a vector.

    Raises:
        ValueError: If a dimension of the event is not positive.
    """

    #: The number of parameters for each element of the event.
    params: int
    #: Optional, a link function from the mean of the event to the first parameter.
    link: Callable[[Tensor], Tensor] | None = None
    #: Optional, a function from x and its mean to the input of an encoder.
    features: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(self, event: int | Sequence[int]) -> None:
        super().__init__()
        self.event = (int(event),) if isinstance(event, int | np.integer) else tuple(event)
        if not self.event or any(size < 1 for size in self.event):
            raise ValueError(f"Expected an event of at least one element; got shape {self.event}.")

    def forward(self, phi: Tensor) -> TorchDistribution:
        """Return the distribution with parameters ``phi``, of shape ``(*, params, *event)``."""
        name, shape = type(self).__name__, (self.params, *self.event)
        if phi.shape[-len(shape) :] != shape:
            raise ValueError(
                f"Expected a network whose output ends in {shape} for {name}, (params, *event); got {tuple(phi.shape)}."
            )
        distribution = self.distribution(*phi.unbind(-len(shape)))
        if not isinstance(distribution, TorchDistributionMixin):
            got = f"{type(distribution).__module__}.{type(distribution).__name__}"
            raise ValueError(
                f"Expected {name}.distribution() to return a distribution of pyro.distributions; got {got}."
            )
        shape = tuple(distribution.shape())[-max(len(self.event), distribution.event_dim) :]
        if shape != self.event:
            raise ValueError(
                f"Expected {name}.distribution() to return a distribution over {self.event}; got one over {shape}. "
                "Give its parameters that shape, and leave out to_event."
            )
        return distribution.to_event(len(self.event) - distribution.event_dim)

    @abstractmethod
    def distribution(self, *parameters: Tensor) -> TorchDistribution:
        """Return the distribution for :attr:`params` parameters, each of shape ``(*, *event)``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Warn if a subclass defines, or a caller uses, the deprecated name of ``distribution``; support the name."""
        super().__init_subclass__(**kwargs)
        methods = vars(cls)
        if "law" in methods and "distribution" not in methods:
            warn(f"{cls.__qualname__}.law", "Family.distribution", stacklevel=4)
            cls.distribution = methods["law"]  # type: ignore[method-assign]
        elif "distribution" in methods and "law" not in methods:
            distribution = cls.distribution

            def law(self: Family, *parameters: Tensor) -> TorchDistribution:
                warn(f"{cls.__qualname__}.law", "Family.distribution")
                return distribution(self, *parameters)

            cls.law = law  # type: ignore[attr-defined]


class Conditional(nn.Module):
    r"""A conditional distribution :math:`p(a \mid b)`: a network followed by a family.

    The network maps ``(*, *b)`` to ``(*, params, *event)``; the family maps this output to a distribution over the
    event. A network of several inputs, such as :class:`pyro_vae.networks.Joint`, gives :math:`p(a \mid b, c, \dots)`.
    ``fill`` is a tensor of the shape of b; the elements of ``fill`` replace missing elements of b (NaN). ``features``
    is a function of b and ``fill``; the network reads the features in place of b.

    Raises:
        ValueError: If ``features`` come without ``fill``.
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
        self.has_missing = True
        if features and fill is None:
            raise ValueError("Expected fill, a mean of b, for features of b; got none. Use zeros where it is unknown.")
        self.register_buffer("fill", fill)

    def forward(self, b: Tensor, *others: Tensor) -> TorchDistribution:
        """Return the distribution given ``b`` and the network's other inputs."""
        return self.family(self.parameters_of(b, *others))

    def parameters_of(self, b: Tensor, *others: Tensor) -> Tensor:
        """Return the distribution's parameters, of shape ``(*, params, *event)``."""
        if self.fill is not None:
            b = torch.where(b.isnan(), self.fill, b) if self.has_missing else b
            b = self.features(b, self.fill) if self.features else b
        return self.network(b, *others)

    def propose(self, b: Tensor, *others: Tensor) -> Tensor:
        """Support the deprecated name of :meth:`parameters_of`, with a warning."""
        warn("Conditional.propose", "Conditional.parameters_of")
        return self.parameters_of(b, *others)

    @torch.no_grad()
    def start_at(self, mean: Tensor, off: Tensor | None = None) -> None:
        """Set an output bias that is still zero: the distribution's mean becomes ``mean``, if the family has a link.

        A family with a scale starts at the scale of ``off``; ``off`` has rows of x minus ``mean``.
        """
        bias, shape = getattr(self.network, "bias", None), (self.family.params, *self.family.event)
        bias = bias if bias is not None and bias.shape == shape and not bias.any() else None
        if self.family.link and bias is not None:
            bias[0] = self.family.link(mean.to(bias))
        if off is not None and (start_scale := getattr(self.family, "start_scale", None)):
            start_scale(off, bias)

    @torch.no_grad()
    def fill_with(self, mean: Tensor) -> None:
        """Set ``fill`` to ``mean``, of the shape of b, if ``fill`` is still zero."""
        if self.fill is not None and not self.fill.any():
            self.fill.copy_(mean)

    @contextmanager
    def complete(self) -> Iterator[None]:
        """Skip the search for missing elements within the context; this makes a step a few percent faster."""
        has_missing, self.has_missing = self.has_missing, False
        try:
            yield
        finally:
            self.has_missing = has_missing


def mean(distribution: TorchDistribution, draws: int = 100) -> Tensor:
    """Return the mean, ``(*batch, *event)``; the average of draws if the mean has no closed form."""
    try:
        return distribution.mean
    except NotImplementedError:
        return distribution.sample(torch.Size([draws])).mean(0)


def stddev(distribution: TorchDistribution, draws: int = 1000) -> Tensor:
    """Return the standard deviation, ``(*batch, *event)``, in closed form or from draws."""
    try:
        return distribution.stddev
    except NotImplementedError:
        return distribution.sample(torch.Size([draws])).std(0)


def module(name: str, nn_module: nn.Module) -> None:
    """Register a module's parameters as ``pyro.module`` does, but refuse a second module under the same name.

    Pyro would silently keep training the first module. The function also refuses a parameter that is not contiguous:
    Pyro would train a copy of the parameter. Without gradients the function checks nothing.
    """
    pyro.module(name, nn_module)
    if not torch.is_grad_enabled():
        return
    held = dict(pyro.get_param_store().named_parameters())
    for key, value in nn_module.named_parameters():
        if held.get(f"{name}$$${key}", value) is not value:
            if not value.is_contiguous():
                raise ValueError(
                    f"Expected contiguous parameters; {key!r} is not contiguous, and Pyro would train a copy of it. "
                    "Use nn.Parameter(value.contiguous())."
                )
            raise ValueError(
                f"Expected this module under {name!r} in Pyro's param store; got another module, which would train in "
                "its place. Call pyro.clear_param_store() before you use a new module."
            )
