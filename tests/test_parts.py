"""Contracts over the members of the rooms priors, likelihoods and guides: a new member is one line here."""

from functools import partial

import pytest
import scipy.stats
import torch

from pyro_vae import guides, likelihoods, priors

EVENT = (2, 3)
PRIORS = {"StandardNormal": priors.StandardNormal}
LIKELIHOODS = {
    "Gaussian, learned": likelihoods.Gaussian,
    "Gaussian, fixed": partial(likelihoods.Gaussian, scale=0.5),
    "Bernoulli": likelihoods.Bernoulli,
}
GUIDES = {"DiagonalNormal": guides.DiagonalNormal}
FAMILIES = {name: partial(part, EVENT) for name, part in LIKELIHOODS.items()} | {
    name: partial(part, 4) for name, part in GUIDES.items()
}


@pytest.mark.parametrize("room", [priors, likelihoods, guides], ids=lambda room: room.__name__)
def test_every_member_is_in_a_contract(room):
    made = {**PRIORS, **LIKELIHOODS, **GUIDES}.values()
    assert {getattr(part, "func", part) for part in made} >= {getattr(room, name) for name in room.__all__}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
class TestPriors:
    def test_shapes_under_plates(self, prior):
        law = prior(4)()
        assert law.event_shape == (4,)
        z = law.expand((7,)).sample((5,))
        assert z.shape == (5, 7, 4)
        assert law.log_prob(z).shape == (5, 7)

    def test_every_parameter_gets_a_gradient(self, prior):
        module = prior(4)
        z = torch.randn(32, 4)
        if list(module.parameters()):
            module().log_prob(z).sum().backward()
        assert all(parameter.grad.any() for parameter in module.parameters())

    def test_the_density_integrates_to_one(self, prior):
        """By importance sampling from a wide Student's t, 1e5 draws: fails once in 1e6 runs, at 5 standard errors."""
        proposal = torch.distributions.StudentT(3.0, 0.0, 2.0).expand((2,))
        z = proposal.sample((100_000,))
        ratio = (prior(2)().log_prob(z) - proposal.log_prob(z).sum(-1)).exp()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5

    def test_dtype_follows_the_module(self, prior):
        assert prior(4).double()().sample().dtype == torch.float64


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
class TestFamilies:
    def test_shapes_under_plates(self, family):
        made = family()
        law = made(torch.randn(5, 7, made.params, *made.event))
        x = law.sample()
        assert x.shape == (5, 7, *made.event)
        assert law.log_prob(x).shape == (5, 7)
        assert law.support.check(x).all()

    def test_every_parameter_gets_a_gradient(self, family):
        made = family()
        phi = torch.randn(32, made.params, *made.event, requires_grad=True)
        law = made(phi)
        law.log_prob(law.sample()).sum().backward()
        for value in (phi, *made.parameters()):
            assert value.grad.isfinite().all()
            assert value.grad.any()

    def test_outside_the_support_raises(self, family):
        made = family()
        law = made(torch.zeros(1, made.params, *made.event))
        with pytest.raises(ValueError, match="support"):
            law.log_prob(torch.full(made.event, float("nan")))


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_guides_are_reparameterised(guide):
    family = guide(4)
    phi = torch.randn(6, family.params, 4, requires_grad=True)
    law = family(phi)
    assert law.has_rsample
    law.rsample().sum().backward()
    assert phi.grad.any()


def test_gaussian_is_scipys(float64):
    loc, x = torch.randn(3, *EVENT), torch.randn(3, *EVENT)
    expected = scipy.stats.norm(loc, 0.3).logpdf(x).sum((1, 2))
    found = likelihoods.Gaussian(EVENT, scale=0.3)(loc.unsqueeze(1)).log_prob(x)
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-12)


def test_bernoulli_is_scipys(float64):
    logits, x = torch.randn(3, *EVENT), torch.randint(2, (3, *EVENT)).double()
    expected = scipy.stats.bernoulli(logits.sigmoid()).logpmf(x).sum((1, 2))
    found = likelihoods.Bernoulli(EVENT)(logits.unsqueeze(1)).log_prob(x)
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-12)


def test_grey_pixels_are_not_binary():
    with pytest.raises(ValueError, match="support"):
        likelihoods.Bernoulli(4)(torch.zeros(1, 4)).log_prob(torch.full((4,), 0.5))


@pytest.mark.parametrize("scale", [0, -1.0, float("inf"), float("nan")])
def test_a_scale_is_positive(scale):
    with pytest.raises(ValueError, match="positive scale, or 'learned'; got"):
        likelihoods.Gaussian(4, scale=scale)


def test_a_fixed_scale_is_not_trained_and_a_learned_one_is():
    assert not list(likelihoods.Gaussian(4, scale=0.5).parameters())
    assert [name for name, _ in likelihoods.Gaussian(4).named_parameters()] == ["log_scale"]


LINKED = {name: family for name, family in FAMILIES.items() if family().link}


@pytest.mark.parametrize("family", LINKED.values(), ids=LINKED)
def test_a_link_gives_the_mean(family):
    made = family()
    mean = torch.rand(made.event) * 0.8 + 0.1
    phi = torch.zeros(made.params, *made.event)
    phi[0] = made.link(mean)
    torch.testing.assert_close(made(phi).mean, mean)
