"""Networks of convolutions, where one side is an image: down to a vector, or up from one."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, prod

import torch
from torch import Tensor, nn

from pyro_vae.networks.base import Network, activation_named
from pyro_vae.networks.dense import dense

__all__ = ["Conv", "ResNet"]


class Conv(Network):
    """A convolutional encoder or decoder, whichever side is an image ``(channels, height, width)``.

    The encoder halves height and width once for each of ``channels``, by convolutions of stride 2; the decoder
    goes back the same way, by nearest-neighbour upsampling and convolutions, which leave no checkerboard
    (Deconvolution and Checkerboard Artifacts, Odena et al., 2016). Any height and width will do.

    Arguments:
        in_shape: Shape of one input: an image, or ``(latent,)``.
        out_shape: Shape of one output: ``(params, latent)``, or ``(params, channels, height, width)``.
        channels: Channels after each halving.
        hidden: Units of the dense layer between the image and the vector, or of each where there are several.
        activation: Name of a module of ``torch.nn``, as ``ReLU``, ``Tanh``, ``Softplus``, ``GELU``.

    Raises:
        ValueError: If neither side is an image, a layer has no units, or the activation is unknown.

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
        hidden: int | Sequence[int] = 256,
        activation: str = "ReLU",
    ) -> None:
        def level(width: int) -> list[nn.Module]:
            return [activation_named(activation)]

        super().__init__(in_shape, out_shape, _layers(in_shape, out_shape, channels, hidden, activation, level))


class ResNet(Network):
    r"""A small residual encoder or decoder: :class:`Conv`, with residual blocks at each size of the image.

    .. math:: h \leftarrow h + W_2 \, \phi(W_1 \, \phi(h))

    A block is of the full pre-activation kind, two 3x3 convolutions each after an activation, so that nothing
    stands in the way of :math:`h`. :math:`W_2` starts at a tenth of its usual size: a block starts near the
    identity, and every parameter has a gradient from the first step on. There is no batch normalisation: the
    statistics of a batch would tie the data to one another, and the ELBO would be no sum over data. With the same
    channels a step takes two to three times that of :class:`Conv`.

    References:
        Identity Mappings in Deep Residual Networks (He, Zhang, Ren and Sun, 2016).

    Arguments:
        in_shape: Shape of one input: an image, or ``(latent,)``.
        out_shape: Shape of one output: ``(params, latent)``, or ``(params, channels, height, width)``.
        channels: Channels after each halving.
        blocks: Residual blocks after each halving.
        hidden: Units of the dense layer between the image and the vector, or of each where there are several.
        activation: Name of a module of ``torch.nn``, as ``ReLU``, ``Tanh``, ``Softplus``, ``GELU``.

    Raises:
        ValueError: If neither side is an image, a layer has no units, ``blocks`` is negative, or the activation is
            unknown.

    Example:
        >>> ResNet((3, 32, 32), (2, 20), blocks=2)(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 2, 20])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        hidden: int | Sequence[int] = 256,
        activation: str = "ReLU",
    ) -> None:
        if blocks < 0:
            raise ValueError(f"Expected 0 or more residual blocks; got {blocks}.")

        def level(width: int) -> list[nn.Module]:
            return [*(_Block(width, activation) for _ in range(blocks)), activation_named(activation)]

        super().__init__(in_shape, out_shape, _layers(in_shape, out_shape, channels, hidden, activation, level))


class _Block(nn.Module):
    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.mul_(0.1)
        self.residual = nn.Sequential(activation_named(activation), first, activation_named(activation), second)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.residual(h)


def _layers(
    in_shape: Sequence[int],
    out_shape: Sequence[int],
    channels: Sequence[int],
    hidden: int | Sequence[int],
    activation: str,
    level: Callable[[int], list[nn.Module]],
) -> nn.Sequential:
    """Down from the image or up to it, with ``level(width)`` between the convolutions that change its size."""
    units = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    if any(width < 1 for width in channels):
        raise ValueError(f"Expected convolutions of at least 1 channel; got {tuple(channels)}.")
    if len(in_shape) == 3:
        return _downwards(in_shape, prod(out_shape), channels, units, activation, level)
    if len(out_shape) == 4:
        return _upwards(prod(in_shape), out_shape, channels, units, activation, level)
    raise ValueError(
        "Expected images, (channels, height, width), for a convolutional network; "
        f"got a map from {tuple(in_shape)} to {tuple(out_shape)}. Use MLP for other shapes."
    )


def _downwards(
    image: Sequence[int],
    out: int,
    channels: Sequence[int],
    hidden: Sequence[int],
    activation: str,
    level: Callable[[int], list[nn.Module]],
) -> nn.Sequential:
    layers: list[nn.Module] = []
    colours, *size = image
    for before, after in pairwise([colours, *channels]):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), *level(after)]
    units = [colours, *channels][-1] * prod(_sizes(size, len(channels))[-1])
    layers += dense(units, hidden, activation)
    return nn.Sequential(*layers, nn.Linear([units, *hidden][-1], out, bias=False))


def _upwards(
    latent: int,
    out_shape: Sequence[int],
    channels: Sequence[int],
    hidden: Sequence[int],
    activation: str,
    level: Callable[[int], list[nn.Module]],
) -> nn.Sequential:
    params, colours, *size = out_shape
    *targets, smallest = _sizes(size, len(channels))
    widths = [*channels[::-1], params * colours]
    layers = dense(latent, hidden, activation)
    layers.append(nn.Linear([latent, *hidden][-1], widths[0] * prod(smallest)))
    layers.append(nn.Unflatten(1, (widths[0], *smallest)))
    for i, (before, after) in enumerate(pairwise(widths), start=1):
        conv = nn.Conv2d(before, after, 3, padding=1, bias=i < len(channels))
        layers += [*level(before), nn.Upsample(size=tuple(targets[-i])), conv]
    return nn.Sequential(*layers)


def _sizes(size: Sequence[int], halvings: int) -> list[list[int]]:
    """Height and width of the image, and after each halving."""
    return [[ceil(side / 2**i) for side in size] for i in range(halvings + 1)]
