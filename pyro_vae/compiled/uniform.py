"""Uniform tensors in a graph, with one number in all elements, and products and sums with them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pyro_vae.compiled.memory import Memory, Node
from pyro_vae.compiled.tape import TensorSpec

aten = torch.ops.aten
EXPAND, VIEW, UNSQUEEZE, TRANSPOSE = (
    aten.expand.default,
    aten.view.default,
    aten.unsqueeze.default,
    aten.t.default,
)
NEG, MUL, DIV, ADD, SUB = aten.neg.default, aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor
LOG = aten.log.default
MODERATE = 1e6
BOUND, ELEMENTS = 100.0, 1e5  # of a term, and of a sum of them
RSUB = aten.rsub.Scalar  # a number minus a tensor
PRODUCT = {NEG, MUL, DIV, aten.mul.Scalar, aten.div.Scalar}
DIVISION = {DIV, aten.div.Scalar}
RESHAPE = {VIEW, UNSQUEEZE, TRANSPOSE}
# Operations on each element, of tensors and numbers.
ELEMENTWISE = {
    getattr(aten, name).default
    for name in ("log", "exp", "neg", "sqrt", "rsqrt", "reciprocal", "log1p", "expm1", "abs", "sigmoid", "softplus")
} | {aten.pow.Tensor_Scalar, aten.mul.Scalar, aten.div.Scalar, MUL, DIV, ADD, SUB}
FILLED = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
VALUE = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}  # positions of the number


class Factor(NamedTuple):
    """A uniform factor or term: a number times powers, 1 or -1, of tensors with one element."""

    number: float
    powers: tuple[tuple[Node, int], ...] = ()

    def times(self, other: "Factor") -> "Factor":
        """Return the product."""
        return Factor(self.number * other.number, self.powers + other.powers)

    def power(self, exponent: int) -> "Factor":
        """Return the power, for an exponent of 1 or -1."""
        return Factor(self.number**exponent, tuple((node, exponent * power) for node, power in self.powers))

    @property
    def is_moderate(self) -> bool:
        """Whether the number is so near 1 that a product with it neither overflows nor vanishes."""
        return 1 / MODERATE < abs(self.number) < MODERATE

    @property
    def is_bounded(self) -> bool:
        """Whether a term is at most a hundred, a logarithm, which in float32 is at most 104, or a sum of logarithms.

        A larger term may cancel with the elements, whose sum has lost their small digits.
        """
        if not self.powers:
            return abs(self.number) <= BOUND
        (node, power), *others = self.powers
        number = self.number
        while node.target is MUL and isinstance(node.args[1], float):
            node, number = node.args[0], number * node.args[1]
        return not others and node.target is LOG and power == 1 and abs(number) <= ELEMENTS


ONE = Factor(1.0)


class Uniform:
    """Reads and adds operations of a graph: products and sums with uniform tensors.

    ``node.meta["val"]`` is the TensorSpec of each node.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph, self.memory = graph, Memory(graph)
        self.fills: dict[Node, float] = {}  # the number in all elements of a tensor, where the operations say it

    def add_fill(self, node: Node) -> None:
        """Find the number in all elements of a result."""
        if not isinstance(node.target, torch._ops.OpOverload) or not self.memory.is_constant(node):
            return
        name, tensors = node.target.overloadpacket.__name__, node.all_input_nodes
        if name in FILLED:
            self.fills[node] = FILLED[name]
        elif name in VALUE and isinstance(number := node.args[VALUE[name]], int | float):
            self.fills[node] = number
        elif tensors and all(tensor in self.fills for tensor in tensors):
            if node.target in RESHAPE or node.target is EXPAND:
                self.fills[node] = self.fills[tensors[0]]
            elif node.target in ELEMENTWISE:
                full = {a: torch.tensor(self.fills[a], dtype=kind(a)[1]) for a in tensors}
                value = node.target(*(full.get(argument, argument) for argument in node.args), **node.kwargs)
                self.fills[node] = value.to(kind(node)[1]).item()

    def factor(self, value: Any) -> Factor | None:
        """Return a number, a filled tensor or an expanded tensor with one element as a factor, else None."""
        if not isinstance(value, fx.Node):
            return Factor(float(value)) if isinstance(value, int | float) else None
        if value in self.fills:
            return Factor(self.fills[value])
        while value.target is EXPAND or value.target in RESHAPE:
            value = value.args[0]
        return Factor(1.0, ((value, 1),)) if kind(value) and kind(value)[0].numel() == 1 else None

    def product(self, node: Node) -> tuple[Node, Factor] | None:
        """Read an operation as a tensor, of the result's shape and dtype, times a factor."""
        if node.target is NEG and kind(node)[1].is_floating_point:
            return node.args[0], Factor(-1.0)
        if node.target not in PRODUCT:
            return None
        for first, tensor, factor in self._with_factor(node):
            if node.target not in DIVISION:
                return tensor, factor
            if first and abs(factor.number) > 1 / MODERATE:
                return tensor, factor.power(-1)
        return None

    def addition(self, node: Node) -> tuple[Node, float, Factor] | None:
        """Read an operation as 1 or -1 times a tensor, of the result's shape and dtype, plus a uniform term."""
        if node.target is RSUB and len(node.args) == 2 and kind(node.args[0]) == kind(node):
            return node.args[0], -1.0, Factor(float(node.args[1]))
        if node.target not in (ADD, SUB):
            return None
        sign = -1.0 if node.target is SUB else 1.0
        for first, tensor, term in self._with_factor(node):
            return (tensor, 1.0, term.times(Factor(sign))) if first else (tensor, sign, term)
        return None

    def _with_factor(self, node: Node) -> Iterator[tuple[bool, Node, Factor]]:
        """Return each argument, and whether it is the first, beside which the other one is uniform."""
        if node.kwargs or not kind(node)[1].is_floating_point:
            return
        for first, (tensor, value) in ((True, node.args), (False, node.args[::-1])):
            if not isinstance(tensor, fx.Node) or kind(tensor) != kind(node) or tensor in self.fills:
                continue
            if isinstance(value, fx.Node) and (value is tensor or kind(value)[1] != kind(node)[1]):
                continue
            if factor := self.factor(value):
                yield first, tensor, factor

    def tensor(self, factor: Factor) -> Any:
        """Add the operations of a factor; return a number, or a tensor of shape ()."""
        result: Any = None
        for source, power in factor.powers:
            part = source if kind(source)[0] == () else self.call(VIEW, source, [])
            part = part if power > 0 else self.call(aten.reciprocal.default, part)
            result = part if result is None else self.call(MUL, result, part)
        if result is None:
            return factor.number
        return result if factor.number == 1 else self.times(result, factor.number)

    def times(self, tensor: Node, scale: Any) -> Node:
        """Add a product of a tensor with a number or a tensor of shape ()."""
        if isinstance(scale, float) and scale == -1:
            return self.call(NEG, tensor)
        return self.call(MUL, tensor, scale)

    def call(self, target: Any, *args: Any, val: TensorSpec | None = None) -> Node:
        """Add an operation: a view, one with the spec ``val``, or one on each element of the largest argument."""
        node = self.graph.call_function(target, args)
        largest = max(node.all_input_nodes, key=lambda argument: kind(argument)[0].numel()).meta["val"]
        if target in RESHAPE or target is EXPAND:
            view = target(*map_arg(args, lambda argument: empty(argument, "meta")))
            node.meta["owner"] = 0
            val = TensorSpec(view.shape, view.stride(), view.dtype, largest.device)
        node.meta["val"] = val or largest
        self.memory.add(node)
        return node


def empty(node: Node, device: Any = None) -> Tensor:
    """Return an uninitialised tensor of a node's shape and strides, by default on its device."""
    val = node.meta["val"]
    return torch.empty_strided(val.shape, val.stride, dtype=val.dtype, device=device or val.device)


def kind(node: Node) -> tuple[Any, ...]:
    """Return the shape and dtype of a tensor; an empty tuple for another result."""
    val = node.meta.get("val")
    return (val.shape, val.dtype) if val is not None else ()


def is_contiguous(node: Node) -> bool:
    """Whether a tensor is contiguous."""
    val = node.meta["val"]
    return bool(val == val.with_shape(val.shape))
