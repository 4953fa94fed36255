r"""Simplify a recorded graph: fewer operations with the same results, up to rounding.

A recorded step repeats work that code by hand avoids: a sum starts at zero, a loss is divided by one particle, and a
scalar takes the shape of x before it multiplies x. The rules here are identities of algebra. A number or a tensor of
one element, expanded or not, is *uniform*:

.. math:: a + 0 = a, \quad a \cdot 1 = a, \quad (a \, s) \, t = a \, (s t), \quad
    \sum_i (a_i \, s + c) = s \sum_i a_i + n c, \quad \sum_i \sum_j a_{ij} = \sum_{ij} a_{ij}
"""

import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.utils._pytree import tree_flatten, tree_leaves

aten = torch.ops.aten
ROUNDS = 10  # most passes over a graph
EXPAND, VIEW, NEG, MUL, DIV, ADD = (
    aten.expand.default,
    aten.view.default,
    aten.neg.default,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.add.Tensor,
)
PRODUCT = {NEG, MUL, DIV, aten.mul.Scalar, aten.div.Scalar}
ADDITION = {ADD: 1.0, aten.sub.Tensor: -1.0}
SUM = {aten.sum.default, aten.sum.dim_IntList}
TRANSPOSE = aten.t.default
ALIAS = {aten.alias.default, aten.detach.default}  # where no gradient is computed
RESHAPE = {VIEW, aten.unsqueeze.default, TRANSPOSE}
# Operations on each element, of tensors and numbers.
ELEMENTWISE = {
    getattr(aten, name).default
    for name in ("log", "exp", "neg", "sqrt", "rsqrt", "reciprocal", "log1p", "expm1", "abs", "sigmoid", "softplus")
} | {aten.pow.Tensor_Scalar, aten.mul.Scalar, aten.div.Scalar, ADD, aten.sub.Tensor, MUL, DIV}
FILLED = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
VALUE = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}  # positions of the value


class Factor(NamedTuple):
    """A uniform factor or term: a number times powers, 1 or -1, of tensors of one element."""

    number: float
    powers: tuple[tuple[fx.Node, int], ...] = ()

    def times(self, other: "Factor") -> "Factor":
        """Return the product."""
        return Factor(self.number * other.number, self.powers + other.powers)

    def power(self, exponent: int) -> "Factor":
        """Return the power, for an exponent of 1 or -1."""
        return Factor(self.number**exponent, tuple((node, exponent * power) for node, power in self.powers))


ONE = Factor(1.0)


def simplify(graph: fx.Graph) -> None:
    """Apply all rules until none applies; ``node.meta["val"]`` is the TensorSpec of each node."""
    for _ in range(ROUNDS):
        if not _Pass(graph).run():
            break


def remove_dead_code(graph: fx.Graph) -> None:
    """Remove operations whose results are unused, except draws, which advance the generators."""
    graph.eliminate_dead_code(has_side_effect)


def has_side_effect(node: fx.Node) -> bool:
    """Whether a node writes, draws, or is an input or output."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags
    return node.op in ("placeholder", "output")


def merge_repeated(graph: fx.Graph, may_merge: Callable[[fx.Node], bool] = lambda node: True) -> bool:
    """Replace each repetition of an operation by the first one's result; return whether one was replaced."""
    firsts: dict[Any, fx.Node] = {}
    merged = False
    for node in list(graph.nodes):
        if node.op != "call_function" or has_side_effect(node) or not may_merge(node):
            continue
        leaves, spec = tree_flatten((node.args, node.kwargs))
        first = firsts.setdefault((node.target, spec, *((type(leaf), leaf) for leaf in leaves)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            merged = True
    return merged


class _Pass:
    """One pass of the rules over a graph.

    A rule reads tensors later than the operations that it replaces. Thus no rule touches memory that is written after
    it is read. A result that the graph returns keeps memory of its own.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.roots: dict[fx.Node, fx.Node] = {}  # the node whose memory a node shares
        self.written, self.unsafe, read = set[fx.Node](), set[fx.Node](), set[fx.Node]()
        for node in graph.nodes:
            shares = node.op == "call_function" and (node.target is operator.getitem or shares_memory(node.target))
            self.roots[node] = self.roots[node.args[0]] if shares else node
            if node.op != "call_function":
                continue
            written = {self.roots[argument] for argument in _written(node)}
            self.written |= written
            self.unsafe |= {root for root in written if root in read or root.op == "placeholder"}
            read |= {self.roots[argument] for argument in node.all_input_nodes} - written
        (output,) = (node for node in graph.nodes if node.op == "output")
        self.returned = {self.roots[node] for node in output.all_input_nodes}
        self.fills: dict[fx.Node, float] = {}  # the number in all elements of a tensor

    def run(self) -> bool:
        """Apply the rules to each operation; return whether the graph changed."""
        changed = False
        for node in list(self.graph.nodes):
            if node.op != "call_function" or not isinstance(node.meta.get("val"), tuple) or not self._safe(node):
                continue
            self._fill(node)
            with self.graph.inserting_before(node):
                new = next((new for rule in RULES if (new := rule(self, node)) is not None), None)
            if new is not None:
                node.replace_all_uses_with(new)
                if self.roots[node] in self.returned:
                    self.returned.add(self.roots[new])
                changed = True
        changed |= merge_repeated(self.graph, lambda node: self._safe(node) and self._own(node))
        remove_dead_code(self.graph)
        return changed

    def _safe(self, node: fx.Node) -> bool:
        """Whether no memory of the operation and its arguments is written after a read."""
        return not any(self.roots[part] in self.unsafe for part in (node, *node.all_input_nodes))

    def _own(self, node: fx.Node) -> bool:
        """Whether a result may share memory with another: it is not written, and the graph does not return it."""
        root = self.roots[node]
        return root not in self.written and root not in self.returned

    def _fill(self, node: fx.Node) -> None:
        """Find the number in all elements of a result, if the operations say it."""
        if self.roots[node] in self.written:
            return
        name = node.target.overloadpacket.__name__ if node.target is not operator.getitem else ""
        tensors = node.all_input_nodes
        if name in FILLED:
            self.fills[node] = FILLED[name]
        elif name in VALUE and isinstance(node.args[VALUE[name]], int | float):
            self.fills[node] = node.args[VALUE[name]]
        elif tensors and all(tensor in self.fills for tensor in tensors):
            if node.target in RESHAPE or node.target is EXPAND:
                self.fills[node] = self.fills[tensors[0]]
            elif node.target in ELEMENTWISE:
                dtype = node.meta["val"].dtype
                full = {tensor: torch.tensor(self.fills[tensor], dtype=tensor.meta["val"].dtype) for tensor in tensors}
                args = [full.get(argument, argument) for argument in node.args]
                self.fills[node] = node.target(*args, **node.kwargs).to(dtype).item()

    # Uniform values.

    def factor(self, value: Any) -> Factor | None:
        """Return a number, a filled tensor or an expanded tensor of one element as a factor; None for another value."""
        if not isinstance(value, fx.Node):
            return Factor(float(value)) if isinstance(value, int | float) else None
        if value in self.fills:
            return Factor(self.fills[value])
        while value.target is EXPAND or value.target in RESHAPE:
            value = value.args[0]
        val = value.meta.get("val")
        return Factor(1.0, ((value, 1),)) if isinstance(val, tuple) and val.numel() == 1 else None

    def tensor(self, factor: Factor, like: Any) -> Any:
        """Add the operations of a factor: a number, or a tensor of shape () in the dtype of ``like``."""
        result: Any = None
        for source, power in factor.powers:
            val = source.meta["val"]
            part = source if val.shape == () else self.call(VIEW, source, [], shape=(), like=val)
            if power < 0:
                part = self.call(aten.reciprocal.default, part, shape=(), like=val)
            result = part if result is None else self.call(MUL, result, part, shape=(), like=val)
        if result is None:
            return factor.number
        if factor.number == -1.0:
            return self.call(NEG, result, shape=(), like=result.meta["val"])
        if factor.number == 1.0:
            return result
        return self.call(MUL, result, factor.number, shape=(), like=result.meta["val"])

    def call(self, target: Any, *args: Any, shape: Sequence[int], like: Any, **kwargs: Any) -> fx.Node:
        """Add an operation whose result has the given shape, and dtype and device of ``like``."""
        node = self.graph.call_function(target, args, kwargs)
        same = tuple(shape) == tuple(like.shape)
        node.meta = {"val": like if same else like.with_shape(torch.Size(shape))}
        self.roots[node] = self.roots[args[0]] if shares_memory(target) else node
        return node

    def product(self, node: fx.Node) -> tuple[fx.Node, Factor] | None:
        """Read an operation as a tensor of the result's shape and dtype times a factor."""
        if node.target not in PRODUCT or node.kwargs or not node.meta["val"].dtype.is_floating_point:
            return None
        if node.target is NEG:
            return node.args[0], Factor(-1.0)
        for big, other in ((0, 1), (1, 0)) if node.target is MUL else ((0, 1),):
            tensor, value = node.args[big], node.args[other]
            if not isinstance(tensor, fx.Node) or _kind(tensor) != _kind(node) or tensor in self.fills:
                continue
            if isinstance(value, fx.Node) and value.meta["val"].dtype != node.meta["val"].dtype:
                continue
            factor = self.factor(value)
            if factor is None or any(source is tensor for source, _ in factor.powers):
                continue
            divides = node.target in (DIV, aten.div.Scalar)
            if divides and factor.number == 0:
                return None
            return tensor, factor.power(-1 if divides else 1)
        return None

    def addition(self, node: fx.Node) -> tuple[fx.Node, float, Factor] | None:
        """Read an operation as sign times a tensor of the result's shape and dtype, plus a uniform term."""
        if node.target not in ADDITION or node.kwargs or not node.meta["val"].dtype.is_floating_point:
            return None
        sign = ADDITION[node.target]
        for big, other in ((0, 1), (1, 0)):
            tensor, value = node.args[big], node.args[other]
            if not isinstance(tensor, fx.Node) or _kind(tensor) != _kind(node) or tensor in self.fills:
                continue
            if isinstance(value, fx.Node) and value.meta["val"].dtype != node.meta["val"].dtype:
                continue
            if (term := self.factor(value)) is not None and all(source is not tensor for source, _ in term.powers):
                if big == 0:
                    return tensor, 1.0, term.times(Factor(sign))
                return tensor, sign, term
        return None

    # Rules: each returns the node that replaces another, or None.

    def identity(self, node: fx.Node) -> fx.Node | None:
        """Return a if the operation is a + 0, a * 1, a / 1, a ** 1, a copy of a, or a stack of a alone."""
        if node.target in ALIAS:
            return node.args[0]
        if not self._own(node):
            return None
        if node.target is aten.pow.Tensor_Scalar and node.args[1] == 1:
            return node.args[0]
        if node.target is aten.clone.default and not node.kwargs:
            return node.args[0] if self.roots[node.args[0]] not in self.written else None
        if node.target in SUM and _kind(node.args[0]) == _kind(node) and node.meta["val"].numel() == 1:
            return node.args[0]
        if node.target is aten.stack.default and len(node.args[0]) == 1:
            dim = node.args[1] if len(node.args) > 1 else 0
            (a,) = node.args[0]
            return self.call(aten.unsqueeze.default, a, dim, shape=node.meta["val"].shape, like=node.meta["val"])
        if (parts := self.product(node)) and parts[1] == ONE:
            return parts[0]
        if (terms := self.addition(node)) and terms[1] == 1.0 and not terms[2].powers and terms[2].number == 0.0:
            return terms[0]
        return None

    def number(self, node: fx.Node) -> fx.Node | None:
        """Replace a filled tensor by its number in a product or an addition."""
        if not any(a in self.fills for a in node.all_input_nodes) or node in self.fills:
            return None
        like = node.meta["val"]
        if (parts := self.product(node)) and not parts[1].powers:
            if parts[1].number == -1.0:
                return self.call(NEG, parts[0], shape=like.shape, like=like)
            return self.call(MUL, parts[0], parts[1].number, shape=like.shape, like=like)
        if (terms := self.addition(node)) and terms[1] == 1.0 and not terms[2].powers:
            return self.call(ADD, terms[0], terms[2].number, shape=like.shape, like=like)
        return None

    def reshape(self, node: fx.Node) -> fx.Node | None:
        """Join views of views, transposes of transposes and expansions of expansions."""
        if node.target not in RESHAPE and node.target is not EXPAND:
            return None
        a = node.args[0]
        if node.target is TRANSPOSE:
            return a.args[0] if a.target is TRANSPOSE and a.meta["val"].numel() == node.meta["val"].numel() else None
        if node.target is EXPAND:
            if a.meta["val"].shape == node.meta["val"].shape:
                return a
            if a.target is EXPAND:
                return self.call(
                    EXPAND, a.args[0], list(node.meta["val"].shape), shape=node.meta["val"].shape, like=node.meta["val"]
                )
            return None
        shape = list(node.meta["val"].shape)
        source = a
        while source.target in (VIEW, aten.unsqueeze.default):
            source = source.args[0]
        if source.meta["val"].shape == node.meta["val"].shape and source.meta["val"].stride == node.meta["val"].stride:
            return source
        if source is not a and _contiguous(source.meta["val"]):
            return self.call(VIEW, source, shape, shape=shape, like=node.meta["val"])
        if a.target is EXPAND and (one := self.factor(a)) and one.powers and a.meta["val"].numel() > 1:
            (one_element, _) = one.powers[0]
            if len(one_element.meta["val"].shape) <= len(shape):
                return self.call(EXPAND, one_element, shape, shape=shape, like=node.meta["val"])
        return None

    def expand_late(self, node: fx.Node) -> fx.Node | None:
        """Apply an elementwise operation of expanded tensors before the expansion."""
        inputs, val = node.all_input_nodes, node.meta["val"]
        if node.target not in ELEMENTWISE or node in self.fills or val.numel() == 1:
            return None
        if node.target in PRODUCT and len(inputs) > 1:
            factors = [self.factor(value) for value in node.args[:2]]
            if None in factors or not val.dtype.is_floating_point or any(_kind(a)[1] != val.dtype for a in inputs):
                return None
            left, right = cast(list[Factor], factors)
            small = self.tensor(left.times(right.power(-1 if node.target is DIV else 1)), val)
            return self.call(EXPAND, small, list(val.shape), shape=val.shape, like=val)
        if len(inputs) != 1 or inputs[0].target is not EXPAND:
            return None
        (large,) = inputs
        source = large.args[0]
        if large.meta["val"].shape != val.shape or source.meta["val"].numel() == val.numel():
            return None
        args = [source if argument is large else argument for argument in node.args]
        new = self.call(node.target, *args, shape=source.meta["val"].shape, like=val, **node.kwargs)
        return self.call(EXPAND, new, list(val.shape), shape=val.shape, like=val)

    def scale_once(self, node: fx.Node) -> fx.Node | None:
        """Join several products with uniform factors into one; multiply by a tensor that is not expanded."""
        val = node.meta["val"]
        if (parts := self.product(node)) is None:
            return None
        (base, factor), steps = parts, 1
        while len(base.users) == 1 and self._safe(base) and (inner := self.product(base)):
            base, factor, steps = inner[0], factor.times(inner[1]), steps + 1
        if val.numel() == 1 and factor.powers:  # no less work
            return None
        if steps == 1:
            if len(factor.powers) != 1 or all(a.target is not EXPAND for a in node.all_input_nodes):
                return None
            scale = self.tensor(Factor(1.0, ((factor.powers[0][0], 1),)), val)
            return self.call(node.target, base, scale, shape=val.shape, like=val)
        if factor == Factor(-1.0):
            return self.call(NEG, base, shape=val.shape, like=val)
        return self.call(MUL, base, self.tensor(factor, val), shape=val.shape, like=val)

    def sum_first(self, node: fx.Node) -> fx.Node | None:
        """Sum before products with uniform factors and additions of uniform terms; join a sum of a sum."""
        val = node.meta["val"]
        if node.target not in SUM or node.kwargs or val.dtype not in (torch.float32, torch.float64):
            return None
        base, factor, terms, views = node.args[0], ONE, list[Factor](), list[fx.Node]()
        if base.meta["val"].dtype != val.dtype or not val.numel():
            return None
        steps = 0
        while len(base.users) == 1 and self._safe(base):
            if parts := self.product(base):
                base, factor, steps = parts[0], factor.times(parts[1]), steps + 1
            elif parts := self.addition(base):
                size = base.meta["val"].numel() / val.numel()  # elements in a sum
                terms.append(parts[2].times(factor).times(Factor(size)))
                base, factor, steps = parts[0], factor.times(Factor(parts[1])), steps + 1
            elif base.target in RESHAPE:
                views.append(base)
                base = base.args[0]
            elif node.target is aten.sum.default and base.target in SUM and not base.kwargs:
                base, steps = base.args[0], steps + 1
            else:
                break
        if not steps:
            return None
        if node.target is not aten.sum.default:
            for view in reversed(views):
                base = self.call(view.target, base, *view.args[1:], shape=view.meta["val"].shape, like=view.meta["val"])
        result = self.call(node.target, base, *node.args[1:], shape=val.shape, like=val)
        if factor != ONE:
            result = self.call(MUL, result, self.tensor(factor, val), shape=val.shape, like=val)
        for term in terms:
            result = self.call(ADD, result, self.tensor(term, val), shape=val.shape, like=val)
        return result


def _kind(node: fx.Node) -> tuple[Any, ...]:
    """Return the shape and dtype of a result."""
    val = node.meta.get("val")
    return (val.shape, val.dtype) if val is not None else ()


def _contiguous(val: Any) -> bool:
    """Whether a tensor is contiguous."""
    return val.stride == torch.empty(val.shape, device="meta").stride()


@cache
def shares_memory(operation: Any) -> bool:
    """Whether an operation returns memory of its first argument, as a view or written in place."""
    return any(result.alias_info is not None for result in operation._schema.returns)


@cache
def arguments_of(operation: Any) -> tuple[list[str], list[str]]:
    """Return an operation's argument names, and the names of written arguments: declared or running statistics."""
    arguments = operation._schema.arguments
    written = [item.name for item in arguments if item.alias_info is not None and item.alias_info.is_write]
    names = [item.name for item in arguments]
    return names, written + [name for name in names if name in ("running_mean", "running_var")]


def _written(node: fx.Node) -> list[fx.Node]:
    """Return the arguments that an operation writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    names, written = arguments_of(node.target)
    arguments = dict(zip(names, node.args, strict=False)) | node.kwargs if written else {}
    leaves = tree_leaves([arguments.get(name) for name in written])
    return [leaf for leaf in leaves if isinstance(leaf, fx.Node)]


RULES = (_Pass.identity, _Pass.number, _Pass.reshape, _Pass.expand_late, _Pass.scale_once, _Pass.sum_first)
