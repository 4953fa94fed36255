"""The ``pyro-vae`` command: help and version, which need no torch, and the way to ``commands``, which does."""

import gc
import sys
from argparse import ArgumentError, ArgumentParser
from importlib.metadata import version
from typing import Any

__all__ = ["main"]

# First lines of the docstrings in ``commands``, whose import takes seconds.
COMMANDS = {
    "train": "Train a VAE or another program, print its ELBO and -log p(x) on each split, and draw figures.",
    "evaluate": "Evaluate a trained program and its guide, print a diagnosis, and draw figures.",
    "generate": "Draw data from a trained program; from a VAE, mean images at draws of the prior.",
    "sweep": "Train a run for each setting and seed in a YAML file of options, in several processes.",
    "compare": "Rank trained programs, or the settings of a study over seeds, by -log p(x), in a table and a figure.",
    "report": "Write a page about trained programs: one HTML file to share, with curves, numbers, images and sliders.",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0, 2 after bad input, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return _subcommands().run(arguments)
    about = "Variational autoencoders as probabilistic programs."
    parser = ArgumentParser(prog="pyro-vae", description=about, exit_on_error=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('pyro_vae')}")
    advice = "For the options of a subcommand: pyro-vae SUBCOMMAND --help."
    subcommands = parser.add_subparsers(title="subcommands", description=advice, dest="subcommand")
    for name, line in COMMANDS.items():
        subcommands.add_parser(name, help=line)
    message = f"Expected a subcommand, {', '.join(COMMANDS)}; got none"
    try:
        if unknown := parser.parse_known_args(arguments[:1])[1]:
            message = f"unrecognized arguments: {unknown[0]}"
    except ArgumentError as error:
        message = str(error)
    print(f"pyro-vae: {message}. See pyro-vae --help.", file=sys.stderr)
    return 2


def _subcommands() -> Any:
    """Import the subcommands without garbage collections, which take a quarter of the time to import torch."""
    alone = "torch" not in sys.modules and gc.isenabled()
    if alone:
        gc.disable()
    try:
        from pyro_vae import commands
    finally:
        if alone:
            gc.freeze()  # later collections, as at the exit, skip the objects of all modules
            gc.enable()
    return commands


if __name__ == "__main__":
    sys.exit(main())
