"""Muon for matrices and Adam for the rest: each step is that of torch's own optimizers, whose formulas are checked."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch

from pyro_vae import VAE, data, fit, likelihoods, priors
from pyro_vae.networks import MLP
from pyro_vae.train import optimizers
from pyro_vae.train.optimizers import Muon, matrices_of

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
DYNAMIC = data.load("digits", binarize="dynamic")


def build(**parts):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = partial(MLP, hidden=(32, 24))
        return VAE.build((1, 8, 8), **{"latent": 3, "network": network, "likelihood": likelihoods.Bernoulli} | parts)


def two():
    torch.manual_seed(1)
    return torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(6))


def descend(parameters, optimizers, steps=5):
    """Step down a quadratic whose curvature differs from direction to direction."""
    for step in range(1, steps + 1):
        for parameter in parameters:
            parameter.grad = parameter.detach() * torch.arange(1.0, parameter.numel() + 1).reshape_as(parameter) / step
        for optimizer in optimizers:
            optimizer.step()


def test_matrices_go_by_muon_and_the_rest_by_adam():
    with torch.random.fork_rng():
        (matrix, bias), (other, rest) = two(), two()
        descend([matrix, bias], [Muon([matrix, bias], [matrix], lr=0.01)])
        alone = torch.optim.Muon([other], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw", ns_steps=3)
        descend([other, rest], [alone, torch.optim.Adam([rest], lr=0.01, fused=True)])
    assert (matrix == other).all()
    assert (bias == rest).all()


def test_a_step_is_as_long_in_every_direction():
    """All singular values of a first step are about 0.2 sqrt(max(m, n)) times the rate, those of the gradient are not.

    Three times the quintic 3.4445 s - 4.775 s^3 + 2.0315 s^5 brings s from 0.05 to 1 to between 0.68 and 1.21 of it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        matrix = torch.nn.Parameter(torch.zeros(30, 8))
        left, right = (torch.linalg.qr(torch.randn(n, 8)).Q for n in (30, 8))
        matrix.grad = left @ torch.diag(torch.logspace(0, -1, 8)) @ right.T
        Muon([matrix], [matrix], lr=0.1).step()
    lengths = torch.linalg.svdvals(matrix.detach()) / (0.1 * 0.2 * math.sqrt(30))
    assert lengths.min() > 0.6
    assert lengths.max() < 1.25


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


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
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


def test_an_older_torch_gets_a_sentence(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"Expected torch 2\.9 or later for optimizer = 'muon'; got .* Use 'adam'\."):
        optimizers.check_optimizer("muon")
