"""Options of the ``pyro-vae`` command: parsing, classes by name, and errors in one line."""

from pyro_vae.options.classes import ROOMS
from pyro_vae.options.messages import error_message
from pyro_vae.options.parsing import Options, check_config, expand_names, parse, parser
from pyro_vae.options.training import dataset_of, fit_arguments, program_of

__all__ = ["ROOMS", "Options", "check_config", "dataset_of", "error_message", "expand_names", "fit_arguments", "parse"]
__all__ += ["parser", "program_of"]
