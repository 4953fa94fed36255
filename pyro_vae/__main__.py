"""The ``pyro-vae`` command: what it answers at once, without torch. What takes longer is in ``commands``."""

import sys
from argparse import ArgumentError, ArgumentParser
from importlib.metadata import version

__all__ = ["main"]

# The first lines of the docstrings in ``commands``, whose import takes seconds.
COMMANDS = {
    "train": "Train a VAE or a program of your own, print its ELBO and -log p(x) on every split, and draw its figures.",
    "evaluate": "Say how good a trained program and its guide are, with a diagnosis in words, and draw its figures.",
    "generate": "Draw data from a trained program: of a VAE mean images at draws of the prior.",
    "compare": "Rank trained programs side by side: parts, ELBO, -log p(x), active units, seconds; and draw them.",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0, 2 after bad input, 130 after Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in COMMANDS:
        from pyro_vae import commands

        return commands.run(given)
    about = "Variational autoencoders as probabilistic programs."
    parser = ArgumentParser(prog="pyro-vae", description=about, exit_on_error=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('pyro_vae')}")
    more = "For more details of each subcommand, add it as an argument followed by --help."
    subcommands = parser.add_subparsers(title="subcommands", description=more, dest="subcommand")
    for name, line in COMMANDS.items():
        subcommands.add_parser(name, help=line)
    wrong = f'expected "subcommand" to be one of {{{",".join(COMMANDS)}}}, but it was not provided'
    try:
        if unknown := parser.parse_known_args(given[:1])[1]:
            wrong = f"unrecognized arguments: {unknown[0]}"
    except ArgumentError as error:
        wrong = str(error)
    print(f"pyro-vae: {wrong}. See pyro-vae --help.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
