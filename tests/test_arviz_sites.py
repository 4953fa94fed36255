"""Programs of several sites in ArviZ's container: variables, dimensions and values, against closed forms."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.posterior import to_arviz

pytestmark = pytest.mark.usefixtures("float64")
SAMPLE = ("chain", "draw")
DATUM = (*SAMPLE, "datum")


def tensor(found, group, name):
    return torch.from_numpy(found[group][name].values)


def dims(found, group):
    return {name: found[group][name].dims for name in found[group].data_vars}


class TwoLayers:
    """A vector and a number over x, their prior shifted by a covariate c; the guide is the exact posterior."""

    def __init__(self):
        self.shift, self.weight, self.scale = torch.randn(2), torch.randn(3, 3), 0.6
        # (z1, z2) = base + mix noise
        self.mix = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.8, 0.0, 0.5]])

    def prior(self, c):
        loc = torch.cat([c[:, None] * self.shift, 0.8 * c[:, None] * self.shift[:1]], -1)
        return dist.MultivariateNormal(loc, covariance_matrix=self.mix @ self.mix.T)

    def evidence(self, x, c):
        cov = self.weight @ self.mix @ self.mix.T @ self.weight.T + self.scale**2 * torch.eye(3)
        return dist.MultivariateNormal(self.prior(c).mean @ self.weight.T, covariance_matrix=cov).log_prob(x)

    def posterior(self, x, c):
        precision = torch.linalg.inv(self.mix @ self.mix.T)
        cov = torch.linalg.inv(precision + self.weight.T @ self.weight / self.scale**2)
        loc = (self.prior(c).mean @ precision + x @ self.weight / self.scale**2) @ cov
        return loc, cov

    def model(self, x, c):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(c[:, None] * self.shift, 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(0.8 * z1[..., 0], 0.5))
            z = torch.cat([z1, z2.unsqueeze(-1)], -1)
            pyro.sample("x", dist.Normal(z @ self.weight.T, self.scale).to_event(1), obs=x)

    def guide(self, x, c):
        loc, cov = self.posterior(x, c)
        gain = torch.linalg.solve(cov[:2, :2], cov[:2, 2])
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.MultivariateNormal(loc[:, :2], covariance_matrix=cov[:2, :2]))
            left = (cov[2, 2] - gain @ cov[:2, 2]).sqrt()
            pyro.sample("z2", dist.Normal(loc[:, 2] + (z1 - loc[:, :2]) @ gain, left))


class TestTwoSitesAndACovariate:
    @pytest.fixture
    def case(self):
        return TwoLayers(), torch.randn(4, 3), torch.randn(4)

    def test_variables_and_dimensions(self, case):
        program, x, c = case
        found = to_arviz(program, {"c": c, "x": x}, 30, predictive_draws=7, index=["a", "b", "c", "d"])
        sites, x_dims = {"z1": (*DATUM, "z1_dim_0"), "z2": DATUM}, "x_dim_0"
        assert dims(found, "posterior") == dims(found, "prior") == sites
        assert dims(found, "posterior_predictive") == dims(found, "prior_predictive") == {"x": (*DATUM, x_dims)}
        assert dims(found, "observed_data") == {"x": ("datum", x_dims)}
        assert dims(found, "log_likelihood") == {"x": DATUM}
        assert dims(found, "constant_data") == {"pareto_k": ("datum",), "c": ("datum",)}
        assert found["prior"]["z1"].shape == (1, 30, 4, 2)
        assert found["posterior_predictive"]["x"].shape == (1, 7, 4, 3)
        np.testing.assert_array_equal(found["observed_data"]["x"], x)
        assert found["constant_data"]["c"].sel(datum="b").item() == c[1].item()

    @pytest.mark.parametrize("resample", [False, True])
    def test_densities(self, case, resample):
        program, x, c = case
        found = to_arviz(program, (x, c), 30, resample, num_particles=2)
        z = torch.cat([tensor(found, "posterior", "z1"), tensor(found, "posterior", "z2")[..., None]], -1)[0]
        likelihood = dist.Normal(z @ program.weight.T, program.scale).to_event(1).log_prob(x)
        expected = {
            ("log_likelihood", "x"): likelihood,
            ("sample_stats", "log_p"): likelihood + program.prior(c).log_prob(z),
            ("sample_stats", "log_weight"): program.evidence(x, c).expand(30, 4),
        }
        for key, values in expected.items():
            torch.testing.assert_close(tensor(found, *key)[0], values, rtol=0, atol=1e-9)
        assert (tensor(found, "constant_data", "pareto_k") == 0).all()

    def test_the_prior_and_the_predictives_are_given_the_covariate(self, case):
        """Means of 4,000 draws at 5 standard errors: 36 numbers, of which one fails in 48,000 runs."""
        program, x, c = case
        found = to_arviz(program, (x, c), 4000, predictive_draws=4000)
        loc = program.posterior(x, c)[0]
        for key, mean in {
            ("prior", "z1"): program.prior(c).mean[:, :2],
            ("prior_predictive", "x"): program.prior(c).mean @ program.weight.T,
            ("posterior", "z2"): loc[:, 2],
            ("posterior_predictive", "x"): loc @ program.weight.T,
        }.items():
            values = tensor(found, *key)[0].double()
            assert ((values.mean(0) - mean).abs() < 5 * values.std(0) / 4000**0.5).all(), key

    def test_names_by_site(self, case):
        program, x, c = case
        found = to_arviz(program, (x, c), 30, latent_names={"z1": ["slant", "width"]})
        assert found["posterior"]["z1"].sel(z1_dim_0="width").dims == found["prior"]["z2"].dims == DATUM

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("ab", "latent_names .* by site, .* z1 of z1, z2; got names for z1, z2"),
            ({"z2": ["a"]}, "got names for z2"),
            ({"z1": ["a"]}, "latent_names to be 2 different names; got 1"),
        ],
    )
    def test_names_that_fit_no_site(self, case, names, message):
        program, x, c = case
        with pytest.raises(ValueError, match=message):
            to_arviz(program, (x, c), 30, latent_names=names)


class Counts:
    """Poisson counts with Gamma rates, one of the datum and one for each of its cells; the guide is exact."""

    def model(self, total, cells):
        with pyro.plate("data", len(cells), dim=-2):
            rate = pyro.sample("rate", dist.Gamma(2.0, torch.tensor(0.5)))
            pyro.sample("total", dist.Poisson(rate), obs=total.unsqueeze(-1))
            with pyro.plate("cells", cells.shape[1], dim=-1):
                own = pyro.sample("own", dist.Gamma(3.0, torch.tensor(1.0)))
                pyro.sample("x", dist.Poisson(own), obs=cells)

    def guide(self, total, cells):
        with pyro.plate("data", len(cells), dim=-2):
            pyro.sample("rate", dist.Gamma(2.0 + total.unsqueeze(-1), 1.5))
            with pyro.plate("cells", cells.shape[1], dim=-1):
                pyro.sample("own", dist.Gamma(3.0 + cells, 2.0))


class TestPositiveSitesAndAPlateInside:
    def test_dimensions_and_densities(self):
        total, cells = torch.tensor([3.0, 0.0]), torch.tensor([[1.0, 0.0, 4.0], [2.0, 2.0, 0.0]])
        found = to_arviz(Counts(), (total, cells), 40)
        assert dims(found, "posterior") == {"rate": DATUM, "own": (*DATUM, "own_dim_0")}
        assert dims(found, "prior") == {"rate": SAMPLE, "own": (*SAMPLE, "own_dim_0")}
        assert dims(found, "prior_predictive") == {"total": SAMPLE, "x": (*SAMPLE, "x_dim_0")}
        assert dims(found, "observed_data") == {"total": ("datum",), "x": ("datum", "x_dim_0")}
        assert dims(found, "log_likelihood") == {"total": DATUM, "x": DATUM}
        assert dims(found, "constant_data") == {"pareto_k": ("datum",)}
        assert (tensor(found, "posterior", "own") > 0).all()
        expected = dist.GammaPoisson(2.0, torch.tensor(0.5)).log_prob(total)
        expected = expected + dist.GammaPoisson(3.0, torch.tensor(1.0)).log_prob(cells).sum(-1)
        torch.testing.assert_close(
            tensor(found, "sample_stats", "log_weight")[0], expected.expand(40, 2), rtol=0, atol=1e-9
        )
        each = dist.Poisson(tensor(found, "posterior", "own")).log_prob(cells).sum(-1)
        torch.testing.assert_close(tensor(found, "log_likelihood", "x"), each, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(found["observed_data"]["x"], cells)


class Classes:
    """A number, a class of three that the guide draws, and one of two that the model alone has."""

    def __init__(self, scale):
        self.loc, self.scale = torch.tensor([0.0, 2.0, 5.0]), scale
        self.shares, self.odd = torch.tensor([0.2, 0.3, 0.5]), 0.3

    def joint(self, x):
        """Log p(x, y, w), of shape ``(y, w, B)``."""
        distribution = dist.Normal((self.loc[:, None] + torch.arange(2.0)).unsqueeze(-1), self.scale)
        prior = self.shares.log()[:, None] + torch.tensor([1 - self.odd, self.odd]).log()
        return prior.unsqueeze(-1) + distribution.log_prob(x)

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(self.shares))
            w = pyro.sample("w", dist.Bernoulli(self.odd))
            pyro.sample("x", dist.Normal(self.loc[y] + w, self.scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.joint(x).logsumexp(1).T))


class TestClasses:
    def test_those_of_the_guide_are_integers_and_the_models_are_summed_out(self):
        """Shares of 4,000 draws at 5 standard errors: 15 numbers, of which one fails in 110,000 runs."""
        program, x = Classes(0.9), torch.tensor([-0.5, 1.2, 2.0, 4.0, 6.5])
        found = to_arviz(program, x, 4000, predictive_draws=30)
        assert dims(found, "posterior") == {"y": DATUM}
        assert dims(found, "prior") == {"y": SAMPLE, "w": SAMPLE}
        assert all(found[of][name].dtype.kind == "i" for of, name in (("posterior", "y"), ("prior", "w")))
        y, log_p = tensor(found, "posterior", "y")[0], program.joint(x)
        exact = log_p.logsumexp(1).softmax(0)
        for k in range(3):
            share = (y == k).double().mean(0)
            assert ((share - exact[k]).abs() <= 5 * (exact[k] * (1 - exact[k]) / 4000).sqrt()).all()
        of_draws = log_p.logsumexp(1).gather(0, y)
        for key, values in {
            ("sample_stats", "log_p"): of_draws,
            ("sample_stats", "log_q"): exact.log().gather(0, y),
            ("sample_stats", "log_weight"): log_p.logsumexp((0, 1)).expand(4000, 5),
            ("log_likelihood", "x"): of_draws - program.shares.log()[y],
        }.items():
            torch.testing.assert_close(tensor(found, *key)[0], values, rtol=0, atol=1e-9)

    def test_a_predictive_draw_is_of_the_class_given_the_data(self):
        """With next to no noise x tells its classes, so that a predictive draw is x once more."""
        x = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0, 6.0])
        found = to_arviz(Classes(1e-3), x, 30, predictive_draws=30)
        torch.testing.assert_close(
            tensor(found, "posterior_predictive", "x")[0], x.float().expand(30, 6), rtol=0, atol=0.01
        )

    def test_with_nothing_to_draw(self):
        """All classes summed out: weights are the evidence, and the posterior, without a variable, is left out."""
        program, x = Classes(0.9), torch.tensor([-0.5, 1.2])
        program.guide = lambda x: None
        found = to_arviz(program, x, 30)
        expected = program.joint(x).logsumexp((0, 1)).expand(30, 2)
        for key in (("sample_stats", "log_weight"), ("log_likelihood", "x")):
            torch.testing.assert_close(tensor(found, *key)[0], expected, rtol=0, atol=1e-9)
        assert (found["sample_stats"]["log_q"].values == 0).all()

    def test_tables(self):
        import arviz as az

        found = to_arviz(Classes(0.9), torch.tensor([-0.5, 1.2]), 100)
        assert list(az.summary(found).index) == ["y[0]", "y[1]"]
