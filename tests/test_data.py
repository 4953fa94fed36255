import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import constraints

from pyro_vae import data
from pyro_vae.data.sources import NAMES


def grey(count=20, side=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


class TestDigits:
    def test_the_splits_are_fixed_and_disjoint(self):
        first, second = data.load("digits"), data.load("digits")
        assert [len(split) for split in first.splits.values()] == [1437, 180, 180]
        rows = [tuple(x.flatten().tolist()) for split in first.splits.values() for x in split[:]]
        assert len(set(rows)) == len(rows) == 1797
        for name in first.splits:
            assert (first.splits[name].pixels == second.splits[name].pixels).all()
            assert (first.splits[name].labels == second.splits[name].labels).all()

    def test_pixels_are_kept_as_bytes_and_read_in_the_unit_interval(self):
        digits = data.load("digits")
        assert digits.train.pixels.dtype == torch.uint8
        x = digits.train[torch.tensor([3, 1, 4])]
        assert x.shape == (3, 1, 8, 8)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, digits.train.pixels[[3, 1, 4]] / 16)
        assert digits.train[:].max() == 1

    def test_the_mean_is_of_x(self):
        digits = data.load("digits")
        torch.testing.assert_close(digits.mean, digits.train[:].mean(0))


class TestBinarisation:
    def test_none_leaves_grey(self):
        assert data.load("digits").support is constraints.unit_interval

    def test_threshold_is_one_above_half(self):
        found = data.load("digits", binarize="threshold")
        assert (found.test[:] == (data.load("digits").test[:] > 0.5)).all()
        assert found.support is constraints.boolean

    def test_static_is_drawn_once_for_all(self):
        first, second = data.load("digits", binarize="static"), data.load("digits", binarize="static")
        for name in ("train", "valid", "test"):
            x = first.splits[name][:]
            assert set(x.unique().tolist()) == {0.0, 1.0}
            assert (x == first.splits[name][:]).all()
            assert (x == second.splits[name][:]).all()

    def test_dynamic_is_drawn_afresh_for_training_and_once_for_the_rest(self):
        found = data.load("digits", binarize="dynamic")
        assert (found.train[:] != found.train[:]).any()
        static = data.load("digits", binarize="static")
        for name in ("valid", "test"):
            assert (found.splits[name][:] == static.splits[name][:]).all()

    def test_draws_have_the_grey_level_as_mean(self):
        """z-test over all pixels at 5 standard errors: fails once in 1.7 million runs."""
        found, mean = data.load("digits", binarize="dynamic"), data.load("digits").train[:]
        residual = found.train[:] - mean
        error = (mean * (1 - mean)).sum().sqrt()
        assert residual.sum().abs() < 5 * error
        torch.testing.assert_close(found.mean, data.load("digits").mean)

    def test_drawing_the_frozen_splits_leaves_the_global_generator_alone(self):
        before = torch.get_rng_state()
        data.load("digits", binarize="dynamic")
        assert (torch.get_rng_state() == before).all()


class TestDequantisation:
    def test_adds_less_than_one_level(self):
        found, plain = data.load("digits", dequantize=True), data.load("digits")
        for name in ("train", "test"):
            x, pixels = found.splits[name][:], plain.splits[name].pixels
            assert ((x * 17).floor() == pixels).float().mean() > 0.999  # float32 may round up to the next level
            assert x.min() >= 0
            assert x.max() <= 1
        assert (found.train[:] != found.train[:]).any()
        assert (found.test[:] == found.test[:]).all()

    def test_the_mean_is_half_a_level_up(self):
        found = data.load("digits", dequantize=True)
        torch.testing.assert_close(found.mean, (data.load("digits").mean * 16 + 0.5) / 17)


class TestOwnData:
    @pytest.mark.parametrize(
        ("array", "event_shape"),
        [
            (grey(), (1, 6, 6)),
            (np.stack([grey()] * 3, axis=-1), (3, 6, 6)),
            (np.stack([grey()] * 3, axis=1), (3, 6, 6)),
            (grey().reshape(20, 36) / 255, (36,)),
            (grey() > 100, (1, 6, 6)),
        ],
        ids=["grey", "colour last", "colour first", "vectors", "booleans"],
    )
    def test_npy(self, array, event_shape, tmp_path):
        np.save(tmp_path / "x.npy", array)
        found = data.load(str(tmp_path / "x.npy"))
        assert found.event_shape == event_shape
        assert [len(split) for split in found.splits.values()] == [16, 2, 2]
        x = torch.cat([split[:] for split in found.splits.values()])
        assert x.max() <= 1
        assert x.double().sum() == pytest.approx(array.sum() / (255 if array.dtype == np.uint8 else 1), rel=1e-5)

    def test_npz_with_labels(self, tmp_path):
        np.savez(tmp_path / "x.npz", x=grey(), labels=np.arange(20))
        found = data.load(str(tmp_path / "x.npz"))
        labels = torch.cat([split.labels for split in found.splits.values()])
        assert sorted(labels.tolist()) == list(range(20))
        x = torch.cat([split.pixels for split in found.splits.values()])
        assert (x[:, 0] == torch.from_numpy(grey())[labels]).all()

    def test_floats_outside_the_unit_interval_are_real(self, tmp_path):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 5)))
        assert data.load(str(tmp_path / "x.npy")).support is constraints.real

    def test_a_folder_of_images_with_subfolders_as_labels(self, tmp_path):
        for i, image in enumerate(grey()):
            folder = tmp_path / f"class{i % 2}"
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
        found = data.load(str(tmp_path))
        assert found.event_shape == (1, 6, 6)
        assert set(torch.cat([split.labels for split in found.splits.values()]).tolist()) == {0, 1}

    def test_a_flat_folder_in_colour_has_no_labels(self, tmp_path):
        for i, image in enumerate(grey(5)):
            Image.fromarray(np.stack([image] * 3, axis=-1)).save(tmp_path / f"{i}.png")
        found = data.load(str(tmp_path))
        assert found.event_shape == (3, 6, 6)
        assert found.train.labels is None

    def test_a_tensor(self):
        found = data.from_tensor(torch.rand(30, 4), labels=torch.arange(30), binarize="static")
        assert found.event_shape == (4,)
        assert set(found.train[:].unique().tolist()) == {0.0, 1.0}


def test_at_most_ten_thousand_are_held_out_for_each():
    found = data.from_tensor(torch.zeros(120_000, 1))
    assert [len(split) for split in found.splits.values()] == [100_000, 10_000, 10_000]


class Fake:
    """Stands for a class of torchvision.datasets: not there unless downloaded, and no network."""

    found = False

    def __init__(self, root, download=False, train=None, split=None, background=None):
        if not self.found:
            raise RuntimeError("Dataset not found or corrupted." if not download else "<urlopen error no network>")
        count = 30 if train or split == "train" or background else 6
        shape = {"CIFAR10": (count, 8, 8, 3), "SVHN": (count, 3, 8, 8)}.get(type(self).__name__, (count, 8, 8))
        self.data = np.full(shape, count, dtype=np.uint8)
        self.targets = self.labels = list(range(count))
        self.pictures = [(Image.new("L", (105, 105), 255), i) for i in range(count)]

    def __iter__(self):
        return iter(self.pictures)


@pytest.fixture
def torchvision_datasets(monkeypatch):
    """The classes of torchvision.datasets, replaced by fakes of the same names: the real ones need a network."""
    from torchvision import datasets

    for name, *_ in NAMES.values():
        monkeypatch.setattr(datasets, name, type(name, (Fake,), {}))


@pytest.mark.usefixtures("torchvision_datasets")
@pytest.mark.parametrize("name", NAMES)
class TestTorchvision:
    def test_train_test_and_a_sixth_held_out(self, name, monkeypatch):
        monkeypatch.setattr(Fake, "found", True)
        found = data.load(name)
        assert [len(split) for split in found.splits.values()] == [25, 5, 6]
        colour = 3 if name in ("cifar10", "svhn") else 1
        side = 28 if name == "omniglot" else 8
        assert found.event_shape == (colour, side, side)
        assert len(found.test.labels) == 6
        if name != "omniglot":
            assert (found.test.pixels == 6).all()

    def test_without_a_network_says_what_to_do(self, name):
        message = rf"Found no {name} under 'here', and could not download it.*--root, or run once with a network"
        with pytest.raises(FileNotFoundError, match=message):
            data.load(name, root="here")


def test_omniglot_is_ink_on_paper(monkeypatch, torchvision_datasets):
    monkeypatch.setattr(Fake, "found", True)
    assert (data.load("omniglot").train.pixels == 0).all()  # blank paper, no ink


def write(path, array):
    np.save(path, array)
    return str(path)


def images(folder, sizes):
    for i, size in enumerate(sizes):
        Image.new("L", size).save(folder / f"{i}.png")
    return str(folder)


BAD = {
    "unknown name": (lambda p: {"data": "minst"}, ValueError, "Expected one of digits, mnist.*or a path; got 'minst'"),
    "no such file": (lambda p: {"data": str(p / "x.npy")}, FileNotFoundError, "there is nothing at"),
    "NaN": (lambda p: {"data": write(p / "x.npy", np.full((10, 4), np.nan))}, ValueError, "finite numbers.*got .* NaN"),
    "infinite": (lambda p: {"data": write(p / "x.npy", np.full((10, 4), np.inf))}, ValueError, "NaN or infinite"),
    "empty": (lambda p: {"data": write(p / "x.npy", np.zeros((0, 4)))}, ValueError, r"not empty.*got shape \(0, 4\)"),
    "one number a row": (lambda p: {"data": write(p / "x.npy", np.zeros(9))}, ValueError, r"shape \(images, ...\)"),
    "two images": (lambda p: {"data": write(p / "x.npy", np.zeros((2, 4)))}, ValueError, "at least 3 images.*got 2"),
    "text": (lambda p: {"data": write(p / "x.npy", np.array([["a"]]))}, ValueError, "Expected numbers"),
    "objects": (
        lambda p: {"data": write(p / "x.npy", np.array([{}, 1], dtype=object))},
        ValueError,
        "could not read .*pickle",
    ),
    "not a npy": (
        lambda p: {"data": (p / "x.npy").write_text("no") and str(p / "x.npy")},
        ValueError,
        "Expected a .npy or .npz file of numbers; could not read",
    ),
    "npz without x": (
        lambda p: {"data": np.savez(p / "x.npz", a=np.zeros(3), b=np.zeros(3)) or str(p / "x.npz")},
        ValueError,
        "Expected an array named x in .*; got a, b",
    ),
    "labels missing": (
        lambda p: {"data": np.savez(p / "x.npz", x=np.zeros((9, 4)), labels=np.zeros(8)) or str(p / "x.npz")},
        ValueError,
        "Expected 9 labels",
    ),
    "empty folder": (lambda p: {"data": str(p)}, ValueError, "Expected images .* found none"),
    "sizes differ": (
        lambda p: {"data": images(p, [(4, 4), (5, 4)])},
        ValueError,
        r"one size; got \(4, 4\) .* \(4, 5\)",
    ),
    "unreadable image": (
        lambda p: {"data": images(p, [(4, 4)] * 3) if (p / "bad.png").write_text("no") else ""},
        ValueError,
        "Expected an image; could not read .*bad.png",
    ),
    "binarise reals": (
        lambda p: {"data": write(p / "x.npy", np.full((9, 4), 2.0)), "binarize": "static"},
        ValueError,
        r"pixels in \[0, 1\] to binarise; got \[2, 2\]",
    ),
    "dequantise floats": (
        lambda p: {"data": write(p / "x.npy", np.zeros((9, 4))), "dequantize": True},
        ValueError,
        "whole grey levels",
    ),
    "both": (lambda p: {"data": "digits", "binarize": "static", "dequantize": True}, ValueError, "either .* got both"),
    "too many held out": (lambda p: {"data": "digits", "valid": 1700}, ValueError, "fewer than the 1617 .* got 1700"),
}


@pytest.mark.parametrize(("make", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_data_gets_a_sentence(make, kind, message, tmp_path):
    with pytest.raises(kind, match=message) as caught:
        data.load(**make(tmp_path))
    assert "\n" not in str(caught.value)
