r"""A program at some data: the density of what is latent in it, datum by datum, whatever its sites are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.missing import Missing
from pyro_vae.program.checks import arguments, check_drawn, check_methods, check_rows, check_supports, sources
from pyro_vae.program.running import Mapped, Runner, number_of
from pyro_vae.program.structure import Draws, Structure, bijection, coordinates, structure
from pyro_vae.seeds import forked, tracked
from pyro_vae.traces.particles import Unseen
from pyro_vae.traces.weights import log_weights


@dataclass(frozen=True, eq=False)
class Posterior:
    r"""p(z | x) up to its constant and the guide to it, for each of some data: what everything else asks.

    A datum is one element of the plate that all sites share, and row b of every argument. ``draws`` are dictionaries
    from the name of a site to values of shape ``(K, B, *rest)``: K draws, B data, and one draw of one datum, plates
    inside it first. Densities are in nats, masked and unscaled, of shape ``(K, B)``. Discrete sites that are not among
    the draws are summed out exactly.

    Make one by :meth:`of`. It runs the program as it is: in :func:`pyro_vae.seeds.at_test` it leaves nothing behind.

    Example:
        >>> from pyro_vae import VAE
        >>> posterior = Posterior.of(VAE.build((64,), latent=2).eval(), torch.rand(5, 64))
        >>> draws, log_q = posterior.propose(7)
        >>> draws["z"].shape, (posterior.log_joint(draws) - log_q).shape
        (torch.Size([7, 5, 2]), torch.Size([7, 5]))
    """

    program: Any
    data: tuple[Tensor, ...]
    structure: Structure
    given: Draws = field(default_factory=dict)

    @classmethod
    def of(cls, program: Any, *data: Tensor, given: Draws | None = None) -> Posterior:
        """Return a program at some data, its arguments, each with the data along the first dimension.

        ``given`` are values of sites outside their plate: one, or several draws, of which each particle takes one.

        Raises:
            ValueError: If the program has no density of each datum: a latent site outside the data's plate is not
                given, a plate has other rows, or the density of a row depends on the other rows.
        """
        rows = arguments(program, data)
        if check := getattr(program, "check_data", None):
            check(*rows)
        found = structure(program, rows)
        if absent := [name for name in found.outside if name not in (given or {})]:
            raise ValueError(
                f"Expected every latent site in the plate of the data, for a density of each datum; {absent[0]!r} is "
                f"outside it, as a global latent. Fix it, as given={{{absent[0]!r}: draws}}, or use objectives.ELBO."
            )
        if not found.dim:
            raise ValueError(
                "Expected a plate over the data, for a density of each datum; there is none. Write "
                "`with pyro.plate('data', x.shape[0]):` around the sites of model and guide."
            )
        posterior = cls(program, rows, found, {name: torch.as_tensor(v) for name, v in (given or {}).items()})
        check_supports(posterior)
        check_rows(posterior)
        return posterior

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, rows: Any) -> Posterior:
        rows = slice(rows, rows + 1 or None) if isinstance(rows, int) else rows
        return replace(self, data=tuple(column[rows] for column in self.data))

    @property
    def names(self) -> list[str]:
        """The coordinates of :meth:`unconstrain`, as ``z[3]``."""
        return [name for site, shape in self.structure.continuous.items() for name in coordinates(site, shape)]

    def propose(self, num: int) -> tuple[Draws, Tensor]:
        """Return ``num`` draws of the guide for each datum, and their log q, of shape ``(num, B)``."""
        trace = self.runner.trace(self.program.guide, num)
        names = [name for name in self.structure.supports if name not in self.structure.alone]
        return self.runner.outward(trace, names), self.runner.total(trace, num)

    def log_weights(self, num: int) -> Tensor:
        """Return log p(x, z) - log q(z | x) of as many draws, of shape ``(num, B)``, classes summed out."""
        return self.runner.rows(log_weights([self.traces(num)], scaled=False).log_w, num)

    def traces(self, num: int) -> tuple[Trace, Trace]:
        """Return traces of model and guide for as many draws, unscaled, with all classes that are summed out."""
        return self.runner.pair(self.model, self.program.guide, num)

    def log_joint(self, draws: Draws, proper: bool = False) -> Tensor:
        """Return log p(x, z), ``(K, B)``; ``proper`` ignores masks of latent sites, for chains, which move them."""
        return self.runner.density(self.model, draws, proper)

    def log_q(self, draws: Draws, proper: bool = False) -> Tensor:
        """Return log q(z | x), as :meth:`log_joint`; a ValueError if the guide draws what the model does not have."""
        if self.structure.hidden:
            raise ValueError(
                "Expected a guide whose density is known at any draws; this one also draws "
                f"{self.structure.hidden[0]!r}, which the model does not have. Use start='prior' where there is one."
            )
        return self.runner.density(self.program.guide, draws, proper)

    def log_prior(self, draws: Draws, proper: bool = False) -> Tensor:
        """Return log p(z), given covariates, as :meth:`log_joint`."""
        return self.runner.density(self.model, draws, proper, without=tuple(self.structure.observed))

    def seen(self) -> Draws:
        """Return where each site is not masked, of shape ``(B, *plates)``, without its event."""
        with forked(device := self.data[0].device):
            nodes: dict[str, Any] = self.runner.run(self.model, 1).nodes
        found = Draws()
        for name in (*self.structure.supports, *self.structure.observed):
            mask = torch.as_tensor(True if nodes[name]["mask"] is None else nodes[name]["mask"], device=device)
            found[name] = self.runner.to_rows(mask.expand(nodes[name]["fn"].batch_shape))[0]
        return found

    def log_likelihood(self, draws: Draws) -> Draws:
        """Return log p(x | z) of each observed site, each of shape ``(K, B)``; classes not in draws are summed out."""
        names = [*self.structure.observed]
        if draws.keys() >= self.structure.supports.keys():
            trace = self.runner.trace(self.model, num := number_of(draws), draws)
            return {name: self.runner.total(trace, num, [name]) for name in names}
        log_prior, found = self.log_prior(draws), Draws()
        for name in names:
            others = tuple(other for other in names if other != name)
            found[name] = self.runner.density(self.model, draws, False, without=others) - log_prior
        return found

    def complete(self, num: int, draws: Draws) -> Draws:
        """Return draws with the classes that are not among them, drawn from p(y | z, x), which is exact."""
        absent = [name for name in self.structure.supports if name not in draws]
        return draws | self.runner.classes(self.model, num, draws, absent) if absent else draws

    def simulate(self, num: int, draws: Draws | None = None, observed: bool = True) -> Draws:
        """Return draws of all sites of the model, of latent ones alone unless ``observed``; ``draws`` are kept."""
        model = poutine.uncondition(self.program.model) if observed else self.model
        names = [*self.structure.supports, *(self.structure.observed if observed else ())]
        return self.runner.outward(self.runner.run(model, num, draws), names)

    def at(self, draws: Draws, index: int = 0) -> Posterior:
        """Return the program at data that :meth:`simulate` drew in place of what is observed and is not masked.

        Raises:
            ValueError: If an observed site does not show elements of an argument, each as it is; or another site
                depends on that argument, and not on what is drawn.
        """
        new = self.put(draws, sources(self), index)
        check_drawn(self, new, {name: value[index : index + 1] for name, value in draws.items()})
        return new

    def put(self, draws: Draws, shown: dict[str, tuple[int, Tensor]], index: int = 0) -> Posterior:
        """Return what :meth:`at` does, where it is known which elements of which argument each site shows."""
        data, seen = list(self.data), self.seen()
        for name, (argument, places) in shown.items():
            column, value = data[argument], draws[name][index].to(data[argument].dtype)
            flat = column.reshape(len(column), -1).clone()
            mask = seen[name].reshape(seen[name].shape + (1,) * (value.dim() - seen[name].dim())).expand_as(value)
            value, mask = (part.reshape(len(column), -1) for part in (value, mask))
            flat[:, places] = torch.where(mask, value, flat[:, places])
            data[argument] = flat.reshape(column.shape)
        return replace(self, data=tuple(data))

    def unconstrain(self, draws: Draws) -> Tensor:
        """Return the continuous sites as real numbers, of shape ``(K, B, D)``."""
        num, supports, flat = number_of(draws), self.structure.supports, []
        if self.structure.continuous and not self.structure.fixed:
            nodes: Any = self.runner.run(self.model, num, draws).nodes
            supports = {name: nodes[name]["fn"].support for name in supports}
        for name in self.structure.continuous:
            u = bijection(supports[name]).inv(self.runner.inward(draws[name]))
            flat.append(self.runner.to_rows(u).reshape(num, len(self), -1))
        return torch.cat(flat, -1) if flat else self.data[0].new_zeros(num, len(self), 0)

    def constrain(self, u: Tensor) -> tuple[Draws, Tensor]:
        """Return the draws that real numbers ``(K, B, D)`` stand for, and log |dz / du|, of shape ``(K, B)``."""
        parts, start = Draws(), 0
        for name, shape in self.structure.continuous.items():
            end = start + shape.numel()
            parts[name] = self.runner.inward(u[..., start:end].reshape(u.shape[:2] + shape))
            start = end
        mapped, volume = Mapped(parts), u.new_zeros(u.shape[:2])
        if self.structure.fixed:
            for name in parts:
                mapped.put(name, self.structure.supports[name])
        else:
            self.runner.run(mapped(self.model), len(u))
        for name in parts:
            volume = volume + sum_rightmost(self.runner.to_rows(mapped.volumes[name]), -2)
        return {name: self.runner.to_rows(mapped.values[name]) for name in parts}, volume

    @property
    def runner(self) -> Runner:
        """What runs the program on these data."""
        return Runner(self.structure, self.data, self.given)

    @property
    def model(self) -> Callable[..., Any]:
        """The program's model, which leaves missing elements out."""
        model = Unseen()(self.program.model) if self.structure.unseen else self.program.model
        return Missing()(model) if self.structure.missing else model


def posterior_of(program: Any, data: Any, given: Draws | None = None) -> Posterior:
    """Return a program at data, as :func:`arguments` and :meth:`Posterior.of` take and refuse them; or a posterior."""
    if isinstance(data, Posterior):
        return data
    check_methods(program)
    return Posterior.of(program, *map(tracked, arguments(program, data)), given=given)


def drawn_posterior(program: Any, data: Any, num: int) -> Posterior:
    """Return a program at ``num`` rows to be drawn over: those of ``data`` in turn, or of its method ``blank(num)``.

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
            data = program.blank(num)
        return posterior_of(program, data)
    posterior = posterior_of(program, data)
    if posterior.structure.whole and num != len(posterior):
        raise ValueError(
            f"Expected num of {len(posterior)}, the rows of a program that has parameters for each, or sees them all "
            f"together; got {num}."
        )
    return posterior[torch.arange(num, device=posterior.data[0].device) % len(posterior)]
