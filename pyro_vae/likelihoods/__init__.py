r"""Likelihoods p(x | z): families over the event shape of the data.

Each docstring names the support, and says whether p is a density or a probability mass. Compare a log density only
with log densities of the same x. To write a likelihood, subclass :class:`pyro_vae.conditional.Family`.
"""

from pyro_vae.likelihoods.counts import NegativeBinomial, Poisson
from pyro_vae.likelihoods.grey import Categorical, DiscretizedLogistic, DiscretizedLogisticMixture
from pyro_vae.likelihoods.real import Gaussian, Laplace, StudentT
from pyro_vae.likelihoods.unit import Bernoulli, Beta, ContinuousBernoulli

__all__ = ["Bernoulli", "Beta", "Categorical", "ContinuousBernoulli", "DiscretizedLogistic"]
__all__ += ["DiscretizedLogisticMixture", "Gaussian", "Laplace", "NegativeBinomial", "Poisson", "StudentT"]
