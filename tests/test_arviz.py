"""The posterior in ArviZ's own container, of ArviZ 0.x and 1.x alike: what is in it, and what ArviZ makes of it."""

import os
import subprocess
import sys
from functools import partial

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from test_parts import LIKELIHOODS
from test_priors import GUIDES, PRIORS, built
from torch import nn

from pyro_vae import VAE, evaluate, networks
from pyro_vae.oracle import LinearGaussian
from pyro_vae.posterior import arviz as room
from pyro_vae.posterior import to_arviz

matplotlib.use("Agg")
GROUPS = {
    "posterior": ["z"],
    "posterior_predictive": ["x"],
    "prior": ["z"],
    "prior_predictive": ["x"],
    "observed_data": ["x"],
    "log_likelihood": ["x"],
    "sample_stats": ["log_p", "log_q", "log_weight", "pareto_k"],
    "constant_data": ["pareto_k"],
}
SAMPLE = ("chain", "draw")
EVENTS = {
    (6,): ("feature",),
    (4, 5): ("row", "column"),
    (3, 4, 5): ("channel", "row", "column"),
    (2, 3, 2, 2): ("feature_0", "feature_1", "feature_2", "feature_3"),
}
SMALL = partial(networks.MLP, hidden=(8,))


def small(event, **parts):
    return VAE.build(event, latent=2, network=SMALL, **parts).eval()


def tensors(found):
    """Every variable, as ``{(group, name): tensor}``."""
    return {
        (group, name): torch.from_numpy(found[group][name].values) for group, names in GROUPS.items() for name in names
    }


@pytest.fixture
def model(float64):
    return LinearGaussian(torch.randn(6, 2), torch.randn(6), scale=0.7)


class Wrong(nn.Module):
    """A guide that is twice too wide, or of another width, and half a standard deviation off."""

    def __init__(self, exact, width=2.0):
        super().__init__()
        self.exact, self.width = exact, width

    def forward(self, x):
        q = self.exact(x)
        return dist.MultivariateNormal(q.mean + 0.5 * q.scale_tril.sum(-1), scale_tril=self.width * q.scale_tril)


class TestGroups:
    @pytest.mark.parametrize("event", EVENTS, ids=str)
    def test_dimensions_and_coordinates(self, event):
        x, names = torch.rand(3, *event), EVENTS[event]
        found = to_arviz(small(event), x, draws=30, predictive_draws=7)
        sizes = dict(zip(("chain", "draw", "datum", "latent", *names), (1, 30, 3, 2, *event), strict=True))
        dims = {
            ("posterior", "z"): (*SAMPLE, "datum", "latent"),
            ("posterior_predictive", "x"): (*SAMPLE, "datum", *names),
            ("prior", "z"): (*SAMPLE, "latent"),
            ("prior_predictive", "x"): (*SAMPLE, *names),
            ("observed_data", "x"): ("datum", *names),
            ("constant_data", "pareto_k"): ("datum",),
        }
        for group, variables in GROUPS.items():
            assert sorted(found[group].data_vars) == variables
            of = {**sizes, "draw": 7} if "predictive" in group else sizes
            for name in variables:
                value = found[group][name]
                assert value.dims == dims.get((group, name), (*SAMPLE, "datum"))
                assert value.shape == tuple(of[dim] for dim in value.dims)
                for dim in value.dims:
                    assert value[dim].values.tolist() == list(range(of[dim]))
        np.testing.assert_array_equal(found["observed_data"]["x"].values, x)

    def test_names_of_the_data_and_of_the_dimensions(self):
        x = torch.rand(3, 6)
        found = to_arviz(small((6,)), x, 30, index=["a", "b", "c"], latent_names=("slant", "width"))
        assert found["posterior"]["z"].sel(datum="b", latent="width").dims == SAMPLE
        assert found["constant_data"]["pareto_k"].sel(datum="c").size == 1
        np.testing.assert_array_equal(found["observed_data"]["x"].sel(datum="b").values, x[1])
        found = to_arviz(small((6,)), x, 30, index=torch.tensor([7, 3, 5]))
        np.testing.assert_array_equal(found["observed_data"]["x"].sel(datum=3).values, x[1])

    def test_of_one_datum(self):
        assert to_arviz(small((6,)), torch.rand(1, 6), 30)["posterior"]["z"].shape == (1, 30, 1, 2)


class TestValues:
    @pytest.mark.parametrize("resample", [False, True])
    @pytest.mark.parametrize(
        ("prior", "guide"),
        [(prior, "DiagonalNormal") for prior in PRIORS] + [("StandardNormal", guide) for guide in GUIDES],
    )
    def test_densities_are_those_of_the_draws(self, prior, guide, resample):
        vae, x = built(PRIORS[prior], GUIDES[guide]).double().eval(), torch.rand(3, 1, 2, 3).double()
        found = tensors(to_arviz(vae, x, 30, resample=resample, num_particles=3))
        with torch.no_grad():
            z = found["posterior", "z"][0]
            likelihood, log_q = vae.decoder(z).log_prob(x), vae.encoder(x).log_prob(z)
            log_p = likelihood + vae.prior().log_prob(z)
        for key, expected in {
            ("log_likelihood", "x"): likelihood,
            ("sample_stats", "log_p"): log_p,
            ("sample_stats", "log_q"): log_q,
            ("sample_stats", "log_weight"): log_p - log_q,
        }.items():
            torch.testing.assert_close(found[key][0], expected, rtol=1e-7, atol=1e-7)
        assert all(values.isfinite().all() for values in found.values())

    @pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
    def test_every_likelihood(self, likelihood):
        vae = small((2, 3), likelihood=likelihood)
        x = vae.decoder(torch.zeros(4, 2)).sample()
        found = tensors(to_arviz(vae, x, 30, resample=True, num_particles=2))
        assert all(values.isfinite().all() for values in found.values())
        assert vae.decoder(torch.zeros(2)).support.check(found["posterior_predictive", "x"]).all()
        assert found["posterior_predictive", "x"].dtype == torch.float32

    @pytest.mark.parametrize("resample", [False, True])
    def test_the_exact_posteriors_weights_are_the_evidence(self, model, resample):
        x = torch.randn(5, 6)
        found = tensors(to_arviz(model.vae(), x, 100, resample=resample))
        expected = model.log_evidence(x).expand(1, 100, 5)
        torch.testing.assert_close(found["sample_stats", "log_weight"], expected, rtol=0, atol=1e-10)
        assert (found["constant_data", "pareto_k"] == 0).all()

    def test_k_is_that_of_the_draws(self, model):
        found = tensors(to_arviz(model.vae("mean-field"), torch.randn(4, 6), 500))
        expected = evaluate.pareto_k(found["sample_stats", "log_weight"][0])
        torch.testing.assert_close(found["constant_data", "pareto_k"], expected, rtol=0, atol=1e-12)

    def test_a_predictive_draw_is_of_the_z_of_its_number(self, float64):
        """With next to no noise, x is the decoder's mean at z, in float32."""
        vae = LinearGaussian(torch.randn(6, 2), torch.randn(6), scale=1e-6).vae()
        found = tensors(to_arviz(vae, torch.randn(3, 6), 30, predictive_draws=9))
        for of in ("posterior", "prior"):
            expected = vae.decoder(found[of, "z"][:, :9]).mean.float()
            torch.testing.assert_close(found[f"{of}_predictive", "x"], expected, rtol=0, atol=1e-4)

    def test_draws_are_the_priors_and_the_predictives(self, model):
        """Of 10,000 draws, means at 5 standard errors: 14 numbers, of which one fails in 120,000 runs."""
        x = torch.randn(1, 6)
        found = tensors(to_arviz(model.vae(), x, 10_000, predictive_draws=10_000))
        exact = model.posterior(x)
        for key, expected in {
            ("posterior", "z"): exact.mean,
            ("prior", "z"): torch.zeros(2),
            ("posterior_predictive", "x"): exact.mean @ model.weight.T + model.bias,
            ("prior_predictive", "x"): model.bias,
        }.items():
            values = found[key][0].double()
            assert ((values.mean(0) - expected).abs() < 5 * values.std(0) / 100).all(), key


class TestResampling:
    def test_draws_of_a_wrong_guide_become_the_posteriors(self, model):
        """Means and second moments of 4,000 draws from 100,000: 5 standard errors, 30 numbers, once in 50,000 runs.

        The pool is worth over 30,000 draws: the chi-square divergence is 2.3 for the width and the shift.
        """
        vae, x = model.vae(), torch.randn(3, 6)
        exact = model.posterior(x)
        vae.encoder = Wrong(vae.encoder)
        whiten = torch.linalg.inv(exact.scale_tril)

        def moments(resample, proposal="guide"):
            settings = {"num_particles": 25, "predictive_draws": 1, "proposal": proposal}
            z = tensors(to_arviz(vae, x, 4000, resample, **settings))["posterior", "z"][0]
            z = torch.einsum("bij,kbj->kbi", whiten, z - exact.mean)
            return z.mean(0), torch.einsum("kbi,kbj->bij", z, z) / len(z)

        error = (1 / 4000 + 1 / 30_000) ** 0.5
        for proposal in ("guide", "adapted"):
            first, second = moments(True, proposal)
            assert (first.abs() < 5 * error).all()
            assert ((second - torch.eye(2)).abs() < 5 * 2**0.5 * error).all()
        first, second = moments(resample=False)
        assert ((first - 0.5).abs() < 5 * 2 * 4000**-0.5).all()
        assert (second.diagonal(dim1=1, dim2=2) > 3).all()

    def test_k_is_of_the_pool(self, model):
        vae, x = model.vae("mean-field"), torch.randn(2, 6)
        pool = tensors(to_arviz(vae, x, 300))["constant_data", "pareto_k"]
        kept = tensors(to_arviz(vae, x, 30, resample=True, num_particles=10))["constant_data", "pareto_k"]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            vae.prior().sample((30,))  # the prior's draws come first, as many as are kept
            z = vae.encoder(x).sample((300,))
            log_w = vae.prior().log_prob(z) + vae.decoder(z).log_prob(x) - vae.encoder(x).log_prob(z)
        expected = evaluate.pareto_k(log_w)
        torch.testing.assert_close(kept, expected, rtol=0, atol=1e-10)
        assert not torch.equal(kept, pool)

    def test_an_adapted_pool_is_to_be_trusted_where_the_guides_is_not(self, model):
        """Weights are those of the draws that are kept: E[w] = p(x), by a z-test at 5 standard errors."""
        vae, x = model.vae(), torch.randn(3, 6)
        vae.encoder = Wrong(vae.encoder, 0.3)  # three times too narrow
        guide, adapted = (
            tensors(to_arviz(vae, x, 300, True, 10, predictive_draws=1, proposal=name)) for name in ("guide", "adapted")
        )
        assert (guide["constant_data", "pareto_k"] > 0.7).all()
        assert (adapted["constant_data", "pareto_k"] < 0.5).all()
        stats = {name: adapted["sample_stats", name][0] for name in ("log_p", "log_q", "log_weight")}
        z = adapted["posterior", "z"][0]
        with torch.no_grad():
            log_p = vae.decoder(z).log_prob(x) + vae.prior().log_prob(z)
        torch.testing.assert_close(stats["log_p"], log_p, rtol=0, atol=1e-10)
        torch.testing.assert_close(stats["log_weight"], stats["log_p"] - stats["log_q"], rtol=0, atol=1e-10)
        torch.testing.assert_close(stats["log_weight"].median(0).values, model.log_evidence(x), rtol=0, atol=0.5)

    def test_an_exact_guide_stays_in_an_adapted_pool(self, model):
        x = torch.randn(3, 6)
        found = tensors(to_arviz(model.vae(), x, 30, True, 2, proposal="adapted"))
        expected = model.log_evidence(x).expand(1, 30, 3)
        torch.testing.assert_close(found["sample_stats", "log_weight"], expected, rtol=0, atol=1e-10)

    def test_one_particle_for_each_draw_is_resampled_too(self, model):
        """Of as many draws as are taken, with replacement: some are there more than once."""
        z = tensors(to_arviz(model.vae("mean-field"), torch.randn(1, 6), 200, True, 1))["posterior", "z"]
        assert len(z[0, :, 0].unique(dim=0)) < 200

    def test_chunks_change_no_exact_answer(self, model, monkeypatch):
        x = torch.randn(5, 6)
        monkeypatch.setattr(room, "chunk_sizes", lambda posterior: (2, 14))
        monkeypatch.setattr(room, "POOL", 1)
        found = tensors(to_arviz(model.vae(), x, 30, resample=True, num_particles=3))
        expected = model.log_evidence(x).expand(1, 30, 5)
        torch.testing.assert_close(found["sample_stats", "log_weight"], expected, rtol=0, atol=1e-10)
        assert found["posterior_predictive", "x"].shape == (1, 30, 5, 6)


class TestMissing:
    def test_it_is_of_what_is_observed(self, model):
        x = torch.randn(4, 6)
        x[0, :3], x[1] = float("nan"), float("nan")
        vae = model.vae()
        vae.encoder = nn.Module()
        vae.encoder.forward = lambda rows: model.posterior(rows.nan_to_num())
        found = tensors(to_arviz(vae, x, 30))
        assert torch.equal(found["observed_data", "x"].isnan(), x.isnan())
        z = found["posterior", "z"]
        each = dist.Normal(z @ model.weight.T + model.bias, model.scale).log_prob(x.nan_to_num())
        expected = torch.where(x.isnan(), 0.0, each).sum(-1)
        torch.testing.assert_close(found["log_likelihood", "x"], expected, rtol=0, atol=1e-10)
        del found["observed_data", "x"]
        assert all(values.isfinite().all() for values in found.values())


@pytest.fixture(scope="module")
def found():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x = torch.rand(3, 1, 4, 4)
        x[0, 0, :2] = float("nan")
        return to_arviz(small((1, 4, 4)), x, 200, index=["a", "b", "c"])


@pytest.fixture
def az(found):  # who imports ArviZ without its warning of the day
    import arviz

    before = np.random.get_state()
    yield arviz
    np.random.set_state(before)  # plot_ppc draws from it
    plt.close("all")


# What is drawn, by its names in ArviZ 0.x and 1.x: the first that is there.
FIGURES = {
    "forest": (["plot_forest"], {}),
    "trace": (["plot_trace"], {}),
    "effective sizes": (["plot_ess"], {}),
    "pairs": (["plot_pair"], {"coords": {"datum": "a"}}),
    "densities": (["plot_posterior", "plot_dist"], {"coords": {"datum": "a"}}),
    "posterior predictive": (["plot_ppc", "plot_ppc_dist"], {}),
}


class TestArviZ:
    def test_tables(self, az, found):
        table = az.summary(found)
        assert len(table) == 3 * 2
        z = found["posterior"]["z"].values
        assert table["mean"].astype(float).values == pytest.approx(z.mean((0, 1)).ravel(), abs=0.1)
        assert len(az.summary(found, group="sample_stats", var_names=["log_weight"])) == 3
        # k is of a datum, the same at each draw: where its mean is exact in float32, ArviZ divides zero by zero.
        with np.errstate(invalid="ignore"):
            assert len(az.summary(found, group="sample_stats")) == 12
        assert az.extract(found, group="sample_stats").sizes["sample"] == 200

    # Matplotlib 3.11 on ArviZ 0.23.
    @pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning")
    @pytest.mark.parametrize(("names", "arguments"), FIGURES.values(), ids=FIGURES)
    def test_figures(self, az, found, names, arguments):
        name = next(name for name in names if name in dir(az))
        getattr(az, name)(found, **arguments)
        assert plt.get_fignums()

    @pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning")
    def test_prior_and_posterior_in_one_figure(self, az, found):
        if "InferenceData" in vars(az):
            az.plot_density([found["posterior"].sel(datum="a"), found["prior"]])
        else:
            az.plot_prior_posterior(found)
        assert plt.get_fignums()

    def test_loo_is_near_the_evidence_where_weights_are_even(self, az, model):
        """The harmonic mean of p(x | z) over the exact posterior is p(x): at once where z says little of x."""
        weak, x = LinearGaussian(0.05 * model.weight, model.bias, model.scale), torch.randn(3, 6)
        found = az.loo(to_arviz(weak.vae(), x), pointwise=True)
        terms = found.loo_i if "InferenceData" in vars(az) else found.elpd_i
        assert terms.sizes == {"datum": 3}
        np.testing.assert_allclose(terms.values, weak.log_evidence(x), atol=0.05)

    def test_is_the_same_when_saved_and_read_back(self, az, found, tmp_path):
        path = str(tmp_path / "posterior.nc")
        found.to_netcdf(path)
        read = az.from_netcdf(path)
        for group in GROUPS:
            one, other = (
                of[group].to_dataset() if hasattr(of[group], "to_dataset") else of[group] for of in (read, found)
            )
            one.load()
            assert one.identical(other), group
            assert set(one.coords) == set(other.coords)
        read.close()


class TestState:
    def test_repeats_and_leaves_everything_alone(self):
        vae, x = small((6,)).train(), torch.rand(3, 6)
        before, state = torch.get_rng_state(), {name: value.clone() for name, value in vae.state_dict().items()}
        kept = x.clone()
        first, second, other = (tensors(to_arviz(vae, x, 30, resample=True, seed=seed)) for seed in (0, 0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not torch.equal(first["posterior", "z"], other["posterior", "z"])
        assert torch.equal(torch.get_rng_state(), before)
        assert vae.training
        assert torch.equal(x, kept)
        assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())
        assert all(parameter.grad is None for parameter in vae.parameters())

    def test_z_does_not_depend_on_how_many_x_are_drawn(self):
        vae, x = small((6,)), torch.rand(3, 6)
        few, many = (tensors(to_arviz(vae, x, 30, predictive_draws=n)) for n in (1, 30))
        for of in ("posterior", "prior"):
            assert torch.equal(few[of, "z"], many[of, "z"])

    def test_devices(self, device):
        vae, x = small((6,)).to(device), torch.rand(3, 6)
        for resample in (False, True):
            assert all(values.isfinite().all() for values in tensors(to_arviz(vae, x, 30, resample)).values())

    @pytest.mark.processes
    def test_arviz_is_imported_late_and_without_a_warning(self, tmp_path):
        """ArviZ 0.23 warns at its first import of the day, of which it takes note in the user's cache."""
        code = (
            "import sys, torch; from pyro_vae import VAE, posterior; assert 'arviz' not in sys.modules\n"
            "posterior.to_arviz(VAE.build((6,), latent=2), torch.rand(3, 6), 30); assert 'arviz' in sys.modules"
        )
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "MPLCONFIGDIR": matplotlib.get_cachedir()}
        subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], env=environment, check=True)


X = torch.zeros(3, 6)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda vae: to_arviz(vae, X, draws=24), "draws of at least 25.*; got draws = 24, "),
        (
            lambda vae: to_arviz(vae, X, resample=True, num_particles=0),
            "num_particles.* at least 1; got .*num_particles = 0",
        ),
        (
            lambda vae: to_arviz(vae, X, proposal="adapted"),
            "resample=True with proposal=.adapted.*got resample=False",
        ),
        (lambda vae: to_arviz(vae, X, resample=True, proposal="prior"), "proposal to be guide or adapted; got 'prior'"),
        (
            lambda vae: to_arviz(vae, X, predictive_draws=0),
            "predictive_draws of at least 1; got .*predictive_draws = 0",
        ),
        (lambda vae: to_arviz(vae, X[0]), r"x of shape \(B, 6\) .*; got \(6,\)\. .* x\.unsqueeze\(0\)"),
        (lambda vae: to_arviz(vae, X[:0]), "at least 1 image.*; got none"),
        (lambda vae: to_arviz(vae, X[:, :5]), r"x of shape \(B, 6\) .*; got \(3, 5\)"),
        (
            lambda vae: to_arviz(vae, X, index=[1, 2]),
            r"index to be 3 .*; got 2 different, of shape \(2,\)",
        ),
        (lambda vae: to_arviz(vae, X, index=[1, 2, 2]), r"index to be 3 different names; got 2"),
        (
            lambda vae: to_arviz(vae, X, latent_names="ab"),
            r"latent_names to be 2 .* of shape \(\)",
        ),
    ],
)
def test_bad_input_gets_a_sentence(run, message):
    with pytest.raises(ValueError, match=message):
        run(small((6,)))
