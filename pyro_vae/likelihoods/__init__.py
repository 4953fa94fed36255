r"""Likelihoods p(x | z): families over the data's event shape.

See :class:`pyro_vae.conditional.Family` for how to write one. Each says which x it is of, and whether log p is of a
density, which compares only with densities of the same x, or of a mass, which is a probability.
"""

from pyro_vae.likelihoods.counts import NegativeBinomial, Poisson
from pyro_vae.likelihoods.grey import Categorical, DiscretizedLogistic, DiscretizedLogisticMixture
from pyro_vae.likelihoods.real import Gaussian, Laplace, StudentT
from pyro_vae.likelihoods.unit import Bernoulli, Beta, ContinuousBernoulli

__all__ = ["Bernoulli", "Beta", "Categorical", "ContinuousBernoulli", "DiscretizedLogistic"]
__all__ += ["DiscretizedLogisticMixture", "Gaussian", "Laplace", "NegativeBinomial", "Poisson", "StudentT"]
