"""The network that is taken where none is named."""

from collections.abc import Sequence
from math import prod

from pyro_vae.networks.base import Network
from pyro_vae.networks.dense import MLP
from pyro_vae.networks.images import Conv

__all__ = ["Auto"]

LARGE = 1024  # numbers in the largest image that gets dense layers


class Auto(Network):
    """The network that suits the data's shape: the layers of an :class:`MLP`, or of a :class:`Conv`.

    Convolutions where one side is an image of more than 1,024 numbers, as one in colour of 32x32; dense layers for
    smaller images, as MNIST's, and for vectors.

    Arguments:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
        hidden: Units of each dense layer.
        channels: Channels after each halving, where there are convolutions.
        activation: Name of a module of ``torch.nn``, as ``ReLU``, ``Tanh``, ``Softplus``, ``GELU``.

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
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden: Sequence[int] = (400,),
        channels: Sequence[int] = (32, 64),
        activation: str = "ReLU",
    ) -> None:
        image = in_shape if len(in_shape) == 3 else out_shape[1:]
        chosen: Network
        if len(image) == 3 and prod(image) > LARGE:
            chosen = Conv(in_shape, out_shape, channels, hidden, activation)
        else:
            chosen = MLP(in_shape, out_shape, hidden, activation)
        super().__init__(in_shape, out_shape, chosen.layers)
