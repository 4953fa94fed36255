r"""Evaluation: per-datum log-weights, and what is read off them.

All is per datum, in nats, but :func:`bits_per_dim`. :func:`log_weights` is the one that asks the VAE; :func:`elbo`,
:func:`iwae` and :func:`ess` are functions of what it returns. Where elements of x are missing, as NaN, x is what is
observed of it: all is of :math:`\log p(x_o)`.
"""

from pyro_vae.evaluate.bits import bits_per_dim
from pyro_vae.evaluate.summaries import DRAWS as DRAWS
from pyro_vae.evaluate.summaries import Summary, Values, per_image, summary
from pyro_vae.evaluate.terms import active_units, activity, kl_per_dim, split
from pyro_vae.evaluate.weights import elbo, ess, iwae, log_weights, nll

__all__ = [
    "Summary",
    "Values",
    "active_units",
    "activity",
    "bits_per_dim",
    "elbo",
    "ess",
    "iwae",
    "kl_per_dim",
    "log_weights",
    "nll",
    "per_image",
    "split",
    "summary",
]
