"""Particles in a plate: where it goes, and whether a program may be run in it.

A program that indexes a draw from the left, as z[0], would take particle 0 for element 0 there, in silence: so each new
program is run alone and in the plate, and its log-densities are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor

from pyro_vae.objectives.sites import PARTICLES, Site, latent, plates, samples

__all__ = ["OneSubsample", "plate_nesting"]

ADVICE = "Index from the right, as z[..., 0], or pass vectorize_particles=False to run them one after another."


class OneSubsample(Messenger):
    """Gives every run of a program the same subsample of the data, so that all particles are of the same data."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if site_is_subsample(msg) and msg["name"] in self.found:
            msg["value"], msg["done"] = self.found[msg["name"]], True

    def _pyro_post_sample(self, msg: Site) -> None:
        if site_is_subsample(msg):
            self.found[msg["name"]] = msg["value"]


@torch.no_grad()
def plate_nesting(model: Callable[..., Any], guide: Callable[..., Any], args: tuple, kwargs: dict) -> int:
    """Return how deep the plates of a program nest; check that it can be run for several particles in one more.

    A program that draws noise of its own, as dropout, differs from itself too, and is let pass. Torch's state is left
    as it was, and so is Pyro's.

    Raises:
        ValueError: If a particle has another log-density in a plate than alone, or the program does not run in one.
    """
    devices = [*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), poutine.block(), OneSubsample():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        traces = guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        sites = [site for trace in traces for site in samples(prune_subsample_sites(trace)).values()]
        depth = max((-frame.dim for site in sites for frame in plates(site) if frame.vectorized), default=0)
        if is_validation_enabled():
            for trace in traces:
                trace.compute_log_prob()
            for site in sites:
                check_site_shape(site, sys.maxsize)
            with suppress(NotImplementedError):  # a density that is known at its own draws only
                _check(model, guide, depth, guide_trace, args, kwargs)
    return depth


def _check(
    model: Callable[..., Any], guide: Callable[..., Any], depth: int, alone: Trace, args: tuple, kwargs: dict
) -> None:
    def run(program: Callable[..., Any], given: Trace) -> dict[str, Tensor]:
        trace = poutine.trace(poutine.replay(program, trace=given)).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return {name: site["log_prob"] for name, site in samples(prune_subsample_sites(trace)).items()}

    def in_plate(program: Callable[..., Any]) -> Callable[..., Any]:
        return pyro.plate(PARTICLES, 2, dim=-1 - depth)(program)

    try:
        both = poutine.trace(in_plate(guide)).get_trace(*args, **kwargs)
        together = [run(in_plate(program), both) for program in (guide, model)]
    except NotImplementedError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        said = str(error).splitlines()[0].rstrip(".")  # without Pyro's page of shapes
        raise ValueError(f"Expected a program that runs for several particles at once; {said}. {ADVICE}") from error
    draws = latent(both)
    for name, site in latent(prune_subsample_sites(alone)).items():
        one, two = site["value"], draws[name]["value"]
        if two.numel() != 2 * one.numel():
            raise ValueError(
                f"Expected a program that runs for several particles at once; a draw of site {name!r} has shape "
                f"{tuple(one.shape)}, and that of two particles {tuple(two.shape)}. {ADVICE}"
            )
        site["value"] = two[-1].reshape(one.shape)
    for program, batched in zip((guide, model), together, strict=True):
        first, second = run(program, alone), run(program, alone)
        for name, log_prob in first.items():
            expected, again, found = log_prob.sum(), second[name].sum(), batched[name][-1].sum()
            if _close(expected, again) and not _close(expected, found):
                raise ValueError(
                    f"Expected a program that runs for several particles at once; at site {name!r} a particle has "
                    f"another log-density in a plate than alone. {ADVICE}"
                )


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)
