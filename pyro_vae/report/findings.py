"""What test images tell of the model, of the guide and of codes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import ais, evaluate, plots, posterior
from pyro_vae.conditional import Conditional
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.evaluate.weights import FEWEST
from pyro_vae.program import Posterior
from pyro_vae.report.closing import mean_kl, shows
from pyro_vae.words import aligned, images_or_rows, pair

PARTICLES = (1, 10, 100, 1000, 10_000, 100_000)
CHOSEN = 50  # images whose guides are refined, and of which AIS is asked, where no number is given
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


def bounds(whole: Posterior, log_w: Tensor, chosen: int, temperatures: int, progress: bool) -> Finding:
    """Ask how large log p(x) is, by more and more particles and, of the chosen images, by AIS."""
    particles = [k for k in PARTICLES if k < len(log_w)] + [len(log_w)]
    pairs = [mean_and_error(bound) for bound in -evaluate.iwae_curve(log_w, particles)]
    rows = [["particles", *(f"{k:,}" for k in particles)], ["-log p(x) ≤", *map(pair, pairs)]]
    found, images = Finding(["\n".join(aligned(rows))]), name_of(whole)
    others = {}
    if chosen:
        x = whole[:chosen]
        try:
            log_p = ais.ais(whole.program, x, temperatures=temperatures, progress=progress)
            lower, upper = ais.bdmc(whole.program, x, temperatures=temperatures, progress=progress, num=len(x))
        except ValueError as error:  # data that cannot be drawn, or a guide whose density is not known
            found.lines.append(f"No AIS or BDMC: {error}")
        else:
            below, apart = evaluate.iwae(log_w[:, : len(x)]) - log_p, upper - lower
            others[f"AIS, {len(x)} {images}"] = mean_and_error(below)
            found.numbers |= with_errors(**{"AIS - IS": -below, "BDMC gap": apart}) | {"AIS": -log_p.mean().item()}
            found.images["-log p(x) by AIS"] = -log_p
            found.lines += [
                f"AIS, {temperatures:,} temperatures, the first {len(x)} {images}: -log p(x) ≤ "
                f"{pair(mean_and_error(-log_p))}; with {len(log_w):,} particles, on the same, "
                f"{pair(mean_and_error(-below))} more.",
                f"BDMC, {len(x)} {images} that the model draws: {-upper.mean():.2f} ≤ -log p(x) ≤ {-lower.mean():.2f}; "
                f"{apart.mean():.2f} apart, {apart.max():.2f} at most.",
            ]
    title = f"-log p(x) of {log_w.shape[1]:,} test {images}: ± standard error over them"
    means, errors = zip(*pairs, strict=True)
    found.figures["bounds"] = plots.bounds(particles, means, errors, others, title)
    return found


def weights(whole: Posterior, log_w: Tensor) -> Finding:
    """Ask how good a proposal is by its weights."""
    if len(log_w) < FEWEST:
        return Finding([f"No k-hat: it takes {FEWEST} particles."])
    try:
        k, ess = evaluate.pareto_k(log_w), evaluate.ess(log_w)
    except ValueError as error:  # infinite weights
        return Finding([f"No k-hat: {error}"])
    order, images, num = k.argsort(descending=True), name_of(whole), len(k)
    usable, poor = (1 - (k <= line).double().mean().item() for line in (0.5, 0.7))
    largest = ", ".join(f"{k[i]:.2f} ({images[:-1]} {i})" for i in order[:4].tolist())
    middle = (poor * num + 2) / (num + 4)  # that of Agresti and Coull (1998), since of none or all the error is not 0
    return Finding(
        [
            f"Pareto k-hat: median {k.median():.2f}; above 0.5 for {usable:.1%} of the {images}, above 0.7 for "
            f"{poor:.1%}. Largest: {largest}.",
            f"Effective sample size of {len(log_w):,} draws: median {ess.median():,.0f}, least {ess.min():,.1f}.",
        ],
        {"k, median": k.median().item(), "k > 0.7": poor, "ESS, median": ess.median().item()}
        | {"k > 0.7, error": math.sqrt(middle * (1 - middle) / (num + 4))},
        {"k-hat": k, "ESS": ess},
    )


def of_adapted(finding: Finding) -> Finding:
    """Return what weights say, under the name of the adapted proposal; columns of images are the guide's alone."""
    numbers = {f"adapted, {name}": number for name, number in finding.numbers.items()}
    return Finding([f"Of the adapted proposal: {line}" for line in finding.lines], numbers)


def figures_of_weights(whole: Posterior, num: int, columns: Mapping[str, Tensor]) -> dict[str, Figure]:
    """Draw k-hat and ESS of so many draws, if they are known, and images where the guide is worst, if such they are."""
    if not columns:
        return {}
    k, ess = columns["k-hat"], columns["ESS"]
    figures, x = {"weights": plots.weights(k, ess, num, name_of(whole))}, whole.data[0]
    if x.dim() in (3, 4) and shows(whole.program, "reconstruct", whole.data):
        white = max(x.nan_to_num(0.0).max().item(), 1.0)
        order = k.argsort(descending=True)
        ends = torch.cat([order[:SHOWN], order[SHOWN:][-SHOWN:]])  # of all, few are drawn
        x_hat = whole.program.reconstruct(*(column[ends] for column in whole.data))
        figures["worst"] = plots.worst(x[ends] / white, x_hat / white, k[ends], SHOWN)
    return figures


def gaps(x: Posterior, minus_log_p: Tensor | None, progress: bool) -> Finding:
    """Ask how much the guide's family loses, and how much its encoder, given -log p(x) if it is known."""
    alone = [*x.structure.supports] == ["z"] and len(x.data) == 1
    if not isinstance(getattr(x.program, "encoder", None), Conditional) or not alone:
        what = f"whose guide could be refined for each {name_of(x)[:-1]}"
        return Finding([f"No gaps: {'the encoder is no Conditional' if alone else 'this is no VAE'}, {what}."])
    log_p = None if minus_log_p is None else -minus_log_p
    found = posterior.gaps(x.program, x.data[0], log_p, temperatures=0, progress=progress)
    parts = {"approximation": found.approximation, "amortisation": found.amortisation}
    terms = " + ".join(f"{name} {pair(mean_and_error(part))}" for name, part in parts.items())
    both = {"gap": found.log_p - found.elbo, "amortisation - approximation": found.amortisation - found.approximation}
    line = f"log p(x) - ELBO, the first {len(x)} {name_of(x)}: {terms} nats."
    figures = {"gaps": plots.gaps(**parts, images=name_of(x))}
    return Finding([line], with_errors(**parts, **both), parts, figures)


def calibration(whole: Posterior, seed: int) -> Finding:
    """Ask whether the guide's intervals hold as much as they say, on data that the model draws."""
    try:
        ranks = posterior.sbc(whole.program, whole, seed=seed, num=SIMULATED)
    except ValueError as error:  # data that cannot be drawn
        return Finding([f"No calibration: {error}"])
    covered, p = ranks.covers(0.9).double().mean(1), ranks.p_values
    held = f"90% intervals hold {covered.mean():.1%} of the true z"
    least = f"of {len(p)} tests whether ranks are uniform the least p = {p.min():.2g} ({ranks.names[int(p.argmin())]})"
    lines = [f"Calibration, {SIMULATED} data that the model draws: {held}; {least}."]
    numbers = with_errors(**{"coverage at 0.9": covered}) | {"simulated": len(covered)}
    return Finding(lines, numbers, figures={"calibration": ranks.figure()})


def codes(whole: Posterior) -> Finding:
    """Ask which dimensions tell something of x, how much, and where codes are."""
    if len(whole) < 2 or not (names := evaluate.dimensions(whole)):  # nothing changes from an image to itself
        return Finding([])
    activity = evaluate.activity(whole.program, whole)
    latent, (active, collapsed, unsure) = len(activity), evaluate.usage(activity, len(whole))
    line = f"{active} of {latent} dimensions are active: their mean varies over the {name_of(whole)} by more than 0.01."
    found = Finding([line], {"active": active, "latent": latent, "collapsed": collapsed, "unsure": unsure})
    sites = evaluate.kl_by_site(whole.program, whole, evaluate.DRAWS)
    if len(sites) > 1:
        found.lines.append("KL by site, nats: " + ", ".join(f"{n} {kl.mean():.2f}" for n, kl in sites.items()) + ".")
    kl = mean_kl(whole.program, whole)
    kl = kl if kl is not None and len(kl) == latent else None
    if kl is not None:
        found.lines.append(f"KL by dimension, nats: {_list(kl, names)}.")
    found.lines.append(f"Activity: {_list(activity, names)}.")
    if not whole.structure.hidden:
        few = whole[:MOST_CODES]
        parts = evaluate.aggregate_of_codes(whole.program, few)
        (information, divergence), most = (part.mean().item() for part in parts), math.log(len(few))
        found.numbers |= {"log N": most, "mutual information": information, "codes": len(few)}
        found.numbers |= with_errors(**{"aggregate KL": parts[1]})
        parts_of_kl = f"mutual information {information:.2f} nats (at most log N = {most:.2f}) + "
        parts_of_kl += f"KL(q(z) || p(z)) {divergence:.2f} = KL {information + divergence:.2f}"
        found.lines.append(f"Of {len(few):,} codes: {parts_of_kl}.")
    found.figures["dimensions"] = plots.dimensions(activity, kl, names=names)
    return found


def with_errors(**values: Tensor) -> dict[str, float]:
    """Return means, and standard errors beside them, by name."""
    pairs = {name: mean_and_error(each) for name, each in values.items()}
    return {f"{name}{end}": each[i] for name, each in pairs.items() for i, end in enumerate(("", ", error"))}


def name_of(whole: Posterior) -> str:
    """Return what the data are called."""
    return images_or_rows(whole.data[0].shape[1:])


def _list(values: Tensor, names: Sequence[str], most: int = 12) -> str:
    """Write the largest values with their names, and the least."""
    parts = [f"{names[i]} {values[i]:.2f}" for i in values.argsort(descending=True).tolist()]
    return ", ".join(parts if len(parts) <= most else [*parts[:most], f"... {parts[-1]}"])
