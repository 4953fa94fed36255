"""Autoguides, which have parameters of their own for each row of the data."""

from __future__ import annotations

from typing import Any

from pyro.infer.autoguide import AutoGuide
from pyro.poutine.util import prune_subsample_sites

from pyro_vae.seeds import modules_of
from pyro_vae.traces.sites import latent, plates

__all__ = ["check_own_rows", "own_rows"]


def own_rows(program: Any) -> int | None:
    """Return for how many rows an autoguide of a program has parameters of their own; None where none has."""
    for part in modules_of(program):
        if isinstance(part, AutoGuide) and part.prototype_trace is not None:
            given = part.prototype_trace.nodes["_INPUT"]["args"]
            sites = latent(prune_subsample_sites(part.prototype_trace.copy())).values()
            sizes = {frame.size for site in sites for frame in plates(site) if frame.vectorized}
            if given and len(given[0]) in sizes:
                return len(given[0])
    return None


def check_own_rows(program: Any, number: int) -> bool:
    """Check that an autoguide is given the rows that it was made for; return whether the program has one.

    Raises:
        ValueError: If it is given another number of rows.
    """
    rows = own_rows(program)
    if rows not in (None, number):
        raise ValueError(
            f"Expected the {rows} rows that the autoguide was made for, since it has parameters for each; got "
            f"{number}. Write a guide that reads the data, for others."
        )
    return any(isinstance(part, AutoGuide) for part in modules_of(program))
