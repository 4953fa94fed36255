"""The plate of the particles: find a dimension for the plate, and check that a program runs in the plate.

A program that indexes a draw from the left, such as z[0], would silently select particle 0 in place of element 0. The
check runs each new program without and with the plate, and compares the log-densities.
"""

import sys
import warnings
from contextlib import nullcontext, suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from pyro_vae.traces.sites import PARTICLES, Program, Site, check_support, latent, plates, samples

ADVICE = "Index from the right, as z[..., 0], or pass vectorize_particles=False to run particles one after another."


class SharedSubsample(Messenger):
    """A handler that gives every run of a program the same subsample: all particles have the same data."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Any] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if site_is_subsample(msg) and msg["name"] in self.rows:
            msg["value"], msg["done"] = self.rows[msg["name"]], True

    def _pyro_post_sample(self, msg: Site) -> None:
        if site_is_subsample(msg):
            self.rows[msg["name"]] = msg["value"]


class CheckRows(Messenger):
    """A handler that refuses a run if model and guide use different rows of the data in a plate.

    A replayed plate has the guide's rows, but the model observes ``x[rows]`` for the model's rows. The handler also
    stores in ``marks`` the sites that the model marks for enumeration: in a replay the guide's marks replace the
    model's marks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, Any] = {}
        self.marks: dict[str, None] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if site_is_subsample(msg):
            self._rows[msg["name"]] = msg["value"]
        elif not msg["is_observed"] and (msg["infer"] or {}).get("enumerate") == "parallel":
            self.marks[msg["name"]] = None

    def _pyro_post_sample(self, msg: Site) -> None:
        if not is_validation_enabled():
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name not in self._rows and frame.full_size not in (None, -1, frame.size):
                raise ValueError(
                    f"Expected model and guide to create plate {frame.name!r}, which subsamples {frame.size} of "
                    f"{frame.full_size} data; it was created outside, and its rows cannot be compared."
                )
        rows = self._rows.get(msg["name"]) if site_is_subsample(msg) else None
        if rows is None or rows is msg["value"] or torch.as_tensor(rows).equal(torch.as_tensor(msg["value"])):
            return
        raise ValueError(
            f"Expected model and guide to use the same rows of the data in plate {msg['name']!r}; they differ. Pass "
            "the same subsample=rows to both plates."
        )


class FillMasked(Messenger):
    """A handler that replaces a masked label outside the support, such as -1, by the first class, a valid index."""

    def _pyro_sample(self, msg: Site) -> None:
        distribution = msg["fn"]
        if msg["is_observed"] and isinstance(msg["mask"], Tensor) and distribution.has_enumerate_support:
            value = msg["value"]
            legal = distribution.support.check(value)
            legal = legal.reshape(legal.shape + (1,) * (value.dim() - legal.dim()))
            mask = msg["mask"].reshape(msg["mask"].shape + (1,) * distribution.event_dim)
            first = distribution.enumerate_support(expand=False)[0].to(value)
            msg["value"] = torch.where(legal | mask, value, first)


def importance_traces(model: Program, guide: Program, args: tuple, kwargs: dict, nesting: int) -> tuple[Trace, Trace]:
    """Run the guide, and the model at the guide's draws, as ``get_importance_trace`` does; latent sites may differ."""
    if isinstance(poutine.unwrap(guide), Messenger):
        return get_importance_trace("flat", nesting, model, guide, args, kwargs)
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    if is_validation_enabled():
        same = samples(guide_trace).keys() == latent(model_trace).keys()
        with nullcontext() if same else warnings.catch_warnings():
            if not same:
                warnings.filterwarnings("ignore", "Found ", UserWarning)
            check_model_guide_match(model_trace, guide_trace, nesting)
    guide_trace, model_trace = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
    model_trace.compute_log_prob()
    guide_trace.compute_score_parts()
    if is_validation_enabled():
        for trace in (model_trace, guide_trace):
            for site in trace.nodes.values():
                if site["type"] == "sample":
                    check_site_shape(site, nesting)
    return model_trace, guide_trace


def plate_depth(pair: tuple[Trace, Trace]) -> int:
    """Return the depth of nested vectorized plates in a model and a guide."""
    sites = [site for trace in pair for site in samples(trace).values()]
    return max((-frame.dim for site in sites for frame in plates(site) if frame.vectorized), default=0)


@torch.no_grad()
def probe(model: Program, guide: Program, args: tuple, kwargs: dict) -> tuple[int, tuple[Trace, Trace]]:
    """Return the depth of plates, and traces of model and guide; check that the program runs for many particles."""
    devices = [*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    model = FillMasked()(model)
    with torch.random.fork_rng(devices=devices), poutine.block(), SharedSubsample():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args, **kwargs))
        traces = model_trace, prune_subsample_sites(guide_trace)
        depth = plate_depth(traces)
        check_support(traces[0])
        if is_validation_enabled():
            for trace in traces:
                trace.compute_log_prob()
                for site in samples(trace).values():
                    check_site_shape(site, sys.maxsize)
            with suppress(NotImplementedError):  # of a density that is known at its own draws only
                _check_particles(model, guide, depth, _joined(traces[0], traces[1].copy()), args, kwargs)
    return depth, traces


def _check_particles(model: Program, guide: Program, depth: int, alone: Trace, args: tuple, kwargs: dict) -> None:
    """Run two particles in a plate, and the second alone; refuse a program that fails, or unequal log-densities."""

    def log_probs(trace: Trace) -> dict[str, Tensor]:
        trace = prune_subsample_sites(trace)
        trace.compute_log_prob()
        return {name: site["log_prob"] for name, site in samples(trace).items()}

    def run(program: Program, values: Trace) -> Trace:
        return poutine.trace(poutine.replay(program, trace=values)).get_trace(*args, **kwargs)

    plate = pyro.plate(PARTICLES, 2, dim=-1 - depth)
    try:
        guides = poutine.trace(plate(guide)).get_trace(*args, **kwargs)
        models = run(plate(model), guides)
        in_plate = [log_probs(trace) for trace in (guides, models)]
    except NotImplementedError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0].rstrip(".")  # without Pyro's page of shapes
        raise ValueError(f"Expected a program that runs for several particles at once; {reason}. {ADVICE}") from error
    draws = latent(_joined(models, guides))
    for name, site in latent(prune_subsample_sites(alone)).items():
        one, two = site["value"], draws[name]["value"]
        if two.numel() != 2 * one.numel():
            raise ValueError(
                f"Expected a program that runs for several particles at once; a draw of site {name!r} has shape "
                f"{tuple(one.shape)} for one particle and {tuple(two.shape)} for two. {ADVICE}"
            )
        site["value"] = two[-1].reshape(one.shape)
    for program, expected in zip((guide, model), in_plate, strict=True):
        for name, log_prob in log_probs(run(program, alone)).items():
            # A program that draws inner noise differs from itself, too.
            if not close(log_prob.sum(), expected[name][-1].sum()) and close(
                log_prob, log_probs(run(program, alone))[name]
            ):
                raise ValueError(
                    f"Expected a program that runs for several particles at once; the log-density of a particle at "
                    f"site {name!r} differs between a plate and a run alone. {ADVICE}"
                )


def _joined(model_trace: Trace, guide_trace: Trace) -> Trace:
    """Add the latent sites of the model alone to a guide's trace: a run at the trace's values draws no noise."""
    for name, site in latent(model_trace).items():
        if name not in guide_trace:
            guide_trace.add_node(name, **site)
    return guide_trace


def close(a: Tensor, b: Tensor) -> bool:
    """Return whether two log-densities agree up to rounding in float32."""
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)
