"""Experiments with labels, small: what they train, measure and write."""

import csv
import importlib
import sys

import pytest
import torch
from conftest import EXPERIMENTS

from pyro_vae.data import load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("experiments_on_the_path")]
SMALL = {"data": "digits", "latent": 3, "hidden": (16,), "epochs": 1}
RUNS = {
    "semi_supervised": SMALL | {"labels": 20, "sets": 1, "epochs_of_codes": 1, "chosen": ("sampled", "M1+M2")},
    "generative_classifier": SMALL | {"few": 2, "num_particles": 3, "images": 20},
    "quadrants": SMALL | {"quadrants": (3,), "num_particles": 3, "images": 20},
}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def run(name, folder, **options):
    options = RUNS[name] | options | ({"runs": str(folder / "runs")} if name == "generative_classifier" else {})
    with torch.random.fork_rng():
        importlib.import_module(name).main(**options, out=str(folder))
    return rows(folder / f"{name}.csv")


def test_a_variant_is_trained_once(tmp_path, capsys):
    variants = [row["variant"] for row in run("semi_supervised", tmp_path)]
    assert variants == ["M2, y sampled", "M1+M2"]
    lines = rows(tmp_path / "semi_supervised_runs.csv")
    assert [line["variant"] for line in lines] == ["sampled", "M1+M2"]
    run("semi_supervised", tmp_path)
    assert rows(tmp_path / "semi_supervised_runs.csv") == lines


def test_what_is_sampled_is_not_summed(monkeypatch):
    """Of twenty images without labels, the decoder sees each with one class, not with ten."""
    module = importlib.import_module("semi_supervised")
    sizes = {}
    for kind in (module.Sampled, module.SemiSupervisedVAE):
        program, shapes = kind.build((64,), latent=2, classes=10), []
        program.decoder.register_forward_pre_hook(lambda _, args, shapes=shapes: shapes.append(args[0].shape))
        module.evaluate.nll(program, (torch.rand(20, 64).round(), torch.full((20,), -1)), 1)
        sizes[kind] = max(shape[:-1].numel() for shape in shapes)
    assert sizes[module.Sampled] < 200 == sizes[module.SemiSupervisedVAE]


def test_errors_and_the_class_summed_out(tmp_path, capsys):
    """-log p(x) is of a mixture of ten: at most log 10 above that of the label's class, and above the least of all."""
    for row in run("generative_classifier", tmp_path):
        own, whole = (float(row[f"-log p({what}), nats"].split()[0]) for what in ("x | y", "x"))
        assert whole <= own + 2.3027
        assert 0 <= float(row["error"].split()[0]) <= 100


def test_the_class_is_the_likeliest(monkeypatch):
    module = importlib.import_module("generative_classifier")
    log_p = torch.tensor([[0.0, -1.0], [-3.0, -2.0], [-1.0, -5.0]])
    row = module.row_of("1", log_p, torch.tensor([0, 1, 1]))
    assert row["error"].startswith("33.33")
    assert row["-log p(x | y), nats"].startswith("2.33")


def test_hidden_and_seen_pixels_are_the_image(tmp_path, capsys):
    (row,) = run("quadrants", tmp_path)
    assert (tmp_path / "quadrants.png").read_bytes().startswith(b"\x89PNG")
    assert float(row["binary, -log p"]) <= float(row["binary, -ELBO"])
    module, digits = importlib.import_module("quadrants"), load("digits")
    for number in (1, 2, 3):
        seen = module.seen_of((1, 8, 8), number)
        assert seen.sum() == 16 * number
        x, y = module.hidden_given_seen(digits, seen, 0).test.batch(slice(0, 5))
        whole = torch.empty(5, 1, 8, 8)
        whole[:, ~seen], whole[:, seen] = x, y
        assert torch.equal(whole, digits.test[:5])


def test_the_committed_classifier_is_wrong_for_less_than_two_in_a_hundred_images():
    few, many = rows(EXPERIMENTS / "results" / "generative_classifier.csv")
    assert float(many["error"].split()[0]) <= float(few["error"].split()[0]) < 2
    assert float(many["-log p(x), nats"].split()[0]) < float(few["-log p(x), nats"].split()[0])


BAD = {"semi_supervised": "--chosen", "generative_classifier": "--data", "quadrants": "--quadrants"}


@pytest.mark.parametrize("name", RUNS)
def test_bad_input_gets_a_sentence(name, monkeypatch):
    value = {"--chosen": '["summmed"]', "--data": "minst", "--quadrants": "[4]"}[BAD[name]]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", BAD[name], value])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("common").command(importlib.import_module(name).main)
    assert str(stopped.value.code).startswith(f"{name}.py: Expected ")
    assert "\n" not in str(stopped.value.code)
