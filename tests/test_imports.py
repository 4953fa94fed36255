"""What an import brings with it: each in a process of its own, which starts with nothing imported."""

import subprocess
import sys

import pytest

import pyro_vae

pytestmark = pytest.mark.processes

HEAVY = {"torch", "torch._dynamo", "pyro", "matplotlib", "jsonargparse", "numpy"}
COMMAND = "from contextlib import suppress; from pyro_vae.__main__ import main\nwith suppress(SystemExit): main({})"


def imported(code):
    """The packages among ``HEAVY`` that some code imports."""
    code = f"{code}\nimport sys; print(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return HEAVY.intersection(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import pyro_vae; assert {'VAE', 'fit', 'objectives'} < set(dir(pyro_vae))",
        *(COMMAND.format(arguments) for arguments in ([], ["--help"], ["-h"], ["--version"], ["trian"])),
    ],
)
def test_what_needs_no_torch_imports_none(code):
    assert imported(code) == set()


def test_training_imports_no_matplotlib_and_no_compiler():
    code = """
import torch
from pyro_vae import VAE, data, evaluate, fit, load, objectives
for optimizer in ("adam", "muon"):
    fit(VAE.build((4,), 2), torch.rand(8, 4), epochs=4, optimizer=optimizer, progress=False, compile="graph")
"""
    assert imported(code) == {"torch", "pyro", "numpy"}


def test_help_and_wrong_options_of_train_import_no_matplotlib_and_leave_collections_on():
    code = COMMAND.format(["train", "--help"]) + "\nassert main(['train', '--prior', 'Gausian']) == 2"
    code += "\nimport gc; assert gc.isenabled() and gc.get_freeze_count()"
    assert imported(code) == {"torch", "pyro", "jsonargparse", "numpy"}


def test_rooms_and_names_are_there_when_touched():
    code = """
import sys
from pyro_vae import plots, report, compare, posterior
assert {*plots.__all__} < {*dir(plots)}
assert "matplotlib" not in sys.modules
import pyro_vae
assert pyro_vae.objectives.ELBO().num_particles == 1
import pyro_vae.plots
assert pyro_vae.train.fit is pyro_vae.fit
assert pyro_vae.checkpoint.load is pyro_vae.load
from pyro_vae import *
assert VAE is pyro_vae.programs.VAE
assert plots is pyro_vae.plots and plots.curves.__module__ == "pyro_vae.plots.values"
"""
    assert "matplotlib" in imported(code)


def test_every_name_is_found_and_listed():
    assert {*pyro_vae.__all__, "programs", "train", "checkpoint", "__name__"} <= set(dir(pyro_vae))
    for name in pyro_vae.__all__:
        assert getattr(pyro_vae, name).__name__.rpartition(".")[2] == name


def test_what_is_not_there_is_said_as_ever():
    with pytest.raises(AttributeError, match="^module 'pyro_vae' has no attribute 'Vae'$"):
        pyro_vae.Vae  # noqa: B018
    with pytest.raises(ImportError, match="^cannot import name 'Vae' from 'pyro_vae'"):
        from pyro_vae import Vae  # noqa: F401
