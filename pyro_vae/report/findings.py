"""What test images tell of the model, of the guide and of codes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import ais, evaluate, plots, posterior
from pyro_vae.conditional import Conditional
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.evaluate.weights import FEWEST
from pyro_vae.program import Posterior
from pyro_vae.report.closing import mean_kl, pair

PARTICLES = (1, 10, 100, 1000, 10_000, 100_000)
MOST_CODES = 2000  # images whose codes are compared with each other: the work grows with their square
SIMULATED = 500  # data for calibration
SHOWN = 12  # images where the guide is worst, and as many where it is best


@dataclass
class Finding:
    """Lines to print; numbers and figures by name; and columns by name, a number an image."""

    lines: list[str]
    numbers: dict[str, float] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


def bounds(
    whole: Posterior, log_w: Tensor, chosen: int, temperatures: int, progress: bool
) -> tuple[Finding, Tensor | None]:
    """Ask how large log p(x) is, by more and more particles and by AIS; return the latter too, of the chosen images."""
    particles = [k for k in PARTICLES if k < len(log_w)] + [len(log_w)]
    pairs = [mean_and_error(bound) for bound in -evaluate.iwae_curve(log_w, particles)]
    found = Finding(["particles  " + "".join(f"{k:>16,}" for k in particles)])
    found.lines.append("-log p(x) ≤" + "".join(f"{pair(each):>16}" for each in pairs))
    log_p, others = None, {}
    if chosen:
        x = whole[:chosen]
        try:
            log_p = ais.ais(whole.program, x, temperatures=temperatures, progress=progress)
            lower, upper = ais.bdmc(whole.program, x, temperatures=temperatures, progress=progress, num=len(x))
        except ValueError as error:  # data that cannot be drawn, or a guide whose density is not known
            found.lines.append(f"No AIS or BDMC: {error}")
        else:
            below, apart = evaluate.iwae(log_w[:, : len(x)]) - log_p, upper - lower
            mean, deviation = others[f"AIS, {len(x)} images"] = mean_and_error(below)
            found.numbers |= {"AIS - IS": -mean, "AIS - IS, error": deviation}
            found.numbers |= {"AIS": -log_p.mean().item(), "BDMC gap": apart.mean().item()}
            found.images["-log p(x) by AIS"] = -log_p
            found.lines += [
                f"AIS, {temperatures:,} temperatures, the first {len(x)} images: -log p(x) ≤ "
                f"{pair(mean_and_error(-log_p))}; with {len(log_w):,} particles, on the same, "
                f"{pair((-mean, deviation))} more.",
                f"BDMC, {len(x)} images that the model draws: {-upper.mean():.2f} ≤ -log p(x) ≤ {-lower.mean():.2f}; "
                f"{apart.mean():.2f} apart, {apart.max():.2f} at most.",
            ]
    title = f"-log p(x) of {log_w.shape[1]:,} test images: ± standard error over them"
    means, errors = zip(*pairs, strict=True)
    found.figures["bounds"] = plots.bounds(particles, means, errors, others, title)
    return found, log_p


def weights(whole: Posterior, log_w: Tensor) -> Finding:
    """Ask how good the guide is by its weights, and draw the images where it is worst."""
    if len(log_w) < FEWEST:
        return Finding([f"No k-hat: it takes {FEWEST} particles."])
    k, ess = evaluate.pareto_k(log_w), evaluate.ess(log_w)
    order = k.argsort(descending=True)
    usable, poor = ((k > line).double().mean().item() for line in (0.5, 0.7))
    largest = ", ".join(f"{k[i]:.2f} (image {i})" for i in order[:4].tolist())
    found = Finding(
        [
            f"Pareto k-hat: median {k.median():.2f}; above 0.5 for {usable:.1%} of the images, above 0.7 for "
            f"{poor:.1%}. Largest: {largest}.",
            f"Effective sample size of {len(log_w):,} draws: median {ess.median():,.0f}, least {ess.min():,.1f}.",
        ],
        {"k, median": k.median().item(), "k > 0.7": poor, "ESS, median": ess.median().item()},
        {"k-hat": k, "ESS": ess},
        {"weights": plots.weights(k, ess, len(log_w))},
    )
    x = whole.data[0]
    if x.dim() in (3, 4) and hasattr(whole.program, "reconstruct") and len(whole.data) == 1:
        white = max(x.nan_to_num(0.0).max().item(), 1.0)
        ends = torch.cat([order[:SHOWN], order[SHOWN:][-SHOWN:]])  # of all, few are drawn
        x_hat = whole.program.reconstruct(x[ends])
        found.figures["worst"] = plots.worst(x[ends] / white, x_hat / white, k[ends], SHOWN)
    return found


def gaps(x: Posterior, log_p: Tensor | None, progress: bool) -> Finding:
    """Ask how much the guide's family loses, and how much its encoder, given log p(x) if it is known."""
    if not isinstance(getattr(x.program, "encoder", None), Conditional) or len(x.data) > 1:
        return Finding(["No gaps: the encoder is no Conditional, whose guide could be refined for each image."])
    found = posterior.gaps(x.program, x.data[0], log_p, temperatures=0, progress=progress)
    parts = {"approximation": found.approximation, "amortisation": found.amortisation}
    pairs = {name: mean_and_error(part) for name, part in parts.items()}
    terms = " + ".join(f"{name} {pair(each)}" for name, each in pairs.items())
    return Finding(
        [f"log p(x) - ELBO, the first {len(x)} images: {terms} nats."],
        {name: mean for name, (mean, _) in pairs.items()},
        parts,
        {"gaps": plots.gaps(**parts)},
    )


def calibration(whole: Posterior, seed: int) -> Finding:
    """Ask whether the guide's intervals hold as much as they say, on data that the model draws."""
    try:
        ranks = posterior.sbc(whole.program, whole, seed=seed, num=SIMULATED)
    except ValueError as error:  # data that cannot be drawn
        return Finding([f"No calibration: {error}"])
    held, p = ranks.coverage([0.9]).mean().item(), ranks.p_values
    line = (
        f"Calibration, {SIMULATED} data that the model draws: 90% intervals hold {held:.1%} of the true z; "
        f"ranks uniform, of {len(p)} tests the least p = {p.min():.2g} ({ranks.names[int(p.argmin())]})."
    )
    return Finding([line], {"coverage at 0.9": held}, figures={"calibration": ranks.figure()})


def codes(whole: Posterior) -> Finding:
    """Ask which dimensions tell something of x, how much, and where codes are."""
    names = evaluate.dimensions(whole)
    if len(whole) < 2 or not names:  # nothing changes from an image to itself
        return Finding([])
    activity = evaluate.activity(whole.program, whole)
    active, latent = int((activity > 0.01).sum()), len(activity)
    found = Finding(
        [f"{active} of {latent} dimensions are active: their mean varies over the images by more than 0.01."],
        {"active": active, "latent": latent},
    )
    sites = evaluate.kl_by_site(whole.program, whole, evaluate.DRAWS)
    if len(sites) > 1:
        found.lines.append("KL by site, nats: " + ", ".join(f"{n} {kl.mean():.2f}" for n, kl in sites.items()) + ".")
    kl = mean_kl(whole.program, whole)
    if kl is not None and len(kl) == latent:
        found.lines.append(f"KL by dimension, nats: {_list(kl, names)}.")
    else:
        kl = None
    found.lines.append(f"Activity: {_list(activity, names)}.")
    if not whole.structure.hidden:
        few = whole[:MOST_CODES]
        information, divergence = evaluate.aggregate(whole.program, few)
        most = math.log(len(few))
        found.numbers |= {"log N": most, "mutual information": information, "aggregate KL": divergence}
        found.lines.append(
            f"Of {len(few):,} codes: mutual information {information:.2f} nats (at most log N = {most:.2f}) + "
            f"KL(q(z) || p(z)) {divergence:.2f} = KL {information + divergence:.2f}."
        )
    found.figures["dimensions"] = plots.dimensions(activity, kl, names=names)
    return found


def _list(values: Tensor, names: Sequence[str], most: int = 12) -> str:
    """Write the largest values with their names, and the least."""
    order = values.argsort(descending=True).tolist()
    parts = [f"{names[i]} {values[i]:.2f}" for i in order]
    return ", ".join(parts if len(parts) <= most else [*parts[:most], f"... {parts[-1]}"])
