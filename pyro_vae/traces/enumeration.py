r"""Sum exactly over the classes of discrete sites; each site has a dimension of classes left of all plates.

If guide and model both have y, and each class has one draw :math:`z_y \sim q(z \mid x, y)`, the weight is

.. math:: w = \sum_y \frac{p(x, y, z_y)}{q(z_y \mid x, y)}

The weight does not contain log q(y | x), and the guide draws no class. For a class in the model alone, the sum is over
the joint density. The sum ignores the mask of an enumerated site, because the probabilities must add up to 1: with the
mask, the sum would count a labelled row once for each class.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_to_tensor
from pyro.ops.packed import broadcast_all
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from pyro_vae.operations import log_sum_exp
from pyro_vae.traces.sites import PARTICLES, Program, Site, density_sites, enumerated, latent, plates, samples

MAX_DIMS = 64  # of a torch tensor


def sites_to_sum(model_trace: Trace, guide_trace: Trace, marks: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the latent sites to sum over: sites marked in a trace or ``marks``, or discrete and in the model alone."""
    names = []
    for trace in (guide_trace, model_trace):
        for name, site in latent(trace).items():
            mark = (site["infer"] or {}).get("enumerate")
            if mark == "sequential":
                raise ValueError(
                    f"Expected site {name!r} to be enumerated in parallel; it is marked 'sequential'. Write "
                    "infer={'enumerate': 'parallel'}."
                )
            alone = trace is model_trace and name not in guide_trace and site["fn"].has_enumerate_support
            if mark == "parallel" or alone or name in marks:
                names.append(name)
    return tuple(dict.fromkeys(names))


def mark_enumerated(program: Program, names: Iterable[str]) -> Program:
    """Return a program that marks the sites of these names for enumeration."""
    names = frozenset(names)

    def mark(site: Site) -> Any:
        return {"enumerate": "parallel"} if site["name"] in names else {}

    return poutine.infer_config(program, mark) if names else program


def enumerate_pair(model: Program, guide: Program, names: Iterable[str], nesting: int) -> tuple[Program, Program]:
    """Return model and guide; each enumerates the named sites in dimensions left of ``nesting`` plates."""
    if not (names := [*names]):
        return model, guide
    model, guide = (mark_enumerated(program, names) for program in (model, guide))
    return EnumMessenger()(model), EnumMessenger(-1 - nesting)(guide)  # the model continues left of the guide's


def per_datum(sites: Iterable[Site], keep: set[int], nesting: int) -> Tensor:
    """Return the log-density of sites, masked and unscaled, summed over the dimensions of plates not in ``keep``."""
    total = torch.zeros(())
    for site in sites:
        log_prob = scale_and_mask(site["unscaled_log_prob"], 1.0, None if enumerated({"": site}) else site["mask"])
        kept = keep | {frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES}
        inside = [dim for dim in range(-min(log_prob.dim(), nesting), 0) if dim not in kept]
        total = total + (log_prob.sum(inside, keepdim=True) if inside else log_prob)
    return total


def sum_out(log_p: Tensor, dims: Iterable[int]) -> Tensor:
    """Return the log of the summed probabilities over ``dims``, counted from the right; each summed size becomes 1."""
    present = [dim for dim in dims if -dim <= log_p.dim()]
    return log_sum_exp(log_p, present, keepdim=True) if present else log_p


def is_flat(sites: Iterable[Site], keep: set[int] | None = None) -> bool:
    """Return whether each enumerated site has its own dimension, and all sites are in the same plates or ``keep``."""
    classes = [site for site in sites if enumerated({"": site})]
    plate_dims = {frozenset(frame.dim for frame in plates(site) if frame.vectorized) for site in classes}
    distinct = len({site["infer"]["_enumerate_dim"] for site in classes}) == len(classes)
    return distinct and (len(plate_dims) <= 1 if keep is None else all(dims <= keep for dims in plate_dims))


def eliminate(model_trace: Trace, guide_trace: Trace, shared: Iterable[Any]) -> Tensor:
    """Return the log-weight of each datum by variable elimination; keep ``shared`` plates; the guide may be empty.

    References:
        Tensor Variable Elimination for Plated Factor Graphs (Obermeyer et al., 2019), https://arxiv.org/abs/1902.03210.
    """
    model_trace.pack_tensors()
    symbols: dict[str, str] = model_trace.plate_to_symbol
    guide_trace.pack_tensors(symbols)
    factors = [(site, 1) for site in samples(model_trace).values()]
    factors += [(site, -1) for site in density_sites(model_trace, guide_trace).values()]
    tree: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    classes = set()
    present = set().union(*(site["packed"]["unscaled_log_prob"]._pyro_dims for site, _ in factors))  # of size > 1
    for site, sign in factors:
        dim = (site["infer"] or {}).get("_enumerate_dim")
        if dim is not None:
            classes.add(site["infer"]["_dim_to_symbol"][dim])
            if sign < 0:
                continue
        log_prob, mask = site["packed"]["unscaled_log_prob"], site["packed"]["mask"]
        dims = log_prob._pyro_dims
        if dim is None and mask is not None:
            mask = broadcast_all(log_prob, mask, dims=dims)[1] if isinstance(mask, Tensor) else mask
            log_prob = torch.where(torch.as_tensor(mask), log_prob, 0.0)
        signed: Any = sign * log_prob
        signed._pyro_dims = dims
        frames = present.intersection(symbols[frame.name] for frame in site["cond_indep_stack"] if frame.vectorized)
        tree.setdefault(frozenset(frames), []).append(signed)
    names = [symbols[frame.name] for frame in sorted(shared, key=lambda frame: frame.dim)]
    order = [symbol for symbol in names if symbol in present]
    total = contract_to_tensor(tree, classes, target_ordinal=frozenset(order))
    return total.permute([total._pyro_dims.index(symbol) for symbol in order])


class Expectation:
    r"""The mean :math:`\sum_y q(y \mid x) \, f(y)` of each term of an ELBO over the guide's enumerated sites.

    Without enumerated sites, the mean is the term. ``nesting`` counts the plate of the particles too. ``alone`` has the
    dimensions of classes in the model alone; ``members`` has the model's sites that depend on these classes.
    """

    def __init__(self, model_trace: Trace, guide_trace: Trace, nesting: int) -> None:
        model, guide = samples(model_trace), samples(guide_trace)
        of_guide = enumerated(guide)
        self.nesting = nesting
        self.alone = [dim for name, dim in enumerated(model).items() if name not in of_guide]
        self.members: dict[str, Site] = {}
        self.log_q: Tensor | None = None
        if not (of_guide or self.alone):
            return
        sites = [*(guide | model).values()]
        if not is_flat(sites):
            raise ValueError(
                "Expected enumerated classes outside Markov chains and outside plates inside a datum, for an ELBO. "
                "Use objectives.IWAE, which eliminates them, or pyro.infer.TraceEnum_ELBO."
            )
        draws = (site for name, site in latent(guide_trace).items() if name not in of_guide)
        if torch.is_grad_enabled() and not all(site["fn"].has_rsample for site in draws):
            raise ValueError(
                "Expected reparameterised draws beside enumerated classes; the guide has draws without a gradient. "
                "Mark these infer={'enumerate': 'parallel'} too."
            )
        self.shared = {frame.dim for site in sites if enumerated({"": site}) for frame in plates(site)}
        if of_guide:
            self.log_q = sum((guide[name]["unscaled_log_prob"] for name in of_guide), torch.zeros(()))
        for name, site in model.items():
            shape = site["unscaled_log_prob"].shape
            if any(-dim <= len(shape) and shape[dim] > 1 for dim in self.alone):
                self.members[name] = site

    def mean(self, term: Tensor, site: Site) -> Tensor:
        """Return the mean of a site's term over the guide's enumerated sites, for each element of the plates."""
        if self.log_q is None and not self.alone:
            return term
        sizes = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
        shape = [sizes.get(dim, 1) for dim in range(-self.nesting, 0)]
        term = term.expand(torch.broadcast_shapes(term.shape, shape))  # enumerated sites have no particles
        if term.dim() <= self.nesting:
            return term
        if self.log_q is None:  # enumerated dimensions of the model alone, of size 1 here
            return term.reshape(term.shape[-self.nesting :])
        return (self.log_q.exp() * term).flatten(0, -1 - self.nesting).sum(0)

    def summed(self, names: Iterable[str]) -> Tensor:
        """Return the log-density of the named members, summed over classes, for each element of the plates."""
        sites = [self.members[name] for name in names]
        if not sites:
            return torch.zeros(())
        log_p = sum_out(per_datum(sites, self.shared, self.nesting), self.alone)
        return self.mean(sites[0]["scale"] * log_p, sites[0])
