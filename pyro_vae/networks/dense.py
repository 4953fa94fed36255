"""The base class of networks, and networks of dense layers."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Sizes = Sequence[int]


class Network(nn.Module):
    r"""The base class of networks: layers, and a bias of the output's shape.

    .. math:: f(a) = \mathrm{layers}(a) + b

    A subclass passes the layers to ``super().__init__``, as :class:`MLP` does. The layers see one batch dimension,
    ``(N, *in_shape)``. Omit the bias of the last layer, since the network adds the parameter ``bias``. ``fit``
    sets ``bias`` so that the decoder's mean is the data's mean (:meth:`pyro_vae.conditional.Conditional.start_at`).

    Arguments:
        in_shape: Shape of one input, for example ``(1, 28, 28)`` or ``(20,)``.
        out_shape: Shape of one output, for example ``(2, 20)`` or ``(1, 1, 28, 28)``.
        layers: Module from ``(N, *in_shape)`` to ``(N, ...)`` with ``prod(out_shape)`` elements in each row.
    """

    def __init__(self, in_shape: Sizes, out_shape: Sizes, layers: nn.Module) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.layers = layers
        self.bias = nn.Parameter(torch.zeros(self.out_shape))

    def forward(self, a: Tensor) -> Tensor:
        """Map ``(*, *in_shape)`` to ``(*, *out_shape)``; refuse an input or an output of another shape."""
        batch = batch_of(a, self.in_shape)
        out = self.layers(a.reshape(-1, *self.in_shape))
        if out[:1].numel() != prod(self.out_shape) and len(out):
            raise ValueError(
                f"Expected the layers of {type(self).__name__} to return {prod(self.out_shape)} elements per row, for "
                f"out_shape {self.out_shape}; got {out[:1].numel()}."
            )
        return out.reshape(*batch, *self.out_shape) + self.bias


class MLP(Network):
    """A multilayer perceptron.

    Arguments:
        hidden: Units of each hidden layer.
        activation: Name of a module of ``torch.nn``, for example ``ReLU``, ``Tanh``, ``Softplus`` or ``GELU``.

    Raises:
        ValueError: If a hidden layer has no units, or the activation is unknown.

    See Also:
        :class:`Auto` selects dense layers or convolutions by the shape of the data.

    Example:
        >>> net = MLP((1, 8, 8), (2, 20), hidden=(64,))
        >>> net(torch.zeros(5, 3, 1, 8, 8)).shape
        torch.Size([5, 3, 2, 20])
    """

    def __init__(self, in_shape: Sizes, out_shape: Sizes, hidden: Sizes = (400,), activation: str = "ReLU") -> None:
        super().__init__(in_shape, out_shape, dense(prod(in_shape), hidden, prod(out_shape), activation))


class GatedMLP(Network):
    r"""A multilayer perceptron with gated hidden units.

    .. math:: h(a) = (A a + b) \odot \sigma(C a + d)

    Weights start at He's initialisation, and biases start at zero.

    References:
        Language Modeling with Gated Convolutional Networks (Dauphin, Fan, Auli and Grangier, 2017).
        VAE with a VampPrior (Tomczak and Welling, 2018), for gated networks in VAEs.
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
    """A layer of :class:`GatedMLP`: a linear map times the sigmoid of another linear map."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(before, after), nn.Linear(before, after)

    def forward(self, a: Tensor) -> Tensor:
        """Map ``(N, before)`` to ``(N, after)``."""
        return self.value(a) * self.gate(a).sigmoid()


class Joint(nn.Module):
    """A network of several inputs. The first input has any shape, and the other inputs are vectors.

    Convolutions see each element of the vectors as a further channel of the image, constant over pixels. Dense layers
    see the flattened first input followed by the vectors. Batch dimensions broadcast.

    Arguments:
        network: A class of networks, or a ``partial`` of a class, called with an input shape and an output shape.
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
        """The bias of the output, or None."""
        return getattr(self.network, "bias", None)

    def forward(self, a: Tensor, *vectors: Tensor) -> Tensor:
        """Map ``(*, *in_shape)`` and vectors ``(*, size)`` to ``(*, *out_shape)``."""
        before = batch_of(a, self.in_shape)
        batch = torch.broadcast_shapes(before, *(vector.shape[:-1] for vector in vectors))
        if self.convolves:
            image = self.in_shape[1:]
            maps = (v.reshape(*v.shape, 1, 1).expand(*batch, v.shape[-1], *image) for v in vectors)
            return self.network(torch.cat([a.expand(*batch, *self.in_shape), *maps], -3))
        inputs = [a.reshape(*before, -1), *vectors]
        if not self.starts_linear:
            return self.network(torch.cat([b.expand(*batch, -1) for b in inputs], -1))
        # The first layer is a sum over inputs: compute each term once, then broadcast over draws or classes.
        _, first, *rest = self.network.layers
        weights = first.weight.split([b.shape[-1] for b in inputs], 1)
        out = linear(inputs[0], weights[0], first.bias)
        for vector, weight in zip(vectors, weights[1:], strict=True):
            out = out + linear(vector, weight)
        out = out.reshape(-1, out.shape[-1])  # one batch dimension, as in Network
        for layer in rest:
            out = layer(out)
        return out.reshape(*batch, *self.network.out_shape) + self.network.bias


def batch_of(a: Tensor, in_shape: tuple[int, ...]) -> torch.Size:
    """Return the batch shape of an input; refuse an input of another shape."""
    plates = a.dim() - len(in_shape)
    if plates < 0 or a.shape[plates:] != in_shape:
        raise ValueError(
            f"Expected an input whose shape ends in {in_shape}; got {tuple(a.shape)}. "
            "Reshape the data, or build the VAE with its event_shape."
        )
    return a.shape[:plates]


def dense(units: int, hidden: Sizes, out: int, activation: str, bias: bool = False) -> nn.Sequential:
    """Return a sequence: flatten, hidden layers with activations, and a linear output."""
    check_hidden(hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([units, *hidden]):
        layers += [nn.Linear(before, after), activation_named(activation)]
    return nn.Sequential(*layers, nn.Linear([units, *hidden][-1], out, bias))


def check_hidden(hidden: Sizes) -> None:
    """Refuse a hidden layer without units."""
    if any(size < 1 for size in hidden):
        raise ValueError(f"Expected hidden layers of at least 1 unit; got hidden = {tuple(hidden)}.")


def activation_named(name: str) -> nn.Module:
    """Return the activation of ``torch.nn`` called ``name``; refuse other modules."""
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and kind.__module__ == nn.ReLU.__module__):
        raise ValueError(f"Expected the name of an activation in torch.nn, such as ReLU or Tanh; got {name!r}.")
    if kind().eval()(torch.zeros(1, 2)).shape != (1, 2):
        raise ValueError(f"Expected an activation that keeps shapes, such as ReLU or Tanh; got {name!r}.")
    return kind()
