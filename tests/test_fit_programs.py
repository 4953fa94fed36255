"""`fit`, `load` and `resume` of any program: several arguments, scaled plates, classes that are summed out."""

import math
from functools import partial
from itertools import cycle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from pyro import poutine
from torch import nn

from pyro_vae import VAE, checkpoint, data, fit, load, objectives
from pyro_vae.networks import MLP
from pyro_vae.train import loop, running

N, D = 200, 3
quick = partial(fit, epochs=2, batch_size=64, lr=1e-2, progress=False)


def numbers(count=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(count, D, generator=generator),
        "y": torch.randn(count, 2, generator=generator),
    }


class Covariate(nn.Module):
    """z ~ N(0, 1), x ~ N(a z + B y, 1): the guide's family holds the exact posterior."""

    def __init__(self, size=D, given=2):
        super().__init__()
        self.size, self.given = size, given
        self.weight = nn.Parameter(torch.linspace(0.5, 1.0, size))
        self.of_y = nn.Linear(given, size)
        self.encoder = nn.Linear(size + given, 2)

    def model(self, x, y):
        pyro.module("covariate", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z.unsqueeze(-1) * self.weight + self.of_y(y)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x, y):
        pyro.module("covariate", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(torch.cat([x, y], -1)).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


class Mixture(nn.Module):
    """A class that the guide draws, marked to be summed out; labels are known for some, and -1 for others."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes
        self.loc = nn.Parameter(torch.randn(classes, D, generator=torch.Generator().manual_seed(1)))
        self.logits = nn.Linear(D, classes)

    def model(self, x, y):
        pyro.module("mixture", self)
        with pyro.plate("data", len(x)):
            distribution = dist.Categorical(torch.ones(self.classes) / self.classes)
            k = pyro.sample("k", distribution, obs=y.clamp(min=0), obs_mask=y >= 0, infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.loc[k], 1.0).to_event(1), obs=x)

    def guide(self, x, y):
        pyro.module("mixture", self)
        with pyro.plate("data", len(x)), poutine.mask(mask=y < 0):
            pyro.sample("k_unobserved", dist.Categorical(logits=self.logits(x)), infer={"enumerate": "parallel"})


class Marked(nn.Module):
    """A mixture whose class is in the model alone, and whose loss is therefore exact."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([[-1.0] * D, [1.0] * D]))

    def model(self, x):
        pyro.module("marked", self)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.25, 0.75])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.loc[k], 1.0).to_event(1), obs=x)

    def guide(self, x):
        pass

    def log_evidence(self, x):
        parts = dist.Normal(self.loc, 1.0).to_event(1).log_prob(x.unsqueeze(1)) + torch.tensor([0.25, 0.75]).log()
        return parts.logsumexp(-1)


class Scaled(nn.Module):
    """A plate of so many data, of which a batch is a sample; or poutine.scale; or neither."""

    def __init__(self, total=None, factor=1.0):
        super().__init__()
        self.total, self.factor = total, factor
        self.loc = nn.Parameter(torch.zeros(D))
        self.encoder = nn.Linear(D, 2)

    def plate(self, x):
        return pyro.plate("data", self.total or len(x), subsample=torch.arange(len(x)))

    def model(self, x):
        pyro.module("scaled", self)
        with poutine.scale(scale=self.factor), self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.loc + z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("scaled", self)
        with poutine.scale(scale=self.factor), self.plate(x):
            loc, log_scale = self.encoder(x).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


class Global(Scaled):
    """A mean of all data with a prior: q is its exact posterior's family."""

    def __init__(self, total=None, factor=1.0):
        super().__init__(total, factor)
        self.mean, self.log_scale = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))

    def model(self, x):
        pyro.module("global", self)
        mu = pyro.sample("mu", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with self.plate(x):
            pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("global", self)
        pyro.sample("mu", dist.Normal(self.mean, self.log_scale.exp()).to_event(1))


def labels():
    found = torch.arange(N) % 3
    found[::2] = -1
    return found


CASES = {
    "two arguments": (Covariate, numbers, objectives.ELBO),
    "two arguments, IWAE": (Covariate, numbers, partial(objectives.IWAE, 3)),
    "a class, labels for some": (Mixture, lambda: {"x": numbers()["x"], "y": labels()}, objectives.ELBO),
    "a class in the model alone": (Marked, lambda: {"x": numbers()["x"]}, partial(objectives.IWAE, 2)),
    "a scaled plate": (partial(Scaled, 160), lambda: {"x": numbers()["x"]}, objectives.ELBO),
}


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind()


class Killed(BaseException):
    """As by SIGKILL."""


@pytest.mark.parametrize(
    ("kind", "columns", "objective", "compile"),
    [(*case, compile) for case, compile in zip(CASES.values(), cycle(["graph", "off"]), strict=False)],
    ids=CASES,
)
def test_a_program_trains_goes_on_and_loads_to_the_last_bit(kind, columns, objective, compile, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "SECONDS", 0.0)
    monkeypatch.setattr(running, "SHARE", 1e9)
    run = partial(quick, compile=compile)
    whole = made(kind)
    history = run(whole, columns(), objective(), run_dir=tmp_path / "whole")
    assert history["valid"][-1] < history["valid"][0] or kind is not Covariate
    real, steps = loop.Training._step, iter(range(100))
    with monkeypatch.context() as patch:

        def step(self, rows):
            if next(steps) == 4:
                raise Killed
            return real(self, rows)

        patch.setattr(loop.Training, "_step", step)
        with pytest.raises(Killed):
            run(made(kind), columns(), objective(), run_dir=tmp_path / "run")
    run(made(kind), columns(), objective(), resume=tmp_path / "run")
    for name in ("metrics.csv", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    mine = made(kind)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.zero_()
    found, config = load(tmp_path / "run", program=mine)
    again, _ = load(tmp_path / "run", trust=[__name__])
    assert found is mine
    assert not found.training
    assert config["epochs"] == 2
    for program in (found, again):
        assert type(program) is type(whole)
        for name, tensor in program.state_dict().items():
            assert tensor.equal(whole.state_dict()[name])


def test_the_config_names_the_program_and_its_arguments(tmp_path):
    quick(made(partial(Covariate, D, given=2)), numbers(), epochs=1, run_dir=tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["program"] == {"class_path": f"{__name__}.Covariate", "init_args": {"size": D, "given": 2}}
    with pytest.raises(ValueError, match=r"Covariate', whose import would run its code.*trust="):
        load(tmp_path / "run")


def test_a_program_that_keeps_no_argument_is_loaded_into_one(tmp_path):
    class Forgets(Scaled):
        def __init__(self, amount):
            super().__init__()

    quick(Forgets(3), numbers()["x"], epochs=1, run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"load\(run, program=mine\)"):
        load(tmp_path / "run", trust=[__name__])
    load(tmp_path / "run", program=Forgets(3))
    with pytest.raises(ValueError, match="'loc' is of shape"):
        load(tmp_path / "run", program=Marked())


class Sub(VAE):
    """A subclass that is built of parts."""

    def model(self, x):
        return super().model(x)


class Conditioned(VAE):
    """A label in the decoder of a VAE."""

    def model(self, x, y):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decoder(z + y.unsqueeze(-1)), obs=x)

    def guide(self, x, y):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))


@pytest.mark.parametrize(("kind", "columns"), [(Sub, ["x"]), (Conditioned, ["x", "y"])])
def test_a_subclass_of_parts_comes_back_as_itself(kind, columns, tmp_path):
    vae = made(lambda: kind.build((D,), latent=2, network=partial(MLP, hidden=(8,))))
    given = {"x": numbers()["x"], "y": (torch.arange(N) % 2).float()}
    quick(vae, {name: given[name] for name in columns}, run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="whose import would run its code"):
        load(tmp_path / "run")
    found, config = load(tmp_path / "run", trust=[__name__])
    assert type(found) is kind
    assert config["program"] == {"class_path": f"{__name__}.{kind.__name__}"}
    x = numbers()["x"]
    assert found.reconstruct(x).equal(vae.reconstruct(x))


def test_what_is_summed_out_is_exact():
    """The loss is minus the evidence, whatever is drawn: both numbers of the last epoch are those of its weights."""
    x, program = numbers()["x"], Marked()
    dataset = data.from_columns({"x": x})
    history = quick(program, dataset, lr=1e-9)
    for name, split in (("train", dataset.train), ("valid", dataset.valid)):
        expected = -program.log_evidence(split[:]).mean().item()
        assert history[name][-1] == pytest.approx(expected, rel=1e-5)


def test_labels_reach_the_program_as_they_are():
    seen = []

    class Sees(Mixture):
        def model(self, x, y):
            seen.append(y)
            super().model(x, y)

    dataset = data.from_columns({"x": numbers()["x"], "y": labels()})
    quick(Sees(), dataset, compile="off", epochs=1)
    assert {y.dtype for y in seen} == {torch.int64}
    assert {*torch.cat(seen).tolist()} == {-1, 0, 1, 2}


class TestNatsPerDatum:
    @pytest.mark.parametrize(
        "options", [{"total": 160}, {"total": 1000}, {"factor": 7.0}, {"total": 160, "factor": 0.1}]
    )
    def test_whatever_the_scale(self, options):
        """The first epoch at a rate of next to nothing has the same draws, and so the same numbers."""
        x = numbers()["x"]
        plain, scaled = (quick(made(partial(Scaled, **o)), x, lr=1e-9) for o in ({}, options))
        for name in ("train", "train_at_beta_1", "valid", "valid_reconstruction", "valid_kl"):
            assert scaled[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-4)

    def test_a_global_latent_of_a_scaled_plate(self):
        """At the exact posterior minus the ELBO is minus the evidence of all data, by datum."""
        x = numbers()["x"]
        dataset = data.from_columns({"x": x}, valid=0)
        train = dataset.train[:]
        program, count = Global(len(train)), len(train)
        with torch.no_grad():
            program.mean.copy_(train.sum(0) / (count + 1))
            program.log_scale.fill_(-0.5 * math.log(count + 1))
        covariance = torch.eye(count, dtype=torch.float64) + 1.0
        evidence = dist.MultivariateNormal(torch.zeros(count, dtype=torch.float64), covariance)
        expected = -evidence.log_prob(train.double().T).sum().item() / count
        history = quick(program, dataset, lr=1e-9, epochs=20)
        # A mean over 20 x 3 draws of mu, one for each batch: in error by some 0.005 nats.
        assert sum(history["train"]) / 20 == pytest.approx(expected, abs=0.05)

    def test_a_global_latent_of_a_plate_that_is_not_is_said_once(self):
        with pytest.warns(
            UserWarning, match=r"'mu' is outside .* 2.5 times too much. Write pyro.plate\('data', 160"
        ) as said:
            quick(Global(), numbers()["x"])
        assert len(said) == 1
        quick(Global(), numbers()["x"], batch_size=160)  # each step takes them all

    def test_a_program_without_a_plate(self):
        class Bare(Scaled):
            def model(self, x):
                pyro.module("bare", self)
                pyro.sample("x", dist.Normal(self.loc, 1.0).expand([len(x), D]).to_event(2), obs=x)

            def guide(self, x):
                pass

        x = numbers()["x"]
        history = quick(Bare(), x, lr=1e-9, batch_size=160)
        train = data.from_columns({"x": x}).train[:]
        expected = (0.5 * train.square().sum(-1) + 1.5 * math.log(2 * math.pi)).mean().item()
        assert history["train"][0] == pytest.approx(expected, rel=1e-5)


class TestColumns:
    def test_floats_go_to_the_programs_dtype_and_splits_are_those_of_a_tensor(self):
        given = numbers()
        dataset = data.from_columns(given | {"y": given["y"].double()})
        assert dataset.train[:].equal(data.from_tensor(given["x"]).train[:])
        history = quick(Covariate(), dataset)
        assert len(history["train"]) == 2
        assert dataset.train.batch(slice(0, 3))[1].dtype == torch.float64

    def test_a_tuple_and_a_dictionary_in_any_order_are_the_same(self):
        given, runs = numbers(), []
        for columns in (given, {"y": given["y"], "x": given["x"]}, (given["x"], given["y"])):
            runs.append(quick(made(Covariate), columns)["train"])
        assert runs[0] == runs[1] == runs[2]

    def test_whole_numbers_and_axes_stay_as_they_are(self):
        x = torch.randint(0, 200, (50, 4, 3), dtype=torch.uint8)
        assert data.from_columns({"x": x}).train[:].dtype == torch.uint8
        assert data.from_columns({"x": x.float()}).train[:].shape == (40, 4, 3)

    def test_what_is_missing_of_any_column_is_left_out(self):
        given = numbers()
        given["x"][::7, 0] = torch.nan
        history = quick(Filled(), given)
        assert all(map(math.isfinite, history["train"] + history["valid"]))

    def test_a_npz_names_them(self, tmp_path):
        given = numbers() | {"other": torch.zeros(3)}
        np.savez(tmp_path / "data.npz", **{name: column.numpy() for name, column in given.items()})
        dataset = data.load(str(tmp_path / "data.npz"))
        assert dataset.train.extra.keys() == {"y"}
        assert quick(made(Covariate), dataset)["train"] == quick(made(Covariate), numbers())["train"]

    def test_labels_serve_y(self):
        digits = data.load("digits")
        assert [name for name in digits.train.columns] == ["y", "labels"]
        x, y = digits.train.with_columns(["y"]).batch(torch.tensor([3, 1]))
        assert y.equal(digits.train.labels[[3, 1]])
        assert x.equal(digits.train[torch.tensor([3, 1])])

    @pytest.mark.parametrize(
        ("columns", "got"),
        [
            ({"x": numbers()["x"]}, "x, y; got x"),
            (numbers() | {"w": torch.zeros(N)}, "x, y; got x, y, w"),
            ({"y": numbers()["y"]}, "x, y; got y"),
            ((numbers()["x"],), "x, y; got x"),
            ((numbers()["x"],) * 3, "x, y; got x, y, argument 3"),
            (numbers()["x"], "x, y; got x"),
            ({}, "x, y; got "),
        ],
    )
    def test_other_names_get_a_sentence(self, columns, got):
        with pytest.raises(ValueError, match=f"Expected data by the names of the model's arguments, {got}"):
            quick(Covariate(), columns)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"x": torch.zeros(5), "y": torch.zeros(4)}, r"rows, at least 3; got x \(5,\), y \(4,\)"),
            ({"x": torch.zeros(2)}, r"at least 3; got x \(2,\)"),
            ({"x": torch.zeros(5), "y": torch.full((5,), torch.inf)}, "Expected finite real numbers, .* in 'y'"),
            ({"x": torch.full((5,), torch.nan)}, "Expected numbers in 'x'; got only NaN"),
        ],
    )
    def test_columns_that_are_none_get_a_sentence(self, columns, message):
        with pytest.raises(ValueError, match=message):
            data.from_columns(columns)

    def test_what_is_no_program_gets_a_sentence(self):
        with pytest.raises(ValueError, match="nn.Module with methods model and guide; Linear has no model"):
            quick(nn.Linear(2, 2), numbers()["x"])


class Filled(Covariate):
    """A guide that fills in what is missing."""

    def guide(self, x, y):
        super().guide(x.nan_to_num(), y)


def test_an_attribute_of_a_hooks_name_is_no_hook():
    class Starts(Scaled):
        def __init__(self):
            super().__init__()
            self.start = nn.Parameter(torch.zeros(2))

    assert len(quick(Starts(), numbers()["x"])["train"]) == 2


class Keeps(objectives.ELBO):
    """Hands on what it is given."""

    def __init__(self, strength=1.0, **options):
        super().__init__(**options)
        self.strength = strength


class Drops(objectives.ELBO):
    """Keeps its argument under another name."""

    def __init__(self, strength=1.0):
        super().__init__()
        self._strength = strength


class TestDescribe:
    def test_arguments_that_are_handed_on_are_written_down(self):
        described = checkpoint.to_spec(Keeps(2.0, num_particles=3))
        assert described["init_args"].items() >= {"strength": 2.0, "num_particles": 3, "kl": "auto"}.items()
        again = checkpoint.objective_from_spec(described, [__name__])
        assert (again.strength, again.num_particles) == (2.0, 3)

    def test_one_that_is_not_kept_gets_a_sentence(self, tmp_path):
        with pytest.raises(ValueError, match="Drops to keep its argument 'strength' as an attribute"):
            quick(Scaled(), numbers()["x"], Drops(5.0), run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()
        quick(Scaled(), numbers()["x"], Drops(5.0))  # nothing is written, and so nothing lost

    def test_pyros_own_are_described(self):
        assert checkpoint.to_spec(pyro.infer.Trace_ELBO())["init_args"]["num_particles"] == 1
