"""Priors and guides: contracts over lists of constructors, and what each is in closed form."""

import copy
import inspect
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_vae import VAE, data, evaluate, fit, guides, likelihoods, load, networks, objectives, oracle, priors
from pyro_vae.conditional import Conditional, mean, stddev
from pyro_vae.flows import Mixture

EVENT = (1, 2, 3)
PRIORS = {
    "StandardNormal": priors.StandardNormal,
    "GaussianMixture": partial(priors.GaussianMixture, components=3),
    "VampPrior": partial(priors.VampPrior, components=3),
    "Flow, affine": partial(priors.Flow, layers=2),
    "Flow, spline": partial(priors.Flow, transform="spline", layers=2),
    "Flow, autoregressive": partial(priors.Flow, transform="autoregressive", layers=2),
    "Diffusion": partial(priors.Diffusion, hidden=(16, 16), steps=6),
}
GUIDES = {
    "DiagonalNormal": guides.DiagonalNormal,
    "FullNormal": guides.FullNormal,
    "LowRankNormal": guides.LowRankNormal,
    "Flow, coupling": guides.Flow,
    "Flow, autoregressive": partial(guides.Flow, transform="autoregressive"),
}


# In tests/test_vector_quantised.py.
OF_CODES = {priors.Autoregressive, priors.Independent, guides.VQ, guides.FSQ, guides.Quantiser}


@pytest.mark.parametrize(("room", "made"), [(priors, PRIORS), (guides, GUIDES)], ids=["priors", "guides"])
def test_every_member_is_in_a_contract(room, made):
    of_vectors = {getattr(room, name) for name in room.__all__} - OF_CODES
    assert {getattr(part, "func", part) for part in made.values()} == of_vectors


def built(prior=priors.StandardNormal, guide=guides.DiagonalNormal, latent=4, stir=True):
    """A VAE whose flows are as far from the identity as training may take them."""
    vae = VAE.build(EVENT, latent, prior, guide=guide, network=partial(networks.MLP, hidden=(8,)))
    for part in (vae.prior, vae.encoder.family):
        for net in getattr(part, "nets", ()) if stir else ():
            torch.nn.init.normal_(net.layers[-1].weight, std=0.3)
        if stir and isinstance(part, priors.Diffusion):
            torch.nn.init.normal_(part.velocity.outward.weight, std=0.1)
    return vae


@pytest.mark.parametrize("room", [priors, guides], ids=lambda room: room.__name__)
def test_the_members_are_short(room):
    for member in {getattr(room, name) for name in room.__all__} - OF_CODES:
        assert len(inspect.getsource(member).splitlines()) <= 50, member


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
class TestPriors:
    def test_shapes_under_plates(self, prior):
        distribution = built(prior).prior()
        assert distribution.event_shape == (4,)
        distribution = distribution.expand((5, 7))
        z = distribution.sample()
        assert z.shape == (5, 7, 4)
        assert distribution.log_prob(z).shape == (5, 7)
        assert distribution.log_prob(torch.zeros(4)).shape == (5, 7)

    def test_outside_the_support_raises(self, prior):
        with pytest.raises(ValueError, match="support"):
            built(prior).prior().log_prob(torch.full((7, 4), math.nan))

    def test_every_parameter_gets_a_gradient(self, prior):
        vae = built(prior, stir=False)
        if list(vae.prior.parameters()):
            vae.prior().log_prob(torch.randn(32, 4)).sum().backward()
        for name, parameter in vae.prior.named_parameters():
            assert parameter.grad.isfinite().all(), name
            starts_at_zero = name.startswith(("velocity.inward", "velocity.inner", "velocity.noise_level"))
            assert parameter.grad.any() or starts_at_zero, name  # before a weight that is zero, as in LoRA

    def test_the_density_integrates_to_one(self, prior):
        """By importance sampling from a wide Student's t, 1e5 draws: fails once in 1e6 runs, at 5 standard errors."""
        proposal = torch.distributions.StudentT(3.0, 0.0, 2.0).expand((2,))
        z = proposal.sample((100_000,))
        with torch.no_grad():
            ratio = (built(prior, latent=2).prior().log_prob(z) - proposal.log_prob(z).sum(-1)).exp()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5

    def test_draws_are_of_the_density(self, prior):
        """Four means under draws and under the density, 1e5 of each: 5 standard errors, once in 4e5 runs."""
        proposal = torch.distributions.StudentT(3.0, 0.0, 2.0).expand((2,))
        z = proposal.sample((100_000,))
        with torch.no_grad():
            distribution = built(prior, latent=2).prior()
            weight = (distribution.log_prob(z) - proposal.log_prob(z).sum(-1)).exp().unsqueeze(-1)
            drawn = distribution.sample((100_000,))

        def features(z):
            return torch.stack(
                [z[:, 0].tanh(), z[:, 1].tanh(), (z[:, 0] * z[:, 1]).tanh(), z.square().sum(-1).sin()], -1
            )

        ours, theirs = features(drawn), weight * features(z)
        error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()

    def test_dtype_follows_the_module(self, prior):
        distribution = built(prior).double().prior()
        z = distribution.sample((2,))
        assert z.dtype == distribution.log_prob(z).dtype == torch.float64

    def test_mean_and_spread_are_those_of_draws(self, prior):
        """2e4 draws of each: 5 standard errors of means, and a tenth in spreads."""
        with torch.no_grad():
            distribution = built(prior, stir=False).prior()
            drawn = distribution.sample((20_000,))
            found, spread = mean(distribution, 20_000), stddev(distribution, 20_000)
        assert ((found - drawn.mean(0)).abs() < 5 * 2**0.5 * drawn.std(0) / 20_000**0.5).all()
        torch.testing.assert_close(spread, drawn.std(0), rtol=0.1, atol=0)

    def test_may_be_copied_after_use(self, prior):
        vae = built(prior)
        distribution = vae.prior()  # it lives on, and what it remembers has a history
        distribution.log_prob(torch.randn(3, 4))
        other = copy.deepcopy(vae)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(1.0)
            z = torch.randn(9, 4)
            same = torch.equal(other.prior().log_prob(z), vae.prior().log_prob(z))
        assert same == (prior is priors.StandardNormal)

    def test_is_the_same_when_loaded(self, prior, tmp_path):
        x = torch.rand(40, *EVENT)
        vae = built(prior)
        fit(vae, x, epochs=1, run_dir=tmp_path / "run", progress=False)
        loaded, _ = load(tmp_path / "run")
        z = torch.randn(9, 4)
        assert torch.equal(loaded.prior().log_prob(z), vae.prior().log_prob(z))
        assert loaded.state_dict().keys() == vae.state_dict().keys()


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
class TestGuides:
    def test_shapes_under_plates(self, guide):
        distribution = built(guide=guide).encoder(torch.randn(7, *EVENT)).expand((5, 7))
        z = distribution.rsample()
        assert z.shape == (5, 7, 4)
        assert distribution.log_prob(z).shape == (5, 7)
        assert distribution.log_prob(z.detach().clone()).shape == (5, 7)

    def test_outside_the_support_raises(self, guide):
        distribution = built(guide=guide).encoder(torch.randn(7, *EVENT))
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(torch.full((7, 4), math.nan))

    def test_a_z_broadcasts_over_the_batch(self, guide, float64):
        distribution = built(guide=guide).encoder(torch.randn(7, *EVENT))
        z = torch.randn(3, 1, 4)
        found = distribution.log_prob(z)
        assert found.shape == (3, 7)
        torch.testing.assert_close(found, distribution.log_prob(z.expand(3, 7, 4).clone()), rtol=0, atol=1e-9)

    def test_the_density_of_a_draw_is_that_of_the_same_point(self, guide, float64):
        """What a transform remembers of a draw is what it computes afresh."""
        distribution = built(guide=guide).encoder(torch.randn(7, *EVENT))
        z = distribution.rsample((3,))
        torch.testing.assert_close(
            distribution.log_prob(z), distribution.log_prob(z.detach().clone()), rtol=0, atol=1e-8
        )

    def test_every_parameter_gets_a_gradient(self, guide):
        vae = built(guide=guide, stir=False)
        distribution = vae.encoder(torch.randn(32, *EVENT))
        z = distribution.rsample()
        (z.square().sum() + distribution.log_prob(z).sum()).backward()
        for name, parameter in vae.encoder.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    def test_the_density_integrates_to_one(self, guide):
        """By importance sampling from a wide Student's t, 1e5 draws: fails once in 1e6 runs, at 5 standard errors."""
        proposal = torch.distributions.StudentT(3.0, 0.0, 2.0).expand((2,))
        z = proposal.sample((100_000, 1))
        with torch.no_grad():
            distribution = built(guide=guide, latent=2).encoder(torch.randn(1, *EVENT))
            ratio = (distribution.log_prob(z) - proposal.log_prob(z).sum(-1)).exp()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5

    def test_draws_are_of_the_density(self, guide):
        """E[r(z) / q(z)] over draws of q is 1 for any narrower density r: 5 standard errors, once in 1e6 runs."""
        with torch.no_grad():
            distribution = built(guide=guide, latent=2).encoder(torch.randn(1, *EVENT))
            z = distribution.sample((100_000,))
            narrow = torch.distributions.Normal(z.mean(0), z.std(0) / 3)
            ratio = (narrow.log_prob(z).sum(-1) - distribution.log_prob(z)).exp()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5

    def test_dtype_follows_the_module(self, guide):
        distribution = built(guide=guide).double().encoder(torch.randn(7, *EVENT).double())
        z = distribution.rsample()
        assert z.dtype == distribution.log_prob(z.detach().clone()).dtype == torch.float64

    @pytest.mark.parametrize(
        "objective",
        [objectives.ELBO(gradient="stl"), objectives.IWAE(3, gradient="dreg"), objectives.ReweightedWakeSleep(3)],
        ids=["stl", "dreg", "wake-sleep"],
    )
    def test_every_gradient_estimator_has_its_density_at_any_point(self, guide, objective, param_store):
        vae = built(guide=guide)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
        assert math.isfinite(svi.step(torch.rand(5, *EVENT)))

    def test_stock_pyro_trains_it(self, guide, param_store):
        vae = built(guide=guide)
        svi = SVI(
            vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(num_particles=4, vectorize_particles=True)
        )
        x = torch.rand(64, *EVENT)
        losses = [svi.step(x) for _ in range(20)]
        assert sum(losses[-5:]) < sum(losses[:5])

    def test_what_is_drawn_of_a_vae(self, guide):
        """A mean that has no closed form is an average of draws."""
        vae, x = built(guide=guide), torch.rand(3, *EVENT)
        assert vae.reconstruct(x).shape == x.shape
        assert vae.interpolate(x, x, steps=4).shape == (3, 4, *EVENT)
        assert vae.traverse(x[0], steps=5).shape == (4, 5, *EVENT)


def test_one_standard_component_is_a_standard_normal(float64):
    mixture = priors.GaussianMixture(3, components=1)
    torch.nn.init.zeros_(mixture.loc)
    z = torch.randn(9, 3)
    torch.testing.assert_close(mixture().log_prob(z), priors.StandardNormal(3)().log_prob(z), rtol=0, atol=1e-12)


def test_a_mixture_is_the_sum_of_its_components(float64):
    mixture = priors.GaussianMixture(3, components=5)
    torch.nn.init.normal_(mixture.logits)
    torch.nn.init.normal_(mixture.log_scale)
    z, pi = torch.randn(9, 3), mixture.logits.softmax(0).detach().numpy()
    expected = sum(
        pi[k] * scipy.stats.norm(mixture.loc[k].detach(), mixture.log_scale[k].detach().exp()).pdf(z).prod(-1)
        for k in range(5)
    )
    torch.testing.assert_close(mixture().log_prob(z).exp(), torch.as_tensor(expected), rtol=1e-10, atol=0)


class TestVampPrior:
    @pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
    def test_is_the_mean_of_the_guide_at_its_pseudo_inputs(self, guide, float64):
        vae, z = built(partial(priors.VampPrior, components=3), guide), torch.randn(6, 5, 4)
        each = [vae.encoder(u.unsqueeze(0)).log_prob(z) for u in vae.prior.inputs]
        expected = torch.stack(each).logsumexp(0) - math.log(3)
        torch.testing.assert_close(vae.prior().log_prob(z), expected, rtol=0, atol=1e-8)

    @pytest.mark.parametrize("log_scale", [95.0, -95.0])
    @pytest.mark.parametrize("guide", [guides.DiagonalNormal, guides.FullNormal, guides.LowRankNormal])
    def test_a_component_that_no_z_comes_near_does_not_stop_training(self, guide, log_scale):
        """Its standard deviation is no float, and nothing calls it back; the others are as if it were not there."""
        family = guide(4)
        numbers = torch.zeros(2, family.params, 4)
        numbers[1, 1:2] = log_scale
        if guide is guides.FullNormal:
            numbers[1, 1:] = log_scale * torch.eye(4)
        distribution = Mixture(dist.Categorical(torch.ones(2)), family(numbers.requires_grad_()))
        z = torch.randn(3, 4)
        found = distribution.log_prob(z)
        torch.testing.assert_close(found, family(numbers[:1]).log_prob(z) - math.log(2), rtol=0, atol=1e-5)
        found.sum().backward()
        assert numbers.grad.isfinite().all()
        assert (numbers.grad[0] != 0).any()
        assert (numbers.grad[1] == 0).all()

    def test_shares_the_encoder_and_saves_it_once(self):
        vae = built(priors.VampPrior)
        vae.prior().log_prob(torch.randn(3, 4)).sum().backward()
        assert all(parameter.grad is not None for parameter in vae.encoder.parameters())
        assert [name for name in vae.state_dict() if name.startswith("prior")] == ["prior.inputs", "prior.started"]
        other = copy.deepcopy(vae)
        assert other.prior._encoder[0] is other.encoder

    def test_starts_at_training_images_once(self):
        digits = data.load("digits")
        vae = VAE.build(digits.event_shape, 2, partial(priors.VampPrior, components=2000))
        vae.prior.start_at(digits.train)
        assert torch.equal(vae.prior.inputs[:1437], digits.train[:])
        assert torch.equal(vae.prior.inputs[1437:], digits.train[:563])
        vae.prior.start_at(digits.test)
        assert torch.equal(vae.prior.inputs[:1437], digits.train[:])

    def test_fit_starts_it_and_goes_on_from_there(self):
        digits = data.load("digits")
        vae = VAE.build(digits.event_shape, 2, partial(priors.VampPrior, components=10))
        fit(vae, digits, epochs=1, lr=1e-6, progress=False)
        torch.testing.assert_close(vae.prior.inputs, digits.train[:10], rtol=0, atol=1e-3)

    def test_asks_for_an_encoder(self):
        with pytest.raises(ValueError, match="VampPrior with an encoder; got none. Use VAE.build"):
            priors.VampPrior(4)()


def linear(latent, guide, gain, loc, rows):
    """An encoder without hidden layers: means ``gain x + loc``, and the other parameters the same for each x."""
    encoder = Conditional(networks.MLP((gain.shape[1],), (guide(latent).params, latent), hidden=()), guide(latent))
    with torch.no_grad():
        encoder.network.layers[-1].weight.zero_()
        encoder.network.layers[-1].weight[:latent] = gain
        encoder.network.bias[0], encoder.network.bias[1:] = loc, rows
    return encoder


class TestFullNormal:
    def test_can_be_the_exact_posterior(self, float64):
        """Then every log-weight is log p(x): 1e-10, without Monte Carlo error."""
        model = oracle.LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)
        exact = model.vae(guide="exact")
        x = torch.randn(5, 6)
        origin = exact.encoder(torch.zeros(6))
        gain = torch.stack([exact.encoder(e).mean - origin.mean for e in torch.eye(6)], -1).detach()
        factor = origin.scale_tril.detach()
        rows = factor.tril(-1) + factor.diagonal().log().diag()
        vae = VAE(exact.prior, exact.decoder, linear(3, guides.FullNormal, gain, origin.mean.detach(), rows))
        log_w = evaluate.log_weights(vae, x, 50)
        torch.testing.assert_close(log_w, model.log_evidence(x).expand(50, 5), rtol=0, atol=1e-10)

    def test_is_scipys(self, float64):
        phi, z = torch.randn(4, 3), torch.randn(3)
        distribution = guides.FullNormal(3)(phi)
        factor = phi[1:].tril(-1) + phi[1:].diagonal().exp().diag()
        expected = scipy.stats.multivariate_normal(phi[0], factor @ factor.T).logpdf(z)
        assert distribution.log_prob(z).item() == pytest.approx(expected, abs=1e-10)

    def test_finds_the_correlation_that_a_diagonal_guide_cannot(self, float64):
        """Trained on the true model, its gap closes; the diagonal guide's goes to that of theory."""
        model = oracle.LinearGaussian(torch.tensor([[1.0, 0.8], [0.9, 1.1], [1.0, 1.0]]), torch.zeros(3), scale=0.5)
        x = torch.randn(500, 2) @ model.weight.T + 0.5 * torch.randn(500, 3)
        gaps = {}
        for guide in (guides.DiagonalNormal, guides.FullNormal):
            encoder = Conditional(networks.MLP((3,), (guide(2).params, 2), hidden=()), guide(2))
            vae = VAE(priors.StandardNormal(2), model, encoder)
            fit(vae, x, objectives.ELBO(gradient="stl"), epochs=120, lr=0.2, lr_schedule="cosine", progress=False)
            log_w = evaluate.log_weights(vae, x, 200)
            gaps[guide] = (model.log_evidence(x) - evaluate.elbo(log_w)).mean().item()
        m = model.weight.T @ model.weight + 0.25 * torch.eye(2)
        theory = 0.5 * (m.diagonal().log().sum() - m.logdet()).item()
        assert gaps[guides.FullNormal] == pytest.approx(0, abs=0.01)
        assert gaps[guides.DiagonalNormal] == pytest.approx(theory, rel=0.05)
        assert theory > 0.3


def test_a_low_rank_guide_is_scipys(float64):
    phi, z = torch.randn(2 + 2, 3), torch.randn(3)
    distribution = guides.LowRankNormal(3, rank=2)(phi)
    covariance = phi[2:].T @ phi[2:] + (2 * phi[1]).exp().diag()
    expected = scipy.stats.multivariate_normal(phi[0], covariance).logpdf(z)
    assert distribution.log_prob(z).item() == pytest.approx(expected, abs=1e-10)


def test_a_flow_that_does_nothing_is_its_base(float64):
    family = guides.Flow(4)
    for net in family.nets:
        torch.nn.init.zeros_(net.layers[-1].weight)
    phi, z = torch.randn(7, 3, 4), torch.randn(7, 4)
    # Dimensions are reversed once, between the two transforms.
    expected = dist.Normal(phi[:, 0], phi[:, 1].exp()).to_event(1).log_prob(z.flip(-1))
    torch.testing.assert_close(family(phi).log_prob(z), expected, rtol=0, atol=1e-10)


BAD = {
    "no components": (lambda: priors.GaussianMixture(4, 0), "at least 1 component; got 0"),
    "no pseudo-inputs": (lambda: priors.VampPrior(4, 0), "at least 1 component; got 0"),
    "no layers": (lambda: priors.Flow(4, layers=0), "layers of at least 1; got 0"),
    "transform": (lambda: priors.Flow(4, "radial"), "one of affine, spline, autoregressive; got 'radial'"),
    "one dimension": (lambda: priors.Flow(1), "at least 2 latent dimensions for a flow; got 1. Use"),
    "rank": (lambda: guides.LowRankNormal(4, 0), "rank of at least 1; got 0. Use DiagonalNormal"),
    "guide's transform": (lambda: guides.Flow(4, "radial"), "one of coupling, autoregressive; got 'radial'"),
    "guide's layers": (lambda: guides.Flow(4, layers=0), "layers of at least 1; got 0"),
    "guide's dimension": (lambda: guides.Flow(1), "at least 2 latent dimensions for a flow; got 1. Use"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_get_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_traversal_goes_where_the_prior_is():
    vae = built(partial(priors.GaussianMixture, components=1), latent=2)
    vae.decoder = Conditional(torch.nn.Unflatten(-1, (1, 2)), likelihoods.Gaussian(2))
    layers = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Unflatten(-1, (2, 2)))
    vae.encoder = Conditional(layers, guides.DiagonalNormal(2))
    with torch.no_grad():
        vae.prior.loc.copy_(torch.tensor([[5.0, -1.0]]))
        vae.prior.log_scale.fill_(math.log(2.0))
    rows = vae.traverse(torch.rand(2), span=3, steps=3)
    torch.testing.assert_close(rows[0, :, 0], torch.tensor([-1.0, 5.0, 11.0]))
    torch.testing.assert_close(rows[1, :, 1], torch.tensor([-7.0, -1.0, 5.0]))
