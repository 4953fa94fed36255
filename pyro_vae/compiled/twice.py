"""A function run twice: from one state of torch's generators, and whether the outcome is the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["close", "random_state", "set_random_state"]


def close(one: Tensor | None, other: Tensor | None) -> bool:
    """Say whether two outputs are equal to rounding, or both None."""
    if one is None or other is None:
        return one is other
    size = one.detach().abs().nan_to_num().amax().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * size, equal_nan=True)


def random_state(tensors: Sequence[Tensor]) -> dict[torch.device, Tensor]:
    """Return the generators of the CPU and of the devices of some tensors."""
    state = {torch.device("cpu"): torch.get_rng_state()}
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        state[device] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[torch.device, Tensor]) -> None:
    """Put them back."""
    for device, value in state.items():
        if device.type == "cpu":
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value, device)
