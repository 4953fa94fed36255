"""What is missing is left out, as the exact marginal has it, and imputed by draws of the exact conditional."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from test_parts import EVENT, LIKELIHOODS
from torch import nn
from torch.distributions import MultivariateNormal

from pyro_vae import VAE, CompiledSVI, checkpoint, data, evaluate, fit, load, plots, report
from pyro_vae.conditional import Conditional
from pyro_vae.guides import DiagonalNormal
from pyro_vae.missing import Missing, impute, log_prob, observed
from pyro_vae.networks import MLP
from pyro_vae.objectives import ELBO, IWAE
from pyro_vae.oracle import LinearGaussian
from pyro_vae.priors import StandardNormal

NAN = float("nan")


def holes(x, share=0.4):
    """x with NaN in so large a part of it, and something observed of every row."""
    gone = torch.rand(x.shape) < share
    gone.flatten(1)[:, 0] = False
    return x.masked_fill(gone, NAN)


@pytest.fixture
def model(float64):
    return LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)


class GivenObserved(nn.Module):
    """The exact posterior of a linear-Gaussian model given what is observed of x; or one ``times`` as wide."""

    def __init__(self, model, times=1.0):
        super().__init__()
        self.model, self.times = model, times

    def forward(self, x):
        weight, noise = self.model.weight * ~x.isnan().unsqueeze(-1), self.model.scale**2
        precision = weight.mT @ weight / noise + torch.eye(weight.shape[-1])
        away = (x - self.model.bias).nan_to_num().unsqueeze(-1)
        mean = torch.linalg.solve(precision, weight.mT @ away / noise).squeeze(-1)
        return dist.MultivariateNormal(mean, precision_matrix=precision / self.times**2)


def program(model, times=1.0):
    return VAE(StandardNormal(3).double(), model, GivenObserved(model, times))


def marginal(model, seen):
    """The exact distribution of the elements of x that are seen: a Gaussian."""
    covariance = model.weight @ model.weight.T + model.scale**2 * torch.eye(len(model.bias))
    return MultivariateNormal(model.bias[seen], covariance[seen][:, seen])


def log_evidence(model, x):
    return torch.stack([marginal(model, ~row.isnan()).log_prob(row[~row.isnan()]) for row in x])


def conditional(model, row):
    """Mean and covariance of what is missing of one x, given what is observed."""
    gone = row.isnan()
    whole = marginal(model, torch.ones_like(gone))
    gain = whole.covariance_matrix[gone][:, ~gone] @ marginal(model, ~gone).precision_matrix
    mean = model.bias[gone] + gain @ (row - model.bias)[~gone]
    return mean, whole.covariance_matrix[gone][:, gone] - gain @ whole.covariance_matrix[~gone][:, gone]


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
class TestObserved:
    def case(self, likelihood):
        family = likelihood(EVENT).eval()
        phi = torch.randn(5, 7, family.params, *EVENT, requires_grad=True)
        distribution = family(phi)
        return phi, distribution, distribution.sample()[0]

    def test_is_the_sum_over_what_is_observed(self, likelihood):
        _, distribution, x = self.case(likelihood)
        expected = distribution.base_dist.log_prob(x) * ~(gappy := holes(x)).isnan()
        masked, filled = observed(distribution, gappy)
        assert (masked.batch_shape, masked.event_shape) == (distribution.batch_shape, distribution.event_shape)
        torch.testing.assert_close(masked.log_prob(filled), expected.sum((-1, -2)))
        assert torch.equal(filled[~gappy.isnan()], x[~gappy.isnan()])

    def test_has_no_gradient_of_what_is_missing(self, likelihood):
        phi, distribution, x = self.case(likelihood)
        gappy = holes(x)
        log_prob(distribution, gappy).sum().backward()
        assert phi.grad.isfinite().all()
        assert (phi.grad.movedim(2, 0)[:, :, gappy.isnan()] == 0).all()
        assert (phi.grad.movedim(2, 0)[:, :, ~gappy.isnan()] != 0).any()

    def test_where_nothing_is_missing_it_is_the_same_to_the_bit(self, likelihood):
        phi, distribution, x = self.case(likelihood)
        masked, same = observed(distribution, x)
        assert torch.equal(same, x)
        found, expected = masked.log_prob(same), distribution.log_prob(x)
        assert torch.equal(found, expected)
        gradients = [torch.autograd.grad(value.sum(), phi, retain_graph=True)[0] for value in (found, expected)]
        assert torch.equal(*gradients)

    def test_of_nothing_is_zero(self, likelihood):
        phi, distribution, x = self.case(likelihood)
        found = log_prob(distribution, torch.full_like(x, NAN))
        assert torch.equal(found, torch.zeros(5, 7))
        found.sum().backward()
        assert torch.equal(phi.grad, torch.zeros_like(phi))

    def test_trains_as_a_graph(self, likelihood, recwarn):
        vae = VAE.build(EVENT, latent=2, likelihood=likelihood, network=partial(MLP, hidden=()))
        _, _, x = self.case(likelihood)
        with pyro.get_param_store().scope():
            svi = CompiledSVI(Missing()(vae.model), vae.guide, Adam({"lr": 1e-2}), ELBO(), compile="graph")
            losses = [svi.step(holes(x)) for _ in range(4)]
        assert svi.mode == "graph"
        assert all(map(math.isfinite, losses))
        assert not recwarn


class TestLaws:
    @pytest.mark.parametrize("distribution", [dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0).expand((3,)).to_event(1)])
    def test_a_law_may_be_of_fewer_dimensions_than_x(self, distribution):
        x = torch.tensor([[1.0, NAN, 2.0], [NAN, NAN, 0.5]])
        found, expected = log_prob(distribution, x), dist.Normal(0.0, 1.0).log_prob(x.nan_to_num()) * ~x.isnan()
        torch.testing.assert_close(found, expected.sum(-1) if distribution.event_dim else expected)

    def test_the_same_to_the_event_twice(self):
        x = holes(torch.randn(4, 2, 3))
        one, two = dist.Normal(torch.zeros(4, 2, 3), 1.0).to_event(2), dist.Normal(torch.zeros(4, 2, 3), 1.0)
        torch.testing.assert_close(log_prob(torch.distributions.Independent(two.to_event(1), 1), x), log_prob(one, x))

    def test_elements_that_are_not_independent_get_a_sentence(self):
        distribution = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
        assert log_prob(distribution, torch.zeros(3)) == distribution.log_prob(torch.zeros(3))
        message = "independent elements.*; got MultivariateNormal. Use a likelihood"
        with pytest.raises(ValueError, match=message):
            log_prob(distribution, torch.tensor([0.0, NAN, 1.0]))

    def test_a_law_may_mask_itself(self):
        class Own(dist.Normal):
            def mask(self, mask):
                return dist.Normal(self.loc + 1, 1.0).mask(mask)

        assert (
            observed(Own(torch.zeros(2), 1.0).to_event(1), torch.tensor([NAN, 1.0]))[0].base_dist.base_dist.loc[0] == 1
        )


class TestHandler:
    def test_stock_svi_trains_with_it_and_complains_without(self, param_store):
        """The loss of the last 20 steps is far below that of the first."""
        x = data.load("digits").train[:256]
        x, vae = holes(x), VAE.build((1, 8, 8), latent=2)
        with pytest.raises(ValueError, match="within the support"):
            SVI(vae.model, vae.guide, Adam({"lr": 3e-3}), Trace_ELBO()).step(x)
        svi = SVI(Missing()(vae.model), vae.guide, Adam({"lr": 3e-3}), Trace_ELBO())
        losses = torch.tensor([svi.step(x) / len(x) for _ in range(60)])
        assert losses.isfinite().all()
        assert losses[-20:].mean() < losses[:20].mean() - 10

    def test_its_bounds_are_of_the_observed_elements(self, model):
        """With the exact posterior given what is observed every bound is log p(x_o)."""
        x, vae = holes(torch.randn(20, 6)), program(model)
        expected = -log_evidence(model, x).sum().item()
        for objective in (ELBO(kl="sampled"), IWAE(5), Trace_ELBO()):
            with pyro.get_param_store().scope():
                found = objective.loss(Missing()(vae.model), vae.guide, x)
            assert found == pytest.approx(expected, abs=1e-9)

    def test_a_graph_gives_stock_svis_losses(self):
        x = holes(torch.rand(32, 1, 8, 8))
        runs = []
        for make in (lambda *a: SVI(*a, ELBO()), lambda *a: CompiledSVI(*a, ELBO(), compile="graph")):
            with pyro.get_param_store().scope(), torch.random.fork_rng():
                torch.manual_seed(0)
                vae = VAE.build((1, 8, 8), latent=2)
                svi = make(Missing()(vae.model), vae.guide, Adam({"lr": 1e-2}))
                runs.append([svi.step(x) for _ in range(6)])
        assert runs[0] == pytest.approx(runs[1], rel=1e-5)

    def test_it_leaves_the_other_sites_alone(self):
        def program(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.factor("factor", -z)
            with pyro.plate("data", 6, subsample_size=4) as index:
                pyro.sample("label", dist.Bernoulli(0.3), obs=(index % 2).float())
                return pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

        x = torch.tensor([NAN, 1.0, 2.0, NAN, 0.5, 3.0])
        with torch.random.fork_rng():
            trace = poutine.trace(Missing()(program)).get_trace(x)
        plain = poutine.trace(program).get_trace(x)
        trace.compute_log_prob()
        index, z = (trace.nodes[name]["value"] for name in ("data", "z"))
        expected = dist.Normal(z, 1.0).log_prob(x[index].nan_to_num()) * ~x[index].isnan()
        torch.testing.assert_close(trace.nodes["x"]["unscaled_log_prob"], expected)
        for name in ("z", "twice", "factor", "label", "data"):
            assert type(trace.nodes[name]["fn"]) in (type(plain.nodes[name]["fn"]), dist.MaskedDistribution)
            assert torch.equal(trace.nodes[name]["value"], plain.nodes[name]["value"])
        for name in ("z", "factor", "label"):
            site = plain.nodes[name]
            assert torch.equal(trace.nodes[name]["unscaled_log_prob"], site["fn"].log_prob(site["value"]))


class TestEncoder:
    def test_its_network_is_given_the_fill(self):
        fill = torch.rand(4)
        encoder = Conditional(MLP((4,), (2, 3)), DiagonalNormal(3), fill=fill)
        x = torch.tensor([[0.5, NAN, 2.0, NAN]])
        expected = encoder(torch.tensor([[0.5, fill[1], 2.0, fill[3]]]))
        assert torch.equal(encoder(x).mean, expected.mean)
        torch.testing.assert_close(encoder(x.expand(7, 1, 4)).mean[3], expected.mean)

    def test_without_one_a_nan_is_not_hidden(self):
        with pytest.raises(ValueError, match="parameter loc"):
            Conditional(MLP((4,), (2, 3)), DiagonalNormal(3))(torch.full((1, 4), NAN))
        assert VAE.build((4,), latent=2).decoder.fill is None

    def test_features_need_one(self):
        with pytest.raises(ValueError, match="Expected fill, a mean of b, for features of b; got none"):
            Conditional(MLP((4,), (2, 3)), DiagonalNormal(3), features=lambda x, mean: x - mean)

    def test_a_run_keeps_it_and_an_old_one_has_zeros(self, tmp_path):
        x = holes(torch.rand(100, 4))
        vae = VAE.build((4,), latent=2)
        fit(vae, x, epochs=1, run_dir=tmp_path / "run", progress=False)
        loaded, _ = load(tmp_path / "run")
        assert vae.encoder.fill.all()
        assert torch.equal(loaded.encoder.fill, vae.encoder.fill)
        with torch.no_grad():
            assert torch.equal(loaded.encoder(x).mean, vae.encoder(x).mean)
        vae.encoder.fill = None
        checkpoint.save_weights(tmp_path / "run", vae)
        assert torch.equal(load(tmp_path / "run")[0].encoder.fill, torch.zeros(4))


class TestFit:
    DIGITS = data.load("digits")

    def part(self, share=0.3):
        x = self.DIGITS.train[:300]
        return data.from_tensor(x, mask=torch.rand(x.shape) > share)

    @pytest.mark.parametrize("compile", ["graph", "off"])
    def test_trains_without_a_warning(self, compile, recwarn):
        dataset, vae = self.part(), VAE.build((1, 8, 8), latent=4)
        history = fit(vae, dataset, epochs=10, batch_size=32, compile=compile, progress=False)
        assert history["train"][-1] < history["train"][0] - 10
        assert not recwarn
        torch.testing.assert_close(vae.encoder.fill, dataset.mean)

    def test_gives_the_same_numbers_as_a_graph_and_without(self):
        dataset, histories = self.part(), []
        for compile in ("graph", "off"):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                vae = VAE.build((1, 8, 8), latent=4)
            histories.append(fit(vae, dataset, epochs=2, batch_size=32, compile=compile, progress=False)["valid"])
        assert histories[0] == pytest.approx(histories[1], rel=1e-4)

    def test_of_complete_data_it_looks_for_no_nan_and_does_again_after(self):
        x, vae, given = self.DIGITS.train[:100], VAE.build((1, 8, 8), latent=2), []
        vae.encoder.network.register_forward_hook(lambda *_: given.append(vae.encoder.has_missing))
        fit(vae, data.from_tensor(x, mask=torch.ones_like(x, dtype=torch.bool)), epochs=1, progress=False)
        assert given
        assert not any(given)
        assert vae.encoder.fill.any()
        vae.encoder(torch.full((1, 1, 8, 8), NAN))

    def test_a_fill_that_was_trained_with_stays(self):
        vae = VAE.build((4,), latent=2)
        fit(vae, torch.rand(50, 4), epochs=1, progress=False)
        before = vae.encoder.fill.clone()
        fit(vae, torch.rand(50, 4) * 0.1, epochs=1, progress=False)
        assert torch.equal(vae.encoder.fill, before)

    def test_what_is_observed_must_be_in_the_support(self):
        x = holes(torch.rand(50, 4))
        with pytest.raises(ValueError, match=r"support of Bernoulli, Boolean\(\); got values in .* missing"):
            fit(VAE.build((4,), likelihood=LIKELIHOODS["Bernoulli"]), x, epochs=1, progress=False)

    def test_a_likelihood_that_cannot_leave_out_gets_a_sentence(self):
        class Joint(nn.Module):
            def forward(self, z):
                return dist.MultivariateNormal(torch.zeros(*z.shape[:-1], 4), torch.eye(4))

        vae = VAE.build((4,), latent=2)
        vae.decoder = Joint()
        with pytest.raises(ValueError, match="independent elements.*got Multivariate"):
            fit(vae, holes(torch.rand(50, 4)), epochs=1, progress=False)


class TestEvaluate:
    @pytest.mark.parametrize("at_once", [3, 100])
    def test_nll_is_of_what_is_observed(self, model, at_once):
        x = holes(torch.randn(7, 6), share=0.5)
        x[0] = torch.randn(6)
        found = evaluate.nll(program(model), x, 5, at_once)
        torch.testing.assert_close(found, -log_evidence(model, x), rtol=0, atol=1e-10)

    def test_nll_falls_to_it_with_another_guide(self, model):
        """A guide 1.5 times as wide, 20,000 draws, at 5 standard errors: each of 7 fails once in 1.7 million runs."""
        x = holes(torch.randn(7, 6), share=0.5)
        w = (evaluate.log_weights(program(model, 1.5), x, 20_000) - log_evidence(model, x)).exp()
        assert ((w.mean(0) - 1).abs() < 5 * w.std(0) / math.sqrt(len(w))).all()

    def test_its_split_is_the_elbo_of_what_is_observed(self, model):
        """Of an exact guide, so log p(x_o); at 5 standard errors: each of 4 numbers fails once in 1.7 million runs."""
        x, vae = holes(torch.randn(4, 6)), program(model)
        reconstruction, kl = evaluate.elbo_terms(vae, x, 20_000)
        error = log_prob(vae.decoder(vae.encoder(x).sample((20_000,))), x).std(0) / math.sqrt(20_000)
        assert ((reconstruction - kl - log_evidence(model, x)).abs() < 5 * error).all()

    def test_the_table_says_how_much_and_the_figures_are_drawn(self):
        vae = VAE.build((1, 8, 8), latent=2)
        dataset = TestFit().part(share=0.25)
        table = report.table(vae, dataset, num_particles=5, images=20, progress=False)
        assert f"{dataset.missing:.1%} of the pixels missing, left out" in table
        assert "nan" not in table
        assert 0.2 < dataset.missing < 0.3
        report.figures(vae, dataset)
        complete = data.from_tensor(dataset.train[:].nan_to_num())
        assert "missing" not in report.table(vae, complete, num_particles=5, images=20, progress=False)

    def test_what_is_missing_is_drawn_in_a_colour_of_its_own(self):
        x = torch.rand(4, 3, 5, 5)
        x[2, 1, 3, 4] = NAN
        page = plots.samples(x).axes[0].images[0].get_array()
        assert page[6 + 3, 4].tolist() == pytest.approx(plots.MISSING)
        assert (page == torch.tensor(plots.MISSING).numpy()).all(-1).sum() == 1


class TestImpute:
    X = torch.tensor([[0.3, NAN, -1.2, NAN, 0.8, NAN], [NAN, 0.1, NAN, 1.0, 0.2, -0.4]]).double()

    def errors(self, model, drawn):
        """How many standard errors the mean and the covariance of draws are from the exact ones."""
        found = []
        for i, row in enumerate(self.X):
            mean, covariance = conditional(model, row)
            away = drawn[:, i, row.isnan()] - mean
            for value, exact in ((away, 0.0), (away.unsqueeze(-1) * away.unsqueeze(-2), covariance)):
                found.append(((value.mean(0) - exact) / (value.std(0) / math.sqrt(len(value)))).abs().max())
        return torch.stack(found)

    def test_with_the_exact_guide_they_are_of_the_exact_conditional(self, model):
        """21 numbers at 5 standard errors, 20,000 draws: fails once in 80,000 runs."""
        drawn = program(model).impute(self.X, num=20_000, num_particles=1)
        assert (self.errors(model, drawn) < 5).all()

    def test_with_another_guide_they_are_with_many_particles_and_are_not_with_one(self, model):
        """A guide 1.5 times as wide: 200 particles leave a bias of about a hundredth of what one has.

        4,000 draws, 21 numbers at 5 standard errors: fails once in 80,000 runs.
        """
        vae = program(model, 1.5)
        assert (self.errors(model, vae.impute(self.X, num=4000, num_particles=200)) < 5).all()
        assert (self.errors(model, vae.impute(self.X, num=4000, num_particles=1)) > 5).any()

    def test_what_is_observed_stays_and_the_rest_is_drawn(self):
        x = holes(torch.rand(5, 1, 8, 8))
        drawn = VAE.build((1, 8, 8), latent=2).impute(x, num=3, num_particles=4)
        assert drawn.shape == (3, *x.shape)
        assert torch.equal(drawn[:, ~x.isnan()], x[~x.isnan()].expand(3, -1))
        assert drawn.isfinite().all()
        assert (drawn[0] != drawn[1])[x.isnan()].all()
        assert not drawn.requires_grad

    def test_binary_pixels_are_imputed_as_binary(self):
        x = holes(torch.randint(2, (5, 9)).float())
        drawn = VAE.build((9,), latent=2, likelihood=LIKELIHOODS["Bernoulli"]).impute(x, num=7, num_particles=3)
        assert set(drawn.unique().tolist()) == {0.0, 1.0}

    def test_memory_is_bounded_and_every_draw_is_made(self, model, monkeypatch):
        monkeypatch.setattr("pyro_vae.missing.AT_ONCE", 30)
        sizes, vae = [], program(model)
        model.register_forward_hook(lambda module, inputs, distribution: sizes.append(distribution.batch_shape.numel()))
        assert vae.impute(holes(torch.randn(8, 6)), num=7, num_particles=5).shape == (7, 8, 6)
        assert max(sizes) <= 30

    @pytest.mark.parametrize(("num", "num_particles"), [(0, 5), (5, 0)])
    def test_bad_input_gets_a_sentence(self, num, num_particles):
        with pytest.raises(
            ValueError, match=f"1 draw and 1 particle; got num = {num}, num_particles = {num_particles}"
        ):
            VAE.build((4,)).impute(torch.rand(2, 4), num, num_particles)

    def test_of_modules_that_are_no_vae(self):
        drawn = impute(
            dist.Normal(torch.zeros(2), 1.0).to_event(1),
            lambda x: dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1),
            lambda z: dist.Normal(z, 0.1).to_event(1),
            torch.tensor([[1.0, NAN]]),
            num=4,
            num_particles=5,
        )
        assert drawn.shape == (4, 1, 2)
