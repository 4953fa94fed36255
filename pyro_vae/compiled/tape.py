"""The operations on tensors that a function does, written down as it runs."""

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vae.operations import Operations

LITERAL = torch.ops.aten.lift_fresh_copy.default  # makes a tensor of a number in the code


class LooksAtNumber(Exception):
    """A function takes a number out of a tensor, which another call of it may find changed."""


class Like(NamedTuple):
    """What a tensor of a graph is like."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def numel(self) -> int:
        """Return how many numbers it has."""
        return prod(self.shape)

    def of_shape(self, shape: torch.Size) -> "Like":
        """Return what a contiguous tensor of another shape is like."""
        return Like(shape, torch.empty(shape, device="meta").stride(), self.dtype, self.device)


class Tape(Operations):
    """A run of a function, as a graph of the tensor operations that torch does for it, those of gradients too.

    Tensors that the function closes over are inputs of the graph after its own. ``node.meta["val"]`` says what the
    tensor of a node is like (:class:`Like`).

    Arguments:
        function: Of tensors; returns tensors, or None in places.
        tensors: Its inputs.

    Attributes:
        graph: The operations.
        state: The tensors that the function closes over.
        outputs: What the function returned.

    Raises:
        LooksAtNumber: If the function takes a number out of a tensor, but of one that its code has as a number.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph, self.state = fx.Graph(), list[Tensor]()
        self._nodes = WeakTensorKeyDictionary()
        self._last: fx.Node | None = None
        for number, tensor in enumerate(tensors):
            self._input(tensor, f"input_{number}")
        with self, _OneHot():
            self.outputs = function(*tensors)
        self.graph.output([None if output is None else self._node(output) for output in self.outputs])

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, given = kwargs or {}, list[fx.Node]()
        if func is torch.ops.aten.lift_fresh.default:  # of a tensor that nobody else has, which may be written to
            func, args = LITERAL, (args[0].clone(),)
        result = func(*args, **kwargs)

        def node_of(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            given.append(self._node(value))
            return given[-1]

        places: Any = map_aggregate((args, kwargs), node_of)
        known = func is LITERAL or (bool(given) and all(node.meta["known"] for node in given))
        if torch.Tag.data_dependent_output in func.tags:
            if not known:
                raise LooksAtNumber
            return result
        if isinstance(result, Tensor | tuple | list) or result is None:  # else it is a size
            drawn = torch.Tag.nondeterministic_seeded in func.tags
            self._keep(result, self.graph.call_function(func, *places), known and not drawn)
        return result

    def _keep(self, result: Any, node: fx.Node, known: bool = False) -> None:
        """Remember whose node a tensor is, or each of several; and whether its number is one of the code."""
        if isinstance(result, Tensor):
            self._nodes[result] = node
            val = Like(result.shape, result.stride(), result.dtype, result.device)
            node.meta = {"val": val, "known": known and val.numel() == 1}
        elif isinstance(result, tuple | list):
            for number, part in enumerate(result):
                self._keep(part, self.graph.call_function(operator.getitem, (node, number)), known)

    def _node(self, tensor: Tensor) -> fx.Node:
        """Return the node of a tensor; that of an input, where the function closes over it."""
        if (node := self._nodes.get(tensor)) is None:
            node = self._input(tensor, f"state_{len(self.state)}")
            self.state.append(tensor)
        return node

    def _input(self, tensor: Tensor, name: str) -> fx.Node:
        """Put an input after the others, before all operations."""
        with self.graph.inserting_after(self._last) if self._last else self.graph.inserting_before():
            self._last = self.graph.placeholder(name)
        self._keep(tensor, self._last)
        return self._last


class _OneHot(TorchFunctionMode):
    """Computes one-hot codes of so many classes without a look at the labels, which torch checks by their numbers."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        named = dict(zip(("tensor", "num_classes"), args, strict=False)) | (kwargs or {})
        if func is torch.nn.functional.one_hot and named.get("num_classes", -1) > 0:
            labels = named["tensor"]
            return (labels.unsqueeze(-1) == torch.arange(named["num_classes"], device=labels.device)).long()
        return func(*args, **(kwargs or {}))
