"""Reports on a program: the closing table and figures of a run, and a full evaluation with a diagnosis."""

from pyro_vae.report.closing import figures, table
from pyro_vae.report.diagnosis import diagnosis
from pyro_vae.report.evaluation import Evaluation, evaluation

__all__ = ["Evaluation", "diagnosis", "evaluation", "figures", "table"]
