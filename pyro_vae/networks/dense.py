"""What every network has, and networks of dense layers."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Sizes = Sequence[int]


class Network(nn.Module):
    r"""Layers, then a bias of the output's shape.

    .. math:: f(a) = \mathrm{layers}(a) + b

    To write a network of your own, subclass this one and hand ``super().__init__`` the layers, as :class:`MLP`
    does. The layers see one batch dimension, ``(N, *in_shape)``, and return ``(N, prod(out_shape))`` elements.
    Leave out the bias of the last layer: :attr:`bias` takes its place, and is where training starts at the
    data's mean (see :meth:`pyro_vae.conditional.Conditional.start_at`).

    Arguments:
        in_shape: Shape of one input, as ``(1, 28, 28)`` or ``(20,)``.
        out_shape: Shape of one output, as ``(2, 20)`` or ``(1, 1, 28, 28)``.
        layers: Module that maps ``(N, *in_shape)`` to ``(N, ...)`` with ``prod(out_shape)`` elements a row.
    """

    def __init__(self, in_shape: Sizes, out_shape: Sizes, layers: nn.Module) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.layers = layers
        self.bias = nn.Parameter(torch.zeros(self.out_shape))

    def forward(self, a: Tensor) -> Tensor:
        """Map ``(*, *in_shape)`` to ``(*, *out_shape)``; refuse an input or an output of the layers of other shapes."""
        batch = batch_of(a, self.in_shape)
        out = self.layers(a.reshape(-1, *self.in_shape))
        if out[:1].numel() != prod(self.out_shape) and len(out):
            raise ValueError(
                f"Expected the layers of {type(self).__name__} to give {prod(self.out_shape)} elements a row, for an "
                f"output of shape {self.out_shape}; got {out[:1].numel()}."
            )
        return out.reshape(*batch, *self.out_shape) + self.bias


class MLP(Network):
    """A multilayer perceptron.

    Arguments:
        hidden: Units of each hidden layer.
        activation: Name of a module of ``torch.nn``, as ``ReLU``, ``Tanh``, ``Softplus``, ``GELU``.

    Raises:
        ValueError: If a hidden layer has no units, or the activation is unknown.

    Example:
        >>> net = MLP((1, 8, 8), (2, 20), hidden=(64,))
        >>> net(torch.zeros(5, 3, 1, 8, 8)).shape
        torch.Size([5, 3, 2, 20])
    """

    def __init__(self, in_shape: Sizes, out_shape: Sizes, hidden: Sizes = (400,), activation: str = "ReLU") -> None:
        super().__init__(in_shape, out_shape, dense(prod(in_shape), hidden, prod(out_shape), activation))


class GatedMLP(Network):
    r"""A multilayer perceptron, each of whose hidden units has a gate.

    .. math:: h(a) = (A a + b) \odot \sigma(C a + d)

    Weights start at He's initialisation, biases at zero.

    References:
        Language Modeling with Gated Convolutional Networks (Dauphin, Fan, Auli and Grangier, 2017).
        VAE with a VampPrior (Tomczak and Welling, 2018), whose networks these are.
        Delving Deep into Rectifiers (He, Zhang, Ren and Sun, 2015), for the initialisation.

    Arguments:
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

    def __init__(self, in_shape: Sizes, out_shape: Sizes, hidden: Sizes = (300, 300)) -> None:
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
    """A layer of :class:`GatedMLP`: two linear maps, of which one goes through a sigmoid and is the other's gate."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(before, after), nn.Linear(before, after)

    def forward(self, a: Tensor) -> Tensor:
        """Map ``(N, before)`` to ``(N, after)``."""
        return self.value(a) * self.gate(a).sigmoid()


class Joint(nn.Module):
    """A network of several inputs: the first of any shape, and vectors beside it.

    Where the network is of convolutions, the vectors are further channels of the image, the same at every pixel; else
    the first input is flattened, and they are further elements of it. Batch dimensions broadcast.

    Arguments:
        network: A class or a partial of one, called with the shapes of one input and one output.
        in_shapes: The shape of each input.
        out_shape: Shape of one output.

    Example:
        >>> net = Joint(MLP, [(1, 8, 8), (10,)], (2, 20))
        >>> net(torch.zeros(5, 1, 8, 8), torch.zeros(3, 5, 10)).shape
        torch.Size([3, 5, 2, 20])
    """

    def __init__(
        self, network: Callable[[Sizes, Sizes], nn.Module], in_shapes: Sequence[Sizes], out_shape: Sizes
    ) -> None:
        super().__init__()
        self.in_shape, *rest = map(tuple, in_shapes)
        width = sum(map(prod, rest))
        self.convolves = len(self.in_shape) == 3 and any(
            isinstance(layer, nn.Conv2d) for layer in network(self.in_shape, out_shape).modules()
        )
        joined = (self.in_shape[0] + width, *self.in_shape[1:]) if self.convolves else (prod(self.in_shape) + width,)
        self.network: Any = network(joined, out_shape)
        layers = getattr(self.network, "layers", None)
        kinds = [type(layer) for layer in layers] if isinstance(layers, nn.Sequential) else []
        self.starts_linear = isinstance(self.network, Network) and kinds[:2] == [nn.Flatten, nn.Linear]

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of the output, where the network has one."""
        return getattr(self.network, "bias", None)

    def forward(self, a: Tensor, *beside: Tensor) -> Tensor:
        """Map ``(*, *in_shape)`` and vectors ``(*, size)`` to ``(*, *out_shape)``."""
        before = batch_of(a, self.in_shape)
        batch = torch.broadcast_shapes(before, *(vector.shape[:-1] for vector in beside))
        if self.convolves:
            image = self.in_shape[1:]
            maps = (v.reshape(*v.shape, 1, 1).expand(*batch, v.shape[-1], *image) for v in beside)
            return self.network(torch.cat([a.expand(*batch, *self.in_shape), *maps], -3))
        parts = [a.reshape(*before, -1), *beside]
        if not self.starts_linear:
            return self.network(torch.cat([part.expand(*batch, -1) for part in parts], -1))
        # The first layer is a sum over inputs, each part computed once, however many draws or classes are beside it.
        _, first, *rest = self.network.layers
        weights = first.weight.split([part.shape[-1] for part in parts], 1)
        out = linear(parts[0], weights[0], first.bias)
        for part, weight in zip(beside, weights[1:], strict=True):
            out = out + linear(part, weight)
        out = out.reshape(-1, out.shape[-1])  # one batch dimension, as of Network
        for layer in rest:
            out = layer(out)
        return out.reshape(*batch, *self.network.out_shape) + self.network.bias


def batch_of(a: Tensor, in_shape: tuple[int, ...]) -> torch.Size:
    """Return the batch shape of inputs; refuse those of another shape."""
    plates = a.dim() - len(in_shape)
    if plates < 0 or a.shape[plates:] != in_shape:
        raise ValueError(
            f"Expected an input that ends in {in_shape}; got {tuple(a.shape)}. "
            "Reshape the data, or build the VAE with its event_shape."
        )
    return a.shape[:plates]


def dense(units: int, hidden: Sizes, out: int, activation: str, bias: bool = False) -> nn.Sequential:
    """Return a flattening, hidden layers with an activation after each, and the last layer."""
    check_hidden(hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([units, *hidden]):
        layers += [nn.Linear(before, after), activation_named(activation)]
    return nn.Sequential(*layers, nn.Linear([units, *hidden][-1], out, bias))


def check_hidden(hidden: Sizes) -> None:
    """Refuse a hidden layer without units."""
    if any(size < 1 for size in hidden):
        raise ValueError(f"Expected hidden layers of at least 1 unit; got {tuple(hidden)}.")


def activation_named(name: str) -> nn.Module:
    """Return the activation of ``torch.nn`` with this name; refuse a name of something else."""
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and kind.__module__ == nn.ReLU.__module__):
        raise ValueError(f"Expected the name of an activation in torch.nn, as ReLU or Tanh; got {name!r}.")
    if kind().eval()(torch.zeros(1, 2)).shape != (1, 2):
        raise ValueError(f"Expected an activation that leaves shapes as they are, as ReLU or Tanh; got {name!r}.")
    return kind()
