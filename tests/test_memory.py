"""How much fits: counted by hand, and held against what parts really take."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, evaluate, fit, likelihoods
from pyro_vae.compiled import max_batch_size
from pyro_vae.conditional import Family
from pyro_vae.evaluate.weighing import chunk_sizes
from pyro_vae.program import posterior_of
from pyro_vae.seeds import param_store_scope


class Levels(Family):
    """256 numbers a pixel."""

    params = 256

    def distribution(self, *logits):
        return dist.Categorical(logits=torch.stack(logits, -1))


class TestHowManyFit:
    def test_counts_what_operations_write(self, device):
        def run(n):
            x = torch.ones(n, 8, device=device)  # 32 bytes each
            x.view(-1, 2).t()[0].neg_()  # views, and what is written in place, are none
            return (x > 0) & (x < 2)  # 3 x 8

        assert max_batch_size(run, 1000, device, budget=56 * 10 + 55) == 10

    def test_what_does_not_grow_is_left_out(self):
        assert max_batch_size(lambda n: (torch.ones(10_000), torch.ones(n)), 1000, budget=400) == 100

    def test_keeps_within_its_limits(self):
        assert max_batch_size(lambda n: torch.ones(n), 7) == 7
        assert max_batch_size(lambda n: torch.ones(3), 7, budget=1) == 7
        assert max_batch_size(lambda n: torch.ones(n, 99), 7, budget=1) == 1

    def test_leaves_the_random_state_and_no_graph(self, device):
        w = torch.ones(3, device=device, requires_grad=True)
        made = []
        with torch.random.fork_rng(devices=[0] if device == "cuda" else []):
            before = torch.randn(2, device=device)
        with torch.random.fork_rng(devices=[0] if device == "cuda" else []):
            max_batch_size(lambda n: made.append(torch.randn(n, 3, device=device) * w), 7, device)
            assert (torch.randn(2, device=device) == before).all()
        assert not any(tensor.requires_grad for tensor in made)


def room_of(vae, x, **most):
    with param_store_scope():
        return chunk_sizes(posterior_of(vae, x), **most)


class TestRoom:
    @pytest.mark.parametrize("likelihood", [likelihoods.Bernoulli, likelihoods.Gaussian])
    def test_of_the_usual_vae_is_what_is_fastest(self, likelihood):
        """The draws depend on it, and so do the last digits in notebooks."""
        assert room_of(VAE.build((1, 28, 28), likelihood=likelihood), torch.zeros(4, 1, 28, 28)) == (2_000, 2_000)

    def test_of_many_levels_is_within_the_budget(self):
        images, draws = room_of(VAE.build((1, 28, 28), likelihood=Levels), torch.zeros(4, 1, 28, 28))
        assert 10 < images <= draws < 2**30 / (784 * 256 * 4) / 2

    def test_of_one_image_and_of_few_at_most(self):
        vae = VAE.build((6,), latent=2)
        assert room_of(vae, torch.rand(1, 6), most=9) == (8, 9)
        assert room_of(vae, torch.rand(3, 6), most=9) == (8, 8)


class TestMeasured:
    def test_nll_draws_what_it_would_have_drawn(self):
        vae, x = VAE.build((6,), latent=2), torch.rand(5, 6)
        found = []
        for at_once in (None, 4_000):
            with torch.random.fork_rng():
                found.append(evaluate.nll(vae, x, 30, at_once))
        assert (found[0] == found[1]).all()

    def test_nll_keeps_to_it(self, monkeypatch):
        vae = VAE.build((6,), latent=2)
        monkeypatch.setattr(evaluate.weighing, "chunk_sizes", lambda posterior: (4, 9))
        seen = []
        vae.decoder.register_forward_hook(
            lambda module, inputs, distribution: seen.append(tuple(distribution.batch_shape))
        )
        evaluate.nll(vae, torch.rand(6, 6), 5)
        assert seen[-6:] == [(5, 1)] * 6  # after a look at what the program is

    @pytest.mark.parametrize("fit_at_once", [1, 3, 512])
    def test_validation_keeps_to_it(self, fit_at_once, monkeypatch):
        monkeypatch.setattr("pyro_vae.train.validation.max_batch_size", lambda run, most, device: fit_at_once)
        vae = VAE.build((6,), latent=2)
        seen = []
        vae.decoder.register_forward_hook(
            lambda module, inputs, distribution: seen.append(0 if module.training else distribution.batch_shape.numel())
        )
        fit(vae, torch.rand(100, 6), epochs=1, batch_size=80, compile="off", progress=False)
        rows = [number for number in seen if number <= 10]  # without the look at a whole batch
        assert sum(rows) >= 10
        assert max(rows) == min(10, 2 * fit_at_once)
