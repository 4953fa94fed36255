"""Which operations of a graph write, and which results share memory."""

from functools import cache
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

Node = Any  # fx.Node, whose arguments have many types


class Memory:
    """The memory of the results of a graph.

    Attributes:
        roots: For each node, the node that created its memory: a view has the root of the tensor that it views.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.roots: dict[Node, Node] = {}
        self._inputs: dict[Any, Node] = {}
        self._written, self._late, read = set[Node](), set[Node](), set[Node]()
        for node in graph.nodes:
            self.add(node)
            if node.op == "call_function":
                written = {self.roots[argument] for argument in written_arguments(node)}
                self._written |= written
                self._late |= {root for root in written if root in read or root.op == "placeholder"}
                read |= {self.roots[argument] for argument in node.all_input_nodes} - written
        (output,) = (node for node in graph.nodes if node.op == "output")
        self._returned = {self.roots[node] for node in output.all_input_nodes}

    def add(self, node: Node) -> None:
        """Find the root of a node whose arguments have one."""
        owner, arguments = node.meta.get("owner"), node.all_input_nodes
        if node.op == "placeholder":  # inputs may be views of one tensor
            self.roots[node] = self._inputs.setdefault(node.meta.get("place", node), node)
        else:  # two arguments may have become one
            self.roots[node] = node if owner is None else self.roots[arguments[min(owner, len(arguments) - 1)]]

    def replace(self, node: Node, new: Node) -> None:
        """Let the graph use and return a new node in place of another."""
        node.replace_all_uses_with(new)
        if self.roots[node] in self._returned:
            self._returned.add(self.roots[new])

    def is_settled(self, node: Node) -> bool:
        """Whether results and arguments of an operation stay the same once they are read: they may be read later."""
        return not any(self.roots[part] in self._late for part in (node, *node.all_input_nodes))

    def is_constant(self, node: Node) -> bool:
        """Whether no operation writes to a result."""
        return self.roots[node] not in self._written

    def is_returned(self, node: Node) -> bool:
        """Whether the graph returns memory of a result."""
        return self.roots[node] in self._returned

    def may_share(self, node: Node) -> bool:
        """Whether a result may share memory: no operation writes it, and the graph does not return it."""
        return self.is_constant(node) and not self.is_returned(node)


class Reuse:
    """Finds operations that may write their result to the memory of an argument: nothing reads that memory later."""

    def __init__(self, graph: fx.Graph) -> None:
        self._roots, self._last = Memory(graph).roots, dict[Node, int]()
        self._order = {node: number for number, node in enumerate(graph.nodes)}
        for node, number in self._order.items():
            self._last |= {self._roots[argument]: number for argument in node.all_input_nodes}

    def place(self, node: Node, most: int) -> int | None:
        """Return the position of the first of ``most`` arguments whose memory may hold the result; None if none may."""
        arguments = () if "out" in node.kwargs else node.args[:most]
        if most > 1 and (len(node.args) != most or node.kwargs):  # such as a factor, of one argument alone
            arguments = arguments[:1]
        for position, argument in enumerate(arguments):
            if isinstance(argument, fx.Node) and self._may_overwrite(node, argument):
                return position
        return None

    def _may_overwrite(self, node: Node, argument: Node) -> bool:
        root, others = self._roots[argument], [a for a in node.args if isinstance(a, fx.Node) and a is not argument]
        val = argument.meta.get("val")
        same = val is not None and val == node.meta.get("val") and len(val.shape) > 0 and is_dense(val)
        whole = root.meta.get("val")  # a part would keep the whole alive, and an expanded scalar has one element
        same = same and whole is not None and whole.numel() == val.numel()
        alone = node.args.count(argument) == 1 and all(self._roots[other] is not root for other in others)
        return same and alone and root.op == "call_function" and self._last[root] == self._order[node]


def is_dense(val: Any) -> bool:
    """Whether the elements of a tensor have distinct places in memory, without gaps."""
    places = sorted((stride, size) for stride, size in zip(val.stride, val.shape, strict=True) if size > 1)
    expected = 1
    for stride, size in places:
        if stride != expected:
            return False
        expected *= size
    return True


@cache
def arguments_of(operation: Any) -> tuple[list[str], list[str]]:
    """Return an operation's argument names, and the names of written arguments: declared or running statistics."""
    arguments = operation._schema.arguments
    written = [item.name for item in arguments if item.alias_info is not None and item.alias_info.is_write]
    names = [item.name for item in arguments]
    return names, written + [name for name in names if name in ("running_mean", "running_var")]


def written_arguments(node: Node) -> list[Node]:
    """Return the arguments that an operation writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    names, written = arguments_of(node.target)
    arguments = dict(zip(names, node.args, strict=False)) | node.kwargs if written else {}
    return [leaf for leaf in tree_leaves([arguments.get(name) for name in written]) if isinstance(leaf, fx.Node)]


def has_side_effect(node: Node) -> bool:
    """Whether a node writes, draws, or is an input or output."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags
    return node.op in ("placeholder", "output")


def remove_dead_code(graph: fx.Graph) -> None:
    """Remove operations whose results are unused, except draws, which advance the generators."""
    graph.eliminate_dead_code(has_side_effect)
