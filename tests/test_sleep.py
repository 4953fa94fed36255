"""The guide trained on what the model draws: the model stays, the guide comes to the posterior."""

import os
import re
import signal
from copy import deepcopy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import VAE, evaluate, fit, load, networks, posterior, priors, programs
from pyro_vae.compiled import CompiledSVI
from pyro_vae.oracle import LinearGaussian

MODEL = LinearGaussian(torch.tensor([[0.9, 0.3], [0.4, 0.8], [-0.5, 0.6]]), torch.tensor([0.5, 0.0, -1.0]), scale=0.7)
NETWORK = partial(networks.MLP, hidden=(16,))


def off():
    """The model with a guide whose means are off, by the same for each x and by some of each x."""
    vae = MODEL.vae()
    with torch.no_grad():
        vae.encoder.network.weight.mul_(1.5)
        vae.encoder.network.bias.add_(0.5)
    return vae


@pytest.fixture(params=[False, True], ids=["drawn", "with data"])
def data(request):
    return MODEL(torch.randn(40, 2)).sample() if request.param else None


def test_the_guide_comes_to_the_posterior_and_the_model_stays(data):
    """KL from the exact posterior, of 20 other data: from tenths of a nat to thousandths."""
    vae, x = off(), MODEL(torch.randn(20, 2)).sample()
    exact = MODEL.posterior(x)
    model = {name: value.clone() for name, value in vae.state_dict().items() if "encoder" not in name}
    before = kl_divergence(vae.encoder(x), exact).mean().item()
    slept = posterior.sleep(vae, 300, data, 64, lr=0.03, seed=0)
    after = kl_divergence(vae.encoder(x), exact).mean().item()
    assert before > 0.1 > 0.01 > after
    assert slept.after - slept.before > 0.1
    assert all(torch.equal(value, model[name]) for name, value in vae.state_dict().items() if name in model)
    assert all(parameter.requires_grad for parameter in vae.parameters())


def test_the_elbo_before_is_that_of_the_data():
    vae, x = off(), MODEL(torch.randn(500, 2)).sample()
    slept = posterior.sleep(vae, 1, x, lr=1e-9)
    expected = evaluate.elbo(evaluate.log_weights(off(), x, 100)).mean().item()
    assert slept.before == pytest.approx(expected, abs=0.1)
    assert slept.after == pytest.approx(slept.before, abs=1e-4)


def test_a_seed_draws_the_same_and_torchs_state_stays():
    guides = [off() for _ in range(3)]
    state = torch.get_rng_state()
    for vae, seed in zip(guides, (1, 1, 2), strict=True):
        posterior.sleep(vae, 5, lr=0.01, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = (vae.encoder.network.bias for vae in guides)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


PROGRAMS = {
    "HierarchicalVAE": (lambda: programs.HierarchicalVAE.build((4,), (3, 2), network=NETWORK), ()),
    "ConditionalVAE": (lambda: programs.ConditionalVAE.build((4,), 2, 3, network=NETWORK), (torch.arange(9) % 3,)),
    "SemiSupervisedVAE": (
        lambda: programs.SemiSupervisedVAE.build((4,), 2, 3, network=NETWORK),
        (torch.full((9,), -1),),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_of_other_programs_too(name):
    """An untrained guide: the ELBO of data rises, and the model stays."""
    build, others = PROGRAMS[name]
    program = build()
    with torch.no_grad():
        for part, value in program.named_parameters():
            value.add_(0.3 * torch.randn_like(value)) if "encoder" in part else None
    model = {part: value.clone() for part, value in program.state_dict().items() if not re.match("encoder|class", part)}
    x = program.blank(9) if hasattr(program, "blank") else torch.randn(9, 4)
    slept = posterior.sleep(program, 100, (x, *others), 32, lr=0.03, seed=0)
    assert slept.after > slept.before
    assert all(torch.equal(program.state_dict()[part], value) for part, value in model.items())
    assert model


class Own(nn.Module):
    """Model and guide each have a layer ``net``; Pyro's store has a parameter of the model, and is shown no module."""

    def __init__(self):
        super().__init__()
        self.net, self.encoder = nn.Linear(1, 1), nn.ModuleDict({"net": nn.Linear(1, 1)})

    def model(self, x):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(self.net(z[..., None])[..., 0], scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder["net"](x[..., None])[..., 0], 1.0))


@pytest.mark.usefixtures("param_store")
def test_no_parameter_of_the_model_is_trained_wherever_it_is():
    program, x = Own(), torch.randn(20)
    program.model(x)
    scale = pyro.param("scale").item()
    before = {name: parameter.clone() for name, parameter in program.named_parameters()}
    posterior.sleep(program, 5, x, lr=0.1)
    assert pyro.param("scale").item() == scale
    moved = [name for name, parameter in program.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved == ["encoder.net.weight", "encoder.net.bias"]
    assert all(parameter.grad is None for parameter in program.parameters())


def test_where_it_diverges_the_guide_is_as_before():
    vae = off()
    before = vae.encoder.network.bias.clone()
    with pytest.warns(UserWarning, match="finite ELBO after the sleep; got .*smaller lr"):
        slept = posterior.sleep(vae, 40, lr=1e30, seed=0)
    assert torch.equal(vae.encoder.network.bias, before)
    assert slept.after == slept.before


class Shared(nn.Module):
    """A guide and a model with one parameter between them."""

    def __init__(self, own):
        super().__init__()
        self.shared, self.own = nn.Parameter(torch.zeros(())), own

    def model(self, x):
        pyro.module("shared", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.shared, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + (0.0 if self.own else self.shared), 1.0))


@pytest.mark.parametrize(
    ("program", "settings", "message"),
    [
        (lambda: Shared(False), {}, "shares no parameter with the model, .* both have 'shared'"),
        (lambda: Shared(True), {}, "a guide whose density depends on parameters .* on none"),
        (
            lambda: VAE.build((3,), 2, prior=priors.VampPrior, network=NETWORK),
            {},
            "both have .*VampPrior",
        ),
        (off, {"steps": 0}, "steps of at least 1; got 0"),
        (off, {"batch_size": 0}, "batch_size of at least 1; got 0"),
        (off, {"lr": 0.0}, "a positive lr; got 0.0"),
    ],
)
def test_what_is_wrong_is_said(program, settings, message):
    program = program()
    x = torch.randn(6) if isinstance(program, Shared) else torch.randn(6, 3)
    with pytest.raises(ValueError, match=message):
        posterior.sleep(program, **{"data": x, "steps": 2} | settings)


class TestFit:
    SETTINGS = {"epochs": 2, "batch_size": 32, "progress": False, "compile": "off"}

    def test_sleeps_after_the_last_epoch(self):
        x = MODEL(torch.randn(80, 2)).sample()
        slept, plain = MODEL.vae("mean-field"), MODEL.vae("mean-field")
        history = fit(slept, x, sleep=20, **self.SETTINGS)
        assert fit(plain, x, **self.SETTINGS)["train"] == history["train"]
        assert torch.equal(plain.decoder.weight, slept.decoder.weight)
        assert not torch.equal(plain.encoder.network.bias, slept.encoder.network.bias)

    def test_stopped_in_its_sleep_it_goes_on_to_the_last_bit(self, tmp_path, monkeypatch):
        vae, x = VAE.build((4,), 2, network=NETWORK), torch.rand(80, 4)
        x[3, 1] = torch.nan
        settings = self.SETTINGS | {"sleep": 20, "epochs": 1}
        whole, part = tmp_path / "whole", tmp_path / "part"
        fit(deepcopy(vae), x, run_dir=whole, **settings)
        real, steps = CompiledSVI.apply, iter(range(100))

        def stopped(self, *args, **kwargs):
            if next(steps) == 10:  # 2 or 3 steps of training, and some of the sleep
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(CompiledSVI, "apply", stopped)
            with pytest.raises(KeyboardInterrupt, match="To resume: "):
                fit(deepcopy(vae), x, run_dir=part, **settings)
        assert (part / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
        fit(deepcopy(vae), x, resume=part, **settings)
        assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert load(part)[1]["sleep"] == 20

    def test_a_program_that_cannot_sleep_is_refused_before_it_is_trained(self):
        vae = VAE.build((3,), 2, prior=priors.VampPrior, network=NETWORK)
        before = deepcopy(vae.decoder.state_dict())
        with pytest.raises(ValueError, match="both have .*VampPrior"):
            fit(vae, torch.rand(80, 3), sleep=5, **self.SETTINGS)
        assert all(torch.equal(value, before[name]) for name, value in vae.decoder.state_dict().items())

    @pytest.mark.parametrize("sleep", [-1, 0.5, True])
    def test_it_is_a_number_of_steps(self, sleep):
        with pytest.raises(ValueError, match=f"Expected sleep to be a number of steps, 0 for none; got {sleep}"):
            fit(off(), torch.rand(8, 3), sleep=sleep, **self.SETTINGS)
