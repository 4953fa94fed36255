"""Answers of an evaluation on test images: bounds, weights, gaps, calibration and codes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vae import ais, evaluate, plots, posterior
from pyro_vae.conditional import Conditional
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.evaluate.weights import FEWEST
from pyro_vae.program import Posterior
from pyro_vae.report.closing import has_method
from pyro_vae.words import aligned, images_or_rows, pair

PARTICLES = (1, 10, 100, 1000, 10_000, 100_000)
CHOSEN = 50  # default number of images for AIS and for refined guides
MOST_CODES = 2000  # images for the aggregate posterior, whose cost grows with their square
SIMULATED = 500  # data for calibration
SHOWN = 12  # images with the largest k-hat in a figure, and as many with the smallest


@dataclass
class Answer:
    """One answer of an evaluation: text; numbers, figures and columns by name. A column has one number per image."""

    lines: list[str]
    numbers: dict[str, float] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, "plots.Figure"] = field(default_factory=dict)


def bounds(target: Posterior, log_w: Tensor, chosen: int, temperatures: int, progress: bool) -> Answer:
    """Bound log p(x) by importance sampling with more and more particles and, for the chosen images, by AIS."""
    particles = [k for k in PARTICLES if k < len(log_w)] + [len(log_w)]
    pairs = [mean_and_error(bound) for bound in -evaluate.iwae_curve(log_w, particles)]
    rows = [["particles", *(f"{k:,}" for k in particles)], ["-log p(x) ≤", *map(pair, pairs)]]
    answer, images = Answer(["\n".join(aligned(rows))]), noun_of(target)
    levels = {}
    if chosen:
        x = target[:chosen]
        try:
            log_p = ais.ais(target.program, x, temperatures=temperatures, progress=progress)
            lower, upper = ais.bdmc(target.program, x, temperatures=temperatures, progress=progress, num=len(x))
        except ValueError as error:  # data that cannot be drawn, or a guide of unknown density
            answer.lines.append(f"No AIS or BDMC: {error}")
        else:
            below, gap = evaluate.iwae(log_w[:, : len(x)]) - log_p, upper - lower
            levels[f"AIS, {len(x)} {images}"] = mean_and_error(below)
            answer.numbers |= with_errors(**{"AIS - IS": -below, "BDMC gap": gap}) | {"AIS": -log_p.mean().item()}
            answer.images["-log p(x) by AIS"] = -log_p
            answer.lines += [
                f"AIS, {temperatures:,} temperatures, the first {len(x)} {images}: -log p(x) ≤ "
                f"{pair(mean_and_error(-log_p))}; importance sampling with {len(log_w):,} particles on the same "
                f"{images}: {pair(mean_and_error(-below))} more.",
                f"BDMC, {len(x)} {images} drawn from the model: {-upper.mean():.2f} ≤ -log p(x) ≤ {-lower.mean():.2f}; "
                f"gap {gap.mean():.2f}, at most {gap.max():.2f}.",
            ]
    title = f"-log p(x) of {log_w.shape[1]:,} test {images}, mean ± standard error"
    means, errors = zip(*pairs, strict=True)
    answer.figures["bounds"] = plots.bounds(particles, means, errors, levels, title)
    return answer


def weights(target: Posterior, log_w: Tensor) -> Answer:
    """Judge a proposal by the importance weights: Pareto k-hat and effective sample size."""
    if len(log_w) < FEWEST:
        return Answer([f"No k-hat: it needs at least {FEWEST} particles."])
    try:
        k, ess = evaluate.pareto_k(log_w), evaluate.ess(log_w)
    except ValueError as error:  # infinite weights
        return Answer([f"No k-hat: {error}"])
    order, images, num = k.argsort(descending=True), noun_of(target), len(k)
    usable, poor = (1 - (k <= line).double().mean().item() for line in (0.5, 0.7))
    largest = ", ".join(f"{k[i]:.2f} ({images[:-1]} {i})" for i in order[:4].tolist())
    middle = (poor * num + 2) / (num + 4)  # Agresti and Coull (1998): the error of a share of 0 or 1 is not 0
    return Answer(
        [
            f"Pareto k-hat: median {k.median():.2f}; above 0.5 for {usable:.1%} of the {images}, above 0.7 for "
            f"{poor:.1%}. Largest: {largest}.",
            f"Effective sample size of {len(log_w):,} draws: median {ess.median():,.0f}, minimum {ess.min():,.1f}.",
        ],
        {"k, median": k.median().item(), "k > 0.7": poor, "ESS, median": ess.median().item()}
        | {"k > 0.7, error": math.sqrt(middle * (1 - middle) / (num + 4))},
        {"k-hat": k, "ESS": ess},
    )


def for_adapted(answer: Answer) -> Answer:
    """Return an answer about weights with "adapted" before each number's name and each line, without columns."""
    numbers = {f"adapted, {name}": number for name, number in answer.numbers.items()}
    return Answer([f"Adapted proposals: {line}" for line in answer.lines], numbers)


def weight_figures(target: Posterior, num: int, columns: Mapping[str, Tensor]) -> dict[str, "plots.Figure"]:
    """Plot k-hat, ESS and the images with the largest k-hat; plot nothing if ``columns`` is empty."""
    if not columns:
        return {}
    k, ess = columns["k-hat"], columns["ESS"]
    figures, x = {"weights": plots.weights(k, ess, num, noun_of(target))}, target.data[0]
    if x.dim() in (3, 4) and has_method(target.program, "reconstruct", target.data):
        white = max(x.nan_to_num(0.0).max().item(), 1.0)
        order = k.argsort(descending=True)
        ends = torch.cat([order[:SHOWN], order[SHOWN:][-SHOWN:]])
        x_hat = target.program.reconstruct(*(column[ends] for column in target.data))
        figures["worst"] = plots.worst(x[ends] / white, x_hat / white, k[ends], SHOWN)
    return figures


def gaps(x: Posterior, minus_log_p: Tensor | None, progress: bool) -> Answer:
    """Split the inference gap into the approximation gap (guide family) and the amortisation gap (encoder)."""
    single = [*x.structure.supports] == ["z"] and len(x.data) == 1
    if not isinstance(getattr(x.program, "encoder", None), Conditional) or not single:
        reason = "the encoder is no Conditional" if single else "the program is no VAE"
        return Answer([f"No gaps: the guide cannot be refined for each {noun_of(x)[:-1]}, since {reason}."])
    log_p = None if minus_log_p is None else -minus_log_p
    result = posterior.gaps(x.program, x.data[0], log_p, temperatures=0, progress=progress)
    approximation, amortisation = result.approximation, result.amortisation
    parts = {"approximation": approximation, "amortisation": amortisation}
    terms = " + ".join(f"{name} {pair(mean_and_error(part))}" for name, part in parts.items())
    both = {"gap": result.log_p - result.elbo, "amortisation - approximation": amortisation - approximation}
    line = f"log p(x) - ELBO, the first {len(x)} {noun_of(x)}: {terms} nats."
    figures = {"gaps": plots.gaps(**parts, images=noun_of(x))}
    return Answer([line], with_errors(**parts, **both), parts, figures)


def calibration(target: Posterior, seed: int) -> Answer:
    """Compare the nominal level with the coverage of the guide's intervals, on data sampled from the model."""
    try:
        ranks = posterior.sbc(target.program, target, seed=seed, num=SIMULATED)
    except ValueError as error:  # data that cannot be drawn
        return Answer([f"No calibration: {error}"])
    covered, p = ranks.covers(0.9).double().mean(1), ranks.p_values
    share = f"90% intervals contain {covered.mean():.1%} of the true z"
    least = f"smallest p of {len(p)} tests for uniform ranks: {p.min():.2g} ({ranks.names[int(p.argmin())]})"
    lines = [f"Calibration, {SIMULATED} data drawn from the model: {share}; {least}."]
    numbers = with_errors(**{"coverage at 0.9": covered}) | {"simulated": len(covered)}
    return Answer(lines, numbers, figures={"calibration": ranks.figure()})


def codes(target: Posterior) -> Answer:
    """Return the activity and the KL of each latent dimension, and the distance of all codes from the prior."""
    if len(target) < 2 or not (names := evaluate.dimensions(target)):  # a variance takes two images
        return Answer([])
    activity, images = evaluate.latent_activity(target.program, target), noun_of(target)
    latent, (active, collapsed, unsure) = len(activity), evaluate.usage(activity, len(target))
    line = f"{active} of {latent} dimensions are active: their mean has a variance above 0.01 over the {images}."
    answer = Answer([line], {"active": active, "latent": latent, "collapsed": collapsed, "unsure": unsure})
    sites = evaluate.kl_by_site(target.program, target, evaluate.DRAWS)
    if len(sites) > 1:
        answer.lines.append("KL by site, nats: " + ", ".join(f"{n} {kl.mean():.2f}" for n, kl in sites.items()) + ".")
    kl = evaluate.mean_kl(target.program, target)
    kl = kl if kl is not None and len(kl) == latent else None
    if kl is not None:
        answer.lines.append(f"KL by dimension, nats: {_list(kl, names)}.")
    answer.lines.append(f"Activity: {_list(activity, names)}.")
    if not target.structure.auxiliary:
        few = target[:MOST_CODES]
        parts = evaluate.aggregate_of_codes(target.program, few)
        (information, divergence), limit = (part.mean().item() for part in parts), math.log(len(few))
        answer.numbers |= {"log N": limit, "mutual information": information, "codes": len(few)}
        answer.numbers |= with_errors(**{"aggregate KL": parts[1]})
        terms = f"mutual information {information:.2f} nats (at most log N = {limit:.2f}) + "
        terms += f"KL(q(z) || p(z)) {divergence:.2f} = KL {information + divergence:.2f}"
        answer.lines.append(f"Of {len(few):,} codes: {terms}.")
    answer.figures["dimensions"] = plots.dimensions(activity, kl, names=names)
    return answer


def with_errors(**values: Tensor) -> dict[str, float]:
    """Return the mean and the standard error of each tensor, by name."""
    pairs = {name: mean_and_error(column) for name, column in values.items()}
    return {f"{name}{end}": pair[i] for name, pair in pairs.items() for i, end in enumerate(("", ", error"))}


def noun_of(target: Posterior) -> str:
    """Return the noun for the data: images or rows."""
    return images_or_rows(target.data[0].shape[1:])


def _list(values: Tensor, names: Sequence[str], most: int = 12) -> str:
    """Return the largest values with their names, and the smallest."""
    parts = [f"{names[i]} {values[i]:.2f}" for i in values.argsort(descending=True).tolist()]
    return ", ".join(parts if len(parts) <= most else [*parts[:most], f"... {parts[-1]}"])
