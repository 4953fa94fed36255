"""Densities with gamma functions in float32, value and gradient, against float64."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import likelihoods
from pyro_vae.likelihoods.counts import LogNegativeBinomial, StablePoisson
from pyro_vae.likelihoods.real import StableStudentT
from pyro_vae.likelihoods.unit import StableBeta

SIZES = [1e-3, 0.3, 5.0, 9.9, 10.1, 300.0, 1e4, 1e6]


def counts(mean):
    spread = math.sqrt(mean)
    return torch.tensor([0, 1, 2, mean, mean + spread, mean - 3 * spread, 1.3 * mean, 10 * mean]).round().clamp(min=0)


def close(distribution, exact, x, *parameters):
    """Compare log-probabilities, and gradients for the parameters, with those of float64."""
    wide = [part.detach().double().requires_grad_() for part in parameters]
    value, right = distribution(*parameters).log_prob(x), exact(*wide).log_prob(x.double())
    torch.testing.assert_close(value.double(), right, rtol=3e-6, atol=1e-4)
    slopes = torch.autograd.grad(value.sum(), parameters), torch.autograd.grad(right.sum(), wide)
    for slope, other in zip(*slopes, strict=True):
        torch.testing.assert_close(slope.double(), other, rtol=1e-3, atol=1e-6 * (1 + x.abs().max().item()))


@pytest.mark.parametrize("mean", SIZES)
def test_poisson(mean):
    log_rate = torch.tensor(math.log(mean), requires_grad=True)
    close(lambda a: StablePoisson(a.exp()), lambda a: dist.Poisson(a.exp()), counts(mean), log_rate)


@pytest.mark.parametrize("r", [*SIZES, 1e7])
@pytest.mark.parametrize("mean", SIZES)
def test_negative_binomial(mean, r):
    parts = [torch.tensor(math.log(size), requires_grad=True) for size in (mean, r)]
    close(LogNegativeBinomial, lambda a, b: dist.NegativeBinomial(b.exp(), logits=a - b), counts(mean), *parts)


@pytest.mark.parametrize("r", [1e3, 1e5, 1e6])
def test_slope_of_a_large_dispersion(r):
    r"""At large r the mass is the Poisson's times :math:`1 + ((x - m)^2 - x) / 2 r`."""
    log_r, x, mean = torch.tensor(math.log(r), requires_grad=True), torch.tensor([2.0, 5.0, 12.0]), 5.0
    for value in x:
        (slope,) = torch.autograd.grad(LogNegativeBinomial(torch.tensor(mean).log(), log_r).log_prob(value), log_r)
        assert slope.item() == pytest.approx(-((value - mean) ** 2 - value).item() / (2 * r), rel=0.05)


@pytest.mark.parametrize("total", [1e-2, 2.0, 30.0, 1e4, 1e6])
@pytest.mark.parametrize("mean", [0.01, 0.5, 0.999])
def test_beta(mean, total):
    ones, zeros = (torch.tensor(part * total, requires_grad=True) for part in (mean, 1 - mean))
    spread = math.sqrt(mean * (1 - mean) / (1 + total))
    x = torch.tensor([mean, mean + spread / 2, mean - spread / 2, 0.2, 0.9]).clamp(1e-3, 1 - 1e-3)
    close(StableBeta, dist.Beta, x, ones, zeros)


@pytest.mark.parametrize("df", [1.1, 2.0, 5.0, 30.0, 1e4, 1e6, 1e8])
def test_student(df):
    loc, scale = torch.tensor(0.3, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    x = torch.tensor([0.0, 1.0, 3.0, 30.0])
    close(lambda *a: StableStudentT(df, *a), lambda *a: dist.StudentT(torch.tensor(df).double(), *a), x, loc, scale)


def test_mean_and_variance_of_overdispersed_counts():
    """20,000 draws: a mean within 5 standard errors, a variance within 10 %; fails once in 10^6."""
    distribution = LogNegativeBinomial(torch.tensor(3.0).log(), torch.tensor(2.0).log())
    draws = distribution.expand((20_000,)).sample()
    assert distribution.mean.item() == pytest.approx(3)
    assert distribution.variance.item() == pytest.approx(3 + 9 / 2)
    assert abs(draws.mean().item() - 3) < 5 * math.sqrt(7.5 / 20_000)
    assert draws.var().item() == pytest.approx(7.5, rel=0.1)


@pytest.mark.parametrize(
    ("part", "distribution"),
    [
        (likelihoods.Poisson, StablePoisson),
        (likelihoods.NegativeBinomial, LogNegativeBinomial),
        (likelihoods.Beta, StableBeta),
        (likelihoods.StudentT, StableStudentT),
    ],
)
def test_likelihoods_have_these_laws(part, distribution):
    family = part((3,))
    assert isinstance(family(torch.zeros(1, family.params, 3)).base_dist, distribution)
