r"""Stochastic variational inference, with the step as a graph."""

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

from pyro_vae.compiled.device import Precision, device_of, fast_products
from pyro_vae.compiled.optimizer import Optimizer
from pyro_vae.compiled.traced import Compile, Outputs, Traced
from pyro_vae.objectives import ELBO, Objective
from pyro_vae.objectives.base import Program, Terms, check_choice


class CompiledSVI(SVI):
    r"""Pyro's ``SVI``, as fast as code without Pyro: the step is recorded once and run as a graph.

    The signature, ``step`` and ``evaluate_loss`` are those of ``pyro.infer.SVI``; so are the numbers, to rounding. The
    first step is ordinary Pyro, with all of its validation, the second is recorded, the third is run both ways and
    compared, and from then on Pyro's handlers do not run. Another shape of the arguments is a graph of its own, once it
    has come 50 times. What cannot be recorded, as a model that branches on the numbers in a tensor, goes on in plain
    Pyro, and a warning says so once. What changes between steps must be a tensor: a count in the model, or a number
    drawn with NumPy, would stay the same. One torch optimizer steps all parameters, fused where torch has it so.

    Arguments:
        model: The model.
        guide: The guide.
        optim: A ``PyroOptim``; a ``PyroLRScheduler`` is stepped by its own ``step()``, as ever.
        loss: An objective of :mod:`pyro_vae.objectives`; ``Trace_ELBO`` or ``TraceMeanField_ELBO``, in whose place
            the ELBO of this package is recorded; an ELBO of your own with a ``differentiable_loss`` that looks at no
            number; or a function of model, guide and arguments. Other losses of Pyro's run in plain Pyro.
        loss_and_grads, num_samples, num_steps: As in ``SVI``.
        compile: ``auto``, the graph, compiled by TorchInductor in a run long enough to pay for it; ``off``, plain
            Pyro; ``graph``; ``inductor``.
        precision: ``auto``, float32 products in the fastest way that is as accurate as torch's default; ``float32``,
            torch's default; ``bfloat16``, products of bfloat16 numbers, parameters and optimizer in float32.
        clip_norm: Largest norm of the whole gradient, of a loss summed over the data; a longer one is shortened.
        steps: How many steps are to come, if known, so that ``auto`` compiles at the start.

    Raises:
        ValueError: If an argument is not one of its choices.

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
        self._terms = None if loss_and_grads else _terms(loss)
        self._optimizer = Optimizer(optim, clip_norm)
        parts = [getattr(part, "__self__", part) for part in (model, guide)]
        layers = [layer for part in parts if isinstance(part, nn.Module) for layer in part.modules()]
        self._buffers = [layer._buffers for layer in layers if layer._buffers]
        self._gradients = Traced(self._loss_and_gradients, compile, steps, self._modes, _in_store)
        self._value = Traced(self._loss_and_gradients, compile, None, self._modes, _in_store)
        if self._terms is None and compile != "off":
            looks = f"{type(loss).__name__} looks at numbers in tensors, so a step cannot be a graph"
            warnings.warn(f"Going on in plain Pyro: {looks}. Use an objective of pyro_vae.objectives.", stacklevel=2)

    @property
    def mode(self) -> str:
        """How steps are run now: ``off`` (plain Pyro), ``graph`` or ``inductor``."""
        return "off" if self._terms is None else self._gradients.mode

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step; return the loss in nats, summed over the data, as a number."""
        loss = self.update(*args, **kwargs)
        return type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """Return the loss in nats, summed over the data, without a step."""
        if self._terms is None:
            return super().evaluate_loss(*args, **kwargs)
        with torch.no_grad(), fast_products(self.precision):
            (loss, *_), _ = self._value((None, *args), kwargs)
        return torch_item(loss)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step; return the loss as a tensor, so that a GPU need not be waited for."""
        loss, parameters = self.gradients(args, kwargs)
        if self._terms is not None and not parameters:
            with self._around(None, args, kwargs):
                return self.loss_and_grads(self.model, self.guide, *args, **kwargs)  # which says what is wrong
        if self.mode != "off" and loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self._loss_and_gradients(None, *args, **kwargs)  # Pyro says why, where it is something that it checks
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
        """Return the loss, and the parameters with its gradient as ``grad``; ``record``: as :meth:`Traced.record`."""
        kwargs = kwargs or {}
        with fast_products(self.precision):
            if self._terms is None:
                with self._around(handler, args, kwargs), pyro.poutine.trace(param_only=True) as capture:
                    loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
                return loss, _trained(_met(capture))
            run = self._gradients.record if record else self._gradients
            (loss, plain, *gradients), known = run((handler, *args), kwargs)
        if self._objective is not None:
            self._objective.plain = plain
        parameters = _trained(known) if gradients else []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss, parameters

    def apply(self, parameters: Sequence[Tensor], finite: bool = True) -> None:
        """Step parameters along their ``grad``, where it is ``finite``, and let go of it; a scheduled beta goes on."""
        if finite:
            self._optimizer.step(parameters)
        for parameter in parameters:
            parameter.grad = None
        if self._objective is not None and self._terms is not None:
            self._objective.advance()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and of its schedule, if there is one; nothing before the first step."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        """Take up a state of the optimizer over these parameters; refuse another optimizer's, or other parameters'."""
        self._optimizer.load_state_dict(state, parameters)

    def _loss_and_gradients(self, handler: Any, *args: Any, **kwargs: Any) -> Outputs:
        """Return the loss, minus the ELBO, and gradients unless torch computes none; keep the parameters Pyro met."""
        assert self._terms is not None
        with self._around(handler, args, kwargs), pyro.poutine.trace(param_only=True) as capture:
            terms = self._terms(self.model, self.guide, *args, **kwargs)
        known, gradients = _met(capture), tuple[Tensor, ...]()
        if terms.loss.requires_grad and _trained(known):
            gradients = torch.autograd.grad(terms.loss, _trained(known), allow_unused=True)
        return Outputs([terms.loss.detach(), terms.plain, *gradients], known)

    @contextmanager
    def _around(self, handler: AbstractContextManager | None, args: tuple, kwargs: dict) -> Iterator[None]:
        kind = device_of(args, kwargs).type
        products: Any = torch.autocast(kind, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        torch.clear_autocast_cache()  # which inside another autocast has the weights of the step before
        with handler or nullcontext(), products:
            yield

    def _modes(self) -> tuple:
        """Whether the modules that model and guide are, or are methods of, are in training mode; their buffers."""
        modes = (getattr(getattr(part, "__self__", part), "training", None) for part in (self.model, self.guide))
        return *modes, *(id(buffer) for buffers in self._buffers for buffer in buffers.values())


def _terms(loss: Any) -> Callable[..., Terms] | None:
    """Return the loss as tensors to the end, where it can be."""
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


def _met(capture: Any) -> dict[str, Tensor]:
    """Return the parameters that Pyro met, unconstrained, by name."""
    return {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}


def _trained(known: dict[str, Tensor]) -> list[Tensor]:
    """Return those to be trained, each once."""
    return [parameter for parameter in dict.fromkeys(known.values()) if parameter.requires_grad]


def _in_store(known: dict[str, Tensor]) -> tuple[bool, ...]:
    """Return which of these tensors Pyro's store holds: after ``clear_param_store`` it makes others."""
    store = dict(pyro.get_param_store().named_parameters())
    return tuple(store.get(name) is tensor for name, tensor in known.items())
