"""What is a likelihood's own; what all have in common is in test_parts.py."""

import math
from contextlib import nullcontext
from functools import partial

import pyro
import pytest
import scipy.stats
import torch
from pyro.optim import Adam

from pyro_vae import VAE, CompiledSVI, likelihoods, load, priors
from pyro_vae.compiled.graph import Graph
from pyro_vae.data import levels
from pyro_vae.networks import MLP
from pyro_vae.objectives import ELBO

optimal = partial(likelihoods.Gaussian, scale="optimal")


class TestOptimalScale:
    """The scale that is best for the batch while training, its running value elsewhere."""

    def test_in_training_the_density_is_at_the_mean_square_error(self, float64):
        loc, x = torch.randn(4, 5, 1, 6, requires_grad=True), torch.randn(5, 6)
        square = (x - loc.squeeze(2)).square().mean().item()  # over particles, batch and elements
        expected = scipy.stats.norm(loc.squeeze(2).detach(), square**0.5).logpdf(x).sum(-1)
        torch.testing.assert_close(optimal(6)(loc).log_prob(x), torch.as_tensor(expected))

    def test_the_gradient_is_that_of_the_profile_likelihood(self, float64):
        """By the envelope theorem, of a scale that is not differentiated: its own derivative is 0 at the maximum."""
        loc, x = torch.randn(5, 1, 6, requires_grad=True), torch.randn(5, 6)
        found = torch.autograd.grad(optimal(6)(loc).log_prob(x).sum(), loc)
        profile = -x.numel() / 2 * (1 + (2 * math.pi * (x - loc.squeeze(1)).square().mean()).log())
        torch.testing.assert_close(found, torch.autograd.grad(profile, loc))

    def test_the_first_batch_sets_the_running_value_and_others_move_it(self):
        family = optimal(2)
        squares = [4.0, 1.0, 9.0]
        for square in squares:
            family(torch.zeros(3, 1, 2)).log_prob(torch.full((3, 2), square**0.5))
        assert family.way.mean_square.item() == pytest.approx(0.9 * (0.9 * 4 + 0.1 * 1) + 0.1 * 9)
        distribution = family(torch.zeros(1, 2))
        assert distribution.stddev[0].item() == pytest.approx(family.way.mean_square.sqrt().item())

    @pytest.mark.parametrize("how", ["eval", "no gradients"])
    def test_elsewhere_the_running_value_is_used_and_left(self, how):
        family = optimal(2).train(how != "eval")
        with torch.set_grad_enabled(how == "eval"):
            found = family(torch.zeros(1, 2)).log_prob(torch.ones(2))
        assert found.item() == pytest.approx(2 * scipy.stats.norm(0, 0.1).logpdf(1.0), rel=1e-6)
        assert family.way.mean_square.item() == pytest.approx(0.01)

    def test_what_fits_exactly_has_a_density_still(self):
        distribution = optimal(2)(torch.zeros(1, 2))
        assert distribution.log_prob(torch.zeros(2)).item() == pytest.approx(2 * (6 - math.log(2 * math.pi) / 2))

    def test_what_is_masked_is_left_out_of_the_scale_too(self):
        family = optimal(3)
        seen = torch.tensor([[True, True, False], [False, True, True]])
        x = torch.tensor([[2.0, 2.0, 99.0], [99.0, 2.0, 2.0]])
        found = family(torch.zeros(4, 2, 1, 3)).base_dist.mask(seen).to_event(1).log_prob(x)  # 4 particles of 2 data
        assert family.way.mean_square.item() == pytest.approx(4.0)
        torch.testing.assert_close(found, torch.full((4, 2), 2 * scipy.stats.norm(0, 2).logpdf(2.0)))

    def test_a_graph_moves_the_running_value_too(self):
        family = optimal(2)
        x = torch.tensor([[1.0, 3.0]])
        with pyro.validation_enabled(False):
            graph = Graph(lambda loc: [family(loc).log_prob(x)], [torch.zeros(1, 1, 2, requires_grad=True)])
        assert any(tensor is family.way.mean_square for tensor in graph.state)
        assert family.way.mean_square.item() == pytest.approx(5.0)
        graph([torch.tensor([[[1.0, 1.0]]])])  # a mean square error of 2
        assert family.way.mean_square.item() == pytest.approx(0.9 * 5 + 0.1 * 2)

    def test_the_graph_takes_plain_pyros_steps(self):
        x, values = torch.rand(16, 6), []
        for how in ("off", "graph"):
            torch.manual_seed(1)
            vae = VAE.build((6,), latent=2, likelihood=optimal, network=partial(MLP, hidden=(8,)))
            with pyro.get_param_store().scope():
                svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 0.01}), ELBO(), compile=how)
                losses = [svi.step(x) for _ in range(6)]
            assert svi.mode == how
            values.append([*losses, vae.decoder.family.way.mean_square.item()])
        torch.manual_seed(20261122)
        assert values[0] == pytest.approx(values[1], rel=1e-5)

    def test_a_graph_of_training_mode_is_not_run_in_evaluation_mode(self, param_store):
        x = torch.rand(16, 6)
        vae = VAE.build((6,), latent=2, likelihood=optimal, network=partial(MLP, hidden=(8,)))
        svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 0.01}), ELBO())
        found = []
        for training in (True, False, True):
            vae.train(training)
            before = vae.decoder.family.way.mean_square.item()
            for _ in range(4):
                svi.step(x)
            found.append(vae.decoder.family.way.mean_square.item() != before)
        assert svi.mode == "graph"
        assert found == [True, False, True]


class TestModes:
    """``fit`` trains in training mode and validates in evaluation mode, and leaves the VAE so."""

    def test_fit_and_load(self, tmp_path, monkeypatch):
        from pyro_vae import data, fit

        modes = []
        vae = VAE.build((1, 8, 8), latent=2, likelihood=optimal, network=partial(MLP, hidden=(8,))).eval()
        model = vae.model
        monkeypatch.setattr(vae, "model", lambda x: modes.append((vae.training, torch.is_grad_enabled())) or model(x))
        digits = data.load("digits", dequantize=True)
        fit(vae, digits, epochs=2, batch_size=2000, compile="off", progress=False, run_dir=tmp_path / "run")
        # The first step is of the check of the particles' plate too; then one step and one validation an epoch.
        assert {(True, True), (False, False)} == set(modes)
        assert modes[-1] == (False, False)
        assert not vae.training
        loaded, _ = load(tmp_path / "run")
        assert not loaded.training
        assert loaded.decoder.family.way.mean_square == vae.decoder.family.way.mean_square
        x = digits.test[:]
        z = torch.zeros(len(x), 2)
        assert (loaded.decoder(z).log_prob(x) == vae.decoder(z).log_prob(x)).all()

    def test_an_interrupted_or_failed_run_is_left_in_evaluation_mode(self, monkeypatch):
        from pyro_vae import data, fit
        from pyro_vae.train import loop

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(loop.Training, "_step", interrupted)
        vae = VAE.build((1, 8, 8), latent=2, network=partial(MLP, hidden=(8,)))
        with pytest.raises(KeyboardInterrupt):
            fit(vae, data.load("digits"), progress=False)
        assert not vae.training


def test_a_pixels_scale_is_clipped_softly():
    distribution = likelihoods.Gaussian(3, scale="per-pixel")(torch.tensor([[0.0, 0.0, 0.0], [-60.0, -6.0, 3.0]]))
    expected = torch.tensor([-6.0, -6 + math.log(2), 3 + math.log1p(math.exp(-9))]).exp()
    torch.testing.assert_close(distribution.stddev, expected)


class TestContinuousBernoulli:
    LOGITS = [
        -500.0,
        -100.0,
        -20.0,
        -5.0,
        -0.3,
        -0.19,
        -1e-3,
        -1e-7,
        0.0,
        1e-7,
        1e-3,
        0.19,
        0.21,
        5.0,
        20.0,
        100.0,
        500.0,
    ]

    @pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
    def test_float32_is_float64_in_value_and_gradient(self, x):
        """Against the log normaliser, log((e^a - 1) / a), in float64, near 0 by its series, and its derivative."""
        logits = torch.tensor(self.LOGITS, requires_grad=True)
        found = likelihoods.ContinuousBernoulli(1)(logits.view(-1, 1, 1)).log_prob(torch.tensor([x]))
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        exact = logits.detach().double().requires_grad_()
        a = exact.abs()
        series = a / 2 + a**2 / 24 - a**4 / 2880  # of log((e^a - 1) / a)
        plain = a + torch.log(-torch.expm1(-a.clamp(min=1e-2))) - torch.log(a.clamp(min=1e-2))
        log_norm = torch.where(a < 1e-2, series, plain) - (a - exact) / 2
        expected = exact * x - log_norm
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)
        # Where |a| is not differentiable, at 0, the derivative is x - 1/2 by symmetry.
        (slope,) = torch.autograd.grad(expected.sum(), exact)
        slope = torch.where(exact == 0, x - 0.5, slope)
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=2e-6)

    def test_it_is_torchs_where_that_is_not_clipped(self, float64):
        logits, x = torch.linspace(-4, 4, 9), torch.rand(7, 9)
        found, theirs = (
            likelihoods.ContinuousBernoulli(9)(logits.unsqueeze(0)).base_dist,
            torch.distributions.ContinuousBernoulli(logits=logits),
        )
        torch.testing.assert_close(found.log_prob(x), theirs.log_prob(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.mean, theirs.mean, rtol=1e-6, atol=1e-6)

    def test_the_mean_is_not_the_parameter(self):
        distribution = likelihoods.ContinuousBernoulli(1)(torch.tensor([[4.0]]))
        assert torch.tensor(4.0).sigmoid() > 0.98
        assert distribution.mean.item() == pytest.approx(1 / (1 - math.exp(-4)) - 1 / 4, rel=1e-5)  # 0.77


class TestGreyLevels:
    @pytest.mark.parametrize("number", [2, 3, 17, 256])
    def test_the_grid_is_what_pixels_are_read_as(self, number):
        pixels = torch.arange(number, dtype=torch.uint8 if number < 256 else torch.int16)
        assert levels(number).check(pixels / (number - 1)).all()
        assert not levels(number).check((pixels + 0.3) / (number - 1)).any()
        assert not levels(number).check(torch.tensor([-1 / (number - 1), number / (number - 1), math.nan])).any()

    def test_discretised_is_the_logistic_laws_over_bins(self, float64):
        loc, a, x = torch.rand(9), torch.randn(9), torch.randint(17, (9,)) / 16
        scale = torch.exp(-7 + torch.nn.functional.softplus(a + math.log(0.1) + 7))
        theirs = scipy.stats.logistic(loc, scale)
        upper = torch.where(x == 1, math.inf, x + 1 / 32)
        lower = torch.where(x == 0, -math.inf, x - 1 / 32)
        expected = torch.as_tensor(theirs.cdf(upper) - theirs.cdf(lower))
        distribution = likelihoods.DiscretizedLogistic(9, levels=17)(torch.stack([loc, a]))
        torch.testing.assert_close(distribution.base_dist.log_prob(x).exp(), expected)

    def test_far_from_the_location_a_level_has_a_mass_still(self):
        """Where the difference of two sigmoids is 0 in float32."""
        distribution = likelihoods.DiscretizedLogistic(1)(torch.tensor([[0.0], [math.log(0.125)]]))
        theirs = scipy.stats.logistic(0, distribution.base_dist.scale.item())
        assert torch.tensor(theirs.cdf(127.5 / 255)).float() == 1
        expected = math.log(theirs.sf(127.5 / 255) - theirs.sf(128.5 / 255))
        assert distribution.log_prob(torch.tensor([128 / 255])).item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("part", ["Categorical", "DiscretizedLogistic", "DiscretizedLogisticMixture"])
    def test_256_levels_sum_to_one_in_float64(self, part, float64):
        made = getattr(likelihoods, part)(6)
        distribution = made(3 * torch.randn(made.params, 6)).base_dist
        total = distribution.log_prob(torch.arange(256).div(255).unsqueeze(-1)).exp().sum(0)
        torch.testing.assert_close(total, torch.ones(6), rtol=0, atol=1e-12)

    def test_a_mixture_starts_spread_evenly(self):
        distribution = likelihoods.DiscretizedLogisticMixture(1, components=4)(torch.zeros(12, 1)).base_dist
        assert distribution.component_distribution.loc.tolist() == [[0.125, 0.375, 0.625, 0.875]]
        assert distribution.mean.item() == pytest.approx(0.5)

    def test_a_mixture_of_one_is_the_discretised_logistic(self):
        loc, scale, x = torch.randn(3, 4), torch.randn(3, 4), torch.randint(256, (3, 4)) / 255
        one = likelihoods.DiscretizedLogisticMixture(4, components=1)(
            torch.stack([torch.randn(3, 4), loc - 0.5, scale], 1)
        )
        torch.testing.assert_close(
            one.log_prob(x), likelihoods.DiscretizedLogistic(4)(torch.stack([loc, scale], 1)).log_prob(x)
        )


def test_each_element_has_a_dispersion_of_its_own():
    made = likelihoods.NegativeBinomial((2, 3))
    assert [(name, value.shape) for name, value in made.named_parameters()] == [("log_dispersion", (2, 3))]
    with torch.no_grad():
        made.log_dispersion.copy_(torch.arange(6.0).view(2, 3))
    distribution = made(torch.full((1, 2, 3), 3.0).log())
    torch.testing.assert_close(distribution.mean, torch.full((2, 3), 3.0))
    torch.testing.assert_close(distribution.variance, 3 + 9 / torch.arange(6.0).exp().view(2, 3))


class TestLargeCounts:
    """Of counts as they are, in the hundreds, codes would be so wide at the start that the rates overflow."""

    COUNTS = torch.arange(0.0, 500.0, 5.0) * torch.linspace(0.5, 1.5, 33).unsqueeze(1).round(decimals=1)

    @pytest.mark.parametrize("part", [likelihoods.Poisson, likelihoods.NegativeBinomial])
    @pytest.mark.parametrize("prior", [priors.StandardNormal, priors.VampPrior])
    def test_the_first_loss_is_of_the_size_of_that_of_the_mean(self, part, prior, param_store):
        """Ten VAEs; given counts as they are, some have a loss that is NaN."""
        x = self.COUNTS.round()
        at_the_mean = -part((100,))(part.link(x.mean(0)).unsqueeze(0)).log_prob(x).mean()
        for _ in range(10):
            vae = VAE.build((100,), 10, prior, part, network=MLP)
            vae.decoder.start_at(x.mean(0))
            vae.encoder.fill_with(x.mean(0))
            param_store.clear()
            loss = ELBO().loss(vae.model, vae.guide, x) / len(x)
            assert at_the_mean < loss < 3 * at_the_mean

    @pytest.mark.parametrize("missing", [True, False])
    def test_the_encoder_is_given_the_logarithm_over_the_mean(self, missing):
        x, mean = self.COUNTS[:, 20:], self.COUNTS[16, 20:]
        vae = VAE.build((80,), 10, likelihood=likelihoods.Poisson)
        vae.encoder.fill_with(mean)
        given = []
        vae.encoder.network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        with nullcontext() if missing else vae.encoder.complete():
            vae.encoder(x)
        torch.testing.assert_close(given[0], (x / mean).log(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("part", [likelihoods.Gaussian, likelihoods.Laplace, likelihoods.StudentT])
@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan, "large"])
def test_a_scale_is_positive(part, scale):
    with pytest.raises(ValueError, match="a positive scale, or 'learned'; got"):
        part(4, scale=scale)


@pytest.mark.parametrize("part", [likelihoods.Gaussian, likelihoods.Laplace, likelihoods.StudentT])
def test_a_fixed_scale_is_not_trained_and_a_learned_one_is(part):
    assert not list(part(4, scale=0.5).parameters())
    assert [name for name, _ in part(4).named_parameters()] == ["log_scale"]


BAD = {
    "levels": (lambda: likelihoods.Categorical(4, levels=1), "at least 2 levels; got 1"),
    "levels, logistic": (lambda: likelihoods.DiscretizedLogistic(4, levels=0), "at least 2 levels; got 0"),
    "components": (lambda: likelihoods.DiscretizedLogisticMixture(4, components=0), "at least 1 component; got 0"),
    "df": (lambda: likelihoods.StudentT(4, df=1.0), "df above 1, so that there is a mean; got 1.0"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_get_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bernoullis_mass_is_pyros_and_so_is_its_gradient():
    """At a logit of 0 too, where the formula has a kink in each of two terms."""
    logits = torch.tensor([0.0, 1e-4, -3.0, 20.0, -90.0, 1e4], requires_grad=True)
    for x in (torch.zeros(6), torch.ones(6)):
        found, expected = likelihoods.Bernoulli(6).distribution(logits), pyro.distributions.Bernoulli(logits=logits)
        torch.testing.assert_close(found.log_prob(x), expected.log_prob(x), rtol=1e-6, atol=1e-7)
        one, other = (
            torch.autograd.grad(distribution.log_prob(x).sum(), logits)[0] for distribution in (found, expected)
        )
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
