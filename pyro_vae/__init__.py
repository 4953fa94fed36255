"""Variational autoencoders as probabilistic programs: a Pyro model, a Pyro guide, and SVI."""

from pyro_vae import (
    conditional,
    data,
    evaluate,
    guides,
    likelihoods,
    networks,
    objectives,
    oracle,
    plots,
    priors,
    report,
)
from pyro_vae.checkpoint import load
from pyro_vae.train import fit
from pyro_vae.vae import VAE

__all__ = [
    "VAE",
    "conditional",
    "data",
    "evaluate",
    "fit",
    "guides",
    "likelihoods",
    "load",
    "networks",
    "objectives",
    "oracle",
    "plots",
    "priors",
    "report",
]
