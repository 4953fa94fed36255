"""Run a program for many particles, at given draws, with the classes of discrete sites enumerated."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import infer_discrete
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_vae.program.structure import Draws, Structure, bijection
from pyro_vae.traces.enumeration import enumerate_pair, mark_enumerated
from pyro_vae.traces.sites import PARTICLES, Program, latent, samples
from pyro_vae.traces.weights import log_weights


class Substitute(Messenger):
    """A handler that replaces the draws of named sites by values, as NumPyro's ``substitute`` does."""

    def __init__(self, values: Draws) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
            msg["infer"] = {key: value for key, value in msg["infer"].items() if key != "_enumerate_dim"}


class Constrain(Messenger):
    """A handler that maps unconstrained u to each site's support: ``values``, and ``volumes`` with log |dz / du|."""

    def __init__(self, u: Draws) -> None:
        super().__init__()
        self.u, self.values, self.volumes = u, Draws(), Draws()

    def map(self, name: str, support: Constraint) -> Tensor:
        """Map a site's values to a support and return them."""
        to_support = bijection(support)
        self.values[name] = to_support(self.u[name])
        self.volumes[name] = to_support.log_abs_det_jacobian(self.u[name], self.values[name])
        return self.values[name]

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.u:
            msg["value"], msg["done"] = self.map(msg["name"], msg["fn"].support), True


@dataclass(frozen=True, eq=False)
class Runner:
    """A runner of a program of known structure on data, in a plate of particles.

    ``given`` has the sites outside the data's plate. The particles' plate is left of the program's plates.
    """

    structure: Structure
    data: tuple[Tensor, ...]
    given: Draws

    def _with_particles(self, program: Program, num: int) -> Program:
        return pyro.plate(PARTICLES, num, dim=-1 - self.structure.depth)(program)

    def _values(self, num: int, draws: Draws | None = None) -> Draws:
        """Return the draws and the given values, with dimensions in the program's order."""
        depth = self.structure.depth
        values = {name: self.to_plate(value) for name, value in (draws or {}).items()}
        for name, value in self.given.items():
            shape, batch = self.structure.outside[name]
            if value.shape != shape:  # several draws
                value = value[torch.randint(len(value), (num,), device=value.device)]
            values[name] = value.expand(num, *shape).reshape(num, *(1,) * (depth - batch), *shape)
        return values

    def run(self, program: Program, num: int, draws: Draws | None = None, summed: Iterable[str] = ()) -> Trace:
        """Run a program for ``num`` particles at the given draws; enumerate the classes of the ``summed`` sites."""
        program = self._with_particles(program, num)
        if summed := [*summed]:
            _, program = enumerate_pair(program, program, summed, 1 + self.structure.depth)
        try:
            with Substitute(self._values(num, draws)):
                return poutine.trace(program).get_trace(*self.data)
        except NotImplementedError as error:
            if not summed:
                raise
            raise ValueError(
                f"Expected draws of {', '.join(summed)}, or a distribution whose values can be enumerated; got none. "
                "For a VQVAE, use evaluate.nll, which sums over codes near the guide's."
            ) from error

    def run_pair(self, model: Program, guide: Program, num: int) -> tuple[Trace, Trace]:
        """Run the guide, and the model at the guide's draws; enumerate all summed sites; return scored traces."""
        model, guide = (self._with_particles(program, num) for program in (model, guide))
        model, guide = enumerate_pair(model, guide, self.structure.summed, 1 + self.structure.depth)
        with Substitute(self._values(num)):
            guide_trace = poutine.trace(guide).get_trace(*self.data)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*self.data)
        return self.scored(model_trace), self.scored(guide_trace)

    def trace(self, program: Program, num: int, draws: Draws | None = None) -> Trace:
        """Run a program as :meth:`run` does; return a scored trace."""
        return self.scored(self.run(program, num, draws))

    def density(self, program: Program, draws: Draws, proper: bool, without: tuple[str, ...] = ()) -> Tensor:
        """Return the log-density of draws, ``(K, B)``, summed over discrete sites without draws."""
        num, supports = number_of(draws) if draws else 1, self.structure.supports
        trace = self.run(program, num, draws, (n for n in supports if supports[n].is_discrete and n not in draws))
        for site in latent(trace).values() if proper else ():
            site["mask"] = None
        return self.total(self.scored(trace, without), num)

    def draw_classes(self, program: Program, num: int, draws: Draws, names: list[str]) -> Draws:
        """Draw discrete sites from the exact distribution given the data and the draws of all other sites."""
        program = mark_enumerated(self._with_particles(program, num), names)
        program = poutine.condition(program, self._values(num, draws))
        program = infer_discrete(program, first_available_dim=-2 - self.structure.depth)
        trace = poutine.trace(program).get_trace(*self.data)
        for name in names:  # Pyro drops dimensions of size 1 at the left
            site: Any = trace.nodes[name]
            left = 1 + self.structure.depth + site["fn"].event_dim - site["value"].dim()
            site["value"] = site["value"].reshape((1,) * left + site["value"].shape)
        return self.values_of(trace, names)

    def scored(self, trace: Trace, without: tuple[str, ...] = ()) -> Trace:
        """Return a trace with unscaled log-densities; drop the sites that belong to no datum's density."""
        trace = prune_subsample_sites(trace)
        for name in {*self.structure.outside, *self.structure.loss_terms, *without}:
            if name in trace:
                trace.remove_node(name)
        for site in samples(trace).values():
            site["scale"] = 1.0
            site["unscaled_log_prob"] = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            site["log_prob"] = scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])
        return trace

    def total(self, trace: Trace, num: int, names: Iterable[str] | None = None) -> Tensor:
        """Return the log-density ``(num, B)`` of all sites of a trace, or of the named sites."""
        if names is not None:
            nodes, trace = trace.nodes, Trace()
            for name in names:
                trace.add_node(name, **nodes[name])
        if not samples(trace):
            return torch.zeros(num, len(self.data[0]), device=self.data[0].device)
        return self.per_datum(log_weights([(trace, Trace())], scaled=False).log_w, num)

    def per_datum(self, values: Tensor, num: int) -> Tensor:
        """Sum values over the plates inside a datum, and return shape ``(num, B)``."""
        depth, dim = self.structure.depth, self.structure.dim
        inside = [other for other in range(-min(depth, values.dim()), 0) if other != dim]
        return (values.sum(inside) if inside else values).expand(num, len(self.data[0]))

    def to_plate(self, value: Tensor) -> Tensor:
        """Move the dimension of the data in ``(K, B, *rest)`` to the dimension of the data's plate."""
        return value.movedim(1, 1 + self.structure.depth + self.structure.dim)

    def to_rows(self, value: Tensor) -> Tensor:
        """Return the value of a site with shape ``(K, B, *rest)``: the data's dimension becomes the second."""
        return value.movedim(1 + self.structure.depth + self.structure.dim, 1)

    def values_of(self, trace: Trace, names: Iterable[str]) -> Draws:
        """Return the values of named sites, each of shape ``(K, B, *rest)``."""
        nodes: Any = trace.nodes
        return {name: self.to_rows(nodes[name]["value"]) for name in names}


def number_of(draws: Draws) -> int:
    """Return the number of draws of each site."""
    return len(next(iter(draws.values())))
