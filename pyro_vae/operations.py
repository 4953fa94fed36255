"""A base class for contexts that intercept each operation on a tensor, and a log-sum-exp."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """An abstract context: ``__torch_dispatch__`` of a subclass replaces each operation on a tensor.

    The class overrides a method of torch, since torch's method imports torch's compiler and the import takes seconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def log_sum_exp(x: Tensor, dim: int | list[int], keepdim: bool = False) -> Tensor:
    r"""Return :math:`\log \sum_i e^{x_i}` over dimensions, with a gradient of at least 1e-19 in float32, or 0.

    The gradient is a softmax. Where the terms differ by more than 87 nats, torch's has subnormal numbers, below 1e-38.
    A product of matrices with subnormal numbers takes many times as long on a CPU.
    """
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(_without_negligible)
    return x.logsumexp(dim, keepdim)


def _without_negligible(gradient: Tensor | None) -> Tensor | None:
    """Set gradients to zero that are too small to change a sum."""
    if gradient is None:
        return None
    least = torch.finfo(gradient.dtype).tiny ** 0.5
    return torch.nn.functional.hardshrink(gradient, least) if least < 1e-15 else gradient
