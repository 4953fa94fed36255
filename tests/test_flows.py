"""Transforms and mixtures against the algebra that defines them."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import Spline
from pyro.nn import AutoRegressiveNN

from pyro_vae.flows import Autoregressive, Broadcast, Mixture, SplineCoupling, gentle


def spline():
    net = torch.nn.Linear(2, 3 * 23)
    torch.nn.init.normal_(net.weight, std=2.0)
    return SplineCoupling(net)


def autoregressive():
    return Autoregressive(AutoRegressiveNN(5, [16], permutation=torch.arange(5)))


MADE = {"spline": spline, "autoregressive": autoregressive}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
class TestTransforms:
    def test_there_and_back(self, make, float64):
        transform, x = make(), 3 * torch.randn(200, 5)
        y = transform(x)
        torch.testing.assert_close(transform.inv(y.clone()), x, rtol=0, atol=1e-7)

    def test_the_log_determinant_is_that_of_the_jacobian(self, make, float64):
        transform = make()
        for x in 3 * torch.randn(20, 5):
            expected = torch.autograd.functional.jacobian(transform, x).slogdet()[1]
            found = transform.log_abs_det_jacobian(x.clone(), transform(x))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)

    def test_what_it_remembers_is_of_the_pair_that_it_is_asked_for(self, make, float64):
        transform, x = make(), torch.randn(3, 5)
        y = transform(x)
        first = transform.log_abs_det_jacobian(x, y)
        transform(2 * x)
        torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), first, rtol=0, atol=0)
        z = transform.inv(y + 0)
        torch.testing.assert_close(transform.log_abs_det_jacobian(z, y), first, rtol=0, atol=1e-8)

    def test_in_the_dtype_of_its_argument(self, make):
        transform = make()
        transform.net.double()
        x = torch.randn(2, 5, dtype=torch.float64)
        assert transform.inv(transform(x).clone()).dtype == torch.float64


def test_a_spline_is_pyros(float64):
    """In all bins but the first and the last: at the ends Pyro's slope is 0.999, and the identity's is 1."""
    theirs = Spline(1, count_bins=6, bound=5.0, order="quadratic")
    names = ("unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives")
    widths, heights, slopes = (getattr(theirs, name).detach().squeeze(0) for name in names)
    shift = torch.tensor(1 - 1e-3).expm1().log()  # at which a slope is 1
    numbers = torch.cat([widths, heights, slopes - shift])
    ours = SplineCoupling(lambda kept: numbers.expand(*kept.shape[:-1], -1), bins=6, bound=5.0)
    knots = 10 * (1e-3 + (1 - 6e-3) * widths.softmax(-1)).cumsum(-1) - 5
    x = torch.linspace(knots[0].item(), knots[-2].item(), 103)[1:-1].unsqueeze(-1)
    both = torch.cat([torch.zeros_like(x), x], -1)
    y, expected = ours(both), theirs(x).detach()
    torch.testing.assert_close(y[:, 1:], expected, rtol=0, atol=1e-9)
    slope = theirs.log_abs_det_jacobian(x, theirs(x)).detach().squeeze(-1)
    torch.testing.assert_close(ours.log_abs_det_jacobian(both, y), slope, rtol=0, atol=1e-9)


def test_a_spline_is_the_identity_outside_its_box_and_where_the_network_says_nothing(float64):
    x = torch.tensor([[0.1, 0.2, 7.0, -9.0, 5.0]])
    transform = spline()
    assert torch.equal(transform(x)[:, 2:], x[:, 2:])
    assert transform.log_abs_det_jacobian(x, transform(x)).abs().max() < 1e-12
    flat = SplineCoupling(lambda kept: torch.zeros(*kept.shape[:-1], 3 * 23))
    x = torch.randn(50, 5)
    torch.testing.assert_close(flat(x), x)


def test_a_gentle_network_makes_a_transform_that_does_little():
    net = gentle(AutoRegressiveNN(5, [16], permutation=torch.arange(5)))
    x = torch.randn(50, 5)
    assert (Autoregressive(net)(x) - x).abs().max() < 0.1


def test_broadcast_gives_each_z_the_batch_of_x():
    transform = Broadcast(torch.Size([4]))
    assert transform.inv(torch.zeros(7, 1, 3)).shape == (7, 4, 3)
    assert transform.log_abs_det_jacobian(torch.zeros(7, 4, 3), torch.zeros(7, 1, 3)).shape == (7, 4)


COMPONENTS = {
    "diagonal": lambda: dist.Normal(3 * torch.randn(4, 3), 0.01 + torch.rand(4, 3)).to_event(1),
    "full": lambda: dist.MultivariateNormal(torch.randn(4, 3), scale_tril=torch.eye(3) + torch.ones(4, 3, 3).tril(-1)),
}


@pytest.mark.parametrize("components", COMPONENTS.values(), ids=COMPONENTS)
class TestMixture:
    def test_is_pyros(self, components, float64):
        weights, distribution = dist.Categorical(logits=torch.randn(4)), components()
        z = 3 * torch.randn(6, 5, 3)
        expected = dist.MixtureSameFamily(weights, distribution).log_prob(z)
        torch.testing.assert_close(Mixture(weights, distribution).log_prob(z), expected, rtol=1e-12, atol=1e-10)

    def test_in_float32_far_from_narrow_components(self, components):
        """Squares of 1e5 nearly cancel, and what is left must be right."""
        loc = torch.tensor([[3.0, -2.0, 1.0], [3.1, -2.0, 1.0]])
        weights, distribution = dist.Categorical(logits=torch.zeros(2)), dist.Normal(loc, 0.01).to_event(1)
        z = torch.tensor([[3.01, -2.0, 1.0]])
        expected = dist.Normal(loc[0].double(), 0.01).log_prob(z.double()).sum(-1) - torch.tensor(2.0).log()
        torch.testing.assert_close(Mixture(weights, distribution).log_prob(z).double(), expected, rtol=1e-5, atol=1e-4)

    def test_stays_small_in_a_plate(self, components):
        distribution = Mixture(dist.Categorical(logits=torch.zeros(4)), components()).expand((7, 5))
        assert distribution.batch_shape == (7, 5)
        z = distribution.sample()
        assert z.shape == (7, 5, 3)
        assert distribution.log_prob(z).shape == (7, 5)
        assert distribution.base_dist.component_distribution.batch_shape == (4,)
