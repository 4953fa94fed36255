"""Pyro programs that are no VAEs, to hold objectives against: each is ``(model, guide)``, called with X."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions import constraints

X = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)
COUNTS = torch.tensor([1.0, 0.0, 4.0, 2.0], dtype=torch.float64)


class Module(torch.nn.Module):
    """A program as a module, for ``objective(model, guide)``."""

    def __init__(self, program):
        super().__init__()
        self.program = program

    def forward(self, x):
        return self.program(x)


def local():
    """One latent per datum."""

    def model(x):
        scale = pyro.param("noise", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: 0.3 * x)
        scale = pyro.param("scale", lambda: torch.full_like(x, 0.4), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    return model, guide


def hierarchical():
    """A global latent of two dimensions over a plate of local ones, the guide in the model's order."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        mu = pyro.sample("mu", dist.Normal(pyro.param("m", torch.tensor([0.2, -0.1])), 0.7).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x + 0.1 * mu.sum(-1), pyro.param("s", torch.tensor(0.4))))

    return model, guide


def subsampled():
    """Two of four data at a time: the plate scales by 2."""

    def model(x):
        with pyro.plate("data", 4, subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])

    def guide(x):
        with pyro.plate("data", 4, subsample_size=2) as index:
            pyro.sample("z", dist.Normal(pyro.param("loc", lambda: 0.3 * x)[index], 0.4))

    return model, guide


def masked():
    """Half of the data is masked out, on both sides."""
    keep = torch.tensor([True, False, True, False])

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            pyro.sample("z", dist.Normal(pyro.param("loc", lambda: 0.3 * x), 0.4))

    return model, guide


def without_closed_form():
    """A Student's t prior: Pyro's mean-field ELBO samples this in silence."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(3.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return model, local()[1]


def chain():
    """A state-space model: two latents per datum, the guide drawing the second given the first."""

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
            z2 = pyro.sample("z2", dist.Normal(0.8 * z1, 0.7))
            pyro.sample("x1", dist.Normal(z1, 0.5), obs=x)
            pyro.sample("x2", dist.Normal(z2, 0.5), obs=0.5 * x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x, 0.5))
            pyro.sample(
                "z2", dist.Normal(pyro.param("b", torch.tensor(0.4)) * z1 + 0.2 * x, pyro.param("c", X[3] + 0.3))
            )

    return model, guide


def factor_analysis():
    """A vector per datum: z under ``to_event``, its pixels in a plate inside the datum's."""
    weight = torch.tensor([[0.5, 1.0, -1.0], [1.5, 0.2, 0.3]], dtype=torch.float64)

    def model(x):
        w = pyro.param("w", weight)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("x", dist.Normal((z @ w).squeeze(-2), 0.8), obs=x.unsqueeze(-1) + torch.arange(3.0))

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            loc = torch.stack([x, 0.3 * x], -1).unsqueeze(-2)
            pyro.sample("z", dist.Normal(loc, pyro.param("s", torch.tensor([0.6, 0.9]))).to_event(1))

    return model, guide


def counts():
    """Poisson counts with Gamma rates, the guide a Gamma, whose draws are differentiated implicitly."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, pyro.param("prior", torch.tensor(1.5))))
            pyro.sample("x", dist.Poisson(rate), obs=COUNTS)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(COUNTS + pyro.param("shape", torch.tensor(2.5)), 2.0))

    return model, guide


def regression():
    """Logistic regression: all latents global, no plate around them."""
    design = torch.tensor([[1.0, 0.2], [1.0, -1.0], [1.0, 1.5], [1.0, 0.0]], dtype=torch.float64)

    def model(x):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=(design * beta).sum(-1)), obs=(x > 0).double())

    def guide(x):
        loc = pyro.param("loc", torch.tensor([0.3, 0.8]))
        pyro.sample("beta", dist.MultivariateNormal(loc, scale_tril=pyro.param("tril", torch.eye(2) * 0.6)))

    return model, guide


def mixture():
    """A coin per datum, without ``rsample``: its gradient is a score function's."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * k - pyro.param("shift", torch.tensor(0.6)), 0.7), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", lambda: x.clone())))

    return model, guide


# Where every site is in the data's plate and nothing is scaled, Pyro's own Renyi bound is right per datum.
PER_DATUM = [local, masked, without_closed_form, chain, factor_analysis, counts]
PROGRAMS = [*PER_DATUM, hierarchical, subsampled, regression, mixture]


def value_and_gradients(loss, program, seed=3):
    """The loss and every parameter's gradient, under one seed, in a param store of its own."""
    model, guide = program()
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(seed)
        value = loss.loss_and_grads(model, guide, X)
        gradients = {name: p.grad.clone() for name, p in pyro.get_param_store().named_parameters()}
    return value, gradients
