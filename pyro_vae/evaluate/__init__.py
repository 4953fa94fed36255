r"""Evaluation: per-datum log-weights, and what is read off them.

All is per datum, in nats, but :func:`bits_per_dim`. :func:`log_weights` is the one that asks the program; :func:`elbo`,
:func:`iwae`, :func:`iwae_curve`, :func:`ess` and :func:`pareto_k` are functions of what it returns. Where elements of x
are missing, as NaN, x is what is observed of it: all is of :math:`\log p(x_o)`.
"""

from pyro_vae.evaluate.aggregate import Aggregate, aggregate, mutual_information
from pyro_vae.evaluate.bits import bits_per_dim
from pyro_vae.evaluate.classes import posterior
from pyro_vae.evaluate.pareto import pareto_k
from pyro_vae.evaluate.summaries import DRAWS as DRAWS
from pyro_vae.evaluate.summaries import Summary, Values, covariates, per_image, rows_of, summary
from pyro_vae.evaluate.terms import (
    active_units,
    activity,
    dimensions,
    guide_means,
    is_exact,
    kl_by_site,
    kl_per_dim,
    split,
)
from pyro_vae.evaluate.weights import elbo, ess, iwae, iwae_curve, log_weights, nll

__all__ = [
    "Aggregate",
    "Summary",
    "Values",
    "active_units",
    "activity",
    "aggregate",
    "bits_per_dim",
    "covariates",
    "dimensions",
    "elbo",
    "ess",
    "guide_means",
    "is_exact",
    "iwae",
    "iwae_curve",
    "kl_by_site",
    "kl_per_dim",
    "log_weights",
    "mutual_information",
    "nll",
    "pareto_k",
    "per_image",
    "posterior",
    "rows_of",
    "split",
    "summary",
]
