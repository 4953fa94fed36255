"""Whether the density of a row of the data is its own."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from pyro_vae.program.structure import FEW
from pyro_vae.traces.particles import close

__all__ = ["check_rows"]


@torch.no_grad()
def check_rows(posterior: Any) -> None:
    """Check a program by weighing rows of the data among others and without these.

    Raises:
        ValueError: If the two weights differ, as where batch normalisation looks at all rows.
    """
    outside = posterior.structure.outside
    given = {name: value if value.shape == outside[name][0] else value[0] for name, value in posterior.given.items()}
    few = replace(posterior[:FEW], given=given)  # of several draws one, which all runs have
    if len(few) < 2 or posterior.structure.whole:
        return
    head = slice(0, max(1, len(few) - 1))  # of one row alone batch normalisation knows no spread
    part = few[head]
    with torch.random.fork_rng(devices=posterior._devices()):
        draws, _ = few.propose(1)
        own = {name: value[:, head] for name, value in draws.items()}
        for what in ("log_joint", "log_q") if not posterior.structure.hidden else ("log_joint",):
            with suppress(NotImplementedError):  # a density that is known at its own draws only
                among, alone = getattr(few, what)(draws)[:, head], getattr(part, what)(own)
                # A program with noise of its own differs from itself, too.
                if not close(among, alone) and close(among, getattr(few, what)(draws)[:, head]):
                    name = "guide" if what == "log_q" else "model"
                    raise ValueError(
                        f"Expected a density of each row by itself; that of the {name} for the first row is "
                        f"{alone[0, 0].item():.6g}, and beside other rows {among[0, 0].item():.6g}. Call "
                        "program.eval() if it has batch normalisation, and leave other rows out of the program."
                    )
