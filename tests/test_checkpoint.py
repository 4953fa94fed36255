import csv
import json
import math
from dataclasses import replace
from functools import partial

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


@pytest.fixture
def run(tmp_path):
    """A run directory, and the VAE that was trained into it."""
    vae = build(likelihood=partial(likelihoods.Gaussian, scale=0.3))
    history = fit(vae, DIGITS, ELBO(beta=2.0), epochs=2, run_dir=tmp_path / "run", progress=False)
    return tmp_path / "run", vae, history


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


def test_a_lambda_cannot_be_written_down(tmp_path):
    vae = build(prior=lambda latent: priors.StandardNormal(latent))
    with pytest.raises(ValueError, match="class or a functools.partial of one"):
        fit(vae, DIGITS, epochs=1, run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_vae_made_by_hand_says_how_to_load_it(tmp_path):
    made = build()
    vae = VAE(made.prior, made.decoder, made.encoder)
    fit(vae, DIGITS, epochs=1, run_dir=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"does not name its parts, or all its arguments.* load\(run, program=mine\)"):
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
    "not a mapping": (lambda run: (run / "config.yaml").write_text("7") and run, ValueError, "does not name its parts"),
    "another architecture": (
        lambda run: edit(run, network={"class_path": "pyro_vae.networks.MLP", "init_args": {"hidden": [9]}}) or run,
        ValueError,
        "Expected weights of the architecture in config.yaml; got others",
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
    spec = yaml.safe_load(yaml.safe_dump(checkpoint.describe(part)))
    again = checkpoint.construct(spec)
    assert checkpoint.describe(again) == checkpoint.describe(part)
