"""Networks of dense layers."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from pyro_vae.networks.base import Network, activation_named

__all__ = ["MLP", "GatedMLP", "dense"]


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


class GatedMLP(Network):
    r"""A multilayer perceptron, each of whose hidden units has a gate.

    .. math:: h(a) = (A a + b) \odot \sigma(C a + d)

    The input decides how much of each unit goes through. Weights start at He's initialisation, biases at zero.

    References:
        Language Modeling with Gated Convolutional Networks (Dauphin, Fan, Auli and Grangier, 2017).

        VAE with a VampPrior (Tomczak and Welling, 2018), whose networks these are.

        Delving Deep into Rectifiers (He, Zhang, Ren and Sun, 2015), for the initialisation.

    Arguments:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
        hidden: Units of each hidden layer.

    Raises:
        ValueError: If a hidden layer has no units.

    Example:
        >>> GatedMLP((1, 8, 8), (2, 20), hidden=(64,)).layers[1]
        Gated(
          (value): Linear(in_features=64, out_features=64, bias=True)
          (gate): Linear(in_features=64, out_features=64, bias=True)
        )
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], hidden: Sequence[int] = (300, 300)) -> None:
        check_hidden(hidden)
        layers = [Gated(before, after) for before, after in pairwise([prod(in_shape), *hidden])]
        out = nn.Linear([prod(in_shape), *hidden][-1], prod(out_shape), bias=False)
        super().__init__(in_shape, out_shape, nn.Sequential(nn.Flatten(), *layers, out))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class Gated(nn.Module):
    """A layer of :class:`GatedMLP`: two linear maps, of which one goes through a sigmoid and is the other's gate.

    Arguments:
        before: Units that it is given.
        after: Units that it has.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.value = nn.Linear(before, after)
        self.gate = nn.Linear(before, after)

    def forward(self, a: Tensor) -> Tensor:
        """Map ``(N, before)`` to ``(N, after)``."""
        return self.value(a) * self.gate(a).sigmoid()


def dense(units: int, hidden: Sequence[int], activation: str) -> list[nn.Module]:
    """Return a flattening, then hidden layers with an activation after each.

    Raises:
        ValueError: If a hidden layer has no units.
    """
    check_hidden(hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([units, *hidden]):
        layers += [nn.Linear(before, after), activation_named(activation)]
    return layers


def check_hidden(hidden: Sequence[int]) -> None:
    """Check that each hidden layer has units.

    Raises:
        ValueError: If one has none.
    """
    if any(size < 1 for size in hidden):
        raise ValueError(f"Expected hidden layers of at least 1 unit; got {tuple(hidden)}.")
