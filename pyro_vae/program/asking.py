"""From a program and data, as users give them, to a posterior."""

from typing import Any

import torch

from pyro_vae.program.arguments import arguments
from pyro_vae.program.posterior import Posterior
from pyro_vae.program.structure import Draws
from pyro_vae.seeds import tracked


def posterior_of(program: Any, data: Any, given: Draws | None = None) -> Posterior:
    """Return a program at data: a tensor, a tuple of the program's arguments, or a dictionary of them by name.

    Raises:
        ValueError: As :meth:`Posterior.of`; or if arguments are missing, unknown or of different lengths.
    """
    if isinstance(data, Posterior):
        return data
    check_methods(program)
    return Posterior.of(program, *map(tracked, arguments(program, data)), given=given)


def check_methods(program: Any) -> None:
    """Refuse a program that has not two Pyro programs."""
    if absent := [name for name in ("model", "guide") if not callable(getattr(program, name, None))]:
        raise ValueError(
            f"Expected a program: an nn.Module with methods model and guide; {type(program).__name__} has no "
            f"{absent[0]}."
        )


def drawn_posterior(program: Any, data: Any, num: int) -> Posterior:
    """Return a program at ``num`` rows to be drawn over by :meth:`Posterior.simulate` and :meth:`Posterior.at`.

    The rows of ``data`` are taken in turn, so that covariates are real ones; without data the program's method
    ``blank(num)`` gives the rows, as a VAE's does.

    Raises:
        ValueError: If there are no data, and the program has no ``blank``.
    """
    if data is None:
        if not hasattr(program, "blank"):
            raise ValueError(
                f"Expected data, since {type(program).__name__} is drawn given its arguments' shapes and covariates; "
                "got none. Give some: their rows are taken in turn, and observed sites are drawn."
            )
        with torch.random.fork_rng(devices=[*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []):
            rows = program.blank(num)
        return posterior_of(program, rows)
    posterior = posterior_of(program, data)
    if posterior.structure.whole and num != len(posterior):
        raise ValueError(
            f"Expected num of {len(posterior)}, the rows of a program that has parameters for each, or sees them all "
            f"together; got {num}."
        )
    return posterior[torch.arange(num, device=posterior.data[0].device) % len(posterior)]
