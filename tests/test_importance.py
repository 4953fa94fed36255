"""IWAE, Rényi and reweighted wake-sleep: per datum, against formulas written out, stock Pyro and exact answers."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import PER_DATUM, Module, X, chain, factor_analysis, hierarchical, local, mixture, value_and_gradients
from pyro import poutine
from pyro.infer import RenyiELBO
from pyro.infer import ReweightedWakeSleep as PyrosWakeSleep
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions import constraints

from pyro_vae import VAE, evaluate
from pyro_vae.objectives import ELBO, IWAE, Renyi, ReweightedWakeSleep, importance
from pyro_vae.oracle import LinearGaussian
from pyro_vae.traces.weights import power_mean, systematic_resample

pytestmark = pytest.mark.usefixtures("float64", "param_store")
K = 7


def by_hand(name, alpha=0.0, loops=False, shares=None):
    """Value and gradients of the program ``local``, from its formulas, with the draws that Pyro makes under seed 3.

    With ``shares`` these are the weights of gradients, in place of the normalised importance weights.
    """
    loc, log_scale = (0.3 * X).requires_grad_(), torch.full_like(X, 0.4).log().requires_grad_()
    mean, log_noise = torch.tensor(0.0, requires_grad=True), torch.tensor(0.5).log().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        shapes = [(4,)] * K if loops else [(K, 4)]
        noise = torch.cat([torch.normal(torch.zeros(shape), torch.ones(shape)).reshape(-1, 4) for shape in shapes])
    z = loc + log_scale.exp() * noise
    q = dist.Normal(loc, log_scale.exp())
    stopped = dist.Normal(loc.detach(), log_scale.exp().detach())

    def log_p(z):
        return dist.Normal(mean, 1.0).log_prob(z) + dist.Normal(z, log_noise.exp()).log_prob(X)

    log_w = (log_p(z) - q.log_prob(z)).detach()
    bound = (((1 - alpha) * log_w).exp().mean(0).log() / (1 - alpha)).sum() if alpha != 1 else log_w.mean(0).sum()
    weights = ((1 - alpha) * log_w).softmax(0)
    factor = alpha + (1 - alpha) * weights
    weights = weights if shares is None else shares
    theta = torch.autograd.grad((weights * log_p(z.detach())).sum(), (mean, log_noise))
    if name == "pathwise":
        surrogate = weights * (log_p(z) - q.log_prob(z))
    elif name == "stl":
        surrogate = weights * (log_p(z) - stopped.log_prob(z))
    elif name == "dreg":
        surrogate = weights * factor * (log_p(z) - stopped.log_prob(z))
    else:
        surrogate = weights * q.log_prob(z.detach())
    phi = torch.autograd.grad(surrogate.sum(), (loc, log_scale))
    names = ("mean", "noise", "loc", "scale")
    return -bound.item(), {key: -value for key, value in zip(names, (*theta, *phi), strict=True)}


ESTIMATORS = {
    "IWAE": (IWAE(K), "pathwise", 0.0),
    "IWAE, stl": (IWAE(K, "stl"), "stl", 0.0),
    "IWAE, dreg": (IWAE(K, "dreg"), "dreg", 0.0),
    "Renyi 0.5": (Renyi(0.5, K), "pathwise", 0.5),
    "Renyi 0.5, dreg": (Renyi(0.5, K, "dreg"), "dreg", 0.5),
    "Renyi 0.5, stl": (Renyi(0.5, K, "stl"), "stl", 0.5),
    "Renyi 1": (Renyi(1.0, K), "pathwise", 1.0),
    "Renyi 0.97": (Renyi(0.97, K), "pathwise", 0.97),
    "Renyi 0.97, dreg": (Renyi(0.97, K, "dreg"), "dreg", 0.97),
    "Renyi 3": (Renyi(3.0, K), "pathwise", 3.0),
    "Renyi -1, dreg": (Renyi(-1.0, K, "dreg"), "dreg", -1.0),
    "wake-sleep": (ReweightedWakeSleep(K), "wake", 0.0),
    "ELBO, stl": (ELBO(K, gradient="stl"), "stl", 1.0),
}


@pytest.mark.parametrize(("objective", "name", "alpha"), ESTIMATORS.values(), ids=ESTIMATORS)
class TestFormulas:
    def same(self, found, expected):
        assert found[0] == pytest.approx(expected[0], rel=1e-11)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-11)

    def test_value_and_gradients(self, objective, name, alpha):
        self.same(value_and_gradients(objective, local), by_hand(name, alpha))

    def test_one_particle_after_another(self, objective, name, alpha):
        arguments = {key: getattr(objective, key) for key in ("alpha", "gradient") if hasattr(objective, key)}
        if isinstance(objective, IWAE):
            del arguments["alpha"]
        looped = type(objective)(num_particles=K, vectorize_particles=False, **arguments)
        self.same(value_and_gradients(looped, local), by_hand(name, alpha, loops=True))

    def test_loss_is_the_value_and_plain_the_elbo(self, objective, name, alpha):
        model, guide = local()
        torch.manual_seed(3)
        assert objective.loss(model, guide, X) == pytest.approx(by_hand(name, alpha)[0], rel=1e-11)
        torch.manual_seed(3)
        objective.differentiable_loss(model, guide, X)
        torch.manual_seed(3)
        assert objective.plain.item() == pytest.approx(ELBO(K, kl="sampled").loss(model, guide, X), rel=1e-11)
        torch.manual_seed(20261122)


class TestResampling:
    """Gradients through some of the particles, drawn by weight: on average those through all."""

    def test_each_is_drawn_its_share_of_times_rounded_up_or_down(self):
        log_w = 2 * torch.randn(9, 500)
        for number in (1, 4, 8):
            drawn = torch.nn.functional.one_hot(systematic_resample(log_w, number), 9).sum(0).T
            assert ((drawn - number * log_w.softmax(0)).abs() < 1 + 1e-9).all()
            assert (drawn.sum(0) == number).all()

    def test_and_on_average_its_share(self, monkeypatch):
        """Over a grid of 10,000 of the one number that is drawn, which is as good as the integral to 1e-4."""
        log_w = (2 * torch.randn(9)).unsqueeze(1).expand(9, 10_000)
        monkeypatch.setattr(torch, "rand_like", lambda like: (torch.arange(10_000.0) + 0.5).view_as(like) / 10_000)
        for number in (1, 3):
            drawn = torch.nn.functional.one_hot(systematic_resample(log_w, number), 9).sum(0).double().mean(0)
            torch.testing.assert_close(drawn / number, log_w[:, 0].softmax(0), rtol=0, atol=2e-4)

    @pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg"])
    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_value_and_gradients(self, alpha, gradient, monkeypatch):
        """Of some given ones: as the formulas with how often each was drawn, over m, for its weight."""
        chosen = torch.tensor([[0, 6, 3, 3], [1, 6, 2, 3], [1, 6, 5, 4]])
        shares = torch.nn.functional.one_hot(chosen, K).sum(0).T / 3
        monkeypatch.setattr(importance, "systematic_resample", lambda log_w, number: chosen)
        objective = Renyi(alpha, K, gradient, resample=3) if alpha else IWAE(K, gradient, resample=3)
        value, gradients = value_and_gradients(objective, local)
        expected = by_hand(gradient, alpha, shares=shares)
        assert value == pytest.approx(expected[0], rel=1e-11)
        torch.testing.assert_close(gradients, expected[1], rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("gradient", ["pathwise", "dreg"])
    def test_the_mean_of_the_gradient_is_that_through_all(self, gradient):
        """A VAE's 50 numbers or so, t-tests at 5 standard errors: fails once in 10,000 runs."""
        oracle = LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)
        vae, x = oracle.vae("mean-field"), torch.randn(5, 6).repeat(7, 1)
        parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]

        def gradients(objective):
            losses = (objective.differentiable_loss(vae.model, vae.guide, x) for _ in range(60))
            each = (torch.autograd.grad(loss, parameters) for loss in losses)
            return torch.stack([torch.cat([part.flatten() for part in parts]) for parts in each])

        some, every = gradients(IWAE(8, gradient, resample=2)), gradients(IWAE(8, gradient))
        error = ((some.var(0) + every.var(0)) / 60).sqrt()
        assert ((some.mean(0) - every.mean(0)).abs() < 5 * error).all()
        assert some.var(0).sum() > every.var(0).sum()

    def test_the_models_networks_run_back_for_some_alone(self):
        """Its one layer is run for all 20 particles without a gradient, and for 4 of them with one."""
        vae, seen = VAE.build((3,), latent=2).double(), []
        vae.decoder.network.register_forward_hook(lambda _, given, out: seen.append((len(out), out.requires_grad)))
        objective = IWAE(20, resample=4)
        objective.loss(vae.model, vae.guide, torch.rand(5, 3))
        seen.clear()
        objective.differentiable_loss(vae.model, vae.guide, torch.rand(5, 3)).backward()
        assert seen == [(20, False), (4, True)]
        seen.clear()
        objective.loss(vae.model, vae.guide, torch.rand(5, 3))
        assert seen == [(20, False)]


@pytest.mark.parametrize("program", PER_DATUM, ids=lambda program: program.__name__)
class TestAgainstStockPyro:
    """``RenyiELBO`` is right per datum where every site is in the data's plate and nothing is scaled."""

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
    def test_value_and_gradients(self, program, alpha):
        depth = 2 if program is factor_analysis else 1
        stock = RenyiELBO(alpha=alpha, num_particles=K, vectorize_particles=True, max_plate_nesting=depth)
        value, gradients = value_and_gradients(Renyi(alpha, K), program)
        expected, expected_gradients = value_and_gradients(stock, program)
        assert value == pytest.approx(expected, rel=1e-11)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-11)

    def test_one_particle_is_the_elbo(self, program):
        stock = value_and_gradients(pyro.infer.Trace_ELBO(), program)
        for objective in (IWAE(1), Renyi(0.5, 1), Renyi(1.0, 1)):
            value, gradients = value_and_gradients(objective, program)
            assert value == pytest.approx(stock[0], rel=1e-12)
            torch.testing.assert_close(gradients, stock[1], rtol=1e-10, atol=1e-12)


EXACT = [
    ELBO(kl="sampled"),
    ELBO(5, kl="sampled"),
    ELBO(5, gradient="stl"),
    IWAE(K),
    IWAE(K, "stl"),
    IWAE(K, "dreg"),
    IWAE(K, resample=2),
    IWAE(K, "dreg", resample=2),
    Renyi(0.5, K),
    Renyi(0.5, K, "dreg"),
    Renyi(-1.0, K),
    ReweightedWakeSleep(K),
]


class TestWithTheExactGuide:
    """Every log-weight is log p(x)."""

    @pytest.fixture
    def oracle(self):
        return LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)

    @pytest.mark.parametrize("objective", EXACT, ids=lambda o: f"{type(o).__name__} {getattr(o, 'gradient', '')}")
    def test_every_bound_is_the_evidence(self, objective, oracle):
        vae, x = oracle.vae("exact"), torch.randn(5, 6)
        for rows in x.split(1):  # per datum
            assert objective.loss(vae.model, vae.guide, rows) == pytest.approx(
                -oracle.log_evidence(rows).item(), abs=1e-10
            )
        assert objective.loss(vae.model, vae.guide, x) == pytest.approx(-oracle.log_evidence(x).sum().item(), abs=1e-10)

    @pytest.mark.parametrize("objective", EXACT, ids=lambda o: f"{type(o).__name__} {getattr(o, 'gradient', '')}")
    def test_in_double_precision_under_a_single_default(self, objective):
        torch.set_default_dtype(torch.float32)
        weight, x = torch.randn(6, 3, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
        oracle = LinearGaussian(weight, torch.zeros(6, dtype=torch.float64), scale=0.7)
        vae = oracle.vae("exact")
        assert objective.loss(vae.model, vae.guide, x) == pytest.approx(-oracle.log_evidence(x).sum().item(), abs=1e-10)

    @pytest.mark.parametrize("objective", EXACT, ids=lambda o: f"{type(o).__name__} {getattr(o, 'gradient', '')}")
    def test_the_guides_gradient_is_zero_without_the_score_and_else_is_not(self, objective, oracle):
        vae, x = oracle.vae("exact"), torch.randn(5, 6)
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        gradients = torch.autograd.grad(loss, [*vae.encoder.parameters()])
        largest = max(gradient.abs().max().item() for gradient in gradients)
        if getattr(objective, "gradient", "") in ("stl", "dreg"):
            assert largest < 1e-12
        else:
            assert largest > 1e-2

    def test_a_guide_of_two_layers_too(self):
        """p(z1, z2 | x) = p(z1 | x) p(z2 | z1): with the path from z1 to z2 cut the gradient would not be zero."""
        x = torch.randn(4)

        def model():
            with pyro.plate("data", 4):
                z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z1, 1.0), obs=x)
                pyro.sample("z2", dist.Normal(0.8 * z1, 0.7))

        def guide():
            a, b, s = (pyro.param(name, torch.tensor(value)) for name, value in (("a", 0.5), ("b", 0.8), ("s", 0.7)))
            with pyro.plate("data", 4):
                z1 = pyro.sample("z1", dist.Normal(a * x, math.sqrt(0.5)))
                pyro.sample("z2", dist.Normal(b * z1, s))

        evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).sum().item()
        for objective in (ELBO(gradient="stl"), ELBO(3, gradient="stl"), IWAE(3, "stl"), IWAE(3, "dreg")):
            loss = objective.differentiable_loss(model, guide)
            assert loss.item() == pytest.approx(-evidence, abs=1e-10)
            gradients = torch.autograd.grad(loss, [pyro.param(name) for name in "abs"])
            assert max(gradient.abs().item() for gradient in gradients) < 1e-12


class TestOrder:
    @pytest.fixture
    def setting(self):
        oracle = LinearGaussian(torch.randn(6, 3), torch.randn(6), scale=0.7)
        return oracle, oracle.vae("mean-field"), torch.randn(200, 6)

    def test_of_the_power_mean_in_alpha_for_any_draws(self, setting):
        _, vae, x = setting
        log_w = evaluate.log_weights(vae, x, 20)
        bounds = torch.stack([power_mean(log_w, alpha) for alpha in (-2, -1, 0, 0.5, 0.95, 1, 1.05, 2, 5)])
        assert (bounds.diff(dim=0) < 0).all()
        torch.testing.assert_close(bounds[2], evaluate.iwae(log_w), rtol=0, atol=1e-12)
        torch.testing.assert_close(bounds[5], evaluate.elbo(log_w), rtol=0, atol=1e-12)

    def test_of_the_power_mean_in_particles_for_any_draws(self, setting):
        """Burda et al.: the mean of the bounds with one draw left out is no larger than the bound with all."""
        _, vae, x = setting
        log_w = evaluate.log_weights(vae, x, 6)
        without_one = torch.stack([power_mean(log_w[[j for j in range(6) if j != k]], 0.0) for k in range(6)])
        assert (without_one.mean(0) < power_mean(log_w, 0.0)).all()

    def test_of_the_bounds(self, setting):
        """Means over 200 data and 40 runs, each difference above 0 at 5 standard errors; below log p(x) likewise."""
        oracle, vae, x = setting
        runs = [
            torch.tensor([-objective.loss(vae.model, vae.guide, x) / 200 for _ in range(40)])
            for objective in (ELBO(), IWAE(2), IWAE(8), IWAE(64))
        ]
        runs.append(oracle.log_evidence(x).mean().expand(40))
        for low, high in itertools.pairwise(runs):
            assert (high.mean() - low.mean()) > 5 * ((low.var() + high.var()) / 40).sqrt()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_limit_of_alpha_is_smooth(self, dtype):
        """The second term of the expansion at 1 is the variance of log w; float32 has no cancellation there."""
        log_w = (-90 + 3 * torch.randn(50, 30)).to(dtype)
        for gap in (1e-3, 1e-5, -1e-3):
            expected = log_w.mean(0) + gap * log_w.var(0, correction=0) / 2
            assert (power_mean(log_w, 1 - gap) - expected).abs().max() < (1e-4 if dtype is torch.float32 else 3e-5)


def one_datum(index, scale, stretch):
    """A conjugate program with ``plate(4, subsample=index)``, whose posterior is N(x / 1.25, 0.2)."""

    def model(x):
        with pyro.plate("data", 4, subsample=torch.tensor(index)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])

    def guide(x):
        with pyro.plate("data", 4, subsample=torch.tensor(index)):
            pyro.sample("z", dist.Normal(x[index] / 1.25, stretch * math.sqrt(0.2)))

    return [poutine.scale(program, scale) for program in (model, guide)]


class TestScale:
    """The case where Pyro's number is no bound at all."""

    evidence = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(1.25)).log_prob(X).sum().item()

    @pytest.mark.parametrize("objective", [IWAE(20), Renyi(0.5, 20), ReweightedWakeSleep(20), IWAE(20, "dreg")])
    def test_all_minibatches_together_give_the_evidence_with_the_exact_guide(self, objective):
        losses = [objective.loss(*one_datum(list(pair), 1.0, 1.0), X) for pair in itertools.combinations(range(4), 2)]
        assert sum(losses) / 6 == pytest.approx(-self.evidence, abs=1e-10)

    def test_the_mean_over_minibatches_is_the_full_datas_loss(self):
        """z-tests at 5 standard errors: one of the two fails once in 300,000 runs."""

        def model(x):
            with pyro.plate("data", 4, subsample_size=2) as index:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])

        def guide(x):
            with pyro.plate("data", 4, subsample_size=2) as index:
                pyro.sample("z", dist.Normal(x[index] / 1.25, 1.0))

        for objective in (IWAE(3), IWAE(3, vectorize_particles=False)):
            part = torch.tensor([objective.loss(model, guide, X) for _ in range(100)])
            whole = torch.tensor(
                [IWAE(3).loss(*one_datum([0, 1, 2, 3], 1.0, 1 / math.sqrt(0.2)), X) for _ in range(100)]
            )
            assert abs(part.mean() - whole.mean()) < 5 * ((part.var() + whole.var()) / 100).sqrt()
            assert whole.mean() > -self.evidence

    def test_pyros_number_is_no_bound_and_ours_is(self):
        pair = one_datum([0, 2], 1.0, 3.0)
        exact = -2 * dist.Normal(0.0, math.sqrt(1.25)).log_prob(X[[0, 2]]).sum().item()
        pyros = RenyiELBO(alpha=0, num_particles=5000, vectorize_particles=True, max_plate_nesting=1)
        assert pyros.loss(*pair, X) < exact - 0.5
        assert IWAE(5000).loss(*pair, X) == pytest.approx(exact, abs=0.1)
        assert IWAE(50).loss(*pair, X) > exact - 0.1

    def test_a_scale_of_the_whole_program_stays_outside(self):
        for scale in (0.25, 3.0):
            assert IWAE(9).loss(*one_datum([0, 1, 2, 3], scale, 1.0), X) == pytest.approx(
                -scale * self.evidence, abs=1e-10
            )

    def test_a_scale_for_each_datum_too(self):
        scale = torch.tensor([1.0, 0.0001, 2.0, 0.5])
        model, guide = one_datum([0, 1, 2, 3], 1.0, 1.0)
        found = IWAE(9).loss(*(poutine.scale(program, scale) for program in (model, guide)), X)
        expected = -(scale * dist.Normal(0.0, math.sqrt(1.25)).log_prob(X)).sum().item()
        assert found == pytest.approx(expected, abs=1e-10)


class TestMoments:
    """Replicates as data of one plate, each with parameters of its own: one backward gives all gradients.

    Unbiased means are compared by z-tests at 5 standard errors, for each of 4 parameters: a right implementation
    fails once in 400,000 runs.
    """

    runs = 100_000

    def gradients(self, objective):
        parameters = {"loc": 0.2, "log_scale": -0.3, "mean": 0.3, "log_noise": -0.6}
        own = {name: torch.full((self.runs,), value, requires_grad=True) for name, value in parameters.items()}

        def model():
            with pyro.plate("runs", self.runs):
                z = pyro.sample("z", dist.Normal(own["mean"], 1.0))
                pyro.sample("x", dist.Normal(z, own["log_noise"].exp()), obs=torch.tensor(1.2))

        def guide():
            with pyro.plate("runs", self.runs):
                pyro.sample("z", dist.Normal(own["loc"], own["log_scale"].exp()))

        loss = objective.differentiable_loss(model, guide)
        return dict(zip(own, torch.autograd.grad(loss, own.values()), strict=True))

    def z_scores(self, first, second):
        a, b = self.gradients(first), self.gradients(second)
        return {
            name: ((a[name].mean() - b[name].mean()) / ((a[name].var() + b[name].var()) / self.runs).sqrt()).item()
            for name in a
        }

    @pytest.mark.parametrize("particles", [1, 2, 8])
    def test_dreg_has_the_mean_of_the_pathwise_gradient(self, particles):
        scores = self.z_scores(IWAE(particles, "dreg"), IWAE(particles))
        assert max(map(abs, scores.values())) < 5, scores

    @pytest.mark.parametrize("alpha", [-1.0, 0.5, 0.95, 1.0])
    def test_so_it_has_for_every_alpha(self, alpha):
        scores = self.z_scores(Renyi(alpha, 4, "dreg"), Renyi(alpha, 4))
        assert max(map(abs, scores.values())) < 5, scores

    @pytest.mark.parametrize("particles", [2, 8])
    def test_stl_has_not(self, particles):
        scores = self.z_scores(IWAE(particles, "stl"), IWAE(particles))
        assert abs(scores["loc"]) > 10
        assert abs(scores["mean"]) < 5
        assert abs(scores["log_noise"]) < 5

    def test_stl_of_the_elbo_has(self):
        scores = self.z_scores(ELBO(2, gradient="stl"), ELBO(2))
        assert max(map(abs, scores.values())) < 5, scores

    def test_dreg_varies_less(self):
        dreg, pathwise = self.gradients(IWAE(8, "dreg")), self.gradients(IWAE(8))
        for name in ("loc", "log_scale"):
            assert dreg[name].var() < 0.5 * pathwise[name].var()

    @pytest.mark.parametrize(
        "dreg",
        [
            IWAE(4, "dreg"),
            IWAE(2, "dreg", vectorize_particles=False),
            IWAE(4, "dreg", resample=2),
            Renyi(0.5, 4, "dreg"),
        ],
    )
    def test_dreg_of_three_layers_has_the_pathwise_mean(self, dreg):
        """Of a bottom-up guide, z2 next to x; at 5 standard errors of 5 numbers 3e-6 of seeds would fail."""
        start = {"a": 0.4, "b": 0.5, "c": -0.3, "d": 0.6, "e": 0.2}
        x = torch.tensor(1.2)

        def gradients(objective):
            own = {name: torch.full((self.runs,), value, requires_grad=True) for name, value in start.items()}

            def model():
                with pyro.plate("runs", self.runs):
                    z3 = pyro.sample("z3", dist.Normal(0.0, 1.0))
                    z2 = pyro.sample("z2", dist.Normal(0.7 * z3, 0.8))
                    z1 = pyro.sample("z1", dist.Normal(own["e"] + z2.sin() + 0.3 * z3, 0.6))
                    pyro.sample("x", dist.Normal(z1, 0.5), obs=x)

            def guide():
                with pyro.plate("runs", self.runs):
                    z1 = pyro.sample("z1", dist.Normal(own["a"] * x, own["c"].exp()))
                    z2 = pyro.sample("z2", dist.Normal(own["b"] * z1, own["c"].exp()))
                    pyro.sample("z3", dist.Normal(own["d"] * z2 + 0.2 * z1, 0.9))

            loss = objective.differentiable_loss(model, guide)
            return torch.stack(torch.autograd.grad(loss, own.values()))

        plain = type(dreg)(**{"alpha": dreg.alpha} if type(dreg) is Renyi else {}, num_particles=dreg.num_particles)
        a, b = gradients(dreg), gradients(plain)
        scores = (a.mean(1) - b.mean(1)) / ((a.var(1) + b.var(1)) / self.runs).sqrt()
        assert scores.abs().max() < 5, scores
        if dreg.resample is None:
            assert (a.var(1)[:4] < b.var(1)[:4]).all()

    def test_stl_of_two_layers_has_the_pathwise_mean(self):
        """The guide is run again at stopped draws; the mean over 100,000 replicates is that of stock Pyro."""
        start = {"a": 0.5, "b": 0.4, "c": 0.5}
        x = torch.tensor(1.2)
        means = []
        for objective in (ELBO(gradient="stl"), ELBO(kl="sampled")):
            own = {name: torch.full((self.runs,), value, requires_grad=True) for name, value in start.items()}

            def model():
                with pyro.plate("runs", self.runs):
                    z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
                    z2 = pyro.sample("z2", dist.Normal(0.8 * z1, 0.7))
                    pyro.sample("x", dist.Normal(z2, 0.5), obs=x)

            def guide(own=own):
                with pyro.plate("runs", self.runs):
                    z1 = pyro.sample("z1", dist.Normal(own["a"] * x, 0.5))
                    pyro.sample("z2", dist.Normal(own["b"] * z1, own["c"]))

            loss = objective.differentiable_loss(model, guide)
            means.append(dict(zip(own, torch.autograd.grad(loss, own.values()), strict=True)))
        for name in start:
            a, b = (found[name] for found in means)
            assert abs(a.mean() - b.mean()) < 5 * ((a.var() + b.var()) / self.runs).sqrt()


class TestAutoguides:
    """Sites drawn by a Delta from an auxiliary one: the path is weighed once, at its source."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    @pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg"])
    def test_as_the_same_guide_by_hand(self, gradient):
        auto = AutoNormal(self.model, init_scale=0.4)
        auto(X)
        with torch.no_grad():
            auto.locs.z.copy_(0.3 * X)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(auto.locs.z, auto.scales.z))

        found = []
        for program in (auto, guide):
            torch.manual_seed(3)
            loss = IWAE(K, gradient).differentiable_loss(self.model, program, X)
            found.append((loss.item(), *torch.autograd.grad(loss, [*auto.parameters()])))
        torch.manual_seed(20261122)
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
        torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-10, atol=1e-12)

    def test_of_global_latents_the_elbo(self):
        """Pyro's mean-field ELBO is wrong here: its divergence of a Delta leaves out the change of variables."""

        def model(x):
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(slope * torch.arange(4.0), scale), obs=x)

        guide = AutoMultivariateNormal(model)
        guide(X)

        def loss(objective):
            with torch.random.fork_rng():
                torch.manual_seed(3)
                return objective.loss(model, guide, X)

        stock = {"vectorize_particles": True, "max_plate_nesting": 1}
        right = pytest.approx(loss(pyro.infer.Trace_ELBO(5, **stock)), rel=1e-10)
        assert loss(ELBO(5)) == loss(ELBO(5, gradient="stl")) == right
        assert loss(pyro.infer.TraceMeanField_ELBO(5, **stock)) != right


class TestWakeSleep:
    def test_needs_no_rsample(self):
        """Coins: with many particles the gradients are the exact ones, by enumeration."""
        value, gradients = value_and_gradients(ReweightedWakeSleep(20_000), mixture)
        logit, shift = X.clone().requires_grad_(), torch.tensor(0.6, requires_grad=True)
        joint = torch.stack(
            [
                dist.Bernoulli(0.3).log_prob(torch.tensor(float(k))) + dist.Normal(2 * k - shift, 0.7).log_prob(X)
                for k in (0, 1)
            ]
        )
        posterior = joint.softmax(0).detach()
        q = torch.stack([torch.nn.functional.logsigmoid(-logit), torch.nn.functional.logsigmoid(logit)])
        evidence = joint.logsumexp(0).sum()
        assert value == pytest.approx(-evidence.item(), abs=0.05)
        torch.testing.assert_close(gradients["shift"], -torch.autograd.grad(evidence, shift)[0], rtol=0, atol=0.05)
        expected = -torch.autograd.grad((posterior * q).sum(), logit)[0]
        torch.testing.assert_close(gradients["logit"], expected, rtol=0, atol=0.05)

    def test_a_second_layer_is_given_the_number_and_not_the_path(self):
        """Pyro's own lets the path through z1 into the update of q(z2 | z1); ours is the formula's."""
        model, guide = chain()
        torch.manual_seed(3)
        loss = ReweightedWakeSleep(K).differentiable_loss(model, guide, X)
        found = torch.autograd.grad(loss, [pyro.param(name) for name in "abc"])
        torch.manual_seed(3)
        eps1, eps2 = (torch.normal(torch.zeros(K, 4), torch.ones(K, 4)) for _ in range(2))
        torch.manual_seed(20261122)
        a, b, c = (torch.tensor(value, requires_grad=True) for value in (0.5, 0.4, X[3].item() + 0.3))
        z1 = (0.5 * X + 0.5 * eps1).detach()
        z2 = (0.4 * z1 + 0.2 * X + c.detach() * eps2).detach()
        log_q = dist.Normal(a * X, 0.5).log_prob(z1) + dist.Normal(b * z1 + 0.2 * X, c).log_prob(z2)
        log_p = dist.Normal(0.0, 1.0).log_prob(z1) + dist.Normal(0.8 * z1, 0.7).log_prob(z2)
        log_p = log_p + dist.Normal(z1, 0.5).log_prob(X) + dist.Normal(z2, 0.5).log_prob(0.5 * X)
        weights = (log_p - log_q).detach().softmax(0)
        expected = torch.autograd.grad(-(weights * log_q).sum(), (a, b, c))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    def test_pyros_is_given_the_path(self):
        """Of one datum, where its weights are ours: the second layer's gradients agree, and the first's does not."""
        model, guide = chain()
        stock = PyrosWakeSleep(num_particles=K, vectorize_particles=True, max_plate_nesting=1, model_has_params=False)
        found = []
        for objective in (ReweightedWakeSleep(K), stock):
            pyro.clear_param_store()
            torch.manual_seed(3)
            objective.loss_and_grads(model, guide, X[:1])
            found.append({name: p.grad.item() for name, p in pyro.get_param_store().named_parameters()})
        torch.manual_seed(20261122)
        ours, pyros = found
        assert [ours["b"], ours["c"]] == pytest.approx([pyros["b"], pyros["c"]], rel=1e-10)
        assert ours["a"] != pytest.approx(pyros["a"], rel=0.01)

    def test_pyros_cannot_be_a_module_and_ours_can(self):
        model, guide = (Module(program) for program in local())
        for stock in (RenyiELBO(), PyrosWakeSleep()):
            with pytest.raises(AttributeError, match="differentiable_loss"):
                stock(model, guide)(X)
        for objective in (IWAE(3), Renyi(0.5, 3), ReweightedWakeSleep(3)):
            objective(model, guide)(X).backward()

    def test_pyros_weighs_a_minibatch_as_one_point(self):
        """Its bound is that of the joint weights: looser than the sum of the data's own, by 5 standard errors."""
        model, guide = one_datum([0, 1, 2, 3], 1.0, 3.0)
        stock = PyrosWakeSleep(num_particles=K, vectorize_particles=True, max_plate_nesting=1, model_has_params=False)
        pyros = torch.tensor([stock.loss(model, guide, X)[0] for _ in range(150)])
        ours = torch.tensor([ReweightedWakeSleep(K).loss(model, guide, X) for _ in range(150)])
        assert pyros.mean() - ours.mean() > 5 * ((pyros.var() + ours.var()) / 150).sqrt()
        assert ours.mean() + TestScale.evidence > 5 * (ours.var() / 150).sqrt()


def test_the_encoder_runs_once_for_all_particles(monkeypatch):
    vae = VAE.build((3,), latent=2).double()
    calls = []
    vae.encoder.register_forward_hook(lambda module, given, out: calls.append(given[0].shape))
    for objective in (ELBO(K), IWAE(K), IWAE(K, "stl"), IWAE(K, "dreg"), Renyi(0.5, K), ReweightedWakeSleep(K)):
        objective.loss(vae.model, vae.guide, torch.rand(5, 3))
        calls.clear()
        objective.differentiable_loss(vae.model, vae.guide, torch.rand(5, 3)).backward()
        assert calls == [(5, 3)]


def test_a_prior_that_shares_the_encoders_parameters_takes_the_models_gradient():
    """As VampPrior's: the part of p(z) at fixed z is weighed by w, the path by w squared; against a formula."""
    loc = torch.tensor(0.4, requires_grad=True)

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=X)

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(loc * X, 0.6))

    torch.manual_seed(3)
    (found,) = torch.autograd.grad(IWAE(K, "dreg").differentiable_loss(model, guide), loc)
    torch.manual_seed(3)
    z = 0.4 * X + 0.6 * torch.normal(torch.zeros(K, 4), torch.ones(K, 4))
    torch.manual_seed(20261122)
    log_w = dist.Normal(0.4, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(X) - dist.Normal(0.4 * X, 0.6).log_prob(z)
    w = log_w.softmax(0)
    slope = -(z - 0.4) - (z - X) / 0.25 + (z - 0.4 * X) / 0.36
    torch.testing.assert_close(found, -(w * (z - 0.4) + w**2 * slope * X).sum(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("objective", [ELBO(K), IWAE(K), IWAE(K, "dreg"), Renyi(0.5, K), ReweightedWakeSleep(K)])
def test_deterministic_sites_are_no_part_of_it(objective):
    """Inside the plate or outside: the loss and its gradients are those of the program without them."""
    model, guide = local()

    def named(x):
        pyro.deterministic("total", x.sum())
        model(x)
        with pyro.plate("more", len(x)):
            pyro.deterministic("square", x**2)

    found = value_and_gradients(objective, lambda: (named, guide))
    expected = value_and_gradients(objective, local)
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-14)


def refused(model, guide, objective):
    with pytest.raises(ValueError, match="^Expected ") as error:
        objective.differentiable_loss(model, guide, X)
    return str(error.value)


class TestRefusals:
    """Never a silent wrong number: one sentence says why, and what to use."""

    @pytest.mark.parametrize("objective", [IWAE(K), Renyi(0.5, K), ReweightedWakeSleep(K)])
    def test_a_latent_outside_the_datas_plate(self, objective):
        message = refused(*hierarchical(), objective)
        assert "weight per datum; 'mu' is outside 'data'" in message
        assert "Use objectives.ELBO" in message

    def test_a_loop_over_the_data(self):
        def model(x):
            for i in pyro.plate("data", 4):
                z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x{i}", dist.Normal(z, 0.5), obs=x[i])

        def guide(x):
            for i in pyro.plate("data", 4):
                pyro.sample(f"z{i}", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

        assert "'data' is a loop. Write it as `with pyro.plate('data', size):`" in refused(model, guide, IWAE(K))

    def test_two_scales(self):
        model, guide = local()
        tempered = poutine.scale(guide, 0.3)
        message = refused(model, tempered, IWAE(K))
        assert "one scale" in message
        assert "'z' of the guide has 0.3 and 'z' of the model 1" in message

    @pytest.mark.parametrize(
        "objective", [IWAE(K), IWAE(K, "dreg"), Renyi(0.5, K), ELBO(gradient="stl"), ELBO(free_bits=0.1)]
    )
    def test_a_site_without_rsample(self, objective):
        message = refused(*mixture(), objective)
        assert "'k' is drawn from a Bernoulli, without rsample. Use objectives.ReweightedWakeSleep" in message

    def test_but_its_value_may_be_asked_for(self):
        joint = [
            dist.Bernoulli(0.3).log_prob(torch.tensor(float(k))) + dist.Normal(2 * k - 0.6, 0.7).log_prob(X)
            for k in (0, 1)
        ]
        model, guide = mixture()
        assert IWAE(50_000).loss(model, guide, X) == pytest.approx(
            -torch.stack(joint).logsumexp(0).sum().item(), abs=0.02
        )

    def test_a_guide_whose_density_is_known_at_its_draws_only(self):
        class OneWay(dist.transforms.ExpTransform):
            def _inverse(self, y):
                raise NotImplementedError

        model, _ = local()

        def guide(x):
            with pyro.plate("data", len(x)):
                base = dist.Normal(pyro.param("loc", lambda: 0.3 * x), 0.4)
                pyro.sample("z", dist.TransformedDistribution(base, [OneWay(cache_size=1)]))

        assert "log q of 'z' is computable only at draws" in refused(model, guide, IWAE(K, "stl"))

    def test_a_noisy_guide_of_two_layers(self):
        model, _ = chain()

        def guide(x):
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x, 0.5))
                pyro.sample("z2", dist.Normal(z1 + torch.randn(()), 0.5))

        assert "for a guide that draws noise, as dropout does" in refused(model, guide, ELBO(gradient="stl"))

    def test_a_latent_that_the_guide_does_not_draw(self):
        model, _ = local()
        message = refused(model, lambda x: None, ELBO())
        assert "'z' is in the model alone" in message

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: IWAE(0), "num_particles of at least 1; got 0"),
            (lambda: IWAE(5, "score"), "pathwise, stl or dreg; got 'score'"),
            (
                lambda: IWAE(5, resample=5),
                "resample .*num_particles - 1.*; got 5, with num_particles = 5",
            ),
            (lambda: IWAE(5, resample=0), "got 0, with num_particles = 5, vectorize_particles = True"),
            (lambda: IWAE(5, resample=2, vectorize_particles=False), "vectorize_particles = False. Use None for all"),
            (lambda: Renyi(float("nan")), "finite alpha; got nan"),
            (lambda: ReweightedWakeSleep(0), "num_particles of at least 1; got 0"),
        ],
    )
    def test_bad_arguments(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


class TestParticlesInAPlate:
    """A program that indexes its draw from the left takes particle 0 for element 0."""

    def left(self, x):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(beta[0] + beta[1] * x, 1.0), obs=x)

    def right(self, x):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(beta[..., 0] + beta[..., 1] * x, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("beta", dist.Normal(pyro.param("loc", torch.ones(2)), 0.3).to_event(1))

    def pair(self, x):
        """Two particles and two elements: the shapes agree, and the numbers are wrong."""
        z = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.reshape(-1)[0] - z.reshape(-1)[-1], 1.0), obs=x[0])

    def test_is_refused(self):
        for model in (self.left, self.pair):
            assert "Index from the right, as z[..., 0], or pass vectorize_particles=False" in refused(
                model, self.guide, ELBO(5)
            )

    def test_one_that_does_not_run_is_refused_in_a_sentence(self):
        def model(x):
            beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(torch.stack([x, x], -1).mv(beta), 1.0), obs=x)

        message = refused(model, self.guide, ELBO(5))
        assert "several particles at once" in message
        assert "\n" not in message
        assert math.isfinite(ELBO(5, vectorize_particles=False).loss(model, self.guide, X))

    def test_and_right_one_after_another(self):
        def mean(objective, model):
            return torch.tensor([objective.loss(model, self.guide, X) for _ in range(100)])

        a, b = mean(ELBO(5, vectorize_particles=False), self.left), mean(ELBO(5), self.right)
        assert abs(a.mean() - b.mean()) < 5 * ((a.var() + b.var()) / 100).sqrt()

    def test_a_noisy_program_is_let_pass(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + torch.randn(()), 0.5), obs=x)

        assert math.isfinite(IWAE(3).loss(model, local()[1], X))

    def test_torchs_state_is_left_as_it_was(self):
        model, guide = local()
        torch.manual_seed(3)
        first = IWAE(3).loss(model, guide, X)
        objective = IWAE(3)
        objective.loss(model, guide, X)
        torch.manual_seed(3)
        assert objective.loss(model, guide, X) == first
        torch.manual_seed(20261122)

    def test_a_deeper_program_may_follow(self):
        objective = IWAE(K)
        for program in (local, factor_analysis, local):
            value_and_gradients(objective, program)


def test_positive_parameters_under_a_constraint_train():
    """SVI with a scale under a constraint: the guide comes to the posterior N(x / 1.25, 0.2)."""
    model, _ = one_datum([0, 1, 2, 3], 1.0, 1.0)

    def guide(x):
        scale = pyro.param("scale", torch.ones(4), constraint=constraints.positive)
        with pyro.plate("data", 4, subsample=torch.arange(4)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(4)), scale))

    for objective in (ELBO(gradient="stl"), IWAE(5, "dreg"), ReweightedWakeSleep(50)):
        pyro.clear_param_store()
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), objective)
        for _ in range(220):
            svi.step(X)
        torch.testing.assert_close(pyro.param("loc").detach(), X / 1.25, rtol=0, atol=0.1)
        torch.testing.assert_close(pyro.param("scale").detach(), torch.full((4,), math.sqrt(0.2)), rtol=0, atol=0.1)
