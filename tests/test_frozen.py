"""A function on tape; frozen, what follows from closed-over tensors alone is computed once, and twice the same once."""

import numpy as np
import pytest
import torch

from pyro_vae.compiled.graph import Graph
from pyro_vae.compiled.tape import DataDependent

X, W = torch.randn(4, 3), torch.randn(3, 3)


def names(graph):
    return [node.target.overloadpacket.__name__ for node in graph.nodes]


def check(function, number, frozen=True):
    graph = Graph(function, [torch.randn(4, 3)], frozen)
    z = torch.randn(4, 3)
    for _ in range(2):
        state = torch.get_rng_state()
        expected = function(z)
        torch.set_rng_state(state)
        torch.testing.assert_close(list(graph([z])), list(expected), rtol=0, atol=0)
    assert len(graph.nodes) == number, names(graph)
    return graph


def test_a_number_of_the_code_may_be_looked_at():
    check(lambda z: [z * torch.tensor(2.0).item() + (torch.tensor(3.0) * 2).item()], 2, frozen=False)


@pytest.mark.parametrize(
    "look",
    [lambda z: z.sum(), lambda z: W[0, 0], lambda z: torch.tensor(1.0).add_(z.sum()), lambda z: torch.randn(())],
    ids=["an input's", "one closed over", "a result", "a draw"],
)
def test_no_other_number_may(look):
    with pytest.raises(DataDependent):
        Graph(lambda z: [z * look(z).item()], [X])


@pytest.mark.parametrize("look", [lambda z: z.tolist()[0][0], lambda z: z.numpy()[0, 0], lambda z: np.asarray(z)[0, 0]])
def test_nor_may_all_of_them(look):
    with pytest.raises(DataDependent):
        Graph(lambda z: [z * look(z)], [X])


def test_a_number_of_the_code_that_was_written_to_is_another_one():
    def function(z):
        number = torch.tensor(1.0)
        number.view(1).add_(z.sum())
        return [z * number.item()]

    with pytest.raises(DataDependent):
        Graph(function, [X])


def test_a_tensor_given_twice_or_closed_over_too_is_several():
    graph = Graph(lambda a, b: [a - b + X], [X, X])
    one, other = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(graph([one, other])[0], one - other + X)


def test_an_array_of_numpy_is_seen_as_it_is_now():
    array = np.ones(3, dtype=np.float32)
    graph = Graph(lambda z: [z * torch.as_tensor(array)], [X])
    array[:] = 10
    assert torch.equal(graph([X])[0], 10 * X)


def test_a_tensor_of_the_code_is_new_at_each_call():
    check(lambda z: [z + torch.tensor([1.0, 2.0, 3.0]).add_(1)], 3, frozen=False)


def test_what_depends_on_no_input_is_computed_once():
    def function(z):
        return [z * (X @ W).tanh().exp(), torch.zeros_like(z) + 1]

    assert names(check(function, 1)) == ["mul"]
    check(function, 6, frozen=False)


def test_parts_of_an_operation_with_several_results_are_too():
    def function(z):
        values, indices = X.sort(0)
        return [z + values, z.gather(0, indices)]

    check(function, 2)


def test_what_is_computed_twice_is_computed_once():
    def function(z):
        return [(z @ W).exp() + 1, (z @ W).exp() + 1.0, (z @ W).exp() * 2]

    assert sorted(names(check(function, 5))) == ["add", "add", "exp", "mm", "mul"]


def test_draws_are_drawn_each_time():
    graph = check(lambda z: [z + torch.randn_like(X), z + torch.randn_like(X) * X.exp()], 5)
    one, other = (list(graph([X])) for _ in range(2))
    assert not torch.equal(one[0], other[0])


def test_a_graph_that_writes_is_left_as_it_is():
    total = torch.zeros(4, 3)

    def function(z):
        total.add_(1)
        return [z + total + X.exp()]

    graph = Graph(function, [X], True)
    first = list(graph([X]))[0].clone()
    torch.testing.assert_close(list(graph([X]))[0], first + 1)
