"""Going on where a run stopped, to the last bit: after an exception, a signal, a kill, at any moment of a write."""

import json
import os
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from conftest import close_briefly

from pyro_vae import VAE, checkpoint, data, fit, guides, likelihoods, load, objectives, priors
from pyro_vae.__main__ import main
from pyro_vae.networks import MLP
from pyro_vae.train import loop, running

pytestmark = pytest.mark.slow

DYNAMIC = data.load("digits", binarize="dynamic")
GREY = data.load("digits")


def build(**parts):
    parts = {"latent": 3, "network": partial(MLP, hidden=(16,)), "likelihood": likelihoods.Bernoulli} | parts
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return VAE.build((1, 8, 8), **parts)


def train(run, dataset=DYNAMIC, parts=None, **options):
    vae = build(**(parts or {}))
    options = {"epochs": 4, "batch_size": 300, "compile": "graph"} | options
    options |= {"objective": options["objective"]()} if "objective" in options else {}
    where = {"resume": run} if (run / "config.yaml").exists() else {"run_dir": run}
    return vae, fit(vae, dataset, progress=False, **options, **where)


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def killed_at(monkeypatch, owner, name, call):
    """Have a function kill at so many calls of it, before it does anything."""
    real, calls = getattr(owner, name), iter(range(10**6))

    def function(*args, **kwargs):
        if next(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


def same(run, other):
    assert (run / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.fixture
def often(monkeypatch):
    """Save after every step."""
    monkeypatch.setattr(running, "SECONDS", 0.0)
    monkeypatch.setattr(running, "SHARE", 1e9)


class Noisy(likelihoods.Gaussian):
    """A likelihood that draws with NumPy, and so is trained in plain Pyro."""

    def distribution(self, loc):
        return super().distribution(loc + 1e-3 * np.random.default_rng(np.random.randint(1000)).normal())


RUNS = {
    "graph": {},
    "plain Pyro": {"compile": "off"},
    "one step an epoch": {"batch_size": 5000, "epochs": 5, "compile": "off"},
    "schedules": {"lr_schedule": "one-cycle", "objective": partial(objectives.ELBO, beta=objectives.Linear(0.5))},
    "cosine and clipped, in plain Pyro": {
        "lr_schedule": "cosine",
        "clip_norm": 10.0,
        "objective": partial(objectives.IWAE, 3),
        "compile": "off",
    },
    "Pyro's own ELBO": {"objective": __import__("pyro").infer.TraceGraph_ELBO},
    "a VampPrior and a flow, in plain Pyro": {
        "parts": {"prior": partial(priors.VampPrior, components=5), "guide": guides.Flow, "latent": 4},
        "compile": "off",
    },
    "a running scale": {
        "dataset": GREY,
        "parts": {"likelihood": partial(likelihoods.Gaussian, scale="optimal")},
    },
    "patience, in plain Pyro": {"patience": 2, "lr": 0.3, "epochs": 12, "compile": "off"},
    "skipping, in plain Pyro": {"on_nan": "skip", "compile": "off"},
    "bfloat16": {"precision": "bfloat16"},
    "Muon": {"optimizer": "muon", "lr_schedule": "cosine"},
    "Muon, one cycle, in plain Pyro": {"optimizer": "muon", "lr_schedule": "one-cycle", "compile": "off"},
}


@pytest.mark.filterwarnings(
    "ignore:Falling back to plain Pyro", "ignore:The KL has been zero", "ignore:bfloat16 matrix"
)
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_run_that_is_killed_goes_on_to_the_last_bit(options, tmp_path, monkeypatch, often):
    """Killed within an epoch; the graph and plain Pyro soon again, and in the first epoch and as one ends too."""
    options, wide = {"epochs": 3} | options, options in (RUNS["graph"], RUNS["plain Pyro"])
    if options == {"epochs": 3} | RUNS["graph"]:
        monkeypatch.setattr(loop, "GRAPH_AFTER", 2)  # the last minibatch and validation are graphs too
    train(tmp_path / "whole", **options)
    batches = -(-len(DYNAMIC.train) // options.get("batch_size", 300))
    for calls in [(batches + 2, 2), (1,), (2 * batches,)] if wide else [(batches + 2,)]:
        for call in calls:
            with monkeypatch.context() as patch:
                killed_at(patch, loop.Training, "_step", call)
                with pytest.raises(Killed):
                    train(tmp_path / f"{calls}", **options)
        train(tmp_path / f"{calls}", **options)
        same(tmp_path / "whole", tmp_path / f"{calls}")


@pytest.mark.filterwarnings("ignore:Falling back to plain Pyro")
def test_numbers_drawn_with_numpy_go_on_too(tmp_path, monkeypatch, often):
    options = {"dataset": GREY, "parts": {"likelihood": Noisy}, "compile": "off"}
    train(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        killed_at(patch, loop.Training, "_step", 7)
        with pytest.raises(Killed):
            train(tmp_path / "run", **options)
    train(tmp_path / "run", **options)
    same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_run_that_is_killed_while_it_writes_goes_on(function, tmp_path, monkeypatch, often):
    """At each moment of each write: before it is on the disk, and before it is in its place."""
    whole = partial(train, epochs=2, batch_size=800, compile="off")
    whole(tmp_path / "whole")
    for call in range(3, 17):
        run = tmp_path / f"{call}"
        with monkeypatch.context() as patch:
            killed_at(patch, os, function, call)
            with pytest.raises(Killed):
                whole(run)
        whole(run)
        same(tmp_path / "whole", run)


@pytest.mark.parametrize("call", range(3))  # the environment, the checkpoint, the configuration
def test_a_run_that_is_killed_before_it_is_one_is_none(call, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at(patch, os, "replace", call)
        with pytest.raises(Killed):
            train(tmp_path / "run", epochs=1)
    with pytest.raises(FileNotFoundError, match="has none. Is it a run"):
        load(tmp_path / "run")
    train(tmp_path / "run", epochs=1)
    assert load(tmp_path / "run")[1]["epochs"] == 1
    assert not [*(tmp_path / "run").rglob("*.new")]


def spoiled(run, size):
    """Cut the last checkpoint."""
    path = run / "checkpoint" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:size])


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that was killed, with two checkpoints; and the same run undisturbed."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "SECONDS", 0.0)
        patch.setattr(running, "SHARE", 1e9)
        train(folder / "whole", epochs=2)
        killed_at(patch, loop.Training, "_step", 7)
        with pytest.raises(Killed):
            train(folder / "half", epochs=2)
    return folder


def test_a_checkpoint_that_is_cut_anywhere_is_seen_and_the_one_before_it_used(half, tmp_path):
    size = (half / "half" / "checkpoint" / "last.safetensors").stat().st_size
    before = checkpoint.deserialize(half / "half" / "checkpoint" / "previous.safetensors")
    for cut in {0, 1, 7, 8, 9, size - 1, *torch.randint(size, (44,)).tolist()}:
        run = Path(shutil.copytree(half / "half", tmp_path / f"{cut}"))
        spoiled(run, cut)
        state, said = checkpoint.load_state(run)
        assert (state["epochs"], state["at"]) == (before["epochs"], before["at"])
        assert "last.safetensors' cannot be read" in said
        assert said.endswith("Resuming from the previous checkpoint.")


@pytest.mark.parametrize("byte", range(0, 100, 9))
def test_a_checkpoint_with_another_byte_is_seen(byte, half, tmp_path):
    run = Path(shutil.copytree(half / "half", tmp_path / "run"))
    path = run / "checkpoint" / "last.safetensors"
    content = bytearray(path.read_bytes())
    content[byte * len(content) // 100 + 8] ^= 4
    path.write_bytes(content)
    assert "last.safetensors' cannot be read" in checkpoint.load_state(run)[1]


def test_a_run_whose_last_checkpoint_is_cut_goes_on_from_the_one_before(half, tmp_path):
    run = Path(shutil.copytree(half / "half", tmp_path / "run"))
    spoiled(run, 100)
    with pytest.warns(UserWarning, match="last.safetensors' cannot be read .* Resuming from the previous checkpoint"):
        train(run, epochs=2)
    same(run, half / "whole")


def test_where_no_checkpoint_can_be_read_a_sentence_says_so(half, tmp_path):
    run = Path(shutil.copytree(half / "half", tmp_path / "run"))
    spoiled(run, 100)
    (run / "checkpoint" / "previous.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match="a checkpoint to resume from; .*last.* cannot be read .* and .*previous.* cannot be read"
    ):
        train(run, epochs=2)
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        train(run, epochs=2)


def test_without_the_best_so_far_it_goes_on_and_says_so(half, tmp_path):
    run = Path(shutil.copytree(half / "half", tmp_path / "run"))
    (run / "checkpoint" / "best.safetensors").write_bytes(b"?")
    with pytest.warns(
        UserWarning, match="best.safetensors' cannot be read .*; training continues without the best weights"
    ):
        train(run, epochs=2)
    same(run, half / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(number, half, tmp_path, monkeypatch):
    steps, real = [], loop.Training._step

    def signalled(self, rows):
        if len(steps) == 6:
            os.kill(os.getpid(), number)
        found = real(self, rows)  # it is finished
        steps.append(1)
        return found

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_step", signalled)
        with pytest.raises(
            KeyboardInterrupt, match=r"weights so far are in .*run. To resume: pyro-vae train --resume .*run"
        ):
            train(tmp_path / "run", epochs=2)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    state, _ = checkpoint.load_state(tmp_path / "run")
    assert (state["epochs"], state["at"], len(steps)) == (1, 2, 7)
    assert load(tmp_path / "run")[0].generate(2).shape == (2, 1, 8, 8)
    train(tmp_path / "run", epochs=2)
    same(tmp_path / "run", half / "whole")


def test_a_signal_while_it_validates_is_not_waited_for(half, tmp_path, monkeypatch):
    real = loop.Training._step

    def signalled(self, rows):
        if self.steps_done == self.num_batches - 1:  # before the first batch of validation
            monkeypatch.setattr("pyro_vae.train.running.tqdm.update", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        return real(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_step", signalled)
        with pytest.raises(KeyboardInterrupt, match="To resume"):
            train(tmp_path / "run", epochs=2)
    monkeypatch.undo()
    state, _ = checkpoint.load_state(tmp_path / "run")
    assert (state["epochs"], state["at"]) == (0, 5)
    train(tmp_path / "run", epochs=2)
    same(tmp_path / "run", half / "whole")


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    def twice(self, rows):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(loop.Training, "_step", twice)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert checkpoint.load_state(tmp_path / "run")[0]["at"] == 0


def test_without_a_run_directory_it_says_that_nothing_is_saved(monkeypatch):
    def signalled(self, rows):
        os.kill(os.getpid(), signal.SIGINT)
        return 0.0, 0.0

    monkeypatch.setattr(loop.Training, "_step", signalled)
    with pytest.raises(KeyboardInterrupt, match="Nothing is saved, since there is no run_dir"):
        fit(build(), DYNAMIC, progress=False)


OPTIONS = "train --binarize dynamic --likelihood Bernoulli --latent 3 --network.hidden [16] --compile off --epochs 2"
OPTIONS += " --run_dir"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run of the command, for all tests that copy it."""
    run = tmp_path_factory.mktemp("original") / "run"
    with pytest.MonkeyPatch.context() as patch:
        close_briefly(patch)
        assert main([*OPTIONS.split(), str(run)]) == 0
    return run


class TestCommand:
    @pytest.fixture(autouse=True)
    def quick(self, tmp_path, monkeypatch, unrendered):
        monkeypatch.chdir(tmp_path)
        close_briefly(monkeypatch)

    @pytest.fixture
    def run(self, original, quick, capsys):
        """A copy of it to spoil."""
        return Path(shutil.copytree(original, "run"))

    def test_resume_goes_on(self, monkeypatch, capsys):
        assert main([*OPTIONS.split(), "whole"]) == 0
        shown = capsys.readouterr().out
        with monkeypatch.context() as patch:
            killed_at(patch, loop.Training, "_step", 15)
            with pytest.raises(Killed):
                main([*OPTIONS.split(), "run"])
        capsys.readouterr()
        assert main(["train", "--resume", "run"]) == 0
        same(Path("run"), Path("whole"))
        again = capsys.readouterr().out
        assert again.startswith("digits, binarised dynamically: resuming run\n")
        table = [line for line in shown.splitlines() if "±" in line]
        assert [line for line in again.splitlines() if "±" in line] == table
        assert {path.name for path in Path("run/figures").iterdir()} == {
            path.name for path in Path("whole/figures").iterdir()
        }
        found = json.loads(Path("run/environment.json").read_text())
        assert found["seed"] == 0
        assert [again["packages"] for again in found["resumed"]] == [found["packages"]]

    def test_a_run_that_is_done_stays_and_may_be_longer(self, run):
        before = Path("run/metrics.csv").read_text()
        assert main(["train", "--resume=run"]) == 0
        assert Path("run/metrics.csv").read_text() == before
        assert main(["train", "--epochs", "3", "--resume", "run"]) == 0
        assert load("run")[1]["epochs"] == 3
        assert main(["train", "--config", "run/config.yaml", "--run_dir", "again"]) == 0
        same(Path("run"), Path("again"))

    def test_ctrl_c_exits_with_130(self, monkeypatch, capsys):
        real = loop.Training._step

        def signalled(self, rows):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(self, rows)

        monkeypatch.setattr(loop.Training, "_step", signalled)
        assert main([*OPTIONS.split(), "run"]) == 130
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == (
            "pyro-vae train: interrupted. The weights so far are in run. To resume: pyro-vae train --resume run"
        )

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--resume nowhere", "there is nothing at 'nowhere'"),
            ("--resume .", "'.' has none. Is it a run"),
            ("--resume run --lr 3", "unrecognized arguments: --lr 3.* allows only --epochs, .* has the other settings"),
            ("--resume run --epochs 1", "epochs = 2 or more, as in the run; got 1"),
            ("--resume", r"^pyro-vae train: Expected a run directory after --resume, as .*; got none\."),
            ("--run_dir run", "holds a run already. Choose another --run_dir, resume that run with --resume run, or"),
        ],
    )
    def test_what_is_wrong_gets_a_sentence(self, words, message, run, capsys):
        before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        assert main(["train", *words.split()]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert re.search(message, said[0]), said
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before

    def test_overwrite_is_asked_for(self, run):
        Path("run/mine.txt").write_text("a note")
        assert main([*OPTIONS.split(), "run", "--overwrite", "true", "--seed", "4", "--epochs", "1"]) == 0
        assert len(Path("run/metrics.csv").read_text().splitlines()) == 2
        assert load("run")[1]["seed"] == 4
        assert Path("run/mine.txt").read_text() == "a note"

    @pytest.mark.parametrize("words", ["--resume run", "--run_dir run --overwrite true", "--run_dir other"])
    def test_two_processes_do_not_write_to_one_run(self, words, run, capsys):
        Path("other").mkdir()
        with checkpoint.lock(Path("run")), checkpoint.lock(Path("other")):
            assert main(["train", *words.split()]) == 2
            assert "another process is training into" in capsys.readouterr().err
        assert not [*Path("other").iterdir()]


def test_an_edited_configuration_is_not_gone_on_with(half, tmp_path):
    """Though the settings are those of the file."""
    run = Path(shutil.copytree(half / "half", tmp_path / "run"))
    known = (run / "config.yaml").read_text()
    assert "\nbatch_size: 300\n" in known
    (run / "config.yaml").write_text(known.replace("\nbatch_size: 300\n", "\nbatch_size: 200\n"))
    with pytest.raises(ValueError, match=r"run began with; batch_size was 300 and is now 200"):
        train(run, epochs=2, batch_size=200)
    (run / "config.yaml").write_text(known.replace("\nepochs: 2\n", "\nepochs: 1\n"))
    train(run, epochs=2)
    assert (run / "config.yaml").read_text() == known


CHANGED = {
    "lr": ({"lr": 0.5}, "Expected the settings that the run began with; lr was .* and is now 0.5"),
    "prior": ({"parts": {"prior": priors.GaussianMixture}}, "settings that the run began with; prior was"),
    "data": ({"dataset": data.load("digits", binarize="threshold")}, "run began with; binarize was 'dynamic'"),
    "fewer epochs": ({"epochs": 1}, "epochs = 2 or more, as in the run; got 1"),
    "both": ({"run_dir": "other"}, "Expected resume, .* or run_dir"),
}


@pytest.mark.parametrize(("options", "message"), CHANGED.values(), ids=CHANGED)
def test_a_run_goes_on_with_what_it_began_with(options, message, half):
    with pytest.raises(ValueError, match=message):
        train(half / "whole", **({"epochs": 2} | options))


def test_a_run_goes_on_with_the_images_it_began_with(tmp_path):
    x = torch.rand(60, 5)
    fit(VAE.build((5,), latent=2), x, epochs=1, progress=False, run_dir=tmp_path / "run")
    for other in (x[1:], x + 0.01):
        with pytest.raises(ValueError, match=r"Expected the data that .*run' was trained on; .* have changed"):
            fit(VAE.build((5,), latent=2), other, epochs=2, progress=False, resume=tmp_path / "run")
    fit(VAE.build((5,), latent=2), x, epochs=2, progress=False, resume=tmp_path / "run")
    assert len(checkpoint.load_metrics(tmp_path / "run")["valid"]) == 2


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"lr_schedule": "cosine"}, "the cosine learning rate"),
        ({"objective": partial(objectives.ELBO, beta=objectives.Linear(0.5))}, "beta"),
    ],
)
def test_what_follows_the_length_of_a_run_keeps_it(options, what, tmp_path):
    train(tmp_path / "run", **options)
    with pytest.raises(ValueError, match=f"epochs = 4, .*{what} .*; got 5"):
        train(tmp_path / "run", **(options | {"epochs": 5}))


def test_a_warm_up_of_so_many_steps_does_not(tmp_path):
    options = {"objective": partial(objectives.ELBO, beta=objectives.Linear(7))}
    train(tmp_path / "run", **options)
    train(tmp_path / "run", **(options | {"epochs": 5}))
    train(tmp_path / "whole", **(options | {"epochs": 5}))
    same(tmp_path / "run", tmp_path / "whole")


class TestLonger:
    """More epochs for a run whose learning rate fell: training starts again before the fall."""

    @pytest.fixture
    def run(self, tmp_path):
        train(tmp_path / "run")  # 20 steps, of which the last 6 fall
        return tmp_path / "run"

    @pytest.mark.parametrize(("short", "long"), [(1, 2), (2, 3), (3, 11), (7, 8)])
    def test_any_length(self, tmp_path, short, long):
        """One step for each epoch."""
        rows = {"batch_size": 2000, "compile": "off"}
        train(tmp_path / "whole", epochs=long, **rows)
        train(tmp_path / "run", epochs=short, **rows)
        train(tmp_path / "run", epochs=long, **rows)
        same(tmp_path / "run", tmp_path / "whole")

    @pytest.mark.parametrize("after", [0, 1, 7, 12])
    def test_it_ends_as_a_longer_run_does(self, run, tmp_path, monkeypatch, often, after):
        """Killed after some steps of the longer run, and once more."""
        train(tmp_path / "whole", epochs=6)
        for calls in (after, 3):
            with monkeypatch.context() as patch:
                killed_at(patch, loop.Training, "_step", calls)
                with pytest.raises(Killed):
                    train(run, epochs=6)
        train(run, epochs=6)
        same(run, tmp_path / "whole")

    def test_a_run_stopped_before_the_fall_goes_on_from_there(self, tmp_path, monkeypatch, often):
        train(tmp_path / "whole", epochs=6)
        with monkeypatch.context() as patch:
            killed_at(patch, loop.Training, "_step", 11)
            with pytest.raises(Killed):
                train(tmp_path / "run")
        assert not (tmp_path / "run" / "checkpoint" / "before_fall.safetensors").exists()
        train(tmp_path / "run", epochs=6)
        same(tmp_path / "run", tmp_path / "whole")

    def test_the_rate_of_the_run_is_the_default(self, run, tmp_path):
        old = {"epochs": 2, "lr": 1e-3, "lr_schedule": "constant"}  # the defaults of earlier versions
        train(tmp_path / "old", **old)
        _, history = train(tmp_path / "old", epochs=3)
        train(tmp_path / "whole", **(old | {"epochs": 3}))
        same(tmp_path / "old", tmp_path / "whole")
        with pytest.raises(ValueError, match=r"run began with; lr_schedule was 'trapezoid' and is now 'constant'"):
            train(run, lr_schedule="constant")

    def test_the_state_before_the_fall_is_absent(self, run):
        (run / "checkpoint" / "before_fall.safetensors").unlink()
        train(run)
        before = (run / "model.safetensors").read_bytes()
        with pytest.raises(ValueError, match=r"before the learning rate fell.*before_fall.safetensors.*no such file"):
            train(run, epochs=6)
        assert (run / "model.safetensors").read_bytes() == before
        assert load(run)[1]["epochs"] == 4


def test_another_machine_is_said(half, tmp_path):
    run = Path(shutil.copytree(half / "half", tmp_path / "run"))
    known = json.loads((run / "environment.json").read_text())
    assert known["git"] is None or re.fullmatch("[0-9a-f]{40}", known["git"]["commit"])
    assert {"command", "seed", "cores", "memory_GiB", "processor", "gpus", "threads", "platform"} <= known.keys()
    known |= {"threads": 77, "packages": known["packages"] | {"torch": "2.0.0"}}
    (run / "environment.json").write_text(json.dumps(known))
    with pytest.warns(UserWarning, match="in the last bits: threads 77, now 1; torch 2.0.0, now 2"):
        train(run, epochs=2)
    same(run, half / "whole")


class TestPatience:
    def test_stops_and_goes_back_to_the_best(self, tmp_path):
        vae, history = train(tmp_path / "run", patience=2, lr=0.3, epochs=40)
        best = min(range(len(history["valid"])), key=history["valid"].__getitem__)
        assert len(history["valid"]) == best + 3 < 40
        kept, _ = load(tmp_path / "run", weights="best")
        last, _ = load(tmp_path / "run", weights="last")
        pairs = [*zip(vae.parameters(), kept.parameters(), last.parameters(), strict=True)]
        assert all(torch.equal(mine, theirs) for mine, theirs, _ in pairs)
        assert not all(torch.equal(mine, theirs) for mine, _, theirs in pairs)
        assert load(tmp_path / "run")[0].decoder.network.bias.equal(vae.decoder.network.bias)
        with torch.random.fork_rng():
            again = train(tmp_path / "again", epochs=best + 1, lr=0.3, lr_schedule="constant")[0]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(vae.parameters(), again.parameters(), strict=True))

    def test_each_state_has_the_optimizer_of_its_own(self, tmp_path):
        train(tmp_path / "run", patience=2, lr=0.3, epochs=40)
        folder = tmp_path / "run" / "checkpoint"
        best, last = (checkpoint.deserialize(folder / f"{which}.safetensors") for which in WHICH)
        for state in (best, last):
            steps = {int(moments["step"]) for moments in state["svi"]["optimizer"]["state"].values()}
            assert steps == {state["epochs"] * 5}
        assert best["epochs"] == last["epochs"] - 2

    def test_needs_no_run_directory(self):
        vae = build()
        history = fit(vae, DYNAMIC, patience=1, lr=0.3, epochs=40, progress=False)
        assert len(history["valid"]) < 40
        with pytest.raises(ValueError, match="Expected patience of at least 1; got 0"):
            fit(vae, DYNAMIC, patience=0)


WHICH = ("best", "last")


def test_a_full_disk_ends_it_with_a_sentence_and_the_last_checkpoint_stands(half, tmp_path, monkeypatch, often):
    real, writes = os.fsync, iter(range(10**6))

    def full(number):
        if next(writes) > 30:
            raise OSError(28, "No space left on device")
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            OSError,
            match=r"Could not write '.*' \(No space left on device\). Existing files are unchanged",
        ):
            train(tmp_path / "run", epochs=2)
    assert not [*(tmp_path / "run").rglob("*.new")]
    train(tmp_path / "run", epochs=2)
    same(tmp_path / "run", half / "whole")


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pyro_vae.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # no file of more: as a disk that is full
sys.exit(main("train --epochs 1 --network.hidden [200] --run_dir run".split()))
"""


def test_a_write_that_fails_ends_the_command_with_a_sentence(tmp_path):
    done = forked.run(FULL, tmp_path)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("pyro-vae train: Could not write 'run/checkpoint/last.safetensors' (File too large")
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_the_numbers_of_metrics(tmp_path, monkeypatch, often):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patch:
        killed_at(patch, loop.Training, "_step", 12)
        with pytest.raises(Killed):
            train(tmp_path / "run", logger="tensorboard")
    _, history = train(tmp_path / "run", logger="tensorboard")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {*found.Tags()["scalars"]} == history.keys() - {"seconds"}
    values = [(event.step, event.value) for event in found.Scalars("valid")]
    assert values == [(i + 1, pytest.approx(value, rel=1e-6)) for i, value in enumerate(history["valid"])]


def test_a_logger_that_cannot_be_gets_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Expected logger to be tensorboard, or None; got 'wandb'"):
        fit(build(), DYNAMIC, logger="wandb")
    with pytest.raises(ValueError, match="Expected a run_dir for tensorboard to write to"):
        fit(build(), DYNAMIC, logger="tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="--logger tensorboard. Run pip install tensorboard"):
        fit(build(), DYNAMIC, logger="tensorboard", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
