r"""Networks: tensors in, tensors out, no probability.

A network maps ``(*, *in_shape)`` to ``(*, *out_shape)``, where ``*`` is any number of dimensions that belong to
Pyro's plates. A decoder's ``out_shape`` is ``(params, *event)``, an encoder's is ``(params, latent)``.
"""

from collections.abc import Sequence
from math import ceil, prod

import torch
from torch import Tensor, nn

__all__ = ["MLP", "Conv", "Network"]


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

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], layers: nn.Module) -> None:
        super().__init__()
        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)
        self.layers = layers
        self.bias = nn.Parameter(torch.zeros(self.out_shape))

    def forward(self, a: Tensor) -> Tensor:
        """Map ``(*, *in_shape)`` to ``(*, *out_shape)``.

        Raises:
            ValueError: If the trailing dimensions of ``a`` are not ``in_shape``.
        """
        plates = a.dim() - len(self.in_shape)
        if plates < 0 or a.shape[plates:] != self.in_shape:
            raise ValueError(
                f"Expected an input that ends in {self.in_shape}; got {tuple(a.shape)}. "
                "Reshape the data, or build the VAE with its event_shape."
            )
        out = self.layers(a.reshape(-1, *self.in_shape))
        return out.reshape(*a.shape[:plates], *self.out_shape) + self.bias


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
        if any(units < 1 for units in hidden):
            raise ValueError(f"Expected hidden layers of at least 1 unit; got {tuple(hidden)}.")
        sizes = [prod(in_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(before, after), _activation(activation)]
        layers.append(nn.Linear(sizes[-1], prod(out_shape), bias=False))
        super().__init__(in_shape, out_shape, nn.Sequential(*layers))


class Conv(Network):
    """A convolutional encoder or decoder, whichever side is an image ``(channels, height, width)``.

    The encoder halves height and width once for each of ``channels``, by convolutions of stride 2; the decoder
    goes back the same way, by nearest-neighbour upsampling and convolutions, which leave no checkerboard
    (Deconvolution and Checkerboard Artifacts, Odena et al., 2016). Any height and width will do.

    Arguments:
        in_shape: Shape of one input: an image, or ``(latent,)``.
        out_shape: Shape of one output: ``(params, latent)``, or ``(params, channels, height, width)``.
        channels: Channels after each halving.
        hidden: Units of the dense layer between the image and the vector.
        activation: Name of a module of ``torch.nn``, as ``ReLU``, ``Tanh``, ``Softplus``, ``GELU``.

    Raises:
        ValueError: If neither side is an image, or the activation is unknown.

    Example:
        >>> Conv((1, 28, 28), (2, 20))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 2, 20])
        >>> Conv((20,), (1, 1, 28, 28))(torch.zeros(5, 20)).shape
        torch.Size([5, 1, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        activation: str = "ReLU",
    ) -> None:
        if len(in_shape) == 3:
            layers = _downwards(in_shape, prod(out_shape), channels, hidden, activation)
        elif len(out_shape) == 4:
            layers = _upwards(prod(in_shape), out_shape, channels, hidden, activation)
        else:
            raise ValueError(
                "Expected images, (channels, height, width), for a convolutional network; "
                f"got a map from {tuple(in_shape)} to {tuple(out_shape)}. Use MLP for other shapes."
            )
        super().__init__(in_shape, out_shape, layers)


def _downwards(image: Sequence[int], out: int, channels: Sequence[int], hidden: int, activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    before, *size = image
    for after in channels:
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), _activation(activation)]
        before, size = after, [ceil(side / 2) for side in size]
    dense = [nn.Flatten(), nn.Linear(before * prod(size), hidden), _activation(activation)]
    return nn.Sequential(*layers, *dense, nn.Linear(hidden, out, bias=False))


def _upwards(
    latent: int, out_shape: Sequence[int], channels: Sequence[int], hidden: int, activation: str
) -> nn.Sequential:
    params, colours, *size = out_shape
    sizes = [size]
    for _ in channels:
        sizes.append([ceil(side / 2) for side in sizes[-1]])
    widths = [*channels[::-1], params * colours]
    smallest = sizes.pop()
    layers: list[nn.Module] = [
        nn.Flatten(),
        nn.Linear(latent, hidden),
        _activation(activation),
        nn.Linear(hidden, widths[0] * prod(smallest)),
        nn.Unflatten(1, (widths[0], *smallest)),
    ]
    for i, target in enumerate(reversed(sizes)):
        last = i == len(sizes) - 1
        conv = nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=not last)
        layers += [_activation(activation), nn.Upsample(size=tuple(target)), conv]
    return nn.Sequential(*layers)


def _activation(name: str) -> nn.Module:
    found = getattr(nn, name, None)
    if not (isinstance(found, type) and found.__module__ == nn.ReLU.__module__):
        raise ValueError(f"Expected the name of an activation in torch.nn, as ReLU or Tanh; got {name!r}.")
    return found()
