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
        assert data.load("digits").support is data.levels(17)

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


class TestMissing:
    """20 images, of which a fifth of the elements is missing."""

    MASK = np.random.default_rng(1).random((20, 6, 6)) > 0.2

    def all(self, dataset):
        return torch.cat([split[:] for split in dataset.splits.values()])

    def rows(self, dataset, array):
        """What the splits hold of an array whose first column of labels is its order."""
        return torch.from_numpy(array)[torch.cat([split.labels for split in dataset.splits.values()])]

    def load(self, folder, x, mask=None, **options):
        arrays = {"x": x, "labels": np.arange(len(x))} | ({} if mask is None else {"mask": mask})
        return data.load(masked(folder / "x.npz", **arrays), **options)

    def test_nan_is_missing(self, tmp_path):
        x = np.where(self.MASK, grey() / 255, np.nan)
        found = self.load(tmp_path, x)
        torch.testing.assert_close(self.all(found)[:, 0], self.rows(found, x.astype("f4")), equal_nan=True)
        assert found.support is constraints.unit_interval
        assert found.missing == pytest.approx(1 - self.MASK.mean())
        assert str(found).endswith(f"x.npz, not binarised, {100 * found.missing:.3g}% missing")

    @pytest.mark.parametrize("kind", ["bytes", "floats", "real", "booleans", "big"])
    def test_a_mask_says_what_is_missing_whatever_stands_there(self, kind, tmp_path):
        whole = {
            "bytes": grey(),
            "floats": grey() / 255,
            "real": grey() - 100.0,
            "booleans": grey() > 100,
            "big": grey().astype(int) * 100,
        }[kind]
        wild = {"bytes": 99, "floats": np.inf, "real": np.nan, "booleans": True, "big": -1}[kind]
        found = self.load(tmp_path, np.where(self.MASK, whole, wild).astype(whole.dtype), self.MASK)
        plain = self.load(tmp_path, whole)
        seen = self.rows(found, self.MASK).unsqueeze(1)
        assert torch.equal(self.all(found).isnan(), ~seen)
        assert torch.equal(self.all(found)[seen], self.all(plain)[seen])
        assert found.support is plain.support
        assert found.train.pixels.dtype == plain.train.pixels.dtype

    @pytest.mark.parametrize("shape", [(20, 6, 6), (20, 1, 6, 6), (20, 6, 6, 1)])
    @pytest.mark.parametrize("axis", [1, -1])
    def test_a_mask_may_be_for_all_channels(self, shape, axis, tmp_path):
        found = self.load(tmp_path, np.stack([grey()] * 3, axis=axis), self.MASK.reshape(shape))
        assert found.event_shape == (3, 6, 6)
        assert torch.equal(self.all(found).isnan(), ~self.rows(found, self.MASK).unsqueeze(1).expand(-1, 3, -1, -1))

    def test_a_mask_of_all_is_no_mask(self, tmp_path):
        found = self.load(tmp_path, grey(), np.ones_like(self.MASK))
        assert found.train.mask is None
        assert found.missing == 0
        assert "missing" not in str(found)

    @pytest.mark.parametrize("options", [{"binarize": "dynamic"}, {"binarize": "static"}, {"dequantize": True}])
    def test_noise_is_drawn_around_it(self, options, tmp_path):
        found, plain = self.load(tmp_path, grey(), self.MASK, **options), self.load(tmp_path, grey(), **options)
        again = found.train[:]
        for x, other in ((found.train[:], again), (found.valid[:], plain.valid[:]), (found.test[:], plain.test[:])):
            seen = ~x.isnan()
            assert torch.equal(x[seen], other[seen]) == (other is not again or options == {"binarize": "static"})
        assert torch.equal(self.all(found).isnan(), ~self.rows(found, self.MASK).unsqueeze(1))
        index = torch.tensor([5, 0, 7])
        assert torch.equal(found.train[index].isnan(), again[index].isnan())

    @pytest.mark.parametrize("options", [{}, {"binarize": "threshold"}, {"dequantize": True}, {"binarize": "static"}])
    def test_the_mean_is_of_what_is_observed(self, options, tmp_path):
        """To a part in a million; of dequantised pixels within half a grey level, since their noise is averaged out."""
        mask = self.MASK.copy()
        mask[:, 2, 3] = False
        found = self.load(tmp_path, grey(), mask, **options)
        x = found.train[:]
        expected = x.nanmean(0)
        expected[0, 2, 3] = x.nansum() / (~x.isnan()).sum() if not options else found.mean[0, 2, 3]
        torch.testing.assert_close(found.mean, expected, rtol=1e-5, atol=0.5 / 256 if "dequantize" in options else 1e-6)
        assert 0 < found.mean[0, 2, 3] < 1
        assert found.train.frozen(torch.Generator()).mean.isfinite().all()

    def test_of_a_tensor(self):
        x, mask = torch.randint(256, (30, 3, 4, 4), dtype=torch.uint8), torch.rand(30, 3, 4, 4) > 0.5
        found = data.from_tensor(x, mask=mask)
        assert found.missing == pytest.approx(1 - mask.float().mean().item())
        assert str(found) == f"tensor, not binarised, {100 * found.missing:.3g}% missing"
        moved = found.train.to("cpu")
        assert torch.equal(moved[:].isnan(), ~found.train.mask)
        gappy = torch.rand(30, 4)
        gappy[3, 2] = float("nan")
        assert data.from_tensor(gappy).missing == pytest.approx(1 / 120)


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

    for name in NAMES.values():
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


def masked(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def images(folder, sizes):
    for i, size in enumerate(sizes):
        Image.new("L", size).save(folder / f"{i}.png")
    return str(folder)


BAD = {
    "unknown name": (lambda p: {"data": "minst"}, ValueError, "Expected one of digits, mnist.*or a path; got 'minst'"),
    "no such file": (lambda p: {"data": str(p / "x.npy")}, FileNotFoundError, "there is nothing at"),
    "NaN": (
        lambda p: {"data": write(p / "x.npy", np.full((10, 4), np.nan))},
        ValueError,
        "something observed of every row in .*; got 10 of 10 that are NaN or masked all over. Leave those rows out",
    ),
    "infinite": (
        lambda p: {"data": write(p / "x.npy", np.full((10, 4), np.inf))},
        ValueError,
        "finite numbers .*; got 40 of 40 that are infinite. Fill them in, .* or make them NaN, which is missing",
    ),
    "an image masked all over": (
        lambda p: {"data": masked(p / "x.npz", x=grey(), mask=np.arange(20).reshape(20, 1, 1) + np.zeros((6, 6)) > 0)},
        ValueError,
        "something observed of every image in .*; got 1 of 20",
    ),
    "a mask of numbers": (
        lambda p: {"data": masked(p / "x.npz", x=grey(), mask=np.ones((20, 6, 6)))},
        ValueError,
        "mask of booleans, True where observed, in .*; got torch.float32",
    ),
    "a mask of another shape": (
        lambda p: {"data": masked(p / "x.npz", x=grey(), mask=np.ones((20, 6, 5), dtype=bool))},
        ValueError,
        r"mask of the shape of x, \(20, 1, 6, 6\), or with one channel, in .*; got \(20, 1, 6, 5\)",
    ),
    "one mask for all": (
        lambda p: {"data": masked(p / "x.npz", x=grey(), mask=np.ones((1, 6, 6), dtype=bool))},
        ValueError,
        r"got \(1, 1, 6, 6\)",
    ),
    "empty": (lambda p: {"data": write(p / "x.npy", np.zeros((0, 4)))}, ValueError, r"not empty.*got shape \(0, 4\)"),
    "one number a row": (lambda p: {"data": write(p / "x.npy", np.zeros(9))}, ValueError, r"shape \(images, ...\)"),
    "two images": (lambda p: {"data": write(p / "x.npy", np.zeros((2, 4)))}, ValueError, "at least 3 rows.*got 2"),
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
    "fewer than none held out": (lambda p: {"data": "digits", "valid": -1}, ValueError, "at least 0 .* got -1"),
    "too many held out": (lambda p: {"data": "digits", "valid": 1700}, ValueError, "fewer than the 1617 .* got 1700"),
}


@pytest.mark.parametrize(("make", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_data_gets_a_sentence(make, kind, message, tmp_path):
    with pytest.raises(kind, match=message) as caught:
        data.load(**make(tmp_path))
    assert "\n" not in str(caught.value)
