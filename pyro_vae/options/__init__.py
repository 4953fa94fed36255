"""From the words of ``pyro-vae`` to parts: options, classes by name, and one sentence for what is wrong."""

from pyro_vae.options.classes import ROOMS, columns_of, kind_of, make
from pyro_vae.options.parsing import check_config, in_full, parse, parser, sentence

__all__ = ["ROOMS", "check_config", "columns_of", "in_full", "kind_of", "make", "parse", "parser", "sentence"]
