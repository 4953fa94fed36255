"""Which operations of a graph write to the memory of an argument, and which must not."""

import pytest
import torch

from pyro_vae.compiled.graph import Graph

X, Y = torch.linspace(-2, 2, 12).view(3, 4), torch.linspace(1, 3, 12).view(3, 4).cos()


def product_then_bias(x, y):
    return [(torch.mm(x, y.T).view(3, 3, 1) + torch.ones(3, 1, 1)).exp().view(9)]


def second_factor(x, y):
    return [x * y.sin()]


def expanded_factor(x, y):
    return [x.sum(0).expand(3, 4) * y.sin()]


def last_of_two_readers(x, y):
    z = x.sin()
    return [(z + 1) * 2, z.exp()]


REUSES = {  # functions, and the methods that write
    product_then_bias: ["add_", "exp_"],
    second_factor: ["mul_"],
    expanded_factor: ["mul_"],
    last_of_two_readers: ["mul_", "exp_"],
}


def an_input(x, y):
    return [x.exp(), y.exp()]


def read_later(x, y):
    z = x.sin()
    return [z.exp(), z + 1]


def a_view_read_later(x, y):
    z = x.sin()
    row = z[0]
    return [z.exp(), row + 1]


def a_part_of_what_is_read_later(x, y):
    z = x.sin()
    return [z[0].exp(), z.cos()]


def returned(x, y):
    z = x.sin()
    return [z, z.exp()]


def expanded(x, y):
    return [x.sum(0).expand(3, 4).exp()]


def overlapping(x, y):
    z = torch.mm(x, y.T)
    return [z + z.T]


def another_dtype(x, y):
    return [x.sin().to(torch.float64).float() + y.double()]


def with_a_factor(x, y):
    return [torch.add(x, y.sin(), alpha=2.0)]


def not_symmetric(x, y):
    return [x - y.sin()]


def of_a_scalar(x, y):
    return [x.sum().exp()]


def expanded_scalar(x, y):
    return [(x.sum().expand(3, 4) * 2.0)[0].tanh().cos()]


def expanded_and_permuted(x, y):
    return [(x.sum().expand(3, 4) * 2.0).permute(1, 0).exp()]


def expanded_and_unbound(x, y):
    return [(part * 2).exp() for part in (x.sum().exp() * torch.ones(3, 4)).unbind(0)]


def a_part_that_is_returned(x, y):
    return [x.sin()[0].exp()]


KEEPS = dict.fromkeys([an_input, a_part_of_what_is_read_later, returned, expanded, with_a_factor, not_symmetric], [])
KEEPS |= {read_later: ["add_"], a_view_read_later: [], another_dtype: ["add_"], overlapping: []}
KEEPS |= dict.fromkeys([expanded_scalar, expanded_and_permuted, expanded_and_unbound, a_part_that_is_returned])
KEEPS |= {of_a_scalar: []}  # the later reader may write in place


def check(function):
    """Return the methods in place of a graph, whose results are the function's, and which leaves its inputs alone."""
    inputs = [X.clone(), Y.clone()]
    graph = Graph(function, inputs)
    for _ in range(2):
        for ours, theirs in zip(graph(inputs), function(X, Y), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(inputs[0], X)
    assert torch.equal(inputs[1], Y)
    nodes = graph._run.__self__.graph.nodes if hasattr(graph._run, "__self__") else ()
    return [node.target for node in nodes if node.op == "call_method" and str(node.target).endswith("_")]


@pytest.mark.parametrize("function", REUSES)
def test_memory_that_nothing_reads_later_is_reused(function):
    assert check(function) == REUSES[function]


@pytest.mark.parametrize("function", KEEPS)
def test_memory_that_is_read_later_is_kept(function):
    methods = check(function)
    assert KEEPS[function] is None or methods == KEEPS[function]


@pytest.mark.parametrize("function", [*KEEPS, *REUSES])
def test_a_result_keeps_no_larger_memory_alive(function):
    inputs = [X.clone(), Y.clone()]
    for ours, theirs in zip(Graph(function, inputs)(inputs), function(X, Y), strict=True):
        assert ours.untyped_storage().nbytes() <= theirs.untyped_storage().nbytes()


def test_several_in_a_row_share_one_memory():
    """The second may overwrite the first only because the first's memory has no other reader."""

    def function(x, y):
        a = x.sin()
        b = a.exp()
        c = b.view(4, 3)
        d = b * 2
        return [d, c + 1]

    methods = check(function)
    assert methods[0] == "exp_"
    assert "mul_" not in methods
