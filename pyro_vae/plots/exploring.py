"""Sliders over the latents of a program, in a notebook: the only plot that knows a program."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.supports import white
from pyro_vae.evaluate import dimensions, mean_kl
from pyro_vae.evaluate.decoding import decode, guide_latents, site_of_x
from pyro_vae.evaluate.weighing import at_data, batches_that_fit
from pyro_vae.objectives.base import check_least
from pyro_vae.plots.axes import latent_axes, principal_axes
from pyro_vae.plots.frames import png, table
from pyro_vae.program import Draws, Posterior, argument_names, coordinates

DRAWS = 1000  # of the aggregate posterior, at least
LABELS = 100  # of a dropdown, at most


def explore(
    program: Any,
    data: Any,
    site: str | None = None,
    names: Sequence[str] | None = None,
    sliders: int = 10,
    seed: int = 0,
) -> Any:
    r"""Show sliders over the latents of a program, and the mean of :math:`p(x \mid z)` at the sliders' z.

    The first picture is row 0 of the data at the guide's mean. Two sliders choose the rows at the start and the end,
    and a third the share t of the end: :math:`z = (1 - t) \, z_{start} + t \, z_{end}`. The other sliders are latent
    dimensions, the most active first, or principal directions of the aggregate posterior
    :math:`\frac1N \sum_n q(z \mid x_n)`. Their range is 3 standard deviations of the aggregate posterior on each side
    of its mean; pass a hundred data or more. Labels of the data are a dropdown; covariates change with z from start to
    end.

    Positive or bounded latents move in unconstrained coordinates; discrete latents stay at their most probable class.
    With several latent sites, the sliders move all sites that the picture depends on. If ``site`` names a site, they
    move this site, and later sites of the model stay at their mean given z.

    Args:
        program: A VAE or any program with a continuous latent site.
        data: x, a tuple of the program's arguments, or a dictionary of arguments by name.
        site: The latent site of the sliders.
        names: Names of x's columns, for a table.
        sliders: The largest number of sliders.
        seed: Seed of the draws from the aggregate posterior.

    Returns:
        An ipywidgets ``VBox``. Its ``code`` is z, in unconstrained coordinates, and ``decoded`` is the mean of x.

    Raises:
        ValueError: If ipywidgets is not installed, the program has no continuous latent site, the site is unknown, or
            x is neither images nor rows.
    """
    try:
        from pyro_vae.plots.panel import Panel
    except ImportError as error:
        expected = "Expected ipywidgets, for sliders in a notebook; it is not installed."
        raise ValueError(f'{expected} Run pip install "pyro_vae[notebook]".') from error
    check_least(sliders=sliders)
    with at_data(program, data, seed) as posterior:
        _check_site(posterior, site)
        parts = batches_that_fit(posterior, guide_latents)
        decoder = _Decoder.of(posterior, parts, site)
        number = -(-DRAWS // len(posterior))
        draws = torch.cat([part.unconstrain(guide_latents(part, number)).flatten(0, 1) for part in parts])
        columns = decoder.columns(site)
        nats = mean_kl(program, posterior) if dimensions(posterior) == posterior.names else None
    spread = decoder.codes.var(0) if len(posterior) > 1 else draws.var(0)
    activity, unit = (spread, "variance {:.2g}") if nats is None else (nats, "{:.2f} nats")
    active = sorted(columns, key=lambda column: -activity[column])[:sliders]
    titles = [f"{posterior.names[i]}, {unit.format(activity[i])}" for i in active]
    axes = {
        "latents": latent_axes(draws, active, titles),
        "principal directions": principal_axes(draws, columns, sliders),
    }
    return Panel(decoder.codes, decoder, _painter(posterior, decoder.site, names), axes, _labels(posterior))


def _check_site(posterior: Posterior, site: str | None) -> None:
    """Refuse a program without a continuous latent site, and a site that is no such site."""
    continuous, sites = [*posterior.structure.continuous], [*posterior.structure.supports]
    if not continuous:
        got = f"the discrete sites {', '.join(sites)}" if sites else "none"
        raise ValueError(f"Expected a program with a continuous latent site, for sliders; got {got}.")
    if site not in (None, *continuous):
        raise ValueError(f"Expected site to be one of the continuous sites {', '.join(continuous)}; got {site!r}.")


@dataclass(frozen=True)
class _Decoder:
    """The mean of an observed site at codes: unconstrained coordinates of the continuous latent sites."""

    posterior: Posterior
    site: str
    latents: Draws  # of all rows, at the centre of the guide
    codes: Tensor  # (N, D)
    fixed: tuple[str, ...]  # latent sites with values; the other sites are at their centre given these

    @classmethod
    def of(cls, posterior: Posterior, parts: list[Posterior], site: str | None) -> "_Decoder":
        """Return the decoder of a posterior, whose rows ``parts`` holds, for sliders of a site or of all sites."""
        by_part = [guide_latents(rows) for rows in parts]
        latents = {name: torch.cat([values[name] for values in by_part], dim=1) for name in by_part[0]}
        sites = [*posterior.structure.supports]
        fixed = sites[: sites.index(site) + 1] if site else sites
        codes = posterior.unconstrain(latents)[0]
        return cls(posterior, site_of_x(posterior), latents, codes, tuple(name for name in fixed if name in latents))

    def columns(self, site: str | None) -> list[int]:
        """Return the columns of the codes of a site, or of all sites that the decoding depends on."""
        sizes = {name: shape.numel() for name, shape in self.posterior.structure.continuous.items()}
        owners = [name for name, size in sizes.items() for _ in range(size)]
        first = self.codes[0]
        usual, relevant = self(first), [site]
        if site is None:
            shifts = {name: torch.tensor([owner == name for owner in owners]).to(first) for name in sizes}
            relevant = [name for name, shift in shifts.items() if not torch.equal(self(first + shift), usual)]
        return [i for i, owner in enumerate(owners) if owner in relevant] or [*range(len(owners))]

    def __call__(
        self, code: Tensor, start: int = 0, end: int = 0, mix: float = 0.0, labels: dict[str, int] | None = None
    ) -> Tensor:
        """Return the mean of the site at a code, with the other arguments of the program from the row at the start."""
        rows, at = (slice(None), start) if self.posterior.structure.all_rows else (slice(start, start + 1), 0)
        data = [column[rows].clone() for column in self.posterior.data]
        for name, column, of_all in zip(
            argument_names(self.posterior.program), data, self.posterior.data, strict=False
        ):
            if labels and name in labels:
                column[at] = labels[name]
            elif column is not data[0] and column.is_floating_point():
                column[at] = of_all[start].lerp(of_all[end], mix)
        with at_data(self.posterior.program, self.posterior, seed=0):
            here = replace(self.posterior, data=tuple(data))
            free = here.constrain(code.expand(1, len(here), -1))[0]
            latents = {name: free[name] if name in free else self.latents[name][:, rows] for name in self.fixed}
            return decode(here, latents, self.site)[0, at]


def _painter(posterior: Posterior, site: str, names: Sequence[str] | None) -> Any:
    """Return a function from a decoding, and the rows at the start and the end, to a PNG file or an HTML table."""
    event, x = posterior.structure.observed[site], posterior.data[0]
    if len(event) > 3:
        raise ValueError(f"Expected x to be images or rows; got shape {tuple(event)} of one datum.")
    names = coordinates(site, event) if names is None else names
    if len(event) < 2 and len(names) != event.numel():
        raise ValueError(f"Expected a name for each of the {event.numel()} columns of x; got {len(names)}.")
    brightest = white(x, posterior.structure.observed_supports[site])

    def paint(decoded: Tensor, start: int, end: int) -> bytes | str:
        rows = torch.stack([x[start], decoded, x[end]] if x.shape[1:] == event else [decoded])
        return png(rows / brightest) if len(event) > 1 else table(rows.reshape(len(rows), -1), names)

    return paint


def _labels(posterior: Posterior) -> dict[str, tuple[list[int], list[int]]]:
    """Return, for each argument of labels, all labels and the label of each row."""
    columns = dict(zip(argument_names(posterior.program), posterior.data, strict=False))
    labels = getattr(posterior.program, "labels", ())
    labels = labels if isinstance(labels, range) else ()
    labels = {}
    for name, column in [*columns.items()][1:]:
        if column.dim() == 1 and not column.is_floating_point() and column.dtype != torch.bool:
            options = sorted({*labels, *column.tolist()})
            if len(options) <= LABELS:
                labels[name] = options, column.tolist()
    return labels
