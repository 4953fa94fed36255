"""Networks of dense layers."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from pyro_vae.networks.base import Network, activation_named

__all__ = ["MLP", "dense"]


class MLP(Network):
    """A multilayer perceptron.

    Arguments:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
        hidden: Units of each hidden layer.
        activation: Name of a module of ``torch.nn``, as ``ReLU``, ``Tanh``, ``Softplus``, ``GELU``.

    Raises:
        ValueError: If a hidden layer has no units, or the activation is unknown.

    Example:
        >>> net = MLP((1, 8, 8), (2, 20), hidden=(64,))
        >>> net(torch.zeros(5, 3, 1, 8, 8)).shape
        torch.Size([5, 3, 2, 20])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden: Sequence[int] = (400,),
        activation: str = "ReLU",
    ) -> None:
        layers = dense(prod(in_shape), hidden, activation)
        out = nn.Linear([prod(in_shape), *hidden][-1], prod(out_shape), bias=False)
        super().__init__(in_shape, out_shape, nn.Sequential(*layers, out))


def dense(units: int, hidden: Sequence[int], activation: str) -> list[nn.Module]:
    """Return a flattening, then hidden layers with an activation after each.

    Raises:
        ValueError: If a hidden layer has no units.
    """
    if any(size < 1 for size in hidden):
        raise ValueError(f"Expected hidden layers of at least 1 unit; got {tuple(hidden)}.")
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([units, *hidden]):
        layers += [nn.Linear(before, after), activation_named(activation)]
    return layers
