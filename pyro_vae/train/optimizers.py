"""Optimizers: Adam or Muon as a ``PyroOptim``, with a constant or scheduled learning rate."""

import math
from collections.abc import Callable
from functools import partial
from inspect import unwrap
from typing import Any, Literal

import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

Choice = Literal["adam", "muon"]
Schedule = Literal["trapezoid", "constant", "cosine", "one-cycle"]
OF_LENGTH = ("cosine", "one-cycle")  # schedules that depend on the length of the run from the first step
RISE, FALL = 100, 0.3  # of a trapezoid: the steps of the rise, and the share of the run that the fall takes
# Coefficients of the polynomials in ``orthogonal``.
COEFFICIENTS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))


def recipe(name: Choice, lr: float, schedule: str, steps: int, program: nn.Module) -> PyroOptim:
    """Return Adam or Muon, with a schedule of the learning rate over ``steps`` steps."""
    constructor: Callable[..., Any] = Adam if name == "adam" else partial(Muon, matrices=matrices_of(program))
    arguments = {"optimizer": constructor, "optim_args": {"lr": lr}}
    if schedule == "trapezoid":
        return PyroLRScheduler(LambdaLR, arguments | {"lr_lambda": partial(trapezoid, steps)})
    if schedule == "cosine":
        return PyroLRScheduler(CosineAnnealingLR, arguments | {"T_max": steps})
    if schedule == "one-cycle":
        cycle = {"max_lr": lr, "total_steps": steps + 1, "cycle_momentum": name == "adam"}
        return PyroLRScheduler(OneCycleLR, arguments | cycle)
    return PyroOptim(constructor, {"lr": lr})


def trapezoid(steps: int, step: int) -> float:
    r"""Return the factor of the learning rate at a step from 0: up from a third, constant, and down to 0.

    .. math:: \min\Big( \frac{1}{3} + \frac{t + 1}{150}, \; 1, \; \frac{T - t}{\lceil 0.3 \, T \rceil} \Big)

    Before the fall, the factor does not depend on the number of steps T.

    References:
        Scaling Vision Transformers (Zhai et al., 2022), for the rise and the fall.
        Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations (Hägele et al., 2024).
    """
    return min(1 / 3 + (step + 1) / (1.5 * RISE), 1.0, (steps - step) / math.ceil(FALL * steps))


def steps_before_fall(schedule: str, steps: int) -> int:
    """Return the number of steps before a trapezoid falls; all steps for another schedule."""
    return steps - math.ceil(FALL * steps) if schedule == "trapezoid" else steps


class _WithoutCompiler(torch.optim.Optimizer):
    """Base class of an optimizer that does not import torch's compiler, which takes seconds."""

    add_param_group: Any = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict: Any = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict: Any = unwrap(torch.optim.Optimizer.load_state_dict)


class Adam(_WithoutCompiler, torch.optim.Adam):
    """Torch's Adam."""

    step: Any = torch.no_grad()(unwrap(torch.optim.Adam.step))


def matrices_of(program: nn.Module) -> list[Tensor]:
    """Return the weight matrices of the dense layers."""
    return [layer.weight for layer in program.modules() if type(layer) is nn.Linear]


class Muon(_WithoutCompiler):
    r"""Muon for matrices, Adam for all other parameters.

    .. math:: B_t = \mu B_{t-1} + (1 - \mu) G_t, \qquad
        \theta_t = \theta_{t-1} - 0.2 \, \gamma_t \sqrt{\max(m, n)} \; U V^\top
        \quad \text{where } (1 - \mu) G_t + \mu B_t = U S V^\top

    Each matrix in ``matrices`` has shape (m, n). The update has the same length in every direction of the matrix, for
    any gradient. The factor makes Muon's update as large as Adam's update, so Muon and Adam share the learning rate
    :math:`\gamma`.

    References:
        `Muon: An optimizer for hidden layers in neural networks <https://kellerjordan.github.io/posts/muon/>`_ (Jordan
        et al., 2024).
        `Muon is Scalable for LLM Training <https://arxiv.org/abs/2502.16982>`_ (Liu et al., 2025), for the factor.
    """

    def __init__(self, params: Any, matrices: list[Tensor], lr: float = 1e-3, momentum: float = 0.95) -> None:
        ids = {id(matrix) for matrix in matrices}
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        subgroups = [
            group | {"params": subset, "muon": muon}
            for group in groups
            for muon in (True, False)
            if (subset := [parameter for parameter in group["params"] if (id(parameter) in ids) is muon])
        ]
        super().__init__(subgroups, {"lr": lr, "momentum": momentum, "muon": False})
        self._adam: Adam | None = None
        self._current_adam()

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update the parameters from their ``grad``."""
        if adam := self._current_adam():
            adam.step()
        for group in self.param_groups:
            for matrix in group["params"] if group["muon"] else ():
                if matrix.grad is not None:
                    state = self.state[matrix]
                    if not state:
                        state["momentum"] = torch.zeros_like(matrix)
                    mean = state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                    update = orthogonal(matrix.grad.lerp(mean, group["momentum"]))
                    matrix.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)

    def _current_adam(self) -> Adam | None:
        """Return Adam with this optimizer's other groups and its state, which ``load_state_dict`` replaces."""
        groups = [group for group in self.param_groups if not group["muon"]]
        if groups and (self._adam is None or any("eps" not in group for group in groups)):
            self._adam = Adam(groups, lr=self.defaults["lr"], fused=True)
        if self._adam is not None:
            self._adam.param_groups, self._adam.state = groups, self.state
        return self._adam


def orthogonal(matrix: Tensor) -> Tensor:
    r"""Approximate :math:`U V^\top` of a matrix :math:`U S V^\top`, whose singular values become about 1.

    The function divides X by the Frobenius norm, and multiplies X three times by a polynomial of the Gram matrix:

    .. math:: X_{i+1} = (a_i I + b_i G_i + c_i G_i^2) X_i, \qquad G_i = X_i X_i^\top

    The polynomials map singular values in [0.01, 1] to [0.73, 1.27], the best possible range in three steps. A smaller
    singular value s becomes 78 s. All products except the last multiply Gram matrices of the shorter side, in the
    dtype of X.

    References:
        `The Polar Express <https://arxiv.org/abs/2505.16932>`_ (Amsel, Persson, Musco and Gower, 2025).
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=torch.finfo(wide.dtype).tiny)
    gram, factor, factors = wide @ wide.T, None, None
    for a, b, c in COEFFICIENTS:
        gram = gram if factor is None else factor @ gram @ factor
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        factors = factor if factors is None else factor @ factors
    result = factors @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T
