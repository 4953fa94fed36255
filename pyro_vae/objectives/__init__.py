"""Objectives: ELBO estimators for any Pyro model and guide.

Each objective is a ``pyro.infer.ELBO``. Pass an objective as the ``loss`` of ``pyro.infer.SVI``. Like Pyro's losses,
the loss is in nats, is summed over the data and includes all constants.
"""

from pyro_vae.objectives.base import Objective
from pyro_vae.objectives.divergence import Report, SiteKL, closed_form_kl
from pyro_vae.objectives.elbo import ELBO
from pyro_vae.objectives.importance import IWAE, Renyi, ReweightedWakeSleep
from pyro_vae.objectives.penalties import MMD, Penalty, TotalCorrelation
from pyro_vae.objectives.prior import PriorCrossEntropy
from pyro_vae.objectives.schedules import Cosine, Cyclical, Linear, Schedule

__all__ = ["ELBO", "IWAE", "MMD", "Cosine", "Cyclical", "Linear", "Objective", "Penalty", "PriorCrossEntropy", "Renyi"]
__all__ += ["Report", "ReweightedWakeSleep", "Schedule", "SiteKL", "TotalCorrelation", "closed_form_kl"]
