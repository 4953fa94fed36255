"""What goes wrong in training: said once, in words that name it, and nothing lost."""

import json
import math
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, checkpoint, data, fit, likelihoods, objectives
from pyro_vae.__main__ import main
from pyro_vae.networks import MLP
from pyro_vae.train import NotFinite, running

DIGITS = data.load("digits")
BAD = 77  # which image of those below the likelihood cannot stand


def images(count=200):
    """Images of which one is known by its first pixel."""
    x = torch.rand(count, 6, generator=torch.Generator().manual_seed(0)) * 0.9
    x[BAD, 0] = 1.0
    return data.Dataset(
        *(data.Split(part) for part in (x, x[:20], x[:20])),
        support=torch.distributions.constraints.unit_interval,
        config=data.from_tensor(x).config,
    )


class Allergic(likelihoods.Gaussian):
    """A Gaussian whose log-density, or its gradient, is not finite where the first pixel is 1."""

    wrong = "loss"

    def distribution(self, loc):
        return Reacting(loc, self.log_scale.exp(), self.wrong)


class Reacting(dist.Normal):
    """Of the class attribute of the family."""

    def __init__(self, loc, scale, wrong):
        self.wrong = wrong
        super().__init__(loc, scale)

    def expand(self, batch_shape, _instance=None):
        return Reacting(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.wrong)

    def log_prob(self, value):
        found, hit = super().log_prob(value), (value == 1.0) & torch.is_grad_enabled()
        if self.wrong == "gradient":  # 0 at 0, where its slope is infinite
            return found + torch.where(hit, 0.0 * self.loc, 1.0).abs().sqrt() - 1
        return torch.where(hit, torch.inf, 0.0) * self.loc + found


class Sick(Allergic):
    """The gradient alone."""

    wrong = "gradient"


def build(likelihood=likelihoods.Gaussian, shape=(6,), **parts):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return VAE.build(shape, latent=2, likelihood=likelihood, network=partial(MLP, hidden=(8,)), **parts)


quick = partial(fit, epochs=3, batch_size=50, progress=False)


@pytest.mark.parametrize("compile", ["off", "graph"])
@pytest.mark.parametrize(
    "objective", [objectives.ELBO(), objectives.IWAE(3), pyro.infer.Trace_ELBO()], ids=lambda one: type(one).__name__
)
class TestStops:
    def test_with_step_batch_site_and_image(self, compile, objective, tmp_path):
        vae, dataset = build(Allergic), images()
        with pytest.raises(
            NotFinite, match=r"Training diverged in epoch 1, step \d+: expected a finite loss; got"
        ) as caught:
            quick(vae, dataset, objective, compile=compile, run_dir=tmp_path / "run")
        said, record = str(caught.value), caught.value.record
        assert "At p(x): loc in [" in said
        assert f"for 1 of the batch's 50 images, of dataset.train rows {BAD}. Try a smaller lr, --clip_norm" in said
        assert (record["epoch"], record["site"], record["at_fault"]) == (1, "p(x)", [BAD])
        assert len(record["rows"]) == 50
        assert BAD in record["rows"]
        assert json.loads((tmp_path / "run" / "diverged.json").read_text()) == record
        assert said.endswith(f"--resume {tmp_path / 'run'}.")

    def test_before_it_is_taken_in(self, compile, objective, tmp_path):
        """All that was trained is finite, in memory and in the last checkpoint."""
        vae = build(Allergic)
        with pytest.raises(NotFinite):
            quick(vae, images(), objective, compile=compile, run_dir=tmp_path / "run")
        state, _ = checkpoint.load_state(tmp_path / "run")
        assert all(tensor.isfinite().all() for tensor in (*vae.state_dict().values(), *state["vae"].values()))

    def test_at_a_gradient_that_is_not_finite(self, compile, objective):
        vae = build(Sick)
        with pytest.raises(
            NotFinite, match="expected a finite gradient, of a loss of .*; got one that is not"
        ) as caught:
            quick(vae, images(), objective, compile=compile)
        assert "The gradient of p(x)'s log density is not finite in decoder.network." in str(caught.value)
        assert BAD in caught.value.record["rows"]
        assert all(parameter.isfinite().all() for parameter in vae.parameters())

    def test_or_skips_the_batch_and_counts_it(self, compile, objective, tmp_path):
        """Of a loss, and of a gradient, that is not finite."""
        vae = build(Sick if isinstance(objective, objectives.IWAE) else Allergic)
        options = {"compile": compile, "on_nan": "skip", "run_dir": tmp_path / "run"}
        with pytest.warns(UserWarning, match="Skipped a batch: Training diverged in epoch 1, step") as found:
            history = quick(vae, images(), objective, **options)
        assert len(found) == 1
        assert history["skipped"] == [1.0] * 3
        assert all(map(math.isfinite, history["train"]))
        assert checkpoint.load_metrics(tmp_path / "run")["skipped"] == [1.0] * 3


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_weights_that_are_not_finite_before_the_first_step(compile):
    vae = build()
    torch.nn.init.constant_(next(vae.encoder.parameters()), math.nan)
    with pytest.raises(NotFinite, match=r"epoch 1, step 1: expected loc of a Normal to satisfy Real\(\). At q\(z\)"):
        quick(vae, images(), compile=compile)


def test_a_skipped_batch_is_in_no_mean():
    """The mean is over the images that were counted: a loss that is the same for all stays what it is."""

    class Constant(Allergic):
        def distribution(self, loc):
            return Reacting(0.0 * loc + 0.5, torch.ones_like(loc) * 1e3, "loss")

    with pytest.warns(UserWarning, match="Skipped a batch"):
        history = quick(build(Constant), images(), on_nan="skip", objective=objectives.ELBO(beta=0.0))
    expected = 6 * (math.log(1e3) + 0.5 * math.log(2 * math.pi))
    assert history["train"] == pytest.approx([expected] * 3, rel=1e-5)


def test_where_every_batch_would_be_skipped_it_stops():
    with pytest.warns(UserWarning, match="Skipped a batch"), pytest.raises(NotFinite, match="step 2"):
        quick(build(Allergic), _all_bad(), on_nan="skip", batch_size=100)


def _all_bad():
    found = images()
    found.train.pixels[:, 0] = 1.0
    return found


def test_a_buffer_does_not_keep_what_was_skipped():
    class Running(Allergic):
        def __init__(self, event):
            super().__init__(event)
            self.register_buffer("seen", torch.zeros(()))

        def distribution(self, loc):
            distribution = super().distribution(loc)
            if self.training and torch.is_grad_enabled():
                self.seen.add_(loc.detach().sum() * torch.where((loc == loc).all(), 1.0, torch.nan))
            return distribution

    vae = build(Running)
    with pytest.warns(UserWarning, match="Skipped a batch"):
        quick(vae, images(), on_nan="skip")
    assert vae.decoder.family.seen.isfinite()


@pytest.mark.filterwarnings("ignore:Skipped a batch")
def test_the_command_says_it_in_one_line_and_goes_on_where_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "train --epochs 2 --lr 1e25 --latent 2 --network.hidden [8] --run_dir run"
    assert main(words.split()) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("pyro-vae train: Training diverged in epoch 1, step ")
    assert "--on_nan skip" in said
    assert checkpoint.load_state(Path("run"))[0]["epochs"] == 0
    assert main(["train", "--resume", "run"]) == 2  # to the last bit
    assert main([*words.split()[:-1], "other", "--on-nan", "skip"]) == 2  # no batch is any good
    assert "Training diverged in epoch" in capsys.readouterr().err


class TestSaidOnce:
    @pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
    def test_that_nothing_is_trained(self):
        vae = build().requires_grad_(False)
        with pytest.warns(UserWarning, match="have none, so nothing is trained. Call module") as found:
            quick(vae, images())
        assert len([one for one in found if "so nothing is trained" in str(one.message)]) == 1

    def test_that_a_part_is_not_trained(self):
        class Half(VAE):
            def guide(self, x):
                with pyro.plate("data", x.shape[0], dim=-1):
                    return pyro.sample("z", self.encoder(x))

            def model(self, x):
                pyro.module("decoder", self.decoder)
                with pyro.plate("data", x.shape[0], dim=-1):
                    z = pyro.sample("z", self.prior())
                    return pyro.sample("x", self.decoder(z), obs=x)

        made = build()
        with pytest.warns(UserWarning, match=r"4 of the program's, as 'encoder.network.bias', are not") as found:
            quick(Half(made.prior, made.decoder, made.encoder), images())
        assert len(found) == 1

    def test_that_a_parameter_is_not_saved(self):
        class Loose(VAE):
            def model(self, x):
                pyro.param("loose", torch.zeros(()))
                return super().model(x)

        made = build()
        with pytest.warns(UserWarning, match="Pyro's store has 'loose' too. Make it an nn.Parameter"):
            quick(Loose(made.prior, made.decoder, made.encoder), images())

    def test_that_the_kl_stays_at_zero(self):
        objective = objectives.ELBO(beta=1e4)
        with pytest.warns(UserWarning, match=r"The KL has been zero for 5 epochs \(.* nats\)") as found:
            history = fit(build(), images(), objective, epochs=40, lr=1e-2, lr_schedule="constant", progress=False)
        assert history["valid_kl"][-1] < 0.01
        assert len(found) == 1

    def test_that_the_likelihoods_scale_runs_to_zero(self):
        """Of images that are all but the same, whose density has no bound."""
        x = torch.full((100, 4), 0.5) + 1e-9
        x[:, 0] = torch.linspace(0, 9, 100)
        vae = build(partial(likelihoods.Gaussian, scale="per-pixel"), shape=(4,))
        with pytest.warns(UserWarning, match=r"scale tends to zero \(0.0\d+, where x spans \d.*\)") as found:
            fit(vae, x, epochs=100, lr=3e-2, lr_schedule="constant", progress=False)
        assert len(found) == 1

    def test_and_not_where_it_is_as_it_should_be(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quick(build(partial(likelihoods.Gaussian, scale=1e-3)), images())  # meant, since it was given
            quick(build(partial(likelihoods.Gaussian, scale="learned")), images())


def test_a_validation_elbo_that_is_not_finite_is_said_and_is_never_the_best():
    class Afar(likelihoods.Gaussian):
        def distribution(self, loc):
            far = torch.inf if not torch.is_grad_enabled() else 0.0
            return (
                dist.Normal(loc, self.log_scale.exp()) if far == 0 else Reacting(loc, torch.full_like(loc, 1e-30), "")
            )

    with pytest.warns(UserWarning, match="Expected a finite ELBO of the validation images"):
        history = quick(build(Afar), images(), patience=1, epochs=5)
    assert len(history["valid"]) == 1


def test_saving_takes_a_hundredth_of_the_time(tmp_path, monkeypatch):
    """By a clock that goes on by half a second at each look, so that to save takes as long."""
    clock, saves = iter(range(1000)), []
    monkeypatch.setattr(running.time, "monotonic", lambda: 0.5 * next(clock))
    training = SimpleNamespace(check_finite=lambda: None, state=dict, settings=SimpleNamespace(patience=None))
    made = running.Run(training, lambda: tmp_path, DIGITS)
    made.save()
    monkeypatch.setattr(running.Run, "save", lambda self: saves.append(1))
    for _ in range(99):
        made.save_if_due()
    assert not saves
    made.save_if_due()
    assert saves == [1]
