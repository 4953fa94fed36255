"""The command on the programs that are given by name: trained on digits, drawn from, compared; and what it refuses."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import close_briefly
from matplotlib.figure import Figure

from pyro_vae import compare, data, fit, likelihoods, load, networks, programs, report
from pyro_vae.__main__ import main

SMALL = ["--likelihood", "Bernoulli", "--network", "MLP", "--network.hidden", "[8]"]
QUICK = ["--epochs", "1", "--batch_size", "512", "--compile", "off"]
PROGRAMS = {
    "VAE": ["--latent", "2"],
    "ConditionalVAE": ["--program.latent", "2"],
    "HierarchicalVAE": ["--program.latents", "[3,2]"],
    "SemiSupervisedVAE": ["--program.latent", "2", "--labelled", "50"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run of each program; tables of few draws, and figures that are named and not rendered."""
    folder = tmp_path_factory.mktemp("named")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        close_briefly(patch, 5, 20)
        patch.setattr(Figure, "savefig", lambda figure, to, **_: hasattr(to, "write") or Path(to).touch())
        for name, options in PROGRAMS.items():
            words = ["train", "--program", name, "--binarize", "dynamic", *SMALL, *options, *QUICK, "--run_dir", name]
            assert main(words) == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_is_of_its_program(name, here):
    program, config = load(name)
    assert type(program).__name__ == name
    assert config.get("labelled") == (50 if name == "SemiSupervisedVAE" else None)


@pytest.mark.parametrize("name", ["ConditionalVAE", "SemiSupervisedVAE"])
def test_given_is_the_label_of_all(name, here):
    words = ["generate", name, "--num", "3", "--output", "x.npy"]
    drawn = []
    for given in ("3", "3", "4"):
        assert main([*words, "--given", given]) == 0
        drawn.append(np.load("x.npy"))
    assert drawn[0].shape == (3, 1, 8, 8)
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ConditionalVAE", "10", "labels y from 0 to 9, for given = 10; got 10"),
        ("HierarchicalVAE", "1", "no --given, since HierarchicalVAE takes no label"),
    ],
)
def test_given_that_is_no_label_is_refused(name, given, message, here, capsys):
    assert main(["generate", name, "--given", given]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_given_a_label_is_a_group_of_its_own(here):
    rows = compare.compare([*PROGRAMS], num_particles=2, images=20, progress=False)
    group = {row.name: row.group for row in rows}
    assert group["VAE"] == group["HierarchicalVAE"] == group["SemiSupervisedVAE"] != group["ConditionalVAE"]
    measured = [row.name for row in rows if row.measures]
    assert measured == ["SemiSupervisedVAE"]


def test_accuracy_is_in_the_history_and_the_table():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(100, 6, generator=draw).round(), torch.randint(3, (100,), generator=draw)
    dataset = data.from_columns({"x": x, "y": torch.where(torch.arange(100) % 4 > 0, y, -1)})
    network = partial(networks.MLP, hidden=(4,))
    program = programs.SemiSupervisedVAE.build((6,), 2, 3, likelihood=likelihoods.Bernoulli, network=network)
    history = fit(program, dataset, epochs=1, compile="off", progress=False)
    lines = report.table(program, dataset, 2, progress=False).splitlines()
    assert "accuracy" in lines[0]
    for split in ("valid", "test"):
        x, y = dataset.splits[split][:], dataset.splits[split].columns["y"]
        accuracy = (program.classify(x).argmax(1) == y)[y >= 0].float().mean().item()
        assert any(line.startswith(split) and f"{accuracy:.1%}" in line for line in lines)
        if split == "valid":
            assert history["valid_accuracy"] == pytest.approx([accuracy])


X, ROWS = np.random.default_rng(0).normal(size=(60, 6)), np.arange(60)
GIVEN = ["--program", "ConditionalVAE"]
PARTLY = ["--program", "SemiSupervisedVAE"]
BAD = {
    "labels out of range": (
        [*GIVEN, "--program.given", "3"],
        ROWS % 5,
        "from 0 to 2, for given = 3; got 0 to 4",
    ),
    "no column of labels": (GIVEN, None, "x, y; got x"),
    "no labelled rows": (PARTLY, -np.ones(60, dtype=int), "training labels y.* got none"),
    "one class": (PARTLY, np.where(ROWS % 2, 2, -1), r"of at least 2 classes; got \[2\]"),
}


@pytest.mark.parametrize(("words", "y", "message"), BAD.values(), ids=BAD)
def test_bad_labels_get_one_sentence(words, y, message, elsewhere, capsys):
    np.savez("rows.npz", x=X, **({} if y is None else {"y": y}))
    assert main(["train", "--data", "rows.npz", *words, *QUICK, "--run_dir", "run"]) == 2
    shown = capsys.readouterr().err.strip().split("\n")[-1]
    assert shown.startswith("pyro-vae")
    assert "Traceback" not in shown
    assert re.search(f"Expected .*{message}", shown), shown
