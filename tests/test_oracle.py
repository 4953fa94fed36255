import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_vae import evaluate
from pyro_vae.oracle import LinearGaussian


@pytest.fixture
def model(float64):
    return LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)


def test_the_evidence_is_the_marginal_gaussians(model):
    x = torch.randn(5, 6)
    covariance = model.weight @ model.weight.T + 0.49 * torch.eye(6)
    expected = MultivariateNormal(model.bias, covariance).log_prob(x)
    torch.testing.assert_close(model.log_evidence(x), expected, rtol=0, atol=1e-10)


def test_bayes_rule(model):
    """log p(x) = log p(z) + log p(x | z) - log p(z | x), at any z."""
    x, z = torch.randn(5, 6), torch.randn(5, 3)
    vae = model.vae()
    right = vae.prior().log_prob(z) + vae.decoder(z).log_prob(x) - model.posterior(x).log_prob(z)
    torch.testing.assert_close(model.log_evidence(x), right, rtol=0, atol=1e-10)


def test_with_the_exact_guide_every_weight_is_the_evidence(model):
    x = torch.randn(5, 6)
    log_w = evaluate.log_weights(model.vae("exact"), x, 11)
    for bound in (evaluate.elbo(log_w), evaluate.iwae(log_w), model.elbo(x, guide="exact")):
        torch.testing.assert_close(bound, model.log_evidence(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(evaluate.ess(log_w), torch.full((5,), 11.0), rtol=1e-9, atol=0)


def test_the_gap_of_the_mean_field_guide_is_its_divergence_from_the_posterior(model):
    x = torch.randn(5, 6)
    q, p = model.mean_field(x), model.posterior(x)
    gap = kl_divergence(
        MultivariateNormal(q.mean, q.variance.diag_embed()), MultivariateNormal(p.loc, p.covariance_matrix)
    )
    torch.testing.assert_close(model.log_evidence(x) - model.elbo(x), gap, rtol=0, atol=1e-10)


def test_no_diagonal_guide_is_better(model):
    """The gap's gradient in the log scales is zero at the mean-field guide, and 200 nearby guides are worse."""
    x = torch.randn(1, 6)
    q, p = model.mean_field(x), model.posterior(x)
    target = MultivariateNormal(p.loc, p.covariance_matrix)

    def gap(shift, stretch):
        scale = q.stddev * stretch.exp()
        return kl_divergence(MultivariateNormal(q.mean + shift, scale.square().diag_embed()), target)

    best = gap(torch.zeros(3), torch.zeros(3))
    worse = gap(0.1 * torch.randn(200, 1, 3), 0.1 * torch.randn(200, 1, 3))
    assert (worse > best).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearGaussian(torch.zeros(3, 2), torch.zeros(2), 1.0), r"bias \(d,\); got \(3, 2\) and \(2,\)"),
        (lambda: LinearGaussian(torch.zeros(3, 2), torch.zeros(3), 0.0), "positive scale; got 0"),
        (lambda: LinearGaussian(torch.zeros(3, 2), torch.zeros(3), 1.0).vae("full"), "exact or mean-field; got 'full'"),
    ],
)
def test_bad_input_gets_a_sentence(build, message):
    with pytest.raises(ValueError, match=message):
        build()
