"""A program is a model and a guide; a posterior is a program at some data. Everything that asks, asks a posterior."""

from pyro_vae.program.checks import argument_names, arguments, check_methods, point_of
from pyro_vae.program.posterior import Posterior, drawn_posterior, posterior_of
from pyro_vae.program.structure import Draws, Program, Structure, coordinates, own_rows, structure

__all__ = ["Draws", "Posterior", "Program", "Structure", "argument_names", "arguments", "check_methods"]
__all__ += ["coordinates", "drawn_posterior", "own_rows", "point_of", "posterior_of", "structure"]
