"""A function of tensors, recorded as a graph of tensor operations, without those that need not be done."""

import importlib.util
import operator
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import pyro
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_leaves

from pyro_vae.compiled.tape import Like, Tape
from pyro_vae.operations import Operations

CALL = 4000
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_convolution")
# What returns its argument, where no gradient is asked for.
SAME = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
# Of whose argument the shape alone is asked for.
SHAPED = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
EXPAND = torch.ops.aten.expand.default
# Of each element by itself, and with numbers for their other arguments.
OF_EACH = {
    getattr(torch.ops.aten, name).default
    for name in ("log", "exp", "neg", "sqrt", "rsqrt", "reciprocal", "log1p", "expm1", "abs", "sigmoid", "softplus")
} | {torch.ops.aten.pow.Tensor_Scalar, *(getattr(torch.ops.aten, n).Tensor for n in ("add", "sub", "mul", "div"))}


class Graph:
    """A function as the tensor operations of one run of it, without all else that it did, as Pyro's handlers do.

    It is for tensors of these shapes, strides, dtypes and devices, and holds the very tensors that the function closes
    over, whose new numbers the next call sees; if they are ``frozen``, what follows from them alone is computed once.
    Each call draws afresh, from torch's generators in the function's order. Torch raises where it looks at a number.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], tensors: Sequence[Tensor], frozen: bool = False) -> None:
        tape = Tape(function, tensors)
        graph, self.state, self.outputs = tape.graph, tape.state, tape.outputs
        narrow(graph)
        prune(graph)
        if frozen:
            self.state = fold(graph, self.state)
        self.trained = [tensor.requires_grad for tensor in self.state]
        self.nodes = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
        fused = [(node.target, node.meta.get("val")) for node in self.nodes]
        self.work = sum(  # numbers that a compiler need not write, half a nanosecond each; a call is as some thousands
            CALL + value.numel()
            for operation, value in fused
            if isinstance(value, Like) and not operation.is_view and operation.overloadpacket.__name__ not in PRODUCTS
        )
        for node in graph.nodes:
            node.meta = {}  # which TorchInductor reads as its own
        self._module = fx.GraphModule(torch.nn.Module(), graph)
        self._run: Callable[..., Any] = self._module

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """Run it on other tensors."""
        with torch.no_grad():
            return self._run(*tensors, *self.state)

    def compile(self, tensors: Sequence[Tensor]) -> None:
        """Have TorchInductor compile it: kernels fused, the same draws, results equal to rounding."""
        from torch import _inductor

        with torch.no_grad(), pyro.validation_enabled():  # which torch's compiler turns off, and is put back after
            self._run = _inductor.compile(self._module, [*tensors, *self.state], options={"fallback_random": True})


class Undo(Operations):
    """Keeps what tensors were before operations wrote to them, as to the running means of batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        names, written = arguments_of(func)
        given = dict(zip(names, args, strict=False)) | (kwargs or {}) if written else {}
        for tensor in tree_leaves([given.get(name) for name in written]):
            if isinstance(tensor, Tensor) and all(tensor is not known for known, _ in self._kept):
                self._kept.append((tensor, tensor.clone()))
        return func(*args, **(kwargs or {}))

    def swap(self) -> None:
        """Put back what they were, and keep what they are; the last first, since one may be a view of another."""
        before, self._kept = self._kept, []
        for tensor, numbers in reversed(before):
            self._kept.append((tensor, tensor.clone()))
            tensor.detach().copy_(numbers)


def narrow(graph: fx.Graph) -> None:
    """Compute a function of a few numbers once for each, where distributions repeat them first, as log of a scale."""
    few: Any  # a node, as fx does not say
    for node in list(graph.nodes):
        if node.target is EXPAND:
            few = node.args[0].args[0] if node.args[0].target is EXPAND else node.args[0]
            node.args = (few, list(node.meta["val"].shape))
            if few.meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(few)
                graph.erase_node(node)
            continue
        nodes = [each for each in (*node.args, *node.kwargs.values()) if isinstance(each, fx.Node)]
        if node.target not in OF_EACH or len(nodes) != 1 or nodes[0].target is not EXPAND:
            continue
        wide, few = nodes[0], nodes[0].args[0]
        if few.meta["val"].numel() == wide.meta["val"].numel() or node.meta["val"].shape != wide.meta["val"].shape:
            continue
        with graph.inserting_before(node):
            short = graph.call_function(node.target, (few, *node.args[1:]), node.kwargs)
            long = graph.call_function(EXPAND, (short, list(node.meta["val"].shape)))
        short.meta = {"val": node.meta["val"].of_shape(few.meta["val"].shape)}
        long.meta = dict(node.meta)
        node.replace_all_uses_with(long)
        graph.erase_node(node)


def prune(graph: fx.Graph) -> None:
    """Leave out what nothing depends on, but no draw: the generators are to go on as the function's would."""
    for node in list(graph.nodes):
        if node.target in SAME:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code(_stays)


def _stays(node: fx.Node) -> bool:
    """Whether a node is there for more than its value."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags
    return node.op in ("placeholder", "output")


@torch.no_grad()
def fold(graph: fx.Graph, state: list[Tensor]) -> list[Tensor]:
    """Compute once what closed-over tensors decide, or comes twice, unless the graph writes; return such tensors."""
    calls, places = ([node for node in graph.nodes if node.op == op] for op in ("call_function", "placeholder"))
    if any(node.target is not operator.getitem and arguments_of(node.target)[1] for node in calls):
        return state
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
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: known[n] if n in known else _empty(n))
            known[node] = cast(Any, node.target)(*args, **kwargs)
    for node, value in list(known.items()):
        if node.op != "placeholder" and isinstance(value, Tensor) and any(user not in known for user in node.users):
            with graph.inserting_after(places[-1]):
                places.append(graph.placeholder(f"known_{len(places)}"))
            places[-1].meta = dict(node.meta)
            node.replace_all_uses_with(places[-1], lambda user: user not in known)
            known[places[-1]] = value
    graph.eliminate_dead_code(_stays)
    closed_over = [node for node in places if node in known]
    for node in closed_over:
        if not node.users:
            graph.erase_node(node)
    return [known[node] for node in closed_over if node.users]


def _empty(node: fx.Node) -> Tensor:
    """Return a tensor of a node's shape, whose numbers nobody looks at."""
    val = node.meta["val"]
    return torch.empty_strided(val.shape, val.stride, dtype=val.dtype, device=val.device)


@cache
def arguments_of(operation: Any) -> tuple[list[str], list[str]]:
    """Return the names of an operation's arguments, and of those it writes to: two of batch normalisation unsaid."""
    arguments = operation._schema.arguments
    written = [one.name for one in arguments if one.alias_info is not None and one.alias_info.is_write]
    names = [one.name for one in arguments]
    return names, written + [name for name in names if name in ("running_mean", "running_var")]


def can_compile(device: torch.device) -> bool:
    """Whether what TorchInductor compiles with is there: a C++ compiler for the CPU, Triton for a GPU."""
    if device.type != "cpu":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))
