from functools import partial

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import nn

from pyro_vae import VAE, guides, likelihoods, networks, priors

SHAPES = [(6,), (1, 8, 8), (3, 5, 7)]


def build(event_shape=(1, 8, 8), **parts):
    return VAE.build(event_shape, **({"latent": 3} | parts))


@pytest.mark.parametrize("event_shape", SHAPES, ids=str)
def test_the_two_programs_sample_z_and_x_in_one_plate(event_shape, param_store):
    vae = build(event_shape)
    x = torch.rand(5, *event_shape)
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    model.compute_log_prob()
    guide.compute_log_prob()
    assert guide.nodes["z"]["value"].shape == (5, 3)
    assert [name for name, site in model.nodes.items() if site["type"] == "sample"] == ["data", "z", "x"]
    for site in (model.nodes["z"], model.nodes["x"], guide.nodes["z"]):
        assert site["log_prob"].shape == (5,)
        assert [frame.name for frame in site["cond_indep_stack"]] == ["data"]


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, partial(Trace_ELBO, 5, vectorize_particles=True)])
def test_stock_pyro_trains_it(elbo, param_store):
    vae = build()
    x = torch.rand(64, 1, 8, 8)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), elbo())
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_every_parameter_gets_a_gradient(param_store):
    vae = build()
    Trace_ELBO().loss_and_grads(vae.model, vae.guide, torch.rand(64, 1, 8, 8))
    for name, parameter in vae.named_parameters():
        assert parameter.grad.any(), name


def test_pyros_predictive_works_on_it(param_store):
    vae = build()
    drawn = Predictive(vae.model, guide=vae.guide, num_samples=4)(torch.rand(5, 1, 8, 8))
    assert drawn["z"].shape == (4, 5, 3)


def test_parts_may_be_any_modules(param_store):
    """Only ``forward`` returning a distribution counts: a prior and a decoder written on the spot."""

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 6)

        def forward(self, z):
            return dist.Laplace(self.linear(z), 1.0).to_event(1)

    vae = VAE(priors.StandardNormal(3), Decoder(), build((6,)).encoder)
    assert SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(torch.rand(5, 6)) > 0
    assert vae.generate(2).shape == (2, 6)


def test_the_pictures_of_a_vae_have_the_shapes_they_say():
    vae, x = build(), torch.rand(5, 1, 8, 8)
    assert vae.generate(7).shape == (7, 1, 8, 8)
    assert vae.reconstruct(x).shape == x.shape
    assert vae.interpolate(x, x.flip(0), steps=4).shape == (5, 4, 1, 8, 8)
    assert vae.traverse(x[0], steps=6).shape == (3, 6, 1, 8, 8)
    assert build(latent=2).manifold(4).shape == (4, 4, 1, 8, 8)


def test_interpolation_starts_and_ends_at_the_reconstructions():
    vae, x = build(), torch.rand(5, 1, 8, 8)
    line = vae.interpolate(x, x.flip(0), steps=3)
    torch.testing.assert_close(line[:, 0], vae.reconstruct(x))
    torch.testing.assert_close(line[:, -1], vae.reconstruct(x.flip(0)))


def test_a_traversal_moves_one_dimension_at_a_time():
    vae, x = build(), torch.rand(1, 8, 8)
    z = vae.encoder(x.unsqueeze(0)).mean[0]
    rows = vae.traverse(x, span=2.0, steps=5)
    for d in range(3):
        moved = z.clone()
        moved[d] = 2.0
        torch.testing.assert_close(rows[d, -1], vae.decoder(moved).mean)


def test_the_manifold_goes_right_and_up():
    vae = build(latent=2)
    low, high = torch.special.ndtri(torch.tensor([0.25, 0.75]))
    grid = vae.manifold(2)
    torch.testing.assert_close(grid[0, 0], vae.decoder(torch.stack([low, high])).mean)
    torch.testing.assert_close(grid[1, 1], vae.decoder(torch.stack([high, low])).mean)


def test_it_runs_where_it_is_put(device, param_store):
    vae = build().double().to(device)
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64, device=device)
    assert vae.generate(2).device.type == device
    assert vae.generate(2).dtype == torch.float64
    assert SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x) != 0


class Scalar(nn.Module):
    """A prior that forgets ``to_event``."""

    def __init__(self, latent):
        super().__init__()
        self.latent = latent

    def forward(self):
        return dist.Normal(torch.zeros(self.latent), 1.0)


class Constant(nn.Module):
    """A prior that returns a draw, not a distribution."""

    def forward(self):
        return torch.zeros(3)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"latent": 0}, "latent of at least 1; got 0"),
        ({"prior": Scalar}, r"prior over event shape \(3,\); got \(\). Add .to_event\(1\)"),
        ({"prior": likelihoods.Bernoulli}, "prior whose forward.. takes no arguments; Bernoulli.* raised: .*phi"),
        ({"prior": lambda latent: Constant()}, "forward.. returns a distribution; Constant.* returned .*Tensor"),
        ({"likelihood": priors.StandardNormal}, "likelihood to be a subclass of .*Family; got StandardNormal"),
        ({"guide": priors.StandardNormal}, "guide to be a subclass of .*Family; got StandardNormal"),
        ({"event_shape": (0,)}, "event of at least one element"),
        ({"event_shape": (6,), "network": networks.Conv}, "Expected images"),
        ({"likelihood": partial(likelihoods.Gaussian, scale=0)}, "positive scale"),
        ({"likelihood": partial(likelihoods.Gaussian, sigma=1)}, r"likelihood\(\(1, 8, 8\)\); got: .*'sigma'"),
        ({"prior": Constant}, r"prior\(3\); got: .*takes 1 positional argument but 2"),
    ],
)
def test_bad_parts_get_a_sentence(parts, message):
    with pytest.raises(ValueError, match=message):
        build(**parts)


def test_a_manifold_needs_two_dimensions():
    with pytest.raises(ValueError, match="2 latent dimensions for a manifold; got 3"):
        build().manifold()


def test_the_guide_family_may_be_named():
    assert isinstance(build(guide=guides.DiagonalNormal).encoder.family, guides.DiagonalNormal)
