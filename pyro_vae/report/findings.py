"""What is found of test images: of the model, of the guide, of codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import ais, evaluate, plots, posterior
from pyro_vae.conditional import Conditional
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.evaluate.weights import FEWEST
from pyro_vae.program import Posterior

__all__ = ["Findings"]

PARTICLES = (1, 10, 100, 1000, 10_000, 100_000)
MOST_CODES = 2000  # images whose codes are compared with each other: the work grows with their square
SIMULATED = 500  # data for calibration
SHOWN = 12  # images where the guide is worst, and as many where it is best


class Findings:
    """What is found of test images, section by section.

    Arguments:
        whole: A program at the images.
        log_w: Log-weights of its guide's draws, of shape ``(K, B)``.
        values: What the table has of the same images.
        seed: Of simulated data.
    """

    def __init__(self, whole: Posterior, log_w: Tensor, values: evaluate.Values, seed: int) -> None:
        self.seed = seed
        self.whole, self.program, self.log_w = whole, whole.program, log_w
        self.sections: dict[str, list[str]] = {}
        self.numbers: dict[str, float] = {}
        names = ("ELBO", "E[log p(x|z)]", "KL", "-log p(x)")
        self.images = {name: column.tolist() for name, column in zip(names, values, strict=True)}
        self.figures: dict[str, Figure] = {}
        self.log_p: Tensor | None = None  # by AIS, of the chosen images

    def bounds(self, chosen: int, temperatures: int, progress: bool) -> None:
        """Ask how good the model is: log p(x), by more and more particles and by AIS."""
        particles = [k for k in PARTICLES if k < len(self.log_w)] + [len(self.log_w)]
        pairs = [mean_and_error(bound) for bound in -evaluate.iwae_curve(self.log_w, particles)]
        lines = [
            "particles  " + "".join(f"{k:>16,}" for k in particles),
            "-log p(x) ≤" + "".join(f"{_pair(pair):>16}" for pair in pairs),
        ]
        others = {}
        if chosen:
            x = self.whole[:chosen]
            try:
                self.log_p = ais.ais(self.program, x, temperatures=temperatures, progress=progress)
                lower, upper = ais.bdmc(self.program, x, temperatures=temperatures, progress=progress, num=len(x))
            except ValueError as error:  # data that cannot be drawn, or a guide whose density is not known
                lines.append(f"No AIS or BDMC: {error}")
            else:
                weighted = evaluate.iwae(self.log_w[:, : len(x)])
                difference = others[f"AIS, {len(x)} images"] = mean_and_error(weighted - self.log_p)
                self.numbers |= {"AIS - IS": -difference[0], "AIS - IS, error": difference[1]}
                self.numbers |= {"AIS": -self.log_p.mean().item(), "BDMC gap": (upper - lower).mean().item()}
                self.images["-log p(x) by AIS"] = (-self.log_p).tolist()
                lines += [
                    f"AIS, {temperatures:,} temperatures, the first {len(x)} images: -log p(x) ≤ "
                    f"{_pair(mean_and_error(-self.log_p))}; with {len(self.log_w):,} particles, on the same, "
                    f"{-difference[0]:.2f} ± {difference[1]:.2f} more.",
                    f"BDMC, {len(x)} images that the model draws: {-upper.mean():.2f} ≤ -log p(x) ≤ "
                    f"{-lower.mean():.2f}; {(upper - lower).mean():.2f} apart, {(upper - lower).max():.2f} at most.",
                ]
        title = f"-log p(x) of {self.log_w.shape[1]:,} test images: ± standard error over them"
        means, errors = zip(*pairs, strict=True)
        self.figures["bounds"] = plots.bounds(particles, means, errors, others, title)
        self._add("How good is the model?", lines)

    def guide(self, chosen: int, progress: bool) -> None:
        """Ask how good the guide is: its weights, its gaps, its calibration."""
        lines = self._weights() if len(self.log_w) >= FEWEST else [f"No k-hat: it takes {FEWEST} particles."]
        if chosen:
            x = self.whole[:chosen]
            if not isinstance(getattr(self.program, "encoder", None), Conditional) or len(x.data) > 1:
                lines.append("No gaps: the encoder is no Conditional, whose guide could be refined for each image.")
            else:
                gaps = posterior.gaps(self.program, x.data[0], self.log_p, temperatures=0, progress=progress)
                pairs = [mean_and_error(gap) for gap in (gaps.approximation, gaps.amortisation)]
                self.numbers |= {"approximation": pairs[0][0], "amortisation": pairs[1][0]}
                self.images |= {
                    "approximation": gaps.approximation.tolist(),
                    "amortisation": gaps.amortisation.tolist(),
                }
                lines.append(
                    f"log p(x) - ELBO, the first {len(x)} images: approximation {_pair(pairs[0])} + amortisation "
                    f"{_pair(pairs[1])} nats."
                )
                self.figures["gaps"] = plots.gaps(gaps.approximation, gaps.amortisation)
        try:
            ranks = posterior.sbc(self.program, self.whole, seed=self.seed, num=SIMULATED)
        except ValueError as error:  # data that cannot be drawn
            lines.append(f"No calibration: {error}")
        else:
            held = self.numbers["coverage at 0.9"] = ranks.coverage([0.9]).mean().item()
            p = ranks.p_values
            lines.append(
                f"Calibration, {SIMULATED} data that the model draws: 90% intervals hold {held:.1%} of the true z; "
                f"ranks uniform, of {len(p)} tests the least p = {p.min():.2g} ({ranks.names[int(p.argmin())]})."
            )
            self.figures["calibration"] = ranks.figure()
        self._add("How good is the guide?", lines)

    def _weights(self) -> list[str]:
        k, ess = evaluate.pareto_k(self.log_w), evaluate.ess(self.log_w)
        shares = {line: (k > line).double().mean().item() for line in (0.5, 0.7)}
        self.numbers |= {"k, median": k.median().item(), "k > 0.7": shares[0.7], "ESS, median": ess.median().item()}
        self.images |= {"k-hat": k.tolist(), "ESS": ess.tolist()}
        order = k.argsort(descending=True)
        found = [
            f"Pareto k-hat: median {k.median():.2f}; above 0.5 for {shares[0.5]:.1%} of the images, above 0.7 for "
            f"{shares[0.7]:.1%}. Largest: " + ", ".join(f"{k[i]:.2f} (image {i})" for i in order[:4].tolist()) + ".",
            f"Effective sample size of {len(self.log_w):,} draws: median {ess.median():,.0f}, least {ess.min():,.1f}.",
        ]
        self.figures["weights"] = plots.weights(k, ess, len(self.log_w))
        x = self.whole.data[0]
        if x.dim() in (3, 4) and hasattr(self.program, "reconstruct") and len(self.whole.data) == 1:
            white = max(x.nan_to_num(0.0).max().item(), 1.0)
            ends = torch.cat([order[:SHOWN], order[SHOWN:][-SHOWN:]])  # of all, few are drawn
            x = x[ends]
            self.figures["worst"] = plots.worst(x / white, self.program.reconstruct(x) / white, k[ends], SHOWN)
        return found

    def codes(self) -> None:
        """Ask what codes say: of which dimensions, how much, and where they are."""
        names = evaluate.dimensions(self.whole)
        if not names:
            return
        activity = evaluate.activity(self.program, self.whole)
        active, latent = int((activity > 0.01).sum()), len(activity)
        self.numbers |= {"active": active, "latent": latent}
        lines = [f"{active} of {latent} dimensions are active: their mean varies over the images by more than 0.01."]
        sites = evaluate.kl_by_site(self.program, self.whole, evaluate.DRAWS)
        if len(sites) > 1:
            lines.append("KL by site, nats: " + ", ".join(f"{n} {kl.mean():.2f}" for n, kl in sites.items()) + ".")
        kl = self._kl(len(names))
        if kl is not None:
            lines.append(f"KL by dimension, nats: {_listed(kl, names)}.")
        lines.append(f"Activity: {_listed(activity, names)}.")
        if not self.whole.structure.hidden:
            few = self.whole[:MOST_CODES]
            information, divergence = evaluate.aggregate(self.program, few)
            self.numbers["log N"] = math.log(len(few))
            self.numbers |= {"mutual information": information, "aggregate KL": divergence}
            lines.append(
                f"Of {len(few):,} codes: mutual information {information:.2f} nats (at most log N = "
                f"{math.log(len(few)):.2f}) + KL(q(z) || p(z)) {divergence:.2f} = KL {information + divergence:.2f}."
            )
        self.figures["dimensions"] = plots.dimensions(activity, kl, names=names)
        self._add("What do codes say?", lines)

    def _kl(self, number: int) -> Tensor | None:
        """Return the mean divergence of each dimension; None where guide or prior are not independent over them."""
        try:
            kl = evaluate.kl_per_dim(self.program, self.whole).mean(0)
        except ValueError:
            return None
        return kl if len(kl) == number else None

    def _add(self, head: str, lines: Sequence[str]) -> None:
        self.sections[f"{head} The first {len(self.whole):,} test images"] = [*lines]


def _pair(values: tuple[float, float]) -> str:
    return f"{values[0]:.2f} ± {values[1]:.2f}"


def _listed(values: Tensor, names: Sequence[str], most: int = 12) -> str:
    order = values.argsort(descending=True).tolist()
    shown = ", ".join(f"{names[i]} {values[i]:.2f}" for i in order[:most])
    return shown + (f", ... {names[order[-1]]} {values[order[-1]]:.2f}" if len(order) > most else "")
