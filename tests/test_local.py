"""A guide for each datum, and the two gaps: against the linear-Gaussian model, where both are known."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from test_priors import EVENT, GUIDES, PRIORS, built
from torch import nn

from pyro_vae import VAE, data, evaluate, guides, networks, priors
from pyro_vae.oracle import LinearGaussian
from pyro_vae.posterior import gaps, refine


@pytest.fixture
def model(float64):
    return LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)


@pytest.fixture
def x(model):
    return model(torch.randn(5, 3)).sample()


@pytest.fixture
def brief(monkeypatch):
    """Pilot runs of a few moves, for what does not depend on how good they are."""
    monkeypatch.setattr("pyro_vae.annealing.PILOT", 6)
    monkeypatch.setattr("pyro_vae.annealing.SETTLE", 2)


def disturbed(model, guide="mean-field"):
    """The VAE with a guide of the family's best shape for no x."""
    vae = model.vae(guide)
    with torch.no_grad():
        vae.encoder.network.weight.add_(0.1 * torch.randn_like(vae.encoder.network.weight))
        vae.encoder.network.rest.add_(0.3)
    return vae


def short(model):
    """What the best diagonal guide falls short of, 1/2 [sum of log M_ii - log|M|], for every x."""
    m = model.weight.T @ model.weight / model.scale**2 + torch.eye(model.weight.shape[1])
    return 0.5 * (m.diagonal().log().sum() - m.logdet())


class TestRefine:
    def test_comes_to_the_best_of_the_family(self, model, x):
        """The exact ELBO of the refined guide is that of the best diagonal one, to 0.02 nats."""
        vae = disturbed(model)
        refined = refine(vae, x, steps=300)
        best = model.elbo(x)
        assert (best - model.elbo(x, vae.encoder(x)) > 0.1).all()
        torch.testing.assert_close(model.elbo(x, refined.encoder(x)), best, rtol=0, atol=0.02)

    def test_comes_to_the_posterior_where_that_is_in_the_family(self, model, x):
        refined = refine(disturbed(model, "exact"), x, steps=300)
        torch.testing.assert_close(model.elbo(x, refined.encoder(x)), model.log_evidence(x), rtol=0, atol=1e-3)
        k = evaluate.pareto_k(evaluate.log_weights(refined, x, 1000))
        assert (k < 0.7).all()

    def test_at_the_posterior_there_is_nothing_to_gain(self, model, x):
        """Rounding grows in Adam's first steps, but its rate falls and the gradient has no noise: all is back again."""
        refined = refine(model.vae("exact"), x)
        log_w = evaluate.log_weights(refined, x, 7)
        torch.testing.assert_close(log_w, model.log_evidence(x).expand(7, 5), rtol=0, atol=1e-3)

    def test_is_of_the_given_prior_and_decoder_and_leaves_the_vae_alone(self, model, x):
        vae = disturbed(model)
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        refined = refine(vae, x, steps=5)
        assert refined.prior is vae.prior
        assert refined.decoder is vae.decoder
        assert refined.encoder.network.phi.shape == (5, 2, 3)
        assert not torch.equal(refined.encoder(x).mean, vae.encoder(x).mean)
        assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
        assert all(value.grad is None and value.requires_grad for value in vae.parameters())

    def test_starts_where_the_encoder_is(self, model, x):
        vae = disturbed(model)
        found = refine(vae, x, steps=1, lr=1e-12).encoder(x)
        torch.testing.assert_close(found.mean, vae.encoder(x).mean, rtol=0, atol=1e-10)

    def test_no_datum_sees_another(self, model, x):
        """Refined alone it comes to the same guide."""
        vae = disturbed(model)
        together, alone = refine(vae, x, steps=250), refine(vae, x[2:3], steps=250)
        torch.testing.assert_close(alone.encoder(x[2:3]).mean, together.encoder(x[2:3]).mean, rtol=0, atol=0.05)

    def test_a_seed_draws_the_same(self, model, x):
        vae = disturbed(model)
        same, other, again = (refine(vae, x, steps=5, seed=seed).encoder.network.phi for seed in (1, 2, 1))
        assert torch.equal(same, again)
        assert not torch.equal(same, other)
        assert torch.equal(*(refine(vae, x, steps=5).encoder.network.phi for _ in range(2)))

    def test_chunks_are_refined_each_by_itself(self, model, x, monkeypatch):
        monkeypatch.setattr("pyro_vae.posterior.local.max_batch_size", lambda run, most, device: 2)
        vae = disturbed(model)
        seen = []
        vae.decoder.register_forward_hook(
            lambda module, inputs, distribution: seen.append(tuple(distribution.batch_shape))
        )
        refined = refine(vae, x, steps=2, num_particles=7)
        assert [shape for shape in seen if shape[0] == 7] == [(7, 2)] * 4 + [(7, 1)] * 2
        assert (model.elbo(x, refined.encoder(x)) > model.elbo(x, vae.encoder(x))).all()

    @pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
    def test_every_guide_gains(self, guide):
        """In mean over 5 images; no image loses more than 5 standard errors."""
        vae, x = built(guide=guide), torch.rand(5, *EVENT)
        before, after = (evaluate.log_weights(each, x, 500, seed=0) for each in (vae, refine(vae, x, steps=30, seed=0)))
        error = (before.var(0) / 500 + after.var(0) / 500).sqrt()
        gain = evaluate.elbo(after) - evaluate.elbo(before)
        assert (gain > -5 * error).all()
        assert gain.mean() > 0

    @pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
    def test_under_every_prior(self, prior):
        vae, x = built(prior), torch.rand(3, *EVENT)
        before, after = (evaluate.log_weights(each, x, 500, seed=0) for each in (vae, refine(vae, x, steps=30, seed=0)))
        assert evaluate.elbo(after).mean() > evaluate.elbo(before).mean()

    def test_under_a_vampprior_the_prior_stays_the_encoders(self):
        """Which is asked for its pseudo-inputs, not refined for them."""
        vae, x = built(partial(priors.VampPrior, components=3)), torch.rand(3, *EVENT)
        z = torch.randn(9, 4)
        expected = vae.prior().log_prob(z)
        assert torch.equal(refine(vae, x, steps=3).prior().log_prob(z), expected)

    @pytest.mark.filterwarnings("ignore:AIS. effective")  # after so short a pilot run
    def test_devices(self, device, brief):
        vae, x = VAE.build((6,), latent=2).to(device), torch.rand(3, 6, device=device)
        refined = refine(vae, x, steps=2, seed=0)
        assert refined.encoder(x.flip(0)).mean.device.type == device
        for value in gaps(vae, x, num_particles=5, steps=2, temperatures=5, seed=0):
            assert (value.device.type, value.shape) == (device, (3,))
            assert value.isfinite().all()


class TestWhatItKnows:
    def test_some_of_its_data_in_any_order(self, model, x):
        refined = refine(disturbed(model), x, steps=5)
        expected = refined.encoder(x).mean
        for rows in ([4, 2, 0, 1, 3], [3], [1, 1, 0], [0, 1]):
            assert torch.equal(refined.encoder(x[rows]).mean, expected[rows])
        columns = x.T.contiguous().T  # the same numbers in another order of memory
        assert torch.equal(refined.encoder(columns).mean, expected)

    def test_no_others(self, model, x):
        refined = refine(disturbed(model), x, steps=1)
        for others in (x + 1e-9, torch.cat([x, torch.zeros(1, 6)]), x.float()):
            with pytest.raises(ValueError, match="refined; got other x"):
                refined.encoder(others)

    def test_data_that_are_there_twice(self, model, x):
        refined = refine(disturbed(model), x[[0, 1, 0]], steps=5)
        assert torch.equal(refined.encoder(x[:2]).mean, refined.encoder(x[[0, 1, 0]]).mean[:2])

    def test_all_that_a_vae_is_asked(self, model, x):
        """Of the refined guide, which is exact here."""
        refined = refine(model.vae("exact"), x, steps=1)
        split = data.from_tensor(x.repeat(10, 1)).test
        assert evaluate.per_image(refined, split, 3).nll.tolist() == pytest.approx(
            (-model.log_evidence(split[:])).tolist(), abs=1e-8
        )
        torch.testing.assert_close(evaluate.nll(refined, x, 3), -model.log_evidence(x), rtol=0, atol=1e-8)
        assert evaluate.latent_activity(refined, x).shape == (3,)
        assert refined.reconstruct(x).shape == x.shape


class TestMissing:
    def test_the_refined_guide_is_of_what_is_observed(self, model, x):
        """To the posterior of the oracle of the observed rows of W, which differ from datum to datum."""
        vae = model.vae("exact")
        vae.encoder.fill = model.bias.clone()
        seen = torch.rand(5, 6) > 0.3
        x = torch.where(seen, x, math.nan)
        refined = refine(vae, x, steps=300)
        log_w = evaluate.log_weights(refined, x, 500, seed=0)
        for i, rows in enumerate(seen):
            of_rows = LinearGaussian(model.weight[rows], model.bias[rows], model.scale)
            exact = of_rows.log_evidence(x[i : i + 1, rows])
            torch.testing.assert_close(evaluate.iwae(log_w)[i : i + 1], exact, rtol=0, atol=0.01)
            torch.testing.assert_close(evaluate.elbo(log_w)[i : i + 1], exact, rtol=0, atol=0.02)

    @pytest.mark.filterwarnings("ignore:AIS. effective")  # after so short a pilot run
    def test_of_networks(self, brief):
        vae, x = built(), torch.rand(4, *EVENT)
        x[:, :, 0, 1] = x[2] = math.nan
        refined = refine(vae, x, steps=20)
        assert evaluate.nll(refined, x, 20).isfinite().all()
        assert torch.stack([*gaps(vae, x, num_particles=20, steps=5, temperatures=5)]).isfinite().all()
        assert torch.equal(refined.encoder(x[[2, 0]]).mean, refined.encoder(x).mean[[2, 0]])


class TestGaps:
    @pytest.mark.parametrize("temperatures", [0, 60])
    def test_are_those_of_the_closed_forms(self, model, x, temperatures):
        """1000 draws, at 5 standard errors of each of 10 numbers, and 0.02 nats of refining.

        Fails once in 170,000 runs; log p(x) is the larger of two estimates, and the error of either is that of one.
        """
        vae = disturbed(model)
        found = gaps(vae, x, steps=300, temperatures=temperatures)
        exact, best, ours = model.log_evidence(x), model.elbo(x), model.elbo(x, vae.encoder(x))
        torch.testing.assert_close(exact - best, short(model).expand(5), rtol=0, atol=1e-10)
        of_best, of_ours = (evaluate.log_weights(each, x, 5000) for each in (model.vae("mean-field"), vae))
        errors = [of_best.std(0) + (of_best - exact).exp().std(0), of_best.std(0) + of_ours.std(0)]
        for value, truth, error in zip(
            (found.approximation, found.amortisation), (exact - best, best - ours), errors, strict=True
        ):
            assert ((value - truth).abs() < 5 * error / math.sqrt(1000) + 0.02).all()
            assert (truth > 0.05).all()

    def test_add_up(self, model, x, brief):
        found = gaps(disturbed(model), x, num_particles=50, steps=10, temperatures=5)
        assert torch.equal(found.approximation, found.log_p - found.refined)
        assert torch.equal(found.amortisation, found.refined - found.elbo)

    def test_are_zero_at_the_posterior(self, model, x, brief):
        found = gaps(model.vae("exact"), x, num_particles=20, temperatures=5)
        torch.testing.assert_close(found.log_p, model.log_evidence(x), rtol=0, atol=1e-4)
        for gap in (found.approximation, found.amortisation):
            torch.testing.assert_close(gap, torch.zeros(5), rtol=0, atol=1e-3)

    def test_a_family_that_has_the_posterior_has_no_approximation_gap(self, model, x):
        found = gaps(disturbed(model, "exact"), x, num_particles=200, steps=300, temperatures=0)
        torch.testing.assert_close(found.approximation, torch.zeros(5), rtol=0, atol=5e-3)
        assert (found.amortisation > 0.05).all()

    def test_log_p_is_the_largest_of_the_bounds(self, model, x):
        vae = disturbed(model)
        few = gaps(vae, x, num_particles=2, steps=20, temperatures=0, seed=0)
        more = gaps(vae, x, num_particles=2, steps=20, temperatures=20, seed=0)
        assert torch.equal(few.refined, more.refined)
        assert torch.equal(few.elbo, more.elbo)
        assert (more.log_p >= few.log_p).all()
        assert (more.log_p > few.log_p).any()

    def test_a_log_p_of_ones_own_is_taken(self, model, x, monkeypatch):
        monkeypatch.setattr("pyro_vae.posterior.local.ais.ais", None)  # not asked
        exact = model.log_evidence(x)
        found = gaps(disturbed(model), x, log_p=exact, num_particles=100, steps=20)
        low = gaps(disturbed(model), x, log_p=exact - 100, num_particles=100, steps=20)
        assert (found.log_p >= exact).all()
        assert (low.log_p > exact - 10).all()

    def test_a_seed_draws_the_same(self, model, x, brief):
        vae = disturbed(model)
        run = partial(gaps, vae, x, num_particles=5, steps=3, temperatures=3)
        for same, again in zip(run(seed=1), run(seed=1), strict=True):
            assert torch.equal(same, again)


class Own(nn.Module):
    """An encoder that says nothing of its parameters."""

    def forward(self, x):
        return dist.Normal(x[:, :2], 1.0).to_event(1)


X = torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda vae: refine(VAE(vae.prior, vae.decoder, Own()), X), "Conditional, .*; got Own. Write it as Conditio"),
        (lambda vae: gaps(VAE(vae.prior, vae.decoder, Own()), X), "an encoder that is a Conditional.*; got Own"),
        (lambda vae: refine(vae, X, steps=0), "a positive steps; got 0"),
        (lambda vae: refine(vae, X, num_particles=0), "a positive num_particles; got 0"),
        (lambda vae: refine(vae, X, lr=-0.1), "a positive lr; got -0.1"),
        (lambda vae: refine(vae, X[:0]), "at least 1 image; got none"),
        (lambda vae: gaps(vae, X, temperatures=-1, steps=1), "temperatures of at least 1; got -1"),
    ],
)
def test_bad_input_gets_a_sentence(run, message):
    with pytest.raises(ValueError, match=message):
        run(VAE.build((6,), latent=2, guide=guides.FullNormal, network=partial(networks.MLP, hidden=(8,))))
