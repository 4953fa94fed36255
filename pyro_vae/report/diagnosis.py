"""The diagnosis of an evaluation: the numbers in words, with advice."""

import math
from collections.abc import Mapping

from pyro_vae.words import above, nats, pair

Numbers = Mapping[str, float]


def diagnosis(numbers: Numbers, images: str = "images") -> list[str]:
    """Return one or two sentences on each subject of an evaluation. The verdict is yes, no or cannot tell.

    For a number with a standard error, ``pyro_vae.words.above`` returns the verdict.

    Args:
        numbers: Numbers by name, as in :attr:`Evaluation.numbers`; subjects without numbers are omitted.
        images: Noun for the data.

    Example:
        >>> diagnosis({"active": 9, "latent": 20})  # doctest: +ELLIPSIS
        ['11 of 20 dimensions are collapsed: their activity is at most 0.01. ...']
        >>> diagnosis({"BDMC gap": 0.9, "BDMC gap, error": 0.4, "chosen": 20})  # doctest: +ELLIPSIS
        ['Cannot tell whether AIS is within 1 nat of log p(x): 0.90 ± 0.40 nats, ...']
    """
    return [sentence(numbers, images) for key, sentence in SUBJECTS.items() if key in numbers]


def _verdict(n: Numbers, name: str, num: str, line: float, slack: float = 0.0, sign: int = 1) -> bool | None:
    """Decide whether a number, or minus it, is above a line, by its standard error over ``n[num]`` data."""
    return above(sign * n[name], n.get(f"{name}, error", 0.0), n.get(num, math.inf), line, slack)


def _pair(n: Numbers, name: str, sign: int = 1, plus: str = "") -> str:
    mean, error = sign * n[name], n.get(f"{name}, error")
    return nats(mean, plus) if error is None else pair((mean, error), plus)


def _collapse(n: Numbers, images: str) -> str:
    latent, unsure = int(n["latent"]), int(n.get("unsure", 0))
    collapsed = int(n.get("collapsed", latent - n["active"]))
    active = f"All {latent} dimensions are active: the activity of each is above 0.01."
    share = "All" if collapsed == latent else f"{collapsed} of"
    lost = f"{share} {latent} dimensions are collapsed: their activity is at most 0.01. If the data need more of "
    lost += "them, try --objective.free_bits 0.1, or --objective.beta Linear --objective.beta.warmup 0.5; otherwise "
    lost += "a smaller --latent gives the same."
    doubt = f"Cannot tell whether {unsure} of {latent} dimensions are active. Use more --images."
    return " ".join([lost] * bool(collapsed) + [doubt] * bool(unsure)) or active


def _dead(n: Numbers, images: str) -> str:
    alive, codes = int(n["codes alive"]), int(n["codes"])
    if alive >= 0.9 * codes:
        return f"{alive} of {codes} codes are in use."
    advice = "Try a larger --program.guide.restart, more epochs, --program.guide FSQ, or fewer --program.codes."
    return f"Only {alive} of {codes} codes are in use by the {images}. {advice}"


def trusts(n: Numbers, name: str = "k > 0.7") -> bool | None:
    """Decide whether importance sampling is reliable: k-hat is above 0.7 for at most a tenth of the images."""
    large = _verdict(n, name, "images", 0.1) if name in n else None
    return None if large is None else not large


def _trust(n: Numbers, images: str) -> str:
    advice = "Quote AIS." if "AIS" in n else "Run AIS, with --chosen 50."
    if "adapted, k > 0.7" in n:
        last = "Quote their -log p(x)." if trusts(n, "adapted, k > 0.7") else advice
        advice = f"With adapted proposals it is above 0.7 for {n['adapted, k > 0.7']:.1%}. {last}"
    else:
        advice += " Or use --proposal adapted."
    verdict = {
        False: f"there the guide misses a part of the posterior, and more particles help little. {advice}",
        True: "importance sampling from the guide is reliable.",
        None: "cannot tell whether importance sampling from the guide is reliable. Use more --images.",
    }[trusts(n)]
    return f"k-hat is above 0.7 for {n['k > 0.7']:.1%} of the {images}: {verdict}"


def _distance(n: Numbers, images: str) -> str:
    falls, rises = (_verdict(n, "AIS - IS", "chosen", 0.0, 0.1, sign) for sign in (1, -1))
    same, short = f"on the same {images}", f"falls {_pair(n, 'AIS - IS', -1 if rises else 1)} nats short of"
    if falls:
        advice = "-log p(x) above is too large by at least as much. Use more --num_particles, or quote AIS."
        return f"Importance sampling {short} AIS {same}: {advice}"
    if rises:
        return f"AIS {short} importance sampling {same}. Use more --temperatures."
    difference = f"{_pair(n, 'AIS - IS', plus='+')} nats between them {same}"
    if falls is rises is False:
        return f"Importance sampling and AIS agree: {difference}."
    return f"Cannot tell which is nearer to log p(x), importance sampling or AIS: {difference}. Use more --chosen."


def _sandwich(n: Numbers, images: str) -> str:
    wide, gap = _verdict(n, "BDMC gap", "chosen", 1.0), _pair(n, "BDMC gap")
    data = f"on average over {images} drawn from the model"
    if wide is None:
        return f"Cannot tell whether AIS is within 1 nat of log p(x): {gap} nats, {data}. Use more --chosen."
    return f"AIS is within {gap} nats of log p(x), {data}.{' Use more --temperatures.' * wide}"


def _gaps(n: Numbers, images: str) -> str:
    family, encoder = n["approximation"], n["amortisation"]
    n = {"gap": family + encoder, "amortisation - approximation": encoder - family} | dict(n)
    below, large = f"the ELBO is {_pair(n, 'gap')} nats below log p(x)", _verdict(n, "gap", "chosen", 0.5)
    if not large:
        doubt = f"Cannot tell whether the guide is near the posterior: {below}. Use more --chosen."
        return doubt if large is None else f"The guide is near the posterior: {below}."
    advice = {
        True: "If the learning rate was constant, let it fall (--lr_schedule trapezoid). Train the guide on data drawn "
        "from the model (--sleep 10000), or try a larger encoder (--network.hidden), more epochs, or more training "
        "data; a richer family would gain less.",
        False: "Try a richer family: --guide FullNormal or --guide Flow.",
        None: "Cannot tell which is larger. Use more --chosen.",
    }[_verdict(n, "amortisation - approximation", "chosen", 0.0)]
    return (
        f"Inference gap: {family:.2f} nats of approximation (the guide's family) + {encoder:.2f} nats of amortisation "
        f"(the encoder). {advice}"
    )


def _overfit(n: Numbers, images: str) -> str:
    more, error = n["test - train"], n["test - train, error"]
    change = f"-log p(x) changes by {more:+.1f} ± {error:.1f} nats from train to test"
    return {
        True: f"-log p(x) is {more:.1f} ± {error:.1f} nats larger on test {images} than on training {images}: the "
        "model overfits. Try fewer epochs, a smaller decoder, or more data.",
        False: f"No sign of overfitting: {change}.",
        None: f"Cannot tell whether the model overfits: {change}. Use more --images.",
    }[above(more, error, n.get("images", math.inf), slack=min(0.02 * abs(n["test -log p(x)"]), 2.0))]


def _prior(n: Numbers, images: str) -> str:
    information, kl, limit = n["mutual information"], n["aggregate KL"], n["log N"]
    if information > limit - 1.0:
        near = f"The mutual information, {information:.1f} nats, is near its limit log N = {limit:.1f}"
        return f"{near}: it is a lower bound, and KL(q(z) || p(z)) is at most {kl:.1f} nats. Use more --images."
    divergence = f"KL(q(z) || p(z)) is {kl:.1f} nats"
    return {
        True: f"The aggregate posterior does not match the prior: {divergence}. A learned prior may save as much: "
        "--prior VampPrior or --prior Flow.",
        False: f"The aggregate posterior matches the prior: {divergence}.",
        None: f"Cannot tell whether the aggregate posterior matches the prior: {divergence}. Use more --images.",
    }[_verdict(n, "aggregate KL", "codes", 1.0)]


def _calibration(n: Numbers, images: str) -> str:
    excess = {"off": n["coverage at 0.9"] - 0.9, "off, error": n.get("coverage at 0.9, error", 0.0)} | dict(n)
    wide, narrow = (_verdict(excess, "off", "simulated", 0.0, 0.05, sign) for sign in (1, -1))
    verdict = "it is calibrated, in each dimension by itself."
    if narrow:
        verdict = "it is overconfident. Resample its draws (to_arviz(..., resample=True)) or use NUTS."
    elif wide:
        verdict = "they are too wide."
    elif wide is None or narrow is None:
        verdict = "cannot tell whether it is calibrated."
    share = f"{n['coverage at 0.9']:.1%} of the true z"
    return f"On data drawn from the model, the guide's 90% intervals contain {share}: {verdict}"


# By the number that each subject needs.
SUBJECTS = {"active": _collapse, "k > 0.7": _trust, "AIS - IS": _distance, "BDMC gap": _sandwich}
SUBJECTS |= {"approximation": _gaps, "test - train": _overfit, "aggregate KL": _prior}
SUBJECTS |= {"coverage at 0.9": _calibration, "codes alive": _dead}
