r"""Evaluation of a program: log-weights per datum, bounds, terms of the ELBO, and diagnostics of the codes.

Values are per datum and in nats, except :func:`bits_per_dim`. :func:`elbo`, :func:`iwae`, :func:`iwae_curve`,
:func:`ess` and :func:`pareto_k` take log-weights from :func:`log_weights`. If elements of x are NaN (missing), values
refer to :math:`\log p(x_o)` of the observed elements. No function changes a program or the state of a random generator.

Common arguments: ``program`` is a VAE or any program; ``data`` is x, a tuple of the program's arguments or a dictionary
of arguments by name; ``seed`` seeds the draws, None uses torch's state; ``progress`` shows a progress bar.
"""

from pyro_vae.deprecated import renamed
from pyro_vae.evaluate.adapted import fitting_draws
from pyro_vae.evaluate.codes import (
    Aggregate,
    active_units,
    aggregate_of_codes,
    dimensions,
    elbo_surgery,
    guide_means,
    latent_activity,
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
    elbo_terms,
    is_exact,
    kl_by_site,
    kl_per_dim,
    mean_kl,
    measures,
    per_image,
    rows_of,
    summary,
)
from pyro_vae.evaluate.weighing import ORIGINS, Proposal, log_weights, method, nll, sums_codes
from pyro_vae.evaluate.weights import bits_per_dim, elbo, ess, iwae, iwae_curve, pareto_k

__all__ = ["Aggregate", "DRAWS", "ORIGINS", "Proposal", "Summary", "Values", "active_units", "aggregate_of_codes"]
__all__ += ["bits_per_dim", "covariates", "dimensions", "elbo", "elbo_surgery", "elbo_terms", "encode", "ess"]
__all__ += ["fitting_draws", "guide_means", "is_exact", "iwae", "iwae_curve", "kl_by_site", "kl_per_dim"]
__all__ += ["latent_activity", "log_weights", "mean_kl", "measures", "method", "mutual_information", "nll"]
__all__ += ["pareto_k", "per_image", "posterior", "rows_of", "summary", "sums_codes", "usage"]

__getattr__ = renamed(__name__, {"activity": "latent_activity", "aggregate": "elbo_surgery", "split": "elbo_terms"})
