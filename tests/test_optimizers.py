"""Muon for matrices, whose steps are held to singular values, and torch's Adam for the rest."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch

from pyro_vae import VAE, data, fit, likelihoods, priors
from pyro_vae.compiled.optimizer import Optimizer
from pyro_vae.networks import MLP
from pyro_vae.train.optimizers import COEFFICIENTS, Muon, matrices_of, orthogonal, recipe

DYNAMIC = data.load("digits", binarize="dynamic")


def build(**parts):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = partial(MLP, hidden=(32, 24))
        return VAE.build((1, 8, 8), **{"latent": 3, "network": network, "likelihood": likelihoods.Bernoulli} | parts)


def two():
    torch.manual_seed(1)
    return torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(6))


def gradient(parameter, step):
    """Of a quadratic whose curvature differs from direction to direction."""
    return parameter.detach() * torch.arange(1.0, parameter.numel() + 1).reshape_as(parameter) / step


def descend(parameters, optimizers, steps=5):
    for step in range(1, steps + 1):
        for parameter in parameters:
            parameter.grad = gradient(parameter, step)
        for optimizer in optimizers:
            optimizer.step()


def turned(shape, values):
    """A matrix with these singular values, and its singular vectors."""
    left, right = (torch.linalg.qr(torch.randn(n, len(values))).Q for n in shape)
    return left @ values.diag() @ right.T, left, right


class TestOrthogonal:
    @pytest.mark.parametrize("shape", [(30, 8), (8, 30), (8, 8)], ids=str)
    def test_keeps_singular_vectors_and_brings_values_near_one(self, shape, float64):
        """Values of 0.01 to 1 of the Frobenius norm come to 0.73 to 1.27, by the polynomials as numbers."""
        values = torch.logspace(0, -1.9, 8)
        matrix, left, right = turned(shape, values)
        found = left.T @ orthogonal(3.0 * matrix) @ right
        expected = values / values.norm()
        for a, b, c in COEFFICIENTS:
            expected = a * expected + b * expected**3 + c * expected**5
        torch.testing.assert_close(found, expected.diag(), rtol=1e-10, atol=1e-10)
        assert found.diagonal().min() > 0.73
        assert found.diagonal().max() < 1.27

    def test_no_other_three_steps_do_better_anywhere(self, float64):
        """The first polynomial is the best of its kind on 0.01 to 1, the next where the one before leaves it: each
        touches its largest error, with signs in turn, at four points or more, as Chebyshev's best approximations do.
        """
        low, high = 0.01, 1.0
        for a, b, c in COEFFICIENTS:
            s = torch.logspace(math.log10(low), math.log10(high), 20_001)
            error = a * s + b * s**3 + c * s**5 - 1
            largest = error.abs().max()
            ends = error[error.abs() > 0.99 * largest].sign()
            assert (ends.diff() != 0).sum() >= 3
            low, high = 1 - largest.item(), 1 + largest.item()
        assert 0.72 < low < 0.74

    def test_a_small_one_grows_by_78(self, float64):
        matrix, left, right = turned((9, 5), torch.tensor([1.0, 0.5, 1e-5, 1e-6, 1e-7]))
        found = (left.T @ orthogonal(matrix) @ right).diagonal()
        expected = math.prod(a for a, _, _ in COEFFICIENTS) * torch.tensor([1e-5, 1e-6, 1e-7]) / math.sqrt(1.25)
        torch.testing.assert_close(found[2:], expected, rtol=1e-4, atol=0)
        assert 78 < math.prod(a for a, _, _ in COEFFICIENTS) < 79

    def test_float32_is_enough_and_zero_stays(self):
        matrix, _, _ = turned((200, 784), torch.logspace(0, -5, 200))
        torch.testing.assert_close(orthogonal(matrix).double(), orthogonal(matrix.double()), rtol=0, atol=1e-4)
        assert not orthogonal(torch.zeros(3, 4)).any()


def test_matrices_go_by_muon_and_the_rest_by_adam():
    with torch.random.fork_rng():
        (matrix, bias), (other, rest) = two(), two()
        descend([matrix, bias], [Muon([matrix, bias], [matrix], lr=0.01)])
        descend([rest], [torch.optim.Adam([rest], lr=0.01, fused=True)])
    assert (bias == rest).all()
    mean = torch.zeros(6, 4)
    with torch.no_grad():
        for step in range(1, 6):
            grad = gradient(other, step)
            mean = 0.95 * mean + 0.05 * grad
            other -= 0.01 * 0.2 * math.sqrt(6) * orthogonal(0.05 * grad + 0.95 * mean)
    torch.testing.assert_close(matrix, other)


def test_which_are_matrices():
    """Weights of dense layers; not biases, pseudo-inputs, means of a mixture, nor a convolution's kernels."""
    for prior in (priors.VampPrior, partial(priors.GaussianMixture, components=7)):
        vae = build(prior=prior)
        own = {name for name, value in vae.named_parameters() if any(value is matrix for matrix in matrices_of(vae))}
        assert own == {f"{side}.network.layers.{i}.weight" for side in ("encoder", "decoder") for i in (1, 3, 5)}


def test_its_state_is_taken_up():
    """Two steps, the state into another one, two more: as four."""
    with torch.random.fork_rng():
        (matrix, bias), (other, rest) = two(), two()
        descend([matrix, bias], [Muon([matrix, bias], [matrix], lr=0.01)], steps=1)
        whole = Muon([other, rest], [other], lr=0.01)
        descend([other, rest], [whole], steps=1)
        again = Muon([matrix, bias], [matrix], lr=0.5)
        again.load_state_dict(deepcopy(whole.state_dict()))
        descend([matrix, bias], [again], steps=3)
        descend([other, rest], [whole], steps=3)
    assert (matrix == other).all()
    assert (bias == rest).all()


def test_parameters_that_come_later_go_by_adam():
    with torch.random.fork_rng():
        matrix, bias = two()
        made = Muon([matrix], [matrix], lr=0.01)
        descend([matrix], [made], steps=1)
        made.add_param_group({"params": [bias], "lr": 0.01})
        before = bias.detach().clone()
        descend([matrix, bias], [made], steps=1)
    torch.testing.assert_close(before - bias.detach(), 0.01 * bias.grad.sign(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ["trapezoid", "cosine", "one-cycle"])
@pytest.mark.parametrize("name", ["adam", "muon"])
def test_parameters_that_come_later_follow_the_schedule(name, schedule):
    with torch.random.fork_rng():
        (first, later), layer = two(), torch.nn.Linear(4, 6)
    layer.weight = first
    optim = recipe(name, 0.1, schedule, 10, torch.nn.Sequential(layer))
    optimizer, rates = Optimizer(optim), []
    for step in range(10):
        parameters = [first, layer.bias, *([later] if step > 3 else [])]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(parameters)
        optim.step()
        rates.append({group["lr"] for group in optimizer._torch.param_groups})
    assert all(len(rate) == 1 for rate in rates)
    assert sorted(p.numel() for group in optimizer._torch.param_groups for p in group["params"]) == [6, 6, 24]
    assert max(rates[-1]) < 1e-4


@pytest.mark.parametrize("schedule", ["trapezoid", "constant", "cosine", "one-cycle"])
def test_it_trains_at_every_schedule(schedule):
    options = {"epochs": 4, "batch_size": 100, "lr": 3e-3, "lr_schedule": schedule, "progress": False}
    history = fit(build(), DYNAMIC, optimizer="muon", **options)
    assert history["valid"][-1] < history["valid"][0]
    assert history["valid"] != fit(build(), DYNAMIC, **options)["valid"]


def test_plain_pyro_and_the_graph_take_the_same_steps():
    one, other = (
        fit(build(), DYNAMIC, optimizer="muon", epochs=2, batch_size=300, compile=how, progress=False)["valid"]
        for how in ("off", "graph")
    )
    assert one == pytest.approx(other, rel=1e-4)


def test_another_optimizer_gets_a_sentence():
    with pytest.raises(ValueError, match=r"Expected optimizer to be adam or muon; got 'sgd'\."):
        fit(build(), DYNAMIC, optimizer="sgd")
