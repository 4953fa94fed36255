"""A function of tensors, recorded as a graph of tensor operations, without those that need not be done."""

import importlib.util
import operator
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro
import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

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
        self.outputs: Sequence[Any] = ()

        def record(*inputs: Tensor) -> list[Any]:
            self.outputs = function(*inputs)
            return list(self.outputs)

        # Or torch would make such a mode for each operation, which takes as long again as the recording.
        with tracing(TracingContext(_Shapes(allow_fallback_kernels=True))), _OneHot():
            module = make_fx(record)(*tensors)
        narrow(module.graph)
        prune(module.graph)
        self.state = _lift(module)
        if frozen:
            self.state = fold(module.graph, self.state)
        self.trained = [tensor.requires_grad for tensor in self.state]
        module.recompile()
        self.nodes = [node for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
        fused = [(node.target, node.meta.get("val")) for node in self.nodes]
        self.work = sum(  # numbers that a compiler need not write, half a nanosecond each; a call is as some thousands
            CALL + value.numel()
            for operation, value in fused
            if isinstance(value, Tensor) and not operation.is_view and operation.overloadpacket.__name__ not in PRODUCTS
        )
        self._module = module
        self._run: Callable[..., Any] = module

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """Run it on other tensors."""
        with torch.no_grad():
            return self._run(*tensors, *self.state)

    def compile(self, tensors: Sequence[Tensor]) -> None:
        """Have TorchInductor compile it: kernels fused, the same draws, results equal to rounding."""
        from torch import _inductor

        with torch.no_grad(), pyro.validation_enabled():  # which torch's compiler turns off, and is put back after
            self._run = _inductor.compile(self._module, [*tensors, *self.state], options={"fallback_random": True})


class Undo(TorchDispatchMode):
    """Keeps what tensors were before operations wrote to them, as to the running means of batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        arguments = func._schema.arguments
        given = dict(zip((one.name for one in arguments), args, strict=False)) | (kwargs or {})
        for tensor in tree_leaves([given.get(one.name) for one in arguments if writes(one)]):
            real = isinstance(tensor, Tensor) and not isinstance(tensor, FakeTensor)
            if real and all(tensor is not known for known, _ in self._kept):
                self._kept.append((tensor, tensor.clone()))
        return func(*args, **(kwargs or {}))

    def swap(self) -> None:
        """Put back what they were, and keep what they are; the last first, since one may be a view of another."""
        before, self._kept = self._kept, []
        for tensor, numbers in reversed(before):
            self._kept.append((tensor, tensor.clone()))
            tensor.detach().copy_(numbers)


class _Shapes(FakeTensorMode):
    """Makes the tensors that stand for results by itself, which is faster than torch's own way."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.empty_strided.default and kwargs and "device" in kwargs:
            meta = torch.empty_strided(*args, **{**kwargs, "device": "meta"})
            return FakeTensor(self, meta, kwargs["device"])
        return super().__torch_dispatch__(func, types, args, kwargs or {})


class _OneHot(TorchFunctionMode):
    """Computes one-hot codes of so many classes without a look at the labels, which torch checks by their numbers."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        named = dict(zip(("tensor", "num_classes"), args, strict=False)) | (kwargs or {})
        if func is torch.nn.functional.one_hot and named.get("num_classes", -1) > 0:
            labels = named["tensor"]
            return (labels.unsqueeze(-1) == torch.arange(named["num_classes"], device=labels.device)).long()
        return func(*args, **(kwargs or {}))


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Make every closed-over tensor an input, after the others; return them."""
    places: dict[str, fx.Node] = {}
    first = next(node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr"))
    for node in module.graph.find_nodes(op="get_attr"):
        if node.target not in places:
            with module.graph.inserting_before(first):
                places[node.target] = module.graph.placeholder(f"state_{len(places)}")
            places[node.target].meta = dict(node.meta)
        node.replace_all_uses_with(places[node.target])
        module.graph.erase_node(node)
    state = [getattr(module, name) for name in places]
    for name in places:
        delattr(module, name)
    return state


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
        short.meta = {**node.meta, "val": node.meta["val"].new_empty(few.meta["val"].shape)}
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
    schemas = [node.target._schema for node in calls if node.target is not operator.getitem]
    if any(writes(argument) for schema in schemas for argument in schema.arguments):
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
            args, kwargs = map_arg((node.args, node.kwargs), lambda each: known[each] if each in known else _like(each))
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


def _like(node: fx.Node) -> Tensor:
    """Return a tensor of a node's shape, whose numbers nobody looks at."""
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def writes(argument: Any) -> bool:
    """Whether an operation writes to an argument, as batch normalisation does to two without its schema saying so."""
    unsaid = argument.name in ("running_mean", "running_var")
    return unsaid or (argument.alias_info is not None and argument.alias_info.is_write)


def can_compile(device: torch.device) -> bool:
    """Whether what TorchInductor compiles with is there: a C++ compiler for the CPU, Triton for a GPU."""
    if device.type != "cpu":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))
