"""Names of the earlier release give the new objects, and warn at the line of the user's code."""

import importlib
import warnings

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, compiled, evaluate, likelihoods
from pyro_vae.conditional import Family
from pyro_vae.data import Split

OLD = {
    ("evaluate", "split"): evaluate.elbo_terms,
    ("evaluate", "activity"): evaluate.latent_activity,
    ("evaluate", "aggregate"): evaluate.elbo_surgery,
    ("compiled", "Traced"): compiled.GraphedFunction,
    ("compiled", "how_many_fit"): compiled.max_batch_size,
}
LAW = r"\.law is deprecated. Use Family.distribution"


@pytest.mark.parametrize(("module", "name"), OLD)
def test_an_old_name_gives_the_new_object_and_warns(module, name):
    new, path = OLD[module, name], f"pyro_vae.{module}"
    with pytest.warns(DeprecationWarning, match=f"{path}.{name} .* Use {path}.{new.__name__}") as caught:
        assert getattr(importlib.import_module(path), name) is new
    assert [warning.filename for warning in caught] == [__file__]


def test_an_old_name_can_be_imported():
    with pytest.warns(DeprecationWarning, match="evaluate.split") as caught:
        from pyro_vae.evaluate import split
    assert split is evaluate.elbo_terms
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("module", [compiled, evaluate])
def test_a_misspelt_name_is_missing(module):
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'spilt'"):
        module.spilt  # noqa: B018


def test_a_subclass_that_defines_law_works_and_warns_once():
    with pytest.warns(DeprecationWarning, match=f"Mine{LAW}") as caught:

        class Mine(Family):
            params = 1

            def law(self, log_rate):
                return dist.Exponential(log_rate.exp())

    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distribution = Mine((3,))(torch.zeros(5, 1, 3))
    assert (distribution.batch_shape, distribution.event_shape) == ((5,), (3,))
    assert distribution.mean.eq(1).all()


def test_a_subclass_can_call_law_of_its_base():
    with pytest.warns(DeprecationWarning, match=f"Mine{LAW}"):

        class Mine(likelihoods.Gaussian):
            def law(self, loc):
                return super().law(loc + 1)

    with pytest.warns(DeprecationWarning, match=f"Gaussian{LAW}"):
        distribution = Mine((3,), scale=0.5)(torch.zeros(5, 1, 3))
    assert distribution.mean.eq(1).all()


def test_law_of_a_family_warns():
    family = likelihoods.Bernoulli((3,))
    with pytest.warns(DeprecationWarning, match=f"Bernoulli{LAW}") as caught:
        distribution = family.law(torch.zeros(5, 3))
    assert [warning.filename for warning in caught] == [__file__]
    assert distribution.mean.equal(family.distribution(torch.zeros(5, 3)).mean)


def test_old_names_of_attributes_give_the_new_ones():
    split = Split(torch.tensor([[0, 255]], dtype=torch.uint8))
    with pytest.warns(DeprecationWarning, match="Split.white .* Use Split.max_value") as caught:
        assert split.white == 255
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(DeprecationWarning, match="with_fixed_noise"):
        assert torch.equal(split.frozen(torch.Generator())[:], split[:])
    with pytest.raises(AttributeError, match="'Split' object has no attribute 'spilt'"):
        _ = split.spilt
    encoder = VAE.build((4,), latent=2).encoder
    with pytest.warns(DeprecationWarning, match="parameters_of") as caught:
        assert encoder.propose(torch.zeros(3, 4)).shape == (3, 2, 2)
    assert [warning.filename for warning in caught] == [__file__]
