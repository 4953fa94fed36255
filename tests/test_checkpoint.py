import csv
import json
import math
import os
import secrets
import shutil
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from pyro_vae import VAE, checkpoint, data, fit, likelihoods, load, networks, priors
from pyro_vae.objectives import ELBO

DIGITS = data.load("digits")


class Mine(priors.StandardNormal):
    """A prior from outside the package."""


def build(**parts):
    return VAE.build((1, 8, 8), **({"latent": 3, "network": partial(networks.MLP, hidden=(16, 8))} | parts))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, made once."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vae = build(likelihood=partial(likelihoods.Gaussian, scale=0.3))
        history = fit(vae, DIGITS, ELBO(beta=2.0), epochs=2, run_dir=folder, progress=False)
    return folder, vae, history


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run directory, and the VAE that was trained into it."""
    folder, vae, history = trained
    return Path(shutil.copytree(folder, tmp_path / "run")), deepcopy(vae), deepcopy(history)


def test_a_run_directory_holds_what_it_says(run):
    folder, vae, history = run
    assert sorted(file.name for file in folder.iterdir()) == [
        "checkpoint",
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "model.safetensors",
        "seconds.csv",
    ]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"] == "digits"
    assert config["network"] == {"class_path": "pyro_vae.networks.MLP", "init_args": {"hidden": [16, 8]}}
    assert config["objective"]["class_path"] == "pyro_vae.objectives.ELBO"
    assert config["objective"]["init_args"].items() >= {"num_particles": 1, "kl": "auto", "beta": 2.0}.items()
    assert config["epochs"] == 2
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["valid"]) for row in rows] == history["valid"]


def test_load_gives_the_same_vae_back(run):
    folder, vae, _ = run
    found, config = load(folder)
    assert config["latent"] == 3
    x = DIGITS.test[:]
    assert (found.reconstruct(x) == vae.reconstruct(x)).all()
    assert found.decoder.family.log_scale == vae.decoder.family.log_scale


def test_metrics_come_back_to_the_last_bit(run):
    assert checkpoint.load_metrics(run[0]) == run[2]


def test_metrics_of_an_unfinished_run_are_those_that_there_are(tmp_path):
    assert checkpoint.load_metrics(tmp_path) == {}
    (tmp_path / "metrics.csv").write_text("epoch,valid\n")
    assert checkpoint.load_metrics(tmp_path) == {}


@pytest.mark.parametrize("text", ["epoch,valid\n1,x\n", "epoch,valid\n1,2\n2\n", "epoch\n1,2\n", ""])
def test_metrics_that_are_no_table_get_a_sentence(text, tmp_path):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match="Expected a table of numbers; could not read '.*metrics.csv'"):
        checkpoint.load_metrics(tmp_path)


def test_load_leaves_the_generator_alone(run):
    before = torch.get_rng_state()
    load(run[0])
    assert (torch.get_rng_state() == before).all()


def test_a_second_run_in_one_directory_is_refused_and_nothing_is_lost(run):
    folder, vae, _ = run
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a run already. Choose another --run_dir"):
        fit(vae, DIGITS, epochs=1, run_dir=folder, progress=False)
    assert (folder / "model.safetensors").read_bytes() == before


def test_interrupted_training_keeps_the_weights_so_far(tmp_path, monkeypatch):
    vae = build()
    steps = iter(range(100))
    model = vae.model

    def interrupted(x):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return model(x)

    monkeypatch.setattr(vae, "model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(vae, DIGITS, epochs=9, run_dir=tmp_path / "run", progress=False)
    assert load(tmp_path / "run")[0].generate(2).shape == (2, 1, 8, 8)


def test_a_class_of_ones_own_is_imported_only_if_trusted(tmp_path):
    fit(build(prior=Mine), DIGITS, epochs=1, run_dir=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"the run names '.*test_checkpoint.Mine', whose import would run its code"):
        load(tmp_path / "run")
    vae, _ = load(tmp_path / "run", trust=[Mine.__module__])
    assert isinstance(vae.prior, Mine)


def test_other_data_of_the_same_mean_are_not_the_runs(tmp_path):
    run, dataset = tmp_path / "run", data.from_tensor(torch.rand(60, 6), labels=torch.arange(60) % 3)
    fit(VAE.build((6,), 2), dataset, epochs=1, run_dir=run, progress=False)
    known = json.loads((run / "environment.json").read_text())["data"]
    assert [*known] == ["train", "valid", "test"]
    assert known == dataset.digests
    checkpoint.check_data(run, dataset.digests)
    turned = dataset.train.part(torch.arange(48).flip(0))
    for part in (replace(turned, labels=dataset.train.labels), replace(dataset.train, labels=turned.labels)):
        changed = replace(dataset, train=part)
        with pytest.raises(ValueError, match="its train data have changed since"):
            checkpoint.check_data(run, changed.digests)
        with pytest.raises(ValueError, match="its train data have changed since"):
            fit(VAE.build((6,), 2), changed, epochs=2, resume=run, progress=False)
    (run / "environment.json").write_text("{}")  # as of a run of before
    checkpoint.check_data(run, changed.digests)


def test_numbers_of_numpy_are_those_of_python(tmp_path):
    dataset, run = data.from_tensor(torch.rand(60, 6)), tmp_path / "run"
    parts = dict(
        likelihood=partial(likelihoods.Gaussian, scale=np.float32(0.5)),
        network=partial(networks.MLP, hidden=[np.int64(9)]),
    )
    objective, lr = ELBO(beta=np.float64(2)), np.logspace(-4, -3, 2)[1]
    vae = VAE.build(np.array([6]), np.int64(2), **parts)
    fit(vae, dataset, objective, epochs=np.int64(1), lr=lr, seed=np.uint8(3), run_dir=run, progress=False)
    loaded, config = load(run)
    assert all(map(torch.equal, loaded.parameters(), vae.parameters()))
    assert (config["epochs"], config["lr"], config["seed"], config["latent"]) == (1, 1e-3, 3, 2)
    assert config["objective"]["init_args"]["beta"] == 2.0
    assert config["network"]["init_args"]["hidden"] == [9]


class Tied(networks.Network):
    """One layer, used twice."""

    def __init__(self, in_shape, out_shape):
        one, size = nn.Linear(16, 16), math.prod(out_shape)
        ends = nn.Linear(math.prod(in_shape), 16), nn.Linear(16, size)
        super().__init__(in_shape, out_shape, nn.Sequential(nn.Flatten(), ends[0], one, nn.ReLU(), one, ends[1]))


def test_a_layer_used_twice_is_saved_and_stays_one(tmp_path):
    vae = VAE.build((6,), latent=2, network=Tied)
    fit(vae, data.from_tensor(torch.rand(60, 6)), epochs=1, run_dir=tmp_path / "run", progress=False)
    loaded, _ = load(tmp_path / "run", trust=[Tied.__module__])
    assert all(map(torch.equal, loaded.state_dict().values(), vae.state_dict().values()))
    assert len([*loaded.parameters()]) == len([*vae.parameters()])


CONFIG = {"data": "x.npy", "root": "data", "valid": None, "lr": 0.1}
OWN = ["metrics.csv", "figures/mine.png", "environment.json", "checkpoint/last.safetensors", "config.yaml"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def begun(folder, config=CONFIG, digests=None, **options):
    """A directory that is a run, without any training."""
    with checkpoint.lock_new(folder, **options):
        checkpoint.write_header(Path(folder), config, digests or {})


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_the_users_own_are_not_written_over(name, overwrite, here):
    own = Path("thesis", name)
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    with pytest.raises(ValueError, match=f"'thesis' is no run, and its '{name}' would be overwritten"):
        begun("thesis", overwrite=overwrite)
    assert [path for path in Path("thesis").rglob("*") if path.is_file()] == [own]
    assert own.read_text() == "{}"


def test_other_files_are_left_and_what_a_killed_overwrite_left_is_a_runs(here):
    Path("run/figures").mkdir(parents=True)
    Path("run/log.txt").write_text("mine")
    begun("run")
    Path("run/metrics.csv").write_text("epoch,valid\n")
    with pytest.raises(ValueError, match="holds a run already"):
        begun("run")
    Path("run/config.yaml").unlink()  # the first that an overwrite takes away
    with pytest.raises(KeyError), checkpoint.lock_new("run"):
        checkpoint.write_header(Path("run"), CONFIG, {}, save={}.popitem)  # which fails
    assert {*os.listdir("run")} == {"log.txt", "figures"}
    assert Path("run/log.txt").read_text() == "mine"


def test_a_file_is_written_anew_and_through_no_link(here, monkeypatch):
    Path("canary").write_text("alive")
    for name in ("file", ".file.new"):
        Path(name).symlink_to("canary")
    checkpoint.write(Path("file"), "new")
    assert Path("file").read_text() == "new"
    assert not Path("file").is_symlink()
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    Path(f".file.{'0' * 16}.new").symlink_to("canary")
    with pytest.raises(OSError, match="Could not write 'file' .File exists"):
        checkpoint.write(Path("file"), "guessed")
    assert Path("canary").read_text() == "alive"
    assert Path("file").stat().st_mode & 0o777 == Path("canary").stat().st_mode & 0o777


def test_what_a_killed_process_left_half_written_goes(here):
    Path("run/checkpoint").mkdir(parents=True)
    left = [Path("run", name, f".last.safetensors.{'a1' * 8}.new") for name in ("", "checkpoint")]
    for path in (*left, Path("run/.mine.new")):
        path.touch()
    with checkpoint.lock(Path("run")):
        assert [path.exists() for path in left] == [False, False]
    assert Path("run/.mine.new").exists()


def test_all_that_can_be_written_is(here):
    Path("run").mkdir()
    Path("run/figures").write_text("a file")
    with pytest.raises(OSError, match=r"Could not write figures/a, figures/b in 'run' .*File exists"):
        checkpoint.write_all(Path("run"), {"figures/a": b"", "figures/b": b"", "c": "text"})
    assert Path("run/c").read_text() == "text"


@pytest.mark.parametrize("name", ["environment.json", "metrics.csv", "checkpoint/best.safetensors"])
def test_a_pipe_in_a_run_is_not_waited_for(name, here):
    begun("run")
    path = Path("run", name)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert checkpoint.load_metrics("run") == {}
    assert checkpoint.load_environment("run").keys() <= {"config", "command"} or name != "environment.json"
    with pytest.raises(ValueError, match="there is no such file"):
        checkpoint.deserialize(path)


class TestData:
    """Where a run's data are, which was made in one folder and is asked for in another."""

    @pytest.fixture
    def made(self, here, tmp_path, monkeypatch):
        np.save("x.npy", np.random.default_rng(0).random((20, 4)))
        dataset = data.load("x.npy")
        begun("run", dataset.config | {"lr": 0.1}, dataset.digests)
        monkeypatch.chdir(tmp_path)
        return Path("here/run")

    def test_are_where_the_run_was_made(self, made):
        np.save("x.npy", np.zeros((20, 4)))  # another's
        dataset, options = checkpoint.data_of(made)
        assert dataset.config["data"] == "x.npy"
        assert options["data"] == str(Path("here/x.npy").absolute())
        assert len(dataset.train) == 16

    def test_or_here_if_they_are_the_same(self, made):
        Path("here/x.npy").rename("x.npy")
        assert checkpoint.data_of(made)[1]["data"] == str(Path("x.npy").absolute())
        np.save("x.npy", np.ones((20, 4)))
        with pytest.raises(
            ValueError, match=r"Expected the data that 'here/run' was trained on; .* have changed since"
        ):
            checkpoint.data_of(made)
        Path("x.npy").unlink()
        there = Path("here/x.npy").absolute()
        with pytest.raises(FileNotFoundError, match=f"there is no 'x.npy' at '{there}'. Put the data there, or run"):
            checkpoint.data_of(made)

    def test_that_cannot_be_downloaded_leave_no_folder(self, here, monkeypatch):
        class Absent:
            def __init__(self, root, download=False, **_):
                Path(root, "MNIST", "raw").mkdir(parents=True) if download else None
                raise RuntimeError("no network")

        monkeypatch.setattr("torchvision.datasets.MNIST", Absent)
        Absent.__name__ = "MNIST"
        begun("run", CONFIG | {"data": "mnist"})
        with pytest.raises(FileNotFoundError, match="there is no 'mnist' at '/.*/here/data'") as caught:
            checkpoint.data_of("run")
        assert "--" not in str(caught.value)
        assert os.listdir() == ["run"]

    @pytest.mark.parametrize("change", [{"lr": 0.2}, {"valid": 3}, {"resume": "other"}], ids=str)
    def test_of_an_edited_configuration_are_refused(self, change, made):
        edit(made, **change)
        ((name, now),) = change.items()
        with pytest.raises(ValueError, match=f"the run began with; {name} was .* and is now {now!r}"):
            checkpoint.data_of(made)


def test_a_run_is_written_where_it_is_though_its_folder_is_renamed_and_another_is_gone_to(here, tmp_path, monkeypatch):
    def move(history):
        if len(history["train"]) == 1:
            os.chdir(tmp_path)
        if len(history["train"]) == 2:
            Path("here/run").rename("moved")

    vae, x = VAE.build((6,), 2), torch.rand(60, 6)
    with pytest.warns(UserWarning, match="The run was moved to moved. To draw its figures: pyro-vae evaluate moved"):
        history = fit(vae, x, epochs=3, run_dir="run", progress=False, on_epoch=move)
    assert os.listdir("here") == []
    assert checkpoint.load_metrics("moved") == history
    assert all(map(torch.equal, load("moved")[0].parameters(), vae.parameters()))
    fit(vae, x, epochs=4, resume="moved", progress=False, on_epoch=lambda _: os.chdir("here"))
    assert len(checkpoint.load_metrics("../moved")["train"]) == 4


def test_a_run_that_is_taken_away_says_so(here):
    remove = partial(shutil.rmtree, "run", ignore_errors=True)
    with pytest.raises(OSError, match=r"No such file or directory\). Its folder was moved or removed. Put it back"):
        fit(VAE.build((6,), 2), torch.rand(60, 6), epochs=1, run_dir="run", progress=False, on_epoch=lambda _: remove())


def test_a_lambda_cannot_be_written_down(tmp_path):
    vae = build(prior=lambda latent: priors.StandardNormal(latent))
    with pytest.raises(ValueError, match="class, or a functools.partial of one"):
        fit(vae, DIGITS, epochs=1, run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_vae_made_by_hand_says_how_to_load_it(tmp_path):
    made = build()
    vae = VAE(made.prior, made.decoder, made.encoder)
    fit(vae, DIGITS, epochs=1, run_dir=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"lacks its parts or arguments.* load\(run, program=mine\)"):
        load(tmp_path / "run")
    again = VAE(*(getattr(build(), name) for name in ("prior", "decoder", "encoder")))
    assert load(tmp_path / "run", program=again)[0] is again
    assert (again.reconstruct(DIGITS.test[:]) == vae.reconstruct(DIGITS.test[:])).all()


def edit(folder, **changes):
    config = yaml.safe_load((folder / "config.yaml").read_text()) | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


BAD = {
    "no folder": (lambda run: run / "nowhere", FileNotFoundError, "there is nothing at"),
    "not a run": (lambda run: run.parent, FileNotFoundError, "with config.yaml; .* has none. Is it a run"),
    "no weights": (
        lambda run: (run / "model.safetensors").unlink() or run,
        FileNotFoundError,
        "with model.safetensors",
    ),
    "broken weights": (
        lambda run: (run / "model.safetensors").write_bytes(b"\x00" * 50) and run,
        ValueError,
        "could not read",
    ),
    "a hostile tag": (
        lambda run: (run / "config.yaml").write_text("prior: !!python/object/apply:os.getcwd []") and run,
        ValueError,
        "could not read",
    ),
    "not a mapping": (lambda run: (run / "config.yaml").write_text("7") and run, ValueError, "lacks its parts"),
    "another architecture": (
        lambda run: edit(run, network={"class_path": "pyro_vae.networks.MLP", "init_args": {"hidden": [9]}}) or run,
        ValueError,
        "Expected weights that fit the architecture in config.yaml; ",
    ),
    "an unknown class": (
        lambda run: edit(run, prior={"class_path": "pyro_vae.priors.Nothing"}) or run,
        ValueError,
        "Expected to import 'pyro_vae.priors.Nothing'",
    ),
    "somebody's class": (
        lambda run: edit(run, prior={"class_path": "os.system"}) or run,
        ValueError,
        "the run names 'os.system', whose import would run its code",
    ),
}


@pytest.mark.parametrize(("spoil", "kind", "message"), BAD.values(), ids=BAD)
def test_a_bad_run_gets_a_sentence(spoil, kind, message, run):
    with pytest.raises(kind, match=message) as caught:
        load(spoil(run[0]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        priors.StandardNormal,
        partial(networks.MLP, hidden=(3, 4), activation="Tanh"),
        partial(likelihoods.Gaussian, scale="learned"),
    ],
)
def test_describe_and_back(part):
    spec = yaml.safe_load(yaml.safe_dump(checkpoint.to_spec(part)))
    again = checkpoint.from_spec(spec)
    assert checkpoint.to_spec(again) == checkpoint.to_spec(part)


def test_a_command_on_runs_trusts_each_module_of_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flow = {"class_path": "pyro_vae.priors.Flow"}
    parts = {"a": {"class_path": "mine.A", "init_args": {"of": [flow, {"class_path": "b.C"}]}}, "b": flow}
    for name, part in parts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"prior": part, "data": "x.npy"}))
    a, b = tmp_path / "a", tmp_path / "b"
    assert checkpoint.command_on("evaluate", a) == "pyro-vae evaluate a --trust 'mine b'"
    assert checkpoint.command_on("evaluate", b) == "pyro-vae evaluate b"
    assert checkpoint.command_on("compare", tmp_path / "s", [b, a]) == "pyro-vae compare s --trust 'mine b'"
