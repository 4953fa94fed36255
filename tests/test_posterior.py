"""The true posterior, and the guide beside it: against models whose posterior is known in closed form."""

import math
import re
import sys
import warnings
from functools import cache, partial

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from matplotlib.contour import ContourSet
from torch import nn

from pyro_vae import VAE, ais, evaluate, networks, posterior, priors
from pyro_vae.evaluate.weighing import batches
from pyro_vae.oracle import LinearGaussian
from pyro_vae.posterior import Calibration, Chains, Moments

NAN = math.nan
DOUBLE = partial(torch.tensor, dtype=torch.float64)
# Columns that are not orthogonal: the posterior has a correlation of -0.6.
MODEL = LinearGaussian(DOUBLE([[1.0, 0.7], [0.6, 1.2], [0.5, 0.3]]), DOUBLE([0.1, -0.4, 0.3]), scale=0.8)
X = DOUBLE([[1.0, 0.5, -0.3], [-1.2, 2.0, 0.4], [0.7, NAN, -1.0]])


class Law(nn.Module):
    """A part of a VAE that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


def program(prior, decoder, encoder=None):
    return VAE(Law(prior), Law(decoder), Law(encoder or (lambda x: prior().expand(x.shape[:1]))))


def normal(latent=1, scale=1.0):
    return dist.Normal(torch.zeros(latent, dtype=torch.float64), scale).to_event(1)


def narrow(x, at=1.4):
    """A guide that knows of one mode of SQUARE."""
    return dist.Normal(torch.full((len(x), 1), at, dtype=torch.float64), 0.05).to_event(1)


# x = z^2 + noise, observed at 2: two modes, and 22 nats between them.
SQUARE = program(normal, lambda z: dist.Normal(z**2, 0.3).to_event(1), narrow)
TWO = DOUBLE([[2.0]])

# Counts at rates that are positive, with a posterior that is a gamma again.
SHAPE, RATE = DOUBLE([2.0, 4.0]), DOUBLE([1.0, 2.0])
COUNTS = program(lambda: dist.Gamma(SHAPE, RATE).to_event(1), lambda z: dist.Poisson(z).to_event(1))


def true_posterior(model, x):
    """Mean and covariance of each datum, of what is observed of it."""
    distributions = [
        LinearGaussian(model.weight[seen], model.bias[seen], model.scale).posterior(row[seen].unsqueeze(0))
        for row, seen in zip(x, ~x.isnan(), strict=True)
    ]
    return torch.cat([distribution.mean for distribution in distributions]), torch.cat(
        [distribution.covariance_matrix for distribution in distributions]
    )


def off(values, truth):
    """How many standard errors the mean of chains is from the truth; values are (chains, draws, ...)."""
    found = Chains(values)
    return (found.mean - truth).abs() / (values.flatten(0, 1).std(0) / found.ess.sqrt())


def filled():
    """Its encoder is given the mean where an element is missing."""
    vae = MODEL.vae()
    vae.encoder.fill = MODEL.bias.clone()
    return vae


@cache
def drawn():
    with torch.random.fork_rng():
        return posterior.nuts(filled(), X, draws=140, warmup=40, chains=2)


class TestNuts:
    @pytest.mark.slow
    def test_means_are_exact(self):
        """6 means, of which one with a missing element's: 4 standard errors, once in 2600 runs; the seed is fixed."""
        assert drawn().z.shape == (2, 140, 3, 2)
        assert (off(drawn().z, true_posterior(MODEL, X)[0]) < 4).all()

    def test_covariances_are_exact(self):
        """9 mean products of deviations: 4 standard errors, once in 1700 runs."""
        mean, covariance = true_posterior(MODEL, X)
        deviation = drawn().z - mean
        i, j = torch.triu_indices(2, 2)
        assert (off(deviation[..., i] * deviation[..., j], covariance[..., i, j]) < 4).all()
        torch.testing.assert_close(drawn().covariance[1], drawn().z[:, :, 1].flatten(0, 1).T.cov())

    def test_chains_agree_and_say_so(self):
        assert drawn().r_hat.shape == drawn().ess.shape == (3, 2)
        assert ((drawn().r_hat - 1).abs() < 0.03).all()
        assert (drawn().ess > 100).all()

    @pytest.mark.slow
    def test_constrained_z_stay_in_their_support_and_have_the_right_moments(self):
        """A gamma prior of Poisson rates: p(z | x) is a gamma. 4 moments, at 4 standard errors, once in 4000 runs."""
        z = posterior.nuts(COUNTS, DOUBLE([[3.0, NAN]]), draws=90, warmup=40, chains=2).z
        assert (z > 0).all()
        exact = torch.distributions.Gamma(SHAPE + DOUBLE([3.0, 0.0]), RATE + DOUBLE([1.0, 0.0]))
        assert (off(z, exact.mean) < 4).all()
        assert (off((z - exact.mean).square(), exact.variance) < 4).all()

    def test_chains_that_disagree_are_warned_of(self):
        """4 chains in one of two modes 1 time of 8: the seed is fixed."""
        with pytest.warns(UserWarning, match=r"^NUTS: the chains disagree, R-hat up to \d+\.\d\d\. Use more warmup"):
            found = posterior.nuts(SQUARE, TWO, draws=20, warmup=20)
        assert (found.r_hat > 1.05).all()
        assert {*found.z.mean((1, 2, 3)).sign().tolist()} == {-1.0, 1.0}

    @pytest.mark.parametrize("at", [1.4, -1.4])
    def test_start_at_the_guide_if_asked(self, at):
        """In its mode, which they do not leave; from the prior, some would be in the other."""
        vae = program(normal, lambda z: dist.Normal(z**2, 0.3).to_event(1), partial(narrow, at=at))
        with warnings.catch_warnings(action="ignore"):  # of so few draws R-hat is large
            z = posterior.nuts(vae, TWO, draws=8, warmup=8, chains=3, start="guide").z
        assert (z * at > 0).all()

    def test_data_are_drawn_in_parts_where_memory_ends(self, monkeypatch):
        """One row at a time: 6 means at 4 standard errors, once in 2600 runs; the seed is fixed."""
        monkeypatch.setattr(
            sys.modules["pyro_vae.posterior.nuts"], "batches_that_fit", lambda rows, run: batches(rows, 1)
        )
        z = posterior.nuts(filled(), X, draws=80, warmup=40, chains=2).z
        assert z.shape == (2, 80, 3, 2)
        assert (off(z, true_posterior(MODEL, X)[0]) < 4).all()

    @pytest.mark.parametrize("ask", [posterior.nuts, ais.ais])
    def test_a_chain_may_leave_what_floats_can_hold(self, ask):
        """exp(u) overflows within the first steps: the step is refused, as any that loses its density."""
        vae = program(lambda: dist.LogNormal(torch.zeros(2), 4.0).to_event(1), lambda z: dist.Poisson(z).to_event(1))
        x = torch.tensor([[0.0, 1.0], [30.0, 50.0]])
        with warnings.catch_warnings(action="ignore"):
            for seed in range(4):
                if ask is posterior.nuts:
                    assert (ask(vae, x, 10, 10, 2, seed=seed).z > 0).all()
                else:
                    assert ask(vae, x, 4, 20, start="prior", seed=seed).isfinite().all()

    def test_chains_that_do_not_move_are_warned_of(self, monkeypatch):
        """R-hat is 0 / 0 there."""
        stuck = lambda target, u, *rest: ((u, torch.zeros(u.shape[:2], dtype=torch.bool)) for _ in range(12))  # noqa: E731
        monkeypatch.setattr(sys.modules["pyro_vae.posterior.nuts"], "sample", stuck)
        with pytest.warns(UserWarning, match="the chains disagree, R-hat up to inf"):
            posterior.nuts(filled(), X, draws=8, warmup=4, chains=1)

    def test_trajectories_that_diverge_are_warned_of(self, monkeypatch):
        """A loss of any density ends a trajectory here."""
        monkeypatch.setattr("pyro_vae.posterior.no_u_turn.LOST", 0.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chains = posterior.nuts(filled(), X, draws=8, warmup=8, chains=2)
        (share,) = [re.match(r"NUTS: (\d+)% of the trajectories diverged", str(w.message)) for w in caught][-1:]
        assert chains.diverged.shape == (2, 8, 3)
        assert round(100 * chains.diverged.double().mean().item()) == int(share[1]) > 1
        assert not drawn().diverged.any()

    def test_the_seed_says_what_is_drawn_and_torchs_state_is_left_alone(self):
        before = torch.get_rng_state()
        with warnings.catch_warnings(action="ignore"):
            one, same, other = (posterior.nuts(SQUARE, TWO, 5, 5, 1, seed=seed).z for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_without_gradients_on_it_draws_the_same(self):
        with warnings.catch_warnings(action="ignore"):
            expected = posterior.nuts(SQUARE, TWO, 5, 5, 1).z
            with torch.no_grad():
                found = posterior.nuts(SQUARE, TWO, 5, 5, 1).z
                assert not torch.is_grad_enabled()
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("training", [True, False])
    def test_a_vae_is_left_as_it_was(self, training):
        vae = VAE.build((1, 8, 8), latent=2, network=partial(networks.MLP, hidden=(8,))).train(training)
        weights = {name: value.clone() for name, value in vae.state_dict().items()}
        with warnings.catch_warnings(action="ignore"):
            posterior.nuts(vae, torch.rand(2, 1, 8, 8), draws=4, warmup=4, chains=1)
        assert vae.training is training
        for name, value in vae.state_dict().items():
            assert torch.equal(value, weights[name]), name
        for name, value in vae.named_parameters():
            assert value.grad is None, name
            assert value.requires_grad, name

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"draws": 3}, "Expected draws of at least 4; got 3"),
            ({"warmup": 0}, "Expected warmup of at least 1; got 0"),
            ({"chains": 0}, "Expected chains of at least 1; got 0"),
            ({"data": X[:0]}, "Expected at least 1 image.*; got none"),
            ({"data": X[0]}, r"got \(3,\)\..*x.unsqueeze\(0\)"),
            ({"data": X[:, :2]}, r"Expected x of shape \(B, 3\) .*; got \(3, 2\)"),
            ({"start": "mode"}, "Expected start to be prior or guide; got 'mode'"),
        ],
    )
    def test_bad_arguments_get_a_sentence(self, options, message):
        with pytest.raises(ValueError, match=message):
            posterior.nuts(MODEL.vae(), **({"data": X[:1]} | options))


class TestChains:
    def test_r_hat_is_large_where_chains_are_apart(self):
        z = torch.randn(4, 500, 1, 2)
        z[0, :, 0, 1] += 3
        r_hat = Chains(z).r_hat
        assert r_hat[0, 0] < 1.02
        assert r_hat[0, 1] > 1.3

    def test_independent_draws_all_count(self):
        """4 x 2000 of them; Pyro's estimate is within a tenth."""
        assert abs(Chains(torch.randn(4, 2000, 1, 1)).ess.item() / 8000 - 1) < 0.1


def mass(grid):
    """The mass of each cell, (B, steps, steps)."""
    return grid.density * ((grid.z0[:, 1] - grid.z0[:, 0]) * (grid.z1[:, 1] - grid.z1[:, 0]))[:, None, None]


class TestGrid:
    @pytest.mark.parametrize("scale", [2.0, 0.05, 0.005])
    def test_evidence_and_moments_are_exact(self, scale, float64):
        """To 1e-6, of posteriors from as wide as the prior to a 20th of the first grid's cells, and correlated."""
        model = LinearGaussian(torch.randn(6, 2), torch.randn(6), scale)
        x = torch.randn(3, 2) @ model.weight.T + model.bias + scale * torch.randn(3, 6)
        self.is_exact(model, x)

    @pytest.mark.parametrize("offset", [20.0, -40.0])
    def test_so_they_are_far_from_the_prior(self, offset, float64):
        """At 40 the posterior's mean is 28 of the prior's standard deviations away: outside of the first grid."""
        model = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5)
        x = torch.stack([torch.zeros(4), torch.full((4,), offset)])
        assert (model.posterior(x).mean[1].abs() > 7).all()
        self.is_exact(model, x)

    def is_exact(self, model, x):
        found, exact = posterior.grid(model.vae(), x), model.posterior(x)
        torch.testing.assert_close(found.log_evidence, model.log_evidence(x), rtol=0, atol=1e-6)
        p = mass(found)
        torch.testing.assert_close(p.sum((1, 2)), torch.ones(len(x)), rtol=0, atol=1e-10)
        units = exact.variance.sqrt()
        z = torch.stack([found.z0.unsqueeze(2).expand_as(p), found.z1.unsqueeze(1).expand_as(p)], -1)
        deviation = (z - exact.mean[:, None, None]) / units[:, None, None]
        assert (torch.einsum("bst,bsti->bi", p, deviation).abs() < 1e-6).all()
        covariance = torch.einsum("bst,bsti,bstj->bij", p, deviation, deviation)
        expected = exact.covariance_matrix / (units.unsqueeze(-1) * units.unsqueeze(-2))
        torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-6)

    def test_the_density_is_the_posteriors(self, float64):
        found = posterior.grid(MODEL.vae(), X[:2], steps=40)
        assert found.z0.shape == found.z1.shape == (2, 40)
        z = torch.stack(torch.broadcast_tensors(found.z0[1].unsqueeze(1), found.z1[1]), -1)
        exact = MODEL.posterior(X[1:2]).log_prob(z).exp()
        torch.testing.assert_close(found.density[1], exact, rtol=1e-4, atol=1e-12)

    def test_of_float32_it_is_exact_to_its_rounding(self):
        model, x = LinearGaussian(torch.randn(6, 2), torch.randn(6), 0.5), torch.randn(3, 6)
        found = posterior.grid(model.vae(), x)
        assert found.density.dtype == torch.float32
        torch.testing.assert_close(found.log_evidence, model.log_evidence(x), rtol=1e-5, atol=1e-4)

    def test_what_is_missing_is_left_out(self):
        found = posterior.grid(filled(), X[2:])
        seen = LinearGaussian(MODEL.weight[[0, 2]], MODEL.bias[[0, 2]], MODEL.scale)
        torch.testing.assert_close(found.log_evidence, seen.log_evidence(X[2:, [0, 2]]), rtol=0, atol=1e-6)

    def test_two_modes_are_both_covered(self):
        """A prior of two narrow parts far apart, and a decoder that ignores z: a quarter and three."""
        at = DOUBLE([[-4.0, 2.0], [3.0, -3.0]])

        def prior():
            parts = dist.Normal(at, 0.1).to_event(1)
            return dist.MixtureSameFamily(dist.Categorical(DOUBLE([0.25, 0.75])), parts)

        distribution = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
        vae, x = program(prior, lambda z: distribution.expand(z.shape[:-1])), torch.randn(2, 3, dtype=torch.float64)
        found = posterior.grid(vae, x)
        torch.testing.assert_close(found.log_evidence, distribution.log_prob(x), rtol=0, atol=1e-6)
        left = (mass(found) * (found.z0 < 0).unsqueeze(2)).sum((1, 2))
        torch.testing.assert_close(left, torch.full_like(left, 0.25), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("latent", "steps"), [(1, 200), (3, 200), (2, 19)])
    def test_other_dimensions_get_a_sentence(self, latent, steps):
        message = rf"all real z.* 20 steps; got .*Real.* {latent} dimensions, and {steps} steps"
        with pytest.raises(ValueError, match=message):
            posterior.grid(VAE.build((5,), latent=latent), torch.rand(1, 5), steps)

    def test_a_prior_of_some_z_alone_gets_a_sentence_and_x_of_another_shape_too(self):
        with pytest.raises(ValueError, match=r"all real z.*; got .*GreaterThan.* 2 dimensions"):
            posterior.grid(COUNTS, DOUBLE([[3.0, 1.0]]))
        for x in (X[:0], X[0], X[:, :2]):
            with pytest.raises(ValueError, match=r"^Expected (x of shape \(B, 3\) with B of )?at least 1.*; got "):
                posterior.grid(MODEL.vae(), x)

    def test_a_prior_whose_mean_is_one_of_draws_leaves_torchs_state_alone(self):
        vae = VAE.build((5,), 2, priors.Flow, network=partial(networks.MLP, hidden=(8,)))
        x, before = torch.rand(2, 5), torch.get_rng_state()
        one, same = (posterior.grid(vae, x, steps=40) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(*pair) for pair in zip(one, same, strict=True))


def exactly(model, x, draws=10_000):
    """Independent draws of the posterior, as though two chains had drawn them."""
    return Chains(model.posterior(x).sample((2, draws // 2)))


def oracle(latent, guide="exact"):
    """Columns of W have much in common, so that the posterior's dimensions are correlated."""
    weight = torch.linspace(-1, 1, latent + 3).unsqueeze(1) + 0.4 * torch.randn(latent + 3, latent)
    model = LinearGaussian(weight, torch.randn(latent + 3), scale=1.0)
    return model, model.vae(guide), torch.randn(2, latent + 3)


class TestCompare:
    @pytest.mark.parametrize("latent", [2, 3])
    def test_a_diagonal_guide_is_too_narrow_by_as_much_as_it_must(self, latent, float64):
        """Of 1e4 draws of each, 5 standard errors, 1 / sqrt(n) of a ratio of spreads: once in 1e5 runs."""
        model, vae, x = oracle(latent, "mean-field")
        found = posterior.compare(vae, x, chains=exactly(model, x))
        covariance = model.posterior(x).covariance_matrix
        expected = 1 / (covariance.inverse() * covariance).diagonal(dim1=1, dim2=2).sqrt()
        assert (expected < 0.9).all()
        assert ((found.spread / expected - 1).abs() < 0.05).all()
        assert (found.shift.abs() < 5 * 2**0.5 / 100).all()
        spread = covariance.diagonal(dim1=1, dim2=2).sqrt()
        exact = covariance / (spread.unsqueeze(-1) * spread.unsqueeze(-2))
        assert ((found.nuts.correlation - exact).abs() < 0.05).all()
        assert ((found.guide.correlation - torch.eye(latent)).abs() < 0.05).all()

    def test_the_exact_guide_is_off_by_nothing(self, float64):
        """Of 1e4 draws of each, 5 standard errors: once in 1e5 runs."""
        model, vae, x = oracle(3)
        found = posterior.compare(vae, x, chains=exactly(model, x))
        assert (found.shift.abs() < 5 * 2**0.5 / 100).all()
        assert ((found.spread - 1).abs() < 0.05).all()
        assert (found.pareto_k == 0).all()

    def test_the_posterior_is_that_of_nuts(self):
        """The spread of about 200 effective draws: 4 standard errors of 1 / sqrt(2 n) each, once in 4000 runs."""
        found = posterior.compare(MODEL.vae("mean-field"), X[:2], chains=Chains(drawn().z[:, :, :2]))
        mean, covariance = true_posterior(MODEL, X[:2])
        variance = covariance.diagonal(dim1=1, dim2=2)
        expected = 1 / (covariance.inverse() * covariance).diagonal(dim1=1, dim2=2).sqrt()
        n = Chains((drawn().z[:, :, :2] - mean).square()).ess
        assert ((found.spread / expected - 1).abs() < 4 * (1 / (2 * n) + 1 / (2 * 280)).sqrt()).all()
        exact = covariance[:, 0, 1] / variance.prod(1).sqrt()
        assert ((found.nuts.correlation[:, 0, 1] - exact).abs() < 4 * (1 - exact**2) / n.min().sqrt()).all()
        assert (found.guide.correlation[:, 0, 1].abs() < 4 / 280**0.5).all()

    def test_a_guide_that_is_off_is_said_to_be_by_how_much(self, float64):
        model, vae, x = oracle(2)
        with torch.no_grad():
            vae.encoder.network.bias[1] += 2 * model.posterior(x).variance[0, 1].sqrt()
        shift = posterior.compare(vae, x, chains=exactly(model, x)).shift
        assert ((shift - torch.tensor([0.0, 2.0])).abs() < 0.1).all()

    def test_k_hat_tells_of_a_guide_that_is_too_narrow(self):
        """At a quarter of the posterior's standard deviations k = 1 - 0.25^2 in each dimension."""
        vae = orthogonal(0.25)
        x = torch.randn(3, 5)
        found = posterior.compare(vae, x, chains=Chains(torch.randn(2, 5000, 3, 2)))
        assert (found.pareto_k > 0.5).all()

    def test_moments_are_those_of_draws(self):
        z = torch.randn(50, 2, 3)
        found = Moments.of(z)
        torch.testing.assert_close(found.mean[1], z[:, 1].mean(0))
        torch.testing.assert_close(found.stddev[1], z[:, 1].std(0))
        torch.testing.assert_close(found.correlation[1], z[:, 1].T.corrcoef())

    def test_draws_warmup_chains_and_the_seed_reach_nuts(self):
        options = {"draws": 8, "warmup": 6, "seed": 2}
        with warnings.catch_warnings(action="ignore"):
            found = posterior.compare(MODEL.vae(), X[:1], chains=1, **options)
            alone = posterior.nuts(MODEL.vae(), X[:1], chains=1, **options)
        assert torch.equal(found.chains.z, alone.z)
        assert found.z.shape == (8, 1, 2)

    def test_is_the_same_again_and_leaves_torchs_state_alone(self):
        model, vae, x = oracle(2)
        chains = exactly(model, x, 100)
        before = torch.get_rng_state()
        one, same, other = (posterior.compare(vae, x, chains=chains, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(one.z, same.z)
        assert str(one) == str(same)
        assert not torch.equal(one.z, other.z)
        assert one.chains is chains
        assert not one.z.requires_grad

    def test_of_two_dimensions_that_are_constrained_there_is_no_grid(self):
        """The guide is the prior, the chains are draws of the posterior, a gamma."""
        x = DOUBLE([[3.0, 1.0]])
        z = dist.Gamma(SHAPE + x, RATE + 1).sample((2, 500))
        found = posterior.compare(COUNTS, x, chains=Chains(z))
        assert found.exact is None
        assert found.z.shape == (1000, 1, 2)
        assert len(found.figure().axes) == 4

    def test_chains_of_other_data_get_a_sentence(self):
        model, vae, x = oracle(2)
        with pytest.raises(ValueError, match="chains of the 1 data.*; got chains of 2"):
            posterior.compare(vae, x[:1], chains=exactly(model, x, 100))

    @pytest.mark.parametrize("latent", [1, 2, 3, 6])
    def test_printed_it_has_a_line_for_each_datum_and_says_what_columns_are(self, latent):
        model, vae, x = oracle(latent, "mean-field")
        found = posterior.compare(vae, x, chains=exactly(model, x, 400))
        assert (found.exact is None) == (latent != 2)
        head, *lines = str(found).splitlines()
        assert head.split() == ["datum", "shift", "spread", "correlation", "guide's", "k-hat", "R-hat", "ESS"]
        for b in range(2):
            datum, shift, least, _, most, there, here, k, r_hat, ess = lines[b].split()
            assert int(datum) == b
            assert float(shift) == pytest.approx(found.shift[b][found.shift[b].abs().argmax()].item(), abs=0.006)
            assert float(least) == pytest.approx(found.spread[b].min().item(), abs=0.006)
            assert float(most) == pytest.approx(found.spread[b].max().item(), abs=0.006)
            if latent == 1:
                assert (there, here) == ("-", "-")
            else:
                strongest = max(found.nuts.correlation[b].triu(1).flatten(), key=abs).item()
                i, j = (found.nuts.correlation[b].triu(1) == strongest).nonzero()[0]
                assert float(there) == pytest.approx(strongest, abs=0.006)
                assert float(here) == pytest.approx(found.guide.correlation[b, i, j].item(), abs=0.006)
            assert float(k) == pytest.approx(found.pareto_k[b].item(), abs=0.006)
            assert float(r_hat) == pytest.approx(found.chains.r_hat[b].max().item(), abs=0.006)
            assert float(ess) == pytest.approx(found.chains.ess[b].min().item(), abs=0.6)
        notes = " ".join(lines[2:])
        for word in ("shift: ", "spread: ", "correlation: ", "2 chains of 200 draws", "guide by 400."):
            assert word in notes

    @pytest.mark.parametrize("latent", [1, 2, 3, 6])
    def test_the_figure_has_up_to_four_dimensions_and_contours_where_there_are_two(self, latent):
        model, vae, x = oracle(latent)
        found = posterior.compare(vae, x, chains=exactly(model, x, 200))
        axes = found.figure(1).axes
        assert len(axes) == min(latent, 4) ** 2
        contours = [each for one in axes for each in one.collections if isinstance(each, ContourSet)]
        assert len(contours) == (latent == 2)

    def test_the_figure_is_of_the_datum_and_of_dimensions_that_are_correlated(self):
        chains = Chains(torch.randn(2, 200, 2, 6))
        chains.z[..., 1, 4] = chains.z[..., 1, 2] + 0.1 * torch.randn(2, 200)
        found = posterior.Comparison(chains, torch.randn(400, 2, 6), torch.zeros(2))
        axes = found.figure(1).axes
        names = [one.get_xlabel() for one in axes[-4:]]
        assert {"z2", "z4"} < {*names}
        assert names == sorted(names)
        axes = found.figure(0, dims=(3, 5)).axes
        np.testing.assert_array_equal(axes[2].lines[0].get_xydata(), chains.z[:, :, 0, [3, 5]].flatten(0, 1))
        np.testing.assert_array_equal(axes[2].lines[1].get_xydata(), found.z[:, 0, [3, 5]])


def orthogonal(stretch=1.0):
    """A model whose diagonal guide is exact, but that it has so many times the posterior's standard deviations."""
    model = LinearGaussian(torch.linalg.qr(torch.randn(5, 2))[0], torch.randn(5), scale=0.7)
    vae = model.vae("mean-field")
    with torch.no_grad():
        vae.encoder.network.rest.add_(math.log(stretch))
    return vae


def held(stretch, draws=99):
    """The share of true z of which 5% to 95% of draws are below, in closed form but for an integral over z."""
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64).numpy()
    below = scipy.stats.norm.cdf(z / stretch)
    inside = scipy.stats.binom.cdf(94, draws, below) - scipy.stats.binom.cdf(4, draws, below)
    return float((inside * scipy.stats.norm.pdf(z)).sum() * (z[1] - z[0]))


class TestSbc:
    def test_of_an_exact_guide_ranks_are_uniform(self):
        """Chi-squared of 20 bins of 1000 data, 4 p-values above 1e-4 / 4: fails once in 1e4 runs."""
        found = posterior.sbc(oracle(3)[1], 1000)
        assert found.ranks.shape == (1000, 4)
        assert (found.ranks.amin(), found.ranks.amax()) == (0, 99)
        assert found.bins == 20
        assert found.p_values.min() > 1e-4 / 4
        assert found.names == ["z[0]", "z[1]", "z[2]", "log p(x, z)"]

    @pytest.mark.parametrize("stretch", [1.0, 0.5, 2.0])
    def test_intervals_hold_what_they_should(self, stretch):
        """Of 2000 data, 5 standard errors of a binomial: once in 1e6 runs. Half as wide they hold 0.589, not 0.9."""
        found = posterior.sbc(orthogonal(stretch), 2000)
        share = held(stretch)
        assert share == pytest.approx(2 * scipy.stats.norm.cdf(1.645 * stretch) - 1, abs=0.01)
        assert ((found.coverage([0.9]) - share).abs() < 5 * math.sqrt(share * (1 - share) / 2000)).all()
        assert found.coverage().shape == (4, 2)
        assert (found.coverage().diff(dim=0) > 0).all() or stretch == 2.0
        assert (found.p_values[:2] < 1e-6).all() == (stretch != 1.0)

    def test_ranks_crowd_where_the_guide_is_wrong(self):
        """At both ends if it is too narrow, in the middle if too wide, at an end if it is biased."""
        narrow, wide = (posterior.sbc(orthogonal(stretch), 1000).counts[:, 0] for stretch in (0.5, 2.0))
        assert narrow[[0, -1]].min() > 100 > 50 > narrow[9:11].max()
        assert wide[9:11].min() > 70 > 10 > wide[[0, -1]].max()
        vae = orthogonal()
        with torch.no_grad():
            vae.encoder.network.bias[1] += 1.0
        counts = posterior.sbc(vae, 1000).counts
        assert counts[0, 1] > 200 > 10 > counts[-1, 1]  # the guide's z1 are too large, so that few are below the true
        assert counts[:, 0].max() < 100

    def test_a_guide_that_returns_the_prior_is_found_out_by_log_p(self):
        """In each dimension it is uniform: two p-values above 1e-4 / 2, once in 1e4 runs."""
        vae = orthogonal()
        vae.encoder = Law(lambda x: vae.prior().expand(x.shape[:1]))
        found = posterior.sbc(vae, 1000)
        assert (found.p_values[:2] > 1e-4 / 2).all()
        assert found.p_values[2] < 1e-6

    @pytest.mark.parametrize("draws", [1, 9, 11, 99, 199])
    @pytest.mark.parametrize("num", [20, 57, 1000])
    def test_bins_are_of_equally_many_ranks_and_hold_all_data(self, num, draws):
        found = posterior.sbc(orthogonal(), num, draws)
        assert (draws + 1) % found.bins == 0
        assert 2 <= found.bins <= max(2, min(20, num // 10))
        assert found.counts.shape == (found.bins, 3)
        assert (found.counts.sum(0) == num).all()
        assert found.ranks.max() <= draws

    def test_of_a_prime_number_of_ranks_bins_are_unequal_and_the_test_is_of_their_shares(self):
        """An exact guide's are uniform: 4 p-values above 1e-4 / 4, once in 1e4 runs."""
        found = posterior.sbc(oracle(3)[1], 1000, draws=100)
        assert found.bins == 20
        ranks = torch.arange(101) * 20 // 101
        expected = 1000 * torch.bincount(ranks).double() / 101
        assert {*expected.tolist()} == {5000 / 101, 6000 / 101}
        assert expected.min() >= 10
        assert found.p_values.min() > 1e-4 / 4
        p = [scipy.stats.chisquare(column.double().numpy(), expected.numpy()).pvalue for column in found.counts.T]
        torch.testing.assert_close(found.p_values, DOUBLE(p))

    def test_the_test_is_scipys_chi_squared(self):
        ranks = torch.randint(0, 100, (500, 3))
        found = Calibration(ranks, 99)
        for i, row in enumerate(found.counts):
            assert torch.equal(row, ((ranks >= 5 * i) & (ranks < 5 * i + 5)).sum(0))
        expected = [scipy.stats.chisquare(column.numpy()).pvalue for column in found.counts.T]
        torch.testing.assert_close(found.p_values, DOUBLE(expected))

    @pytest.mark.parametrize("draws", [1, 2, 3, 4, 6, 10, 100])
    @pytest.mark.parametrize("num", [1, 3, 20, 21])
    def test_of_few_data_and_draws_the_test_is_of_two_bins_at_least(self, num, draws):
        found = Calibration(torch.randint(0, draws + 1, (num, 2)), draws)
        shares = torch.bincount(torch.arange(draws + 1) * found.bins // (draws + 1)).double() / (draws + 1)
        expected = [scipy.stats.chisquare(column.double(), num * shares).pvalue for column in found.counts.T]
        assert found.bins >= 2
        torch.testing.assert_close(found.p_values, DOUBLE(expected))

    def test_every_rank_once_is_as_uniform_as_can_be(self):
        assert (Calibration(torch.arange(101).unsqueeze(1), 100).p_values == 1).all()  # in bins of 10 or 11 ranks
        found = Calibration(torch.arange(100).unsqueeze(1).expand(100, 2), 99)
        assert (found.counts == 10).all()
        assert (found.p_values == 1).all()
        torch.testing.assert_close(found.coverage([0.5, 0.8, 0.9]), DOUBLE([[0.5], [0.8], [0.9]]))

    def test_in_chunks_it_is_calibrated_too(self, monkeypatch):
        """Once in 1e4 runs it is not, as above."""
        monkeypatch.setattr(evaluate.weighing, "max_batch_size", lambda run, most, device: 7)
        found = posterior.sbc(orthogonal(), 300)
        assert found.ranks.shape == (300, 3)
        assert found.p_values.min() > 1e-4 / 3

    def test_the_seed_says_what_is_drawn_and_torchs_state_is_left_alone(self):
        vae, before = orthogonal(), torch.get_rng_state()
        one, same, other = (posterior.sbc(vae, 30, seed=seed).ranks for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize(("num", "draws"), [(19, 99), (100, 0)])
    def test_bad_arguments_get_a_sentence(self, num, draws):
        with pytest.raises(ValueError, match=f"at least 20 data and 1 draw; got num = {num} and draws = {draws}"):
            posterior.sbc(orthogonal(), num, draws)

    def test_the_figure_has_each_quantity_and_the_coverage(self):
        found = posterior.sbc(orthogonal(), 200)
        figure = found.figure()
        titles = [axes.get_title() for axes in figure.axes]
        pairs = zip(found.names, found.p_values, strict=True)
        assert titles == [*(f"{name}, p = {p:.2g}" for name, p in pairs), "true z within the interval"]
        line = figure.axes[3].lines[1].get_xydata()
        np.testing.assert_allclose(line[45], [0.9, found.coverage([0.9])[0, 0]], atol=1e-6)
