import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.distributions import constraints

from pyro_vae import VAE, data, fit
from pyro_vae.data import sources
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
        assert found.train.with_fixed_noise(torch.Generator()).mean.isfinite().all()

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


class TestFolders:
    """White above, black below, and a colour of its own in a corner."""

    PICTURE = np.repeat(np.array([[255] * 6] * 2 + [[0] * 6] * 2, np.uint8)[..., None], 4, -1)

    def load(self, folder, suffix, images, **options):
        for i, image in enumerate(images):
            image.save(folder / f"{i}.{suffix}", **options)
        return data.load(str(folder))

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_images_stand_upright_as_their_exif_data_say(self, suffix, mode, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(self.PICTURE[..., 0]).convert(mode).transpose(Image.Transpose.ROTATE_90)
        found = self.load(tmp_path, suffix, [image] * 9, exif=exif)
        assert found.event_shape[1:] == (4, 6)
        expected = torch.from_numpy(self.PICTURE[..., 0]) / 255
        torch.testing.assert_close(found.train[:1][0, 0], expected, atol=0.02, rtol=0)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB"])
    def test_what_is_transparent_is_white_and_the_text_says_it(self, mode, tmp_path):
        picture = Image.fromarray(self.PICTURE)
        picture.putalpha(Image.fromarray(np.where(np.arange(6) < 3, 0, 255).astype("u1")[None].repeat(4, 0)))
        key = {"transparency": 0 if mode == "P" else (0, 0, 0)} if mode in ("P", "RGB") else {}
        image = picture.convert("L").convert(mode) if key else picture.convert(mode)
        found = self.load(tmp_path, "tif" if mode == "PA" else "png", [image] * 9, **key)
        x = found.train[:][0, 0]
        clear = slice(None) if key else slice(3)  # black is the key
        assert (x[:, clear] == 1).all()
        assert key or (x[2:, 3:] == 0).all()
        assert found.event_shape[0] == (1 if mode == "LA" else 3)
        assert "transparency of 9 images on white" in str(found)

    @pytest.mark.parametrize("ending", ["gif", "tif"])
    def test_of_several_frames_the_first_is_taken_and_the_text_says_it(self, ending, tmp_path):
        first, second = (Image.fromarray(np.full((4, 6), level, dtype="u1")) for level in (100, 200))
        found = self.load(tmp_path, ending, [first] * 5, save_all=True, append_images=[second])
        assert (found.train[:] == 100 / 255).all()
        assert "the first frame of 5 images" in str(found)

    def test_opaque_grey_and_colour_together_are_colour(self, tmp_path):
        images = [Image.fromarray(self.PICTURE[..., 0]).convert(mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "P")]
        found = self.load(tmp_path, "png", images)
        assert found.event_shape == (3, 4, 6)
        assert "transparency" not in str(found)
        for split in found.splits.values():
            assert (split[:] == torch.from_numpy(self.PICTURE[..., 0]) / 255).all()

    def test_sixteen_bits_are_no_grey_levels(self, tmp_path):
        with pytest.raises(ValueError, match=r"8-bit images; got mode I;16 in .*0.png'. Save .*\.npy"):
            self.load(tmp_path, "png", [Image.fromarray(self.PICTURE[..., 0].astype("u2"))] * 3)

    def test_broken_exif_data_are_no_reason_to_refuse(self, tmp_path):
        image = Image.fromarray(self.PICTURE[..., 0])
        assert self.load(tmp_path, "png", [image] * 3, exif=b"Exif\0\0no").event_shape == (1, 4, 6)

    @pytest.mark.parametrize("limit", [20, 10])
    def test_an_oversized_image_is_named(self, limit, tmp_path, monkeypatch):
        """Above the limit Pillow warns, and above twice the limit it raises."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=rf"could not read .*1.png'. Save it with at most {limit} pixels"):
            data.load(images(tmp_path, [(4, 2), (4, 6), (4, 2)]))

    @pytest.mark.parametrize(
        ("shape", "event_shape"),
        [
            ((9, 32, 32, 4), (4, 32, 32)),
            ((9, 8, 8, 2), (2, 8, 8)),
            ((9, 4, 8, 8), (4, 8, 8)),
            ((9, 16, 4, 4), (16, 4, 4)),
            ((9, 4, 4, 3), (3, 4, 4)),
        ],
    )
    def test_channels_with_transparency_are_channels(self, shape, event_shape):
        x = torch.rand(*shape)
        found = data.from_tensor(x)
        assert found.event_shape == event_shape
        assert found.mean.sum().item() == pytest.approx(found.train[:].sum().item() / len(found.train), rel=1e-5)


NUMBERS = np.arange(80).reshape(20, 4)
STEPS = {
    "large": 1e9 + NUMBERS,
    "one column": np.where(np.arange(4) == 2, 1.7e9 + NUMBERS, NUMBERS / 80),
    "with gaps": np.where(NUMBERS % 7 == 0, np.nan, 1e9 + NUMBERS),
    "next to 1": 1 + 1e-10 * NUMBERS,
    "vanish": 1e-50 * NUMBERS,
    "overflow": 1e39 * NUMBERS,
    "whole": 2**40 + NUMBERS,
    "whole, beyond float64": 2**60 + NUMBERS,
    "unsigned": np.uint64(2**64 - 100) + NUMBERS.astype("u8"),
}


class TestNumbers:
    @pytest.mark.parametrize("where", ["file", "disk", "tensor"])
    @pytest.mark.parametrize("kind", STEPS)
    def test_numbers_that_float32_would_change_are_refused(self, kind, where, tmp_path, monkeypatch):
        if where == "tensor":
            with pytest.raises(ValueError, match="float32 tells apart in a tensor|below 2.63 in x"):
                data.from_tensor(STEPS[kind])
            return
        monkeypatch.setattr("pyro_vae.data.on_disk.LARGE", 0 if where == "disk" else 2**40)
        with pytest.raises(ValueError, match=r"(float32 tells apart|below 2\^63) in '.*x.npy'"):
            data.load(write(tmp_path / "x.npy", STEPS[kind]))

    @pytest.mark.parametrize("noise", [0.0, 1e-17])
    def test_rounding_is_no_change(self, noise):
        x = np.where(np.arange(4) == 2, 0.1 + noise * NUMBERS, np.random.default_rng(0).normal(size=(20, 4)))
        assert data.from_tensor(x).support is constraints.real

    def test_what_a_mask_hides_is_no_reason_to_refuse(self):
        hidden = NUMBERS % 7 == 0
        assert data.from_tensor(np.where(hidden, 1e300, NUMBERS / 80), mask=~hidden).missing > 0

    @pytest.mark.parametrize(
        "kind", ["u1", "u2", "u4", "u8", "i1", "<i2", ">i4", "i8", "f2", "<f4", ">f4", "f8", ">f8"]
    )
    @pytest.mark.parametrize("layout", ["plain", "Fortran", "backwards", "tensor"])
    def test_a_number_is_the_same_in_every_dtype_and_layout(self, kind, layout):
        x = np.stack([100 * NUMBERS[:, 0] % 127, NUMBERS[:, 0]], 1).astype(kind)
        given = {"plain": x, "Fortran": np.asfortranarray(x), "backwards": x[::-1][::-1]}.get(layout)
        given = torch.from_numpy(x.astype(x.dtype.newbyteorder("="))) if given is None else given
        found = data.from_tensor(given, labels=np.arange(20), counts=True)
        for split in found.splits.values():
            assert torch.equal(split[:].double(), torch.from_numpy(x.astype("f8"))[split.labels])

    def test_few_grey_levels_are_said(self):
        with pytest.warns(UserWarning, match=r"largest in a tensor is 16, .*at most 0.063"):
            assert data.from_tensor(NUMBERS % 17).train[:].max() <= 16 / 255
        assert data.from_tensor(NUMBERS % 17, counts=True).train[:].max() == 16


GIVEN = {
    "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(9, 4))),
    "dataset": torch.utils.data.TensorDataset(torch.rand(9, 4)),
    "sparse": torch.eye(9).to_sparse(),
    "text": "digits",
    "words": [["a"]] * 9,
    "complex": np.ones((9, 4), complex),
    "no numbers": torch.zeros(9, 4, device="meta"),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_what_is_no_array_is_named_as_an_argument(given):
    entries = {
        "x": data.from_tensor,
        "labels": lambda labels: data.from_tensor(torch.rand(9, 4), labels),
        "y": lambda y: data.from_columns({"x": torch.rand(9, 4), "y": y}),
        "data": lambda x: fit(VAE.build((4,), latent=2), x),
    }
    for argument, entry in entries.items():
        if argument != "data" or not isinstance(given, list):
            with pytest.raises(
                ValueError, match=f"Expected {argument} to be a dense tensor or an array of numbers; got"
            ):
                entry(given)


@pytest.mark.parametrize("given", [np.zeros((9, 4)), torch.zeros(9, 4), None, [1, 2]])
def test_load_is_of_names_and_paths(given):
    with pytest.raises(
        ValueError, match="Expected data to be a name or a path; got a .* Pass arrays to data.from_tensor"
    ):
        data.load(given)


@pytest.mark.parametrize("name", ["x.npy", "folder/x", "pictures"])
def test_where_nothing_is_the_absolute_path_is_said(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        data.load(name)
    assert repr(str(tmp_path)) in str(caught.value)
    assert name in str(caught.value)


class TestTables:
    ROWS = "\n".join(f"{i},{i / 2},{i % 3}" for i in range(20))

    def load(self, folder, text, name="x.csv", **options):
        (folder / name).write_text(text)
        return data.load(str(folder / name), **options)

    @pytest.mark.parametrize(
        ("head", "names", "suffix"),
        [("a,b,c\n", "abc", "csv"), ("a\tb\tc\n", "abc", "tsv"), ("", "", "csv"), ("0,1,2\n", "", "CSV")],
    )
    def test_are_rows_of_named_columns(self, head, names, suffix, tmp_path):
        rows = self.ROWS.replace(",", "\t") if suffix == "tsv" else self.ROWS
        found = self.load(tmp_path, head + rows, f"x.{suffix}")
        assert found.event_shape == (3,)
        assert found.names == tuple(names)
        assert found.words == "rows of 3 columns" + (" (a, b, c)" if names else "")
        x = torch.cat([split[:] for split in found.splits.values()])
        rows = [[float(number) for number in row.split(",")] for row in self.ROWS.split("\n")]
        assert sorted(x.tolist()) == rows

    def test_a_column_of_row_numbers_without_a_name_is_none(self, tmp_path):
        rows = "\n".join(f"{i},{row}" for i, row in enumerate(self.ROWS.split("\n")))
        assert self.load(tmp_path, ",a,b,c\n" + rows).names == ("a", "b", "c")

    def test_whole_numbers_are_no_grey_levels_and_what_is_absent_is_missing(self, tmp_path):
        found = self.load(tmp_path, "a,b,c\n" + self.ROWS.replace(".5", "").replace("7,3,", "7,,"))
        assert found.support is constraints.nonnegative_integer
        assert found.missing == pytest.approx(1 / 60)
        assert found.mean[0] > 2

    def test_columns_are_arguments_by_name(self, tmp_path):
        found = self.load(tmp_path, "a,b,c\n" + self.ROWS, columns=["b", "c"])
        assert found.event_shape == ()
        assert found.train.extra["c"].dtype == torch.int64

    BAD = {
        "words": ("a,b,kind\n" + ROWS.replace("1.5,0", "1.5,setosa"), "'setosa' in 'kind'"),
        "question mark": ("a,b,c\n" + ROWS.replace("3,1.5", "3,?"), r"'\?' in 'b'"),
        "numbers of rows": ("a,b\n" + "\n".join(f"{10**18 + i},{i}" for i in range(9)), "tells apart in column 'a'"),
        "empty": ("", "Expected a table; could not read"),
        "no rows": ("a,b\n", "Expected at least 3 rows.*; got 0"),
        "ragged": ("a,b\n1,2\n1,2,3,4\n", "Expected a table; could not read"),
        "infinite": ("a,b,c\n" + ROWS.replace("3,1.5", "3,inf"), "finite numbers .* 1 of 60"),
    }

    @pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
    def test_what_is_wrong_is_one_sentence(self, text, message, tmp_path):
        with pytest.raises(ValueError, match=message) as caught:
            self.load(tmp_path, text)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("suffix", ["csv", "parquet"])
    def test_without_pandas_the_sentence_says_what_to_install(self, suffix, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ValueError, match=rf'x.{suffix}.*got no pandas. Run pip install "pyro_vae.tables."'):
            self.load(tmp_path, "a\n1\n", f"x.{suffix}")

    @pytest.mark.parametrize("name", ["x.pt", "x.json", "x.jpg"])
    def test_another_file_is_one_sentence_without_pickles(self, name, tmp_path):
        torch.save(torch.zeros(9, 4), tmp_path / "x.pt")
        with pytest.raises(ValueError, match=r"npz file of numbers, or .csv, .*, .h5ad; could not read") as caught:
            self.load(tmp_path, "[1]", name) if name != "x.pt" else data.load(str(tmp_path / name))
        assert "pickle" not in str(caught.value)


BAD = {
    "unknown name": (lambda p: {"data": "minst"}, ValueError, "Expected one of digits, mnist.*or a path; got 'minst'"),
    "no such file": (lambda p: {"data": str(p / "x.npy")}, FileNotFoundError, "there is nothing at"),
    "NaN": (
        lambda p: {"data": write(p / "x.npy", np.full((10, 4), np.nan))},
        ValueError,
        "observed element in every row in .*; got 10 of 10 rows.*Leave these rows out",
    ),
    "infinite": (
        lambda p: {"data": write(p / "x.npy", np.full((10, 4), np.inf))},
        ValueError,
        "finite numbers .*; got 40 of 40 that are infinite. Fill them in, .* or set them to NaN",
    ),
    "an image masked all over": (
        lambda p: {"data": masked(p / "x.npz", x=grey(), mask=np.arange(20).reshape(20, 1, 1) + np.zeros((6, 6)) > 0)},
        ValueError,
        "observed element in every image in .*; got 1 of 20",
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
    "empty": (lambda p: {"data": write(p / "x.npy", np.zeros((0, 4)))}, ValueError, r"x.npy.; got shape \(0, 4\)"),
    "one number a row": (lambda p: {"data": write(p / "x.npy", np.zeros(9))}, ValueError, r"shape \(N, .*\)"),
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
    "empty folder": (lambda p: {"data": str(p)}, ValueError, "Expected images .* got none"),
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
        r"pixels in \[0, 1\] for binarize; got \[2, 2\]",
    ),
    "dequantise floats": (
        lambda p: {"data": write(p / "x.npy", np.zeros((9, 4))), "dequantize": True},
        ValueError,
        "integer grey levels",
    ),
    "both": (
        lambda p: {"data": "digits", "binarize": "static", "dequantize": True},
        ValueError,
        "got binarize='static' and dequantize=True",
    ),
    "half an image held out": (lambda p: {"data": "digits", "valid": 2.5}, ValueError, "valid .* got 2.5"),
    "fewer than none held out": (lambda p: {"data": "digits", "valid": -1}, ValueError, "at least 0 .* got -1"),
    "too many held out": (lambda p: {"data": "digits", "valid": 1700}, ValueError, "fewer than the 1617 .* got 1700"),
}


@pytest.mark.parametrize(("make", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_data_gets_a_sentence(make, kind, message, tmp_path):
    with pytest.raises(kind, match=message) as caught:
        data.load(**make(tmp_path))
    assert "\n" not in str(caught.value)


class TestLabelled:
    def test_shows_as_many_of_each_class_and_another_seed_others(self):
        digits = data.load("digits")
        shown = [data.labelled(digits, 30, seed).train.columns["y"] for seed in (0, 0, 1)]
        for y in shown:
            seen = y >= 0
            assert y[seen].bincount().tolist() == [3] * 10
            assert torch.equal(y[seen], digits.train.labels[seen].long())
        assert torch.equal(shown[0], shown[1])
        assert not torch.equal(shown[0], shown[2])

    def test_is_of_training_data_alone(self):
        digits = data.load("digits")
        few = data.labelled(digits, 10)
        assert torch.equal(few.test.columns["y"], digits.test.labels)
        assert data.labelled(digits, None) is digits

    @pytest.mark.parametrize("num", [0, -10, 25, 2000])
    def test_refuses_numbers_that_are_not_so_many_of_each(self, num):
        with pytest.raises(ValueError, match=f"^Expected labelled to be a multiple of the 10 classes, .* got {num}"):
            data.labelled(data.load("digits"), num)

    def test_refuses_data_without_labels(self):
        with pytest.raises(ValueError, match="labelled = 10"):
            data.labelled(data.from_tensor(torch.rand(20, 4)), 10)


@pytest.mark.parametrize("moved", [False, True])
def test_digits_are_those_of_scikit_learn(moved, monkeypatch):
    if moved:  # in a version of scikit-learn that keeps the file elsewhere
        monkeypatch.setattr(sources, "find_spec", lambda name: None)
    bunch, source = load_digits(), sources.digits()
    assert torch.equal(source.x, torch.from_numpy(bunch.images).byte())
    assert torch.equal(source.labels, torch.from_numpy(bunch.target))
