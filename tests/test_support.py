"""What x may be: the support that data state, likelihoods that go with it or not, and bits/dim."""

import inspect
import math
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import yaml
from test_parts import LIKELIHOODS
from torch.distributions import constraints

from pyro_vae import VAE, commands, data, evaluate, fit, likelihoods, report
from pyro_vae.conditional import Family
from pyro_vae.networks import MLP
from pyro_vae.train import check_support

NETWORK = partial(MLP, hidden=(16,))
GREY = torch.arange(256, dtype=torch.uint8).repeat(3).view(12, 64)
DIGITS = {
    "grey": data.load("digits"),
    "dequantised": data.load("digits", dequantize=True),
    "binary": data.load("digits", binarize="dynamic"),
    "static": data.load("digits", binarize="static"),
    "counts": data.load("digits", counts=True),
    "reals": data.from_tensor(torch.randn(50, 1, 8, 8)),
    "shares": data.from_tensor(torch.arange(3200).remainder(11).div(10).view(50, 1, 8, 8)),
}


class TestDataSay:
    CASES = {
        "bytes": (GREY, {}, data.levels(256)),
        "booleans": (GREY > 100, {}, constraints.boolean),
        "bytes of 0 and 1": (GREY % 2, {}, constraints.boolean),
        "integers in a byte": (GREY.long(), {}, data.levels(256)),
        "integers beyond a byte": (GREY.long() * 9, {}, constraints.nonnegative_integer),
        "negative integers": (GREY.long() - 5, {}, constraints.real),
        "whole floats": (GREY.float(), {}, constraints.nonnegative_integer),
        "whole floats, one of them below 0": (GREY.float() - 1, {}, constraints.real),
        "floats of 0 and 1": (GREY.float() % 2, {}, constraints.boolean),
        "floats in [0, 1]": (GREY / 255, {}, constraints.unit_interval),
        "floats above 0": (GREY / 100, {}, constraints.real),
        "dequantised": (GREY, {"dequantize": True}, constraints.unit_interval),
        "binarised": (GREY, {"binarize": "dynamic"}, constraints.boolean),
        "above one half": (GREY, {"binarize": "threshold"}, constraints.boolean),
        "floats, binarised": (GREY / 255, {"binarize": "static"}, constraints.boolean),
        "bytes as counts": (GREY, {"counts": True}, constraints.nonnegative_integer),
        "0 and 1 as counts": (GREY % 2, {"counts": True}, constraints.nonnegative_integer),
        "whole floats as counts": (GREY.float(), {"counts": True}, constraints.nonnegative_integer),
    }

    @pytest.mark.parametrize(("x", "options", "support"), CASES.values(), ids=CASES)
    def test_what_x_is_and_it_is(self, x, options, support):
        found = data.from_tensor(x, **options)
        assert found.support is support
        for split in found.splits.values():
            assert support.check(split[:]).all()
        torch.testing.assert_close(found.mean.shape, x.shape[1:])

    def test_counts_are_the_pixels_as_they_are_stored(self):
        found, grey = DIGITS["counts"], DIGITS["grey"]
        for name, split in found.splits.items():
            assert (split[:] == grey.splits[name].pixels).all()
        torch.testing.assert_close(found.mean, 16 * grey.mean)
        assert found.config["counts"] is True
        assert str(found) == "digits, counts"

    @pytest.mark.parametrize("name", ["dequantised", "counts", "binary", "grey"])
    def test_the_configuration_gives_the_same_again(self, name):
        found = DIGITS[name]
        again = data.load(**found.config)
        assert str(again) == str(found)
        assert again.support is found.support

    def test_dequantised_x_keeps_off_the_ends_in_float32(self, monkeypatch):
        monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.tensor([0.0, 1 - 2**-24]).expand(2, 2))
        split = data.Split(torch.tensor([[0, 0], [255, 255]], dtype=torch.uint8), noise="uniform")
        assert (255 + torch.tensor(1 - 2**-24)) / 256 == 1
        for x in (split[:], split.with_fixed_noise(torch.Generator())[:]):
            assert x.dtype == torch.float32
            assert data.open_unit_interval.check(x).all()
            assert ((x * 256).floor() == split.pixels).all()

    BAD = {
        "binarised too": ({"binarize": "static"}, "got binarize='static' and counts=True"),
        "dequantised too": ({"dequantize": True}, "got dequantize=True and counts=True"),
    }

    @pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
    def test_counts_are_nothing_else(self, options, message):
        with pytest.raises(ValueError, match=message):
            data.load("digits", counts=True, **options)

    @pytest.mark.parametrize(
        "x", [GREY / 255, GREY.float() - 1, GREY.long() - 300], ids=["parts", "below 0", "integers"]
    )
    def test_counts_are_whole_numbers_from_0_on(self, x):
        with pytest.raises(ValueError, match=r"counts.*got numbers in \[.*\] in a tensor"):
            data.from_tensor(x, counts=True)

    def test_a_run_of_before_there_were_counts_is_evaluated(self, tmp_path, capsys, unrendered):
        run = tmp_path / "run"
        vae = VAE.build((1, 8, 8), latent=2, network=NETWORK)
        fit(vae, DIGITS["grey"], epochs=1, progress=False, run_dir=run)
        config = yaml.safe_load((run / "config.yaml").read_text())
        del config["counts"]
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        small = ["--num_particles", "2", "--images", "10", "--chosen", "0"]
        assert commands.run(["evaluate", str(run), *small]) == 0
        assert "digits, not binarised" in capsys.readouterr().out


class LogNormal(Family):
    """A user's own likelihood, of positive x."""

    params = 1

    def distribution(self, loc):
        return dist.LogNormal(loc, 1.0)


class Skewed(Family):
    """A user's own likelihood, of real x."""

    params = 1

    def distribution(self, loc):
        return dist.Gumbel(loc, 1.0)


OWN = {"LogNormal": LogNormal, "Skewed": Skewed}
# By likelihood and data, what is said of a pair that makes no sense.
NONSENSE = {
    ("Poisson", "binary"): "Two values have no rate: use Bernoulli",
    ("NegativeBinomial", "static"): "Two values have no rate: use Bernoulli",
    ("Categorical", "binary"): "Two values are not many levels: use Bernoulli",
    ("DiscretizedLogistic", "binary"): "Two values are not many levels: use Bernoulli",
    ("Gaussian", "binary"): "A density of two values grows without bound: use Bernoulli",
    ("Laplace", "binary"): "A density of two values",
    ("StudentT", "static"): "A density of two values",
    ("ContinuousBernoulli", "binary"): "A density of two values",
    ("Beta", "binary"): "A density of two values",
    ("Skewed", "binary"): "A density of two values",
    ("LogNormal", "binary"): "A density of two values",
    (
        "Bernoulli",
        "grey",
    ): r"support of Bernoulli, Boolean\(\); got values in \[0, 1\] \(digits, not.*--binarize dynamic",
    ("Beta", "grey"): "support of Beta, OpenUnitInterval.*use --dequantize true",
    ("Categorical", "grey"): r"support of Categorical, Levels\(256\).*Use --likelihood.levels 17",
    ("DiscretizedLogisticMixture", "grey"): "Use --likelihood.levels 17",
    ("Poisson", "grey"): "Use --counts true",
    ("LogNormal", "grey"): "support of LogNormal, GreaterThan.*Use a likelihood",
    ("Bernoulli", "dequantised"): "Leave out --dequantize and binarise",
    ("DiscretizedLogistic", "dequantised"): "Leave out --dequantize",
    ("NegativeBinomial", "dequantised"): "Leave out --dequantize, and use --counts true",
    ("Bernoulli", "counts"): "Use Poisson or NegativeBinomial",
    ("Categorical", "counts"): "Use Poisson or NegativeBinomial",
    ("Beta", "counts"): "Use Poisson or NegativeBinomial",
    ("ContinuousBernoulli", "counts"): "Use Poisson or NegativeBinomial",
    ("Bernoulli", "reals"): "Use Gaussian, Laplace or StudentT",
    ("Beta", "reals"): "Use Gaussian, Laplace or StudentT",
    ("ContinuousBernoulli", "reals"): "Use Gaussian, Laplace or StudentT",
    ("Categorical", "reals"): "Use Gaussian, Laplace or StudentT",
    ("Poisson", "reals"): "Use Gaussian, Laplace or StudentT",
    ("Bernoulli", "shares"): "Binarise with --binarize dynamic, or use ContinuousBernoulli",
    ("Categorical", "shares"): "Pass x as bytes",
    ("Poisson", "shares"): "no counts",
    ("Beta", "shares"): "pass x as bytes, with --dequantize true",
}
SENSE = [
    *(
        (name, how)
        for name in ("Gaussian", "Laplace", "StudentT", "Skewed")
        for how in DIGITS
        if how not in ("binary", "static")
    ),
    *(("ContinuousBernoulli", how) for how in ("grey", "dequantised", "shares")),
    *(("Bernoulli", how) for how in ("binary", "static")),
    *((name, "counts") for name in ("Poisson", "NegativeBinomial")),
    ("Beta", "dequantised"),
]


def build(part):
    return VAE.build((1, 8, 8), latent=2, likelihood=part, network=NETWORK)


class TestPairs:
    @pytest.mark.parametrize(("pair", "message"), NONSENSE.items(), ids=map(" on ".join, NONSENSE))
    def test_nonsense_gets_a_sentence_that_says_what_to_use(self, pair, message):
        name, how = pair
        with pytest.raises(ValueError, match=message) as caught:
            check_support(build(OWN.get(name) or getattr(likelihoods, name)), DIGITS[how], strict=True)
        said = str(caught.value)
        assert said.startswith("Expected ")
        assert name in said
        assert str(DIGITS[how]) in said
        assert "\n" not in said

    @pytest.mark.parametrize(("name", "how"), SENSE, ids=map(" on ".join, SENSE))
    def test_sense_is_let_pass(self, name, how):
        check_support(build(OWN.get(name) or getattr(likelihoods, name)), DIGITS[how], strict=True)

    @pytest.mark.parametrize("name", ["Categorical", "DiscretizedLogistic", "DiscretizedLogisticMixture"])
    def test_levels_go_with_as_many_levels(self, name):
        for number, how in ((17, "grey"), (2, "binary")):
            check_support(build(partial(getattr(likelihoods, name), levels=number)), DIGITS[how])

    def test_fit_says_it_too(self):
        with pytest.raises(
            ValueError, match="Expected a likelihood of binary data for digits, binarised dynamically; got"
        ):
            fit(build(likelihoods.Poisson), DIGITS["binary"], progress=False)

    def test_squared_error_of_two_values_is_let_pass_in_python_and_said_in_the_table(self, capsys):
        """Which a Gaussian of fixed scale is; the command refuses it."""
        vae = build(partial(likelihoods.Gaussian, scale=0.5))
        check_support(vae, DIGITS["binary"])
        shown = report.table(vae, DIGITS["binary"], num_particles=3, images=5, progress=False)
        assert "A density of two values grows without bound" in shown
        assert commands.run(["train", "--binarize", "dynamic", "--run_dir", "nowhere"]) == 2
        assert "got Gaussian. A density of two values grows without bound: use Bernoulli." in capsys.readouterr().err


# By the support of the distribution, which digits; grids have 17 levels.
SUITED = {
    "Boolean()": "binary",
    "Levels(17)": "grey",
    "OpenUnitInterval()": "dequantised",
    "Interval(lower_bound=0.0, upper_bound=1.0)": "dequantised",
    "Real()": "dequantised",
    "IntegerGreaterThan(lower_bound=0)": "counts",
}


@pytest.mark.parametrize("part", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_a_step_is_a_graph(part):
    """Warnings are errors: what cannot be recorded says so in one."""
    if "levels" in inspect.signature(part).parameters:
        part = partial(part, levels=17)
    vae = build(part)
    support = data.supports.of_element(vae.decoder(torch.zeros(1, 2)).support)
    history = fit(vae, DIGITS[SUITED[str(support)]], epochs=1, batch_size=360, compile="graph", progress=False)
    assert math.isfinite(history["train"][0])
    assert math.isfinite(history["valid"][0])


class Uniform(Family):
    """What the network says is not listened to: uniform noise."""

    params = 1

    def distribution(self, phi):
        return dist.Uniform(torch.zeros_like(phi), torch.ones_like(phi))


class TestBitsPerDim:
    def test_noise_has_as_many_bits_as_it_takes_to_write_it(self):
        """A uniform density of dequantised noise, and a uniform mass of the noise: 8 bits of 256 levels, exactly."""
        x = data.from_tensor(torch.randint(0, 256, (30, 784), dtype=torch.uint8), dequantize=True).test[:]
        density = -Uniform(784)(torch.zeros(1, 784)).log_prob(x)
        assert evaluate.bits_per_dim(density, 784, levels=256).tolist() == [8.0] * len(x)
        mass = -likelihoods.Categorical(784)(torch.zeros(256, 784)).log_prob(torch.zeros(784))
        assert evaluate.bits_per_dim(mass, 784).item() == pytest.approx(8.0, rel=1e-6)
        assert evaluate.bits_per_dim(784 * math.log(17), 784) == pytest.approx(math.log2(17))

    def test_a_dequantised_density_has_at_least_the_bits_of_its_mass(self, float64):
        """Theis et al. (2016): the mean of -log p(x) over u is at least -log of the integral, by quadrature over u."""
        distribution = dist.Normal(0.4, 0.1)
        u = (torch.arange(1000) + 0.5) / 1000
        for p in range(16):
            x = (p + u) / 16
            mass = distribution.cdf(torch.tensor((p + 1) / 16)) - distribution.cdf(torch.tensor(p / 16))
            bound = evaluate.bits_per_dim(-distribution.log_prob(x), 1, levels=16).mean()
            assert bound >= evaluate.bits_per_dim(-mass.log(), 1)

    @pytest.mark.parametrize(("dimensions", "levels"), [(0, None), (4, 1)])
    def test_bad_numbers_get_a_sentence(self, dimensions, levels):
        with pytest.raises(ValueError, match="at least 1 dimension and 2 levels; got"):
            evaluate.bits_per_dim(1.0, dimensions, levels)

    TABLES = {
        "mass": (
            partial(likelihoods.DiscretizedLogistic, levels=17),
            "grey",
            "bits/dim of -log p(x), of a mass of 17 lev",
        ),
        "dequantised": (likelihoods.Gaussian, "dequantised", "of a density of dequantised x, plus log2 of 17 levels"),
        "grey": (
            likelihoods.Gaussian,
            "grey",
            "No bits/dim: without dequantisation a density of grey levels grows without",
        ),
        "binary": (likelihoods.Bernoulli, "binary", ""),
        "counts": (likelihoods.Poisson, "counts", ""),
        "reals": (likelihoods.Gaussian, "reals", ""),
    }

    @pytest.mark.parametrize(("part", "how", "said"), TABLES.values(), ids=TABLES)
    def test_the_table_has_them_where_they_mean_something(self, part, how, said):
        vae, dataset = build(part), DIGITS[how]
        shown = report.table(vae, dataset, num_particles=3, images=5, progress=False)
        has_column = how == "dequantised" or "levels" in inspect.signature(part).parameters
        assert ("bits/dim" in shown.splitlines()[0]) == has_column
        assert said in shown
        assert said or "bits" not in shown
        if has_column:
            levels = 17 if how == "dequantised" else None
            for row, split in zip(shown.splitlines()[1:4], dataset.splits.values(), strict=True):
                nats = evaluate.summary(vae, split, num_particles=3, images=5).nll[0]
                if split is dataset.test:  # of the better bound
                    nats = min(nats, evaluate.summary(vae, split, 3, 5, proposal="adapted").nll[0])
                if split is not dataset.train or how == "grey":
                    assert float(row.split()[-1]) == pytest.approx(evaluate.bits_per_dim(nats, 64, levels), abs=6e-4)

    def test_figures_of_counts_are_as_bright_as_of_grey_levels(self):
        def brightest(how, part):
            drawn = report.figures(build(part), DIGITS[how])["reconstructions"]
            return np.asarray(drawn.axes[0].images[0].get_array())

        counts, grey = brightest("counts", likelihoods.Poisson), brightest("grey", likelihoods.Gaussian)
        half = len(counts) // 2
        np.testing.assert_allclose(counts[: half - 1], grey[: half - 1], atol=1e-6)
