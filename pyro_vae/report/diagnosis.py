"""What the numbers of an evaluation mean, in words, and what usually helps."""

import math
from collections.abc import Callable, Mapping

from pyro_vae.words import above, pair

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
        ['Cannot tell whether AIS is within 1 nat of log p(x): 0.90 ± 0.40 nats ...']
    """
    return [sentence(numbers, images) for key, sentence in SUBJECTS.items() if key in numbers]


def _told(n: Numbers, name: str, num: str, line: float, slack: float = 0.0, sign: int = 1) -> bool | None:
    """Say whether a number, or minus it, is above a line, by its error bar over so many data."""
    return above(sign * n[name], n.get(f"{name}, error", 0.0), n.get(num, math.inf), line, slack)


def _pair(n: Numbers, name: str, sign: int = 1, plus: str = "") -> str:
    return pair((sign * n[name], n.get(f"{name}, error", 0.0)), plus)


def _collapse(n: Numbers, images: str) -> str:
    latent, unsure = int(n["latent"]), int(n.get("unsure", 0))
    collapsed = int(n.get("collapsed", latent - n["active"]))
    doubt = f"these {images} cannot tell whether {unsure} of {latent} dimensions are used; more --images would say."
    if not collapsed:
        return f"T{doubt[1:]}" if unsure else f"All {latent} dimensions are used: the activity of each is above 0.01."
    left = "All of the" if collapsed == latent else f"{collapsed} of"
    return (
        f"{left} {latent} dimensions collapsed: their activity is at most 0.01. If that is more than the data ask "
        "for, try --objective.free_bits 0.1, or --objective.beta Linear --objective.beta.warmup 0.5; else a smaller "
        f"--latent does as well.{f' T{doubt[1:]}' if unsure else ''}"
    )


def _trust(n: Numbers, images: str) -> str:
    share, poor = n["k > 0.7"], _told(n, "k > 0.7", "images", 0.1)
    said = f"k-hat is above 0.7 for {share:.1%} of the {images}: "
    if poor is None:
        return (
            f"{said}too few to tell whether importance sampling from the guide is to be trusted; more --images would."
        )
    if not poor:
        return f"{said}importance sampling from the guide is to be trusted."
    advice = "Quote AIS." if "AIS" in n else "Ask AIS, with --chosen 50."
    return f"{said}there the guide leaves out a part of the posterior, and more particles help little. {advice}"


def _distance(n: Numbers, images: str) -> str:
    falls, rises = (_told(n, "AIS - IS", "chosen", 0.0, 0.1, sign) for sign in (1, -1))
    if falls:
        return (
            f"Importance sampling falls {_pair(n, 'AIS - IS')} nats short of AIS on the same {images}: -log p(x) "
            "above is too large by at least as much. Take more --num_particles, or quote AIS."
        )
    if rises:
        return (
            f"AIS falls {_pair(n, 'AIS - IS', -1)} nats short of importance sampling on the same {images}: take more "
            "--temperatures."
        )
    apart = f"{_pair(n, 'AIS - IS', plus='+')} nats between them on the same {images}"
    if falls is rises is False:
        return f"Importance sampling and AIS agree: {apart}."
    return f"Cannot tell whether importance sampling or AIS is nearer to log p(x): {apart}; more --chosen would say."


def _sandwich(n: Numbers, images: str) -> str:
    far = _told(n, "BDMC gap", "chosen", 1.0)
    if far is None:
        apart = f"{_pair(n, 'BDMC gap')} nats between its two sides, of {images} that the model draws"
        return f"Cannot tell whether AIS is within 1 nat of log p(x): {apart}; more --chosen would say."
    more = " Take more --temperatures." if far else ""
    return (
        f"AIS is within {abs(n['BDMC gap']):.2f} nats of log p(x), on average of {images} that the model draws.{more}"
    )


def _gaps(n: Numbers, images: str) -> str:
    family, encoder = n["approximation"], n["amortisation"]
    n = {"gap": family + encoder, "amortisation - approximation": encoder - family} | dict(n)
    lost, by_encoder = _told(n, "gap", "chosen", 0.5), _told(n, "amortisation - approximation", "chosen", 0.0)
    if lost is None:
        below = f"the ELBO is {_pair(n, 'gap')} nats below log p(x)"
        return (
            f"Cannot tell whether the guide is near the posterior: {below} on these {images}; more --chosen would say."
        )
    if not lost:
        return f"The guide is near the posterior: the ELBO is {family + encoder:.2f} nats below log p(x)."
    both = f"{family:.2f} nats are what its family cannot do, {encoder:.2f} what the encoder does not"
    if by_encoder is None:
        return f"Of what the guide loses {both}: cannot tell which is more; more --chosen would say."
    if by_encoder:
        return (
            f"Of what the guide loses {both}. Try a larger encoder (--network.hidden), more epochs, or more training "
            f"{images}; a richer family would gain less."
        )
    return f"Of what the guide loses {both}. Try a richer family: --guide FullNormal or --guide Flow."


def _overfit(n: Numbers, images: str) -> str:
    test, error = n["test -log p(x)"], n["test - train, error"]
    more = test - n["train -log p(x)"]
    worse = above(more, error, n.get("images", math.inf), slack=min(0.02 * abs(test), 2.0))
    change = f"-log p(x) changes by {more:+.1f} ± {error:.1f} nats from train to test"
    if worse is None:
        return f"Cannot tell whether the model overfits: {change}; more --images would say."
    if not worse:
        return f"No sign of overfitting: {change}."
    return (
        f"-log p(x) is {more:.1f} nats larger on test {images} than on training {images} (± {error:.1f}): the model "
        "overfits. Try fewer epochs, a smaller decoder, or more data."
    )


def _prior(n: Numbers, images: str) -> str:
    information, kl, most = n["mutual information"], n["aggregate KL"], n["log N"]
    if information > most - 1.0:  # too few images to tell more
        return (
            f"A code tells nearly all {images} apart: the mutual information is at least {information:.1f} nats, of "
            f"log N = {most:.1f}. So KL(q(z) || p(z)) is at most {kl:.1f}; more --images would say how much."
        )
    off = _told(n, "aggregate KL", "codes", 1.0)
    if off is None:
        size = f"KL(q(z) || p(z)) is {_pair(n, 'aggregate KL')} nats"
        return f"Cannot tell whether codes together are where the prior is: {size}; more --images would say."
    if off:
        return (
            f"KL(q(z) || p(z)) is {kl:.1f} nats: codes together are not where the prior is. A prior that follows them "
            "may save as much: --prior VampPrior or --prior Flow."
        )
    return f"Codes together are where the prior is: KL(q(z) || p(z)) is {kl:.1f} nats."


def _calibration(n: Numbers, images: str) -> str:
    held = n["coverage at 0.9"]
    off = dict(n) | {"off": held - 0.9, "off, error": n.get("coverage at 0.9, error", 0.0)}
    wide, narrow = (_told(off, "off", "simulated", 0.0, 0.05, sign) for sign in (1, -1))
    said = "too few to tell whether it is calibrated."
    if narrow:
        said = "it is too sure of itself. Resample its draws (to_arviz(..., resample=True)) or use NUTS."
    elif wide:
        said = "it is too wide."
    elif wide is narrow is False:
        said = "calibrated, in each dimension by itself."
    return f"Of data that the model draws, the guide's 90% intervals hold {held:.1%} of the true z: {said}"


# By the number without which there is nothing to say.
SUBJECTS: dict[str, Callable[[Numbers, str], str]] = {
    "active": _collapse,
    "k > 0.7": _trust,
    "AIS - IS": _distance,
    "BDMC gap": _sandwich,
    "approximation": _gaps,
    "test -log p(x)": _overfit,
    "aggregate KL": _prior,
    "coverage at 0.9": _calibration,
}
