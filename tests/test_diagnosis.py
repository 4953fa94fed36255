"""What is said of an evaluation's numbers: each sentence under its condition, with the number that says so."""

import math
import re

import pytest

from pyro_vae import commands
from pyro_vae.options import parse
from pyro_vae.report import diagnosis

AIS = {"AIS": 99.0, "AIS - IS": 0.05, "AIS - IS, error": 0.02}
FIT = {"test -log p(x)": 100.0, "test - train": 1.0, "test - train, error": 1.0}
CODES = {"mutual information": 3.0, "aggregate KL": 0.4, "log N": 6.9}

# By subject: numbers, and what is said of them.
SAID = {
    "all dimensions in use": (
        {"active": 20, "latent": 20},
        ["All 20 dimensions are active: the activity of each is above 0.01."],
    ),
    "some collapsed": (
        {"active": 13, "latent": 20},
        ["7 of 20 dimensions are collapsed: .* --objective.free_bits 0.1, .* a smaller --latent gives the same."],
    ),
    "all collapsed": ({"active": 0, "latent": 2}, ["All 2 dimensions are collapsed: "]),
    "k small": ({"k > 0.7": 0.1}, [r"above 0.7 for 10.0% of the images: importance sampling .* is reliable\."]),
    "k large": (
        {"k > 0.7": 0.234},
        [r"above 0.7 for 23.4% of the images: .* Run AIS, with --chosen 50\. Or use --proposal adapted\.$"],
    ),
    "k large, with AIS": (
        {"k > 0.7": 0.234} | AIS,
        [r"above 0.7 for 23.4% of the images: .* misses .* Quote AIS\. Or use --proposal adapted\.$", "agree"],
    ),
    "k large of the guide, small of the adapted proposal": (
        {"k > 0.7": 0.234, "adapted, k > 0.7": 0.01},
        [r"for 23.4% of the images: .* With adapted proposals it is above 0.7 for 1.0%\. Quote their -log p\(x\)\.$"],
    ),
    "k large of both": (
        {"k > 0.7": 0.234, "adapted, k > 0.7": 0.2},
        [r"for 23.4% of the images: .* adapted .* above 0.7 for 20.0%\. Run AIS, with --chosen 50\.$"],
    ),
    "AIS agrees": (AIS, [r"Importance sampling and AIS agree: \+0.05 ± 0.02 nats between them"]),
    "AIS is better within its error": (
        AIS | {"AIS - IS": 0.5, "AIS - IS, error": 0.3},
        [r"^Cannot tell which is nearer .*: \+0.50 ± 0.30 nats between them .* Use more --chosen"],
    ),
    "AIS is better": (
        AIS | {"AIS - IS": 0.5},
        [r"Importance sampling falls 0.50 ± 0.02 nats short of AIS .* Use more --num_particles, or quote AIS"],
    ),
    "AIS is worse": (
        AIS | {"AIS - IS": -0.5},
        [r"^AIS falls 0.50 ± 0.02 nats short of importance sampling on the same images\. Use more --temperatures\.$"],
    ),
    "AIS is worse within its error": (
        AIS | {"AIS - IS": -0.5, "AIS - IS, error": 0.3},
        ["^Cannot tell which is nearer .*: -0.50 ± 0.30 nats between them"],
    ),
    "AIS is worse by little": (AIS | {"AIS - IS": -0.05}, ["agree: -0.05 ± 0.02 nats between them"]),
    "AIS of one image": (
        AIS | {"AIS - IS": 0.5, "AIS - IS, error": math.nan, "chosen": 1},
        [r"^Cannot tell which is nearer .* \+0.50 ± nan nats"],
    ),
    "AIS of two images": (  # of 2 the bar is of 13.97 standard errors
        AIS | {"AIS - IS": 0.5, "AIS - IS, error": 0.1, "chosen": 2},
        [r"^Cannot tell which is nearer .* \+0.50 ± 0.10 nats"],
    ),
    "BDMC tight": (
        AIS | {"BDMC gap": 0.95},
        ["agree", r"^AIS is within 0.95 nats of log p\(x\), .* drawn from the model\.$"],
    ),
    "BDMC loose": (AIS | {"BDMC gap": 1.05}, ["agree", r"^AIS is within 1.05 nats of .* Use more --temperatures\.$"]),
    "BDMC within its error": (
        {"BDMC gap": 0.9, "BDMC gap, error": 0.4, "chosen": 50},
        [r"^Cannot tell whether AIS is within 1 nat of log p\(x\): 0.90 ± 0.40 nats"],
    ),
    "some in doubt": (
        {"active": 13, "latent": 20, "collapsed": 5, "unsure": 3},
        [r"^5 of 20 dimensions are collapsed: .* whether 3 of 20 dimensions are active\. Use more --images"],
    ),
    "all in doubt": (
        {"active": 1, "latent": 2, "collapsed": 0, "unsure": 2},
        ["^Cannot tell whether 2 of 2 dimensions are active"],
    ),
    "k of one image": (
        {"k > 0.7": 0.0, "k > 0.7, error": 0.2, "images": 1},
        ["0.0% of the images: cannot tell whether importance sampling .* is reliable"],
    ),
    "a gap within its error": (
        {"approximation": 0.5, "amortisation": 0.2, "gap, error": 0.15, "chosen": 50},
        [r"^Cannot tell whether the guide is near the posterior: the ELBO is 0.70 ± 0.15 nats below"],
    ),
    "gaps alike": (
        {"approximation": 1.2, "amortisation": 1.5, "gap, error": 0.1, "amortisation - approximation, error": 0.2},
        [r"1.20 nats of approximation .* \+ 1.50 nats of amortisation .* Cannot tell which is larger"],
    ),
    "codes off the prior within its error": (
        CODES | {"aggregate KL": 1.3, "aggregate KL, error": 0.2},
        ["^Cannot tell whether the aggregate posterior matches the prior: .* 1.3 nats"],
    ),
    "calibrated within its error": (
        {"coverage at 0.9": 0.87, "coverage at 0.9, error": 0.02, "simulated": 20},
        ["contain 87.0% of the true z: cannot tell whether it is calibrated"],
    ),
    "no gap": (
        {"approximation": 0.2, "amortisation": 0.25},
        [r"The guide is near the posterior: the ELBO is 0.45 nats below log p\(x\)\."],
    ),
    "the encoder's gap": (
        {"approximation": 0.5, "amortisation": 1.25},
        [r"0.50 nats of approximation .* \+ 1.25 nats of amortisation .* larger encoder .*network.hidden"],
    ),
    "the family's gap": (
        {"approximation": 1.25, "amortisation": 0.5},
        [r"1.25 nats of approximation .* \+ 0.50 nats of amortisation .* Try a richer family: --guide Full"],
    ),
    "no overfitting": (
        FIT | {"test - train, error": 0.4},
        [r"No sign of overfitting: -log p\(x\) changes by \+1.0 ± 0.4 nats from train to test\."],
    ),
    "better on test images": (FIT | {"test - train": -3.0}, ["No sign of overfitting: .* by -3.0 ± 1.0 nats"]),
    "overfitting": (
        FIT | {"test - train": 2.5},
        ["is 2.5 ± 1.0 nats larger on test images .* the model overfits. Try fewer"],
    ),
    "overfitting within its error": (
        FIT | {"test - train": 2.5, "test - train, error": 1.3},
        [r"^Cannot tell whether the model overfits: .* by \+2.5 ± 1.3 nats .* Use more --images"],
    ),
    "overfitting of much within its error": (
        {"test -log p(x)": 516.1, "test - train": 16.1, "test - train, error": 8.2},
        [r"^Cannot tell whether the model overfits: .* by \+16.1 ± 8.2 nats"],
    ),
    "overfitting, of 3 images": (
        FIT | {"test - train": 4.0, "images": 3},
        [r"^Cannot tell whether .* \+4.0 ± 1.0 nats"],
    ),
    "overfitting, of a test image of no probability": (
        FIT | {"test -log p(x)": math.inf, "test - train": math.inf, "test - train, error": math.nan},
        [r"^Cannot tell whether the model overfits: .* \+inf ± nan nats"],
    ),
    "overfitting of little": (FIT | {"test - train": 1.7, "test - train, error": 0.1}, ["No sign of overfitting"]),
    "overfitting of a density": (
        {"test -log p(x)": -100.0, "test - train": 10.0, "test - train, error": 1.0},
        ["is 10.0 ± 1.0 nats larger on test images than on training images"],
    ),
    "codes on the prior": (CODES, [r"aggregate posterior matches the prior: KL\(q\(z\) \|\| p\(z\)\) is 0.4 nats\."]),
    "codes off the prior": (
        CODES | {"aggregate KL": 2.26},
        [r"does not match the prior: KL\(q\(z\) \|\| p\(z\)\) is 2.3 nats\. .* --prior VampPrior or"],
    ),
    "too few images": (
        CODES | {"mutual information": 6.2, "aggregate KL": 9.0},
        [r"mutual information, 6.2 nats, is near .* log N = 6.9: .* at most 9.0 nats\. Use more --images"],
    ),
    "calibrated": (
        {"coverage at 0.9": 0.87},
        [r"90% intervals contain 87.0% of the true z: it is calibrated, in each dimension"],
    ),
    "too sure": (
        {"coverage at 0.9": 0.589},
        [r"contain 58.9% of the true z: it is overconfident\. .*to_arviz\(..., resample=True\)"],
    ),
    "too wide": ({"coverage at 0.9": 0.997}, [r"contain 99.7% of the true z: they are too wide\."]),
}


@pytest.mark.parametrize(("numbers", "expected"), SAID.values(), ids=SAID)
def test_it_says_what_the_numbers_say_and_no_more(numbers, expected):
    said = diagnosis(numbers)
    assert len(said) == len(expected)
    for sentence, words in zip(said, expected, strict=True):
        assert re.search(words, sentence), sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence


def test_of_a_table_it_speaks_of_rows():
    numbers = {name: number for kind in SAID.values() for name, number in kind[0].items()}
    assert "image" not in " ".join(diagnosis(numbers, "rows")).replace("--images", "")


def test_of_nothing_it_says_nothing():
    assert diagnosis({}) == []
    assert diagnosis({"k, median": 0.3, "ESS, median": 40.0, "AIS": 100.0}) == []


def test_of_all_subjects_it_speaks_in_their_order():
    first = ("some collapsed", "k large, with AIS", "BDMC loose", "the family's gap", "overfitting")
    first = (*first, "codes on the prior", "too sure")
    numbers = {name: number for subject in reversed(first) for name, number in SAID[subject][0].items()}
    said = diagnosis(numbers)
    expected = [words for subject in first for words in SAID[subject][1]]
    expected.remove("agree")  # said of AIS once, though two subjects have its numbers
    for sentence, words in zip(said, expected, strict=True):
        assert re.search(words, sentence), sentence


SUGGESTED = sorted(
    {
        re.sub(r"[.,;)]+$", "", found)
        for numbers, _ in SAID.values()
        for sentence in diagnosis(numbers)
        for found in re.findall(r"--[\w.]+(?: (?:[A-Z]\w+|[\d.]+|adapted|trapezoid))?", sentence)
    }
)


def test_there_are_suggestions():
    assert {option.split()[0] for option in SUGGESTED} == {
        "--chosen", "--guide", "--images", "--latent", "--lr_schedule", "--network.hidden", "--num_particles",
        "--objective.beta", "--objective.beta.warmup", "--objective.free_bits", "--prior", "--proposal",
        "--sleep", "--temperatures",
    }  # fmt: skip


@pytest.mark.parametrize("option", SUGGESTED)
def test_what_it_suggests_is_an_option(option):
    """Of ``train``, or of ``evaluate``, and takes the value where one is named."""
    name, *value = option.split()
    ours = name in ("--chosen", "--num_particles", "--images", "--proposal", "--temperatures")
    words = ["run"] if ours else []
    words += ["--objective.beta", "Linear"] if name == "--objective.beta.warmup" else []
    words += [name, *(value or ["[16]" if name == "--network.hidden" else "20"])]
    options = parse("evaluate", commands._evaluate, words) if ours else parse("train", commands._train, words)
    assert name[2:].partition(".")[0] in options
