"""The closed forms of the linear-Gaussian VAE, each against another way to the same number.

Monte Carlo means are compared by z-tests at 5 standard errors: each number fails once in 300,000 runs.
"""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pyro_vae import evaluate
from pyro_vae.objectives import ELBO, IWAE
from pyro_vae.oracle import LinearGaussian


@pytest.fixture
def model(float64):
    return LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)


@pytest.fixture
def data(float64):
    return torch.randn(500, 6) @ torch.randn(6, 6) + torch.randn(6)


def full(q):
    """A diagonal Gaussian as one with a covariance matrix."""
    return MultivariateNormal(q.mean, q.variance.diag_embed())


class TestEvidence:
    def test_is_the_marginal_gaussians(self, model):
        x = torch.randn(5, 6)
        covariance = model.weight @ model.weight.T + 0.49 * torch.eye(6)
        expected = MultivariateNormal(model.bias, covariance).log_prob(x)
        torch.testing.assert_close(model.log_evidence(x), expected, rtol=0, atol=1e-10)

    def test_by_the_matrix_of_the_latent_space(self, model):
        """log|C| = (d - k) log s^2 + log|M|, C^-1 = (I - W M^-1 W^T) / s^2."""
        x, w, s2 = torch.randn(5, 6), model.weight, 0.49
        m = w.T @ w + s2 * torch.eye(3)
        r = x - model.bias
        inverse = (torch.eye(6) - w @ torch.linalg.solve(m, w.T)) / s2
        log_det = (6 - 3) * math.log(s2) + m.logdet()
        expected = -0.5 * (6 * math.log(2 * math.pi) + log_det + torch.einsum("bi,ij,bj->b", r, inverse, r))
        torch.testing.assert_close(model.log_evidence(x), expected, rtol=0, atol=1e-10)

    def test_bayes_rule(self, model):
        """log p(x) = log p(z) + log p(x | z) - log p(z | x), at any z."""
        x, z = torch.randn(5, 6), torch.randn(5, 3)
        vae = model.vae()
        right = vae.prior().log_prob(z) + vae.decoder(z).log_prob(x) - model.posterior(x).log_prob(z)
        torch.testing.assert_close(model.log_evidence(x), right, rtol=0, atol=1e-10)

    def test_posterior(self, model):
        x, w = torch.randn(5, 6), model.weight
        m = w.T @ w + 0.49 * torch.eye(3)
        posterior = model.posterior(x)
        torch.testing.assert_close(posterior.mean, (x - model.bias) @ w @ m.inverse(), rtol=0, atol=1e-10)
        torch.testing.assert_close(posterior.covariance_matrix[0], 0.49 * m.inverse(), rtol=0, atol=1e-10)


class TestMaximumLikelihood:
    def test_mean_log_likelihood(self, data):
        """-1/2 [d log 2 pi + sum of the first k log eigenvalues + (d - k) log s^2 + d]."""
        found = LinearGaussian.maximum_likelihood(data, latent=2)
        values = torch.linalg.eigvalsh(data.T.cov(correction=0)).flip(0)
        s2 = values[2:].mean()
        expected = -0.5 * (6 * math.log(2 * math.pi) + values[:2].log().sum() + 4 * s2.log() + 6)
        assert found.log_evidence(data).mean().item() == pytest.approx(expected.item(), abs=1e-10)
        assert found.scale == pytest.approx(s2.sqrt().item(), abs=1e-12)

    def test_is_a_maximum(self, data):
        found = LinearGaussian.maximum_likelihood(data, latent=2)
        weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
        LinearGaussian(weight, bias, found.scale).log_evidence(data).mean().backward()
        assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-10
        best = found.log_evidence(data).mean()
        for _ in range(100):
            near = LinearGaussian(
                found.weight + 0.05 * torch.randn(6, 2),
                found.bias + 0.05 * torch.randn(6),
                found.scale * math.exp(0.05 * torch.randn(()).item()),
            )
            assert near.log_evidence(data).mean() < best

    def test_its_best_diagonal_guide_is_exact(self, data):
        found = LinearGaussian.maximum_likelihood(data, latent=3)
        torch.testing.assert_close(found.elbo(data, "mean-field"), found.log_evidence(data), rtol=0, atol=1e-10)

    def test_training_a_linear_vae_comes_to_it(self, data, param_store):
        """SVI from a start off the optimum, decoder and guide both trained: the ELBO's maximum is the likelihood's."""
        best = LinearGaussian.maximum_likelihood(data, latent=2)
        off = LinearGaussian(best.weight + 0.3 * torch.randn(6, 2), best.bias + 0.3, best.scale)
        vae = off.vae("mean-field")
        svi = SVI(vae.model, vae.guide, Adam({"lr": 0.03}), ELBO(3, gradient="stl"))
        for _ in range(220):
            svi.step(data)
        assert off.log_evidence(data).mean() < best.log_evidence(data).mean() - 0.1
        assert vae.decoder.log_evidence(data).mean().item() == pytest.approx(
            best.log_evidence(data).mean().item(), abs=0.02
        )


class TestELBO:
    def test_of_any_linear_gaussian_guide(self, model):
        """-d/2 log 2 pi s^2 - [tr(W D W^T) + |(WV - I)(x - b)|^2] / 2 s^2 - 1/2 [tr D - log|D| + |V(x - b)|^2 - k]."""
        x, v, d = torch.randn(5, 6), torch.randn(3, 6), torch.rand(3) + 0.1
        r, w, s2 = x - model.bias, model.weight, 0.49
        reconstruction = (w @ d.diag() @ w.T).trace() + (r @ (w @ v - torch.eye(6)).T).square().sum(-1)
        kl = 0.5 * (d.sum() - d.log().sum() + (r @ v.T).square().sum(-1) - 3)
        expected = -3 * math.log(2 * math.pi * s2) - reconstruction / (2 * s2) - kl
        q = torch.distributions.Independent(Normal(r @ v.T, d.sqrt().expand(5, 3)), 1)
        torch.testing.assert_close(model.elbo(x, q), expected, rtol=0, atol=1e-10)

    def test_is_the_evidence_less_the_divergence_from_the_posterior(self, model):
        x = torch.randn(5, 6)
        tril = torch.randn(3, 3).tril(-1) + torch.rand(3).diag() + 0.2 * torch.eye(3)
        q = MultivariateNormal(torch.randn(5, 3), scale_tril=tril)
        p = MultivariateNormal(model.posterior(x).mean, model.posterior(x).covariance_matrix)
        torch.testing.assert_close(model.elbo(x, q), model.log_evidence(x) - kl_divergence(q, p), rtol=0, atol=1e-10)
        torch.testing.assert_close(model.elbo(x, p), model.elbo(x, "exact"), rtol=0, atol=1e-10)
        torch.testing.assert_close(model.elbo(x, model.mean_field(x)), model.elbo(x), rtol=0, atol=1e-10)

    def test_the_mean_field_gap_is_the_same_for_every_x(self, model):
        """1/2 [sum of log M_ii - log|M|]; zero exactly where the columns of W are orthogonal."""
        x, m = torch.randn(5, 6), model.weight.T @ model.weight + 0.49 * torch.eye(3)
        gap = 0.5 * (m.diagonal().log().sum() - m.logdet())
        torch.testing.assert_close(model.log_evidence(x) - model.elbo(x), gap.expand(5), rtol=0, atol=1e-10)
        assert gap > 0.01
        orthogonal = LinearGaussian(torch.linalg.qr(model.weight)[0] * torch.tensor([1.0, 2.0, 0.5]), model.bias, 0.7)
        torch.testing.assert_close(orthogonal.elbo(x), orthogonal.log_evidence(x), rtol=0, atol=1e-10)

    def test_of_the_estimator_is_this_on_average(self, model, param_store):
        """The approximation gap, and an amortisation gap of our own making; z-test at 5 standard errors."""
        vae, x = model.vae("mean-field"), torch.randn(4, 6)
        with torch.no_grad():
            vae.encoder.network.weight.add_(0.1 * torch.randn(3, 6))
            vae.encoder.network.rest.add_(0.3)
            exact = model.elbo(x, vae.encoder(x)).sum()
        assert exact < model.elbo(x).sum() - 0.1
        for objective in (ELBO(100), ELBO(100, kl="sampled")):
            found = torch.tensor([-objective.loss(vae.model, vae.guide, x) for _ in range(80)])
            assert abs(found.mean() - exact) < 5 * found.std() / math.sqrt(80)

    def test_no_diagonal_guide_is_better(self, model):
        """200 guides near the mean-field one are worse."""
        x = torch.randn(1, 6)
        q = model.mean_field(x)

        def elbo(shift, stretch):
            return model.elbo(x, torch.distributions.Independent(Normal(q.mean + shift, q.stddev * stretch.exp()), 1))

        assert (elbo(0.1 * torch.randn(200, 1, 3), 0.1 * torch.randn(200, 1, 3)) < model.elbo(x)).all()


class TestExactGuide:
    def test_every_weight_is_the_evidence(self, model):
        x = torch.randn(5, 6)
        log_w = evaluate.log_weights(model.vae("exact"), x, 11)
        for bound in (evaluate.elbo(log_w), evaluate.iwae(log_w), model.elbo(x, guide="exact")):
            torch.testing.assert_close(bound, model.log_evidence(x), rtol=0, atol=1e-10)
        torch.testing.assert_close(evaluate.ess(log_w), torch.full((5,), 11.0), rtol=1e-9, atol=0)

    def test_with_elements_missing_weights_come_to_the_evidence_of_the_others(self, float64):
        """A posterior about as wide as the prior: the bound of 4,000 draws is within 0.05 nats, 5 standard errors."""
        model, x = LinearGaussian(0.5 * torch.randn(6, 2), torch.randn(6), scale=1.0), torch.randn(4, 6)
        x[:, 4:] = float("nan")
        seen = LinearGaussian(model.weight[:4], model.bias[:4], model.scale)
        log_p = -evaluate.nll(model.vae("mean-field"), x, 4000, seed=0)
        torch.testing.assert_close(log_p, seen.log_evidence(x[:, :4]), rtol=0, atol=0.05)

    def test_has_parameters_of_its_own(self, model, param_store):
        x, before = torch.randn(5, 6), model.log_evidence(torch.zeros(1, 6))
        for guide in ("exact", "mean-field"):
            pyro.clear_param_store()
            vae = model.vae(guide)
            svi = SVI(vae.model, vae.guide, Adam({"lr": 0.1}), IWAE(5))
            start = [p.clone() for p in vae.parameters()]
            svi.step(x)
            assert all((old != new).any() for old, new in zip(start, vae.parameters(), strict=True))
        assert torch.equal(model.log_evidence(torch.zeros(1, 6)), before)


class TestCollapse:
    """Of the beta-ELBO with a fixed s: the optimum is that of noise beta s^2 (Lucas et al., 2019)."""

    s2 = 0.3

    def optimum(self, data, beta, latent=4):
        values, vectors = torch.linalg.eigh(data.T.cov(correction=0))
        values, vectors = values.flip(0)[:latent], vectors.flip(1)[:, :latent]
        weight = vectors * (values - beta * self.s2).clamp(min=0).sqrt()
        return values, weight, LinearGaussian(weight, data.mean(0), math.sqrt(beta * self.s2))

    def loss(self, data, weight, bias, q, beta):
        """Minus the beta-ELBO, from the ELBO's closed form at noise s^2 and the divergence's."""
        kl = kl_divergence(full(q), MultivariateNormal(torch.zeros(4), torch.eye(4)))
        return -(LinearGaussian(weight, bias, math.sqrt(self.s2)).elbo(data, q) + (1 - beta) * kl).mean()

    @pytest.mark.parametrize("beta", [0.25, 1.0, 4.0, 1e6])
    def test_active_units_and_rate(self, data, beta):
        values, weight, effective = self.optimum(data, beta)
        kl = kl_divergence(full(effective.mean_field(data)), MultivariateNormal(torch.zeros(4), torch.eye(4))).mean()
        active = values > beta * self.s2
        assert kl.item() == pytest.approx(0.5 * (values[active] / (beta * self.s2)).log().sum().item(), abs=1e-10)
        variance = effective.mean_field(data).mean.var(0, correction=0)
        assert (variance > 1e-12).sum() == active.sum()
        torch.testing.assert_close(variance, (1 - beta * self.s2 / values).clamp(min=0), rtol=0, atol=1e-10)
        assert 0 <= active.sum() <= 4

    @pytest.mark.parametrize("beta", [0.25, 1.0, 4.0])
    def test_it_is_the_optimum(self, data, beta):
        """The gradient of the beta-ELBO is zero there, and 100 near models with guides of their own are worse."""
        _, weight, effective = self.optimum(data, beta)
        q = effective.mean_field(data)
        best = self.loss(data, weight, data.mean(0), q, beta)
        moved = [t.detach().clone().requires_grad_() for t in (weight, data.mean(0), q.mean, q.stddev)]
        guide = torch.distributions.Independent(Normal(moved[2], moved[3]), 1)
        gradients = torch.autograd.grad(self.loss(data, moved[0], moved[1], guide, beta), moved)
        assert max(gradient.abs().max().item() for gradient in gradients) < 1e-9
        for _ in range(100):
            near = LinearGaussian(weight + 0.05 * torch.randn(6, 4), effective.bias, effective.scale)
            assert self.loss(data, near.weight, near.bias, near.mean_field(data), beta) > best

    def test_the_objective_has_that_optimum(self, data, param_store):
        """Our ELBO(beta)'s mean gradient at the optimum is zero for model and guide: z-tests at 5 standard errors."""
        _, weight, effective = self.optimum(data, 4.0)
        vae = effective.vae("mean-field")
        vae.decoder.scale = math.sqrt(self.s2)
        draws = []
        for _ in range(120):
            loss = ELBO(beta=4.0).differentiable_loss(vae.model, vae.guide, data)
            draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*vae.parameters()])]))
        gradient = torch.stack(draws)
        assert gradient.mean(0).abs().sub(5 * gradient.std(0) / math.sqrt(120) + 1e-8).max() < 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearGaussian(torch.zeros(3, 2), torch.zeros(2), 1.0), r"bias \(d,\); got \(3, 2\) and \(2,\)"),
        (lambda: LinearGaussian(torch.zeros(3, 2), torch.zeros(3), 0.0), "positive scale; got 0"),
        (lambda: LinearGaussian(torch.zeros(3, 2), torch.zeros(3), 1.0).vae("full"), "exact or mean-field; got 'full'"),
        (
            lambda: LinearGaussian(torch.zeros(3, 2), torch.zeros(3), 1.0).elbo(torch.zeros(1, 3), "full"),
            "exact, mean-field or a Gaussian; got 'full'",
        ),
        (lambda: LinearGaussian.maximum_likelihood(torch.zeros(9, 3), 3), "latent from 1 to 2.* got latent = 3"),
    ],
)
def test_bad_input_gets_a_sentence(build, message):
    with pytest.raises(ValueError, match=message):
        build()
