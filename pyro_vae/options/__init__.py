"""Options of the ``pyro-vae`` command: parsing, classes by name, and errors in one line."""

from pyro_vae.options.classes import ROOMS
from pyro_vae.options.parsing import check_config, error_message, expand_names, parse, parser
from pyro_vae.options.training import dataset_of, fit_arguments, program_of

__all__ = ["ROOMS", "check_config", "dataset_of", "error_message", "expand_names", "fit_arguments", "parse", "parser"]
__all__ += ["program_of"]
