"""A function of tensors, recorded as a graph of tensor operations."""

from __future__ import annotations

import importlib.util
import operator
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten

__all__ = ["Graph", "can_compile"]

# What returns its argument, where no gradient is asked for.
SAME = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
EXPAND = torch.ops.aten.expand.default
# Of each element by itself, and with numbers for their other arguments.
OF_EACH = {
    getattr(torch.ops.aten, name).default
    for name in ("log", "exp", "neg", "sqrt", "rsqrt", "reciprocal", "log1p", "expm1", "abs", "sigmoid", "softplus")
} | {torch.ops.aten.pow.Tensor_Scalar, *(getattr(torch.ops.aten, n).Tensor for n in ("add", "sub", "mul", "div"))}
CALL = 4000
# Of whose argument the shape alone is asked for.
SHAPED = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
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
        with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
            module = make_fx(record)(*tensors)
        _narrow(module.graph)
        _prune(module.graph)
        self.state = _lift(module)
        if frozen:
            self.state = _fold(module.graph, self.state)
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
            if isinstance(value, fx.Node) and value in found and _writes(argument)
        ]


def _writes(argument: Any) -> bool:
    """Whether an operation writes to an argument, as batch normalisation does to two without its schema saying so."""
    unsaid = argument.name in ("running_mean", "running_var")
    return unsaid or (argument.alias_info is not None and argument.alias_info.is_write)


def _work(nodes: list[fx.Node]) -> int:
    """Numbers written by the operations that a compiler fuses; to call one costs as much as to write some thousands."""
    operations: list[tuple[Any, Any]] = [(node.target, node.meta.get("val")) for node in nodes]
    fused = [pair for pair in operations if pair[0].overloadpacket.__name__ not in PRODUCTS and not pair[0].is_view]
    return sum(CALL + value.numel() for _, value in fused if isinstance(value, Tensor))


def _narrow(graph: fx.Graph) -> None:
    """Compute a function of a few numbers that are repeated, as log of a scale, once for each of them.

    Distributions repeat their parameters first, and take logarithms and squares of a number for every pixel.
    """
    for node in list(graph.nodes):
        if node.target is EXPAND:
            few = node.args[0].args[0] if node.args[0].target is EXPAND else node.args[0]
            node.args = (few, list(node.meta["val"].shape))
            if few.meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(few)
                graph.erase_node(node)
            continue
        wide = node.args[0] if node.target in OF_EACH and node.args else None
        if not (isinstance(wide, fx.Node) and wide.target is EXPAND) or any(
            isinstance(other, fx.Node) for other in (*node.args[1:], *node.kwargs.values())
        ):
            continue
        few = wide.args[0]
        if few.meta["val"].numel() == wide.meta["val"].numel() or node.meta["val"].shape != wide.meta["val"].shape:
            continue
        with graph.inserting_before(node):
            short = graph.call_function(node.target, (few, *node.args[1:]), node.kwargs)
            long = graph.call_function(EXPAND, (short, list(node.meta["val"].shape)))
        short.meta = {**node.meta, "val": node.meta["val"].new_empty(few.meta["val"].shape)}
        long.meta = dict(node.meta)
        node.replace_all_uses_with(long)
        graph.erase_node(node)


def _prune(graph: fx.Graph) -> None:
    """Leave out what nothing depends on, but no draw: the generators are to go on as the function's would."""
    for node in list(graph.nodes):
        if node.target in SAME:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)

    graph.eliminate_dead_code(_stays)


def _stays(node: fx.Node) -> bool:
    """Whether a node is there for more than its value."""
    if node.op in ("placeholder", "output"):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags


@torch.no_grad()
def _fold(graph: fx.Graph, state: list[Tensor]) -> list[Tensor]:
    """Compute what follows from the closed-over tensors alone, and twice the same once; return what is closed over.

    A graph that writes to tensors is left as it is.
    """
    calls = [node for node in graph.nodes if node.op == "call_function"]
    if any(
        _writes(one) for node in calls if node.target is not operator.getitem for one in node.target._schema.arguments
    ):
        return state
    places = [node for node in graph.nodes if node.op == "placeholder"]
    known: dict[fx.Node, Any] = dict(zip(places[len(places) - len(state) :], state, strict=True))
    seen: dict[Any, fx.Node] = {}
    for node in calls:
        if _stays(node):
            continue
        leaves, spec = tree_flatten((node.args, node.kwargs))
        first = seen.setdefault((node.target, spec, *((type(leaf), leaf) for leaf in leaves)), node)
        shaped = node.target is not operator.getitem and node.target.overloadpacket.__name__ in SHAPED
        if first is not node:
            node.replace_all_uses_with(first)
        elif shaped or all(each in known for each in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), lambda each: known[each] if each in known else _like(each))
            operation: Any = node.target
            known[node] = operation(*args, **kwargs)
    for node, value in list(known.items()):
        if node.op != "placeholder" and isinstance(value, Tensor) and any(user not in known for user in node.users):
            with graph.inserting_after(places[-1]):
                places.append(graph.placeholder(f"known_{len(places)}"))
            places[-1].meta = dict(node.meta)
            node.replace_all_uses_with(places[-1], lambda user: user not in known)
            known[places[-1]] = value
    graph.eliminate_dead_code(_stays)
    kept = [node for node in places if node in known and node.users]
    for node in places:
        if node in known and not node.users:
            graph.erase_node(node)
    return [known[node] for node in kept]


def _like(node: fx.Node) -> Tensor:
    """Return a tensor of a node's shape, whose numbers nobody looks at."""
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


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
