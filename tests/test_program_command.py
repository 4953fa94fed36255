"""The command on a program of the user's own: two arguments, its class by import path, its data as named arrays."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import close_briefly

from pyro_vae import checkpoint, data, evaluate, load
from pyro_vae.__main__ import main

SOURCE = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import VAE


class Mine(nn.Module):
    """x and how often it was seen, given y: two sites, one code."""

    def __init__(self, event_shape: tuple[int, ...], hidden: int, slope=0.5, inner: type = None):
        super().__init__()  # which keeps no argument
        (size,) = event_shape
        self.mean, self.slope = nn.Linear(1, size), slope
        self.net = nn.Sequential(nn.Linear(size + 1, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def model(self, x, y, count):
        pyro.module("mine", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            mean = self.mean(z) + self.slope * y.unsqueeze(-1)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)
            pyro.sample("count", dist.Poisson(z.squeeze(-1).exp()), obs=count)

    def guide(self, x, y, count):
        pyro.module("mine", self)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.net(torch.cat([x, y.unsqueeze(-1)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Grey(nn.Module):
    """Images, by name; no generate."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, 8, 8))

    def model(self, x):
        pyro.module("grey", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([x.shape[0]]))
            pyro.sample("x", dist.Normal(self.mean + z[..., None, None, None], 1.0).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x.mean((-1, -2, -3)), 1.0))


class Heir(VAE):
    """Made of parts."""


class NoGuide(Mine):
    guide = None


class NoModel(nn.Module):
    def guide(self, x):
        pass
'''


def write_files():
    Path("my_programs.py").write_text(SOURCE)
    g = np.random.default_rng(0)
    y, z = g.normal(size=(2, 60))
    x = np.stack([y + z, y - z, z], 1) + 0.5 * g.normal(size=(60, 3))
    count = g.poisson(np.exp(z))
    np.savez("data.npz", count=count, y=y, x=x)  # in no order
    np.savez("other.npz", x=x, w=y, count=count)


TRAIN = ["train", "--program", "my_programs.Mine", "--data", "data.npz", "--program.hidden", "4", "--epochs", "2"]
TRUST = ["--trust", "my_programs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the program, its data and a run, and the program's module forgotten in the end."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        close_briefly(patch)
        write_files()
        assert main([*TRAIN, "--run_dir", "run"]) == 0
    yield folder
    sys.modules.pop("my_programs", None)


@pytest.fixture
def here(folder, elsewhere, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def test_train_says_what_it_trains_and_closes_with_a_table(here, unrendered, capsys):
    assert main([*TRAIN, "--run_dir", "table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data.npz, not binarised: 48 train, 6 valid, 6 test rows of x, y, count; x is of 3"
    rows = [line.split()[0] for line in lines if line.startswith(("train ", "valid ", "test "))]
    assert rows == ["train", "valid", "test"]
    assert any("log p(x | y)" in line for line in lines)
    assert lines[-2:] == ["run:     table", "more:    pyro-vae evaluate table --trust my_programs"]
    assert {path.stem for path in Path("table/figures").iterdir()} == {"curves", "latent_space", "marginals"}
    assert Path("table/model.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()  # one seed


def test_the_run_says_how_the_program_is_made_though_it_keeps_no_argument(here):
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["columns"] == ["x", "y", "count"]
    assert config["program"] == {
        "class_path": "my_programs.Mine",
        "init_args": {"hidden": 4, "slope": 0.5, "inner": None, "event_shape": [3]},
    }
    assert not {"prior", "likelihood", "guide", "network", "latent"} & {*config}
    program, config = load("run", trust=["my_programs"])
    dataset = data.load(**checkpoint.arguments(data.load, config))
    with np.load("data.npz") as arrays:
        for name, column in zip(("x", "y", "count"), dataset.train.batch(slice(None)), strict=True):
            assert np.isin(column.numpy().ravel(), arrays[name].astype(np.float32)).all()
    assert evaluate.nll(program, dataset.test.batch(slice(None)), 10).isfinite().all()


def test_resume_goes_on_as_if_it_had_not_stopped(here, unrendered):
    assert main([*TRAIN, "--run_dir", "on"]) == 0
    assert main(["train", "--resume", "on", *TRUST, "--epochs", "3"]) == 0
    assert main([*TRAIN, "--run_dir", "through", "--epochs", "3"]) == 0
    assert Path("on/model.safetensors").read_bytes() == Path("through/model.safetensors").read_bytes()
    assert len([*csv.reader(Path("on/metrics.csv").read_text().splitlines())]) == 4


def test_evaluate_and_compare(here, unrendered, capsys):
    few = ["--num_particles", "25", "--images", "20"]
    assert main(["evaluate", "run", *few, "--chosen", "2", "--temperatures", "5", *TRUST]) == 0
    assert "(a line for each row) in run" in capsys.readouterr().out
    assert json.loads(Path("run/evaluation.json").read_text())["test -log p(x)"] > 0
    assert main([*TRAIN, "--run_dir", "more", "--program.slope", "1.0"]) == 0
    assert main(["report", "run", "more", *TRUST]) == 0
    assert "aside" not in Path("report.html").read_text()  # a note
    capsys.readouterr()
    assert main(["compare", "run", "more", "--num_particles", "5", *TRUST]) == 0
    shown = capsys.readouterr().out
    assert "Mine(hidden=4, slope=1, event_shape=[3])" in shown
    assert "prior" not in shown
    assert Path("comparison.png").is_file()


def test_generate_draws_every_observed_site_given_covariates_of_test_data(here, capsys):
    assert main(["generate", "run", "--num", "200", *TRUST]) == 0
    with np.load("run/figures/generated.npz") as found:
        drawn = dict(found)
    assert {name: array.shape for name, array in drawn.items()} == {"x": (200, 3), "count": (200,)}
    program, config = load("run", trust=["my_programs"])
    y = data.load(**checkpoint.arguments(data.load, config)).test.extra["y"]
    y = y[torch.arange(200) % len(y)].unsqueeze(-1).numpy()
    # x - slope y is of variance W^2 + 0.25 about the bias: each mean within 5 standard errors, 3 of them.
    error = np.sqrt((program.mean.weight.detach().numpy().ravel() ** 2 + 0.25) / 200)
    assert (np.abs((drawn["x"] - 0.5 * y).mean(0) - program.mean.bias.detach().numpy()) < 5 * error).all()
    assert main(["generate", "run", "--num", "2", "--output", "x.png", *TRUST]) == 2
    assert "end in .npz; got 'x.png'" in capsys.readouterr().err


def test_images_by_name_are_drawn_as_a_picture(here):
    train = ["train", "--program", "my_programs.Grey", "--epochs", "1", "--batch_size", "512", "--run_dir", "grey"]
    assert main(train) == 0
    assert main(["generate", "grey", "--num", "4", *TRUST]) == 0
    assert Path("grey/figures/generated.png").stat().st_size > 0
    assert main(["report", "grey", "--num_particles", "25", "--images", "20", *TRUST]) == 0
    page = Path("grey/report.html").read_text()
    assert "aside" not in page
    assert 'id="predictive"' in page


def test_a_file_of_options_and_a_vae_of_ones_own_with_parts(here, unrendered):
    options = {"program": "my_programs.Heir", "latent": 2, "network": {"class_path": "MLP"}, "epochs": 1}
    Path("options.yaml").write_text(yaml.safe_dump(options | {"batch_size": 512, "run_dir": "heir"}))
    assert main(["train", "--config", "options.yaml", "--network.hidden", "[8]"]) == 0
    program, config = load("heir", trust=["my_programs"])
    assert type(program).__name__ == "Heir"
    assert (config["latent"], config["network"]["init_args"]["hidden"]) == (2, [8])


def own(name, *words):
    return ["train", "--program", f"my_programs.{name}", *words]


BAD = {
    "no module": (["train", "--program", "no.Mine"], "got no.Mine, and there is no no.py here"),
    "no class": (own("Nine"), "Expected a class Nine in my_programs; it defines Mine, Grey, Heir, NoGuide, NoModel"),
    "no path": (
        ["train", "--program", "Theirs"],
        "Expected --program to be one of VAE, .*, or the import path .*; got Theirs",
    ),
    "no module of torch": (own("pyro"), "Expected --program to be .*; got my_programs.pyro"),
    "no model": (own("NoModel"), "Expected a program: .*my_programs.NoModel has no model"),
    "no guide": (own("NoGuide", "--program.hidden", "4", "--data", "data.npz"), "Expected a program: .* has no guide"),
    "other names": ([*TRAIN, "--data", "other.npz"], r"Mine.model, x, y, count; got x, w, count in 'other.npz'"),
    "other columns": ([*TRAIN, "--columns", "[x,q]"], "Expected numbers named q in 'data.npz'; got count, y, x"),
    "binarised columns": ([*TRAIN, "--columns", "[x]", "--counts", "true"], "got counts=True and columns=\\['x'\\]"),
    "no file": ([*TRAIN, "--data", "no.npz"], "there is nothing at 'no.npz'"),
    "unknown argument": ([*TRAIN, "--program.hiden", "3"], "Expected an argument of Mine; got --program.hiden"),
    "a wrong value": ([*TRAIN, "--program.hidden", "x"], "Expected --program.hidden to be int; got x"),
    "no value": (own("Mine", "--data", "data.npz"), "Expected --program.hidden, which .*Mine requires; got none"),
    "what it cannot use": ([*TRAIN, "--program.slope", "x"], "my_programs.py, line .*"),
    "a part": ([*TRAIN, "--latent", "3"], "Expected no --latent, a part of a VAE, with the program Mine"),
    "the usual part": ([*TRAIN, "--prior", "StandardNormal"], "Expected no --prior, a part of a VAE"),
    "no trust": (["evaluate", "run"], r"the run names 'my_programs.Mine', .*--trust my_programs"),
    "a run's options": (["train", "--config", "run/config.yaml"], r"the run names 'my_programs.Mine'"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_sentence(words, message, here, capsys):
    assert main(words) == 2
    shown = capsys.readouterr().err.strip().split("\n")[-1]  # after the bar, where there is one
    assert shown.startswith("pyro-vae")
    assert "Traceback" not in shown
    assert re.search(message, shown), shown
