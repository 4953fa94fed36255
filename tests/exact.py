"""Programs that are no VAEs, with exact evidence and exact guides: each has ``evidence(*data)`` and ``sample(num)``.

A guide is made of the model's own parameters, so that it is exact at any, and an ELBO trained is maximum likelihood.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_vae import oracle
from pyro_vae.oracle.base import normals, times
from pyro_vae.seeds import param_store_scope

ENUMERATED = {"enumerate": "parallel"}


def numbers(*shape, seed=0):
    """Standard normal numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(torch.empty(()))


def gaussian(mean, covariance):
    return dist.MultivariateNormal(mean, covariance)


class Exact(nn.Module):
    """Parameters by keyword; standard deviations and rates as logarithms. ``name`` is for two in one param store."""

    name = None

    def __init__(self, **parameters):
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(torch.as_tensor(value, dtype=torch.get_default_dtype()).clone()))

    def rows(self, data):
        """Show Pyro the parameters; return the plate of the data."""
        pyro.module(self.name or type(self).__name__, self)
        return pyro.plate("data", len(data))

    @torch.no_grad()
    def drawn(self, *data):
        """Return one draw of every site, given data whose observed part is drawn over."""
        with param_store_scope():
            trace = poutine.trace(poutine.uncondition(self.model)).get_trace(*data)
        return {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}


class Known:
    """An oracle, as the other programs here are."""

    name = None

    def rows(self, x):
        pyro.module(self.name or type(self).__name__, self)
        return pyro.plate("data", len(x))

    def evidence(self, *data):
        return self.log_evidence(*data)


class TwoLayers(Known, oracle.Layers):
    """The guide ``bottom-up`` or ``top-down``."""

    def __init__(self, guide="bottom-up"):
        own = oracle.Layers.random(5, (3, 2))
        super().__init__([own.weight, own.weight1], [own.bias, own.bias1], own.scales, guide)

    def means(self, x):
        """E[z | x] of each site."""
        return {f"z{i}": self.posterior(x, i).mean for i in (1, 2)}

    def sample(self, num):
        return (super().sample(num),)


class Covariate(Known, oracle.Covariates):
    """Three covariates of two latents."""

    def __init__(self):
        parameters = [nn.Parameter(value) for value in normals(1, (5, 2), (5,), (5, 3), (2, 3), (2,))]
        super().__init__(*parameters, 0.8)

    def sample(self, num):
        y = torch.randn(num, 3).to(self.bias)
        return super().sample(num, y), y


class PartlyLabelled(Known, oracle.Classes):
    """Labels y of some rows, -1 where there is none, in one plate; the evidence is log p(x, y) of these.

    Pyro 1.9 drops ``infer`` where there is ``obs_mask``: the guide alone marks ``y_unobserved``.
    """

    def __init__(self):
        super().__init__(*oracle.Classes.random(4, 2, classes=3).parameters(), 0.7)

    def of_classes(self, x):
        return self.log_joint(x)

    def sample(self, num):
        y = dist.Categorical(logits=self.logits).sample((num,))
        return super().sample(num, y), torch.where(torch.arange(num) % 2 == 0, y, -1)


class Classes(Exact):
    """y ~ Categorical, z ~ N(0, I), x | z, y ~ N(W_y z + b_y, s^2 I): a mixture of pPCA; the class is enumerated."""

    def __init__(self, d=4, k=2, classes=3):
        super().__init__(
            logits=0.5 * numbers(classes, seed=1),
            W=numbers(classes, d, k, seed=2),
            b=1.5 * numbers(classes, d, seed=3),
            log_s=math.log(0.7),
        )

    def model(self, x):
        with self.rows(x):
            return self.given(x, pyro.sample("y", dist.Categorical(logits=self.logits), infer=ENUMERATED))

    def guide(self, x):
        with self.rows(x):
            y = pyro.sample("y", dist.Categorical(logits=self.of_classes(x)), infer=ENUMERATED)
            pyro.sample("z", self.posterior(x, y))

    def given(self, x, y):
        z = pyro.sample("z", dist.Normal(torch.zeros(self.W.shape[2]).to(x), 1.0).to_event(1))
        mean = times(self.W[y], z) + self.b[y]
        return pyro.sample("x", dist.Normal(mean, self.log_s.exp()).to_event(1), obs=x)

    def posterior(self, x, y):
        """p(z | x, y)."""
        eye, noise = torch.eye(self.W.shape[2]).to(x), (2 * self.log_s).exp()
        precision = eye + self.W.mT @ self.W / noise
        gain = torch.linalg.solve(precision, self.W.mT) / noise
        return gaussian(times(gain[y], x - self.b[y]), precision.inverse()[y])

    def of_classes(self, x):
        """log p(x, y), of shape ``(B, classes)``."""
        noise = (2 * self.log_s).exp() * torch.eye(self.b.shape[1]).to(x)
        distribution = gaussian(self.b, self.W @ self.W.mT + noise)
        return self.logits.log_softmax(-1) + distribution.log_prob(x.unsqueeze(-2))

    def evidence(self, x):
        return self.of_classes(x).logsumexp(-1)

    def sample(self, num):
        return (self.drawn(self.b.new_zeros(num, self.b.shape[1]))["x"],)


class Bits(Exact):
    """b_i ~ Bernoulli, ``bits`` sites; x ~ N(sum_i w_i b_i, s^2 I). The guide draws each bit given those before."""

    def __init__(self, bits=10, d=3):
        super().__init__(logits=0.5 * numbers(bits, seed=1), w=numbers(bits, d, seed=2), log_s=math.log(0.9))

    def model(self, x):
        with self.rows(x):
            mean = torch.zeros(()).to(x)
            for i, logit in enumerate(self.logits):
                b = pyro.sample(f"b{i}", dist.Bernoulli(logits=logit), infer=ENUMERATED)
                mean = mean + b.unsqueeze(-1) * self.w[i]
            return pyro.sample("x", dist.Normal(mean, self.log_s.exp()).to_event(1), obs=x)

    def guide(self, x):
        table, rows = self.of_bits(x), torch.arange(len(x)).to(x.device)
        with self.rows(x):
            before = torch.zeros(len(x), dtype=torch.long).to(x.device)
            for i in range(len(self.logits)):
                log_p = table.unflatten(1, (2 ** (i + 1), -1)).logsumexp(-1)
                logit = log_p[rows, 2 * before + 1] - log_p[rows, 2 * before]
                b = pyro.sample(f"b{i}", dist.Bernoulli(logits=logit), infer=ENUMERATED)
                before = 2 * before + b.long()

    def of_bits(self, x):
        """log p(x, b), of shape ``(B, 2^bits)``, the first bit the highest."""
        bits = torch.cartesian_prod(*[torch.arange(2.0).to(x)] * len(self.logits))
        log_p = dist.Bernoulli(logits=self.logits).log_prob(bits).sum(-1)
        return log_p + dist.Normal(bits @ self.w, self.log_s.exp()).log_prob(x.unsqueeze(-2)).sum(-1)

    def evidence(self, x):
        return self.of_bits(x).logsumexp(-1)

    def sample(self, num):
        return (self.drawn(self.w.new_zeros(num, self.w.shape[1]))["x"],)


class GammaPlate(Exact):
    """rate ~ Gamma(a, b) of each datum; x_j ~ Poisson(rate) in a plate inside it, on the right of the data's."""

    def __init__(self, counts=4):
        super().__init__(log_a=math.log(2.0), log_b=math.log(0.8))
        self.counts = counts

    def rows(self, data):
        pyro.module(self.name or type(self).__name__, self)
        return pyro.plate("data", len(data), dim=-2)

    def model(self, x):
        with self.rows(x):
            rate = pyro.sample("rate", dist.Gamma(self.log_a.exp(), self.log_b.exp()))
            with pyro.plate("counts", x.shape[1], dim=-1):
                return pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(self, x):
        with self.rows(x):
            return pyro.sample("rate", self.posterior(x))

    def posterior(self, x):
        """p(rate | x), of batch shape ``(B, 1)``."""
        return dist.Gamma(self.log_a.exp() + x.sum(-1, keepdim=True), self.log_b.exp() + x.shape[1])

    def evidence(self, x):
        a, b, total = self.log_a.exp(), self.log_b.exp(), x.sum(-1)
        gammas = torch.lgamma(a + total) - torch.lgamma(a) - torch.lgamma(x + 1).sum(-1)
        return gammas + a * self.log_b - (a + total) * (b + x.shape[1]).log()

    def sample(self, num):
        return (self.drawn(self.log_a.new_zeros(num, self.counts))["x"],)


class StateSpace(Exact):
    """z_0 ~ N(0, p), z_t ~ N(a z_(t-1), q), x_t ~ N(c z_t + d, r), T steps; rows are padded behind ``lengths``."""

    def __init__(self, steps=4):
        super().__init__(a=0.8, c=1.2, d=0.3, log_p=math.log(1.5), log_q=math.log(0.6), log_r=math.log(0.5))
        self.steps = steps

    def model(self, x, lengths):
        with self.rows(x):
            z = torch.zeros(()).to(x)
            for t in range(x.shape[1]):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(self.a * z, self.noise(t).sqrt()))
                    pyro.sample(f"x_{t}", dist.Normal(self.c * z + self.d, (0.5 * self.log_r).exp()), obs=x[:, t])

    def guide(self, x, lengths):
        facts = self.backwards(x, lengths)
        with self.rows(x):
            z = torch.zeros(()).to(x)
            for t, (precision, shift) in enumerate(facts):
                total = 1 / self.noise(t) + precision
                mean = (self.a * z / self.noise(t) + shift) / total
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(mean, total.rsqrt()))

    def noise(self, t):
        return (self.log_q if t else self.log_p).exp()

    def backwards(self, x, lengths):
        """What x_t and all after it say of each z_t: log p(x_t, ... | z_t) = -J z^2 / 2 + h z + constant."""
        facts, precision, shift = [], torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        for t in reversed(range(x.shape[1])):
            seen = t < lengths
            precision = precision + torch.where(seen, self.c**2 / self.log_r.exp(), 0.0)
            shift = shift + torch.where(seen, self.c * (x[:, t] - self.d) / self.log_r.exp(), 0.0)
            facts.insert(0, (precision, shift))
            loss = 1 + self.noise(t) * precision
            precision, shift = self.a**2 * precision / loss, self.a * shift / loss
        return facts

    def evidence(self, x, lengths):
        """By a Kalman filter."""
        mean, variance, log_p = torch.zeros_like(x[:, 0]), self.noise(0) * torch.ones_like(x[:, 0]), 0.0
        for t in range(x.shape[1]):
            spread = self.c**2 * variance + self.log_r.exp()
            off = x[:, t] - self.c * mean - self.d
            log_p = log_p + torch.where(t < lengths, dist.Normal(0.0, spread.sqrt()).log_prob(off), 0.0)
            gain = self.c * variance / spread
            mean, variance = self.a * (mean + gain * off), self.a**2 * variance * (1 - gain * self.c) + self.noise(1)
        return log_p

    def sample(self, num):
        lengths = torch.arange(num) % self.steps + 1
        draws = self.drawn(self.a.new_zeros(num, self.steps), lengths)
        x = torch.stack([draws[f"x_{t}"] for t in range(self.steps)], -1)
        return torch.where(torch.arange(self.steps) < lengths.unsqueeze(-1), x, 0.0), lengths


class Pair(Exact):
    """r ~ LogNormal(0, 1/2), z | r ~ N(log r + m, 1), x | z ~ N(z, 1/2): a positive latent and a real one."""

    def __init__(self):
        super().__init__(m=0.4)

    def model(self, x):
        with self.rows(x):
            r = pyro.sample("r", dist.LogNormal(torch.zeros(()).to(x), 0.5))
            z = pyro.sample("z", dist.Normal(r.log() + self.m, 1.0))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        with self.rows(x):
            r = pyro.sample("r", dist.LogNormal((x - self.m) / 6, math.sqrt(0.25 - 0.25**2 / 1.5)))
            pyro.sample("z", dist.Normal((r.log() + self.m + 4 * x) / 5, math.sqrt(0.2)))

    def evidence(self, x):
        return dist.Normal(self.m, math.sqrt(1.5)).log_prob(x)

    def sample(self, num):
        return (self.drawn(self.m.new_zeros(num))["x"],)


PROGRAMS = {
    "bottom-up": lambda: TwoLayers("bottom-up"),
    "top-down": lambda: TwoLayers("top-down"),
    "covariate": Covariate,
    "classes": Classes,
    "partly-labelled": PartlyLabelled,
    "bits": Bits,
    "gamma": GammaPlate,
    "state-space": StateSpace,
    "pair": Pair,
}
