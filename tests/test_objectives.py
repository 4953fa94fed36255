"""The ELBO: the same as stock Pyro where stock Pyro is right, and right where it is not; and what all objectives do."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from programs import (
    PROGRAMS,
    X,
    factor_analysis,
    hierarchical,
    local,
    mixture,
    subsampled,
    value_and_gradients,
    without_closed_form,
)
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

from pyro_vae import VAE, CompiledSVI, checkpoint, data, fit, networks
from pyro_vae.compiled.graph import Graph
from pyro_vae.objectives import ELBO, IWAE, MMD, Linear, Renyi, ReweightedWakeSleep, TotalCorrelation
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
        """z-test at 6 standard errors on 20 losses of 50 particles each: fails once in 100,000 runs."""
        model, guide = program()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            analytic = torch.tensor([ELBO(50).loss(model, guide, X) for _ in range(20)])
            stock = Trace_ELBO(50, vectorize_particles=True)
            sampled = torch.tensor([stock.loss(model, guide, X) for _ in range(20)])
        error = ((analytic.var() + sampled.var()) / 20).sqrt()
        assert abs(analytic.mean() - sampled.mean()) < 6 * error


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

    @pytest.mark.parametrize("particles", [1, 3])
    def test_a_closed_form_that_is_infinite_is_sampled(self, particles):
        """Torch's from a ContinuousBernoulli to a Uniform; each step of a graph too."""

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Uniform(torch.zeros(3), torch.ones(3)).to_event(1))
                pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.ContinuousBernoulli(pyro.param("a", torch.tensor(0.8)) * x + 0.1).to_event(1))

        x = torch.rand(10, 3)
        report = ELBO(particles).report(model, guide, x)["z"]
        assert (report.kind, report.reason) == ("sampled", "its closed form is infinite")
        svi = CompiledSVI(model, guide, Adam({"lr": 1e-3}), ELBO(particles), compile="graph")
        assert all(math.isfinite(svi.step(x)) for _ in range(5))
        assert svi.mode == "graph"

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
            ours = torch.tensor([ELBO().loss(model, guide, X) for _ in range(200)])
            stock = torch.tensor([Trace_ELBO().loss(model, guide, X) for _ in range(200)])
        assert abs(ours.mean() - stock.mean()) < 5 * ((ours.var() + stock.var()) / 200).sqrt()

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
        for _ in range(500):
            draws.append(torch.autograd.grad(ELBO().differentiable_loss(model, guide), pyro.param("logit"))[0])
    gradient = torch.stack(draws)
    assert abs(gradient.mean() - expected) < 5 * gradient.std() / len(gradient) ** 0.5


# A new objective is one line here.
OBJECTIVES = [
    ELBO(),
    ELBO(3),
    ELBO(3, vectorize_particles=False),
    ELBO(kl="sampled"),
    ELBO(gradient="stl"),
    ELBO(beta=0.5, free_bits=0.1),
    ELBO(beta=Linear(10)),
    ELBO(penalty=TotalCorrelation(2.0)),
    ELBO(penalty=MMD(2.0)),
    IWAE(3),
    IWAE(3, "stl"),
    IWAE(3, "dreg"),
    IWAE(5, "dreg", resample=2),
    IWAE(3, vectorize_particles=False),
    Renyi(0.5, 3),
    Renyi(2.0, 3, "dreg"),
    ReweightedWakeSleep(3),
]


def label(objective):
    described = checkpoint.to_spec(objective)
    return " ".join(str(value) for value in described["init_args"].values() if not isinstance(value, dict))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{type(o).__name__} {label(o)}")
class TestEveryObjective:
    def build(self):
        return VAE.build((3,), latent=2, network=partial(networks.MLP, hidden=(16,))).double()

    def test_svi_steps_it(self, objective):
        vae = self.build()
        svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), objective)
        x = torch.rand(64, 3)
        before = ELBO(10).loss(vae.model, vae.guide, x)
        start = [p.clone() for p in vae.parameters()]
        for _ in range(20):
            assert isinstance(svi.step(x), float)
        assert all((old != new).any() for old, new in zip(start, vae.parameters(), strict=True))
        assert ELBO(10).loss(vae.model, vae.guide, x) < before
        assert isinstance(svi.evaluate_loss(x), float)

    def test_is_a_module_as_other_elbos_are(self, objective):
        vae = self.build()
        objective(vae.model, vae.guide)(torch.rand(5, 3)).backward()
        assert all(parameter.grad is not None for parameter in vae.parameters())

    def test_three_ways_to_the_loss_and_its_gradient_agree(self, objective):
        vae, x = self.build(), torch.rand(5, 3)
        objective.start(100)
        values = []
        for way in (objective.loss, objective.differentiable_loss, objective.loss_and_grads):
            torch.manual_seed(3)
            vae.zero_grad()
            with torch.random.fork_rng():
                value = way(vae.model, vae.guide, x)
            objective.start(100)
            if way == objective.differentiable_loss:
                value.backward()
            values.append((float(torch.as_tensor(value).detach()), [p.grad for p in vae.parameters()]))
        torch.manual_seed(20261122)
        assert values[0][0] == pytest.approx(values[1][0], rel=1e-12)
        assert values[1][0] == pytest.approx(values[2][0], rel=1e-12)
        torch.testing.assert_close(values[1][1], values[2][1], rtol=1e-12, atol=1e-14)

    def test_sums_over_data_and_is_per_datum(self, objective):
        """Of one datum repeated the loss per datum is the same for few and for many: fails once in 100,000 runs."""
        objective.start(100)
        few, many = (torch.tensor([objective.loss(*self.programs(n)) / n for _ in range(20)]) for n in (5, 500))
        assert abs(few.mean() - many.mean()) < 6 * ((few.var() + many.var()) / 20).sqrt() + 1e-12

    def programs(self, data):
        def model():
            with pyro.plate("data", data):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.sum(-1), 0.7), obs=torch.full((data,), 1.3))

        def guide():
            with pyro.plate("data", data):
                pyro.sample("z", dist.Normal(torch.tensor([0.4, 0.2]), 0.8).to_event(1))

        return model, guide

    def test_can_be_traced_as_a_graph(self, objective):
        """Nothing in it looks at a number: the graph gives eager Pyro's loss and gradients, and follows a schedule."""
        vae, x = self.build(), torch.rand(5, 3)
        objective.start(100)
        objective.loss(vae.model, vae.guide, x)

        def step(x):
            loss = objective.terms(vae.model, vae.guide, x).loss
            return [loss, *torch.autograd.grad(loss, [*vae.parameters()])]

        with pyro.validation_enabled(False):
            graph = Graph(step, [x])
        found = []
        for _ in range(2):
            for run in (step, lambda x: graph([x])):
                with torch.random.fork_rng():
                    torch.manual_seed(3)
                    found.append(run(x))
            objective.advance()
        for eager, traced in (found[:2], found[2:]):
            torch.testing.assert_close(traced, eager, rtol=1e-12, atol=1e-14)

    def test_reports_each_site(self, objective):
        model, guide = local()
        found = objective.report(model, guide, X)
        analytic = isinstance(objective, ELBO) and objective.kl == "auto" and objective.gradient == "pathwise"
        assert found["z"].kind == ("analytic" if analytic else "sampled")
        assert found["z"].scale == 1.0
        assert bool(found["z"].reason) != analytic

    def test_fit_takes_it_and_a_run_names_it(self, objective, tmp_path):
        torch.set_default_dtype(torch.float32)
        digits = data.load("digits")
        vae = VAE.build((1, 8, 8), latent=2, network=partial(networks.MLP, hidden=(32,)))
        history = fit(vae, digits, objective, 2, 256, run_dir=tmp_path / "run", compile="off", progress=False)
        assert history["valid"][1] < history["valid"][0]
        assert {"train", "train_at_beta_1", "beta"} < history.keys()
        config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
        assert config["objective"] == checkpoint.to_spec(objective)
        assert config["objective"]["class_path"] == f"pyro_vae.objectives.{type(objective).__name__}"

    def test_it_runs_where_it_is_told(self, objective, device):
        torch.set_default_dtype(torch.float32)
        vae = VAE.build((3,), latent=2).to(device)
        svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), objective)
        assert math.isfinite(svi.step(torch.rand(8, 3, device=device)))


def test_parameters_that_pyro_does_not_know_get_a_warning():
    """Stock Pyro skips the backward pass in silence."""
    loc = torch.tensor(0.3, requires_grad=True)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.5), obs=x)

    Trace_ELBO().loss_and_grads(model, guide, X)
    assert loc.grad is None
    for objective in (ELBO(), IWAE(3)):
        with pytest.warns(UserWarning, match="have none, so SVI trains nothing. Call pyro.module"):
            objective.loss_and_grads(model, guide, X)
    assert loc.grad is not None


def test_the_report_is_a_table():
    report = ELBO().report(*subsampled(), X)
    line = str(report).splitlines()
    assert line[0].split() == ["site", "KL", "nats", "scale", "why"]
    assert line[1].split() == ["z", "analytic", f"{report['z'].nats:.4f}", "2", "in", "closed", "form"]
    assert "sampled" in str(ELBO().report(*without_closed_form(), X))
    assert "none is known from Normal to StudentT" in str(ELBO().report(*without_closed_form(), X))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBO(num_particles=0), "num_particles of at least 1; got 0"),
        (lambda: ELBO(kl="exact"), "kl to be auto, analytic or sampled; got 'exact'"),
        (lambda: ELBO(beta=-1.0), "finite beta of at least 0, or a schedule; got -1.0"),
        (lambda: ELBO(beta=float("nan")), "finite beta of at least 0, or a schedule; got nan"),
        (
            lambda: ELBO(kl="analytic").loss(*without_closed_form(), X),
            "'z'; none is known .*kl='auto'",
        ),
    ],
)
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_beta_set_after_construction_is_that_of_the_next_step():
    model, guide = local()
    objective = ELBO()
    objective.beta = 3.0
    state = torch.get_rng_state()
    loss = objective.loss(model, guide, X)
    torch.set_rng_state(state)
    assert loss == ELBO(beta=3.0).loss(model, guide, X)
    with pytest.raises(ValueError, match="finite beta of at least 0, or a schedule; got -1"):
        objective.beta = -1
