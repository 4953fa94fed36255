"""Programs that nobody here wrote a room for: each against its exact answer, or the sentence that refuses it."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import nn

from pyro_vae import ais, data, evaluate, fit, objectives, posterior
from pyro_vae.program import posterior_of

PRIOR, MEANS, NOISE = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-1.0, 0.5, 2.0]), 0.7
X = torch.tensor([0.5, -1.0, 2.0, 0.1, 0.3, -0.4])


class Classes(nn.Module):
    """A class, marked in the model, in the guide, or in both; the guide draws it."""

    def __init__(self, model=True, guide=False, labels=False):
        super().__init__()
        self.marks = [{"enumerate": "parallel"} if mark else {} for mark in (model, guide)]
        self.labels, self.slope = labels, nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))

    def model(self, x, y=None):
        with pyro.plate("rows", len(x)):
            seen = {"obs": y, "obs_mask": y >= 0} if self.labels else {}
            k = pyro.sample("k", dist.Categorical(PRIOR), infer=self.marks[0], **seen)
            pyro.sample("x", dist.Normal(MEANS[k], NOISE), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("rows", len(x)):
            name = "k_unobserved" if self.labels else "k"
            pyro.sample(name, dist.Categorical(logits=x[:, None] * self.slope), infer=self.marks[1])


def log_joint(x):
    return PRIOR.log() + dist.Normal(MEANS, NOISE).log_prob(x[:, None])


@pytest.mark.parametrize("marks", [(True, False), (False, True), (True, True)])
def test_a_mark_of_model_or_guide_sums_the_class_out(marks):
    program, exact = Classes(*marks), log_joint(X)
    assert torch.allclose(evaluate.nll(program, X, 2), -exact.logsumexp(1), atol=1e-5)
    assert torch.allclose(evaluate.posterior(program, X, site="k"), exact.softmax(1), atol=1e-5)
    log_q = (X[:, None] * program.slope).log_softmax(1)
    bound = (log_q.exp() * (exact - log_q)).sum()
    loss = objectives.ELBO().differentiable_loss(program.model, program.guide, X)
    assert torch.allclose(loss, -bound, atol=1e-5)
    pair = (torch.autograd.grad(each, program.slope)[0] for each in (loss, -bound))
    assert torch.allclose(*pair, atol=1e-5)


@pytest.mark.parametrize("objective", [objectives.ELBO(), objectives.ReweightedWakeSleep(num_particles=3)])
def test_a_label_of_minus_one_is_none(objective):
    program, y = Classes(guide=True, labels=True), torch.tensor([-1, 0, 2, -1, 1, -1])
    exact = log_joint(X)
    told = exact.gather(1, y.clamp(min=0)[:, None])[:, 0]
    assert torch.allclose(evaluate.nll(program, (X, y), 2), -torch.where(y >= 0, told, exact.logsumexp(1)), atol=1e-5)
    share = torch.where((y >= 0)[:, None], nn.functional.one_hot(y.clamp(min=0), 3).float(), exact.softmax(1))
    assert torch.allclose(evaluate.posterior(program, (X, y), site="k"), share, atol=1e-5)
    history = fit(program, (X, y), objective, epochs=2, batch_size=2, progress=False)
    assert all(torch.tensor(history["train"]).isfinite())


class Bounded(nn.Module):
    """Uniform(0, b), whose bound differs from row to row."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Beta(2.0, 3.0))
            d = pyro.sample("d", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
            u = pyro.sample("u", dist.Uniform(0.0, b))
            pyro.sample("x", dist.Normal(u + d[..., 0], 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Beta(2.0, 3.0))
            pyro.sample("d", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
            pyro.sample("u", dist.Uniform(0.0, b))


def test_bounds_of_each_row_beside_a_simplex():
    here = posterior_of(Bounded(), X)
    draws, _ = here.propose(4)
    u = here.unconstrain(draws)
    assert here.names == ["b", "d[0]", "d[1]", "u"]
    assert u.shape == (4, 6, 4)
    again, _ = here.constrain(u)
    assert all(torch.allclose(again[name], value, atol=1e-5) for name, value in draws.items())
    assert posterior.sbc(Bounded(), X, num=40, draws=9).ranks.shape == (40, 5)


class Chain(nn.Module):
    """z of one step depends on x of the step before: as the argument has it, or as it was drawn."""

    def __init__(self, drawn):
        super().__init__()
        self.drawn = drawn

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z0", dist.Normal(0.0, 1.0))
            first = pyro.sample("x0", dist.Normal(z, 0.5), obs=x[:, 0])
            z = pyro.sample("z1", dist.Normal(z + (first if self.drawn else x[:, 0]), 1.0))
            pyro.sample("x1", dist.Normal(z, 0.5), obs=x[:, 1])

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z0", dist.Normal(0.8 * x[:, 0], 0.5))
            pyro.sample("z1", dist.Normal(0.8 * x[:, 1], 0.5))


def test_data_are_drawn_only_where_the_model_reads_what_is_drawn():
    x = X.reshape(3, 2)
    assert posterior.sbc(Chain(True), x, num=20, draws=9).ranks.shape == (20, 3)
    with pytest.raises(ValueError, match=r"'z1' changes with"):
        posterior.sbc(Chain(False), x, num=20, draws=9)
    with pytest.raises(ValueError, match=r"'z1' changes with"):
        ais.bdmc(Chain(False), x, num=2, chains=2, temperatures=2)


class Level(nn.Module):
    """A level of all data, and an autoguide."""

    def __init__(self, guide=autoguide.AutoNormal):
        super().__init__()
        self.guide = guide(self.model)

    def model(self, x):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(level, NOISE), obs=x)


@pytest.mark.parametrize("guide", [autoguide.AutoNormal, autoguide.AutoDiagonalNormal])
def test_an_autoguide_of_a_level_that_is_given(guide):
    exact = dist.Normal(0.2, NOISE).log_prob(X)
    assert torch.allclose(evaluate.nll(Level(guide), X, 2, given={"level": torch.tensor(0.2)}), -exact)


class Local(nn.Module):
    """An autoguide with a mean and a scale for each row."""

    def __init__(self):
        super().__init__()
        self.guide = autoguide.AutoNormal(self.model)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def test_an_autoguide_of_each_row():
    program, exact = Local(), dist.Normal(0.0, 1.25**0.5).log_prob(X)
    evaluate.nll(program, X, 1)  # makes its parameters, of all rows
    with torch.no_grad():
        program.guide.locs.z_unconstrained.copy_(0.8 * X)
    program.guide.scales.z = torch.full_like(X, 0.2**0.5)  # the posterior
    assert torch.allclose(evaluate.nll(program, X, 2), -exact, atol=1e-5)
    assert evaluate.latent_activity(program, X).shape == (1,)
    with pytest.raises(ValueError, match=r"the 6 rows .* got 4"):
        evaluate.nll(program, X[:4], 2)
    with pytest.raises(ValueError, match="batch_size = 3"):
        fit(Local(), data.from_columns({"x": X}, valid=0), batch_size=3, progress=False)


def test_several_draws_of_a_level():
    class Two(Level):
        def __init__(self):
            nn.Module.__init__(self)

        def guide(self, x):
            pyro.sample("level", dist.Normal(0.0, 1.0))

    levels = torch.tensor([-0.5, 0.0, 1.0])
    exact = dist.Normal(levels, NOISE).log_prob(X[:, None]).logsumexp(1) - torch.tensor(3.0).log()
    # An estimate of 4000 draws, with a deviation of 0.01.
    assert torch.allclose(evaluate.nll(Two(), X, 4000, seed=0, given={"level": levels}), -exact, atol=0.06)


@pytest.mark.parametrize(("wrong", "got"), [(None, "NoneType"), ("x", "str"), ((X, X, X), "got 3")])
def test_no_data(wrong, got):
    with pytest.raises(ValueError, match=got):
        evaluate.nll(Classes(), wrong, 2)


class Scalar(Local):
    """One number is latent, without a dimension of its own."""

    def __init__(self):
        nn.Module.__init__(self)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))


def test_a_latent_number_has_one_dimension():
    kl = torch.distributions.kl_divergence(dist.Normal(0.8 * X, 0.2**0.5), dist.Normal(0.0, 1.0))
    assert torch.allclose(evaluate.kl_per_dim(Scalar(), X), kl.unsqueeze(1), atol=1e-6)
    assert torch.allclose(evaluate.latent_activity(Scalar(), X), (0.8 * X).var().unsqueeze(0))


class Styles(nn.Module):
    """A style that the model alone has, beside a code that the guide draws."""

    MEANS = torch.tensor([-1.5, 2.0])

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            style = pyro.sample("style", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(z + self.MEANS[style], 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x, 0.6))


def test_terms_of_the_elbo_beside_a_class_of_the_model_alone():
    """The reconstruction by quadrature over z, at 6 standard errors of 20,000 draws; the divergence in closed form."""
    x = torch.tensor([-2.0, 0.3, 1.0])
    reconstruction, kl = evaluate.elbo_terms(Styles(), x, 20_000, seed=1)
    assert torch.allclose(kl, 0.5 * (0.6**2 + (0.4 * x) ** 2 - 1) - math.log(0.6))
    assert torch.allclose(kl, evaluate.kl_by_site(Styles(), x)["z"])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z = 0.4 * x + 0.6 * torch.tensor(nodes).float().unsqueeze(1)  # (nodes, data)
    log_p = dist.Normal(z.unsqueeze(-1) + Styles.MEANS, 0.5).log_prob(x.unsqueeze(-1))
    terms = (log_p + torch.tensor([0.3, 0.7]).log()).logsumexp(-1)
    weight = torch.tensor(weights / weights.sum()).float().unsqueeze(1)
    exact = (weight * terms).sum(0)
    error = ((weight * (terms - exact) ** 2).sum(0) / 20_000).sqrt()
    assert ((reconstruction - exact).abs() < 6 * error).all()
