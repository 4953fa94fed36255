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

LOOKS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
LITERAL = torch.ops.aten.lift_fresh_copy.default  # makes a tensor of a number in the code


class LooksAtNumber(Exception):
    """A function takes a number out of a tensor, which another call of it may find changed."""


class Like(NamedTuple):
    """The shape, strides, dtype and device of a tensor."""

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
        LooksAtNumber: If the function takes a number out of a tensor, unless its code holds that number.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph, self.state = fx.Graph(), list[Tensor]()
        self._nodes = WeakTensorKeyDictionary()
        self._last: fx.Node | None = None
        # Tensors of their own, or one that is given twice, or closed over too, would be one input.
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        for number, tensor in enumerate(inputs):
            self._input(tensor, f"input_{number}")
        with self, _ByHand():
            self.outputs = function(*inputs)
        self.graph.output([None if output is None else self._node(output) for output in self.outputs])

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, numbers = kwargs or {}, list[bool]()
        if func is torch.ops.aten.lift_fresh.default:  # whose result would be written to
            func = LITERAL

        def node_of(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            node = self._node(value)
            numbers.append(node.meta["literal"] == _version(value))
            return node

        places: Any = map_aggregate((args, kwargs), node_of)
        literal = func is LITERAL or (bool(numbers) and all(numbers))
        result = func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            if not literal:
                raise LooksAtNumber
            return result
        if isinstance(result, Tensor | tuple | list) or result is None:  # else it is a size
            literal = literal and torch.Tag.nondeterministic_seeded not in func.tags
            self._keep(result, self.graph.call_function(func, *places), literal)
        return result

    def _keep(self, result: Any, node: fx.Node, literal: bool = False) -> None:
        """Remember the node of a tensor, or of each of several; and of which version it is a number of the code."""
        if isinstance(result, Tensor):
            self._nodes[result] = node
            val = Like(result.shape, result.stride(), result.dtype, result.device)
            node.meta = {"val": val, "literal": _version(result) if literal and val.numel() == 1 else None}
        elif isinstance(result, tuple | list):
            for number, part in enumerate(result):
                self._keep(part, self.graph.call_function(operator.getitem, (node, number)), literal)

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


def _version(tensor: Tensor) -> int:
    """Return how often a tensor, or what it is a view of, was written to; torch does not count in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


class _ByHand(TorchFunctionMode):
    """Computes one-hot codes without a look at the labels, which torch checks; and sees looks that are no operation."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in LOOKS:
            raise LooksAtNumber
        named = dict(zip(("tensor", "num_classes"), args, strict=False)) | (kwargs or {})
        if func is torch.nn.functional.one_hot and named.get("num_classes", -1) > 0:
            labels = named["tensor"]
            return (labels.unsqueeze(-1) == torch.arange(named["num_classes"], device=labels.device)).long()
        return func(*args, **(kwargs or {}))
