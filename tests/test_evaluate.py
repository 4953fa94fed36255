"""What is read off log-weights, against exact answers: a linear-Gaussian model, and weights written by hand."""

import contextlib
import dataclasses
import math
from functools import partial
from itertools import cycle

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_parts import LIKELIHOODS
from test_priors import EVENT, GUIDES, PRIORS, built
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import VAE, ais, data, evaluate, guides, likelihoods, networks, posterior, priors
from pyro_vae.compiled import graph, traced
from pyro_vae.oracle import LinearGaussian
from pyro_vae.program import Posterior
from pyro_vae.seeds import eval_mode


@pytest.fixture
def model(float64):
    return LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)


class StudentPrior(nn.Module):
    """A prior whose divergence has no closed form."""

    def forward(self):
        return dist.StudentT(5.0, torch.zeros(3), 1.0).to_event(1)


class TestLogWeights:
    def test_are_the_densities_at_the_guides_draws(self, model):
        vae, x = model.vae("mean-field"), torch.randn(5, 6)
        with torch.random.fork_rng():
            log_w = evaluate.log_weights(vae, x, 4)
        z = vae.encoder(x).sample((4,))
        for k in range(4):
            expected = vae.prior().log_prob(z[k]) + vae.decoder(z[k]).log_prob(x) - vae.encoder(x).log_prob(z[k])
            torch.testing.assert_close(log_w[k], expected, rtol=0, atol=1e-12)

    def test_no_datum_sees_another(self, model):
        """Exact guide: each column is its own datum's evidence, whatever stands beside it."""
        x = torch.randn(5, 6)
        together = evaluate.log_weights(model.vae(), x, 2)
        alone = torch.cat([evaluate.log_weights(model.vae(), row, 2) for row in x.split(1)], dim=1)
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)

    def test_leave_no_graph(self, model):
        assert not evaluate.log_weights(VAE.build((6,), latent=2).double(), torch.rand(3, 6), 2).requires_grad

    @pytest.mark.parametrize(("particles", "at_once"), [(7, 3), (10, 5), (13, 1), (23, 20), (5, 1000)])
    def test_chunks_do_not_change_an_exact_answer(self, model, particles, at_once):
        x = torch.randn(5, 6)
        found = evaluate.log_weights(model.vae(), x, particles, at_once)
        torch.testing.assert_close(found, model.log_evidence(x).expand(particles, 5), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("sizes", [(2, 6), (3, 4), (50, 20), (5, 5), (1, 1)])
    def test_each_draw_of_each_datum_is_in_its_place(self, model, monkeypatch, sizes):
        """Of 7 draws for each of 5 data: the first of a datum is 0, the next is 1, and so on."""
        drawn = torch.zeros(5)

        def count(rows, k):
            (x,) = rows.data
            index = x[:, 0].long()
            assert len(index) * k <= sizes[1] or k == 1
            log_w = 100 * x[:, 0] + drawn[index] + torch.arange(k).unsqueeze(1)
            drawn[index] += k
            return log_w

        monkeypatch.setattr(Posterior, "log_weights", count)
        monkeypatch.setattr(evaluate.weighing, "chunk_sizes", lambda whole: sizes)
        found = evaluate.log_weights(model.vae(), torch.arange(5.0).unsqueeze(1).expand(5, 6), 7)
        assert torch.equal(found, 100 * torch.arange(5.0) + torch.arange(7.0).unsqueeze(1))

    def test_memory_is_bounded_by_at_once(self, model):
        seen = []
        vae = model.vae()
        vae.decoder.register_forward_hook(
            lambda module, inputs, distribution: seen.append(distribution.batch_shape.numel())
        )
        assert evaluate.log_weights(vae, torch.randn(50, 6), 9, at_once=20).shape == (9, 50)
        assert max(seen) <= 20

    def test_a_seed_draws_the_same(self, model):
        vae, x = model.vae("mean-field"), torch.randn(5, 6)
        for f in (evaluate.log_weights, evaluate.nll):
            same, other = f(vae, x, 7, seed=3), f(vae, x, 7, seed=4)
            torch.rand(1)
            assert torch.equal(f(vae, x, 7, seed=3), same)
            assert not torch.equal(other, same)
            assert torch.equal(f(vae, x, 7), f(vae, x, 7))

    def test_nll_is_of_the_same_draws(self, model):
        vae, x = model.vae("mean-field"), torch.randn(5, 6)
        for at_once in (None, 10):
            log_w = evaluate.log_weights(vae, x, 23, at_once, seed=3)
            found = evaluate.nll(vae, x, 23, at_once, seed=3)
            torch.testing.assert_close(found, -evaluate.iwae(log_w), rtol=0, atol=1e-12)


class TestAsAGraph:
    """What is weighed by a graph is what Pyro weighs, draw by draw; what cannot be recorded is weighed by Pyro."""

    @pytest.fixture
    def both(self, monkeypatch):
        """Evaluate without a graph and with one; return both results, and what says how the second was run."""

        def run(evaluation):
            made = []
            genuine = evaluate.weighing.GraphedFunction
            with monkeypatch.context() as patch:
                patch.setattr(
                    evaluate.weighing, "GraphedFunction", lambda *a, **k: made.append(genuine(*a, **k)) or made[-1]
                )
                patch.setattr(evaluate.weighing, "MANY", math.inf)
                plain = evaluation()
                assert not made
                patch.setattr(evaluate.weighing, "MANY", 1)
                return plain, evaluation(), made[0]

        return run

    def agree(self, both, vae, x, f=evaluate.log_weights, at_once=100):
        """10 images: by 3 at most, of 70 draws by 33 at most; where 70 are run at once by 2, of 35 draws."""
        plain, found, made = both(lambda: f(vae, x, 70, at_once, seed=0))
        assert made.mode == "graph", made.reason
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
    def test_of_a_likelihood(self, likelihood, both):
        vae = VAE.build(EVENT, 4, likelihood=likelihood, network=partial(networks.MLP, hidden=(8,)))
        self.agree(both, vae, vae.decoder(torch.randn(10, 4)).sample())

    @pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
    def test_of_a_prior(self, prior, both):
        self.agree(both, built(prior), torch.randn(10, *EVENT), evaluate.nll, 70)

    @pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
    def test_of_a_guide(self, guide, both):
        self.agree(both, built(guide=guide), torch.randn(10, *EVENT))

    def test_of_what_is_observed_of_images(self, both):
        x = torch.randn(10, *EVENT)
        self.agree(both, built(), torch.where(torch.rand_like(x) < 0.3, math.nan, x), evaluate.nll)

    def test_of_a_guide_that_looks_its_images_up(self, both):
        """It would be recorded for the first images, whose rows it finds without torch: found out on others."""
        x = torch.randn(40, *EVENT)
        vae = posterior.refine(built(), x, steps=2)
        plain, found, made = both(lambda: evaluate.nll(vae, x, 70, 100, seed=0))
        assert made.mode == "off"
        assert torch.equal(found, plain)

    def test_of_a_decoder_that_branches_on_a_number(self, both):
        class Decoder(nn.Module):
            def forward(self, z):
                return dist.Normal(z if z.sum() > 0 else -z, 1.0).to_event(1)

        vae = VAE(built(latent=6).prior, Decoder(), VAE.build((6,), latent=6).encoder)
        x = torch.randn(40, 6)
        plain, found, made = both(lambda: evaluate.nll(vae, x, 70, 100, seed=0))
        assert made.mode == "off"
        assert torch.equal(found, plain)

    @pytest.mark.inductor
    @pytest.mark.skipif(not graph.can_compile(torch.device("cpu")), reason="no C++ compiler")
    def test_compiled(self, both, monkeypatch):
        monkeypatch.setattr(traced, "COMPILE_AFTER", 1.0)
        vae = VAE.build((6,), 2, network=partial(networks.MLP, hidden=()))
        x = torch.randn(10, 6)
        plain, found, made = both(lambda: evaluate.log_weights(vae, x, 70, 100, seed=0))
        assert made.mode == "inductor"
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)

    def test_every_image_is_looked_at(self, monkeypatch):
        monkeypatch.setattr(evaluate.weighing, "MANY", 1)
        vae = VAE.build(EVENT, 4, likelihood=likelihoods.Bernoulli)
        x = torch.bernoulli(torch.full((40, *EVENT), 0.5))
        x[31, 0, 0, 0] = 0.5
        with pytest.raises(ValueError, match="support"):
            evaluate.nll(vae, x, 70, 100)

    def test_a_draw_without_a_density_gets_a_sentence(self, monkeypatch):
        """Of a distribution that checks nothing, so that Pyro says nothing."""

        class Decoder(nn.Module):
            def forward(self, z):
                return dist.Normal(torch.where(z > 2.5, math.nan, z), 1.0, validate_args=False).to_event(1)

        monkeypatch.setattr(evaluate.weighing, "MANY", 1)
        vae = VAE(priors.StandardNormal(6), Decoder(), VAE.build((6,), latent=6).encoder)
        with pytest.raises(ValueError, match="log-weights.*NaN"):
            evaluate.nll(vae, torch.randn(40, 6), 2000, 100, seed=0)


class TestBounds:
    def test_of_weights_written_by_hand(self):
        log_w = torch.tensor([[0.0, 2.0], [math.log(3.0), 2.0]])
        torch.testing.assert_close(evaluate.elbo(log_w), torch.tensor([0.5 * math.log(3.0), 2.0]))
        torch.testing.assert_close(evaluate.iwae(log_w), torch.tensor([math.log(2.0), 2.0]))
        torch.testing.assert_close(evaluate.ess(log_w), torch.tensor([16 / 10, 2.0]))

    def test_do_not_overflow(self):
        log_w = torch.tensor([[-4000.0], [-4001.0]])
        assert evaluate.iwae(log_w).isfinite().all()
        assert evaluate.ess(log_w).isfinite().all()

    def test_their_order_and_their_means(self, model):
        """Mean-field guide, 20,000 draws, at 5 standard errors: fails once in 1.7 million runs."""
        x = torch.randn(4, 6)
        log_w = evaluate.log_weights(model.vae("mean-field"), x, 20_000)
        error = log_w.std(0) / math.sqrt(len(log_w))
        assert ((evaluate.elbo(log_w) - model.elbo(x)).abs() < 5 * error).all()
        w = (log_w - model.log_evidence(x)).exp()
        assert ((w.mean(0) - 1).abs() < 5 * w.std(0) / math.sqrt(len(w))).all()
        assert (evaluate.elbo(log_w) < evaluate.iwae(log_w)).all()


class TestIwaeCurve:
    def test_its_ends_are_the_elbo_and_the_importance_weighted_bound(self, float64):
        log_w = 3 * torch.randn(30, 4)
        found = evaluate.iwae_curve(log_w, [1, 30])
        torch.testing.assert_close(found[0], evaluate.elbo(log_w), rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1], evaluate.iwae(log_w), rtol=0, atol=1e-12)

    def test_is_a_mean_over_groups(self):
        """Of 5 weights, 2 groups of 2, and one that is left over."""
        log_w = torch.tensor([[1.0], [3.0], [5.0], [11.0], [1e9]]).log()
        expected = torch.tensor([[0.5 * math.log(2.0 * 8.0)], [math.log(3.0)]])
        torch.testing.assert_close(evaluate.iwae_curve(log_w, [2, 3]), expected)

    def test_rises_where_each_number_divides_the_next(self, float64):
        """By Jensen's inequality, and so for each datum; not just on average."""
        log_w = 3 * torch.randn(120, 50)
        assert (evaluate.iwae_curve(log_w, [1, 2, 4, 12, 60, 120]).diff(dim=0) > 0).all()

    def test_is_unbiased_for_the_bound_with_as_many_particles(self, model):
        """Mean-field guide, 5000 estimates of each of 3 bounds for 4 data: each of 12 fails once in 1.7 million."""
        vae, x = model.vae("mean-field"), torch.randn(4, 6)
        log_w = evaluate.log_weights(vae, x, 5000, seed=0)
        for k in (1, 3, 10):
            bound = evaluate.iwae(evaluate.log_weights(vae, x, 5000 * k, seed=k).unflatten(0, (k, 5000)))
            groups = log_w[: 5000 // k * k].unflatten(0, (-1, k)).logsumexp(1) - math.log(k)
            error = (bound.var(0) / len(bound) + groups.var(0) / len(groups)).sqrt()
            assert ((evaluate.iwae_curve(log_w, [k])[0] - bound.mean(0)).abs() < 5 * error).all()

    @pytest.mark.parametrize("particles", [[0], [1, 31], [-1]])
    def test_says_which_numbers_there_are(self, particles):
        with pytest.raises(ValueError, match="numbers of particles from 1 to 30; got "):
            evaluate.iwae_curve(torch.zeros(30, 2), particles)


class TestNll:
    @pytest.mark.parametrize(("particles", "at_once"), [(1, 100), (7, 3), (10, 5), (11, 100), (13, 1)])
    def test_chunks_do_not_change_an_exact_answer(self, model, particles, at_once):
        x = torch.randn(5, 6)
        found = evaluate.nll(model.vae(), x, particles, at_once)
        torch.testing.assert_close(found, -model.log_evidence(x), rtol=0, atol=1e-10)

    def test_chunks_draw_as_many_particles_as_were_asked_for(self, model, monkeypatch):
        """A remainder that is drawn but not counted, or counted but not drawn, would shift the answer."""
        drawn = []
        genuine = Posterior.log_weights
        monkeypatch.setattr(Posterior, "log_weights", lambda rows, k: drawn.append((len(rows), k)) or genuine(rows, k))
        evaluate.nll(model.vae(), torch.randn(5, 6), num_particles=23, at_once=20)
        assert drawn == [(1, 20), (1, 3)] * 5

    def test_memory_is_bounded_by_at_once(self, model):
        seen = []
        vae = model.vae()
        vae.decoder.register_forward_hook(
            lambda module, inputs, distribution: seen.append(distribution.batch_shape.numel())
        )
        evaluate.nll(vae, torch.randn(50, 6), num_particles=9, at_once=20)
        assert max(seen) <= 20

    def test_falls_to_the_evidence_as_particles_grow(self, model):
        """Mean-field guide; each step's fall is over 10 standard errors of the mean over 250 data."""
        x = model.vae().decoder(torch.randn(250, 3)).sample()
        vae = model.vae("mean-field")
        one, many = (evaluate.nll(vae, x, k).mean() for k in (1, 1000))
        exact = -model.log_evidence(x).mean()
        assert one > many
        assert many == pytest.approx(exact.item(), abs=0.02)

    def test_no_images_give_no_numbers(self, model):
        with pytest.raises(ValueError, match="at least 1 image; got none"):
            evaluate.nll(model.vae(), torch.empty(0, 6), 3)


class TestSplit:
    def test_is_exact_where_the_divergence_is(self, model):
        vae, x = model.vae("mean-field"), torch.randn(5, 6)
        _, kl = evaluate.elbo_terms(vae, x)
        torch.testing.assert_close(kl, kl_divergence(vae.encoder(x), vae.prior()), rtol=0, atol=1e-12)

    def test_its_difference_is_the_elbo(self, model):
        """Against the exact ELBO, 20,000 draws, 5 standard errors: each of 4 numbers fails once in 1.7 million runs."""
        vae, x = model.vae("mean-field"), torch.randn(4, 6)
        reconstruction, kl = evaluate.elbo_terms(vae, x, 20_000)
        error = vae.decoder(vae.encoder(x).sample((20_000,))).log_prob(x).std(0) / math.sqrt(20_000)
        assert ((reconstruction - kl - model.elbo(x)).abs() < 5 * error).all()

    def test_without_a_closed_form_it_is_the_same_draws_elbo(self, model):
        vae, x = model.vae("mean-field"), torch.randn(4, 6)
        vae.prior = StudentPrior()
        with torch.random.fork_rng():
            reconstruction, kl = evaluate.elbo_terms(vae, x, 30)
        expected = evaluate.elbo(evaluate.log_weights(vae, x, 30))
        torch.testing.assert_close(reconstruction - kl, expected, rtol=0, atol=1e-10)


class TestKlPerDim:
    def test_is_the_texts_formula_and_adds_up(self, model):
        vae, x = model.vae("mean-field"), torch.randn(5, 6)
        q = vae.encoder(x)
        found = evaluate.kl_per_dim(vae, x)
        text = 0.5 * (q.variance + q.mean**2 - 1 - q.variance.log())
        torch.testing.assert_close(found, text, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.sum(-1), evaluate.elbo_terms(vae, x)[1], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("guide", ["exact", "mean-field"])
    def test_says_where_dimensions_do_not_come_apart(self, model, guide):
        vae = model.vae(guide)
        vae.prior = vae.prior if guide == "exact" else StudentPrior()
        with pytest.raises(ValueError, match="independent latent dimensions.*site .z. has none. Use elbo_terms"):
            evaluate.kl_per_dim(vae, torch.randn(5, 6))


class FlowGuide(nn.Module):
    """Two dimensions: one knows x to within a tenth, the other nothing. Its mean is in no closed form to torch."""

    def forward(self, x):
        base = dist.Normal(torch.zeros(len(x), 2), torch.ones(2)).to_event(1)
        loc = torch.stack([2 * x[:, 0], 0 * x[:, 0]], dim=-1)
        return dist.TransformedDistribution(base, dist.transforms.AffineTransform(loc, torch.tensor([0.1, 1.0]), 1))


class TestActivity:
    @pytest.mark.parametrize(("beta", "active"), [(0.5, 4), (1.0, 4), (2.0, 3), (8.0, 1), (1e3, 0)])
    def test_is_one_minus_beta_s2_over_lambda(self, beta, active, float64):
        """At the optimum of the beta-ELBO, W is of the eigenvalues above beta s^2 (Lucas et al., 2019)."""
        s2, values = 1.0, torch.tensor([9.0, 5.0, 3.0, 1.5, 0.2, 0.1])
        x = torch.linalg.qr(torch.randn(400, 7) @ torch.eye(7)[:, :6])[0]
        x = x - x.mean(0)
        x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T * values.sqrt()
        weight = torch.eye(6)[:, :4] * (values[:4] - beta * s2).clamp(min=0).sqrt()
        vae = LinearGaussian(weight, x.mean(0), scale=math.sqrt(beta * s2)).vae("mean-field")
        expected = (1 - beta * s2 / values[:4]).clamp(min=0)
        torch.testing.assert_close(evaluate.latent_activity(vae, x), expected, rtol=0, atol=1e-10)
        assert evaluate.active_units(vae, x) == active

    def test_of_a_guide_without_a_mean_has_no_bias_of_the_draws(self, float64):
        """30 repeats of 50 images, at 6 standard errors: 2 numbers that fail once in 500,000 runs each.

        The variance of one average of 100 draws would be 0.01 too large for the second dimension: 40 standard errors.
        """
        vae = VAE.build((6,), latent=2)
        vae.encoder = FlowGuide()
        x = torch.randn(50, 6)
        with pytest.raises(NotImplementedError):
            vae.encoder(x).mean  # noqa: B018
        found = torch.stack([evaluate.latent_activity(vae, x, seed) for seed in range(30)])
        error = found.std(0) / math.sqrt(30)
        assert ((found.mean(0) - torch.stack([4 * x[:, 0].var(), torch.tensor(0.0)])).abs() < 6 * error).all()
        assert 6 * error[1] < 0.01
        assert evaluate.active_units(vae, x) == 1

    def test_does_not_depend_on_how_many_fit(self, model, monkeypatch):
        x = torch.randn(50, 6)
        expected = evaluate.latent_activity(model.vae(), x)
        monkeypatch.setattr(evaluate.weighing, "max_batch_size", lambda run, most, device: 3)
        torch.testing.assert_close(evaluate.latent_activity(model.vae(), x), expected, rtol=0, atol=1e-12)

    def test_counts_those_above_the_threshold(self, model):
        x = torch.randn(50, 6)
        found = evaluate.latent_activity(model.vae(), x)
        for threshold in (0.0, found.median().item(), 1e9):
            assert evaluate.active_units(model.vae(), x, threshold) == (found > threshold).sum()


class TestAggregate:
    @pytest.fixture
    def model(self, float64):
        left, right = (torch.linalg.qr(torch.randn(size, 2))[0] for size in (6, 2))
        return LinearGaussian(left * torch.tensor([3.0, 2.0]) @ right, torch.randn(6), scale=2.0)

    def test_of_many_data_of_the_model_it_is_the_information_between_x_and_z(self, model):
        """I = 1/2 log det(M / s^2), here 0.94; the aggregate posterior is the prior. At 5 standard errors.

        What one draw tells varies by the sum of 1 - s^2 / m_i over M's eigenvalues m. That there are but N = 2000 data
        takes less than exp(2 I) / N = 0.0033 from it and adds that to the divergence, which is allowed 3 times as much.
        """
        values = torch.linalg.eigvalsh(model.weight.T @ model.weight / 4 + torch.eye(2))
        information, bias = 0.5 * values.log().sum(), values.prod() / 2000
        x = model(torch.randn(2000, 2)).sample()
        found = evaluate.elbo_surgery(model.vae(), x, seed=0)
        error = ((1 - 1 / values).sum() / 2000).sqrt()
        assert abs(found.mutual_information - information) < 5 * error + bias
        assert abs(found.kl) < 3 * bias
        assert evaluate.mutual_information(model.vae(), x, seed=0) == found.mutual_information

    def test_the_two_add_up_to_the_mean_divergence(self, model):
        """5 draws of each of 300 codes, at 5 standard errors: fails once in 1.7 million runs."""
        vae, x = model.vae("mean-field"), 3 * torch.randn(300, 6)
        exact = evaluate.elbo_terms(vae, x)[1]
        q = vae.encoder(x)
        z = q.sample((500,))
        error = (q.log_prob(z) - vae.prior().log_prob(z)).var(0).mean().div(5 * 300).sqrt()
        assert abs(sum(evaluate.elbo_surgery(vae, x, 5)) - exact.mean()) < 5 * error

    def test_is_as_the_formula_says(self, model):
        vae, x = model.vae("mean-field"), torch.randn(7, 6)
        with torch.random.fork_rng():
            found = evaluate.elbo_surgery(vae, x, 3)
        q = vae.encoder(x)
        z = q.sample((3,))
        aggregate = dist.MixtureSameFamily(dist.Categorical(torch.ones(7)), q).log_prob(z)
        assert found.mutual_information == pytest.approx((q.log_prob(z) - aggregate).mean().item(), abs=1e-12)
        assert found.kl == pytest.approx((aggregate - vae.prior().log_prob(z)).mean().item(), abs=1e-12)

    def test_is_at_most_the_logarithm_of_how_many_there_are(self, float64):
        """And comes to it where codes are sharp."""
        vae = LinearGaussian(torch.randn(6, 2), torch.zeros(6), scale=1e-4).vae()
        found = evaluate.mutual_information(vae, torch.randn(20, 6))
        assert found == pytest.approx(math.log(20), abs=1e-6)
        assert found <= math.log(20) + 1e-12

    def test_is_zero_where_the_posterior_has_collapsed(self, float64):
        vae = LinearGaussian(torch.zeros(6, 2), torch.zeros(6), scale=1.0).vae()
        assert evaluate.elbo_surgery(vae, torch.randn(20, 6)) == pytest.approx((0.0, 0.0), abs=1e-12)

    @pytest.mark.parametrize("guide", [guides.DiagonalNormal, guides.FullNormal, guides.Flow])
    @pytest.mark.parametrize("fit", [1, 7, 1000])
    def test_chunks_change_nothing(self, guide, fit, monkeypatch):
        vae, x = built(guide=guide).double(), torch.randn(9, *EVENT).double()
        expected = evaluate.elbo_surgery(vae, x, 4)
        monkeypatch.setattr(evaluate.codes, "max_batch_size", lambda run, most, device: fit)
        assert evaluate.elbo_surgery(vae, x, 4) == pytest.approx(expected, abs=1e-10)

    @pytest.mark.parametrize(("number", "particles"), [(1, 1), (2, 0), (5, 0)])
    def test_says_what_it_needs(self, model, number, particles):
        with pytest.raises(ValueError, match=f"at least 2 images and 1 particle; got {number} and {particles}"):
            evaluate.elbo_surgery(model.vae(), torch.zeros(number, 6), particles)


class TestSummary:
    SPLIT = data.load("digits").test

    def test_is_of_the_first_images_and_adds_up(self):
        vae = VAE.build((1, 8, 8), latent=2)
        found = evaluate.summary(vae, self.SPLIT, num_particles=5, images=30)
        assert found.images == 30
        assert found.elbo[0] == pytest.approx(found.reconstruction[0] - found.kl[0], abs=1e-3)
        _, kl = evaluate.elbo_terms(vae, self.SPLIT[:30])
        assert found.kl[0] == pytest.approx(kl.mean().item(), rel=1e-5)
        assert found.kl[1] == pytest.approx(kl.std().item() / math.sqrt(30), rel=1e-5)

    def test_is_the_mean_of_what_it_is_per_image(self):
        vae = VAE.build((1, 8, 8), latent=2)
        found, values = (f(vae, self.SPLIT, num_particles=5, images=30) for f in (evaluate.summary, evaluate.per_image))
        assert (values.elbo == values.reconstruction - values.kl).all()
        for name, value in values._asdict().items():
            assert getattr(found, name) == (value.mean().item(), value.std().item() / math.sqrt(30))

    def test_repeats_and_leaves_torchs_generator_alone(self):
        vae = VAE.build((1, 8, 8), latent=2)
        before = torch.get_rng_state()
        first, second = (evaluate.summary(vae, self.SPLIT, num_particles=5, images=10) for _ in range(2))
        assert first == second
        assert (torch.get_rng_state() == before).all()

    def test_has_no_standard_error_of_one_image(self):
        assert math.isnan(evaluate.summary(VAE.build((1, 8, 8)), self.SPLIT, 2, images=1).nll[1])


# What is asked of a trained VAE, each in one line.
CALLS = {
    "log_weights": lambda vae, x: evaluate.log_weights(vae, x, 3),
    "log_weights, seed": lambda vae, x: evaluate.log_weights(vae, x, 3, seed=1),
    "nll": lambda vae, x: evaluate.nll(vae, x, 3),
    "split": lambda vae, x: evaluate.elbo_terms(vae, x),
    "kl_per_dim": lambda vae, x: evaluate.kl_per_dim(vae, x),
    "activity": lambda vae, x: evaluate.latent_activity(vae, x),
    "active_units": lambda vae, x: evaluate.active_units(vae, x),
    "aggregate": lambda vae, x: evaluate.elbo_surgery(vae, x),
    "mutual_information": lambda vae, x: evaluate.mutual_information(vae, x, seed=1),
    "per_image": lambda vae, x: evaluate.per_image(vae, data.from_tensor(x.repeat(5, 1, 1, 1)).test, 3),
    "summary": lambda vae, x: evaluate.summary(vae, data.from_tensor(x.repeat(5, 1, 1, 1)).test, 3),
    "ais": lambda vae, x: ais.ais(vae, x, chains=2, temperatures=3),
    "ais.log_weights": lambda vae, x: ais.log_weights(vae, x, chains=2, temperatures=3, start="prior", seed=1),
    "bdmc": lambda vae, x: ais.bdmc(vae, num=2, chains=2, temperatures=3),
    "refine": lambda vae, x: posterior.refine(vae, x, steps=3),
    "gaps": lambda vae, x: posterior.gaps(vae, x, num_particles=3, steps=3, temperatures=3),
    "nuts": lambda vae, x: posterior.nuts(vae, x, draws=4, warmup=12, chains=1),
    "compare": lambda vae, x: posterior.compare(vae, x, draws=4, warmup=12, chains=1),
    "grid": lambda vae, x: posterior.grid(vae, x, steps=20),
    "sbc": lambda vae, x: posterior.sbc(vae, num=20, draws=3),
    "to_arviz": lambda vae, x: posterior.to_arviz(vae, x, draws=25, predictive_draws=2),
}


class Normed(networks.Network):
    """What is another function in training: of a batch, and of what dropout leaves."""

    def __init__(self, in_shape, out_shape):
        layers = (nn.Flatten(), nn.Linear(math.prod(in_shape), 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU())
        super().__init__(in_shape, out_shape, nn.Sequential(*layers, nn.Linear(8, math.prod(out_shape), bias=False)))


VAMP = partial(priors.VampPrior, components=3)
# Each call has one of them in turn, in training or not. Batch normalisation, which has all to lose, has every call.
VAES = {
    "DiagonalNormal, in training": partial(built, latent=2),
    "Flow, VampPrior": partial(built, VAMP, guides.Flow, latent=2),
    "DiagonalNormal": partial(built, latent=2),
    "Flow, VampPrior, in training": partial(built, VAMP, guides.Flow, latent=2),
}
TURNS = [*zip(CALLS, cycle(VAES))]


def state(vae):
    """All that a call at test time has to leave as it was."""
    tensors = {**dict(vae.named_parameters()), **dict(vae.named_buffers())}
    tensors |= {f"{name}.grad": value.grad for name, value in vae.named_parameters()}
    tensors["torch's generator"] = torch.get_rng_state()
    values = {name: value.clone() for name, value in tensors.items() if value is not None}
    flags = {name: (id(value), value.requires_grad) for name, value in vae.named_parameters()}
    flags |= {f"{name} trains": module.training for name, module in vae.named_modules()}
    return values, (flags, sorted(pyro.get_param_store().keys()), torch.is_grad_enabled())


@contextlib.contextmanager
def left_alone(vae):
    """Parameters, buffers, gradients of a step that is under way, training mode, the param store, random states."""
    values, rest = state(vae)
    yield
    after, rest_after = state(vae)
    assert rest_after == rest
    assert after.keys() == values.keys()
    assert [key for key, value in values.items() if not torch.equal(after[key], value)] == []


def in_a_step(vae, x):
    """A VAE after the backward pass of a step."""
    (vae.decoder(vae.encoder(x).rsample()).log_prob(x) + vae.prior().log_prob(torch.zeros(2))).sum().backward()
    return vae


def numbers(found):
    """All tensors in what a call returns."""
    if isinstance(found, VAE):
        return [*found.encoder.network.parameters()]
    if hasattr(found, "groups"):  # ArviZ's container
        found = [found[group][name].values for group, name in (("posterior", "z"), ("posterior_predictive", "x"))]
    elif dataclasses.is_dataclass(found):
        found = [getattr(found, field.name) for field in dataclasses.fields(found)]
    if isinstance(found, dict):
        found = [*found.values()]
    if isinstance(found, (tuple, list)):
        return [value for each in found for value in numbers(each)]
    return [] if found is None or isinstance(found, str) else [torch.as_tensor(found)]


BRIEF = ("ignore:AIS", "ignore:NUTS. the chains disagree")  # runs that are too short to be good


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr("pyro_vae.annealing.PILOT", 3)
    monkeypatch.setattr("pyro_vae.annealing.SETTLE", 1)


@pytest.mark.usefixtures("brief")
@pytest.mark.filterwarnings(*BRIEF)
@pytest.mark.parametrize(("name", "vae"), TURNS)
def test_it_leaves_the_vae_and_everything_else_alone(name, vae):
    trains, vae, x = "training" in vae, VAES[vae](), torch.rand(2, *EVENT)
    vae.train(trains).decoder.train(not trains)
    with left_alone(in_a_step(vae, x)):
        CALLS[name](vae, x)


@pytest.mark.usefixtures("brief")
@pytest.mark.filterwarnings(*BRIEF)
@pytest.mark.parametrize("name", CALLS)
def test_of_batch_normalisation_in_training_it_is_what_it_is_at_test(name):
    """And leaves it alone: running means, and which layers train."""
    vae = VAE.build(EVENT, 2, priors.StandardNormal if name == "kl_per_dim" else VAMP, network=Normed)
    x = torch.rand(9, *EVENT)
    in_a_step(vae.train(), x).prior.eval()  # running means are not where they start
    with left_alone(vae):
        found = numbers(CALLS[name](vae, x[:3]))
    expected = numbers(CALLS[name](vae.eval(), x[:3]))
    assert found
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_an_error_puts_modes_and_torchs_state_back():
    vae, before = built().train(), torch.get_rng_state()
    vae.decoder.eval()
    seen = []
    with contextlib.suppress(KeyError), eval_mode(vae, torch.device("cpu"), seed=1):
        seen.append((any(module.training for module in vae.modules()), torch.initial_seed()))
        raise KeyError
    assert seen == [(False, 1)]
    assert (vae.training, vae.encoder.training, vae.decoder.training) == (True, True, False)
    assert torch.equal(torch.get_rng_state(), before)


X = torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda vae: evaluate.log_weights(vae, X, 0), "num_particles of at least 1; got 0"),
        (lambda vae: evaluate.nll(vae, X, 0), "num_particles of at least 1; got 0"),
        (lambda vae: evaluate.nll(vae, X, 5, at_once=0), "at_once of at least 1; got 0"),
        (lambda vae: evaluate.latent_activity(vae, X[:1]), "at least 2 images, .*; got 1"),
        (lambda vae: evaluate.elbo_terms(vae, X, 0), "num_particles of at least 1; got 0"),
        (lambda vae: evaluate.summary(vae, data.from_tensor(X.repeat(9, 1)).test, images=0), "at least 1 image"),
    ],
)
def test_bad_input_gets_a_sentence(run, message):
    with pytest.raises(ValueError, match=message):
        run(VAE.build((6,), latent=2))
