"""The second stage: a new prior on draws of a frozen guide; and the diffusion prior, against closed forms."""

import copy
import math
import re
import shutil
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import close_briefly
from pyro.infer import SVI
from test_priors import PRIORS

from pyro_vae import VAE, Posterior, data, fit, fit_prior, guides, load, networks, objectives, priors, programs
from pyro_vae.commands import run
from pyro_vae.oracle import LinearGaussian
from pyro_vae.priors import diffusion

SMALL = partial(networks.MLP, hidden=(16,))
CENTRES = torch.tensor([[1.2, 1.2], [-1.2, 1.2], [1.2, -1.2], [-1.2, -1.2]])
WITH_PARAMETERS = {name: prior for name, prior in PRIORS.items() if name != "StandardNormal"}


def mixture():
    """Four Gaussians in the plane."""
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(4)), dist.Normal(CENTRES, 0.3).to_event(1))


class TestDiffusion:
    def test_starts_as_the_standard_normal(self):
        z = torch.randn(9, 5)
        expected = dist.Normal(0.0, 1.0).expand([5]).to_event(1).log_prob(z)
        torch.testing.assert_close(priors.Diffusion(5)().log_prob(z), expected)

    def test_the_trace_is_that_of_the_jacobian(self):
        velocity = priors.Diffusion(3, hidden=(7, 5)).double().velocity
        with torch.no_grad():
            for parameter in velocity.parameters():
                parameter.normal_(std=0.4)
        z, sine = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
        v, trace = velocity.with_trace(z, sine)
        for row in range(6):
            jacobian = torch.autograd.functional.jacobian(lambda a: velocity(a, sine), z[row])
            torch.testing.assert_close(trace[row], jacobian.trace())
        torch.testing.assert_close(v, velocity(z, sine))

    def test_the_bound_of_a_gaussian_is_its_cross_entropy(self):
        """The best velocity for N(0, s^2 I) is linear in z, and the bound is then tight; 5 standard errors."""
        prior, scale = priors.Diffusion(3, least_noise=1e-3), 0.5

        def best(z, sine):
            cosine = (1 - sine.square()).clamp(min=0).sqrt()
            return z * cosine * sine * (1 - scale**2) / (sine.square() + (scale * cosine).square())

        prior.velocity.forward = best
        z = scale * torch.randn(200_000, 3)
        bound = prior().bound(z)
        expected = 1.5 * math.log(2 * math.pi * math.e * scale**2)
        assert abs(bound.mean() - expected) < 5 * bound.std() / len(z) ** 0.5 + 1e-3

    def test_the_guide_takes_noise_from_the_bound_and_leaves_its_mean(self):
        """5 standard errors of the difference, in value and in the gradient of a weight."""
        prior = priors.Diffusion(3, hidden=(16, 16))
        torch.nn.init.normal_(prior.velocity.outward.weight, std=0.3)
        q = dist.Normal(torch.tensor([1.0, -0.5, 0.0]), torch.tensor([0.1, 0.4, 1.0]))
        numbers = {}
        for name, guide in (("guide", q), ("draw", None)):
            batches = []
            for _ in range(60):
                prior.zero_grad()
                bound = prior().bound(q.sample((2000,)), guide).mean()
                bound.backward()
                batches.append(torch.stack([bound.detach(), prior.velocity.outward.weight.grad[0, 0]]))
            numbers[name] = torch.stack(batches)
        means, errors = ([f(batches, 0) for batches in numbers.values()] for f in (torch.mean, torch.std))
        assert (abs(means[0] - means[1]) < 5 * (errors[0] ** 2 + errors[1] ** 2).sqrt() / 60**0.5).all()
        assert errors[0][0] < 0.6 * errors[1][0]  # 0.4 measured

    def test_a_mixture_is_learned_and_its_density_is_right(self):
        """The issue's oracle: mass 1 within 1e-3, and draws of the truth within 0.05 nats of their own density."""
        prior = priors.Diffusion(2, hidden=(64, 64))
        optimizer = torch.optim.Adam(prior.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 1000)
        for _ in range(1000):
            optimizer.zero_grad()
            prior().bound(mixture().sample((256,))).mean().backward()
            optimizer.step()
            schedule.step()
        axis = torch.linspace(-4, 4, 121)
        grid = torch.cartesian_prod(axis, axis)
        z = mixture().sample((2000,))
        with torch.no_grad():
            mass = prior().log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
            shortfall = (mixture().log_prob(z) - prior().log_prob(z)).mean()
            samples = prior().sample((2000,))
        assert abs(mass - 1) < 1e-3
        assert -0.01 < shortfall < 0.05
        # Draws agree with the density: each mode has a quarter (5 standard errors), and the spread of the mode.
        nearest = torch.cdist(samples, CENTRES).argmin(1)
        assert (nearest.bincount(minlength=4) / 2000 - 0.25).abs().max() < 5 * (0.25 * 0.75 / 2000) ** 0.5 + 0.02
        assert abs((samples - CENTRES[nearest]).std() - 0.3) < 0.03

    def test_a_sample_and_its_density_agree(self):
        prior = priors.Diffusion(4, hidden=(16, 16), steps=24)
        torch.nn.init.normal_(prior.velocity.outward.weight, std=0.1)
        distribution = prior()
        z = distribution.sample((50,))
        of_sample, of_solver = distribution.log_prob(z), prior().log_prob(z)  # of the first's cache; anew
        torch.testing.assert_close(of_sample, of_solver, rtol=0, atol=2e-3)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"hidden": (8,)}, r"two layers with units, .*; got \[8\] and 16"),
            ({"hidden": (8, 0)}, r"got \[8, 0\]"),
            ({"steps": 0}, "got .* and 0"),
            ({"least_noise": 1.0}, "between 0 and 1; got 1.0"),
        ],
    )
    def test_a_bad_number_is_one_sentence(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            priors.Diffusion(4, **arguments)


def program_and_digits(kind="VAE", **arguments):
    """A program and digits, after two epochs."""
    digits = data.load("digits")
    build = VAE.build if kind == "VAE" else getattr(programs, kind).build
    with torch.random.fork_rng():
        torch.manual_seed(1)
        program = build(digits.event_shape, network=SMALL, **arguments)
    fit(program, digits, epochs=2, progress=False, compile="off")
    return program, digits


@pytest.mark.parametrize("prior", WITH_PARAMETERS.values(), ids=WITH_PARAMETERS)
def test_only_the_prior_changes(prior):
    program, digits = program_and_digits(latent=4)
    start = {name: value.clone() for name, value in program.state_dict().items()}
    history = fit_prior(program, digits, prior, epochs=6, lr=1e-2, lr_schedule="constant", progress=False)
    for name, value in program.state_dict().items():
        assert name.startswith("prior.") or torch.equal(value, start[name]), name
    assert min(history["valid"][1:]) < history["valid"][0]  # the exact density, at the same draws in each epoch
    assert all(parameter.requires_grad for parameter in program.parameters())
    assert "train_at_beta_1" not in history
    assert program.parts["prior"] is prior


def test_graph_and_plain_pyro_agree():
    runs = []
    for compile in ("graph", "off"):
        program, digits = program_and_digits(latent=4)
        runs.append(fit_prior(program, digits, WITH_PARAMETERS["Diffusion"], epochs=2, progress=False, compile=compile))
    assert runs[0]["train"] == pytest.approx(runs[1]["train"], rel=1e-4)


@pytest.mark.parametrize("guide", [guides.DiagonalNormal, guides.FullNormal])
def test_the_bound_takes_the_guides_distribution(guide, param_store, monkeypatch):
    """Of the elements of z."""
    calls = []
    monkeypatch.setattr(
        diffusion.DiffusionDistribution, "bound", lambda self, z, q: calls.append((z, q)) or z.square().sum(-1)
    )
    program, x = VAE.build((64,), latent=3, guide=guide, prior=priors.Diffusion, network=SMALL), torch.rand(5, 64)
    objectives.PriorCrossEntropy().loss(program.model, program.guide, x)
    ((z, q),) = calls
    assert z.shape[-2:] == (5, 3)
    assert isinstance(q, dist.Normal) == (guide is guides.DiagonalNormal)
    torch.testing.assert_close(q.mean.reshape(5, 3), program.encoder(x).mean.reshape(5, 3))


def test_the_cross_entropy_is_that_of_the_prior(param_store):
    """Without a bound, the loss of one batch is -log p(z) at the guide's draws."""
    program = VAE.build((64,), latent=3, prior=priors.Flow, network=SMALL)
    x, objective = torch.rand(20, 64), objectives.PriorCrossEntropy()
    state = torch.get_rng_state()
    loss = objective.loss(program.model, program.guide, x)
    torch.set_rng_state(state)
    z = pyro.poutine.trace(program.guide).get_trace(x).nodes["z"]["value"]
    assert loss == pytest.approx(-program.prior().log_prob(z).sum().item(), rel=1e-5)


def test_the_best_prior_is_the_aggregate_posterior():
    """A linear program with an exact guide: the aggregate posterior of standard data is N(0, I); 5 standard errors."""
    oracle = LinearGaussian(torch.randn(6, 2), torch.zeros(6), scale=0.5)
    program = oracle.vae()
    with torch.no_grad():
        x = program.generate(4000) + 0.5 * torch.randn(4000, 6)
    program.prior = Shifted()
    fit(
        program,
        data.from_columns({"x": x}, valid=0),
        objectives.PriorCrossEntropy(),
        epochs=20,
        lr=2e-2,
        lr_schedule="cosine",
        progress=False,
    )
    assert program.prior.loc.abs().max() < 5 / 4000**0.5
    assert (program.prior.log_scale.exp() - 1).abs().max() < 5 / (2 * 4000) ** 0.5


class Shifted(torch.nn.Module):
    """A Gaussian prior that starts off."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = (torch.nn.Parameter(torch.full((2,), value)) for value in (0.7, 0.4))

    def forward(self):
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


def test_the_log_joint_changes_by_the_log_prior_alone(param_store):
    """At any draw: the ELBO rises by as much as the cross-entropy falls."""
    program, digits = program_and_digits(latent=4, guide=guides.FullNormal)
    x, before = digits.test[:100], copy.deepcopy(program)
    fit_prior(program, digits, WITH_PARAMETERS["Flow, affine"], epochs=5, lr=3e-3, progress=False)
    old, new = Posterior.of(before, x), Posterior.of(program, x)
    with torch.no_grad():
        draws, log_q = old.propose(10)
        gain = new.log_joint(draws) - old.log_joint(draws)
        of_prior = program.prior().log_prob(draws["z"]) - before.prior().log_prob(draws["z"])
        torch.testing.assert_close(new.log_q(draws), log_q)
    torch.testing.assert_close(gain, of_prior, rtol=1e-3, atol=1e-3)
    assert gain.mean() > 0


PROGRAMS = {
    "ConditionalVAE": {"latent": 4, "prior": priors.StandardNormal},
    "HierarchicalVAE": {"latents": (5, 3)},
    "SemiSupervisedVAE": {"latent": 4},
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_any_program_has_a_second_stage(kind, tmp_path):
    program, digits = program_and_digits(kind, **PROGRAMS[kind])
    start = {name: value.clone() for name, value in program.state_dict().items() if not name.startswith("prior.")}
    fit_prior(program, digits, WITH_PARAMETERS["Flow, affine"], epochs=1, progress=False, run_dir=tmp_path / "run")
    assert all(torch.equal(program.state_dict()[name], value) for name, value in start.items())
    loaded, config = load(tmp_path / "run")
    assert config["objective"]["class_path"] == "pyro_vae.objectives.PriorCrossEntropy"
    assert {name: value.tolist() for name, value in loaded.state_dict().items()} == {
        name: value.tolist() for name, value in program.state_dict().items()
    }


def test_resumed_bit_for_bit(tmp_path):
    digits = data.load("digits")
    program, _ = program_and_digits(latent=4)
    other = copy.deepcopy(program)
    options = {"epochs": 3, "progress": False, "seed": 4}
    fit_prior(program, digits, WITH_PARAMETERS["Diffusion"], run_dir=tmp_path / "whole", **options)

    def stop(history):
        if len(history["train"]) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_prior(other, digits, WITH_PARAMETERS["Diffusion"], run_dir=tmp_path / "part", on_epoch=stop, **options)
    resumed, _ = load(tmp_path / "part", weights="last")
    fit(resumed, digits, objectives.PriorCrossEntropy(), resume=tmp_path / "part", **options)
    whole = program.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.state_dict().items())


def test_layers_outside_the_prior_stay_in_evaluation_mode():
    """Batch normalisation in the encoder keeps its statistics: the guide does not change."""

    class Normalised(networks.Network):
        def __init__(self, in_shape, out_shape):
            layers = [torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, math.prod(out_shape))]
            super().__init__(in_shape, out_shape, torch.nn.Sequential(*layers))

    program = VAE.build((1, 8, 8), latent=3, network=SMALL)
    program.encoder.network = Normalised((1, 8, 8), (2, 3))
    before = program.encoder.network.layers[1].running_mean.clone()
    fit_prior(program, data.load("digits"), WITH_PARAMETERS["Flow, affine"], epochs=1, progress=False)
    assert torch.equal(program.encoder.network.layers[1].running_mean, before)


def test_stock_svi_trains_the_prior_alone(param_store):
    program = VAE.build((64,), latent=3, prior=WITH_PARAMETERS["Diffusion"], network=SMALL)
    start = copy.deepcopy(program.state_dict())
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-2}), objectives.PriorCrossEntropy())
    svi.step(torch.rand(20, 64))
    moved = {name for name, value in program.state_dict().items() if not torch.equal(value, start[name])}
    assert moved
    assert all(name.startswith("prior.") for name in moved)


class TestBadInput:
    def test_a_prior_without_parameters(self):
        program, digits = program_and_digits(latent=4)
        with pytest.raises(ValueError, match="prior with parameters; StandardNormal has none"):
            fit_prior(program, digits, progress=False)

    def test_an_objective(self):
        program, digits = program_and_digits(latent=4)
        with pytest.raises(ValueError, match="fit_prior has its own"):
            fit_prior(program, digits, priors.Flow, objective=objectives.ELBO())

    def test_sleep(self):
        program, digits = program_and_digits(latent=4)
        with pytest.raises(ValueError, match="sleep = 0, since PriorCrossEntropy trains no guide; got 5"):
            fit_prior(program, digits, priors.Flow, sleep=5, progress=False)

    def test_a_program_without_a_prior(self):
        class Mine(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(()))

            def model(self, x):
                with pyro.plate("data", len(x)):
                    z = pyro.sample("z", dist.Normal(0.0, self.scale))
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

            def guide(self, x):
                with pyro.plate("data", len(x)):
                    pyro.sample("z", dist.Normal(x, self.scale))

        for prior, message in ((None, "Mine.prior is absent"), (priors.Flow, "method replace_prior")):
            with pytest.raises(ValueError, match=message):
                fit_prior(Mine(), torch.randn(20), prior, progress=False)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    words = "train --latent 3 --epochs 1 --network MLP --network.hidden [16] --run_dir first"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        close_briefly(patch)
        assert run(words.split()) == 0
    return folder / "first"


class TestCommand:
    @pytest.fixture
    def first(self, first_run, elsewhere, tmp_path):
        shutil.copytree(first_run, tmp_path / "first")
        return tmp_path

    def test_a_second_run_is_whole(self, first, capsys):
        words = "train --stage prior first --prior Diffusion --prior.hidden [16,16] --prior.steps 4 --epochs 1"
        assert run([*words.split(), "--run_dir", "second"]) == 0
        assert "the prior of first, on draws of its guide" in capsys.readouterr().out
        program, config = load("second")
        assert isinstance(program.prior, priors.Diffusion)
        assert config["prior"]["init_args"]["steps"] == 4
        assert run(["train", "--resume", "second", "--epochs", "2"]) == 0
        assert run(["generate", "second", "--num", "3"]) == 0

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--stage prior nothing --prior Flow", "there is nothing at 'nothing'"),
            ("--stage prior first", "prior with parameters; StandardNormal has none"),
            ("--objective PriorCrossEntropy --prior Flow", "--stage prior RUN for PriorCrossEntropy"),
            ("--stage guide first", "--stage to be 'prior'; got guide"),
            ("--stage prior first --prior Autoregressive", r"\(height, width, codes\), as a VQVAE passes"),
            ("--stage prior first --latent 4 --prior Flow", "latent"),
        ],
    )
    def test_bad_words_are_one_sentence(self, first, words, message, capsys):
        capsys.readouterr()
        assert run(["train", *words.split()]) == 2
        err = capsys.readouterr().err.strip()
        assert re.search(message, err), err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1
        assert {path.name for path in first.iterdir()} == {"first"}
