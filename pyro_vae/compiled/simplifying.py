"""What a recorded graph need not do: the same number again, what nothing depends on, what never changes."""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten

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
    if node.op in ("placeholder", "output"):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags


@torch.no_grad()
def fold(graph: fx.Graph, state: list[Tensor]) -> list[Tensor]:
    """Compute once what closed-over tensors decide, or comes twice, unless the graph writes; return such tensors."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    if any(
        writes(one) for node in calls if node.target is not operator.getitem for one in node.target._schema.arguments
    ):
        return state
    places = [node for node in graph.nodes if node.op == "placeholder"]
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
            operation: Any = node.target
            known[node] = operation(*args, **kwargs)
    for node, value in list(known.items()):
        if node.op != "placeholder" and isinstance(value, Tensor) and any(user not in known for user in node.users):
            with graph.inserting_after(places[-1]):
                places.append(graph.placeholder(f"known_{len(places)}"))
            places[-1].meta = dict(node.meta)
            node.replace_all_uses_with(places[-1], lambda user: user not in known)
            known[places[-1]] = value
    graph.eliminate_dead_code(_stays)
    kept = [node for node in places if node in known and node.users]
    for node in places:
        if node in known and not node.users:
            graph.erase_node(node)
    return [known[node] for node in kept]


def _like(node: fx.Node) -> Tensor:
    """Return a tensor of a node's shape, whose numbers nobody looks at."""
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def writes(argument: Any) -> bool:
    """Whether an operation writes to an argument, as batch normalisation does to two without its schema saying so."""
    unsaid = argument.name in ("running_mean", "running_var")
    return unsaid or (argument.alias_info is not None and argument.alias_info.is_write)
