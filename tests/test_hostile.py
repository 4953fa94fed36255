"""Run directories of somebody who means ill, or of a disk that fails: one sentence, and nothing of them is run."""

import json
import os
import pickle
import re
import shutil
import struct
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import forked
import pytest
import torch
import yaml
from conftest import close_briefly
from safetensors.torch import load_file, save_file

from pyro_vae import VAE, checkpoint, data, fit, load, networks
from pyro_vae.__main__ import main
from pyro_vae.networks import MLP

CANARY = Path("canary")


class Bomb:
    """Pickled; unpickled, it makes the canary."""

    def __reduce__(self):
        return (os.system, (f"touch {CANARY}",))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, made once."""
    run = tmp_path_factory.mktemp("trained") / "run"
    vae = VAE.build((1, 8, 8), latent=2, network=partial(MLP, hidden=(16,)))
    with torch.random.fork_rng():
        fit(vae, data.load("digits"), epochs=2, run_dir=run, progress=False)
    return run


class Canary:
    """A class of the package that touches the disk when it is made."""

    def __init__(self):
        CANARY.touch()


Canary.__module__ = "pyro_vae.networks"


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it to spoil, in a folder with a module that makes the canary when it is imported."""
    monkeypatch.chdir(tmp_path)
    close_briefly(monkeypatch)
    monkeypatch.setattr(networks, "Canary", Canary, raising=False)
    Path("evil.py").write_text(f"import os\nos.system('touch {CANARY}')\nclass Evil: ...\n")
    return Path(shutil.copytree(trained, "run"))


def config(run, **changes):
    """Change config.yaml, and what environment.json knows of it."""
    known = yaml.safe_load((run / "config.yaml").read_text()) | changes
    (run / "config.yaml").write_text(yaml.safe_dump(known))
    about = json.loads((run / "environment.json").read_text()) | {"config": known}
    (run / "environment.json").write_text(json.dumps(about))


def text(run, content):
    (run / "config.yaml").write_text(content)


def part(path, **arguments):
    return {"class_path": path, "init_args": arguments}


def bombs(run):
    for path in run.rglob("*.safetensors"):
        path.write_bytes(pickle.dumps(Bomb()))


def noise(run):
    for path in [path for path in run.rglob("*") if path.is_file()]:
        path.write_bytes(os.urandom(500))


def huge(run):
    """A header that declares more than the file has."""
    header = json.dumps(
        {"decoder.network.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    for path in run.rglob("*.safetensors"):
        path.write_bytes(struct.pack("<Q", len(header)) + header)


def long_header(run):
    for path in run.rglob("*.safetensors"):
        path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


def others(run):
    """Weights of another architecture, checkpoints too."""
    tensors = load_file(run / "model.safetensors")
    tensors["decoder.network.layers.1.weight"] = torch.zeros(16, 3)
    save_file(tensors, run / "model.safetensors", metadata={"event_shape": "[1, 8, 8]"})
    for name in ("last", "best"):
        path = run / "checkpoint" / f"{name}.safetensors"
        nest = checkpoint.deserialize(path)
        nest["vae"] = tensors
        path.write_bytes(checkpoint.serialize(nest))


def optimizers(run):
    for path in (run / "checkpoint").glob("*.safetensors"):
        nest = checkpoint.deserialize(path)
        if nest["svi"]:
            nest["svi"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
        path.write_bytes(checkpoint.serialize(nest))


def elsewhere(run):
    """The weights a link to a file outside."""
    for name in ("model.safetensors", "checkpoint/last.safetensors", "checkpoint/best.safetensors"):
        shutil.move(run / name, f"outside-{Path(name).name}")
        (run / name).symlink_to(Path(f"outside-{Path(name).name}").absolute())


def nest(run, value):
    """A checkpoint that is what it was written as, and no state."""
    for path in (run / "checkpoint").iterdir():
        path.write_bytes(checkpoint.serialize(value))
    (run / "model.safetensors").unlink()


BILLION = "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghi"))
HOSTILE = {
    "pickles": (bombs, "could not read|cannot be read"),
    "random bytes": (noise, "could not read"),
    "a YAML tag": (
        lambda run: text(run, f"prior: !!python/object/apply:os.system ['touch {CANARY}']"),
        "could not read 'run/config.yaml'",
    ),
    "a YAML name": (lambda run: text(run, "prior: !!python/name:evil.Evil"), "could not read 'run/config.yaml'"),
    "references that multiply": (lambda run: text(run, BILLION), "it has a YAML alias"),
    "a reference to itself": (lambda run: text(run, "prior: &a [*a]"), "it has a YAML alias"),
    "brackets": (lambda run: text(run, "[" * 100_000), "could not read 'run/config.yaml'"),
    "a long configuration": (lambda run: text(run, "a: " + "b" * 2**21), "it is larger than 1,048,576 bytes"),
    "a class of a module": (
        lambda run: config(run, prior=part("evil.Evil")),
        "names 'evil.Evil', whose import would run",
    ),
    "a class inside a part": (
        lambda run: config(run, network=part("pyro_vae.networks.MLP", hidden=[part("evil.Evil")])),
        "names 'evil.Evil', whose import would run",
    ),
    "a function of ours": (
        lambda run: config(run, prior=part("pyro_vae.commands.run", given=["generate"])),
        "Expected a subclass of Module from pyro_vae.commands",
    ),
    "what a module of ours imports": (
        lambda run: config(run, prior=part("pyro_vae.networks.dense.nn.Linear")),
        "Expected to import 'pyro_vae.networks.dense.nn.Linear'",
    ),
    "another package's class in ours": (
        lambda run: config(run, network=part("pyro_vae.priors.vectors.DenseNN")),
        "Expected a subclass of Module from pyro_vae.priors.vectors",
    ),
    "an argument that is none": (
        lambda run: config(run, prior=part("pyro_vae.priors.StandardNormal", command="touch canary")),
        "StandardNormal \\(latent\\); the run has command",
    ),
    "a part that is a word": (lambda run: config(run, prior="evil.Evil"), "Expected class_path and init_args"),
    "a huge latent space": (lambda run: config(run, latent=10**9), "Expected parts as large as their weights"),
    "a latent space that is a word": (lambda run: config(run, latent="many"), "Expected whole numbers for latent"),
    "a latent space beyond integers": (
        lambda run: config(run, latent=10**40),
        "Expected whole numbers for latent",
    ),
    "a huge layer": (
        lambda run: config(run, network=part("pyro_vae.networks.MLP", hidden=[10**12])),
        "Expected parts as large as their weights",
    ),
    "many layers": (
        lambda run: config(run, network=part("pyro_vae.networks.MLP", hidden=[10] * 20_000)),
        "Expected parts as large as their weights",
    ),
    "a layer of no units": (
        lambda run: config(run, network=part("pyro_vae.networks.MLP", hidden=[-3])),
        "Expected hidden layers of at least 1 unit",
    ),
    "a layer that is a word": (
        lambda run: config(run, network=part("pyro_vae.networks.MLP", hidden=["x"])),
        "Expected",
    ),
    "a huge declared shape": (huge, "could not read|cannot be read"),
    "a header without an end": (long_header, "could not read|cannot be read"),
    "weights of another architecture": (
        others,
        r"'decoder.network.layers.1.weight' is of shape \(16, 2\) in the program and of shape \(16, 3\) in the weights",
    ),
    "links that lead out": (elsewhere, r"inside the run directory; 'run/.*' leads to '/.*outside-"),
    "a link to itself": (
        lambda run: [(path.unlink(), path.symlink_to(path.name)) for path in [*run.rglob("*.safetensors")]],
        "has none|there is no checkpoint in 'run'",
    ),
    "the run a link's": (
        lambda run: (run / "config.yaml").rename("c") and (run / "config.yaml").symlink_to(Path("c").absolute()),
        "inside the run directory; 'run/config.yaml' leads to",
    ),
    "a checkpoint of nothing": (lambda run: nest(run, {}), "could not read|has none"),
    "a checkpoint of a list": (lambda run: nest(run, [1, 2]), "could not read|has none"),
    "a checkpoint of words": (
        lambda run: nest(run, {"vae": {"a": "b"}, "event_shape": [1]}),
        "could not read|has none",
    ),
}


def refused(words, message, capsys):
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert re.search(message, said[0]), said[0]
    assert len(said[0]) < 900
    assert not CANARY.exists()


@pytest.mark.parametrize("words", ["evaluate run --chosen 0", "train --resume run"])
@pytest.mark.parametrize(("spoil", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_run_is_refused_in_one_sentence(spoil, message, words, run, capsys):
    spoil(run)
    refused(words.split(), message, capsys)
    assert "evil" not in sys.modules


SETTINGS = {
    "epochs": ({"epochs": "many"}, "Expected epochs to be int; the run's config.yaml has 'many'"),
    "lr": ({"lr": [1]}, "Expected lr to be float"),
    "batches": ({"batch_size": -1}, "Expected batch_size of at least 1; got -1"),
    "device": ({"device": "abacus"}, "Expected a device that torch can use"),
    "data": ({"data": 7}, "Expected data to be str"),
    "valid": ({"valid": "x"}, "Expected valid to be int | None"),
    "objective": ({"objective": part("evil.Evil")}, "names 'evil.Evil', whose import would run"),
    "a prior for an objective": (
        {"objective": part("pyro_vae.priors.StandardNormal")},
        "ELBO from pyro_vae.priors",
    ),
    "no objective": ({"objective": None}, "Expected class_path and init_args"),
    "a wrong objective": (
        {"objective": part("pyro_vae.objectives.ELBO", beta=-1)},
        "that ELBO accepts; .*beta",
    ),
    "what is no schedule": (
        {"objective": part("pyro_vae.objectives.ELBO", beta=part("pyro_vae.networks.Canary"))},
        "subclass of float or Schedule from pyro_vae.networks; the run names 'pyro_vae.networks.Canary'",
    ),
    "what is no penalty": (
        {"objective": part("pyro_vae.objectives.ELBO", penalty=part("pyro_vae.networks.Canary"))},
        "subclass of Penalty or NoneType from pyro_vae.networks; the run names",
    ),
    "an argument that is no number": (
        {
            "objective": part(
                "pyro_vae.objectives.ELBO",
                beta=part("pyro_vae.objectives.Linear", warmup=part("pyro_vae.networks.Canary")),
            )
        },
        "subclass of int or float from pyro_vae.networks; the run names",
    ),
    "a wrong schedule": (
        {"objective": part("pyro_vae.objectives.ELBO", beta=part("pyro_vae.objectives.Linear", warmup="x"))},
        "Expected",
    ),
}


@pytest.mark.parametrize(("changes", "message"), SETTINGS.values(), ids=SETTINGS)
def test_hostile_settings_are_refused_in_one_sentence(changes, message, run, capsys):
    config(run, **changes)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused(["train", "--resume", "run"], message, capsys)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_optimizer_of_another_shape_is_refused(run, capsys):
    optimizers(run)
    (run / "checkpoint" / "previous.safetensors").unlink()
    refused(["train", "--resume", "run", "--epochs", "3"], r"Expected exp_avg of the shape of its parameter", capsys)


@pytest.mark.parametrize("where", ["figures", "checkpoint", "tensorboard", "."])
def test_nothing_is_written_through_a_link_that_leads_out(where, run, capsys):
    """A folder of the run that is a link is not written to; the run itself may be one, which its user made."""
    Path("outside").mkdir()
    if where == ".":
        run.rename("outside/run")
        run.symlink_to(Path("outside/run").absolute())
        assert main(["generate", "run"]) == 0
        return
    shutil.rmtree(run / where, ignore_errors=True)
    (run / where).symlink_to(Path("outside").absolute())
    words = {
        "figures": "evaluate run --chosen 0 --num_particles 25 --images 30",
        "checkpoint": "train --resume run",
        "tensorboard": "train --resume run --epochs 3 --logger tensorboard",
    }[where]
    refused(words.split(), "inside the run directory; 'run/.*' leads to '/.*outside", capsys)
    assert not [*Path("outside").iterdir()]


class TestConfigOfARun:
    """``--config RUN/config.yaml``, which trains anew."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"prior": part("evil.Evil")},
            {"prior": "evil.Evil"},
            {"objective": part("pyro_vae.objectives.ELBO", beta="evil.Evil")},
            {"objective.beta": "evil.Evil"},
            {"network": part("pyro_vae.networks.MLP", activation=part("evil.Evil"))},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("words", [["--config", "run/config.yaml"], ["--config=run/config.yaml"]], ids=" ".join)
    def test_imports_no_class_that_is_not_trusted(self, changes, words, run, capsys):
        config(run, **changes)
        refused(["train", *words, "--run_dir", "other"], "names 'evil.Evil', whose import would run its code", capsys)
        assert not Path("other").exists()

    def test_a_trusted_one_it_does(self, run, capsys, unrendered):
        Path("good.py").write_text(
            "import pyro_vae.priors\nclass Good(pyro_vae.priors.StandardNormal):\n    '''Own.'''\n"
        )
        config(run, prior=part("good.Good"), epochs=1)
        refused(["train", "--config", "run/config.yaml", "--run_dir", "other"], "names 'good.Good'", capsys)
        words = ["train", "--config", "run/config.yaml", "--run_dir", "other", "--trust", "good"]
        assert main(words) == 0
        assert load("other", trust=["good"])[1]["prior"]["class_path"] == "good.Good"
        assert main(["train", "--resume", "other", "--trust", "good"]) == 0
        del sys.modules["good"]

    @pytest.mark.parametrize(
        "changes", [{"run_dir": "run"}, {"overwrite": True}, {"resume": "run"}, {"trust": "evil"}], ids=str
    )
    @pytest.mark.parametrize("file", ["run/config.yaml", "link.yaml"])
    def test_has_a_runs_settings_alone(self, changes, file, run, capsys):
        config(run, **changes)
        Path("link.yaml").symlink_to("run/config.yaml")
        before = (run / "model.safetensors").read_bytes()
        (name,) = changes
        words = ["train", "--config", file, "--epochs", "1"]
        refused(words, f"Expected the settings of a run in 'run/config.yaml'; got {name}, which is no setting", capsys)
        assert (run / "model.safetensors").read_bytes() == before

    def test_is_looked_through_beside_resume_too(self, run, capsys):
        config(run, prior="evil.Evil")
        refused(["train", "--resume", "run", "--config", "run/config.yaml"], "names 'evil.Evil', whose import", capsys)

    def test_is_not_read_by_half_a_name(self, run, capsys):
        refused(["train", "--conf", "run/config.yaml"], "unrecognized arguments: --conf", capsys)


@pytest.mark.parametrize("option", ["beta", "penalty", "beta.warmup"])
@pytest.mark.parametrize("spec", ["pyro_vae.networks.Canary", json.dumps(part("pyro_vae.networks.Canary"))])
def test_an_option_makes_nothing_of_another_kind(option, spec, run, capsys):
    words = ["--objective.beta", "Linear"] if "." in option else []
    refused(["train", *words, f"--objective.{option}", spec], f"Expected --objective.{option} to be", capsys)


@pytest.mark.processes
def test_what_is_refused_for_its_size_is_not_made_first(run):
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)\n"
    code += "from pyro_vae import load\ntry: load('run')\nexcept ValueError as error: print(error)"
    config(run, network=part("pyro_vae.networks.MLP", hidden=[10**9]))  # 256 GB
    done = forked.run(code, run.parent.absolute())
    assert done.stdout.startswith("Expected parts as large as their weights"), done.stderr


def test_a_run_without_tricks_is_loaded(run):
    vae, found = load(run)
    assert vae.generate(2).shape == (2, 1, 8, 8)
    assert found["latent"] == 2
    for which in ("best", "last"):
        assert load(run, weights=which)[0].generate(2).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="Expected weights to be final, best or last; got 'first'"):
        load(run, weights="first")


def test_float64_comes_back_as_float64(tmp_path):
    vae = VAE.build((1, 8, 8), latent=2).double()
    fit(vae, data.load("digits"), epochs=1, batch_size=500, run_dir=tmp_path / "run", progress=False)
    found, _ = load(tmp_path / "run")
    assert found.reference.dtype == torch.float64
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(vae.parameters(), found.parameters(), strict=True))
