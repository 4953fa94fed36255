r"""The one abstraction: a module whose ``forward`` returns a distribution.

A prior is ``prior()``, a decoder ``decoder(z)``, an encoder ``encoder(x)``. The last two are a
:class:`Conditional`: a network proposes parameters, a :class:`Family` turns them into a distribution.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

__all__ = ["Conditional", "Family", "module"]


class Family(nn.Module, ABC):
    r"""Turns parameters into a distribution over an event.

    To write a likelihood or a guide family, subclass this and give one number and one method:

    - :attr:`params`, how many parameters each element of the event has;
    - :meth:`law`, from that many tensors of shape ``(*, *event)`` to a distribution.

    The base class splits the network's output into the parameters and declares the event, so nobody writes
    ``to_event`` by hand. See the source of :class:`pyro_vae.likelihoods.Bernoulli` for the simplest member, or:

        >>> import pyro.distributions as dist
        >>> class Poisson(Family):
        ...     params = 1
        ...     def law(self, log_rate):
        ...         return dist.Poisson(log_rate.exp())
        >>> law = Poisson((1, 8, 8))(torch.zeros(32, 1, 1, 8, 8))
        >>> law.batch_shape, law.event_shape
        (torch.Size([32]), torch.Size([1, 8, 8]))

    A family may also have :attr:`link`, the link function of generalised linear models: from the mean of the
    event to the first parameter (McCullagh and Nelder, Generalized Linear Models, 1989). With it training
    starts where the decoder's mean is the data's.

    Arguments:
        event: Shape of the event, or its size where it is a vector.

    Raises:
        ValueError: If a dimension of the event is not positive.
    """

    params: int
    link: Callable[[Tensor], Tensor] | None = None

    def __init__(self, event: int | Sequence[int]) -> None:
        super().__init__()
        self.event = (event,) if isinstance(event, int) else tuple(event)
        if not self.event or any(size < 1 for size in self.event):
            raise ValueError(f"Expected an event of at least one element; got shape {self.event}.")

    def forward(self, phi: Tensor) -> TorchDistribution:
        """Return the distribution with parameters ``phi``, of shape ``(*, params, *event)``."""
        law = self.law(*phi.unbind(-1 - len(self.event)))
        return law.to_event(len(self.event) - law.event_dim)

    @abstractmethod
    def law(self, *parameters: Tensor) -> TorchDistribution:
        """Return the distribution with the given parameters, each of shape ``(*, *event)``."""


class Conditional(nn.Module):
    r"""A conditional distribution :math:`p(a \mid b)`: a network proposes, a family disposes.

    Arguments:
        network: Maps ``(*, *b)`` to ``(*, params, *event)``.
        family: Maps ``(*, params, *event)`` to a distribution over the event.
    """

    def __init__(self, network: nn.Module, family: Family) -> None:
        super().__init__()
        self.network = network
        self.family = family

    def forward(self, b: Tensor) -> TorchDistribution:
        """Return the distribution given ``b``."""
        return self.family(self.network(b))

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Start an untrained network where the distribution's mean is ``mean``, of the event's shape.

        Sets the first parameter's bias to ``family.link(mean)``. A bias that is no longer zero has been trained,
        and is left as it is; so is everything where the family states no link or the network has no bias of the
        output's shape.
        """
        bias = getattr(self.network, "bias", None)
        if self.family.link is None or bias is None or bias.shape != (self.family.params, *self.family.event):
            return
        if not bias.any():
            bias[0] = self.family.link(mean.to(bias))


def module(name: str, nn_module: nn.Module) -> None:
    """Do as ``pyro.module`` does, but refuse a second module under one name where gradients are on.

    Pyro goes on stepping the first module's tensors, and the second never trains, in silence.

    Raises:
        ValueError: If the param store holds other tensors under this name, or a parameter is not contiguous.
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
