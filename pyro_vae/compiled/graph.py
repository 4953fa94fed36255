"""Graphs of tensor operations: record a function, remove needless operations, and run or compile the rest."""

import importlib.util
import operator
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from pyro_vae.compiled.memory import Reuse, arguments_of, has_side_effect, remove_dead_code
from pyro_vae.compiled.simplify import simplify
from pyro_vae.compiled.tape import Tape, TensorSpec
from pyro_vae.compiled.uniform import empty
from pyro_vae.operations import Operations

CODE = re.compile(r"c[a-z2-7]{51}(\.main)?\.(so|py|cpp)")  # names of files in TorchInductor's cache
CALL = 4000  # the cost of a call of an operation, in elements written
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_convolution")
# Operations that read only their argument's shape.
OF_SHAPE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")

# Operations that are also functions of torch with the same arguments, and methods of tensors.
FUNCTIONS = frozenset(
    [
        *("abs", "add", "addcmul", "addmm", "baddbmm", "bmm", "cat", "clamp", "div", "empty", "eq", "exp", "expm1"),
        *("full", "ge", "gt", "isnan", "le", "log", "log1p", "logical_and", "logsumexp", "lt", "maximum", "mean"),
        *("minimum", "mm", "mul", "ne", "neg", "ones", "pow", "reciprocal", "relu", "rsqrt", "sgn", "sigmoid", "sqrt"),
        *("stack", "sub", "sum", "t", "tanh", "unbind", "unsqueeze", "where", "zeros"),
    ]
)
METHODS = frozenset({"expand", "normal_", "view"})
SYMMETRIC = frozenset({"add", "mul"})
IN_PLACE = frozenset({"abs", "add", "div", "exp", "log", "mul", "neg", "pow", "relu", "sigmoid", "sqrt", "sub", "tanh"})


class Graph:
    """The tensor operations of one run of a function, without its Python code, such as Pyro's handlers.

    A graph takes tensors of the same shapes, strides, dtypes and devices. A graph also holds the tensors that the
    function closes over, so a call sees the current values of these tensors. If these tensors are ``frozen``, the graph
    computes once all values that depend only on these tensors. Each call draws from torch's generators, in the
    function's order. A function that reads a number from a tensor raises DataDependent.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], tensors: Sequence[Tensor], frozen: bool = False) -> None:
        tape = Tape(function, tensors)
        graph, self.state, self.outputs = tape.graph, tape.state, tape.outputs
        recorded = fx.Graph()
        recorded.output(recorded.graph_copy(graph, {}))
        self._recorded = fx.GraphModule(torch.nn.Module(), recorded), self.state
        simplify(graph)
        if frozen:
            self.state = fold_constants(graph, self.state)
        self.trained = [tensor.requires_grad for tensor in self.state]
        self.nodes = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
        operations = [(node.target, node.meta.get("val")) for node in self.nodes]
        self.work = sum(  # elements that fused kernels need not write, about half a nanosecond each
            CALL + val.numel()
            for operation, val in operations
            if type(val) is TensorSpec and not operation.is_view and operation.overloadpacket.__name__ not in PRODUCTS
        )
        self._run: Callable[..., Any] = by_functions(graph)
        for node in graph.nodes:
            node.meta = {}  # TorchInductor reads other metadata in it
        self._module = fx.GraphModule(torch.nn.Module(), graph)

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """Run the operations on tensors."""
        with torch.no_grad():
            return self._run(*tensors, *self.state)

    def run_recorded(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """Run the operations as recorded, not simplified; their results equal the function's to the last bit."""
        module, state = self._recorded
        with torch.no_grad():
            return module(*tensors, *state)

    def keep_recorded(self) -> None:
        """Run the operations as recorded from now on."""
        self._module, self.state = self._recorded
        self._run = self._module
        self.trained = [tensor.requires_grad for tensor in self.state]

    def compile(self, tensors: Sequence[Tensor]) -> None:
        """Compile with TorchInductor, which fuses kernels. Draws stay the same; results are equal up to rounding."""
        from torch import _inductor

        inputs: list[Any] = [*tensors, *self.state]
        options: dict[str, Any] = {"fallback_random": True}
        with torch.no_grad(), pyro.validation_enabled():  # restores the setting, which torch's compiler turns off
            try:
                # Without a trial of the CPU's instructions, which compiles programs for several seconds.
                self._run = _inductor.compile(self._module, inputs, options=options | {"cpp.vec_isa_ok": True})
            except Exception:  # Inductor raises whatever the import of a broken file raises
                remove_empty_code(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))  # which Inductor sets
                torch.compiler.reset()
                self._run = _inductor.compile(self._module, inputs, options=options)


def by_functions(graph: fx.Graph) -> Callable[..., Any]:
    """Return the graph as a function, with the functions of torch: a call takes half as long as an operator's.

    An operation on each element writes to the memory of an argument that nothing reads later.
    """
    light, copies, reuse = fx.Graph(), dict[fx.Node, fx.Node](), Reuse(graph)
    light.output(light.graph_copy(graph, copies))
    for node, copy in copies.items():
        name = node.target.overloadpacket.__name__ if isinstance(node.target, torch._ops.OpOverload) else ""
        if name in IN_PLACE and (place := reuse.place(node, 2 if name in SYMMETRIC else 1)) is not None:
            copy.op, copy.target = "call_method", f"{name}_"
            if place:
                copy.args = copy.args[::-1]
        elif name in FUNCTIONS:
            copy.target = getattr(torch, name)
        elif name in METHODS:
            copy.op, copy.target = "call_method", name
    return fx.GraphModule(torch.nn.Module(), light).forward


def remove_empty_code(folder: str) -> list[Path]:
    """Remove empty code from TorchInductor's cache, which a killed compile leaves there; return the paths."""
    files = [path for path in Path(folder).glob("??/*") if CODE.fullmatch(path.name)] if folder else []
    empty = [path for path in files if not path.stat().st_size]
    for path in empty:
        path.unlink(missing_ok=True)
    return empty


class Undo(Operations):
    """Saves tensors before operations write to them, such as the running means of batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self._saved: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        names, written = arguments_of(func)
        arguments = dict(zip(names, args, strict=False)) | (kwargs or {}) if written else {}
        for tensor in tree_leaves([arguments.get(name) for name in written]):
            if isinstance(tensor, Tensor) and all(tensor is not saved for saved, _ in self._saved):
                self._saved.append((tensor, tensor.clone()))
        return func(*args, **(kwargs or {}))

    def swap(self) -> None:
        """Swap the tensors' values with the saved ones, in reverse order, since one tensor may be a view of another."""
        before, self._saved = self._saved, []
        for tensor, value in reversed(before):
            self._saved.append((tensor, tensor.clone()))
            tensor.detach().copy_(value)


@torch.no_grad()
def fold_constants(graph: fx.Graph, state: list[Tensor]) -> list[Tensor]:
    """Compute operations on closed-over tensors now, and return the new closed-over tensors.

    A graph that writes to a tensor stays unchanged.
    """
    calls, inputs = ([node for node in graph.nodes if node.op == op] for op in ("call_function", "placeholder"))
    if any(node.target is not operator.getitem and arguments_of(node.target)[1] for node in calls):
        return state
    constants: dict[fx.Node, Any] = dict(zip(inputs[len(inputs) - len(state) :], state, strict=True))
    for node in calls:
        if has_side_effect(node):
            continue
        of_shape = node.target is not operator.getitem and node.target.overloadpacket.__name__ in OF_SHAPE
        if of_shape or all(argument in constants for argument in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: constants[n] if n in constants else empty(n))
            constants[node] = cast(Any, node.target)(*args, **kwargs)
    for node, value in list(constants.items()):
        if node.op != "placeholder" and isinstance(value, Tensor) and any(user not in constants for user in node.users):
            with graph.inserting_after(inputs[-1]):
                inputs.append(graph.placeholder(f"known_{len(inputs)}"))
            inputs[-1].meta = dict(node.meta)
            node.replace_all_uses_with(inputs[-1], lambda user: user not in constants)
            constants[inputs[-1]] = value
    remove_dead_code(graph)
    closed_over = [node for node in inputs if node in constants]
    for node in closed_over:
        if not node.users:
            graph.erase_node(node)
    return [constants[node] for node in closed_over if node.users]


def can_compile(device: torch.device) -> bool:
    """Whether TorchInductor finds its compiler: C++ for the CPU, Triton for a GPU."""
    if device.type != "cpu":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))
