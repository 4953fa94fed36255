"""What the numbers of an evaluation mean, in words, and what usually helps."""

import math
from collections.abc import Mapping

from pyro_vae.words import above, nats, pair

Numbers = Mapping[str, float]


def diagnosis(numbers: Numbers, images: str = "images") -> list[str]:
    """Return what the numbers say of a program, a sentence or two on each subject: yes, no, or that they cannot tell.

    Where a number has a standard error, :func:`pyro_vae.words.above` decides.

    Arguments:
        numbers: What :class:`Evaluation` has, by name; a subject without its numbers is left out.
        images: What the data are called.

    Example:
        >>> diagnosis({"active": 9, "latent": 20})  # doctest: +ELLIPSIS
        ['11 of 20 dimensions collapsed: their activity is at most 0.01. ...']
        >>> diagnosis({"BDMC gap": 0.9, "BDMC gap, error": 0.4, "chosen": 20})  # doctest: +ELLIPSIS
        ['Cannot tell whether AIS is within 1 nat of log p(x): 0.90 ± 0.40 nats, ...']
    """
    return [sentence(numbers, images) for key, sentence in SUBJECTS.items() if key in numbers]


def _told(n: Numbers, name: str, num: str, line: float, slack: float = 0.0, sign: int = 1) -> bool | None:
    """Say whether a number, or minus it, is above a line, by its error bar over so many data."""
    return above(sign * n[name], n.get(f"{name}, error", 0.0), n.get(num, math.inf), line, slack)


def _pair(n: Numbers, name: str, sign: int = 1, plus: str = "") -> str:
    mean, error = sign * n[name], n.get(f"{name}, error")
    return nats(mean, plus) if error is None else pair((mean, error), plus)


def _collapse(n: Numbers, images: str) -> str:
    latent, unsure = int(n["latent"]), int(n.get("unsure", 0))
    collapsed = int(n.get("collapsed", latent - n["active"]))
    used = f"All {latent} dimensions are used: the activity of each is above 0.01."
    left = "All of the" if collapsed == latent else f"{collapsed} of"
    lost = f"{left} {latent} dimensions collapsed: their activity is at most 0.01. If that is more than the data ask "
    lost += "for, try --objective.free_bits 0.1, or --objective.beta Linear --objective.beta.warmup 0.5; else a "
    lost += "smaller --latent does as well."
    doubt = f"Cannot tell whether {unsure} of {latent} dimensions are used; more --images would say."
    return " ".join([lost] * bool(collapsed) + [doubt] * bool(unsure)) or used


def trusts(n: Numbers, name: str = "k > 0.7") -> bool | None:
    """Say whether importance sampling is to be trusted: k-hat is above 0.7 for at most a tenth of the images."""
    large = _told(n, name, "images", 0.1) if name in n else None
    return None if large is None else not large


def _trust(n: Numbers, images: str) -> str:
    advice = "Quote AIS." if "AIS" in n else "Ask AIS, with --chosen 50."
    if "adapted, k > 0.7" in n:
        own = "Quote -log p(x) by it." if trusts(n, "adapted, k > 0.7") else advice
        advice = f"With the proposal adapted to each it is for {n['adapted, k > 0.7']:.1%}. {own}"
    else:
        advice += " Or take --proposal adapted."
    said = {
        False: f"there the guide leaves out a part of the posterior, and more particles help little. {advice}",
        True: "importance sampling from the guide is to be trusted.",
        None: "cannot tell whether importance sampling from the guide is to be trusted; more --images would say.",
    }[trusts(n)]
    return f"k-hat is above 0.7 for {n['k > 0.7']:.1%} of the {images}: {said}"


def _distance(n: Numbers, images: str) -> str:
    falls, rises = (_told(n, "AIS - IS", "chosen", 0.0, 0.1, sign) for sign in (1, -1))
    same, short = f"on the same {images}", f"falls {_pair(n, 'AIS - IS', -1 if rises else 1)} nats short of"
    if falls:
        advice = "-log p(x) above is too large by at least as much. Take more --num_particles, or quote AIS."
        return f"Importance sampling {short} AIS {same}: {advice}"
    if rises:
        return f"AIS {short} importance sampling {same}: take more --temperatures."
    apart = f"{_pair(n, 'AIS - IS', plus='+')} nats between them {same}"
    if falls is rises is False:
        return f"Importance sampling and AIS agree: {apart}."
    return f"Cannot tell which is nearer to log p(x), importance sampling or AIS: {apart}; more --chosen would say."


def _sandwich(n: Numbers, images: str) -> str:
    told, gap = _told(n, "BDMC gap", "chosen", 1.0), _pair(n, "BDMC gap")
    drawn = f"on average of {images} that the model draws"
    if told is None:
        return f"Cannot tell whether AIS is within 1 nat of log p(x): {gap} nats, {drawn}; more --chosen would say."
    return f"AIS is within {gap} nats of log p(x), {drawn}.{' Take more --temperatures.' * told}"


def _gaps(n: Numbers, images: str) -> str:
    family, encoder = n["approximation"], n["amortisation"]
    n = {"gap": family + encoder, "amortisation - approximation": encoder - family} | dict(n)
    below, lost = f"the ELBO is {_pair(n, 'gap')} nats below log p(x)", _told(n, "gap", "chosen", 0.5)
    if not lost:
        doubt = f"Cannot tell whether the guide is near the posterior: {below}; more --chosen would say."
        return doubt if lost is None else f"The guide is near the posterior: {below}."
    both = f"{family:.2f} nats are what its family cannot do, {encoder:.2f} what the encoder does not"
    advice = {
        True: "Train the guide on data that the model draws (--sleep 10000), or try a larger encoder "
        "(--network.hidden), more epochs, or more training data; a richer family would gain less.",
        False: "Try a richer family: --guide FullNormal or --guide Flow.",
        None: "Cannot tell which is more; more --chosen would say.",
    }
    return f"Of what the guide loses {both}. {advice[_told(n, 'amortisation - approximation', 'chosen', 0.0)]}"


def _overfit(n: Numbers, images: str) -> str:
    more, error = n["test - train"], n["test - train, error"]
    change = f"-log p(x) changes by {more:+.1f} ± {error:.1f} nats from train to test"
    return {
        True: f"-log p(x) is {more:.1f} nats larger on test {images} than on training {images} (± {error:.1f}): the "
        "model overfits. Try fewer epochs, a smaller decoder, or more data.",
        False: f"No sign of overfitting: {change}.",
        None: f"Cannot tell whether the model overfits: {change}; more --images would say.",
    }[above(more, error, n.get("images", math.inf), slack=min(0.02 * abs(n["test -log p(x)"]), 2.0))]


def _prior(n: Numbers, images: str) -> str:
    information, kl, most = n["mutual information"], n["aggregate KL"], n["log N"]
    if information > most - 1.0:  # too few images to tell more
        least = f"the mutual information is at least {information:.1f} nats, of log N = {most:.1f}"
        most_kl = f"So KL(q(z) || p(z)) is at most {kl:.1f}; more --images would say how much."
        return f"A code tells nearly all {images} apart: {least}. {most_kl}"
    said = f"KL(q(z) || p(z)) is {kl:.1f} nats"
    return {
        True: f"{said}: codes together are not where the prior is. A prior that follows them may save as much: "
        "--prior VampPrior or --prior Flow.",
        False: f"Codes together are where the prior is: {said}.",
        None: f"Cannot tell whether codes together are where the prior is: {said}; more --images would say.",
    }[_told(n, "aggregate KL", "codes", 1.0)]


def _calibration(n: Numbers, images: str) -> str:
    off = {"off": n["coverage at 0.9"] - 0.9, "off, error": n.get("coverage at 0.9, error", 0.0)} | dict(n)
    wide, narrow = (_told(off, "off", "simulated", 0.0, 0.05, sign) for sign in (1, -1))
    said = "calibrated, in each dimension by itself." if wide is narrow is False else "cannot tell if it is calibrated."
    if narrow:
        said = "it is too sure of itself. Resample its draws (to_arviz(..., resample=True)) or use NUTS."
    elif wide:
        said = "it is too wide."
    held = f"{n['coverage at 0.9']:.1%} of the true z"
    return f"Of data that the model draws, the guide's 90% intervals hold {held}: {said}"


# By the number without which there is nothing to say.
SUBJECTS = {"active": _collapse, "k > 0.7": _trust, "AIS - IS": _distance, "BDMC gap": _sandwich}
SUBJECTS |= {"approximation": _gaps, "test - train": _overfit, "aggregate KL": _prior}
SUBJECTS["coverage at 0.9"] = _calibration
