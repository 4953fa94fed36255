"""Options of the ``pyro-vae`` command: parsing, classes by name, and errors in one line."""

from pyro_vae.options.classes import ROOMS, class_of, columns_of, make
from pyro_vae.options.parsing import check_config, error_message, expand_names, parse, parser

__all__ = ["ROOMS", "check_config", "class_of", "columns_of", "error_message", "expand_names", "make", "parse"]
__all__ += ["parser"]
