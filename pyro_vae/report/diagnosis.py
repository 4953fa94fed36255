"""What the numbers of an evaluation mean, in words, and what usually helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

__all__ = ["diagnosis"]

# Above these, in nats or as a share, something is said to be wrong.
POOR_SHARE = 0.1  # of images with k-hat above 0.7
SHORT = 0.1  # nats that importance sampling lacks
LOOSE = 1.0  # nats between the bounds of bidirectional Monte Carlo
GAP = 0.5  # nats between log p(x) and the ELBO
OVERFIT = 0.02  # of -log p(x)
HOLE = 1.0  # nats from the aggregate posterior to the prior
CERTAIN = 1.0  # nats below log N, where mutual information is no longer to be told
OFF = 0.05  # of what 90% intervals hold


def diagnosis(numbers: Mapping[str, float]) -> list[str]:
    """Return what is to be said of a VAE, a sentence or two on each subject, with the number that says so.

    Arguments:
        numbers: What :class:`Evaluation` has, by name; a subject whose numbers are not there is left out.

    Example:
        >>> diagnosis({"active": 9, "latent": 20})  # doctest: +ELLIPSIS
        ['11 of 20 dimensions collapsed: their activity is at most 0.01. ...']
    """
    subjects = (_collapse, _trust, _distance, _gaps, _overfit, _prior, _calibration)
    return [sentence for subject in subjects for sentence in subject(numbers)]


def _collapse(n: Mapping[str, float]) -> Iterator[str]:
    if "active" not in n:
        return
    active, latent = int(n["active"]), int(n["latent"])
    if active == latent:
        yield f"All {latent} dimensions are used: the activity of each is above 0.01."
        return
    left = "All of the" if active == 0 else f"{latent - active} of"
    yield (
        f"{left} {latent} dimensions collapsed: their activity is at most 0.01. If that is more than the data ask "
        "for, try --objective.free_bits 0.1, or --objective.beta Linear --objective.beta.warmup 0.5; else a smaller "
        "--latent does as well."
    )


def _trust(n: Mapping[str, float]) -> Iterator[str]:
    if "k > 0.7" not in n:
        return
    share = n["k > 0.7"]
    if share <= POOR_SHARE:
        yield f"k-hat is above 0.7 for {share:.1%} of the images: importance sampling from the guide is to be trusted."
        return
    yield (
        f"k-hat is above 0.7 for {share:.1%} of the images: there the guide leaves out a part of the posterior, and "
        f"more particles help little. {'Quote AIS.' if 'AIS' in n else 'Ask AIS, with --chosen 50.'}"
    )


def _distance(n: Mapping[str, float]) -> Iterator[str]:
    if "AIS - IS" not in n:
        return
    short, error = n["AIS - IS"], n["AIS - IS, error"]
    if short > max(SHORT, 2 * error):
        yield (
            f"Importance sampling falls {short:.2f} ± {error:.2f} nats short of AIS on the same images: -log p(x) "
            "above is too large by at least as much. Take more --num_particles, or quote AIS."
        )
    elif -short > max(SHORT, 2 * error):
        yield (
            f"AIS falls {-short:.2f} ± {error:.2f} nats short of importance sampling on the same images: take more "
            "--temperatures."
        )
    else:
        yield f"Importance sampling and AIS agree: {short:+.2f} ± {error:.2f} nats between them on the same images."
    if "BDMC gap" in n:
        gap = abs(n["BDMC gap"])
        more = " Take more --temperatures." if gap > LOOSE else ""
        yield f"AIS is within {gap:.2f} nats of log p(x), on average of images that the model draws.{more}"


def _gaps(n: Mapping[str, float]) -> Iterator[str]:
    if "approximation" not in n:
        return
    family, encoder = n["approximation"], n["amortisation"]
    both = f"{family:.2f} nats are what its family cannot do, {encoder:.2f} what the encoder does not"
    if family + encoder < GAP:
        yield f"The guide is near the posterior: the ELBO is {family + encoder:.2f} nats below log p(x)."
    elif encoder > family:
        yield (
            f"Of what the guide loses {both}. Try a larger encoder (--network.hidden), more epochs, or more training "
            "images; a richer family would gain less."
        )
    else:
        yield f"Of what the guide loses {both}. Try a richer family: --guide FullNormal or --guide Flow."


def _overfit(n: Mapping[str, float]) -> Iterator[str]:
    if "test -log p(x)" not in n:
        return
    test, train, error = n["test -log p(x)"], n["train -log p(x)"], n["test - train, error"]
    if test - train > max(2 * error, OVERFIT * abs(test)):
        yield (
            f"-log p(x) is {test - train:.1f} nats larger on test images than on training images: the model overfits. "
            "Try fewer epochs, a smaller decoder, or more data."
        )
    else:
        yield f"No sign of overfitting: -log p(x) changes by {test - train:+.1f} ± {error:.1f} nats from train to test."


def _prior(n: Mapping[str, float]) -> Iterator[str]:
    if "aggregate KL" not in n:
        return
    information, kl, most = n["mutual information"], n["aggregate KL"], n["log N"]
    if information > most - CERTAIN:
        yield (
            f"A code tells nearly all images apart: the mutual information is at least {information:.1f} nats, of "
            f"log N = {most:.1f}. So KL(q(z) || p(z)) is at most {kl:.1f}; more --images would say how much."
        )
    elif kl > HOLE:
        yield (
            f"KL(q(z) || p(z)) is {kl:.1f} nats: codes together are not where the prior is. A prior that follows them "
            "may save as much: --prior VampPrior or --prior Flow."
        )
    else:
        yield f"Codes together are where the prior is: KL(q(z) || p(z)) is {kl:.1f} nats."


def _calibration(n: Mapping[str, float]) -> Iterator[str]:
    if "coverage at 0.9" not in n:
        return
    held = n["coverage at 0.9"]
    text = f"Of data that the model draws, the guide's 90% intervals hold {held:.1%} of the true z"
    if held < 0.9 - OFF:
        yield f"{text}: it is too sure of itself. Resample its draws (to_arviz(..., resample=True)) or use NUTS."
    elif held > 0.9 + OFF:
        yield f"{text}: it is too wide."
    else:
        yield f"{text}: calibrated, in each dimension by itself."
