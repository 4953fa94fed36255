r"""Evaluation: per-datum log-weights, and what is read off them.

All is per datum, in nats, but :func:`bits_per_dim`. :func:`elbo`, :func:`iwae`, :func:`iwae_curve`, :func:`ess` and
:func:`pareto_k` are functions of :func:`log_weights`. Where elements of x are missing, as NaN, all is of
:math:`\log p(x_o)`, of the observed ones. No function changes a program, or the state of a random generator.

``program`` is a VAE or any program; ``data`` are its data: x, a tuple of arguments or a dict by name. ``seed`` is that
of the draws, None being torch's state; ``progress`` is whether to show a progress bar.
"""

from pyro_vae.evaluate.adapted import fitting_draws
from pyro_vae.evaluate.codes import (
    Aggregate,
    active_units,
    activity,
    aggregate,
    aggregate_of_codes,
    dimensions,
    guide_means,
    mutual_information,
    posterior,
    usage,
)
from pyro_vae.evaluate.encoding import encode
from pyro_vae.evaluate.summaries import (
    DRAWS,
    Summary,
    Values,
    covariates,
    is_exact,
    kl_by_site,
    kl_per_dim,
    measures,
    per_image,
    rows_of,
    split,
    summary,
)
from pyro_vae.evaluate.weighing import ORIGINS, Proposal, log_weights, nll
from pyro_vae.evaluate.weights import bits_per_dim, elbo, ess, iwae, iwae_curve, pareto_k

__all__ = ["Aggregate", "DRAWS", "ORIGINS", "Proposal", "Summary", "Values", "active_units", "activity"]
__all__ += ["aggregate", "aggregate_of_codes", "bits_per_dim", "covariates", "dimensions", "elbo", "encode"]
__all__ += ["ess", "fitting_draws", "guide_means", "is_exact", "iwae", "iwae_curve", "kl_by_site"]
__all__ += ["kl_per_dim", "log_weights", "measures", "mutual_information", "nll", "pareto_k", "per_image"]
__all__ += ["posterior", "rows_of", "split", "summary", "usage"]
