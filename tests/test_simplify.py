"""Rules that simplify a graph: fewer operations, the same numbers, and no memory shared or written too early."""

import random
from functools import partial
from itertools import pairwise

import pytest
import torch
from pyro.optim import Adam
from torch import Tensor

from pyro_vae import VAE, CompiledSVI
from pyro_vae.compiled.graph import FUNCTIONS, IN_PLACE, METHODS, Graph
from pyro_vae.networks import MLP
from pyro_vae.objectives import ELBO

SCALE = torch.tensor(0.7, dtype=torch.float64)
W, BIAS = torch.randn(3, 6, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)


def example(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def run(graph, function, *inputs):
    """Compare a graph and its function on the same inputs and draws; return the graph's results."""
    state, copies = torch.get_rng_state(), [x.clone() for x in inputs]
    expected = function(*copies)
    torch.set_rng_state(state)
    results = graph(inputs)
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-10, atol=1e-12)
    return results


def names(graph):
    return sorted(node.target.overloadpacket.__name__ for node in graph.nodes)


def squared_error(z):
    """Return a Gaussian log density with one scale, as torch writes it."""
    variance = SCALE.expand(4, 3) ** 2
    terms = -((z - W[0, :3]) ** 2) / (2 * variance) - SCALE.expand(4, 3).log() - 0.9
    return [terms.reshape(4, -1).sum(-1).sum()]


@pytest.mark.parametrize(
    ("function", "operations"),
    {
        "a sum that starts at 0": (lambda z: [(torch.zeros((), dtype=z.dtype) + z.sum()) * 2], "mul sum"),
        "one particle": (lambda z: [(z / 1 * 1.0).exp()], "exp"),
        "the gradient of a square": (lambda z: [z**1.0 * 2.0], "mul"),
        "factors": (lambda z: [-(z * 2) / 4 * SCALE.expand(4, 3)], "mul mul"),
        "a factor and its inverse": (lambda z: [z * 2 / 2], "mul"),
        "an expanded scale": (lambda z: [z / SCALE.expand(4, 3)], "div"),
        "a filled tensor": (lambda z: [z * torch.full((4, 3), 2.0, dtype=z.dtype)], "mul"),
        "a density": (squared_error, "add add log mul mul mul neg pow pow reciprocal select slice sub sum"),
        "a sum of sums": (lambda z: [z.reshape(2, 2, 3).sum(-1).sum()], "sum"),
        "a mean of rows": (lambda z: [(z * 3 + 1).sum(-1)], "add mul sum"),
        "a sum from a number": (lambda z: [(1 - z).sum()], "add neg sum"),
        "twice the same": (lambda z: [(z.exp() + z.exp()).log()], "add exp log"),
        "views": (lambda z: [z.reshape(12).reshape(2, 6).unsqueeze(0).reshape(4, 3).exp()], "exp"),
        "transposes": (lambda z: [z.t().t().exp()], "exp"),
        "a stack of one": (lambda z: [torch.stack([z], 1).reshape(4, 3).exp()], "exp"),
        "a bias": (lambda z: [(z @ W).reshape(4, 2, 3) + BIAS], "addmm view view"),
        "a bias of columns": (lambda z: [z @ W + W[0]], "addmm select"),
        "a copy": (lambda z: [z.clone().exp()], "exp"),
    }.values(),
)
def test_rules(function, operations):
    graph = Graph(function, [example(4, 3)])
    run(graph, function, example(4, 3))
    assert names(graph) == operations.split()


@pytest.mark.parametrize(
    "function",
    {
        "it may be infinite": lambda z: [z * torch.tensor(float("inf"), dtype=z.dtype)],
        "another dtype": lambda z: [z.float() * torch.tensor(2.0, dtype=torch.float64)],
        "whole numbers": lambda z: [(z > 0).long() * 2 // 2 + torch.zeros((), dtype=torch.long)],
        "a larger bias": lambda z: [(z @ W).reshape(4, 2, 3) + example(4, 2, 3)],
        "dimensions from 1": lambda z: [(z.sum() + torch.zeros(2, 2, dtype=z.dtype)).exp()],
        "a sum of dimensions": lambda z: [(z.reshape(2, 2, 3) * 2 + 1).sum([0, 2])],
        "a sum that keeps dimensions": lambda z: [(z * 2 - SCALE.expand(4, 3)).sum(1, keepdim=True)],
        "division by a tensor": lambda z: [2.0 / z, SCALE.expand(4, 3) / z],
        "rounding": lambda z: [torch.div(z, 0.3, rounding_mode="floor")],
        "a second factor": lambda z: [torch.add(z, SCALE, alpha=3).sum(), torch.sub(z, 2.0, alpha=0.5).sum()],
        "the same tensor": lambda z: [(z[0, 0] * z[0, 0]).exp(), z[:1, :1] + z[:1, :1]],
        "a negative number of columns": lambda z: [z.t().reshape(2, -1).sum(-1)],
        "a number minus whole numbers": lambda z: [(1.5 - (z * 9).long()).sum(1)],
        "an infinite reciprocal": lambda z: [(z * 2 / 5e-324).isinf(), (z * 0 / 1e-300).sum()],
        "an overflow of a sum": lambda z: [(z * 1e-300).sum(), (z * 1e300 * 1e-300).sum(), (z / 1e200 / 1e200).sum()],
        "a sum that overflows before its scale": lambda z: [((z * 0 + 709).exp() * 1e-300).sum()],
        "no elements": lambda z: [(z[:0] * 2 + 1).sum()],
    }.values(),
)
def test_the_numbers_are_the_same(function):
    run(Graph(function, [example(4, 3)]), function, example(4, 3))


def written_after(z):
    a = z.exp()
    b = a * 1.0
    a.add_(1)
    return [a, b * 2]


def written_view(z):
    a = z.exp()
    row = a[0] * 2 * 3
    a[0].zero_()
    return [row, a.sum()]


def written_copy(z):
    a = z.clone()
    a.mul_(2)
    return [a, z + a]


def written_twice(z):
    a, b = torch.zeros_like(z), torch.zeros_like(z)
    a.add_(z)
    return [a + b, b]


def written_under_a_product(z):
    a = z.exp()
    y = a @ W
    a.add_(1)
    return [y + W[0], a]


def written_under_an_expansion(z):
    return [(SCALE.expand(4, 3) * z.sum()).add_(z)]


def written_beside_a_view(z):
    """`reshape` of a transposed tensor, and `@` of three dimensions, end in operations that hide what they share."""
    y = (z.reshape(2, 2, 3) @ W).relu().sum()
    return [y, (z @ W).sum(), z.t().reshape(12) * 2 * 3, z.t().contiguous().view(2, 6) * 2]


def written_cells(z):
    """A cell splits its gates without a copy, and writes in place."""
    first = CELL(z)
    return [first.sum(), CELL(z + 1).sum(), first * 1.0]


def written_out(z):
    buffer, both = torch.empty_like(z), torch.empty(8, 3, dtype=z.dtype)
    torch.exp(z.sin(), out=buffer)
    torch.cat([z, buffer], out=both)
    torch.zeros(4, 3, out=buffer)
    return [buffer + 1, both * 2]


def written_state(z):
    copy = WHOLE.clone()
    WHOLE[0].add_(z.sum())
    result = [copy * 2, WHOLE * 2]
    WHOLE[0].sub_(z.sum())
    return result


CELL, WHOLE = torch.nn.GRUCell(3, 5).double(), torch.randn(2, 3, dtype=torch.float64)
WRITERS = [value for name, value in list(globals().items()) if name.startswith("written_")]


@pytest.mark.parametrize("function", WRITERS)
def test_memory_that_is_written_is_read_in_time(function):
    run(Graph(function, [example(4, 3)]), function, example(4, 3))


def test_terms_that_cancel_keep_their_digits():
    """A sum of a million thousand ones in float32 has lost what is left after the thousands."""
    z = 1e6 + torch.randn(4, 784)
    for function in (lambda z: [(z - 1e6).sum(1)], lambda z: [(z - SCALE.float() * 1e6).sum(1)]):
        graph = Graph(function, [torch.randn(4, 784)])
        torch.testing.assert_close(graph([z])[0], function(z)[0], rtol=1e-4, atol=1e-3)


def test_recorded_without_autograd_operations_may_be_composite():
    with torch.inference_mode():
        z = example(4, 3)

        def function(z):
            a = z.exp()
            return [torch.einsum("ij->ij", a).exp(), a * 2, a.reshape(4, 3).sin() + a.contiguous()]

        run(Graph(function, [z]), function, z)


def test_draws_stay_apart():
    def function(z):
        return [torch.randn_like(z) * 1.0, torch.randn_like(z) + 0.0, torch.randn(())]

    a, b, _ = run(Graph(function, [example(4, 3)]), function, example(4, 3))
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: [z + 0.0, z * 1.0, z.clone(), z**1],
        lambda z: [z.exp(), z.exp(), z.exp() + 0.0],
        lambda z: [torch.stack([z]), SCALE.clone(), (W * 1.0).t()],
    ],
)
def test_results_have_memory_of_their_own(function):
    z = example(4, 3)
    results = run(Graph(function, [z]), function, z)
    memory = [tensor.untyped_storage().data_ptr() for tensor in (*results, z, SCALE, W)]
    assert len(set(memory)) == len(memory)


OPERATIONS = [
    lambda a, b, number: a * number,
    lambda a, b, number: a / 2.0,
    lambda a, b, number: -a,
    lambda a, b, number: a + number,
    lambda a, b, number: number - a,
    lambda a, b, number: a + b,
    lambda a, b, number: a * b,
    lambda a, b, number: a - SCALE.expand(4, 3),
    lambda a, b, number: a * SCALE.expand(4, 3),
    lambda a, b, number: SCALE.expand(4, 3) / (1 + b**2),
    lambda a, b, number: a.reshape(12).reshape(4, 3),
    lambda a, b, number: a.t().t() + torch.zeros(4, 3, dtype=a.dtype),
    lambda a, b, number: a.sum() * number + torch.zeros_like(b),
    lambda a, b, number: (a * 2 - number).sum(-1, keepdim=True).expand(4, 3),
    lambda a, b, number: a.clone().mul_(number),
    lambda a, b, number: (a * 2.0).add_(b),
    lambda a, b, number: torch.randn_like(a) * a,
    lambda a, b, number: torch.stack([a], 0).reshape(4, 3).tanh(),
    lambda a, b, number: torch.ones_like(a) * number + a,
]


@pytest.mark.parametrize("seed", range(60))
def test_any_program_keeps_its_numbers(seed):
    choices = random.Random(seed)
    steps = [(choices.choice(OPERATIONS), choices.random(), choices.random(), choices.choice([0.0, 1.0, -1.0, 0.3]))]
    steps += [
        (choices.choice(OPERATIONS), choices.random(), choices.random(), choices.choice([0.0, 1.0, -1.0, 0.3, 2.0]))
        for _ in range(choices.randrange(3, 15))
    ]

    def function(x, y):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            values = [leaf, y]
            for operation, first, second, number in steps:
                a, b = values[int(first * len(values))], values[int(second * len(values))]
                values.append(operation(a, b, number))
            total = sum((value.sum() for value in values[1:]), torch.zeros((), dtype=x.dtype))
            (gradient,) = torch.autograd.grad(total + 0 * leaf.sum(), [leaf])
        return [gradient, total.detach(), values[-1].detach() + 0.0]

    graph = Graph(function, [example(4, 3), example(4, 3)])
    results = run(graph, function, example(4, 3), example(4, 3))
    for a, b in pairwise(results):
        assert a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr()


Z1, Z3 = torch.rand(3, dtype=torch.float64), torch.rand(2, 4, 3, dtype=torch.float64)
OF_NAMES = {
    name: (lambda z, name=name: [getattr(torch, name)(z)])
    for name in ("abs", "exp", "expm1", "isnan", "log", "log1p", "neg", "reciprocal", "relu", "rsqrt", "sgn", "sigmoid")
} | {
    "sqrt": lambda z: [z.sqrt()],
    "tanh": lambda z: [z.tanh()],
    **{
        name: (lambda z, name=name: [getattr(torch, name)(z, z.flip(0))])
        for name in ("add", "div", "eq", "ge", "gt", "le", "lt", "maximum", "minimum", "mul", "ne", "pow", "sub")
    },
    "logical_and": lambda z: [torch.logical_and(z > 0.5, z < 0.7)],
    "addcmul": lambda z: [torch.addcmul(z, z, z + 1, value=0.5)],
    "addmm": lambda z: [torch.addmm(W[0], z, W)],
    "mm": lambda z: [torch.mm(z, W)],
    "bmm": lambda z: [torch.bmm(Z3 + z, Z3.mT)],
    "baddbmm": lambda z: [torch.baddbmm(Z3 @ Z3.mT, Z3 + z, Z3.mT)],
    "cat": lambda z: [torch.cat([z, z + 1], 1)],
    "stack": lambda z: [torch.stack([z, z + 1], 1)],
    "clamp": lambda z: [torch.clamp(z, 0.2, 0.6), torch.clamp(z, max=0.6)],
    "where": lambda z: [torch.where(z > 0.5, z, z + 1)],
    "empty": lambda z: [torch.empty(4, 3, dtype=z.dtype).copy_(z)],
    "full": lambda z: [torch.full((4, 3), 2.0, dtype=z.dtype).cos() + z],
    "ones": lambda z: [torch.ones(4, 3, dtype=z.dtype).cos() + z],
    "zeros": lambda z: [torch.zeros(4, 3, dtype=z.dtype).cos() + z],
    "logsumexp": lambda z: [torch.logsumexp(z, 1), torch.logsumexp(z, [0, 1], keepdim=True)],
    "mean": lambda z: [torch.mean(z), torch.mean(z, 1, keepdim=True)],
    "sum": lambda z: [torch.sum(z), torch.sum(z, 1, keepdim=True), torch.sum(z > 0.5, dtype=z.dtype)],
    "t": lambda z: [torch.t(z).cos()],
    "unbind": lambda z: [row.cos() for row in torch.unbind(z, 1)],
    "unsqueeze": lambda z: [torch.unsqueeze(z, 1).cos()],
    "expand": lambda z: [z[:, :1].expand(4, 3).cos()],
    "view": lambda z: [z.view(2, -1).cos()],
    "normal_": lambda z: [torch.empty_like(z).normal_() + z],
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS | METHODS | IN_PLACE))
def test_a_function_of_torch_gives_the_numbers_of_its_operator(name):
    """As recorded with operators, as run with functions, and in the memory of a result that nothing reads."""
    function, z = OF_NAMES[name], torch.rand(4, 3, dtype=torch.float64)
    graph = Graph(function, [z])
    assert name in names(graph)
    run(graph, function, z)
    if name in IN_PLACE:
        writer = (lambda z: [function(z * 0.5)[0] * 2]) if name != "mul" else lambda z: [function(z.cos())[0] + 1]
        run(Graph(writer, [z]), writer, z)


def test_a_step_has_less_than_two_thirds_of_its_operations(param_store):
    vae, x = VAE.build((50,), 4, network=partial(MLP, hidden=(20,))), torch.rand(8, 50)
    svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 1e-3}), ELBO(), compile="graph")
    for _ in range(4):
        svi.step(x)
    graph = svi._gradients._last.graph
    recorded, _ = graph._recorded
    operations = [node for node in recorded.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert len(graph.nodes) < 2 / 3 * len(operations)
