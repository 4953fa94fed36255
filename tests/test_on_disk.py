"""A .npy file that stays on disk gives the numbers of the same file in memory, and takes no memory."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae import VAE, data, fit
from pyro_vae.__main__ import main
from pyro_vae.data.on_disk import Stored

COUNT = 300
STATUS = Path("/proc/self/status")


@pytest.fixture
def on_disk(monkeypatch):
    """Keep .npy files of any size on disk, which are read 2,000 bytes at a time."""
    monkeypatch.setattr("pyro_vae.data.on_disk.LARGE", 0)
    monkeypatch.setattr("pyro_vae.data.on_disk.AT_ONCE", 2000)


def both(path, monkeypatch, **options):
    """The same file in memory and on disk."""
    with monkeypatch.context() as patched:
        patched.setattr("pyro_vae.data.on_disk.LARGE", 2**40)
        loaded = data.load(str(path), **options)
    found = data.load(str(path), **options)
    assert isinstance(loaded.train.pixels, torch.Tensor)
    assert isinstance(found.train.pixels, Stored)
    return loaded, found


def grey(*shape, high=256):
    return np.random.default_rng(0).integers(0, high, (COUNT, *shape))


ARRAYS = {
    "bytes": grey(6, 5).astype(np.uint8),
    "colour last": grey(6, 5, 3).astype(np.uint8),
    "colour first": grey(3, 6, 5).astype(np.uint8),
    "booleans": grey(6, 5) > 100,
    "zeros and ones": grey(6, 5, high=2),
    "16 bits of the other byte order": grey(6, 5).astype(">i2"),
    "unsigned 32 bits": grey(6, 5).astype(np.uint32),
    "whole numbers beyond a byte": grey(30, high=1000) - 500,
    "floats, counts beyond a byte": grey(30, high=1000).astype(np.float32),
    "floats, zeros and ones": grey(30, high=2).astype(np.float64),
    "float64": grey(30) / 255,
    "float16, real": (grey(30) - 100).astype(np.float16),
}
OPTIONS = {
    "plain": {},
    "dynamic": {"binarize": "dynamic"},
    "threshold": {"binarize": "threshold"},
    "dequantize": {"dequantize": True},
    "valid": {"valid": 7},
    "counts": {"counts": True},
}
BINARY = {"dynamic", "threshold"}
PAIRS = [
    (kind, option)
    for kind in ARRAYS
    for option in OPTIONS
    if option != "counts"
    and not (option in BINARY and ("beyond" in kind or "real" in kind))
    and not (option == "dequantize" and "o" in kind)
] + [("booleans", "dequantize"), ("zeros and ones", "dequantize")]
PAIRS += [(kind, "counts") for kind in ("bytes", "zeros and ones", "floats, counts beyond a byte")]


@pytest.mark.parametrize(("kind", "option"), PAIRS)
def test_the_same_numbers_as_in_memory(kind, option, tmp_path, monkeypatch, on_disk):
    np.save(tmp_path / "x.npy", ARRAYS[kind])
    loaded, found = both(tmp_path / "x.npy", monkeypatch, **OPTIONS[option])
    assert found.event_shape == loaded.event_shape
    assert found.support is loaded.support
    assert str(found) == str(loaded)
    assert torch.equal(found.mean, loaded.mean)
    order = torch.randperm(len(loaded.train))
    for index in (slice(None), slice(3, 90), slice(-5, None), slice(9999, None), order[:64], order.flip(0)):
        state = torch.get_rng_state()
        expected = loaded.train[index]
        torch.set_rng_state(state)
        x = found.train[index]
        assert x.dtype == expected.dtype
        assert torch.equal(x, expected)
    assert torch.equal(found.valid[:], loaded.valid[:])
    assert torch.equal(found.test[:], loaded.test[:])
    assert [len(split) for split in found.splits.values()] == [len(split) for split in loaded.splits.values()]
    assert found.digests == loaded.digests


@pytest.mark.parametrize("options", [{}, {"binarize": "dynamic"}], ids=["grey", "dynamic"])
@pytest.mark.parametrize("kind", ["bytes", "float64"])
def test_fit_gives_the_same_history(kind, options, tmp_path, monkeypatch, on_disk):
    np.save(tmp_path / "x.npy", ARRAYS[kind])
    histories = []
    for dataset in both(tmp_path / "x.npy", monkeypatch, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = VAE.build(dataset.event_shape, latent=2)
        histories.append(fit(vae, dataset, epochs=2, batch_size=32, progress=False))
        del histories[-1]["seconds"]
    assert histories[0] == histories[1]


def test_the_command_trains_and_evaluates(elsewhere, capsys, on_disk, unrendered):
    np.save("x.npy", ARRAYS["bytes"])
    train = "train --data x.npy --latent 2 --epochs 1 --network.hidden [8] --run_dir run"
    evaluate = "evaluate run --num_particles 25 --chosen 0"
    assert main(train.split()) == main(evaluate.split()) == 0
    assert capsys.readouterr().out.count("\ntrain ") == 2
    np.save("x.npy", ARRAYS["bytes"][::-1])
    for command in (evaluate, "compare run run", "train --resume run --epochs 2"):
        assert main(command.split()) == 2
        assert "Expected the data that 'run' was trained on" in capsys.readouterr().err


def test_batches_are_read_onto_the_device(tmp_path, device, on_disk):
    np.save(tmp_path / "x.npy", ARRAYS["bytes"])
    train = data.load(str(tmp_path / "x.npy")).train
    moved = train.to(device)
    index = torch.tensor([5, 3], device=device)
    assert moved[index].device.type == device
    assert torch.equal(moved[index].cpu(), train[index.cpu()])
    assert torch.equal(moved.mean, train.mean)


def test_the_mean_is_remembered(tmp_path, on_disk):
    np.save(tmp_path / "x.npy", ARRAYS["bytes"])
    found = data.load(str(tmp_path / "x.npy"))
    mean = found.mean
    (tmp_path / "x.npy").unlink()
    assert torch.equal(found.mean, mean)


def test_what_is_frozen_is_in_memory(tmp_path, monkeypatch, on_disk):
    np.save(tmp_path / "x.npy", ARRAYS["bytes"])
    for options in ({"dequantize": True}, {"binarize": "dynamic"}):
        loaded, found = both(tmp_path / "x.npy", monkeypatch, **options)
        frozen = [split.train.with_fixed_noise(torch.Generator().manual_seed(0)).pixels for split in (loaded, found)]
        assert torch.equal(*frozen)


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc")
def test_memory_stays_flat(tmp_path, monkeypatch):
    """A pass over 125 MB, after one over 6 MB; pages of a memory map, or images that are kept, would be 125 MB.

    The heap of a process in which thousands of tests have run moves by some tens.
    """

    def resident():
        return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))

    def read_all(count):
        array = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(count, 112, 112))
        array[:, 0, 0] = 255
        del array
        train = data.load(str(tmp_path / "x.npy")).train
        assert train.mean.sum() == 1
        for batch in torch.randperm(len(train)).split(128):
            assert train[batch].sum() == len(batch)
        return resident()

    monkeypatch.setattr("pyro_vae.data.on_disk.LARGE", 2**20)
    monkeypatch.setattr("pyro_vae.data.splits.MOST", 100)
    before = read_all(500)
    assert read_all(10_000) - before < 80_000  # kB


class TestFilesThatChange:
    @pytest.fixture
    def path(self, tmp_path, on_disk):
        np.save(tmp_path / "x.npy", ARRAYS["bytes"])
        return tmp_path / "x.npy"

    @pytest.mark.parametrize("change", ["cut", "written", "moved", "replaced"])
    def test_while_training(self, change, path):
        train = data.load(str(path)).train
        if change == "cut":
            os.truncate(path, 5000)
        elif change == "written":
            time.sleep(0.01)
            np.save(path, ARRAYS["bytes"][::-1])
        elif change == "moved":
            path.rename(path.with_suffix(".old"))
        else:
            np.save(path.with_suffix(".new.npy"), ARRAYS["bytes"])
            path.with_suffix(".new.npy").rename(path)
        with pytest.raises(ValueError, match="not to change.*truncated or modified.*Load it again"):
            train[:10]

    def test_too_short_for_its_header(self, path):
        os.truncate(path, 5000)
        with pytest.raises(ValueError, match="Expected a .npy or .npz file of numbers; could not read"):
            data.load(str(path))


def write(path, array):
    np.save(path, array)
    return {"data": str(path)}


BAD = {
    "Fortran order": (lambda p: write(p, np.asfortranarray(ARRAYS["bytes"])), "C order in .*; got Fortran order. Save"),
    "objects": (lambda p: write(p, np.array([{}, 1], dtype=object)), "file of numbers; could not read .*objects"),
    "text": (lambda p: write(p, np.array([["a"]])), "Expected numbers in"),
    "complex": (lambda p: write(p, np.ones((9, 4), complex)), "Expected numbers in"),
    "NaN": (
        lambda p: write(p, np.where(grey(30) == 7, np.nan, 0)),
        r"finite numbers in .*; got \d+ of 9,000 .* save a dense x as .npz",
    ),
    "one number": (lambda p: write(p, np.array(3.0)), r"shape \(N, .*\)"),
    "one number a row": (lambda p: write(p, np.zeros(9)), r"shape \(N, .*\)"),
    "two images": (lambda p: write(p, np.zeros((2, 4))), "at least 3 rows.*got 2"),
    "static": (
        lambda p: write(p, ARRAYS["bytes"]) | {"binarize": "static"},
        "none, dynamic or threshold for .*, which stays on disk; got 'static'.*Use dynamic",
    ),
    "binarise reals": (
        lambda p: write(p, ARRAYS["float16, real"]) | {"binarize": "dynamic"},
        r"pixels in \[0, 1\] for binarize; got \[-100, 155\]",
    ),
    "dequantise floats": (lambda p: write(p, ARRAYS["float64"]) | {"dequantize": True}, "integer grey levels"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_files_get_a_sentence(make, message, tmp_path, on_disk):
    with pytest.raises(ValueError, match=message) as caught:
        data.load(**make(tmp_path / "x.npy"))
    assert "\n" not in str(caught.value)
