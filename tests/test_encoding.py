"""A data set of codes: draws of a guide whose distribution is known."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import data, evaluate, guides, programs
from pyro_vae.oracle import LinearGaussian

LATENT = 2


@pytest.fixture
def dataset():
    whole = data.from_tensor(torch.randn(400, 3), labels=torch.arange(400) % 4)
    return data.labelled(whole, 8)


@pytest.fixture
def vae():
    return LinearGaussian(torch.randn(3, LATENT), torch.randn(3), scale=0.7).vae("mean-field").float()


def test_codes_are_draws_of_the_guide(vae, dataset):
    """Standardised they are of mean 0 and variance 1: off by 5 errors of 1,600 draws once in a million runs."""
    codes = evaluate.encode(vae, dataset)
    assert codes.event_shape == (LATENT,)
    distribution = vae.encoder(dataset.train[:]).base_dist
    errors = torch.cat([((codes.train[:] - distribution.loc) / distribution.scale).flatten() for _ in range(3)])
    assert abs(errors.mean()) < 5 / len(errors) ** 0.5
    assert abs(errors.var() - 1) < 5 * (2 / len(errors)) ** 0.5
    torch.testing.assert_close(codes.train.pixels, distribution.loc)


def test_of_training_data_they_are_drawn_anew_and_of_others_once(vae, dataset):
    codes = evaluate.encode(vae, dataset)
    assert not torch.equal(codes.train[:], codes.train[:])
    for one, other in ((codes.valid, codes.test), (evaluate.encode(vae, dataset).valid, codes.test)):
        assert torch.equal(one[:], codes.valid[:])
        assert torch.equal(other[:], other[:])
    assert not torch.equal(evaluate.encode(vae, dataset, seed=1).test[:], codes.test[:])


def test_labels_stay_and_rows_are_those_of_the_data(vae, dataset):
    codes = evaluate.encode(vae, dataset)
    assert torch.equal(codes.train.columns["y"], dataset.train.columns["y"])
    assert torch.equal(codes.test.labels, dataset.test.labels)
    few = torch.tensor([5, 2])
    torch.testing.assert_close(codes.train.part(few).pixels, vae.encoder(dataset.train[few]).base_dist.loc)
    assert codes.train.part(few).digests["scale"] != codes.train.digests["scale"]


def test_torchs_state_is_left_alone(vae, dataset):
    before = torch.get_rng_state()
    evaluate.encode(vae, dataset)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_by_its_name(dataset):
    """The one that is drawn from x; a layer that is drawn from another has no distribution of x alone."""
    layers = programs.HierarchicalVAE.build((3,), latents=(4, 2))
    assert evaluate.encode(layers, dataset, site="z1").event_shape == (4,)
    with pytest.raises(ValueError, match="'z2' from a Normal of x alone.*; got one that changes with another site"):
        evaluate.encode(layers, dataset, site="z2")


class Correlated(nn.Module):
    def forward(self, x):
        return dist.MultivariateNormal(x[..., :LATENT], torch.eye(LATENT))


class Positive(nn.Module):
    def forward(self, x):
        return dist.LogNormal(x[..., :LATENT], 1.0).to_event(1)


@pytest.mark.parametrize(
    ("site", "encoder", "got"),
    [
        ("w", None, "no such site"),
        ("z", Correlated(), "MultivariateNormal"),
        ("z", Positive(), "LogNormal"),
        ("z", "full", "MultivariateNormal"),
    ],
)
def test_another_law_gets_a_sentence(vae, dataset, site, encoder, got):
    if encoder == "full":
        vae = programs.VAE.build((3,), LATENT, guide=guides.FullNormal)
    elif encoder:
        vae.encoder = encoder
    with pytest.raises(ValueError, match=f"draw '{site}' from a Normal.*; got {got}"):
        evaluate.encode(vae, dataset, site)
