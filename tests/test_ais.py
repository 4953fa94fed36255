"""Annealed importance sampling and bidirectional Monte Carlo, against evidence in closed form and by quadrature.

Monte Carlo means are compared by z-tests at 5 standard errors: each number fails once in 1.7 million runs.
"""

import math
from functools import partial
from itertools import cycle

import pyro.distributions as dist
import pytest
import torch
from test_parts import LIKELIHOODS
from test_priors import EVENT, GUIDES, PRIORS, built
from torch import nn

from pyro_vae import VAE, ais, evaluate, networks
from pyro_vae.annealing import Ladder, log_densities, unconstrained_draws
from pyro_vae.oracle import LinearGaussian
from pyro_vae.program import Posterior

STARTS = ["guide", "prior"]
EITHER = pytest.mark.parametrize("start", STARTS)


@pytest.fixture
def model(float64):
    """Whose posterior is narrower than the prior, and correlated: the mean-field guide is 0.2 nats off."""
    weight = torch.tensor([[0.9, 0.3], [0.4, 0.8], [-0.5, 0.6], [0.7, 0.7]])
    return LinearGaussian(weight, torch.randn(4), scale=0.8)


@pytest.fixture
def short(monkeypatch):
    """Pilot runs of a few moves, for what does not depend on how good they are."""
    monkeypatch.setattr("pyro_vae.annealing.PILOT", 4)
    monkeypatch.setattr("pyro_vae.annealing.SETTLE", 1)


def data(model, number):
    """Data of the model, and the z they are of."""
    z = torch.randn(number, model.weight.shape[1])
    return model(z).sample(), z


def off(vae):
    """The VAE with its guide twice too wide, and somewhat beside the posterior."""
    with torch.no_grad():
        vae.encoder.network.bias.add_(0.3)
        vae.encoder.network.rest.add_(math.log(2.0))
    return vae


@torch.no_grad()
def climbing(vae, x, start="guide"):
    return Ladder(Posterior.of(vae.eval(), x), start, 3)


@pytest.mark.slow
class TestEvidence:
    @pytest.mark.parametrize(("chains", "temperatures", "leapfrog"), [(1, 1, 1), (3, 2, 4), (16, 12, 3)])
    def test_from_the_posterior_every_chain_is_exact(self, model, chains, temperatures, leapfrog, short):
        x, z = data(model, 5)
        settings = {"chains": chains, "temperatures": temperatures, "leapfrog": leapfrog}
        exact = model.log_evidence(x)
        log_w = ais.log_weights(model.vae(), x, **settings)
        torch.testing.assert_close(log_w, exact.expand(chains, 5), rtol=0, atol=1e-10)
        for bound in ais.bdmc(model.vae(), joint=(z, x), **settings):
            torch.testing.assert_close(bound, exact, rtol=0, atol=1e-10)

    def test_from_the_prior_it_is_within_four_hundredths_of_a_nat(self, float64):
        """8 data, 128 chains of 300 temperatures: standard errors of some 0.01, 4 of them, once in 2000 runs."""
        weight = torch.tensor([[1.0, 0.5], [-0.6, 0.8], [0.3, -1.0], [0.2, 0.4]])
        model = LinearGaussian(weight, torch.zeros(4), scale=1.0)
        x = model(torch.randn(8, 2)).sample()
        bound = ais.ais(model.vae("mean-field"), x, chains=128, temperatures=300, start="prior", seed=0)
        assert ((bound - model.log_evidence(x)).abs() < 0.04).all()

    @EITHER
    @pytest.mark.usefixtures("param_store")
    def test_of_one_temperature_it_is_importance_sampling(self, model, start, short):
        """Chains that do not move: from the guide the same draws give the log-weights of ``evaluate``."""
        vae, x = off(model.vae("mean-field")), data(model, 5)[0]
        distribution = vae.encoder(x) if start == "guide" else vae.prior().expand((5,))
        ladder = climbing(vae, x, start)
        with torch.no_grad():
            schedule = ladder.tune(4, 1, 1, lambda number: None)
            with torch.random.fork_rng():
                log_w, _ = ladder.anneal(unconstrained_draws(ladder.posterior, start, 4), schedule, lambda: None)
            z = distribution.sample((4,))
            expected = vae.prior().log_prob(z) + vae.decoder(z).log_prob(x) - distribution.log_prob(z)
        torch.testing.assert_close(log_w, expected, rtol=0, atol=1e-10)

    @EITHER
    @pytest.mark.parametrize("temperatures", [2, 5])
    def test_weights_are_unbiased_however_few_temperatures(self, model, start, temperatures, short):
        """E[w] = p(x), whatever the pilot found: the mean of w / p(x) over 5000 chains, for each of 3 data."""
        x = data(model, 3)[0]
        log_w = ais.log_weights(off(model.vae("mean-field")), x, 5000, temperatures, start=start)
        w = (log_w - model.log_evidence(x)).exp()
        assert w.std() > 0.1
        assert ((w.mean(0) - 1).abs() < 5 * w.std(0) / math.sqrt(len(w))).all()

    def test_from_the_prior_it_owes_the_guide_nothing(self, float64):
        """300 chains of 150 temperatures, to 0.08 nats: over 5 standard errors of each of 5 numbers."""
        model = LinearGaussian(torch.randn(4, 2), torch.zeros(4), scale=1.0)
        x = data(model, 5)[0]
        found = ais.ais(model.vae(), x, chains=300, temperatures=150, start="prior")
        torch.testing.assert_close(found, model.log_evidence(x), rtol=0, atol=0.08)

    def test_rises_with_temperatures(self, model):
        """From the prior, mean over 500 data: each rise is some 6 of its standard errors."""
        vae, x = model.vae("mean-field"), data(model, 500)[0]
        exact = model.log_evidence(x).mean()
        gap = [exact - ais.ais(vae, x, 2, number, start="prior", seed=0).mean() for number in (1, 5, 50)]
        assert gap[0] > gap[1] > gap[2] > -0.05

    def test_is_tighter_than_as_many_draws_of_a_poor_guide(self, model):
        vae, x = off(model.vae("mean-field")), data(model, 50)[0]
        gaps = [
            (model.log_evidence(x) - bound).mean()
            for bound in (ais.ais(vae, x, 4, 50, seed=0), -evaluate.nll(vae, x, 4), -evaluate.nll(vae, x, 1))
        ]
        assert 4 * gaps[0].abs() < gaps[1] < gaps[2]

    def test_ess_says_how_far_chains_agree(self, model):
        vae, x = off(model.vae("mean-field")), data(model, 3)[0]
        few, many = (evaluate.ess(ais.log_weights(vae, x, 50, number, seed=0)) for number in (1, 100))
        assert (many > 45).all()
        assert (few < many).all()

    def test_bound_is_of_the_log_weights(self, model, short):
        vae, x = model.vae("mean-field"), data(model, 5)[0]
        log_w = ais.log_weights(vae, x, 7, 3, 2, "prior", seed=5)
        assert log_w.shape == (7, 5)
        assert torch.equal(ais.ais(vae, x, 7, 3, 2, "prior", seed=5), evaluate.iwae(log_w))


@pytest.mark.slow
class TestBothWays:
    @EITHER
    def test_bounds_are_unbiased_each_in_its_way(self, model, start, short):
        """E[w] = p(x) of chains to the posterior, E[1 / w] = 1 / p(x) of chains from it; one of each for 4000 data."""
        x, z = data(model, 4000)
        lower, upper = ais.bdmc(off(model.vae("mean-field")), None, 1, 5, start=start, joint=(z, x))
        exact = model.log_evidence(x)
        for ratio in ((lower - exact).exp(), (exact - upper).exp()):
            assert ratio.std() > 0.1
            assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(4000)

    @EITHER
    def test_bounds_are_on_either_side_and_near(self, model, start):
        """Means over 20 data: either side at 5 standard errors, and 0.1 nats between the two, where it is some 0.05.

        All chains of a datum go back from the same z, and more of them make the upper bound no better than that.
        """
        x, z = data(model, 20)
        lower, upper = ais.bdmc(off(model.vae("mean-field")), None, 64, 100, start=start, joint=(z, x))
        exact = model.log_evidence(x)
        for above in (lower - exact, exact - upper):
            assert above.mean() < 5 * above.std() / math.sqrt(20)
        assert (upper - lower).abs().mean() < 0.1

    def test_data_are_drawn_where_none_are_given(self, model, short):
        vae = model.vae()
        lower, upper = ais.bdmc(vae, 7, 2, 3)
        x = vae.decoder(vae.prior().sample((7,))).sample()  # the same: the state was put back
        torch.testing.assert_close(lower, model.log_evidence(x), rtol=0, atol=1e-10)
        torch.testing.assert_close(upper, model.log_evidence(x), rtol=0, atol=1e-10)


@pytest.mark.slow
class TestMissing:
    def test_it_is_of_what_is_observed(self, model):
        """Of the oracle of the observed rows of W; 300 chains of 50 temperatures, to 0.1 nats: 5 standard errors."""
        vae, x = model.vae(), data(model, 4)[0]
        vae.encoder.fill = model.bias.clone()
        x[:, 2] = math.nan
        seen = torch.tensor([0, 1, 3])
        expected = LinearGaussian(model.weight[seen], model.bias[seen], model.scale).log_evidence(x[:, seen])
        torch.testing.assert_close(ais.ais(vae, x, 300, 50, start="prior"), expected, rtol=0, atol=0.1)

    def test_patterns_may_differ(self, model):
        vae, x = model.vae(), data(model, 4)[0]
        vae.encoder.fill = model.bias.clone()
        seen = ~torch.eye(4, dtype=torch.bool)
        x[~seen] = math.nan
        expected = torch.cat(
            [
                LinearGaussian(model.weight[rows], model.bias[rows], model.scale).log_evidence(row[rows].unsqueeze(0))
                for rows, row in zip(seen, x, strict=True)
            ]
        )
        torch.testing.assert_close(ais.ais(vae, x, 300, 50), expected, rtol=0, atol=0.06)


@pytest.mark.usefixtures("param_store")
class TestLadder:
    def test_goes_from_the_start_to_the_posterior(self, model, short):
        vae = model.vae("mean-field")
        for start in ("guide", "prior"):
            with torch.no_grad():
                ladder = climbing(vae, data(model, 5)[0], start)
                schedule = ladder.tune(4, 30, 2, lambda number: None)
            assert schedule.betas.shape == schedule.steps.shape == (31, 5)
            assert (schedule.betas[0] == 0).all()
            assert (schedule.betas[-1] == 1).all()
            assert (schedule.betas.diff(dim=0) >= 0).all()
            assert (schedule.steps > 0).all()

    def test_ends_there_also_where_the_last_of_the_way_is_lost_in_rounding(self):
        """The prior is 1e8 nats off, the posterior 3."""
        model = LinearGaussian(torch.randn(784, 10), torch.zeros(784), scale=1e-4)
        with torch.no_grad():
            ladder = climbing(model.vae("mean-field"), data(model, 3)[0], "prior")
            schedule = ladder.tune(4, 9, 2, lambda number: None)
        assert (schedule.betas[-1] == 1).all()

    def test_log_f_is_between_the_two(self, model):
        vae, (x, z) = model.vae("mean-field"), data(model, 5)
        here = climbing(vae, x).evaluate(z.expand(2, 5, 2))
        start, end = vae.encoder(x).log_prob(z), vae.prior().log_prob(z) + vae.decoder(z).log_prob(x)
        beta = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
        torch.testing.assert_close(here.log_f(beta)[1], (1 - beta) * start + beta * end, rtol=0, atol=1e-10)
        moved = z.clone().requires_grad_()
        of_z = (1 - beta) * vae.encoder(x).log_prob(moved)
        of_z = of_z + beta * (vae.prior().log_prob(moved) + vae.decoder(moved).log_prob(x))
        (gradient,) = torch.autograd.grad(of_z.sum(), moved)
        torch.testing.assert_close(here.grad(beta)[0], gradient, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("step", [0.1, 0.6, 1.5])
    def test_a_move_leaves_the_density_as_it_is(self, model, step):
        """Means and squares of 20,000 exact draws of the posterior after 3 moves, whatever the step: 5 numbers."""
        x = data(model, 1)[0]
        ladder = climbing(off(model.vae("mean-field")), x)
        distribution = model.posterior(x)
        one = torch.ones(1)
        with torch.no_grad():
            here = ladder.evaluate(distribution.sample((20_000,)))
            for _ in range(3):
                here, chance = ladder.move(here, one, step * one)
        assert 0.02 < chance.mean() < 1
        r = (here.u - distribution.mean)[:, 0]
        expected = torch.stack([distribution.covariance_matrix[0, i, j] for i, j in ((0, 0), (0, 1), (1, 1))])
        squares = torch.stack([r[:, 0] ** 2, r[:, 0] * r[:, 1], r[:, 1] ** 2], -1)
        for value, truth in ((r, torch.zeros(2)), (squares, expected)):
            assert ((value.mean(0) - truth).abs() < 5 * value.std(0) / math.sqrt(len(value))).all()


def quadrature(vae, x):
    """log p(x) over a grid of 2-D codes."""
    grid = torch.linspace(-8, 8, 160)
    z = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        log_p = vae.prior().log_prob(z).unsqueeze(1) + vae.decoder(z.unsqueeze(1)).log_prob(x)
    return log_p.logsumexp(0) + 2 * math.log(grid[1] - grid[0])


PARTS = {
    "both": (PRIORS["StandardNormal"], GUIDES["DiagonalNormal"], STARTS),
    **{f"prior: {name}": (part, GUIDES["DiagonalNormal"], ["prior"]) for name, part in [*PRIORS.items()][1:]},
    **{
        f"guide: {name}": (PRIORS["StandardNormal"], part, ["guide"])
        for name, part in GUIDES.items()
        if "Diag" not in name
    },
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:AIS accepted")  # after so short a pilot run
@pytest.mark.usefixtures("param_store")
class TestParts:
    @pytest.mark.parametrize(("prior", "guide", "starts"), PARTS.values(), ids=PARTS)
    def test_every_prior_and_guide_comes_to_log_p(self, prior, guide, starts, short, float64):
        """By quadrature: E[w] = p(x) of 100 chains from where the part is; within half a nat."""
        vae = built(prior, guide, latent=2, stir=False).double()
        x = vae.generate(3) + 0.5 * torch.randn(3, *EVENT)
        with torch.no_grad():
            vae.decoder.family.log_scale.fill_(math.log(0.7))
        exact = quadrature(vae, x)
        for start in starts:
            w = (ais.log_weights(vae, x, 100, 8, start=start) - exact).exp()
            assert ((w.mean(0) - 1).abs() < 5 * w.std(0) / math.sqrt(len(w)) + 1e-3).all()
            assert (w.mean(0).log().abs() < 0.5).all()

    @pytest.mark.parametrize(("prior", "guide", "starts"), PARTS.values(), ids=PARTS)
    def test_a_graph_has_the_densities_of_every_prior_and_guide(self, prior, guide, starts, float64):
        """At the fifth z, of which the first is Pyro's, the second recorded and the third compared."""
        vae, x = built(prior, guide).double().eval(), torch.randn(3, *EVENT)
        x[1, 0, 0, 1] = math.nan
        for start in starts:
            with torch.no_grad():
                ladder = climbing(vae, x, start)
                for z in torch.randn(4, 2, 3, 4):
                    ladder.evaluate(z)
            self.same(ladder, torch.randn(2, 3, 4))

    @pytest.mark.parametrize(("likelihood", "start"), [*zip(LIKELIHOODS.values(), cycle(STARTS))], ids=LIKELIHOODS)
    def test_every_likelihood_is_finite_and_its_graph_has_its_densities(self, likelihood, start, short, monkeypatch):
        ladders = []
        monkeypatch.setattr(ais, "Ladder", lambda *a, **k: ladders.append(Ladder(*a, **k)) or ladders[-1])
        vae = VAE.build((6,), 2, likelihood=likelihood, network=partial(networks.MLP, hidden=(8,))).eval()
        lower, upper = ais.bdmc(vae, 3, 2, 5, start=start)
        assert lower.isfinite().all()
        assert upper.isfinite().all()
        self.same(*ladders, torch.randn(2, 3, 2), 1e-5)

    def same(self, ladder, z, tolerance=1e-10):
        """A graph's densities are Pyro's."""
        assert ladder._densities._graph.mode == "graph", ladder._densities._graph.reason
        before = ladder._densities._graph._last.calls
        with torch.no_grad():
            found, expected = ladder.evaluate(z), log_densities(ladder.posterior, ladder.start, z)
        assert ladder._densities._graph._last.calls == before + 1
        torch.testing.assert_close(list(found[1:]), list(expected), rtol=tolerance, atol=tolerance)

    def test_a_prior_of_infinite_variance(self, model, short):
        """E[w] = p(x), by quadrature."""

        class Heavy(nn.Module):
            def forward(self):
                return dist.StudentT(1.5, torch.zeros(2), 1.0).to_event(1)

        vae, x = model.vae(), data(model, 3)[0]
        vae.prior = Heavy()
        w = (ais.log_weights(vae, x, 500, 10) - quadrature(vae, x)).exp()
        assert ((w.mean(0) - 1).abs() < 5 * w.std(0) / math.sqrt(len(w))).all()


class TestRuns:
    def test_chunks_over_images_change_no_exact_answer(self, model, short, monkeypatch):
        x, z = data(model, 3)
        sizes = []
        monkeypatch.setattr(evaluate.weighing, "max_batch_size", lambda run, most, device: 2)
        genuine = Ladder.anneal
        monkeypatch.setattr(
            Ladder, "anneal", lambda self, *a, **k: sizes.append(len(self.posterior)) or genuine(self, *a, **k)
        )
        for bound in (ais.ais(model.vae(), x, 3, 4), *ais.bdmc(model.vae(), None, 3, 4, joint=(z, x))):
            torch.testing.assert_close(bound, model.log_evidence(x), rtol=0, atol=1e-10)
        assert sizes == [2, 1, 2, 2, 1, 1]  # up, and up and down of each part

    def test_a_seed_draws_the_same(self, model, short):
        vae, (x, z) = off(model.vae("mean-field")), data(model, 3)
        for run in (
            partial(ais.log_weights, vae, x, 3, 4),
            lambda seed=None: torch.stack(ais.bdmc(vae, None, 3, 4, joint=(z, x), seed=seed)),
            lambda seed=None: torch.stack(ais.bdmc(vae, 3, 3, 4, seed=seed)),
        ):
            same, other = run(seed=3), run()
            assert not torch.equal(same, other)
            assert torch.equal(run(), other)
            torch.rand(1)
            assert torch.equal(run(seed=3), same)

    def test_says_where_moves_are_not_accepted(self, model, short, monkeypatch):
        monkeypatch.setattr("pyro_vae.annealing.FAR", -1e6)  # everywhere is too far
        with pytest.warns(UserWarning, match="AIS accepted 0% of its moves: the bound may be loose."):
            found = ais.ais(model.vae(), data(model, 3)[0], 2, 5)
        assert found.isfinite().all()

    def test_says_where_chains_do_not_agree(self, float64):
        sharp = LinearGaussian(torch.randn(20, 3), torch.zeros(20), scale=0.05)
        with pytest.warns(UserWarning, match=r"AIS: .* 1\.\d of 16 chains, .*more temperatures") as said:
            log_w = ais.log_weights(sharp.vae(), data(sharp, 5)[0], temperatures=5, start="prior")
        assert f" {evaluate.ess(log_w).median():.1f} of 16 chains, the median over data" in str(said[0].message)

    def test_one_datum_alone_and_a_progress_bar(self, model, short, capsys):
        x = data(model, 1)[0]
        torch.testing.assert_close(ais.ais(model.vae(), x, 1, 5, progress=True), model.log_evidence(x))
        assert "AIS: " in capsys.readouterr().err

    @pytest.mark.filterwarnings("ignore:AIS accepted")  # after so short a pilot run
    def test_devices(self, device, short):
        vae, x = VAE.build((6,), latent=2).to(device), torch.rand(3, 6, device=device)
        for bound in (ais.ais(vae, x, 2, 5, seed=0), *ais.bdmc(vae, 3, 2, 5, start="prior", seed=0)):
            assert (bound.device.type, bound.dtype, bound.shape) == (device, torch.float32, (3,))
            assert bound.isfinite().all()


class Positive(nn.Module):
    """A prior over positive codes."""

    def __init__(self, distribution):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.distribution = distribution and distribution.to_event(1)

    def forward(self):
        return self.distribution


@EITHER
def test_a_prior_over_positive_codes_comes_to_log_p(start, float64):
    """Counts at Gamma rates are negative binomial; 128 chains of 50 temperatures to 0.05 nats, 5 standard errors."""
    shape, rate = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0])
    vae = VAE(Positive(dist.Gamma(shape, rate)), Positive(None), Positive(None))
    vae.decoder.forward = lambda z: dist.Poisson(z).to_event(1)
    vae.encoder.forward = lambda x: dist.Gamma(shape + 0.5 * x, rate + 0.3).to_event(1)
    x = torch.tensor([[3.0, 0.0], [1.0, 5.0]])
    exact = dist.GammaPoisson(shape, rate).log_prob(x).sum(-1)
    torch.testing.assert_close(ais.ais(vae, x, 128, 50, start=start), exact, rtol=0, atol=0.05)


@torch.no_grad()
def test_moves_are_as_wide_as_the_middle_of_a_prior_without_a_variance(float64, param_store):
    """128 Cauchy draws: an interquartile range within 1.35 and 3, 5 standard errors, where their deviation is tens."""
    vae = VAE(Positive(dist.Cauchy(torch.zeros(1), 1.0)), Positive(None), Positive(None))
    vae.decoder.forward = lambda z: dist.Normal(z, 0.5).to_event(1)
    vae.encoder.forward = lambda x: dist.Normal(x, 1.0).to_event(1)
    ladder = climbing(vae, torch.tensor([[1.0], [20.0]]), "prior")
    scale = 1.349 * ladder.precision[0].rsqrt()
    assert ((scale > 1.35) & (scale < 3)).all()
    assert (ladder.low < -50).all()
    assert (ladder.high > 70).all()


X = torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda vae: ais.ais(vae, X, chains=0), "chains of at least 1; got 0"),
        (lambda vae: ais.log_weights(vae, X, temperatures=0), "temperatures of at least 1; got 0"),
        (lambda vae: ais.bdmc(vae, leapfrog=0), "leapfrog of at least 1; got 0"),
        (lambda vae: ais.ais(vae, X, start="posterior"), "start to be guide or prior; got 'posterior'"),
        (lambda vae: ais.ais(vae, X[:0]), "at least 1 image.*; got none"),
        (lambda vae: ais.bdmc(vae, num=0), "at least 1 image.*; got none"),
    ],
)
def test_bad_arguments_get_a_sentence(run, message):
    with pytest.raises(ValueError, match=message):
        run(VAE.build((6,), latent=2))
