"""Going on where a run stopped, to the last bit: after an exception, a signal, a kill, at any moment of a write."""

import os
from functools import partial

import numpy as np
import pytest
import torch

from pyro_vae import VAE, data, fit, guides, likelihoods, load, objectives, priors
from pyro_vae.networks import MLP
from pyro_vae.train import loop, recorder

DYNAMIC = data.load("digits", binarize="dynamic")
GREY = data.load("digits")


def build(**parts):
    parts = {"latent": 3, "network": partial(MLP, hidden=(16,)), "likelihood": likelihoods.Bernoulli} | parts
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return VAE.build((1, 8, 8), **parts)


def train(run, dataset=DYNAMIC, parts=None, **options):
    vae = build(**(parts or {}))
    options = {"epochs": 4, "batch_size": 300, "compile": "graph"} | options
    options |= {"objective": options["objective"]()} if "objective" in options else {}
    where = {"resume": run} if (run / "config.yaml").exists() else {"run_dir": run}
    return vae, fit(vae, dataset, progress=False, **options, **where)


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def killed_at(monkeypatch, owner, name, call):
    """Have a function kill at so many calls of it, before it does anything."""
    real, calls = getattr(owner, name), iter(range(10**6))

    def function(*args, **kwargs):
        if next(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


def same(run, other):
    assert (run / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.fixture
def often(monkeypatch):
    """Save after every step."""
    monkeypatch.setattr(recorder, "SECONDS", 0.0)
    monkeypatch.setattr(recorder, "SHARE", 1e9)


class Noisy(likelihoods.Gaussian):
    """A likelihood that draws with NumPy, and so is trained in plain Pyro."""

    def law(self, loc):
        return super().law(loc + 1e-3 * np.random.default_rng(np.random.randint(1000)).normal())


RUNS = {
    "graph": {},
    "plain Pyro": {"compile": "off"},
    "one step an epoch": {"batch_size": 5000, "epochs": 8},
    "schedules": {"lr_schedule": "one-cycle", "objective": partial(objectives.ELBO, beta=objectives.Linear(0.5))},
    "cosine and clipped": {"lr_schedule": "cosine", "clip_norm": 10.0, "objective": partial(objectives.IWAE, 3)},
    "Pyro's own ELBO": {"objective": __import__("pyro").infer.TraceGraph_ELBO},
    "a VampPrior and a flow": {
        "parts": {"prior": partial(priors.VampPrior, components=5), "guide": guides.Flow, "latent": 4}
    },
    "a running scale": {
        "dataset": GREY,
        "parts": {"likelihood": partial(likelihoods.Gaussian, scale="optimal")},
    },
    "patience": {"patience": 2, "lr": 0.3, "epochs": 12},
    "skipping": {"on_nan": "skip"},
    "bfloat16": {"precision": "bfloat16"},
}


@pytest.mark.filterwarnings("ignore:Going on in plain Pyro", "ignore:The KL has stayed")
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_run_that_is_killed_goes_on_to_the_last_bit(options, tmp_path, monkeypatch, often):
    """Killed in the first epoch, within an epoch, as one ends, and while it validates."""
    train(tmp_path / "whole", **options)
    batches = -(-len(DYNAMIC.train) // options.get("batch_size", 300))
    for call in (1, batches + 2, 2 * batches):
        with monkeypatch.context() as patch:
            killed_at(patch, loop.Training, "_step", call)
            with pytest.raises(Killed):
                train(tmp_path / f"{call}", **options)
        with monkeypatch.context() as patch:
            killed_at(patch, loop.Training, "_step", 2)
            with pytest.raises(Killed):
                train(tmp_path / f"{call}", **options)
        train(tmp_path / f"{call}", **options)
        same(tmp_path / "whole", tmp_path / f"{call}")


@pytest.mark.filterwarnings("ignore:Going on in plain Pyro")
def test_numbers_drawn_with_numpy_go_on_too(tmp_path, monkeypatch, often):
    options = {"dataset": GREY, "parts": {"likelihood": Noisy}, "compile": "off"}
    train(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        killed_at(patch, loop.Training, "_step", 7)
        with pytest.raises(Killed):
            train(tmp_path / "run", **options)
    train(tmp_path / "run", **options)
    same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_run_that_is_killed_while_it_writes_goes_on(function, tmp_path, monkeypatch, often):
    """At each moment of each write: before it is on the disk, and before it is in its place."""
    whole = partial(train, epochs=2, batch_size=800, compile="off")
    whole(tmp_path / "whole")
    for call in range(3, 17):
        run = tmp_path / f"{call}"
        with monkeypatch.context() as patch:
            killed_at(patch, os, function, call)
            with pytest.raises(Killed):
                whole(run)
        whole(run)
        same(tmp_path / "whole", run)


def test_a_run_that_is_killed_before_it_is_one_is_none(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at(patch, os, "replace", 1)  # the checkpoint is there, and the configuration is not
        with pytest.raises(Killed):
            train(tmp_path / "run", epochs=1)
    with pytest.raises(FileNotFoundError, match="has none. Is it a run"):
        load(tmp_path / "run")
    train(tmp_path / "run", epochs=1)
    assert load(tmp_path / "run")[1]["epochs"] == 1
