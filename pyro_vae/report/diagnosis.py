"""What the numbers of an evaluation mean, in words, and what usually helps."""

from collections.abc import Callable, Mapping

Numbers = Mapping[str, float]


def diagnosis(numbers: Numbers) -> list[str]:
    """Return what the numbers say of a program, a sentence or two on each subject.

    Arguments:
        numbers: What :class:`Evaluation` has, by name; a subject without its numbers is left out.

    Example:
        >>> diagnosis({"active": 9, "latent": 20})  # doctest: +ELLIPSIS
        ['11 of 20 dimensions collapsed: their activity is at most 0.01. ...']
    """
    return [sentence(numbers) for key, sentence in SUBJECTS.items() if key in numbers]


def _collapse(n: Numbers) -> str:
    active, latent = int(n["active"]), int(n["latent"])
    if active == latent:
        return f"All {latent} dimensions are used: the activity of each is above 0.01."
    left = "All of the" if active == 0 else f"{latent - active} of"
    return (
        f"{left} {latent} dimensions collapsed: their activity is at most 0.01. If that is more than the data ask "
        "for, try --objective.free_bits 0.1, or --objective.beta Linear --objective.beta.warmup 0.5; else a smaller "
        "--latent does as well."
    )


def _trust(n: Numbers) -> str:
    share = n["k > 0.7"]
    said = f"k-hat is above 0.7 for {share:.1%} of the images: "
    if share <= 0.1:
        return f"{said}importance sampling from the guide is to be trusted."
    advice = "Quote AIS." if "AIS" in n else "Ask AIS, with --chosen 50."
    return f"{said}there the guide leaves out a part of the posterior, and more particles help little. {advice}"


def _distance(n: Numbers) -> str:
    short, error = n["AIS - IS"], n["AIS - IS, error"]
    if short > max(0.1, 2 * error):
        return (
            f"Importance sampling falls {short:.2f} ± {error:.2f} nats short of AIS on the same images: -log p(x) "
            "above is too large by at least as much. Take more --num_particles, or quote AIS."
        )
    if -short > max(0.1, 2 * error):
        return (
            f"AIS falls {-short:.2f} ± {error:.2f} nats short of importance sampling on the same images: take more "
            "--temperatures."
        )
    return f"Importance sampling and AIS agree: {short:+.2f} ± {error:.2f} nats between them on the same images."


def _sandwich(n: Numbers) -> str:
    gap = abs(n["BDMC gap"])
    more = " Take more --temperatures." if gap > 1.0 else ""
    return f"AIS is within {gap:.2f} nats of log p(x), on average of images that the model draws.{more}"


def _gaps(n: Numbers) -> str:
    family, encoder = n["approximation"], n["amortisation"]
    if family + encoder < 0.5:
        return f"The guide is near the posterior: the ELBO is {family + encoder:.2f} nats below log p(x)."
    both = f"{family:.2f} nats are what its family cannot do, {encoder:.2f} what the encoder does not"
    if encoder > family:
        return (
            f"Of what the guide loses {both}. Try a larger encoder (--network.hidden), more epochs, or more training "
            "images; a richer family would gain less."
        )
    return f"Of what the guide loses {both}. Try a richer family: --guide FullNormal or --guide Flow."


def _overfit(n: Numbers) -> str:
    test, error = n["test -log p(x)"], n["test - train, error"]
    more = test - n["train -log p(x)"]
    if more > max(2 * error, 0.02 * abs(test)):
        return (
            f"-log p(x) is {more:.1f} nats larger on test images than on training images: the model overfits. "
            "Try fewer epochs, a smaller decoder, or more data."
        )
    return f"No sign of overfitting: -log p(x) changes by {more:+.1f} ± {error:.1f} nats from train to test."


def _prior(n: Numbers) -> str:
    information, kl, most = n["mutual information"], n["aggregate KL"], n["log N"]
    if information > most - 1.0:  # too few images to tell more
        return (
            f"A code tells nearly all images apart: the mutual information is at least {information:.1f} nats, of "
            f"log N = {most:.1f}. So KL(q(z) || p(z)) is at most {kl:.1f}; more --images would say how much."
        )
    if kl > 1.0:
        return (
            f"KL(q(z) || p(z)) is {kl:.1f} nats: codes together are not where the prior is. A prior that follows them "
            "may save as much: --prior VampPrior or --prior Flow."
        )
    return f"Codes together are where the prior is: KL(q(z) || p(z)) is {kl:.1f} nats."


def _calibration(n: Numbers) -> str:
    held, said = n["coverage at 0.9"], "calibrated, in each dimension by itself."
    if held < 0.9 - 0.05:
        said = "it is too sure of itself. Resample its draws (to_arviz(..., resample=True)) or use NUTS."
    elif held > 0.9 + 0.05:
        said = "it is too wide."
    return f"Of data that the model draws, the guide's 90% intervals hold {held:.1%} of the true z: {said}"


# By the number without which there is nothing to say.
SUBJECTS: dict[str, Callable[[Numbers], str]] = {
    "active": _collapse,
    "k > 0.7": _trust,
    "AIS - IS": _distance,
    "BDMC gap": _sandwich,
    "approximation": _gaps,
    "test -log p(x)": _overfit,
    "aggregate KL": _prior,
    "coverage at 0.9": _calibration,
}
