"""Whether the density of a row of the data is its own."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from pyro_vae.program.structure import FEW
from pyro_vae.traces.particles import close

__all__ = ["check_rows"]


@torch.no_grad()
def check_rows(posterior: Any) -> None:
    """Check a program by weighing one row of the data alone and among others.

    Raises:
        ValueError: If the two weights differ, as where batch normalisation looks at all rows.
    """
    few = posterior[:FEW]
    if len(few) < 2 or posterior.structure.whole:
        return
    one = few[:1]
    with torch.random.fork_rng(devices=posterior._devices()):
        draws, _ = few.propose(1)
        head = {name: value[:, :1] for name, value in draws.items()}
        for what in ("log_joint", "log_q") if not posterior.structure.hidden else ("log_joint",):
            with suppress(NotImplementedError):  # a density that is known at its own draws only
                among, alone = getattr(few, what)(draws)[:, :1], getattr(one, what)(head)
                # A program with noise of its own differs from itself, too.
                if not close(among, alone) and close(among, getattr(few, what)(draws)[:, :1]):
                    part = "guide" if what == "log_q" else "model"
                    raise ValueError(
                        f"Expected a density of each row by itself; that of the {part} for the first row is "
                        f"{alone.item():.6g} alone and {among.item():.6g} among others. Call program.eval() if it has "
                        "batch normalisation, and leave other rows out of the program."
                    )
