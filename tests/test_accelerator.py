"""The benchmark's part on a GPU, run on the CPU."""

import importlib

import pytest

pytestmark = pytest.mark.usefixtures("experiments_on_the_path")


@pytest.fixture
def accelerator(experiments_on_the_path):
    return importlib.import_module("accelerator")


def test_programs_give_the_same_numbers(accelerator, param_store):
    apart = accelerator.log_densities_apart("cpu")
    assert set(apart) == {"VAE", "ConditionalVAE", "HierarchicalVAE", "SemiSupervisedVAE", "VQVAE"}
    assert max(apart.values()) < 1e-3


def test_steps_are_timed(accelerator, param_store):
    times = accelerator.steps("cpu", 8, 1, ("graph",))
    assert set(times) == {"ours, graph", "handwritten, eager", "cpu"}
    assert min(times.values()) > 0


def test_annealed_importance_sampling_is_timed(accelerator, param_store):
    numbers = accelerator.seconds_of_ais("cpu", 2, 5)
    assert numbers["seconds"] > 0
    assert -600 < numbers["bound"] < -100
