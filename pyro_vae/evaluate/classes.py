r"""The posterior of a discrete site, with all else summed or integrated out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiled import how_many_fit
from pyro_vae.evaluate.weighing import batches
from pyro_vae.program import Posterior, point_of, posterior_of
from pyro_vae.seeds import at_test
from pyro_vae.traces.enumeration import is_flat, per_datum
from pyro_vae.traces.sites import density_sites, enumerated, samples

__all__ = ["posterior"]


@torch.no_grad()
def posterior(program: Any, data: Any, site: str, num_particles: int = 100, seed: int | None = None) -> Tensor:
    r"""Return the posterior of a discrete site, p(y | x), of shape ``(B, classes)``: its classes are summed, not drawn.

    .. math:: p(y \mid x) \propto \frac{1}{K} \sum_k \frac{p(x, y, z_{ky})}{q(z_{ky} \mid x, y)}

    Exact where nothing is latent beside it, or the guide is the posterior given y; else by self-normalised importance
    sampling of z, for every class. A label that is seen has all of the probability.

    Arguments:
        program: A program with the site, which it or the guide marks ``infer={"enumerate": "parallel"}``.
        data: A tensor, a tuple of the program's arguments, or a dictionary of them by name.
        site: Its name; of a site with ``obs_mask``, the one that was written.
        num_particles: K, draws of all else per datum and class.
        seed: Seed of the draws; if None, torch's state as it is. Either way that is left as it was.

    Raises:
        ValueError: If there is no such site, or it is not discrete, or in a Markov chain or a plate inside a datum.
    """
    if num_particles < 1:
        raise ValueError(f"Expected num_particles of at least 1; got {num_particles}.")
    with at_test(program, point_of(program).device, seed):
        whole = posterior_of(program, data)
        device = whole.data[0].device
        fit = len(whole)
        if not whole.structure.whole:
            fit = how_many_fit(lambda n: _log_classes(whole[:n], site, num_particles), fit, device)
        parts = [_log_classes(rows, site, num_particles) for rows in batches(whole, fit)]
    return torch.cat(parts, dim=1).T


def _log_classes(rows: Posterior, site: str, num: int) -> Tensor:
    """Return p(y | x) of some rows, of shape ``(classes, B)``."""
    model_trace, guide_trace = rows.traces(num)
    model, guide, nesting = samples(model_trace), density_sites(model_trace, guide_trace), 1 + rows.structure.depth
    dims, keep = enumerated(model), {rows.structure.dim}
    name = site if site in dims else f"{site}_unobserved"
    if name not in dims or not is_flat((guide | model).values(), keep):
        raise ValueError(
            f"Expected a discrete site whose classes are summed out, in no Markov chain or plate inside a datum; got "
            f"{site!r}, and the program sums out {', '.join(map(repr, dims)) or 'none'}. Mark it "
            "infer={'enumerate': 'parallel'}."
        )
    total = sum((per_datum(each, keep, nesting) for each in model.values()), torch.zeros(()))
    total = total - sum((per_datum(guide[n], keep, nesting) for n in guide if n not in dims), torch.zeros(()))
    others = [dim for dim in range(-total.dim(), -nesting) if dim != dims[name]]
    log_p = (total.logsumexp(others, keepdim=True) if others else total).movedim(dims[name], 0)
    log_p = log_p.reshape(len(log_p), *log_p.shape[-nesting:])
    share = torch.stack([rows.runner.rows(part, num) for part in log_p]).logsumexp(1).softmax(0)
    if name == site:
        return share
    # Where a label is seen, its value is the same whatever the class of the site that is summed out.
    nodes: Any = model_trace.nodes
    values = nodes[site]["value"].movedim(dims[name], 0)
    values = torch.stack([rows.runner.rows(part, num)[0] for part in values])
    classes = torch.arange(len(share), device=share.device).reshape(-1, 1, 1)
    return torch.where(values == classes, share, 0.0).sum(1)
