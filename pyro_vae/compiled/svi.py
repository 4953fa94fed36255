"""Stochastic variational inference whose steps run as a graph."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, get_args

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.optim import PyroOptim
from pyro.util import warn_if_nan
from torch import Tensor, nn

from pyro_vae.compiled.device import Precision, device_of, fast_products, flush_subnormals
from pyro_vae.compiled.optimizer import Optimizer
from pyro_vae.compiled.traced import Compile, GraphedFunction, Outputs
from pyro_vae.objectives import ELBO, Objective
from pyro_vae.objectives.base import Program, Terms, check_choice


class CompiledSVI(SVI):
    """Pyro's ``SVI`` with steps that run as a recorded graph, as fast as code without Pyro.

    The signature, ``step`` and ``evaluate_loss`` match ``pyro.infer.SVI``, and results are equal up to rounding. Step 1
    runs plain Pyro, with full validation. Step 2 records a graph. Step 3 runs plain Pyro and the graph, and compares
    the results. Later steps run the graph, without Pyro's handlers. Arguments of another shape have another graph,
    recorded at their 50th step. A step that cannot be recorded (for example, the model branches on a tensor) runs in
    plain Pyro, and one warning gives the reason. One torch optimizer, fused if possible, updates all parameters.

    Note:
        A graph sees only changes of tensors. A Python counter in the model, or a number drawn with NumPy, keeps the
        value from the recording.

    Arguments:
        model: The model.
        guide: The guide.
        optim: A ``PyroOptim``. Call ``step()`` of a ``PyroLRScheduler`` yourself, as with ``SVI``.
        loss: An objective of :mod:`pyro_vae.objectives`; ``Trace_ELBO`` or ``TraceMeanField_ELBO`` (the graph uses this
            package's ELBO instead); your own ELBO, if ``differentiable_loss`` reads no number from a tensor; or a
            function of model, guide and arguments. Pyro's other losses run in plain Pyro.
        loss_and_grads, num_samples, num_steps: As in ``SVI``.
        compile: How a step runs: ``graph``, a graph; ``inductor``, a graph that TorchInductor compiles at once;
            ``auto``, a graph that TorchInductor compiles if this saves time in the run; ``off``, plain Pyro.
        precision: Precision of matrix products: ``auto``, the fastest precision as accurate as torch's float32
            default; ``float32``, torch's default; ``bfloat16``, with parameters and optimizer in float32.
        clip_norm: Largest norm of the gradient over all parameters, of the loss summed over the data.
        steps: The number of steps to come, if known, so that ``auto`` compiles at the start.

    Raises:
        ValueError: If an argument is not one of its choices.

    See Also:
        :func:`pyro_vae.fit`, which trains with :class:`CompiledSVI`.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro.optim import Adam
        >>> from pyro_vae import VAE
        >>> vae = VAE.build((1, 8, 8), latent=2)
        >>> svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
        >>> losses = [svi.step(torch.rand(32, 1, 8, 8)) for _ in range(5)]  # nats, summed over the 32
        >>> svi.mode
        'graph'
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: PyroOptim,
        loss: pyro.infer.ELBO | Callable[..., Any],
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        compile: Compile = "auto",
        precision: Precision = "auto",
        clip_norm: float | None = None,
        steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("compile", compile, get_args(Compile))
        check_choice("precision", precision, get_args(Precision))
        super().__init__(model, guide, optim, loss, loss_and_grads, num_samples, num_steps, **kwargs)
        self.precision = precision
        self._objective = loss if isinstance(loss, Objective) else None
        self._terms = None if loss_and_grads else _terms_of(loss)
        self._optimizer = Optimizer(optim, clip_norm)
        owners = [getattr(program, "__self__", program) for program in (model, guide)]
        layers = [layer for owner in owners if isinstance(owner, nn.Module) for layer in owner.modules()]
        self._buffers = [layer._buffers for layer in layers if layer._buffers]
        # A program's context for data without missing elements; a handler around the model may need the elements.
        complete = getattr(owners[0], "complete", None) if owners[0] is owners[1] else None
        self._complete: Any = complete if callable(complete) else None
        self._is_complete = False
        self._gradients = GraphedFunction(self._loss_and_gradients, compile, steps, self._key, _in_store)
        self._value = GraphedFunction(self._loss_and_gradients, compile, None, self._key, _in_store)
        if self._terms is None and compile != "off":
            reason = f"{type(loss).__name__} reads numbers from tensors, so a step cannot run as a graph"
            warnings.warn(f"Falling back to plain Pyro: {reason}. Use one of pyro_vae.objectives.", stacklevel=2)

    @property
    def mode(self) -> str:
        """The mode of a step, ``off`` (plain Pyro), ``graph`` or ``inductor``."""
        return "off" if self._terms is None else self._gradients.mode

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step; return the loss as a number, in nats summed over the data."""
        loss = self.update(*args, **kwargs)
        return type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a number, in nats summed over the data, without a step."""
        if self._terms is None:
            return super().evaluate_loss(*args, **kwargs)
        self._is_complete = self._complete is not None and _without_nan(args, kwargs)
        with torch.no_grad(), fast_products(self.precision):
            (loss, *_), _ = self._value((None, *args), kwargs)
        return torch_item(loss)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step; return the loss as a tensor, without waiting for a GPU."""
        loss, parameters = self.gradients(args, kwargs)
        if self._terms is not None and not parameters:
            with self._context(None, args, kwargs):
                return self.loss_and_grads(self.model, self.guide, *args, **kwargs)  # warns of the missing parameters
        if self.mode != "off" and loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self._loss_and_gradients(None, *args, **kwargs)  # raises where Pyro's validation finds the cause
            warn_if_nan(loss, "loss")
        self.apply(parameters)
        return loss

    def gradients(
        self,
        args: tuple,
        kwargs: dict[str, Any] | None = None,
        handler: AbstractContextManager | None = None,
        record: bool = False,
    ) -> tuple[Any, list[Tensor]]:
        """Set each ``grad`` without a step; return the loss, in nats summed over the data, and the parameters.

        ``handler`` is a context around model and guide. ``record`` records the graph now.
        """
        kwargs = kwargs or {}
        self._is_complete = self._complete is not None and _without_nan(args, kwargs)
        with fast_products(self.precision), flush_subnormals():
            if self._terms is None:
                with self._context(handler, args, kwargs), pyro.poutine.trace(param_only=True) as capture:
                    loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
                return loss, _trained(_params_of(capture))
            run = self._gradients.record if record else self._gradients
            (loss, neg_elbo, *gradients), params = run((handler, *args), kwargs)
        if self._objective is not None:
            self._objective.plain = neg_elbo
        parameters = _trained(params) if gradients else []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss, parameters

    def apply(self, parameters: Sequence[Tensor], finite: bool = True) -> None:
        """Update the parameters from ``grad`` if ``finite``; clear each ``grad``, and advance a schedule of beta."""
        if finite:
            with flush_subnormals():
                self._optimizer.step(parameters)
        for parameter in parameters:
            parameter.grad = None
        if self._objective is not None and self._terms is not None:
            self._objective.advance()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and any learning-rate schedule; before the first step, an empty state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        """Restore a state of the optimizer for ``parameters``."""
        self._optimizer.load_state_dict(state, parameters)

    def _loss_and_gradients(self, handler: Any, *args: Any, **kwargs: Any) -> Outputs:
        """Return the loss, minus the ELBO, and the gradients where torch records them; keep the parameters."""
        assert self._terms is not None
        with self._context(handler, args, kwargs), pyro.poutine.trace(param_only=True) as capture:
            terms = self._terms(self.model, self.guide, *args, **kwargs)
        params, gradients = _params_of(capture), tuple[Tensor, ...]()
        if terms.loss.requires_grad and _trained(params):
            gradients = torch.autograd.grad(terms.loss, _trained(params), allow_unused=True)
        return Outputs([terms.loss.detach(), terms.plain, *gradients], params)

    @contextmanager
    def _context(self, handler: AbstractContextManager | None, args: tuple, kwargs: dict) -> Iterator[None]:
        """Enter a handler, and autocast for bfloat16."""
        kind = device_of(args, kwargs).type
        products: Any = torch.autocast(kind, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        torch.clear_autocast_cache()  # inside another autocast it holds the weights of the last step
        with self._complete() if self._is_complete else nullcontext(), handler or nullcontext(), products:
            yield

    def _key(self) -> tuple:
        """Return whether x is complete, the training mode of model and guide, and the identity of their buffers."""
        modes = (getattr(getattr(part, "__self__", part), "training", None) for part in (self.model, self.guide))
        return self._is_complete, *modes, *(id(buffer) for buffers in self._buffers for buffer in buffers.values())


def _terms_of(loss: Any) -> Callable[..., Terms] | None:
    """Return the loss as a function to :class:`Terms`; None if it reads numbers from tensors."""
    if type(loss) in (Trace_ELBO, TraceMeanField_ELBO):
        kl: Any = "sampled" if type(loss) is Trace_ELBO else "auto"
        loss = ELBO(loss.num_particles, kl=kl, vectorize_particles=loss.vectorize_particles)
    if isinstance(loss, Objective):
        return loss.terms
    if isinstance(loss, pyro.infer.ELBO):
        if type(loss).__module__.startswith("pyro.") or not hasattr(loss, "differentiable_loss"):
            return None
        loss = loss.differentiable_loss

    def terms(*args: Any, **kwargs: Any) -> Terms:
        return Terms(torch.as_tensor(loss(*args, **kwargs)), torch.tensor(math.nan))

    return terms


def _without_nan(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether no tensor of floats has an element that is NaN; on a GPU, where the answer would wait, return False."""
    for value in (*args, *kwargs.values()):
        if not isinstance(value, Tensor):
            return False
        if value.is_floating_point() and (value.device.type != "cpu" or not math.isfinite(value.detach().sum().item())):
            return False
    return True


def _params_of(capture: Any) -> dict[str, Tensor]:
    """Return the unconstrained parameters of a trace, by name."""
    return {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}


def _trained(params: dict[str, Tensor]) -> list[Tensor]:
    """Return each parameter that requires a gradient, once."""
    return [parameter for parameter in dict.fromkeys(params.values()) if parameter.requires_grad]


def _in_store(params: dict[str, Tensor]) -> tuple[bool, ...]:
    """Return which of the parameters Pyro's store holds: after ``clear_param_store`` it holds new ones."""
    store = dict(pyro.get_param_store().named_parameters())
    return tuple(store.get(name) is tensor for name, tensor in params.items())
