"""What every network has, and activations by name."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

__all__ = ["Network", "activation_named"]


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
            ValueError: If the trailing dimensions of ``a`` are not ``in_shape``, or the layers give another number of
                elements than ``out_shape`` has.
        """
        plates = a.dim() - len(self.in_shape)
        if plates < 0 or a.shape[plates:] != self.in_shape:
            raise ValueError(
                f"Expected an input that ends in {self.in_shape}; got {tuple(a.shape)}. "
                "Reshape the data, or build the VAE with its event_shape."
            )
        out = self.layers(a.reshape(-1, *self.in_shape))
        if out[:1].numel() != prod(self.out_shape) and len(out):
            raise ValueError(
                f"Expected the layers of {type(self).__name__} to give {prod(self.out_shape)} elements a row, for an "
                f"output of shape {self.out_shape}; got {out[:1].numel()}."
            )
        return out.reshape(*a.shape[:plates], *self.out_shape) + self.bias


def activation_named(name: str) -> nn.Module:
    """Return the activation of ``torch.nn`` with this name.

    Raises:
        ValueError: If there is none.
    """
    found = getattr(nn, name, None)
    if not (isinstance(found, type) and found.__module__ == nn.ReLU.__module__):
        raise ValueError(f"Expected the name of an activation in torch.nn, as ReLU or Tanh; got {name!r}.")
    if found().eval()(torch.zeros(1, 2)).shape != (1, 2):
        raise ValueError(f"Expected an activation that leaves shapes as they are, as ReLU or Tanh; got {name!r}.")
    return found()
