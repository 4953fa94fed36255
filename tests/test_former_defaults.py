"""A run means what the defaults were when it was written, though a release changed them."""

import json
import re
from functools import partial

import pytest
import torch
import yaml

from pyro_vae import VAE, data, fit, load, networks
from pyro_vae.checkpoint.former import FORMER, changed_defaults, with_former
from pyro_vae.checkpoint.spec import _class, to_spec
from pyro_vae.programs import VQVAE

DIGITS = data.load("digits")
RELU = {"activation": "ReLU"}
BUILD = {
    "Conv": partial(VAE.build, (1, 8, 8), 2, network=partial(networks.Conv, channels=(4,), **RELU)),
    "ResNet": partial(VAE.build, (1, 8, 8), 2, network=partial(networks.ResNet, channels=(4,), **RELU)),
    "VQVAE": partial(VQVAE.build, (1, 8, 8), 8, 4, network=partial(networks.ResNet, **RELU)),
}
IMAGES = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def former(request, tmp_path):
    """A run as an earlier release wrote it: the activation, which was the default, is not in the files."""
    name = request.param
    program = BUILD[name]()
    fit(program, IMAGES, epochs=1, run_dir=tmp_path / "run", progress=False)

    def strip(spec):
        if isinstance(spec, dict):
            spec.pop("activation", None)
            if name == "VQVAE" and "network" in spec:
                del spec["network"]
            for value in spec.values():
                strip(value)
        return spec

    config, environment = tmp_path / "run/config.yaml", tmp_path / "run/environment.json"
    assert config.read_text().count("activation: ReLU") == 1
    config.write_text(yaml.safe_dump(strip(yaml.safe_load(config.read_text()))))
    environment.write_text(json.dumps(strip(json.loads(environment.read_text()))))
    assert "activation" not in config.read_text() + environment.read_text()
    return name, program.eval(), tmp_path / "run"


@pytest.mark.parametrize("former", BUILD, indirect=True)
def test_a_run_of_an_earlier_release_has_its_activation(former):
    _, program, run = former
    same, config = load(run)
    assert torch.equal(same.reconstruct(IMAGES), program.reconstruct(IMAGES))
    assert "'activation': 'ReLU'" in str(config)


@pytest.mark.parametrize("former", BUILD, indirect=True)
def test_it_resumes_with_its_activation_and_no_other(former):
    name, _, run = former
    again = fit(load(run)[0], IMAGES, epochs=1, resume=run, progress=False)
    assert len(again["train"]) == 1
    other = BUILD[name].keywords["network"].func
    with pytest.raises(ValueError, match=r"(network|program) was .*ReLU.* is now .*GELU"):
        fit(
            BUILD[name](network=partial(other, **{**BUILD[name].keywords["network"].keywords, "activation": "GELU"})),
            IMAGES,
            epochs=1,
            resume=run,
            progress=False,
        )


@pytest.mark.parametrize("path", FORMER)
def test_the_defaults_did_change_or_name_a_class_that_did(path):
    """An entry whose default is as before would be dead; today's default is a class only where its own entry is."""
    for name, default in changed_defaults(_class({"class_path": path}, (torch.nn.Module,)).func, path).items():
        today = to_spec(default)
        assert today != FORMER[path][name]
        assert with_former(FORMER[path][name]) != today
        assert isinstance(today, str) or today["class_path"] in FORMER


def test_a_run_names_its_activation(tmp_path):
    fit(VAE.build((1, 8, 8), 2, network=networks.Conv), DIGITS.train[:20], epochs=1, run_dir=tmp_path, progress=False)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["network"] == {"class_path": "pyro_vae.networks.Conv", "init_args": {"activation": "GELU"}}
    assert re.search(r"\bGELU\b", str(load(tmp_path)[0].encoder.network))


def test_a_program_whose_arguments_a_run_could_not_keep_resumes(tmp_path):
    """The run has the class alone, and no former default is added to it."""
    program = VQVAE.build((1, 8, 8), 8, 4, network=lambda *shapes: networks.ResNet(*shapes))
    fit(program, IMAGES, epochs=1, run_dir=tmp_path, progress=False)
    assert len(fit(program, IMAGES, epochs=1, resume=tmp_path, progress=False)["train"]) == 1
    with pytest.raises(ValueError, match="Build the program yourself"):
        load(tmp_path)


def test_a_run_of_the_default_network_resumes_without_the_name(tmp_path):
    """Dense layers have their activation as before."""
    fit(VAE.build((1, 8, 8), 2), IMAGES, epochs=1, run_dir=tmp_path, progress=False)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["network"] == {"class_path": "pyro_vae.networks.Auto"}
    assert len(fit(VAE.build((1, 8, 8), 2), IMAGES, epochs=1, resume=tmp_path, progress=False)["train"]) == 1
