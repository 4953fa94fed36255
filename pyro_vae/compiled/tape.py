"""Record the tensor operations of a function while it runs."""

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vae.operations import Operations

READS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)  # numbers out of a tensor, by no operation of torch's
LITERAL = torch.ops.aten.lift_fresh_copy.default  # makes a tensor of a number in the code


class DataDependent(Exception):
    """A function reads a number from a tensor, by ``.item()`` or a branch; the number may differ in another call."""


class TensorSpec(NamedTuple):
    """The shape, strides, dtype and device of a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def numel(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    def with_shape(self, shape: torch.Size) -> "TensorSpec":
        """Return the spec of a contiguous tensor of another shape."""
        return TensorSpec(shape, torch.empty(shape, device="meta").stride(), self.dtype, self.device)


class Tape(Operations):
    """Run a function once, and record the tensor operations of function and gradients as a graph.

    The graph's inputs are the function's inputs, then the tensors that the function closes over.
    ``node.meta["val"]`` is the :class:`TensorSpec` of a node, ``node.meta["owner"]`` the position in
    ``node.all_input_nodes`` of the argument whose memory the tensor has, or None, and ``node.meta["place"]`` the place.

    Arguments:
        function: Maps tensors to a sequence of tensors or None.
        tensors: The function's inputs.

    Attributes:
        graph: The operations.
        state: The tensors that the function closes over.
        outputs: The function's outputs in this run.

    Raises:
        DataDependent: If the function reads a number from a tensor, unless the number is a literal of its code.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph, self.state = fx.Graph(), list[Tensor]()
        self._nodes = WeakTensorKeyDictionary()
        self._last: fx.Node | None = None
        # Detached, so that a tensor that is passed twice, or closed over too, is several inputs.
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        for number, tensor in enumerate(inputs):
            self._input(tensor, f"input_{number}")
        with self, _Interceptor():
            self.outputs = function(*inputs)
        self.graph.output([None if output is None else self._node(output) for output in self.outputs])

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, are_literal = kwargs or {}, list[bool]()
        if func is torch.ops.aten.lift_fresh.default:  # which returns its argument, and a graph may write to that
            func = LITERAL

        def node_of(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            node = self._node(value)
            are_literal.append(node.meta["literal"] == _version(value))
            return node

        nodes: Any = map_aggregate((args, kwargs), node_of)
        literal = func is LITERAL or (bool(are_literal) and all(are_literal))
        result = func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            if not literal:
                raise DataDependent
            return result
        if isinstance(result, Tensor | tuple | list) or result is None:  # else it is a size
            literal = literal and torch.Tag.nondeterministic_seeded not in func.tags
            node = self.graph.call_function(func, *nodes)
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            owners = {_place(tensor): node.all_input_nodes.index(self._node(tensor)) for tensor in reversed(tensors)}
            self._register(result, node, owners, literal)
        return result

    def _register(self, result: Any, node: fx.Node, owners: dict[int, int], literal: bool = False) -> None:
        """Store the node of each tensor of a result, the tensor's version if it is a literal, and whose memory it has.

        ``owners`` has the positions of the arguments, by the place of their memory.
        """
        if isinstance(result, Tensor):
            self._nodes[result] = node
            val, place = TensorSpec(result.shape, result.stride(), result.dtype, result.device), _place(result)
            version = _version(result) if literal and val.numel() == 1 else None
            node.meta |= {"val": val, "literal": version, "owner": owners.get(place), "place": place}
        elif isinstance(result, tuple | list):
            places = [_place(item) for item in result if isinstance(item, Tensor)]
            node.meta["owner"] = next((owners[place] for place in places if place in owners), None)
            of_items = {place: 0 for place in places if place in owners or places.count(place) > 1}
            for number, item in enumerate(result):
                self._register(item, self.graph.call_function(operator.getitem, (node, number)), of_items, literal)

    def _node(self, tensor: Tensor) -> fx.Node:
        """Return the node of a tensor; add an input for a tensor that the function closes over."""
        if (node := self._nodes.get(tensor)) is None:
            node = self._input(tensor, f"state_{len(self.state)}")
            self.state.append(tensor)
        return node

    def _input(self, tensor: Tensor, name: str) -> fx.Node:
        """Add an input after the last one, before all operations."""
        with self.graph.inserting_after(self._last) if self._last else self.graph.inserting_before():
            self._last = self.graph.placeholder(name)
        self._register(tensor, self._last, {})
        return self._last


def _place(tensor: Tensor) -> int:
    """Return the place of a tensor's memory; another number for each tensor that has none."""
    try:
        return tensor.untyped_storage().data_ptr() or -id(tensor)
    except (NotImplementedError, RuntimeError):  # of a tensor without storage
        return -id(tensor)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor, or the tensor it views, was written to; torch does not count in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


class _Interceptor(TorchFunctionMode):
    """Refuses functions that read numbers, and computes one-hot codes without torch's check of the labels' values."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in READS:
            raise DataDependent
        arguments = dict(zip(("tensor", "num_classes"), args, strict=False)) | (kwargs or {})
        if func is torch.nn.functional.one_hot and arguments.get("num_classes", -1) > 0:
            labels = arguments["tensor"]
            return (labels.unsqueeze(-1) == torch.arange(arguments["num_classes"], device=labels.device)).long()
        return func(*args, **(kwargs or {}))
