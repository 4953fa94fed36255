"""Tests run stricter than users do: warnings are errors, and a test that leaves global state changed fails."""

import os

# Tensors here are small: where other programs run too, threads wait for each other ten times as long as they work.
# Before numpy and torch, which read it when they are imported, as do the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

# A collection of garbage visits all modules and tests, and takes a tenth of the suite: none until they are all there.
import gc

gc.disable()

import random
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from matplotlib.figure import Figure

SEED = 20261122
EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def pytest_collection_finish():
    """Collect garbage again, but for modules and tests, and seldom."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    gc.enable()


@pytest.fixture(autouse=True)
def global_state():
    """Seed torch for each test, and fail one that leaves any global state other than it was."""

    def state():
        return {
            "default dtype": torch.get_default_dtype(),
            "validation in torch": torch.distributions.Distribution._validate_args,
            "validation in Pyro": pyro.settings.get("validate_infer"),
            "param store": sorted(pyro.get_param_store().keys()),
            "seed": torch.initial_seed(),
            "gradients on": torch.is_grad_enabled(),
            "threads": torch.get_num_threads(),
            "matrix products": getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None),
            "matrix precision": torch.get_float32_matmul_precision(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            "numpy's generator": np.random.get_state()[1].tobytes(),
            "Python's generator": random.getstate(),
        }

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        before = state()
        yield
        after = state()
    changed = [name for name in before if before[name] != after[name]]
    pyro.clear_param_store()
    assert not changed, f"the test left changed: {', '.join(changed)}"


@pytest.fixture
def float64():
    """Compute in float64, for identities to 1e-10."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def param_store():
    """An empty param store for stock SVI, put back afterwards."""
    store = pyro.get_param_store()
    with store.scope():
        yield store


def close_briefly(patch, num_particles=20, images=50):
    """Make closing tables of few draws, none of them from adapted proposals."""
    from pyro_vae import report

    patch.setattr(report.table, "__defaults__", (num_particles, images, 0, False))
    patch.setattr("pyro_vae.report.proposals.OF_TABLE", 0)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder of the test's own; a brief closing table."""
    monkeypatch.chdir(tmp_path)
    close_briefly(monkeypatch)


@pytest.fixture
def experiments_on_the_path(monkeypatch):
    """As ``python experiments/NAME.py`` has it."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    yield
    for file in EXPERIMENTS.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def short_pilots(monkeypatch):
    """Short pilot runs of AIS, whose bounds are bounds then too, though looser."""
    monkeypatch.setattr("pyro_vae.annealing.PILOT", 6)
    monkeypatch.setattr("pyro_vae.annealing.SETTLE", 2)


@pytest.fixture
def few_digits(monkeypatch, short_pilots):
    """The first 360 digits: epochs of three steps."""
    from pyro_vae.data import loading

    digits = loading.digits()
    monkeypatch.setattr(loading, "digits", lambda: digits._replace(x=digits.x[:360], labels=digits.labels[:360]))


@pytest.fixture
def brief_gaps(monkeypatch):
    """Guides refined in few steps, for what does not depend on how good they are."""
    from pyro_vae import posterior

    monkeypatch.setattr(posterior, "gaps", partial(posterior.gaps, steps=20))


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made and named, and not rendered, which takes longer than a small run."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, to, **_: hasattr(to, "write") or Path(to).touch())


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
)
def device(request):
    """Every device there is."""
    return request.param
