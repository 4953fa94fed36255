"""The ELBO: the same as stock Pyro where stock Pyro is right, and right where it is not."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import (
    PROGRAMS,
    X,
    factor_analysis,
    hierarchical,
    local,
    mixture,
    value_and_gradients,
    without_closed_form,
)
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

from pyro_vae import VAE
from pyro_vae.objectives import ELBO
from pyro_vae.oracle import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64", "param_store")
DEPTH = {program: 2 if program is factor_analysis else 1 for program in PROGRAMS}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
class TestAgainstStockPyro:
    def same(self, ours, stock, program):
        (value, gradients), (expected, expected_gradients) = (
            value_and_gradients(loss, program) for loss in (ours, stock)
        )
        assert value == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-12)

    def test_sampled_is_trace_elbo(self, program):
        self.same(ELBO(kl="sampled"), Trace_ELBO(), program)

    def test_auto_is_the_mean_field_elbo(self, program):
        if program is mixture:
            with pytest.raises(NotImplementedError):
                value_and_gradients(TraceMeanField_ELBO(), program)
        else:
            self.same(ELBO(), TraceMeanField_ELBO(), program)

    def test_several_particles_are_the_vectorised_ones(self, program):
        stock = (Trace_ELBO if program is mixture else TraceMeanField_ELBO)(
            7, vectorize_particles=True, max_plate_nesting=DEPTH[program]
        )
        self.same(ELBO(7, kl="sampled" if program is mixture else "auto"), stock, program)

    def test_loss_is_the_value_and_differentiable_loss_its_gradient(self, program):
        model, guide = program()
        with torch.random.fork_rng():
            value, gradients = value_and_gradients(ELBO(), program)
            torch.manual_seed(3)
            assert ELBO().loss(model, guide, X) == pytest.approx(value, rel=1e-12)
            torch.manual_seed(3)
            loss = ELBO().differentiable_loss(model, guide, X)
            loss.backward()
        assert loss.item() == pytest.approx(value, rel=1e-12)
        found = {name: p.grad for name, p in pyro.get_param_store().named_parameters()}
        torch.testing.assert_close(found, gradients, rtol=1e-10, atol=1e-12)

    def test_the_closed_form_has_the_sampled_mean(self, program):
        """z-test at 5 standard errors on 150 losses of 50 particles each: fails once in 1.7 million runs."""
        model, guide = program()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            analytic = torch.tensor([ELBO(50).loss(model, guide, X) for _ in range(150)])
            stock = Trace_ELBO(50, vectorize_particles=True)
            sampled = torch.tensor([stock.loss(model, guide, X) for _ in range(150)])
        error = ((analytic.var() + sampled.var()) / 150).sqrt()
        assert abs(analytic.mean() - sampled.mean()) < 5 * error


class TestReport:
    def test_says_analytic_and_the_nats(self):
        model, guide = local()
        found = ELBO().report(model, guide, X)
        q = dist.Normal(0.3 * X, 0.4)
        exact = 0.5 * (q.variance + q.mean**2 - 1 - q.variance.log()).sum()
        assert found["z"].kind == "analytic"
        assert found["z"].nats == pytest.approx(exact.item(), rel=1e-12)

    def test_says_sampled_and_why(self):
        found = ELBO().report(*without_closed_form(), X)["z"]
        assert found.kind == "sampled"
        assert found.reason == "none is known from Normal to StudentT"

    def test_has_a_line_for_each_site(self):
        found = ELBO().report(*hierarchical(), X)
        assert {name: site.kind for name, site in found.items()} == {"mu": "analytic", "z": "analytic"}

    def test_is_at_beta_one_whatever_is_optimised(self):
        model, guide = local()
        assert ELBO(beta=7.0).report(model, guide, X) == ELBO().report(model, guide, X)

    def test_the_split_adds_up_to_the_elbo(self):
        model, guide = local()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            reconstruction, sites = ELBO(num_particles=5).split(model, guide, X)
            torch.manual_seed(0)
            assert ELBO(num_particles=5).loss(model, guide, X) == pytest.approx(sites["z"].nats - reconstruction)

    def test_leaves_an_auxiliary_site_sampled(self):
        model, guide = local()

        def with_auxiliary(x):
            pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            guide(x)

        found = ELBO().report(model, with_auxiliary, X)
        assert found["a"].kind == "sampled"
        assert found["z"].kind == "analytic"


class TestTraps:
    """Where stock Pyro is silent and wrong, or silent and different: each fact pinned, and ours beside it."""

    def test_beta_on_the_models_side_alone_is_obeyed(self):
        """TraceMeanField_ELBO ignores it; we do as Trace_ELBO, whose mean it has."""
        model, guide = local()

        def tempered(x):
            with pyro.plate("data", len(x)):
                with poutine.scale(scale=0.1):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        def loss(objective, model):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return objective.loss(model, guide, X)

        assert loss(TraceMeanField_ELBO(), tempered) == loss(TraceMeanField_ELBO(), model)
        assert loss(ELBO(), tempered) == pytest.approx(loss(Trace_ELBO(), tempered), rel=1e-12)
        assert loss(Trace_ELBO(), tempered) != loss(Trace_ELBO(), model)
        assert "differently" in ELBO().report(tempered, guide, X)["z"].reason

    def test_a_guide_that_draws_in_another_order_is_sampled(self):
        """p(b | a), q(a | b): KL(q(a | b) || p(a)) is right given b, KL(q(b) || p(b | a)) is not known before a."""

        def model(x):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x[0])

        def guide(x):
            b = pyro.sample("b", dist.Normal(0.5, 0.5))
            pyro.sample("a", dist.Normal(0.5 * b, 0.5))

        found = ELBO().report(model, guide, X)
        assert (found["a"].kind, found["b"].kind) == ("analytic", "sampled")
        assert found["b"].reason == "the guide draws it before a, which the model draws first"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ours = torch.tensor([ELBO().loss(model, guide, X) for _ in range(500)])
            stock = torch.tensor([Trace_ELBO().loss(model, guide, X) for _ in range(500)])
        assert abs(ours.mean() - stock.mean()) < 5 * ((ours.var() + stock.var()) / 500).sqrt()

    def test_pyros_renyi_bound_is_none_when_subsampled_and_ours_is_one(self):
        """Pyro's scale enters the log-sum-exp; the ELBO is linear in it, so ours stays above -log p(x)."""
        oracle = LinearGaussian(torch.randn(2, 1), torch.zeros(2), 0.5)
        vae, x = oracle.vae("mean-field"), torch.randn(10, 2)

        def model(x):
            with pyro.plate("data", 100, subsample=torch.arange(10)):
                z = pyro.sample("z", vae.prior().expand([10]))
                pyro.sample("x", vae.decoder(z), obs=x)

        def guide(x):
            with pyro.plate("data", 100, subsample=torch.arange(10)):
                pyro.sample("z", dist.Normal(vae.encoder(x).mean, 3 * vae.encoder(x).stddev).to_event(1))

        exact = -10 * oracle.log_evidence(x).sum().item()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pyros = RenyiELBO(alpha=0, num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
            assert pyros.loss(model, guide, x) < exact
            assert ELBO(1000).loss(model, guide, x) > exact


class TestBeta:
    def test_weighs_the_divergence_and_nothing_else(self):
        vae = VAE.build((3,), latent=2).double()
        x = torch.rand(5, 3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            reconstruction, sites = ELBO().split(vae.model, vae.guide, x)
            for beta in (0.0, 0.3, 1.0, 4.0):
                torch.manual_seed(0)
                found = ELBO(beta=beta).loss(vae.model, vae.guide, x)
                assert found == pytest.approx(beta * sites["z"].nats - reconstruction, rel=1e-10)

    def test_is_the_same_for_a_sampled_divergence(self):
        """Both sides are scaled: pinned against poutine.scale on both in stock Pyro."""
        model, guide = without_closed_form()

        def scaled_model(x):
            with pyro.plate("data", len(x)):
                with poutine.scale(scale=0.3):
                    z = pyro.sample("z", dist.StudentT(3.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        with torch.random.fork_rng():
            torch.manual_seed(0)
            ours = ELBO(beta=0.3).loss(model, guide, X)
            torch.manual_seed(0)
            assert ours == pytest.approx(Trace_ELBO().loss(scaled_model, poutine.scale(guide, scale=0.3), X))


def test_sites_without_rsample_keep_their_score_function():
    """A coin z in the guide: the gradient's mean is the exact one, by enumeration. z-test at 5 standard errors."""
    p_one, x = torch.tensor(0.3), torch.tensor(1.5)

    def model():
        z = pyro.sample("z", dist.Bernoulli(p_one))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    logit = torch.tensor(0.2, requires_grad=True)

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", logit)))

    q = logit.sigmoid()
    terms = [
        dist.Normal(float(k), 1.0).log_prob(x) + dist.Bernoulli(p_one).log_prob(torch.tensor(float(k))) for k in (0, 1)
    ]
    exact = -((1 - q) * (terms[0] - (1 - q).log()) + q * (terms[1] - q.log()))
    (expected,) = torch.autograd.grad(exact, logit)
    draws = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(1500):
            draws.append(torch.autograd.grad(ELBO().differentiable_loss(model, guide), pyro.param("logit"))[0])
    gradient = torch.stack(draws)
    assert abs(gradient.mean() - expected) < 5 * gradient.std() / len(gradient) ** 0.5


def test_it_is_a_module_as_other_elbos_are():
    vae = VAE.build((3,), latent=2).double()
    loss = ELBO()(vae.model, vae.guide)(torch.rand(5, 3))
    loss.backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_svi_steps_it():
    vae = VAE.build((3,), latent=2).double()
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), ELBO())
    x = torch.rand(64, 3)
    losses = [svi.step(x) for _ in range(50)]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(num_particles=0), "num_particles of at least 1; got 0"),
        (lambda: ELBO(kl="exact"), "kl to be auto, analytic or sampled; got 'exact'"),
        (lambda: ELBO(beta=-1.0), "finite beta of at least 0, or a schedule; got -1.0"),
        (lambda: ELBO(beta=float("nan")), "finite beta of at least 0, or a schedule; got nan"),
        (
            lambda: ELBO(kl="analytic").loss(*without_closed_form(), X),
            "closed form of the divergence at site 'z'; none is",
        ),
    ],
)
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
