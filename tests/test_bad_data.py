"""Data that nothing can be learned from: one sentence for each, in Python and of the command."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae import VAE, data, fit, report
from pyro_vae.__main__ import main

FIGURES = report.figures
SMALL = ["--latent", "2", "--network.hidden", "[4]", "--epochs", "1", "--compile", "off", "--run_dir", "run"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test in an empty folder of its own; a closing report that costs nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "table", lambda *args, **options: "a table")
    monkeypatch.setattr(report, "figures", lambda *args, **options: {})


def grey(count=20, *shape):
    return np.random.default_rng(0).integers(0, 256, (count, *(shape or (6, 6))), dtype=np.uint8)


def floats(count=20):
    return np.random.default_rng(0).random((count, 6, 6), dtype=np.float32)


def npy(x):
    np.save("x.npy", x)
    return "x.npy"


def npz(**arrays):
    np.savez("x.npz", **arrays)
    return "x.npz"


def cut(name, size):
    """The first bytes of a file."""
    Path(name).write_bytes(Path(name).read_bytes()[:size])
    return name


def pictures(*shapes):
    """A folder of images, numbered from 0."""
    Path("pictures").mkdir()
    for i, shape in enumerate(shapes):
        Image.fromarray(grey(len(shapes), *shape)[i]).save(f"pictures/{i:03}.png")
    return "pictures"


def spoiled(number):
    """A folder of 100 images, one of which is none."""
    folder = pictures(*[(6, 6)] * 100)
    Path(folder, f"{number:03}.png").write_text("no image")
    return folder


def half(number):
    folder = pictures(*[(60, 60)] * 9)
    return str(Path(cut(f"{folder}/{number:03}.png", 300)).parent)


class Canary:
    """Makes a file, where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


def pickled():
    Path("x.npy").write_bytes(pickle.dumps(Canary()))
    return "x.npy"


def some(x, value, where=(3, 2, 1)):
    x[where] = value
    return x


# What is wrong, how to make it, and what is said: of files and folders, in Python and of the command.
BAD = {
    "no images": (
        lambda: npy(np.zeros((0, 6, 6))),
        r"array of shape \(N, ...\) in .x.npy.; got shape \(0, ",
    ),
    "images of no pixels": (lambda: npy(np.zeros((9, 0))), r"'x.npy'; got shape \(9, 0\)"),
    "one image": (lambda: npy(grey(1)), "at least 3 images, one for each split, in 'x.npy'; got 1"),
    "one number": (lambda: npy(np.array(3.0)), r"array of shape \(N, ...\) .*; got shape \(\)"),
    "constant": (
        lambda: npy(np.full((20, 6, 6), 7, np.uint8)),
        "images that differ; all 16 for training in 'x.npy' are",
    ),
    "one image again and again": (lambda: npy(grey(1).repeat(20, 0)), "images that differ; all 16 .* are the same"),
    "constant floats": (lambda: npy(np.zeros((3000, 4))), "images that differ; all 2,400 for training in 'x.npy'"),
    "constant pictures": (
        lambda: [Path("a").mkdir(), *(Image.new("L", (6, 6)).save(f"a/{i}.png") for i in range(9))] and "a",
        "images that differ; all 7 for training in 'a' are the same",
    ),
    "NaN over an image": (
        lambda: npy(some(floats(), np.nan, 5)),
        "observed element in every image in 'x.npy'; got 1 of 20 images.*Leave these",
    ),
    "infinite": (
        lambda: npy(some(floats(), np.inf)),
        "finite numbers in 'x.npy'; got 1 of 720 that are infinite. Fill them in, leave out their images, or set",
    ),
    "minus infinity": (
        lambda: npy(some(floats(), -np.inf, 0)),
        "finite numbers in 'x.npy'; got 36 of 720 that are inf",
    ),
    "complex": (lambda: npy(floats() + 1j), "Expected numbers in 'x.npy'; got complex64"),
    "strings": (lambda: npy(floats().astype(str)), "Expected numbers in 'x.npy'; got <U"),
    "dates": (lambda: npy(grey().astype("datetime64[D]")), "Expected numbers in 'x.npy'; got datetime64"),
    "records": (lambda: npy(np.zeros(20, [("a", int), ("b", float)])), r"Expected numbers in 'x.npy'; got \[\('a'"),
    "objects": (
        lambda: npy(np.array([{}, 1, "a"])),
        "file of numbers; could not read 'x.npy' .*pickle",
    ),
    "pickle": (pickled, "file of numbers; could not read 'x.npy' .*pickle"),
    "too few labels": (
        lambda: npz(x=grey(), labels=np.zeros(19)),
        r"Expected 20 labels, one for each image, in 'x.npz'; got \(19,\)",
    ),
    "labels of two columns": (lambda: npz(x=grey(), labels=np.zeros((20, 2))), r"20 labels, .*; got \(20, 2\)"),
    "labels in words": (lambda: npz(x=grey(), labels=np.array(["a"] * 20)), "Expected numbers in 'x.npz'; got <U1"),
    "truncated .npy": (lambda: cut(npy(grey()), 500), "could not read 'x.npy'"),
    "truncated header": (lambda: cut(npy(grey()), 20), "could not read 'x.npy'"),
    "empty file": (lambda: cut(npy(grey()), 0), "could not read 'x.npy'"),
    "truncated .npz": (lambda: cut(npz(x=grey()), 500), "could not read 'x.npz'"),
    "unreadable image": (lambda: spoiled(57), "Expected an image; could not read 'pictures/057.png'. .*leave it out"),
    "truncated image": (lambda: half(4), "Expected an image; could not read 'pictures/004.png'. .*leave it out"),
    "two sizes": (
        lambda: pictures((6, 6), (6, 6), (6, 5), (6, 6)),
        r"images of one size; got \(6, 6\) in 000.png and \(6, 5\) in 002.png, \(height, width\). Resize them first",
    ),
}
BY_COMMAND = ["one image", "constant", "NaN over an image", "pickle", "truncated .npz", "unreadable image", "two sizes"]


def trained(dataset):
    return fit(vae(*dataset.event_shape), dataset, progress=False)


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_a_file_is_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        trained(data.load(make()))
    said = str(caught.value)
    assert said.startswith("Expected ")
    assert "\n" not in said
    assert not Path("canary").exists()  # nothing is executed


@pytest.mark.parametrize("name", BY_COMMAND)
def test_the_command_says_it_too_and_makes_no_run(name, capsys):
    make, message = BAD[name]
    assert main(["train", "--data", make(), *SMALL]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("pyro-vae train: Expected ")
    assert re.search(message, said), said
    assert not Path("run").exists()
    assert not Path("canary").exists()


def vae(*shape):
    return VAE.build(shape, latent=2)


TENSORS = {
    "empty": (lambda: data.from_tensor(torch.zeros(0, 4)), r"tensor; got shape \(0, 4\)"),
    "constant": (lambda: fit(vae(4), torch.full((50, 4), 0.5)), "all 40 for training in 'tensor' are the same"),
    "black above one half": (
        lambda: fit(vae(4), data.from_tensor(torch.rand(50, 4) / 3, binarize="threshold")),
        "all 40 for training in 'tensor' are the same. Check how the images were written",
    ),
    "complex": (lambda: data.from_tensor(torch.rand(50, 4) + 1j), "real numbers in a tensor; got complex"),
    "labels": (
        lambda: data.from_tensor(torch.rand(50, 4), labels=torch.zeros(51)),
        r"Expected 50 labels, one for each row, in a tensor; got \(51,\)",
    ),
    "channels": (
        lambda: fit(vae(1, 8, 8), data.from_tensor(torch.rand(50, 3, 8, 8)), progress=False),
        r"shape \(N, 1, 8, 8\).*got images of shape \(3, 8, 8\)",
    ),
    "a tensor given to fit": (
        lambda: fit(vae(4), torch.full((50, 4), torch.inf), progress=False),
        "finite numbers in a tensor; got 200 of 200 that are infinite",
    ),
    "a tensor of another shape": (
        lambda: fit(vae(4), torch.rand(50, 5), progress=False),
        r"shape \(N, 4\).*got images of shape \(5,\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), TENSORS.values(), ids=TENSORS)
def test_what_is_wrong_with_a_tensor_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert str(caught.value).startswith("Expected ")
    assert "\n" not in str(caught.value)


def test_the_command_evaluates_no_run_on_images_of_other_channels(capsys):
    npy(grey(20, 8, 8))
    assert main(["train", "--data", "x.npy", *SMALL]) == 0
    npy(grey(20, 3, 8, 8))
    capsys.readouterr()
    assert main(["train", "--resume", "run", "--epochs", "2"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "Expected the data that 'run' was trained on; its train, valid, test data have changed" in said


def test_nan_in_a_few_pixels_is_missing_and_is_said_in_percent():
    found = data.load(npy(some(floats(), np.nan, (slice(None), 0))))
    assert str(found) == "x.npy, not binarised, 16.7% missing"
    assert found.missing == pytest.approx(1 / 6)


def test_images_that_differ_in_one_pixel_or_in_what_is_missing_are_let_pass():
    x = torch.zeros(50, 4)
    x[::2, 0] = 1
    for dataset in (x, data.from_tensor(torch.zeros(50, 4), mask=torch.rand(50, 4) > 0.2)):
        assert len(fit(vae(4), dataset, epochs=1, progress=False)["train"]) == 1


def test_on_disk_images_that_are_all_the_same_are_found(monkeypatch):
    monkeypatch.setattr("pyro_vae.data.on_disk.LARGE", 0)
    with pytest.raises(ValueError, match="all 1,600 for training in 'x.npy' are the same"):
        fit(vae(6, 6), data.load(npy(grey(1).repeat(2000, 0))))


@pytest.mark.parametrize("labels", [None, torch.arange(20)], ids=["no labels", "labels"])
def test_figures_need_no_labels(labels):
    found = FIGURES(vae(1, 6, 6), data.from_tensor(torch.from_numpy(grey()), labels))
    assert "latent_space" in found


@pytest.mark.parametrize(("size", "is_said"), [(17, True), (16, False)])
def test_a_batch_that_is_larger_than_the_data_is_said(size, is_said, capsys):
    npy(grey())
    assert main(["train", "--data", "x.npy", *SMALL, "--batch_size", str(size)]) == 0
    said = "batch_size 17 exceeds the training data: each step takes all 16"
    assert (said in capsys.readouterr().out.splitlines()) == is_said


def test_the_command_trains_on_the_rows_of_a_table(capsys):
    Path("x.csv").write_text("height,weight\n" + "\n".join(f"{1 + i / 50},{50 + i}" for i in range(20)))
    assert main(["train", "--data", "x.csv", "--likelihood", "Gaussian", *SMALL]) == 0
    said = "x.csv, not binarised: 16 train, 2 valid, 2 test rows of 2 columns (height, weight)"
    assert capsys.readouterr().out.splitlines()[0] == said
