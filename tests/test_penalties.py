"""Free bits and penalties on the aggregate posterior, against quadrature and closed forms."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import X, hierarchical, local, masked, regression, subsampled
from pyro import poutine

from pyro_vae import VAE, likelihoods
from pyro_vae.networks import MLP
from pyro_vae.objectives import ELBO, MMD, TotalCorrelation

pytestmark = pytest.mark.usefixtures("float64", "param_store")


def gaussians(loc, scale):
    """A program of a standard normal prior and a guide with the given means and scales, ``(B, D)``; nothing is seen."""

    def model():
        with pyro.plate("data", len(loc)):
            pyro.sample("z", dist.Normal(torch.zeros(loc.shape[1]), 1.0).to_event(1))

    def guide():
        with pyro.plate("data", len(loc)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


def kl(loc, scale):
    return 0.5 * (scale**2 + loc**2 - 1 - (scale**2).log())


class TestFreeBits:
    loc = torch.tensor([[1.0, 0.1, 0.0], [-1.0, 0.2, 0.3], [2.0, 0.0, -0.1], [0.5, -0.3, 0.1]], dtype=torch.float64)
    scale = torch.tensor([0.3, 0.9, 1.05], dtype=torch.float64).expand(4, 3)

    @pytest.mark.parametrize("particles", [1, 5])
    @pytest.mark.parametrize("bits", [0.01, 0.1, 0.5, 10.0])
    def test_each_dimensions_mean_over_the_minibatch_has_a_floor(self, bits, particles):
        objective = ELBO(particles, free_bits=bits)
        mean = kl(self.loc, self.scale).mean(0)
        expected = 4 * mean.clamp(min=bits).sum()
        assert objective.loss(*gaussians(self.loc, self.scale)) == pytest.approx(expected.item(), rel=1e-12)

    def test_a_dimension_below_it_has_no_gradient_and_one_above_the_usual(self):
        loc = self.loc.clone().requires_grad_()
        loss = ELBO(free_bits=0.1).differentiable_loss(*gaussians(loc, self.scale))
        (gradient,) = torch.autograd.grad(loss, loc)
        above = kl(self.loc, self.scale).mean(0) > 0.1
        assert above.tolist() == [True, False, False]
        torch.testing.assert_close(gradient, loc.detach() * above, rtol=1e-12, atol=0)

    def test_the_plain_elbo_is_without_it(self):
        objective = ELBO(free_bits=10.0, beta=3.0)
        objective.differentiable_loss(*gaussians(self.loc, self.scale))
        assert objective.plain.item() == pytest.approx(kl(self.loc, self.scale).sum().item(), rel=1e-12)

    def test_beta_weighs_what_is_left(self):
        found = ELBO(free_bits=0.5, beta=0.3).loss(*gaussians(self.loc, self.scale))
        expected = 0.3 * 4 * kl(self.loc, self.scale).mean(0).clamp(min=0.5).sum()
        assert found == pytest.approx(expected.item(), rel=1e-6)

    @pytest.mark.parametrize("program", [local, subsampled, masked, hierarchical], ids=lambda program: program.__name__)
    def test_of_nothing_is_the_elbo_and_of_much_the_floor(self, program):
        """Of a scalar site the floor counts for each of four data, with a subsample's scale, less what is masked."""
        model, guide = program()

        def loss(objective):
            with torch.random.fork_rng():
                torch.manual_seed(3)
                return objective.loss(model, guide, X)

        with torch.random.fork_rng():
            torch.manual_seed(3)
            reconstruction, _ = ELBO().split(model, guide, X)
        assert loss(ELBO(free_bits=1e-9)) == pytest.approx(loss(ELBO()), rel=1e-12)
        dimensions = {local: 4, subsampled: 4, masked: 2, hierarchical: 4 + 2}[program]
        assert loss(ELBO(free_bits=100.0)) == pytest.approx(100 * dimensions - reconstruction, rel=1e-9)

    def test_a_sampled_divergence_has_a_floor_too(self):
        def model():
            with pyro.plate("data", 4):
                pyro.sample("z", dist.StudentT(5.0, torch.zeros(3), 1.0).to_event(1))

        _, guide = gaussians(self.loc, self.scale)
        trace = poutine.trace(guide).get_trace()
        z = trace.nodes["z"]["value"]
        log_q, replayed = dist.Normal(self.loc, self.scale).log_prob(z), poutine.replay(guide, trace=trace)
        normal, _ = gaussians(self.loc, self.scale)
        for kl, program, prior in (("auto", model, dist.StudentT(5.0)), ("sampled", normal, dist.Normal(0.0, 1.0))):
            found = ELBO(kl=kl, free_bits=0.2).loss(program, replayed)
            each = log_q - prior.log_prob(z)
            assert found == pytest.approx(4 * each.mean(0).clamp(min=0.2).sum().item(), rel=1e-12)

    def test_dimensions_that_are_not_independent_get_a_sentence(self):
        with pytest.raises(ValueError, match="independent dimensions .*'beta', for free bits"):
            ELBO(free_bits=0.1).loss(*regression(), X)

    def test_keep_dimensions_alive(self):
        """Where beta = 1 lets both dimensions collapse to the prior, free bits let the model use them."""
        x = torch.randn(64, 4) * 0.3
        likelihood = partial(likelihoods.Gaussian, scale=1.0)
        nats = {}
        for bits in (0.0, 0.5):
            pyro.clear_param_store()
            torch.manual_seed(0)
            vae = VAE.build((4,), latent=2, likelihood=likelihood, network=partial(MLP, hidden=(16,))).double()
            svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), ELBO(free_bits=bits))
            for _ in range(80):
                svi.step(x)
            nats[bits] = ELBO().report(vae.model, vae.guide, x)["z"].nats / 64
        torch.manual_seed(20261122)
        assert nats[0.0] < 0.1
        assert 0.4 < nats[0.5] < 1.3


class TestTotalCorrelation:
    def quadrature(self, loc, scale, width=9.0, points=300):
        """The total correlation of a mixture of Gaussians in two dimensions, on a grid."""
        grid = torch.linspace(-width, width, points)
        step = grid[1] - grid[0]
        each = dist.Normal(loc.unsqueeze(1), scale.unsqueeze(1)).log_prob(grid.unsqueeze(-1))  # (B, points, 2)
        marginals = each.exp().mean(0)
        joint = (each[:, :, None, 0] + each[:, None, :, 1]).exp().mean(0)
        ratio = joint.clamp(min=1e-300).log() - (marginals[:, None, 0] * marginals[None, :, 1]).clamp(min=1e-300).log()
        return (joint * ratio).sum() * step**2

    @pytest.mark.parametrize("vectorize", [True, False])
    def test_is_that_of_the_aggregate_by_quadrature(self, vectorize):
        """z-test at 5 standard errors: fails once in 1.7 million runs."""
        loc = torch.tensor([[2.0, 2.0], [-2.0, -1.5], [0.0, 0.3], [1.0, -0.2]])
        scale = torch.tensor([[0.5, 0.6], [0.7, 0.5], [0.4, 0.9], [1.0, 0.5]])
        exact = self.quadrature(loc, scale)
        model, guide = gaussians(loc, scale)
        particles, runs = (1000, 10) if vectorize else (2, 200)
        plain = ELBO(particles, vectorize_particles=vectorize).loss(model, guide)
        objective = ELBO(particles, vectorize_particles=vectorize, penalty=TotalCorrelation(1.0))
        values = torch.tensor([objective.loss(model, guide) - plain for _ in range(runs)]) / 4
        assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(runs)
        assert exact > 0.3

    def test_is_zero_for_one_datum_and_for_equal_posteriors(self):
        for data in (1, 5):
            loc, scale = torch.tensor([[0.3, -0.2, 1.0]]).expand(data, 3), torch.full((data, 3), 0.7)
            plain = ELBO().loss(*gaussians(loc, scale))
            assert ELBO(penalty=TotalCorrelation(7.0)).loss(*gaussians(loc, scale)) == pytest.approx(plain, abs=1e-10)

    def test_training_with_it_lowers_it(self):
        x = torch.randn(48, 2) @ torch.tensor([[1.0, 1.0, 0.5], [0.9, 1.1, -0.5]]) + 0.1 * torch.randn(48, 3)
        found = {}
        for weight in (0.0, 20.0):
            pyro.clear_param_store()
            torch.manual_seed(0)
            vae = VAE.build((3,), latent=2, network=partial(MLP, hidden=(16,))).double()
            objective = ELBO(penalty=TotalCorrelation(weight))
            svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), objective)
            for _ in range(80):
                svi.step(x)
            q = vae.encoder(x)
            found[weight] = self.quadrature(q.mean.detach(), q.stddev.detach()).item()
        torch.manual_seed(20261122)
        assert found[20.0] < 0.5 * found[0.0]


class TestMMD:
    @pytest.mark.parametrize("bandwidth", [None, 0.7])
    def test_is_the_closed_form_of_gaussians(self, bandwidth):
        """Of independent draws of N(m, s^2 I) against N(0, I); z-test at 5 standard errors."""
        m, s, d, data = torch.tensor([0.8, -0.5]), 0.6, 2, 50
        h2 = bandwidth**2 if bandwidth else float(d)

        def expected(mean, variance):
            return (h2 / (h2 + variance)) ** (d / 2) * torch.exp(-(mean**2).sum() / (2 * (h2 + variance)))

        zero = torch.zeros(d)
        exact = expected(zero, 2 * s**2) + expected(zero, torch.tensor(2.0)) - 2 * expected(m, s**2 + 1)
        model, guide = gaussians(m.expand(data, d), torch.full((data, d), s))
        plain = ELBO(20).loss(model, guide)
        objective = ELBO(10, penalty=MMD(3.0, bandwidth))
        values = torch.tensor([objective.loss(model, guide) - plain for _ in range(20)]) / (3 * data)
        assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(20)
        assert exact > 5 * values.std()

    def test_is_zero_on_average_where_the_aggregate_is_the_prior(self):
        model, guide = gaussians(torch.zeros(30, 3), torch.ones(30, 3))
        values = torch.tensor([ELBO(penalty=MMD(1.0)).loss(model, guide) for _ in range(100)])
        assert abs(values.mean()) < 5 * values.std() / math.sqrt(100)

    def test_one_datum_gets_a_sentence(self):
        with pytest.raises(ValueError, match="minibatch of at least 2 data for MMD; got 1. Use a larger batch_size"):
            ELBO(penalty=MMD()).loss(*gaussians(torch.zeros(1, 2), torch.ones(1, 2)))


def test_the_scale_of_a_subsample_counts():
    def program(size):
        def run(latent_only):
            with pyro.plate("data", size, subsample=torch.arange(4)):
                return pyro.sample("z", latent_only)

        loc = torch.tensor([[2.0, 2.0], [-2.0, -1.5], [0.0, 0.3], [1.0, -0.2]])
        prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        return (lambda: run(prior)), (lambda: run(dist.Normal(loc, 0.5).to_event(1)))

    losses = []
    for size in (4, 40):
        torch.manual_seed(3)
        losses.append(ELBO(penalty=TotalCorrelation(2.0)).loss(*program(size)))
    torch.manual_seed(20261122)
    assert losses[1] == pytest.approx(10 * losses[0], rel=1e-10)


@pytest.mark.parametrize("penalty", [MMD(), TotalCorrelation()], ids=["MMD", "TotalCorrelation"])
@pytest.mark.parametrize("program", [hierarchical, masked], ids=["hierarchical", "masked"])
def test_a_site_elsewhere_gets_a_sentence(program, penalty):
    with pytest.raises(
        ValueError, match=f"every latent site in one plate.* for {type(penalty).__name__}; '(mu|z)' is not"
    ):
        ELBO(penalty=penalty).loss(*program(), X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMD(-1.0), "finite weight of at least 0; got -1"),
        (lambda: MMD(1.0, bandwidth=0.0), "positive bandwidth; got 0"),
        (lambda: TotalCorrelation(float("inf")), "finite weight of at least 0; got inf"),
        (lambda: ELBO(free_bits=0.1, gradient="stl"), "pathwise' with free bits, .*; got 'stl'"),
        (lambda: ELBO(gradient="stl", kl="analytic"), "kl='sampled' or 'auto' with gradient='stl'"),
        (lambda: ELBO(free_bits=-0.1), "finite free_bits of at least 0; got -0.1"),
        (lambda: ELBO(penalty=TotalCorrelation()).loss(*local(), X), "independent over latent dimensions, for Total"),
    ],
)
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
