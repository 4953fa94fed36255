r"""The posterior of any Pyro program at data: the densities of the model and the guide for each datum."""

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
from pyro_vae.program.running import Constrain, Runner, number_of
from pyro_vae.program.structure import Draws, Structure, bijection, coordinates, structure
from pyro_vae.seeds import fork_rng, normal_tensor
from pyro_vae.traces.particles import FillMasked
from pyro_vae.traces.weights import log_weights


@dataclass(frozen=True, eq=False)
class Posterior:
    r"""The unnormalised posterior p(z, x) and the guide q(z | x) of a program, for each row of the data.

    A datum is one element of the plate around all sites: row b of every argument. Draws are dictionaries from a site's
    name to values of shape ``(K, B, *rest)``, for K draws and B data. ``rest`` is the shape of one draw of one datum,
    with plates inside the datum first. Densities are in nats, masked and unscaled, of shape ``(K, B)``. Densities
    sum exactly over discrete sites without draws. ``posterior[rows]`` selects data, ``len(posterior)`` is B.

    :meth:`of` builds a posterior. Methods use the program's current mode and torch's generator; inside
    ``pyro_vae.seeds.eval_mode`` methods leave the mode and the generator unchanged.

    Example:
        >>> from pyro_vae import VAE
        >>> posterior = Posterior.of(VAE.build((64,), latent=2).eval(), torch.rand(5, 64))
        >>> draws, log_q = posterior.propose(7)
        >>> draws["z"].shape, (posterior.log_joint(draws) - log_q).shape
        (torch.Size([7, 5, 2]), torch.Size([7, 5]))

    See Also:
        :func:`pyro_vae.evaluate.log_weights`: Importance weights in chunks that fit in memory.
    """

    program: Any
    data: tuple[Tensor, ...]
    structure: Structure
    given: Draws = field(default_factory=dict)

    @classmethod
    def of(cls, program: Any, *data: Tensor, given: Draws | None = None) -> Posterior:
        """Return the posterior of a program at its arguments ``data``; the first dimension of each indexes the data.

        ``given`` has values of the latent sites outside the data's plate. A site has one value or several draws; each
        particle takes one of several draws at random.

        Raises:
            ValueError: If a datum has no density: a latent site outside the data's plate is not in ``given``, a
                plate has other rows than the data, or the density of a row depends on other rows.
        """
        rows = arguments(program, data)
        if check := getattr(program, "check_data", None):
            check(*rows)
        form = structure(program, rows)
        if absent := [name for name in form.outside if name not in (given or {})]:
            raise ValueError(
                f"Expected every latent site in the data's plate, for a density per datum; {absent[0]!r} is outside "
                f"it, a global latent. Pass its values as given={{{absent[0]!r}: draws}}, or use objectives.ELBO."
            )
        if not form.dim:
            raise ValueError(
                "Expected a plate over the data, for a density per datum; there is none. Write "
                "`with pyro.plate('data', x.shape[0]):` around the sites of model and guide."
            )
        posterior = cls(program, rows, form, {name: torch.as_tensor(v) for name, v in (given or {}).items()})
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
        """The names of the coordinates of :meth:`unconstrain`, as ``z[3]``."""
        return [name for site, shape in self.structure.continuous.items() for name in coordinates(site, shape)]

    def propose(self, num: int) -> tuple[Draws, Tensor]:
        """Return ``num`` draws from the guide for each datum, and log q(z | x), of shape ``(num, B)``."""
        trace = self.runner.trace(self.program.guide, num)
        names = [name for name in self.structure.supports if name not in self.structure.model_only]
        return self.runner.values_of(trace, names), self.runner.total(trace, num)

    def log_weights(self, num: int) -> Tensor:
        """Return log p(x, z) - log q(z | x) of ``num`` new draws, ``(num, B)``, summed over classes."""
        return self.runner.per_datum(log_weights([self.traces(num)], scaled=False).log_w, num)

    def traces(self, num: int) -> tuple[Trace, Trace]:
        """Return unscaled traces of the model and the guide at ``num`` new draws, with summed sites enumerated."""
        return self.runner.run_pair(self.model, self.program.guide, num)

    def log_joint(self, draws: Draws, proper: bool = False) -> Tensor:
        """Return log p(x, z), ``(K, B)``; ``proper`` ignores masks of latent sites, as Markov chains need."""
        return self.runner.density(self.model, draws, proper)

    def log_q(self, draws: Draws, proper: bool = False) -> Tensor:
        """Return log q(z | x), ``(K, B)``; raise a ValueError if the guide draws a site that the model lacks."""
        if self.structure.auxiliary:
            raise ValueError(
                "Expected a guide whose density is known at any draws; this guide also draws "
                f"{self.structure.auxiliary[0]!r}, which the model does not have. Use start='prior' where there is one."
            )
        return self.runner.density(self.program.guide, draws, proper)

    def log_prior(self, draws: Draws, proper: bool = False) -> Tensor:
        """Return log p(z), ``(K, B)``, given the covariates if the model has covariates."""
        return self.runner.density(self.model, draws, proper, without=tuple(self.structure.observed))

    def masks(self) -> Draws:
        """Return the mask of each site, ``(B, *plates)``, without event dimensions: True where a value counts."""
        with fork_rng(device := self.data[0].device):
            nodes: dict[str, Any] = self.runner.run(self.model, 1).nodes
        masks = Draws()
        for name in (*self.structure.supports, *self.structure.observed):
            mask = torch.as_tensor(True if nodes[name]["mask"] is None else nodes[name]["mask"], device=device)
            masks[name] = self.runner.to_rows(mask.expand(nodes[name]["fn"].batch_shape))[0]
        return masks

    def log_likelihood(self, draws: Draws) -> Draws:
        """Return log p(x | z), ``(K, B)``, of each observed site, summed over classes without draws."""
        names = [*self.structure.observed]
        if draws.keys() >= self.structure.supports.keys():
            trace = self.runner.trace(self.model, num := number_of(draws), draws)
            return {name: self.runner.total(trace, num, [name]) for name in names}
        log_prior, log_p = self.log_prior(draws), Draws()
        for name in names:
            rest = tuple(other for other in names if other != name)
            log_p[name] = self.runner.density(self.model, draws, False, without=rest) - log_prior
        return log_p

    def complete(self, num: int, draws: Draws) -> Draws:
        """Return the draws with the absent classes added: exact draws from p(y | z, x)."""
        absent = [name for name in self.structure.supports if name not in draws]
        return draws | self.runner.draw_classes(self.model, num, draws, absent) if absent else draws

    def simulate(self, num: int, draws: Draws | None = None, observed: bool = True) -> Draws:
        """Draw all sites, or only latent sites if ``observed=False``, from the model; keep the values in ``draws``."""
        model = poutine.uncondition(self.program.model) if observed else self.model
        names = [*self.structure.supports, *(self.structure.observed if observed else ())]
        return self.runner.values_of(self.runner.run(model, num, draws), names)

    def at(self, draws: Draws, index: int = 0) -> Posterior:
        """Return the posterior at simulated data: draw ``index`` of :meth:`simulate` replaces unmasked observations.

        Raises:
            ValueError: If an observed site does not show unchanged elements of an argument, or another site depends on
                this argument in place of the draw.
        """
        new = self.with_values(draws, sources(self), index)
        check_drawn(self, new, {name: value[index : index + 1] for name, value in draws.items()})
        return new

    def with_values(self, draws: Draws, shown: dict[str, tuple[int, Tensor]], index: int = 0) -> Posterior:
        """Return the posterior of :meth:`at` without checks; ``shown`` has the elements that each site shows."""
        data, masks = list(self.data), self.masks()
        for name, (argument, places) in shown.items():
            column, value = data[argument], draws[name][index].to(data[argument].dtype)
            elements = column.reshape(len(column), -1).clone()
            mask = masks[name].reshape(masks[name].shape + (1,) * (value.dim() - masks[name].dim())).expand_as(value)
            value, mask = (part.reshape(len(column), -1) for part in (value, mask))
            elements[:, places] = torch.where(mask, value, elements[:, places])
            data[argument] = elements.reshape(column.shape)
        return replace(self, data=tuple(data))

    def unconstrain(self, draws: Draws) -> Tensor:
        """Map draws of the continuous sites to unconstrained coordinates u, of shape ``(K, B, D)``."""
        num, supports, columns = number_of(draws), self.structure.supports, []
        if self.structure.continuous and not self.structure.fixed_supports:
            nodes: Any = self.runner.run(self.model, num, draws).nodes
            supports = {name: nodes[name]["fn"].support for name in supports}
        for name in self.structure.continuous:
            u = bijection(supports[name]).inv(self.runner.to_plate(draws[name]))
            columns.append(self.runner.to_rows(u).reshape(num, len(self), -1))
        return torch.cat(columns, -1) if columns else self.data[0].new_zeros(num, len(self), 0)

    def constrain(self, u: Tensor) -> tuple[Draws, Tensor]:
        """Map unconstrained coordinates u, ``(K, B, D)``, to draws and ``log |dz / du|``, of shape ``(K, B)``."""
        parts, start = Draws(), 0
        for name, shape in self.structure.continuous.items():
            end = start + shape.numel()
            parts[name] = self.runner.to_plate(u[..., start:end].reshape(u.shape[:2] + shape))
            start = end
        mapped, volume = Constrain(parts), u.new_zeros(u.shape[:2])
        if self.structure.fixed_supports:
            for name in parts:
                mapped.map(name, self.structure.supports[name])
        else:
            self.runner.run(mapped(self.model), len(u))
        for name in parts:
            volume = volume + sum_rightmost(self.runner.to_rows(mapped.volumes[name]), -2)
        return {name: self.runner.to_rows(mapped.values[name]) for name in parts}, volume

    @property
    def runner(self) -> Runner:
        """The :class:`Runner` of the program on these data."""
        return Runner(self.structure, self.data, self.given)

    @property
    def model(self) -> Callable[..., Any]:
        """The program's model, marginalised over missing elements."""
        model = FillMasked()(self.program.model) if self.structure.masked_classes else self.program.model
        return Missing()(model) if self.structure.missing else model


def posterior_of(program: Any, data: Any, given: Draws | None = None) -> Posterior:
    """Return a program's posterior at data in any form that :func:`arguments` takes; return a posterior unchanged."""
    if isinstance(data, Posterior):
        return data
    check_methods(program)
    return Posterior.of(program, *map(normal_tensor, arguments(program, data)), given=given)


def drawn_posterior(program: Any, data: Any, num: int) -> Posterior:
    """Return a posterior of ``num`` rows to simulate: the rows of ``data`` in turn, or the program's ``blank(num)``.

    Raises:
        ValueError: If ``data`` is None and the program has no method ``blank``.
    """
    if data is None:
        if not hasattr(program, "blank"):
            raise ValueError(
                f"Expected data, since {type(program).__name__} has no method blank; got None. Pass data: their rows "
                "give the shapes and covariates in turn, and observed sites are drawn."
            )
        with torch.random.fork_rng(devices=[*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []):
            data = program.blank(num)
        return posterior_of(program, data)
    posterior = posterior_of(program, data)
    if posterior.structure.all_rows and num != len(posterior):
        raise ValueError(
            f"Expected num = {len(posterior)}, all rows, since the program does not run on fewer; got {num}."
        )
    return posterior[torch.arange(num, device=posterior.data[0].device) % len(posterior)]
