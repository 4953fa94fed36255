"""Convolutional networks from an image to a vector or a grid, or back."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, prod

import torch
from torch import Tensor, nn

from pyro_vae.networks.dense import MLP, Network, Sizes, activation_named, dense

LARGE = 1024  # the most elements of an image for dense layers in Auto
ACTIVATION = "GELU"  # of convolutions


class Conv(Network):
    """A convolutional encoder or decoder, for an input or an output of shape ``(channels, height, width)``.

    Between an image and a vector there is a dense layer. Between an image and a grid there are only convolutions.

    The encoder halves height and width with a convolution of stride 2 for each element of ``channels``. The decoder
    doubles height and width with nearest-neighbour upsampling and convolutions, to avoid a checkerboard pattern
    (Deconvolution and Checkerboard Artifacts, Odena et al., 2016). Height and width are arbitrary.

    The default activation has a gradient for every input. A channel of ReLUs that is 0 in all images has none, and
    stays 0. Where a code gains little, as with a Gaussian likelihood of scale 1 on MNIST, all channels may become 0,
    and the ELBO is that of a model without a code.

    References:
        Gaussian Error Linear Units (GELUs) (Hendrycks and Gimpel, 2016).
        Dying ReLU and Initialization: Theory and Numerical Examples (Lu, Shin, Su and Karniadakis, 2020).

    Arguments:
        in_shape: ``(channels, height, width)``, of an image or a grid, or ``(latent,)``.
        out_shape: ``(params, latent)``, or ``(params, channels, height, width)``, of an image or a grid.
        channels: Channels after each halving.
        hidden: Units of the dense layer between image and vector, or of each of several dense layers.
        activation: Name of a module of ``torch.nn``, for example ``ReLU``, ``Tanh``, ``Softplus`` or ``GELU``.

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
        in_shape: Sizes,
        out_shape: Sizes,
        channels: Sizes = (32, 64),
        hidden: int | Sizes = 256,
        activation: str = ACTIVATION,
    ) -> None:
        super().__init__(in_shape, out_shape, _layers(in_shape, out_shape, channels, 0, hidden, activation))


class ResNet(Network):
    r"""A residual encoder or decoder: :class:`Conv` with residual blocks at each size of the image.

    .. math:: h \leftarrow h + W_2 \, \phi(W_1 \, \phi(h))

    A block has full pre-activation: two 3x3 convolutions, each after an activation. :math:`W_2` starts at a tenth of
    torch's default, so that a block starts near the identity. There is no batch normalisation, since the ELBO is a sum
    over data. With the same channels a step takes two to three times as long as with :class:`Conv`.

    References:
        Identity Mappings in Deep Residual Networks (He, Zhang, Ren and Sun, 2016).

    Arguments:
        blocks: Residual blocks after each halving.
        channels, hidden, activation: As in :class:`Conv`.

    Raises:
        ValueError: As in :class:`Conv`, or if ``blocks`` is negative.

    Example:
        >>> ResNet((3, 32, 32), (2, 20), blocks=2)(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 2, 20])
    """

    def __init__(
        self,
        in_shape: Sizes,
        out_shape: Sizes,
        channels: Sizes = (32, 64),
        blocks: int = 1,
        hidden: int | Sizes = 256,
        activation: str = ACTIVATION,
    ) -> None:
        if blocks < 0:
            raise ValueError(f"Expected blocks of at least 0; got {blocks}.")
        super().__init__(in_shape, out_shape, _layers(in_shape, out_shape, channels, blocks, hidden, activation))


class Auto(Network):
    """A network with the layers of an :class:`MLP` or of a :class:`Conv`; the shape of the data decides.

    Images of over 1,024 elements, for example 32x32 in colour, get convolutions; all other data get dense layers.

    Arguments:
        hidden: Units of each dense layer, as in :class:`MLP`.
        channels: Channels after each halving by convolutions.
        activation: As in :class:`MLP`; for convolutions GELU is better, as in :class:`Conv`.

    Raises:
        ValueError: If a layer has no units, or the activation is unknown.

    Example:
        >>> Auto((1, 28, 28), (2, 20)).layers[1]
        Linear(in_features=784, out_features=400, bias=True)
        >>> Auto((3, 32, 32), (2, 20)).layers[0]
        Conv2d(3, 32, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    """

    def __init__(
        self,
        in_shape: Sizes,
        out_shape: Sizes,
        hidden: Sizes = (400,),
        channels: Sizes = (32, 64),
        activation: str = "ReLU",
    ) -> None:
        image = in_shape if len(in_shape) == 3 else out_shape[1:]
        network: Network
        if len(image) == 3 and prod(image) > LARGE:
            network = Conv(in_shape, out_shape, channels, hidden, activation)
        else:
            network = MLP(in_shape, out_shape, hidden, activation)
        super().__init__(in_shape, out_shape, network.layers)


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
    in_shape: Sizes, out_shape: Sizes, channels: Sizes, blocks: int, hidden: int | Sizes, activation: str
) -> nn.Sequential:
    """Return the layers from an image to a vector or back, with blocks and an activation at each size."""
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    if any(width < 1 for width in channels):
        raise ValueError(f"Expected convolutions of at least 1 channel; got channels = {tuple(channels)}.")
    is_encoder, to_image = len(in_shape) == 3, len(out_shape) == 4
    if is_encoder and to_image:
        return _between_images(in_shape, out_shape, channels, blocks, activation)
    if not is_encoder and not to_image:
        raise ValueError(
            "Expected images of shape (channels, height, width) for a convolutional network; "
            f"got in_shape {tuple(in_shape)} and out_shape {tuple(out_shape)}. Use MLP for other shapes."
        )
    colours, height, width = in_shape if is_encoder else out_shape[1:]
    sizes = [(ceil(height / 2**i), ceil(width / 2**i)) for i in range(len(channels) + 1)]

    if is_encoder:
        width = [colours, *channels][-1] * prod(sizes[-1])
        smaller = _smaller([colours, *channels], blocks, activation)
        return nn.Sequential(*smaller, *dense(width, hidden, prod(out_shape), activation))
    widths = [*channels[::-1], out_shape[0] * colours]
    layers = dense(prod(in_shape), hidden, widths[0] * prod(sizes[-1]), activation, bias=True)
    return nn.Sequential(
        *layers, nn.Unflatten(1, (widths[0], *sizes[-1])), *_larger(widths, sizes[::-1], blocks, activation)
    )


def _between_images(in_shape: Sizes, out_shape: Sizes, channels: Sizes, blocks: int, activation: str) -> nn.Sequential:
    """Return the layers from an image to a smaller grid, or back, without dense layers."""
    shrinks = in_shape[1] > out_shape[2]
    (height, width), small = (in_shape[1:], out_shape[2:]) if shrinks else (out_shape[2:], in_shape[1:])
    sizes = [(ceil(height / 2**i), ceil(width / 2**i)) for i in range(len(channels) + 1)]
    if sizes[-1] != tuple(small) or not channels:
        raise ValueError(
            f"Expected one number in channels for each halving from {height}x{width} to {small[0]}x{small[1]}; got "
            f"channels = {[*channels]}, to {sizes[-1][0]}x{sizes[-1][1]}. Set network.channels, or another grid."
        )
    if shrinks:
        to_grid = nn.Conv2d(channels[-1], prod(out_shape[:2]), 1, bias=False)
        return nn.Sequential(*_smaller([in_shape[0], *channels], blocks, activation), to_grid)
    widths = [*channels[::-1], prod(out_shape[:2])]
    return nn.Sequential(
        nn.Conv2d(in_shape[0], widths[0], 3, padding=1), *_larger(widths, sizes[::-1], blocks, activation)
    )


def _smaller(widths: Sizes, blocks: int, activation: str) -> list[nn.Module]:
    """Return convolutions that halve an image, each followed by blocks and an activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), *_at_size(after, blocks, activation)]
    return layers


def _larger(widths: Sizes, sizes: Sequence[tuple[int, int]], blocks: int, activation: str) -> list[nn.Module]:
    """Return convolutions that double an image up to each of the sizes, each after blocks and an activation."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths), start=1):
        conv = nn.Conv2d(before, after, 3, padding=1, bias=i < len(widths) - 1)
        layers += [*_at_size(before, blocks, activation), nn.Upsample(size=sizes[i]), conv]
    return layers


def _at_size(width: int, blocks: int, activation: str) -> list[nn.Module]:
    return [*(_Block(width, activation) for _ in range(blocks)), activation_named(activation)]
