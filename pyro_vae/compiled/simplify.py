r"""Simplify a recorded graph: fewer operations with the same results, up to rounding.

A recorded step repeats work that code by hand avoids: a sum starts at zero, a loss is divided by one particle, a scale
takes the shape of x before it divides x. The rules are identities of algebra, for tensors a, b and uniform s, t:

.. math:: a + 0 = a, \quad 1 \cdot a = a, \quad (a \, s) \, t = a \, (s t), \quad
    \sum_{i=1}^n (a_i \, s + t) = s \sum_{i=1}^n a_i + n t, \quad \sum_i \sum_j a_{ij} = \sum_{ij} a_{ij}
"""

from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_flatten

from pyro_vae.compiled.memory import Node, has_side_effect, remove_dead_code
from pyro_vae.compiled.uniform import (
    ADD,
    DIV,
    DIVISION,
    ELEMENTWISE,
    EXPAND,
    MUL,
    ONE,
    PRODUCT,
    RESHAPE,
    TRANSPOSE,
    UNSQUEEZE,
    VIEW,
    Factor,
    Uniform,
    aten,
    is_contiguous,
    kind,
)

ROUNDS = 10
SUM = {aten.sum.default, aten.sum.dim_IntList}
ALIAS = {aten.alias.default, aten.detach.default}  # where no gradient is computed


def simplify(graph: fx.Graph) -> None:
    """Apply the rules until none applies, in at most ``ROUNDS`` passes over a graph of a ``Tape``."""
    remove_dead_code(graph)
    for _ in range(ROUNDS):
        if not _Pass(graph).run():
            return


class _Pass(Uniform):
    """One pass of the rules over a graph.

    A rule reads tensors later than the operations that it replaces: the tensors must be settled. A result that the
    graph returns keeps memory of its own.
    """

    def run(self) -> bool:
        """Apply the rules to each operation; return whether the graph changed."""
        changed, firsts = False, dict[Any, Node]()
        for node in list(self.graph.nodes):
            if node._erased or node.op != "call_function" or not kind(node) or not self.memory.is_settled(node):
                continue
            self.add_fill(node)
            with self.graph.inserting_before(node):
                new = next((new for rule in RULES if (new := rule(self, node)) and self._can_replace(node, new)), None)
            if new is None and self.memory.may_share(node) and not has_side_effect(node):
                leaves, spec = tree_flatten((node.args, node.kwargs))
                key = (node.target, spec, *((type(leaf), leaf) for leaf in leaves))
                new = first if (first := firsts.get(key)) and not first._erased else None
                firsts[key] = new or node
            if new is not None:
                self.memory.replace(node, new)
                self._erase(node)
                changed = True
        return changed

    def _can_replace(self, node: Node, new: Node) -> bool:
        """Whether a new node has the shape and dtype of another, and its strides where a view may depend on them."""
        val, of_new = node.meta["val"], new.meta["val"]
        if (val.shape, val.dtype, val.device) == (of_new.shape, of_new.dtype, of_new.device):
            strides = [pair for size, *pair in zip(val.shape, val.stride, of_new.stride, strict=True) if size > 1]
            has_view = any(self.memory.roots.get(user) is self.memory.roots[node] for user in node.users)
            uniform = new.target is EXPAND and kind(new.args[0])[0].numel() == 1  # a view of it is always possible
            if all(a == b for a, b in strides) or not (has_view and not uniform or self.memory.is_returned(node)):
                return True
        self._erase(new)
        return False

    def _erase(self, node: Node) -> None:
        """Remove an operation, and the operations that only this operation used."""
        if not (node.users or node._erased or node.op != "call_function" or has_side_effect(node)):
            arguments = node.all_input_nodes
            self.graph.erase_node(node)
            for argument in arguments:
                self._erase(argument)

    # Rules: each returns the node that replaces another, or None.

    def identity(self, node: Node) -> Node | None:
        """Return a if the operation is a + 0, a * 1, a / 1, a ** 1, a copy of a, or a sum or a stack of a alone."""
        if node.target in ALIAS:
            return node.args[0]
        if not self.memory.may_share(node):
            return None
        if node.target is aten.pow.Tensor_Scalar and node.args[1] == 1:
            return node.args[0]
        if node.target is aten.clone.default and not node.kwargs:
            return node.args[0] if self.memory.is_constant(node.args[0]) else None
        if node.target in SUM and kind(node.args[0]) == kind(node) and kind(node)[0].numel() == 1:
            return node.args[0]
        if node.target is aten.stack.default and len(node.args[0]) == 1:
            (a,), *dim = node.args
            return self.call(UNSQUEEZE, a, *(dim or [0]))
        if (parts := self.product(node)) and parts[1] == ONE:
            return parts[0]
        if (terms := self.addition(node)) and terms[1:] == (1.0, Factor(0.0)):
            return terms[0]
        return None

    def number(self, node: Node) -> Node | None:
        """Replace a filled tensor by its number in a product or an addition."""
        if node in self.fills or all(a not in self.fills for a in node.all_input_nodes):
            return None
        if (parts := self.product(node)) and not parts[1].powers:
            return self.times(parts[0], parts[1].number)
        if (terms := self.addition(node)) and terms[1] == 1.0 and not terms[2].powers:
            return self.call(ADD, terms[0], terms[2].number)
        return None

    def view(self, node: Node) -> Node | None:
        """Join views of views, and transposes of transposes; return a tensor if its view changes nothing."""
        if node.target not in RESHAPE and node.target is not EXPAND:
            return None
        shape, source = kind(node)[0], node
        if node.target is TRANSPOSE:
            return node.args[0].args[0] if node.args[0].target is TRANSPOSE else None
        if node.target is EXPAND:
            return node.args[0] if kind(node.args[0])[0] == shape else None
        while source.target in (VIEW, UNSQUEEZE):
            source = source.args[0]
        if source.meta["val"] == node.meta["val"]:
            return source
        return self.call(VIEW, source, list(shape)) if source is not node.args[0] and is_contiguous(source) else None

    def expand_late(self, node: Node) -> Node | None:
        """Apply views and operations on each element before an expansion, and expand once."""
        inputs, (shape, dtype) = node.all_input_nodes, kind(node)
        if node in self.fills or shape.numel() == 1 or not self.memory.is_constant(node):
            return None
        if node.target in (VIEW, UNSQUEEZE, EXPAND):
            small = self.factor(node)
            if small is None or node.args[0].target is not EXPAND or len(kind(small.powers[0][0])[0]) > len(shape):
                return None
            return self.call(EXPAND, small.powers[0][0], list(shape))
        if node.target in PRODUCT and len(inputs) > 1 and dtype.is_floating_point:
            left, right = map(self.factor, node.args)
            if left is None or right is None or any(kind(a)[1] != dtype for a in inputs):
                return None
            uniform = self.tensor(left.times(right.power(-1 if node.target in DIVISION else 1)))
            return self.call(EXPAND, uniform, list(shape))
        if node.target not in ELEMENTWISE or node.kwargs or len(inputs) != 1 or inputs[0].target is not EXPAND:
            return None
        (large,), (source, *_) = inputs, inputs[0].args
        if kind(large)[0] != shape or kind(source)[0].numel() == shape.numel():
            return None
        args = [source if argument is large else argument for argument in node.args]
        result = self.call(node.target, *args, val=node.meta["val"].with_shape(kind(source)[0]))
        return self.call(EXPAND, result, list(shape))

    def scale(self, node: Node) -> Node | None:
        """Join several products with uniform factors into one; multiply by a tensor that is not expanded."""
        if (parts := self.product(node)) is None:
            return None
        (base, factor), steps = parts, 1
        while len(base.users) == 1 and self.memory.is_settled(base) and (inner := self.product(base)):
            base, factor, steps = inner[0], factor.times(inner[1]), steps + 1
        if kind(node)[0].numel() == 1 and factor.powers or not factor.is_moderate:  # no less work, or an overflow
            return None
        if steps > 1:
            return self.times(base, self.tensor(factor))
        if len(factor.powers) == 1 and any(a.target is EXPAND for a in node.all_input_nodes):
            scale = self.tensor(Factor(1.0, ((factor.powers[0][0], 1),)))
            return self.call(DIV if node.target in DIVISION else MUL, base, scale)
        return None

    def bias(self, node: Node) -> Node | None:
        """Add a bias within the matrix product that it follows."""
        if node.target is not ADD or node.kwargs or not isinstance(node.args[1], fx.Node):
            return None
        (large, term), (shape, dtype) = node.args, kind(node)
        product = large.args[0] if large.target is VIEW else large
        if product.target is not aten.mm.default or kind(term)[1] != dtype or kind(large) != kind(node):
            return None
        (rows, columns), of_term = kind(product)[0], kind(term)[0]
        alone = all(len(a.users) == 1 and self.memory.is_settled(a) for a in (large, product))
        if not alone or shape != (rows, *of_term) or not is_contiguous(term):
            return None
        vector = self.call(VIEW, term, [columns])
        result = self.call(aten.addmm.default, vector, *product.args, val=product.meta["val"])
        return self.call(VIEW, result, list(shape))

    def sum_first(self, node: Node) -> Node | None:
        """Sum before products with uniform factors and additions of uniform terms; join a sum of a sum."""
        if node.target not in SUM or node.kwargs:
            return None
        (shape, dtype), base = kind(node), node.args[0]
        if dtype not in (torch.float32, torch.float64) or kind(base)[1] != dtype or not kind(base)[0].numel():
            return None
        factor, terms, views, steps = ONE, list[Factor](), list[Node](), 0
        while len(base.users) == 1 and self.memory.is_settled(base):
            steps += 1
            if (parts := self.product(base)) and factor.times(parts[1]).is_moderate:
                base, factor = parts[0], factor.times(parts[1])
            elif (summands := self.addition(base)) and summands[2].is_bounded:  # a large term may cancel
                number = Factor(kind(base)[0].numel() / shape.numel())  # of terms in a sum
                terms.append(summands[2].times(factor).times(number))
                base, factor = summands[0], factor.times(Factor(summands[1]))
            elif base.target in RESHAPE and is_contiguous(base.args[0]):
                views.append(base)
                base, steps = base.args[0], steps - 1
            elif node.target is aten.sum.default and base.target in SUM and not base.kwargs:
                base = base.args[0]
            else:
                steps -= 1
                break
        if not steps:
            return None
        for view in reversed(views if node.target is not aten.sum.default else []):
            base = self.call(view.target, base, *view.args[1:])
        result = self.call(node.target, base, *node.args[1:], val=node.meta["val"])
        if factor != ONE:
            result = self.times(result, self.tensor(factor))
        for term in terms:
            result = self.call(ADD, result, self.tensor(term))
        return result


RULES = (_Pass.identity, _Pass.number, _Pass.view, _Pass.expand_late, _Pass.scale, _Pass.bias, _Pass.sum_first)
