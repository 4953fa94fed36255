"""The contract over likelihoods: a new member is one line here. That over priors and guides is in test_priors.py."""

import inspect
import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch

from pyro_vae import likelihoods
from pyro_vae.data.supports import of_element

EVENT = (2, 3)
LIKELIHOODS = {
    "Gaussian, learned": likelihoods.Gaussian,
    "Gaussian, fixed": partial(likelihoods.Gaussian, scale=0.5),
    "Gaussian, per pixel": partial(likelihoods.Gaussian, scale="per-pixel"),
    "Gaussian, optimal": partial(likelihoods.Gaussian, scale="optimal"),
    "Laplace, learned": likelihoods.Laplace,
    "Laplace, fixed": partial(likelihoods.Laplace, scale=0.5),
    "StudentT, learned": likelihoods.StudentT,
    "StudentT, fixed": partial(likelihoods.StudentT, df=3.0, scale=0.5),
    "Bernoulli": likelihoods.Bernoulli,
    "ContinuousBernoulli": likelihoods.ContinuousBernoulli,
    "Beta": likelihoods.Beta,
    "Categorical": likelihoods.Categorical,
    "DiscretizedLogistic": likelihoods.DiscretizedLogistic,
    "DiscretizedLogisticMixture": likelihoods.DiscretizedLogisticMixture,
    "Poisson": likelihoods.Poisson,
    "NegativeBinomial": likelihoods.NegativeBinomial,
}
FAMILIES = {name: partial(part, EVENT) for name, part in LIKELIHOODS.items()}


def test_every_member_is_in_the_contract():
    assert {getattr(part, "func", part) for part in LIKELIHOODS.values()} == {
        getattr(likelihoods, name) for name in likelihoods.__all__
    }


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
class TestFamilies:
    def test_shapes_under_plates(self, family):
        made = family()
        distribution = made(torch.randn(5, 7, made.params, *made.event))
        x = distribution.sample()
        assert x.shape == (5, 7, *made.event)
        assert distribution.log_prob(x).shape == (5, 7)
        assert distribution.support.check(x).all()

    def test_every_parameter_gets_a_gradient(self, family):
        made = family()
        phi = torch.randn(32, made.params, *made.event, requires_grad=True)
        distribution = made(phi)
        distribution.log_prob(distribution.sample()).sum().backward()
        for gradient in (*(value.grad for value in made.parameters()), *phi.grad.movedim(1, 0)):
            assert gradient.isfinite().all()
            assert gradient.any()

    def test_outside_the_support_raises(self, family):
        made = family()
        distribution = made(torch.zeros(1, made.params, *made.event))
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(torch.full(made.event, float("nan")))


# By the distribution's support: what x is not in it, and what x is at its ends.
OUTSIDE = {
    "Real()": [math.nan],
    "Boolean()": [0.5, 2.0, -1.0],
    "Interval(lower_bound=0.0, upper_bound=1.0)": [-0.01, 1.01],
    "OpenUnitInterval()": [0.0, 1.0],
    "Levels(256)": [0.5, 256 / 255, -1 / 255],
    "IntegerGreaterThan(lower_bound=0)": [1.5, -1.0],
}
ENDS = {
    "Real()": [-3.0, 0.0, 3.0],
    "Boolean()": [0.0, 1.0],
    "Interval(lower_bound=0.0, upper_bound=1.0)": [0.0, 1.0],
    "OpenUnitInterval()": [2**-24, 0.5, 1 - 2**-24],
    "Levels(256)": [0.0, 1 / 255, 1.0],
    "IntegerGreaterThan(lower_bound=0)": [0.0, 1.0, 1000.0],
}
# Every x of a mass, up to where next to nothing is left; and a density's, by tanh-sinh quadrature: points and weights.
EVERY = {
    "Boolean()": torch.arange(2.0, dtype=torch.float64),
    "Levels(256)": torch.arange(256.0, dtype=torch.float64) / 255,
    "IntegerGreaterThan(lower_bound=0)": torch.arange(5000.0, dtype=torch.float64),
}
STEP = torch.linspace(-3.4, 3.4, 6801, dtype=torch.float64)
BENT = math.pi / 2 * STEP.sinh()
WEIGHT = (STEP[1] - STEP[0]) * math.pi / 2 * STEP.cosh()
UNIT = BENT.mul(2).sigmoid(), WEIGHT / 2 / BENT.cosh() ** 2
POINTS = {
    "Real()": (BENT.sinh(), WEIGHT * BENT.cosh()),
    "Interval(lower_bound=0.0, upper_bound=1.0)": UNIT,
    "OpenUnitInterval()": UNIT,
}
DRAWS = 20_000


def kind(distribution):
    """The support of each element, in words."""
    return str(of_element(distribution.support))


def elements(part, draw=torch.randn, count=5):
    """Return a distribution of a few elements in float64 at random parameters, with no event declared, and these."""
    made = part(count).double().eval()
    phi = draw(made.params, count, dtype=torch.float64)
    return made(phi).base_dist, phi


@pytest.mark.parametrize("part", LIKELIHOODS.values(), ids=LIKELIHOODS)
class TestLikelihoods:
    def test_it_says_its_support_and_its_kind(self, part):
        distribution = part(4)(torch.zeros(1, part(4).params, 4))
        said = inspect.getdoc(getattr(part, "func", part))
        assert ("mass" if distribution.support.is_discrete else "density") in said.split("Arguments:")[0]
        assert kind(distribution) in OUTSIDE

    def test_the_members_are_short(self, part):
        assert len(inspect.getsource(getattr(part, "func", part)).splitlines()) <= 50

    def test_it_is_elementwise(self, part):
        made = part(EVENT)
        distribution = made(torch.zeros(5, 7, made.params, *EVENT)).base_dist
        assert (distribution.batch_shape, distribution.event_shape) == ((5, 7, *EVENT), ())
        assert distribution.expand((3, 5, 7, *EVENT)).sample((2,)).shape == (2, 3, 5, 7, *EVENT)

    def test_x_outside_the_support_raises(self, part):
        made = part(4)
        distribution = made(torch.zeros(1, made.params, 4))
        for wrong in OUTSIDE[kind(distribution)]:
            x = distribution.sample()
            x[0, 2] = wrong
            for each in (distribution, distribution.expand((3, 1)), distribution.base_dist.expand((3, 4))):
                with pytest.raises(ValueError, match="support"):
                    each.log_prob(x)

    def test_extreme_parameters_have_finite_values_and_gradients(self, part):
        """In float32, all outputs of the network at 20 or -20, the ends of the support and draws as x."""
        made = part(1)
        signs = torch.randint(0, 2, (64, made.params, 1)) * 2.0 - 1
        signs[:4, 0, 0] = signs[2:6, -1, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
        phi = (20 * signs).requires_grad_()
        for x in (made(phi).sample(), *torch.tensor(ENDS[kind(made(phi))])):
            distribution = made(phi)
            assert distribution.support.check(x.expand(64, 1)).all()
            log_prob = distribution.log_prob(x.expand(64, 1))
            assert log_prob.isfinite().all()
            for gradient in torch.autograd.grad(log_prob.sum(), (phi, *made.parameters())):
                assert gradient.isfinite().all()

    def test_float32_is_near_float64(self, part):
        """In value and gradient, at draws; a Beta of much concentration is off by most, some 0.01 nats an element."""
        made, phi = part(200).eval(), 2 * torch.randn(part(200).params, 200)
        x, found = made(phi).sample(), []
        for dtype in (torch.float32, torch.float64):
            leaf = phi.to(dtype).requires_grad_()
            log_prob = made.to(dtype)(leaf).base_dist.log_prob(x.to(dtype))
            found.append((log_prob, *torch.autograd.grad(log_prob.sum(), leaf)))
        for single, double in zip(*found, strict=True):
            torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=0.02)

    def test_it_sums_or_integrates_to_one(self, part):
        """Masses over every x; densities by quadrature, which cannot come nearer to 1 than float64 does."""
        distribution, _ = elements(part)
        if distribution.support.is_discrete:
            total = distribution.log_prob(EVERY[kind(distribution)].unsqueeze(-1)).exp().sum(0)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-10)
        else:
            distribution, _ = elements(part, draw=lambda *shape, dtype: 1 + torch.rand(shape, dtype=dtype))
            x, weights = POINTS[kind(distribution)]
            inside = distribution.support.check(x)
            total = (distribution.log_prob(x[inside].unsqueeze(-1)).exp() * weights[inside].unsqueeze(-1)).sum(0)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-4)

    def test_draws_are_of_the_mass_or_density(self, part):
        """Chi-square of 20,000 draws for each of 5 elements, p below 1e-7: fails once in 2 million runs.

        Cells are the values of a mass, those expected less than 5 times in one; for a density, cells between quantiles
        of other draws, with probabilities by Gauss-Legendre quadrature, and what is left in a last cell.
        """
        distribution, _ = elements(part)
        draws = distribution.sample((DRAWS,))
        for i in range(draws.shape[1]):
            if distribution.support.is_discrete:
                every = EVERY[kind(distribution)]
                p = distribution.log_prob(every.unsqueeze(-1))[:, i].exp()
                edges = (every[1:] + every[:-1]) / 2
            else:
                edges = distribution.sample((400,))[:, i].sort().values[20::20].contiguous()
                nodes, weights = map(torch.as_tensor, np.polynomial.legendre.leggauss(200))
                half, middle = edges.diff() / 2, (edges[1:] + edges[:-1]) / 2
                x = middle + half * nodes.unsqueeze(-1)
                at = distribution.log_prob(x.reshape(-1, 1))[:, i].reshape(x.shape).exp()
                p = (at * half * weights.unsqueeze(-1)).sum(0)
                p = torch.cat([torch.zeros(1), p, torch.zeros(1)])  # the tails are what is left
            found = torch.bucketize(draws[:, i].contiguous(), edges).bincount(minlength=len(edges) + 1)
            many = p * DRAWS >= 5
            p, found = p[many], found[many].double()
            p, found = torch.cat([p, 1 - p.sum(0, True)]), torch.cat([found, DRAWS - found.sum(0, True)])
            seldom = p * DRAWS < 0.01
            assert found[seldom].sum() < 5
            p, found = p[~seldom], found[~seldom]
            statistic = ((found - DRAWS * p) ** 2 / (DRAWS * p)).sum().item()
            assert scipy.stats.chi2(max(len(p) - 1, 1)).sf(statistic) > 1e-7

    def test_the_mean_is_that_of_draws(self, part):
        """z-test of 20,000 draws for each of 5 elements at 5.5 standard errors: fails once in 5 million runs."""
        distribution, _ = elements(part)
        draws = distribution.sample((DRAWS,))
        error = draws.std(0) / DRAWS**0.5
        assert ((draws.mean(0) - distribution.mean).abs() <= 5.5 * error + 1e-12).all()

    def test_dtype_and_device_follow_the_module(self, part, device):
        made = part(4).double().to(device)
        distribution = made(torch.zeros(3, made.params, 4, dtype=torch.float64, device=device))
        for value in (distribution.sample(), distribution.mean, distribution.log_prob(distribution.sample())):
            assert (value.dtype, value.device.type) == (torch.float64, device)


# What scipy has, from the network's outputs: of learned scales and dispersions as they start.
SCIPY = {
    "Gaussian, learned": lambda loc: scipy.stats.norm(loc, 0.1),
    "Gaussian, fixed": lambda loc: scipy.stats.norm(loc, 0.5),
    "Gaussian, per pixel": lambda loc, a: scipy.stats.norm(loc, np.exp(np.logaddexp(a + 6, 0) - 6)),
    "Gaussian, optimal": lambda loc: scipy.stats.norm(loc, 0.1),
    "Laplace, learned": lambda loc: scipy.stats.laplace(loc, 0.1),
    "Laplace, fixed": lambda loc: scipy.stats.laplace(loc, 0.5),
    "StudentT, learned": lambda loc: scipy.stats.t(5, loc, 0.1),
    "StudentT, fixed": lambda loc: scipy.stats.t(3, loc, 0.5),
    "Bernoulli": lambda a: scipy.stats.bernoulli(scipy.special.expit(a)),
    "Beta": lambda a, b: scipy.stats.beta(
        scipy.special.expit(a) * concentration(b), scipy.special.expit(-a) * concentration(b)
    ),
    "Poisson": lambda a: scipy.stats.poisson(np.exp(a)),
    "NegativeBinomial": lambda a: scipy.stats.nbinom(1, 1 / (1 + np.exp(a))),
}


def concentration(b):
    return np.exp(np.log(1e4) - np.logaddexp(np.log(1e4) - b, 0))


@pytest.mark.parametrize("name", SCIPY)
def test_it_is_scipys(name, float64):
    distribution, phi = elements(LIKELIHOODS[name])
    theirs, x = SCIPY[name](*phi.numpy()), distribution.sample((7,))
    log_prob = theirs.logpmf if distribution.support.is_discrete else theirs.logpdf
    torch.testing.assert_close(distribution.log_prob(x), torch.as_tensor(log_prob(x.numpy())), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(distribution.mean, torch.as_tensor(theirs.mean()), rtol=1e-7, atol=1e-7)


LINKED = {name: family for name, family in FAMILIES.items() if family().link}


@pytest.mark.parametrize("family", LINKED.values(), ids=LINKED)
def test_a_link_gives_the_mean(family):
    made = family()
    mean = torch.rand(made.event) * 0.8 + 0.1
    phi = torch.zeros(made.params, *made.event)
    phi[0] = made.link(mean)
    torch.testing.assert_close(made(phi).mean, mean)
