"""What is shown of a VAE: the closing table of a run, its figures, and a full evaluation with a diagnosis."""

from pyro_vae.report.diagnosis import diagnosis
from pyro_vae.report.evaluation import Evaluation, evaluation
from pyro_vae.report.figures import figures
from pyro_vae.report.table import table

__all__ = ["Evaluation", "diagnosis", "evaluation", "figures", "table"]
