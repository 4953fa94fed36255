"""The subcommands of ``pyro-vae``. Options are the arguments of ``data.load``, ``VAE.build`` and ``fit``."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentError

from pyro_vae.commands.runs import _compare, _evaluate, _generate, _report  # noqa: F401
from pyro_vae.commands.sweeping import _sweep  # noqa: F401
from pyro_vae.commands.training import _resume, _stage, _train  # noqa: F401
from pyro_vae.options import check_config, error_message, parse
from pyro_vae.train import is_first

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Run the subcommand that the first argument names. Return the exit code 0, 2 after bad input, 130 after Ctrl-C."""
    subcommand, *words = arguments
    name = f"pyro-vae {subcommand}"
    names = {word.split("=")[0] for word in words} if subcommand == "train" else set()
    resumes = "--resume" in names
    sys.path.append(str(Path.cwd()))  # for the user's classes
    show, warnings.showwarning = warnings.showwarning, lambda message, *_: print(f"{name}: {message}", file=sys.stderr)
    try:
        check_config(words)
        if resumes:
            subcommand, words = "resume", [word.removeprefix("--resume=") for word in words if word != "--resume"]
            if not words:
                raise ValueError("Expected a run directory after --resume, as --resume runs/first; got none.")
        elif "--stage" in names:
            subcommand = "stage"
        command: Callable[..., None] = globals()[f"_{subcommand}"]
        command(**parse(subcommand, command, words))
    except KeyboardInterrupt as interrupt:
        if is_first():
            print(f"\n{name}: interrupted. {interrupt}".rstrip(), file=sys.stderr)
        return 130
    except Exception as error:
        if not (message := error_message(error, name)):
            raise
        if resumes and isinstance(error, ArgumentError):
            message += " --resume allows only --epochs, --on_nan, --device, --logger and --trust: "
            message += "RUN/config.yaml has the other settings."
        print(f"{name}: {message}", file=sys.stderr)
        return 2
    finally:
        sys.path.pop()
        warnings.showwarning = show
    return 0
