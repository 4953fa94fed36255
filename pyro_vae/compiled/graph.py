"""A function of tensors, recorded as a graph of tensor operations."""

from __future__ import annotations

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

__all__ = ["Graph", "can_compile"]

CALL = 4000
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_convolution")


class Graph:
    """A function as the tensor operations of one run of it; whatever else it did, as Pyro's handlers do, is left out.

    That run is a real one, and ``outputs`` are its outputs. The graph holds the very tensors that the function
    closes over, parameters and buffers: what is written to them later is what the next call sees. Each call draws
    afresh, from torch's generators and in the function's order.

    Arguments:
        function: From tensors to a sequence of tensors, or None in places.
        tensors: What to run it on. The graph is for tensors of these shapes, strides, dtypes and devices.
        frozen: Whether what it closes over stays as it is: what follows from that alone is computed once.

    Attributes:
        outputs: Of the run it was recorded on.
        work: What a compiler may save, about half a nanosecond each on a CPU.

    Raises:
        Exception: Whatever the function raises, and torch where the function looks at a number in a tensor.
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
        self.work = _work(self.nodes)
        self._module = module
        self._run: Callable[..., Any] = module

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """Run it on other tensors."""
        with torch.no_grad():
            return self._run(*tensors, *self.state)

    def compile(self, tensors: Sequence[Tensor]) -> None:
        """Have TorchInductor compile it: kernels fused, the same draws, results equal to rounding.

        Raises:
            Exception: Whatever the compilers raise.
        """
        from torch import _inductor

        with torch.no_grad():
            self._run = _inductor.compile(self._module, [*tensors, *self.state], options={"fallback_random": True})

    @property
    def written(self) -> list[Tensor]:
        """The closed-over tensors that it writes to, as the running means of batch normalisation."""
        places = [node for node in self._module.graph.nodes if node.op == "placeholder"][-len(self.state) or None :]
        found = dict(zip(places, self.state, strict=True)) if self.state else {}
        writers = [(node.target._schema.arguments, node.args) for node in self.nodes]
        return [
            found[value]
            for arguments, values in writers
            for argument, value in zip(arguments, values, strict=False)
            if isinstance(value, fx.Node) and value in found and writes(argument)
        ]


class _OneHot(TorchFunctionMode):
    """Computes one-hot codes of so many classes without a look at the labels, which torch checks by their numbers."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do as the function does."""
        named = dict(zip(("tensor", "num_classes"), args, strict=False)) | (kwargs or {})
        if func is torch.nn.functional.one_hot and named.get("num_classes", -1) > 0:
            labels = named["tensor"]
            return (labels.unsqueeze(-1) == torch.arange(named["num_classes"], device=labels.device)).long()
        return func(*args, **(kwargs or {}))


def _work(nodes: list[fx.Node]) -> int:
    """Numbers written by the operations that a compiler fuses; to call one costs as much as to write some thousands."""
    operations: list[tuple[Any, Any]] = [(node.target, node.meta.get("val")) for node in nodes]
    fused = [pair for pair in operations if pair[0].overloadpacket.__name__ not in PRODUCTS and not pair[0].is_view]
    return sum(CALL + value.numel() for _, value in fused if isinstance(value, Tensor))


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Make every closed-over tensor an input, after the others; return them."""
    state: list[Tensor] = []
    places: dict[str, fx.Node] = {}
    last = [node for node in module.graph.nodes if node.op == "placeholder"]
    first = next(iter(module.graph.nodes))
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        if name not in places:
            with module.graph.inserting_after(last[-1]) if last else module.graph.inserting_before(first):
                places[name] = module.graph.placeholder(f"state_{len(state)}")
            places[name].meta = dict(node.meta)
            last.append(places[name])
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
