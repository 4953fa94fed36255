"""Particles in a plate: a program that indexes from the left would go wrong there in silence, so it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_vae.objectives.sites import PARTICLES, latent, samples

__all__ = ["check_vectorized"]


@torch.no_grad()
def check_vectorized(model: Callable[..., Any], guide: Callable[..., Any], dim: int, args: tuple, kwargs: dict) -> None:
    """Check that each of two particles in a plate has the log-densities that it has alone.

    A program that draws noise of its own, as dropout, differs from itself too, and is let pass. Torch's state is left
    as it was.

    Arguments:
        model: Any Pyro program.
        guide: Any Pyro program.
        dim: Dimension of the particles' plate.
        args: Arguments of both.
        kwargs: Arguments of both.

    Raises:
        ValueError: If they differ, or the program cannot be run for two particles at once.
    """

    def run(program: Callable[..., Any], given: Trace) -> dict[str, Tensor]:
        trace = poutine.trace(poutine.replay(program, trace=given)).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return {name: site["log_prob"] for name, site in samples(prune_subsample_sites(trace)).items()}

    advice = "Index from the right, as z[..., 0], or pass vectorize_particles=False to run them one after another."
    plate = pyro.plate(PARTICLES, 2, dim=dim)
    devices = [*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), poutine.block():
        alone = poutine.trace(guide).get_trace(*args, **kwargs)
        subsamples = Trace()
        for name, site in alone.nodes.items():
            if site["type"] == "sample" and site_is_subsample(site):
                subsamples.add_node(name, **site)
        try:
            both = poutine.trace(poutine.replay(plate(guide), trace=subsamples)).get_trace(*args, **kwargs)
            together = [run(plate(program), both) for program in (guide, model)]
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"Expected a program that runs for several particles at once; it raised: {error} {advice}"
            ) from error
        draws = latent(both)
        for name, site in latent(prune_subsample_sites(alone)).items():
            one, two = site["value"], draws[name]["value"]
            if two.numel() != 2 * one.numel():
                raise ValueError(
                    "Expected a program that runs for several particles at once; a draw of site "
                    f"{name!r} has shape {tuple(one.shape)}, and that of two particles {tuple(two.shape)}. {advice}"
                )
            site["value"] = two[-1].reshape(one.shape)
        for program, batched in zip((guide, model), together, strict=True):
            first, second = run(program, alone), run(program, alone)
            for name, log_prob in first.items():
                expected, again, found = log_prob.sum(), second[name].sum(), batched[name][-1].sum()
                if _close(expected, again) and not _close(expected, found):
                    raise ValueError(
                        "Expected a program that runs for several particles at once; at site "
                        f"{name!r} a particle has another log-density in a plate than alone. {advice}"
                    )


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)
