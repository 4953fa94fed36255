"""A function of tensors, recorded as a graph of tensor operations."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pyro_vae.compiled.simplifying import fold, narrow, prune, writes

CALL = 4000
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_convolution")


class Graph:
    """A function as the tensor operations of one run of it, without all else that it did, as Pyro's handlers do.

    It is for tensors of these shapes, strides, dtypes and devices, and holds the very tensors that the function closes
    over, whose new numbers the next call sees; if they are ``frozen``, what follows from them alone is computed once.
    Each call draws afresh, from torch's generators in the function's order. Torch raises where it looks at a number.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], tensors: Sequence[Tensor], frozen: bool = False) -> None:
        self.outputs: Sequence[Any] = ()

        def record(*inputs: Tensor) -> list[Any]:
            self.outputs = function(*inputs)
            return list(self.outputs)

        # Or torch would make such a mode for each operation, which takes as long again as the recording.
        with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))), _OneHot():
            module = make_fx(record)(*tensors)
        narrow(module.graph)
        prune(module.graph)
        self.state = _lift(module)
        if frozen:
            self.state = fold(module.graph, self.state)
        module.recompile()
        self.nodes = [node for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
        self.work = _work(self.nodes)  # which a compiler may save, about half a nanosecond each on a CPU
        self._module = module
        self._run: Callable[..., Any] = module

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """Run it on other tensors."""
        with torch.no_grad():
            return self._run(*tensors, *self.state)

    def compile(self, tensors: Sequence[Tensor]) -> None:
        """Have TorchInductor compile it: kernels fused, the same draws, results equal to rounding."""
        from torch import _inductor

        with torch.no_grad():
            self._run = _inductor.compile(self._module, [*tensors, *self.state], options={"fallback_random": True})

    @property
    def written(self) -> list[Tensor]:
        """The closed-over tensors that it writes to, as the running means of batch normalisation."""
        places = [node for node in self._module.graph.nodes if node.op == "placeholder"]
        closed_over = dict(zip(reversed(places), reversed(self.state), strict=False))
        return [
            closed_over[value]
            for node in self.nodes
            for argument, value in zip(node.target._schema.arguments, node.args, strict=False)
            if isinstance(value, fx.Node) and value in closed_over and writes(argument)
        ]


class _OneHot(TorchFunctionMode):
    """Computes one-hot codes of so many classes without a look at the labels, which torch checks by their numbers."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        named = dict(zip(("tensor", "num_classes"), args, strict=False)) | (kwargs or {})
        if func is torch.nn.functional.one_hot and named.get("num_classes", -1) > 0:
            labels = named["tensor"]
            return (labels.unsqueeze(-1) == torch.arange(named["num_classes"], device=labels.device)).long()
        return func(*args, **(kwargs or {}))


def _work(nodes: list[fx.Node]) -> int:
    """Numbers written by the operations that a compiler fuses; to call one costs as much as to write some thousands."""
    work = 0
    for node in nodes:
        operation: Any = node.target
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not operation.is_view and operation.overloadpacket.__name__ not in PRODUCTS:
            work += CALL + value.numel()
    return work


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Make every closed-over tensor an input, after the others; return them."""
    state: list[Tensor] = []
    places: dict[str, fx.Node] = {}
    first = next(node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr"))
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        if name not in places:
            with module.graph.inserting_before(first):
                places[name] = module.graph.placeholder(f"state_{len(state)}")
            places[name].meta = dict(node.meta)
            state.append(getattr(module, name))
        node.replace_all_uses_with(places[name])
        module.graph.erase_node(node)
    for name in places:
        delattr(module, name)
    return state


def can_compile(device: torch.device) -> bool:
    """Whether what TorchInductor compiles with is there: a C++ compiler for the CPU, Triton for a GPU."""
    if device.type != "cpu":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))
