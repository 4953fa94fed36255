"""One torch optimizer for all parameters, where Pyro makes one for each."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import _load_state_dict
from torch import Tensor


class Optimizer:
    """The optimizer that a ``PyroOptim`` describes, as one object over all parameters, fused where torch can.

    It stands in ``optim.optim_objs``, under the first parameter, so that ``optim.get_state()``, ``set_state()`` and a
    learning-rate schedule's ``step()`` reach it. A gradient of all parameters longer than ``clip_norm`` is shortened.
    """

    def __init__(self, optim: PyroOptim, clip_norm: float | None = None) -> None:
        if clip_norm is not None and not (isinstance(clip_norm, int | float) and clip_norm > 0):
            raise ValueError(f"Expected a positive clip_norm, or None for no clipping; got {clip_norm!r}.")
        self.optim, self.clip_norm = optim, clip_norm
        self._torch: torch.optim.Optimizer | None = None
        self._schedule: Any = None
        self._clips: list[tuple[Tensor, Callable[[Tensor], None]]] = []
        self._known: set[Tensor] = set()

    def step(self, parameters: Sequence[Tensor]) -> None:
        """Step the parameters along their ``grad``."""
        new = [parameter for parameter in parameters if parameter not in self._known]
        if new:
            self._add(new)
        for parameter, clip in self._clips:
            if parameter.grad is not None:
                clip(parameter)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if self._torch is not None:
            self._torch.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, and of its schedule if there is one; nothing before the first step."""
        if self._torch is None:
            return {}
        state = {"optimizer": self._torch.state_dict()}
        return state if self._schedule is None else state | {"schedule": _data(self._schedule)}

    def load_state_dict(self, state: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        """Take up a state over these parameters; refuse that of another optimizer, or of other parameters."""
        if not state:
            return
        self._add([*parameters])
        assert self._torch is not None
        now, trained = self._torch.state_dict(), [p for group in self._torch.param_groups for p in group["params"]]
        sides = (state["optimizer"]["param_groups"], now["param_groups"])
        was, is_now = ([(set(group), group["params"]) for group in groups] for groups in sides)
        if was != is_now:
            size = len(trained)
            raise ValueError(f"Expected the state of an optimizer of {size} parameters as this one; got another's.")
        for index, moments in state["optimizer"]["state"].items():
            for name, value in moments.items():
                due, got = trained[index].shape, getattr(value, "shape", torch.Size())
                if got not in (torch.Size(), due):
                    raise ValueError(f"Expected {name} of the shape of its parameter, {(*due,)}; got {(*got,)}.")
        self._torch.load_state_dict(state["optimizer"])
        for group, before in zip(self._torch.param_groups, now["param_groups"], strict=True):
            # Pairs, as Adam's betas, come back from a file as lists.
            group |= {name: tuple(group[name]) for name, value in before.items() if isinstance(value, tuple)}
        if self._schedule is not None:
            if _data(self._schedule).keys() != state["schedule"].keys():
                raise ValueError("Expected the state of this schedule of the learning rate; got another's.")
            self._schedule.load_state_dict(state["schedule"])

    def _add(self, new: list[Tensor]) -> None:
        self._known.update(new)
        groups: list[tuple[list[Tensor], dict[str, Any]]] = []  # of the same arguments
        for parameter in new:
            arguments = self.optim._get_optim_args(parameter)
            if all(arguments != known for _, known in groups):
                groups.append(([], arguments))
            next(group for group, known in groups if known == arguments).append(parameter)
            if clip := cast(Any, self.optim)._get_grad_clip(parameter):
                self._clips.append((parameter, clip))
        flat = [{"params": group, **arguments} for group, arguments in groups]
        if self._torch is not None:
            for group in flat:
                self._torch.add_param_group(group)
            return
        constructor: Any = self.optim.pt_optim_constructor
        chosen = {"fused", "foreach", "differentiable", "capturable"} & {name for group in flat for name in group}
        floats = all(map(torch.is_floating_point, new))
        fused = floats and not chosen and "fused" in inspect.signature(constructor).parameters
        self._torch = constructor(flat, **groups[0][1] | ({"fused": True} if fused else {}))
        if isinstance(self.optim, PyroLRScheduler):
            self._schedule = self.optim.pt_scheduler_constructor(self._torch, **self.optim.kwargs)
        self.optim.optim_objs = {new[0]: self._schedule or self._torch}
        if waiting := self.optim._state_waiting_to_be_consumed:  # which ``optim.set_state`` was given
            _load_state_dict(self._schedule or self._torch, waiting.popitem()[1])


def _data(schedule: Any) -> dict[str, Any]:
    """The numbers of a schedule, without the functions that some versions of torch put among them."""
    return {name: value for name, value in schedule.state_dict().items() if not callable(value)}
