"""One torch optimizer for all parameters; Pyro uses one optimizer for each parameter."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import _load_state_dict
from torch import Tensor

FLUSH_EVERY = 50  # steps; the first moment of Adam decays by 0.9 ** 50 = 0.005 in this time
NEGLIGIBLE = 100  # times the smallest normal number


class Optimizer:
    """One torch optimizer over all parameters, from a ``PyroOptim``; fused where torch has a fused optimizer.

    ``optim.optim_objs`` holds the optimizer under the first parameter. Thus ``optim.get_state()``, ``set_state()`` and
    a learning-rate schedule's ``step()`` reach the optimizer. ``clip_norm`` limits the norm of the whole gradient.

    Where a gradient becomes zero, as at a pixel that is always black, Adam's first moment decays to a subnormal number
    and stays there, since 0.9 times the smallest subnormals rounds back. A CPU takes tens of times as long for these
    numbers. Every ``FLUSH_EVERY`` steps on a CPU, numbers of the optimizer's state of a size below 100 times the
    smallest normal number, 1.2e-36 in float32, become zero.
    """

    def __init__(self, optim: PyroOptim, clip_norm: float | None = None) -> None:
        if clip_norm is not None and not (isinstance(clip_norm, int | float) and clip_norm > 0):
            raise ValueError(f"Expected a positive clip_norm, or None for no clipping; got {clip_norm!r}.")
        self.optim, self.clip_norm = optim, clip_norm
        self._torch: torch.optim.Optimizer | None = None
        self._schedule: Any = None
        self._initial: list[dict[str, Any]] = []  # the arguments of each group before a schedule changes them
        self._clips: list[tuple[Tensor, Callable[[Tensor], None]]] = []
        self._parameters: set[Tensor] = set()
        self._steps = 0

    def step(self, parameters: Sequence[Tensor]) -> None:
        """Clip the gradients in ``grad``, and update the parameters."""
        new = [parameter for parameter in parameters if parameter not in self._parameters]
        if new:
            self._add(new)
        for parameter in parameters:  # as ``backward`` does: torch's fused optimizers read no strides
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
        for parameter, clip in self._clips:
            if parameter.grad is not None:
                clip(parameter)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if self._torch is not None:
            self._torch.step()
        self._steps += 1
        if self._steps % FLUSH_EVERY == 0:
            self._flush()

    @torch.no_grad()
    def _flush(self) -> None:
        """Set negligible numbers of the optimizer's state to zero."""
        states = self._torch.state.items() if self._torch is not None else ()
        for parameter, state in states:
            for value in state.values():
                moment = isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0
                if moment and value.is_floating_point() and value.device.type == "cpu":
                    limit = NEGLIGIBLE * torch.finfo(value.dtype).tiny
                    if limit > 1e-30:  # float16, whose subnormal numbers are no negligible ones
                        continue
                    value.copy_(torch.nn.functional.hardshrink(value, limit))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and any learning-rate schedule; before the first step, an empty state."""
        if self._torch is None:
            return {}
        state = {"optimizer": self._torch.state_dict(), "steps": self._steps}
        return state if self._schedule is None else state | {"schedule": _state_of(self._schedule)}

    def load_state_dict(self, state: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        """Restore a state for ``parameters``; refuse the state of another optimizer or of other parameters."""
        if not state:
            return
        self._add([*parameters])
        assert self._torch is not None
        current, trained = self._torch.state_dict(), [p for group in self._torch.param_groups for p in group["params"]]
        sides = (state["optimizer"]["param_groups"], current["param_groups"])
        saved, own = ([(set(group), group["params"]) for group in groups] for groups in sides)
        if saved != own:
            expected = f"Expected the state of this optimizer, of {len(trained)} parameters"
            raise ValueError(f"{expected}; got the state of another optimizer, or of other parameters.")
        for index, moments in state["optimizer"]["state"].items():
            for name, value in moments.items():
                shape, got = trained[index].shape, getattr(value, "shape", torch.Size())
                if got not in (torch.Size(), shape):
                    raise ValueError(f"Expected {name} of the shape of its parameter, {(*shape,)}; got {(*got,)}.")
        self._torch.load_state_dict(state["optimizer"])
        self._steps = state.get("steps", 0)  # which versions before 0.3 did not save
        for group, before in zip(self._torch.param_groups, current["param_groups"], strict=True):
            # A file holds tuples, such as Adam's betas, as lists.
            group |= {name: tuple(group[name]) for name, value in before.items() if isinstance(value, tuple)}
        if self._schedule is not None:
            if _state_of(self._schedule).keys() != state["schedule"].keys():
                raise ValueError("Expected the state of this learning-rate schedule; got the state of another one.")
            self._schedule.load_state_dict(state["schedule"])

    def _add(self, new: list[Tensor]) -> None:
        """Add parameters, in one group for each set of arguments; construct the optimizer with the first ones."""
        self._parameters.update(new)
        groups: list[tuple[list[Tensor], dict[str, Any]]] = []
        for parameter in new:
            arguments = self.optim._get_optim_args(parameter)
            if all(arguments != other for _, other in groups):
                groups.append(([], arguments))
            next(group for group, other in groups if other == arguments).append(parameter)
            if clip := cast(Any, self.optim)._get_grad_clip(parameter):
                self._clips.append((parameter, clip))
        param_groups = [{"params": group, **arguments} for group, arguments in groups]
        if self._torch is not None:
            for group in param_groups:
                if (same := self._group_like(group)) is None:
                    self._torch.add_param_group(group)
                else:
                    same["params"] += group["params"]
            return
        constructor: Any = self.optim.pt_optim_constructor
        options = {name for group in param_groups for name in group}
        chosen = {"fused", "foreach", "differentiable", "capturable"} & options
        floats = all(map(torch.is_floating_point, new))
        fused = floats and not chosen and "fused" in inspect.signature(constructor).parameters
        self._torch = constructor(param_groups, **groups[0][1] | ({"fused": True} if fused else {}))
        if isinstance(self.optim, PyroLRScheduler):
            self._initial = [dict(group) for group in self._torch.param_groups]
            self._schedule = self.optim.pt_scheduler_constructor(self._torch, **self.optim.kwargs)
        self.optim.optim_objs = {new[0]: self._schedule or self._torch}
        if waiting := self.optim._state_waiting_to_be_consumed:  # from ``optim.set_state``
            _load_state_dict(self._schedule or self._torch, waiting.popitem()[1])

    def _group_like(self, new: dict[str, Any]) -> dict[str, Any] | None:
        """Return a scheduled group with the arguments of a new group: a schedule takes no further groups."""
        assert self._torch is not None
        arguments = {name: value for name, value in (self._torch.defaults | new).items() if name != "params"}
        for group, initial in zip(self._torch.param_groups, self._initial, strict=False):
            if all(initial[name] == value for name, value in arguments.items()):
                return group
        return None


def _state_of(schedule: Any) -> dict[str, Any]:
    """Return a schedule's state, without the functions that some versions of torch put in it."""
    return {name: value for name, value in schedule.state_dict().items() if not callable(value)}
