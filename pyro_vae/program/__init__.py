"""Programs and posteriors: a program is a model and a guide; a posterior is a program together with data."""

from pyro_vae.program.checks import argument_names, arguments, check_methods, reference_tensor
from pyro_vae.program.posterior import Posterior, drawn_posterior, posterior_of
from pyro_vae.program.structure import Draws, Program, Structure, autoguide_rows, coordinates, structure

__all__ = ["Draws", "Posterior", "Program", "Structure", "argument_names", "arguments", "autoguide_rows"]
__all__ += ["check_methods", "coordinates", "drawn_posterior", "posterior_of", "reference_tensor", "structure"]
