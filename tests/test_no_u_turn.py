"""The No-U-Turn Sampler of many chains: its transition leaves the density as it is, and warm-up fits it."""

import math

import pytest
import torch
from pyro.ops.stats import effective_sample_size

from pyro_vae.posterior.no_u_turn import (
    StepSize,
    Target,
    extend,
    first_step,
    sample,
    transition,
    turns,
    window_ends,
)

pytestmark = pytest.mark.usefixtures("float64")

COVARIANCE = torch.tensor([[1.0, 0.95], [0.95, 1.0]])
BEND, SPREAD = 0.7, 0.5


def correlated(u):
    return torch.distributions.MultivariateNormal(torch.zeros(2), COVARIANCE.to(u)).log_prob(u)


def banana(u):
    """A normal u0, and u1 normal around a parabola of u0."""
    return -0.5 * u[..., 0].square() - 0.5 * ((u[..., 1] - BEND * u[..., 0].square()) / SPREAD).square()


def funnel(u):
    """Neal's funnel: u1 has the standard deviation exp(u0), so that a step is too long for some chains."""
    return -0.5 * u[..., 0].square() - u[..., 0] - 0.5 * (u[..., 1] / u[..., 0].exp()).square()


def log_gamma(u):
    """The logarithm of a gamma variable of shape 2, in each of two dimensions."""
    return (2 * u - u.exp()).sum(-1)


def exact_draws(density, num):
    noise = torch.randn(num, 1, 2)
    if density is correlated:
        return noise @ torch.linalg.cholesky(COVARIANCE.to(noise)).T
    if density is funnel:
        return torch.stack([noise[..., 0], noise[..., 1] * noise[..., 0].exp()], -1)
    if density is banana:
        return torch.stack([noise[..., 0], BEND * noise[..., 0].square() + SPREAD * noise[..., 1]], -1)
    return torch.distributions.Gamma(torch.full_like(noise, 2.0), 1.0).sample().log()


def target(density, reach=math.inf):
    def with_gradient(u):
        u = u.detach().requires_grad_()
        log_p = density(u)
        return log_p.detach(), torch.autograd.grad(log_p.sum(), u)[0]

    box = torch.full((1, 1), reach)
    return Target(with_gradient, -box, box)


def moments(u):
    """Of the first coordinate and the arctangent of the second, whose own may have no variance."""
    a, b = u[:, 0, 0], u[:, 0, 1].arctan()
    return torch.stack([a, b, a.square(), b.square(), a * b, a.square() * b, b.abs()], 1)


@pytest.mark.parametrize("density", [correlated, banana, funnel, log_gamma])
@pytest.mark.parametrize("step", [0.4, 0.8])
class TestTransition:
    def test_leaves_exact_draws_exact(self, density, step):
        """7 moments of 60,000 chains at 4.5 standard errors, before and after: once in 20,000 runs; fixed seed."""
        before = exact_draws(density, 60_000)
        chains = target(density)
        point = chains.at(before)
        for _ in range(2):
            point, accepted, _ = transition(chains, point, torch.full((1, 2), step))
        change = moments(point.u) - moments(before)
        assert (change.mean(0).abs() < 4.5 * change.std(0) / len(change) ** 0.5).all()
        assert accepted < 0.97
        assert (point.u != before).any(-1).sum() > 0.05 * len(before)

    def test_is_reversible(self, density, step):
        """E[f(u) g(v)] = E[g(u) f(v)]: 21 pairs at 4.5 standard errors, once in 7,000 runs; fixed seed."""
        before = exact_draws(density, 60_000)
        chains = target(density)
        after = transition(chains, chains.at(before), torch.full((1, 2), step))[0].u
        f, g = moments(before), moments(after)
        i, j = torch.triu_indices(7, 7, offset=1)
        difference = f[:, i] * g[:, j] - f[:, j] * g[:, i]
        assert (difference.mean(0).abs() < 4.5 * difference.std(0) / len(before) ** 0.5).all()


class TestTrajectory:
    def test_a_turn_is_a_momentum_toward_the_other_end(self):
        along, back = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.1])
        assert not turns(along, along, 3 * along)
        assert turns(along, back, along + back)
        assert turns(back, along, along + back)

    def test_on_a_normal_it_ends_after_about_half_a_period(self):
        """A period is 2 pi, so that 16 steps of 0.2 are half of one: 7 to 31 steps, in all but few of 2,000 chains."""
        counts = []

        class Counted(Target):
            def leapfrog(self, point, step):
                counts.append(1)
                return super().leapfrog(point, step)

        normal = target(lambda u: -0.5 * u.square().sum(-1))
        chains = Counted(normal._density, normal._low, normal._high)
        u = torch.randn(1, 1, 30)
        for _ in range(50):
            transition(chains, chains.at(u), torch.full((1, 30), 0.2))
        assert 7 <= len(counts) / 50 <= 31

    def test_one_that_loses_its_density_diverges_and_keeps_its_state(self):
        chains = target(lambda u: -1e8 * u.square().sum(-1))
        point, accepted, diverged = transition(chains, chains.at(torch.full((3, 1, 2), 1e-4)), torch.ones(1, 2))
        assert diverged.all()
        assert (point.u == 1e-4).all()
        assert accepted < 1e-6

    def test_one_does_not_leave_the_box(self):
        chains = target(lambda u: -0.5 * u.square().sum(-1), reach=1.0)
        point = chains.at(torch.zeros(500, 1, 2))
        for _ in range(20):
            point, *_ = transition(chains, point, torch.full((1, 2), 0.5))
        assert (point.u.abs() < 1).all()
        cut = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(1.0)) * 2 - 1
        variance = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / cut
        assert (point.u.square().mean() - variance).abs() < 4.5 * point.u.square().std() / 1000**0.5

    def test_a_stopped_chain_does_not_count(self):
        chains = target(correlated)
        point = chains.at(torch.randn(4, 1, 2))
        active = torch.tensor([[True], [False], [True], [False]])
        half = extend(chains, point, torch.full((4, 1, 2), 0.1), 2, point.energy, active)
        assert half.number[:, 0].tolist() == [2, 0, 2, 0]
        assert not half.complete[~active].any()


class TestWarmup:
    @pytest.mark.parametrize(
        ("warmup", "ends"),
        [(1, []), (19, []), (20, [3, 18]), (100, [15, 90]), (150, [75, 100]), (300, [75, 100, 150, 250])],
    )
    def test_windows_are_those_of_stan(self, warmup, ends):
        assert window_ends(warmup) == ends
        assert window_ends(1000) == [75, 100, 150, 250, 450, 950]

    def test_the_first_step_crosses_the_target_rate(self):
        """A normal of width w in both dimensions: the step is of its size, from starts 1e3 too large or too small."""
        for width in (1e-3, 1e3):
            chains = target(lambda u, width=width: -0.5 * (u / width).square().sum(-1))
            point = chains.at(width * torch.randn(200, 1, 2))
            step = first_step(chains, point, torch.ones(1, 2), torch.ones(1))
            assert 0.3 < step.item() / width < 3

    def test_the_first_step_does_not_depend_on_other_data(self):
        """200 means of log2, one datum alone or with 300 others: they differ by 5 standard errors once in a million."""
        chains = target(lambda u: -0.5 * u.square().sum(-1))

        def steps(number):
            point = chains.at(torch.randn(4, number, 2))
            return first_step(chains, point, torch.ones(number, 2), torch.full((number,), 0.05)).log2()

        alone, together = torch.cat([steps(1) for _ in range(300)]), steps(300)
        error = (alone.var() / 300 + together.var() / 300).sqrt()
        assert (alone.mean() - together.mean()).abs() < 5 * error

    def test_the_rate_of_acceptance_comes_to_the_target(self):
        """A deterministic rate exp(-step): the step comes to -log 0.8."""
        size = StepSize(torch.tensor([1.0, 0.01]))
        for _ in range(2000):
            size.update((-size.value).exp())
        assert (size.average.exp() + math.log(0.8)).abs().max() < 0.02

    def test_data_of_other_widths_are_drawn_as_well(self):
        """Widths 0.01 to 100. 12 variances at 4.5 standard errors; fixed seed."""
        widths = torch.tensor([[1e-2, 0.1], [1.0, 0.1], [1e2, 30.0]])

        def density(u):
            return -0.5 * (u / widths).square().sum(-1)

        box = torch.full((1, 1), math.inf)
        states = sample(
            Target(lambda u: (density(u), -u / widths.square()), -box, box),
            torch.randn(4, 3, 2),
            torch.ones(3, 2),
            warmup=200,
            draws=250,
        )
        draws = torch.stack([u for u, _ in states][200:], 1)
        size = effective_sample_size(draws.square(), chain_dim=0, sample_dim=1)
        assert size.min() > 150
        values = draws.flatten(0, 1).square() / widths.square()
        assert ((values.mean(0) - 1).abs() < 4.5 * values.std(0) / size.sqrt()).all()
        assert effective_sample_size(draws, chain_dim=0, sample_dim=1).min() > 400
