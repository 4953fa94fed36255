"""Every prior, likelihood and guide with each of the others: 8 steps on the digits, of finite and falling loss."""

from functools import cache, partial
from itertools import product

import pyro
import pytest
import torch
from test_parts import LIKELIHOODS, kind
from test_priors import GUIDES, PRIORS

from pyro_vae import VAE, data, networks, objectives
from pyro_vae.train import check_support

pytestmark = pytest.mark.slow

# By the support of a likelihood's elements: how the digits are read for it, and with which arguments it is made.
READ: dict[str, tuple[dict, dict]] = {
    "Real()": ({}, {}),
    "Boolean()": ({"binarize": "dynamic"}, {}),
    "Interval(lower_bound=0.0, upper_bound=1.0)": ({}, {}),
    "OpenUnitInterval()": ({"dequantize": True}, {}),
    "Levels(256)": ({}, {"levels": 17}),
    "IntegerGreaterThan(lower_bound=0)": ({"counts": True}, {}),
}
# What is not tried, and why.
LEFT_OUT = {
    ("VampPrior", "Flow, autoregressive"): "the density at another's draw takes a pass for each dimension: right "
    "(tests/test_priors.py), and so slow that nobody would train it",
}
GUIDE = [*GUIDES]
# All pairs, not all triples: the guide goes by one as the prior or the likelihood does.
SQUARE = [(p, x, GUIDE[(i + j) % len(GUIDE)]) for (i, p), (j, x) in product(enumerate(PRIORS), enumerate(LIKELIHOODS))]
TRIPLES = [triple for triple in SQUARE if (triple[0], triple[2]) not in LEFT_OUT]
PAIRS = {(x, q) for _, x, q in TRIPLES}
TRIPLES += [(next(iter(PRIORS)), *pair) for pair in product(LIKELIHOODS, GUIDES) if pair not in PAIRS]


digits = cache(partial(data.load, "digits"))


def test_every_pair_is_there_but_what_is_left_out():
    assert all(prior in PRIORS and guide in GUIDES for prior, guide in LEFT_OUT)
    assert {(p, q) for p, _, q in TRIPLES} == {*product(PRIORS, GUIDES)} - {*LEFT_OUT}
    assert {(x, q) for _, x, q in TRIPLES} == {*product(LIKELIHOODS, GUIDES)}
    assert {p for p, _, _ in TRIPLES} == {*PRIORS}


@pytest.mark.parametrize(("prior", "likelihood", "guide"), TRIPLES, ids=[" | ".join(triple) for triple in TRIPLES])
def test_a_triple_learns(prior, likelihood, guide, param_store):
    """The mean of the last 3 losses is below that of the first 3, on one batch of 32 images."""
    part = LIKELIHOODS[likelihood]
    how, arguments = READ[kind(part(4)(torch.zeros(1, part(4).params, 4)))]
    part, dataset = partial(part, **arguments), digits(**how)
    vae = VAE.build(dataset.event_shape, 4, PRIORS[prior], part, GUIDES[guide], partial(networks.MLP, hidden=(32,)))
    check_support(vae, dataset)
    vae.decoder.start_at(dataset.mean)
    x = dataset.train[:32]
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), objectives.ELBO())
    losses = torch.tensor([svi.step(x) for _ in range(8)])
    assert losses.isfinite().all()
    assert losses[-3:].mean() < losses[:3].mean()
