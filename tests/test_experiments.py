"""Each experiment, small: it writes its table and its figure, and the claims that are exact hold."""

import csv
import dataclasses
import importlib
import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import forked
import pyro
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.neural_network import MLPClassifier

from pyro_vae import VAE, commands, data, fit, likelihoods, load
from pyro_vae.networks import MLP

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
pytestmark = pytest.mark.usefixtures("experiments_on_the_path")


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


TIME = "AIS's time / adapted's"
SMALL = {
    "discontinuity": {"latents": (2,), "hidden": (32,), "epochs": 1, "batch_size": 200, "seeds": 2, "points": 50},
    "signal_to_noise": {"particles": (4, 16), "replicates": 60, "data": 2, "dimensions": 3},
    "estimators": {
        "particles": (1, 3),
        "steps": 3,
        "seconds": 0.02,
        "hidden": (16,),
        "latent": 4,
        "draws": 3,
        "rounds": 1,
        "images": 20,
        "num_particles": 5,
    },
    "imputation": {
        "fractions": (0.5,),
        "hidden": (16,),
        "epochs": 1,
        "batch_size": 200,
        "seeds": 2,
        "num_particles": 3,
        "images": 20,
    },
    "inference": {
        "data": "digits",
        "chosen": ("DiagonalNormal", "FullNormal"),
        "latent": 3,
        "hidden": (16,),
        "epochs": 1,
        "batch_size": 200,
        "images": 5,
        "num_particles": 30,
        "temperatures": 10,
        "steps": 3,
        "workers": 0,
    },
    "likelihoods": {
        "data": "digits",
        "chosen": ("Gaussian, learned", "DiscretizedLogistic"),
        "levels": 17,
        "hidden": (16,),
        "epochs": 1,
        "batch_size": 200,
        "seeds": 1,
        "images": 20,
        "num_particles": 3,
        "workers": 0,
    },
    "priors": {
        "data": "digits",
        "chosen": ("StandardNormal", "Flow, affine"),
        "latent": 4,
        "hidden": (16,),
        "epochs": 1,
        "batch_size": 200,
        "seeds": 1,
        "images": 20,
        "num_particles": 3,
        "workers": 0,
    },
    "schedules": {"chosen": ("Bernoulli",), "epochs": 1, "batch_size": 200, "seeds": 2, "workers": 0},
    "tug_of_war": {"betas": (1.0, 10.0), "hidden": (32,), "epochs": 1, "batch_size": 200, "seeds": 2, "samples": 50},
}


REDRAWN = (
    "blur",
    "estimators",
    "imputation",
    "inference",
    "likelihoods",
    "priors",
    "reliability",
    "schedules",
    "signal_to_noise",
    "speed",
)
REDRAWN += ("tug_of_war", "published", "adapted/inference")
WITH_IMAGES = ("imputation", "inference", "likelihoods", "priors", "tug_of_war")

PLAIN = {"compile": "off"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_writes_a_table_and_a_figure(name, few_digits, tmp_path, monkeypatch, capsys):
    """In plain Pyro: to record a graph takes longer than the few steps."""
    # The classifier that judges samples need not be a good one: it stops after ten epochs.
    monkeypatch.setattr(importlib.import_module("common"), "MLPClassifier", partial(MLPClassifier, tol=10.0))
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "fit", partial(fit, compile="off"), raising=False)
    monkeypatch.setattr("pyro_vae.sweep.worker.fit", lambda *parts, **options: fit(*parts, **options | PLAIN))
    runs, out = {"runs": str(tmp_path / "runs")} if "workers" in SMALL[name] else {}, tmp_path / "out"
    with torch.random.fork_rng():
        module.main(**SMALL[name], **runs, out=str(out))
    figures = [f"{name}.png", f"{name}_images.png"] if name in WITH_IMAGES else [f"{name}.png"]
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.csv", f"{name}.md", *figures]
    committed = rows(EXPERIMENTS / "results" / f"{name}.csv")
    found, expected = (
        [key for key in table[0] if "SNR, K =" not in key] for table in (rows(out / f"{name}.csv"), committed)
    )
    assert found == expected
    for figure in figures:
        assert (EXPERIMENTS / "results" / figure).read_bytes().startswith(b"\x89PNG")


def test_the_elbo_of_the_committed_table_is_minus_rate_and_distortion():
    for row in rows(EXPERIMENTS / "results" / "tug_of_war.csv")[:-1]:
        rate, distortion, elbo = (float(row[f"{name} (nats)"]) for name in ("rate", "distortion", "ELBO"))
        assert elbo == pytest.approx(-rate - distortion, abs=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_bad_input_gets_a_sentence(name, monkeypatch):
    """As its last words, which Python prints before it exits with 1."""
    bad = ["--particles", "[1]"] if name == "signal_to_noise" else ["--data", "minst"]
    monkeypatch.setattr(sys, "argv", [str(EXPERIMENTS / f"{name}.py"), *bad])
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("common").command(module.main)
    expected = "at least two numbers of particles" if name == "signal_to_noise" else "one of digits, mnist, "
    assert str(stopped.value.code).startswith(f"{name}.py: Expected {expected}")
    assert "\n" not in str(stopped.value.code)


def test_the_committed_slopes_are_those_of_theory():
    """Within 0.1 of -1/2 (guide, IWAE), +1/2 (guide, DReG) and +1/2 (model)."""
    table = rows(EXPERIMENTS / "results" / "signal_to_noise.csv")
    slopes = [(float(row["slope"]), float(row["slope in theory"])) for row in table if row["slope in theory"]]
    assert [theory for _, theory in slopes] == [-0.5, 0.5, 0.5]
    assert all(abs(slope - theory) < 0.1 for slope, theory in slopes)


def test_in_the_committed_lab_many_particles_win_by_steps_and_one_by_seconds():
    """After the same steps many particles win; after the same seconds one beats five, and five beat fifty."""
    table = rows(EXPERIMENTS / "results" / "estimators.csv")
    steps, seconds = (
        {k: [float(row[f"-log p(x), same {what}"]) for row in table if row["K"] == k] for k in ("1", "5", "50")}
        for what in ("steps", "seconds")
    )
    assert min(steps["50"]) < min(steps["5"]) < min(steps["1"])
    assert max(seconds["1"]) < min(seconds["5"])
    assert max(seconds["5"]) < min(seconds["50"])


@pytest.mark.parametrize("k", ["5", "50"])
def test_the_committed_lab_compares_gradients_on_the_same_images_and_draws(k):
    """The model's gradient is the same for every gradient of the guide that weighs draws as IWAE does."""
    table = rows(EXPERIMENTS / "results" / "estimators.csv")
    alike = ("IWAE", "IWAE, STL", "IWAE, DReG", "reweighted wake-sleep")
    for column in ("variance, model", "SNR, model"):
        found = [float(row[column]) for row in table if row["K"] == k and row["estimator"] in alike]
        assert found == pytest.approx([found[0]] * 4, rel=1e-3)


def test_the_committed_intervals_are_what_their_caption_says():
    """Near right at random holes with a scale per pixel; too narrow where no image shows both halves."""
    for row in rows(EXPERIMENTS / "results" / "imputation.csv"):
        half, ninety = (float(row[f"coverage of {level}%"]) for level in (50, 90))
        if row["trained on"] == "these holes" and row["missing"] == "a half":
            assert ninety < 0.8
            assert float(row["RMSE"]) > float(row["RMSE, mean"])
        elif row["trained on"] == "these holes":
            centre = 0.5 if row["scale"] == "per pixel" else 0.6  # errors have heavier tails than one Gaussian
            assert abs(half - centre) < 0.035
            assert abs(ninety - 0.9) < 0.05
        resampled = float(row["RMSE"]) / float(row["RMSE, guide"])
        assert resampled < (1 if row["missing"] in ("10%", "30%", "50%", "70%") else 1.01)


def test_imputations_that_are_no_vae_keep_what_is_observed_and_know_a_line():
    """Of points on a line principal components find the missing coordinate; neighbours one that is near."""
    imputers = importlib.import_module("imputers")
    line = torch.linspace(0, 1, 200).unsqueeze(1) * torch.tensor([1.0, 2.0, -1.0])
    x = line[50:150:10].clone()
    x[::2, 0] = x[1::2, 2] = float("nan")
    for found, error in ((imputers.components(line, 1, x), 1e-3), (imputers.neighbours(line, 3, x), 1e-2)):
        torch.testing.assert_close(found, line[50:150:10], rtol=0, atol=error)
        assert torch.equal(found[~x.isnan()], x[~x.isnan()])


def test_a_ratio_of_signal_to_noise_is_without_bias():
    """Of gradients with mean 0.1 and variance 1, 1,000 draws: a plain ratio would be 0.105 on average, not 0.1."""
    found = importlib.import_module("signal_to_noise")
    ratios = torch.tensor([found.ratio(0.1 + torch.randn(1000, 50).double()) for _ in range(100)])
    assert abs(ratios.mean() - 0.1) < 5 * ratios.std() / 10


def test_every_committed_learned_prior_is_better_than_a_standard_normal_and_the_vamp_prior_best():
    table = {row["prior"]: row for row in rows(EXPERIMENTS / "results" / "priors.csv")}
    for key in ("-log p(x)", "unreadable"):
        values = {name: float(row[key]) for name, row in table.items()}
        assert max(values, key=values.__getitem__) == "StandardNormal"
        assert min(values, key=values.__getitem__) == "VampPrior, 500"
    assert all(float(row["unreadable"]) > 0.05 for row in table.values())


def test_the_committed_likelihoods_are_in_order_and_a_scale_per_pixel_has_the_worst_images():
    table = {row["likelihood"]: row for row in rows(EXPERIMENTS / "results" / "likelihoods.csv")}
    ways = [f"Gaussian, {scale}" for scale in ("scale 1", "learned", "optimal", "per-pixel")]
    order = [*ways, "Beta", "DiscretizedLogistic", "DiscretizedLogisticMixture"]
    bits = [float(table[name]["bits/dim"]) for name in order]
    assert bits == sorted(bits, reverse=True)
    for key in ("RMS", "sharpness"):
        values = {name: float(row[key]) for name, row in table.items()}
        assert max(values, key=values.__getitem__) == "Gaussian, per-pixel"


def test_the_committed_importance_sampling_falls_short_where_k_hat_says_so():
    """IS - AIS is above zero by four standard errors, and the amortisation gap is the larger one."""
    for row in rows(EXPERIMENTS / "results" / "inference.csv"):
        assert float(row["IS - AIS"]) > 4 * float(row["IS - AIS ±"])
        assert float(row["k-hat > 0.7"]) > 0.5
        assert float(row["amortisation"]) > 2 * float(row["approximation"])


def test_the_committed_adapted_proposals_are_level_with_ais_in_less_time():
    (row,) = rows(EXPERIMENTS / "results" / "adapted" / "inference.csv")
    assert abs(float(row["adapted - AIS"])) < 2 * float(row["adapted - AIS ±"])
    assert float(row["IS - AIS"]) > 0.5
    assert float(row["adapted, k-hat > 0.7"]) < 0.05 < 0.9 < float(row["k-hat > 0.7"])
    assert float(row[TIME]) > 5


@pytest.mark.slow
def test_inference_asks_adapted_proposals_too(few_digits, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("inference")
    monkeypatch.setattr("pyro_vae.sweep.worker.fit", lambda *parts, **options: fit(*parts, **options | PLAIN))
    options = SMALL["inference"] | {"chosen": ("DiagonalNormal",), "runs": str(tmp_path / "runs")}
    with torch.random.fork_rng():
        module.main(**options, num_adapted=30, out=str(tmp_path))
    (row,) = rows(tmp_path / "inference.csv")
    assert float(row["adapted - AIS"]) == pytest.approx(float(row["adapted"]) - float(row["AIS"]), abs=1e-4)
    assert 0 <= float(row["adapted, k-hat > 0.7"]) <= 1
    assert float(row[TIME]) > 0
    assert "30 draws, after at least 525 draws to fit them" in (tmp_path / "inference.md").read_text()


def test_the_committed_gaps_are_what_the_elbo_lacks():
    """Of log p(x), which is the larger of two bounds."""
    for row in rows(EXPERIMENTS / "results" / "inference.csv"):
        lacks = float(row["approximation"]) + float(row["amortisation"])
        best = min(float(row["IS"]), float(row["AIS"]))
        assert best - 0.5 < float(row["-ELBO"]) - lacks < best + 1e-3


def test_a_sleep_is_measured_before_and_after(few_digits, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("sleep")
    monkeypatch.setattr(module, "fit", partial(fit, compile="off"))
    sizes = {"hidden": (16,), "epochs": 1, "batch_size": 200, "steps": 3, "images": 20, "refined": 2}
    with torch.random.fork_rng():
        module.main(**sizes, num_particles=30, out=str(tmp_path))
    assert [row["guide"] for row in rows(tmp_path / "sleep.csv")] == ["after training", "after the sleep"]
    assert [*rows(tmp_path / "sleep.csv")[0]] == [*rows(EXPERIMENTS / "results" / "sleep.csv")[0]]


def test_the_committed_sleep_halves_the_amortisation_gap_of_the_same_model():
    before, after = rows(EXPERIMENTS / "results" / "sleep.csv")
    assert float(after["amortisation"]) < float(before["amortisation"]) / 2
    assert float(after["k-hat > 0.7"]) < float(before["k-hat > 0.7"])
    assert float(after["-log p(x)"]) == pytest.approx(float(before["-log p(x)"]), abs=0.2)


def test_a_table_is_read_as_it_was_written(tmp_path):
    common = importlib.import_module("common")
    table = [{"name": "a", "value": (1.5, 0.1), "count": 3.0}, {"name": "b, c", "value": (2.5, 0.2), "count": ""}]
    common.write_table(table, tmp_path / "table", "A caption.")
    assert common.read_table(tmp_path / "table.csv") == table


def test_labels_of_lines_keep_apart():
    common = importlib.import_module("common")
    axes = Figure().add_subplot(ylim=(0, 1))
    common.label_ends(axes, [(1, 0.5, "a", "red"), (1, 0.51, "b", "blue"), (1, 0.9, "c", "red")], gap=0.1)
    heights = [text.xyann[1] for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c"]
    assert heights[1] - heights[0] == pytest.approx(0.1, abs=0.01)
    assert heights[2] == pytest.approx(0.9)


@pytest.mark.parametrize("name", REDRAWN)
def test_figures_of_committed_tables_are_drawn_again(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for table in (EXPERIMENTS / "results" / name).parent.glob(f"{Path(name).name}*.csv"):
        shutil.copy(table, (tmp_path / name).parent)
    redraw = importlib.import_module("redraw")
    assert redraw.NAMES == REDRAWN
    redraw.main((name,), str(tmp_path))
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


class TestSpeed:
    @pytest.mark.slow
    def test_writes_a_table_that_keeps_the_rows_of_other_parts(self, tmp_path, monkeypatch, capsys):
        """Code that only imports is run here, since a new process takes seconds for it."""
        speed, run = importlib.import_module("speed"), subprocess.run

        def here(program, **options):
            return exec(program[2], {}) if program[1] == "-c" else run(program, **options)

        monkeypatch.setattr(subprocess, "run", here)
        seconds = itertools.count()
        monkeypatch.setattr(importlib.import_module("speed_rows"), "_seconds_of_children", lambda: float(next(seconds)))
        committed = rows(EXPERIMENTS / "results" / "speed.csv")
        kept = [row for row in committed if row["part"] == "steps"]
        with (tmp_path / "speed.csv").open("w") as file:
            writer = csv.DictWriter(file, committed[0])
            writer.writeheader()
            writer.writerows([*kept, *(row for row in committed if row["part"] == "startup")])
        speed.main(parts=("startup",), rounds=1, out=str(tmp_path))
        found = rows(tmp_path / "speed.csv")
        assert found[: len(kept)] == kept
        assert [row["part"] for row in found[len(kept) :]] == ["startup"] * 5
        assert (tmp_path / "speed.md").read_text().count("\n|") == 2 + len(found)

    def test_an_unknown_part_gets_a_sentence(self):
        speed = importlib.import_module("speed")
        with pytest.raises(ValueError, match="Expected parts among steps, .*; got step."):
            speed.main(parts=("step",))

    def test_the_committed_ratios_are_those_of_the_numbers_beside_them(self):
        table = rows(EXPERIMENTS / "results" / "speed.csv")
        assert {row["part"] for row in table} == set(importlib.import_module("speed").PARTS) - {"cuda"}  # of a GPU
        for row in table:
            assert float(row["ratio"]) == pytest.approx(float(row["ours"]) / float(row["theirs"]))

    @pytest.mark.parametrize(
        ("what", "rival", "most"),
        [
            ("step, inductor", "stock Pyro", 0.65),
            ("step, graph", "stock Pyro", 0.75),
            ("step, graph", "handwritten, eager", 1.05),
            ("step, inductor", "handwritten, compiled", 1.0),
            ("step, inductor", "NumPyro", 0.95),
            ("IWAE-50, inductor", "stock Pyro", 0.6),
            ("VampPrior, inductor", "stock Pyro", 0.5),
            ("Flow, inductor", "stock Pyro", 0.3),
            ("epoch of fit", "pythae", 0.5),
        ],
    )
    def test_the_committed_steps_and_epochs_take_less_time(self, what, rival, most):
        table = rows(EXPERIMENTS / "results" / "speed.csv")
        ratios = [float(row["ratio"]) for row in table if (row["what"], row["rival"]) == (what, rival)]
        assert ratios
        assert max(ratios) < most


class TestMinute:
    @pytest.mark.slow
    def test_writes_a_table_and_a_figure(self, few_digits, tmp_path, monkeypatch, capsys):
        """Of two rivals in this process, in so short a time that each trains for an epoch or two."""
        minute = importlib.import_module("minute")
        monkeypatch.setattr(minute, "fit", partial(fit, compile="off"))
        chosen = ("pyro_vae, default", "stock Pyro, default")
        options = {"data": "digits", "seconds": 0.01, "seeds": 2, "chosen": chosen, "apart": False}
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            minute.main(**options, images=20, num_particles=10, out=str(tmp_path))
        names = ["curves", "minute.csv", "minute.md", "minute.png"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        table, points = rows(tmp_path / "minute.csv"), rows(tmp_path / "curves" / "minute.csv")
        assert [row["rival"] for row in table] == [*chosen]
        assert {row["rival"] for row in points} == {*chosen}
        assert all(15 < float(row["-log p(x)"]) < 60 for row in (*table, *points))

    def test_an_unknown_rival_gets_a_sentence(self):
        with pytest.raises(ValueError, match="Expected rivals among pyro_vae, default; .*; got 'JAX'"):
            importlib.import_module("minute").main(chosen=("JAX",))


class TestSharpness:
    def test_is_zero_on_a_ramp_and_known_on_a_point(self):
        common = importlib.import_module("common")
        ramp = torch.arange(6.0).expand(1, 1, 6, 6)
        assert common.sharpness(ramp) == 0
        point = torch.zeros(1, 1, 5, 5)
        point[..., 2, 2] = 1
        assert common.sharpness(point) == pytest.approx((16 + 4) / 9)

    def test_falls_when_an_image_is_blurred(self):
        common = importlib.import_module("common")
        x = torch.rand(4, 1, 9, 9)
        assert common.sharpness(torch.nn.functional.avg_pool2d(x, 3, 1, 1)) < common.sharpness(x) / 2


def test_the_judge_knows_real_images_from_noise(monkeypatch):
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "MLPClassifier", partial(MLPClassifier, tol=0.01))  # some 30 epochs
    digits = data.load("digits")
    judge = common.Judge(digits)
    real, noise = judge(digits.test[:]), judge(torch.rand(180, 1, 8, 8))
    assert judge.accuracy > 0.95
    assert real["confidence"] > noise["confidence"]
    assert real["entropy (nats)"] < noise["entropy (nats)"]
    assert real["distance (RMS)"] < noise["distance (RMS)"] / 2
    assert judge(digits.train[:9])["distance (RMS)"] == pytest.approx(0, abs=1e-6)
    assert real["unreadable"] == pytest.approx(0.05, abs=0.01)


class Forked:
    """What ``finish`` uses of ``Popen``, of a process that is forked from one that has imported it all."""

    def __init__(self, program, **_):
        assert program[:3] == [sys.executable, "-m", "pyro_vae"]
        self.process = forked.start(forked.command(*program[3:]))

    def communicate(self, timeout=None):
        self.process.join(timeout)
        if self.process.is_alive():
            raise subprocess.TimeoutExpired("pyro_vae", timeout)
        return b"", b""

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    @property
    def returncode(self):
        return self.process.exitcode


class TestReliability:
    @pytest.mark.processes
    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
    def test_a_killed_run_is_the_same_and_memory_is_flat(self, tmp_path, monkeypatch, capsys):
        reliability = importlib.import_module("reliability")
        monkeypatch.setattr(reliability, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Forked}))
        reliability.main(("off",), runs=1, epochs=2, hidden=(8,), long=10, settled=5, out=str(tmp_path))
        (row,) = rows(tmp_path / "reliability.csv")
        assert (row["step"], row["runs"], row["identical"]) == ("off", "1", "1")
        assert [*row] == [*rows(EXPERIMENTS / "results" / "reliability.csv")[0]]
        assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
        share = re.search(r"at the end, ([+-][\d.]+)%", (tmp_path / "reliability.md").read_text())[1]
        assert abs(float(share)) < 5

    def test_bad_input_gets_a_sentence(self):
        reliability = importlib.import_module("reliability")
        with pytest.raises(ValueError, match="Expected modes among off, graph, inductor, at least 1 run"):
            reliability.main(runs=0)

    def test_all_committed_runs_are_identical_and_memory_is_flat(self):
        """Within 5%."""
        table = rows(EXPERIMENTS / "results" / "reliability.csv")
        assert all(row["identical"] == row["runs"] for row in table)
        assert {row["step"] for row in table} == {"off", "graph", "inductor"}
        text = (EXPERIMENTS / "results" / "reliability.md").read_text()
        share = re.search(r"at the end, ([+-][\d.]+)%", text)[1]
        assert abs(float(share)) < 5


@pytest.mark.slow
@pytest.mark.usefixtures("few_digits")
class TestReproduce:
    def small(self, tmp_path, row, **options):
        reproduce = importlib.import_module("reproduce")
        reproduce.RECIPE["compile"] = "off"
        options = {"epochs": 2, "num_particles": 3, "images": 20, "temperatures": 5} | options
        with torch.random.fork_rng():
            reproduce.main(row, data="digits", runs=str(tmp_path / "runs"), out=str(tmp_path / "out"), **options)
        return tmp_path / "out"

    @pytest.mark.filterwarnings("ignore:Few of the moves")
    def test_a_row_is_written_down_and_drawn(self, tmp_path, capsys):
        out = self.small(tmp_path, "vae")
        (found,) = rows(out / "published.csv")
        assert ",".join(found) == "row,source,published,ours,stderr,particles,images,minutes,seed,command"
        assert (found["row"], found["particles"], found["images"], found["seed"]) == ("vae", "3", "20", "0")
        assert found["command"] == "python experiments/reproduce.py vae --seed 0 --epochs 2"
        (more,) = rows(out / "published_more.csv")
        assert float(more["-ELBO"]) >= float(found["ours"])
        assert [line["epoch"] for line in rows(out / "published_curves.csv")] == ["1", "2"]
        assert "| VAE, 784-200-200-50, k = 1 (`vae`) | 86.35 |" in (out / "published.md").read_text()
        for figure in ("published.png", "published_curves.png"):
            assert (out / figure).read_bytes().startswith(b"\x89PNG")
        # The same once more goes on with the run that is there, and adds a line that says the same.
        self.small(tmp_path, "vae")
        one, other = rows(out / "published.csv")
        assert one["ours"] == other["ours"]
        assert (out / "published.md").read_text().count("(`vae`)") == 1

    def test_a_row_is_weighed_by_adapted_proposals(self, tmp_path, capsys):
        self.small(tmp_path, "vae")
        out = self.small(tmp_path, "vae", adapted=4, num_particles=50)
        (line,) = rows(out / "published_adapted.csv")
        assert (line["row"], line["images"], line["draws"]) == ("vae", "4", "1000")
        assert float(line["less"]) == pytest.approx(float(line["guide"]) - float(line["adapted"]), abs=2e-3)
        (row,) = [text for text in (out / "published.md").read_text().splitlines() if "(`vae`)" in text]
        assert f"| {float(line['adapted']):.2f} ({float(line['guide']):.2f}) |" in row
        assert len(rows(out / "published.csv")) == 1
        with pytest.raises(ValueError, match="Expected --adapted 4 alone"):
            self.small(tmp_path, "vae", adapted=4, held_out=True)

    @pytest.mark.filterwarnings("ignore:bfloat16 matrix products take")
    def test_a_row_in_bfloat16_says_so(self, tmp_path, capsys):
        out = self.small(tmp_path, "iwae-5", precision="bfloat16")
        (found,) = rows(out / "published.csv")
        assert found["command"].endswith(" --epochs 2 --precision bfloat16")
        assert "precision: bfloat16" in (tmp_path / "runs" / "iwae-5-0" / "config.yaml").read_text()
        assert ", bfloat16) |" in (out / "published.md").read_text()

    def test_a_recipe_is_tried_on_images_held_out(self, tmp_path, capsys):
        out = self.small(tmp_path, "gated", held_out=True, recipe={"optimizer": "adam", "compile": "off"})
        assert "3 draws for each of 20 images held out" in capsys.readouterr().out
        assert [path.name for path in out.iterdir()] == ["published_recipes.csv"]
        with pytest.raises(ValueError, match="Expected --held_out true with another recipe"):
            self.small(tmp_path, "gated", recipe={"lr": 1e-3})

    def test_every_row_can_be_built(self):
        papers = importlib.import_module("papers")
        for row in papers.ROWS.values():
            row.objective()
            if not row.first:
                assert row.build((1, 28, 28), 0, "").generate(2).shape == (2, 1, 28, 28)

    def test_a_second_stage_starts_from_the_first(self, tmp_path, monkeypatch, capsys):
        row, papers = "gated-then-flow", importlib.import_module("papers")
        small = partial(VAE.build, latent=3, likelihood=likelihoods.Bernoulli, network=partial(MLP, hidden=(8,)))
        monkeypatch.setitem(papers.ROWS, "gated", dataclasses.replace(papers.ROWS["gated"], program=small))
        with pytest.raises(FileNotFoundError, match="there is nothing at .*gated-0"):
            self.small(tmp_path, row)
        self.small(tmp_path, "gated")
        out = self.small(tmp_path, row)
        assert [line["row"] for line in rows(out / "published.csv")] == ["gated", row]
        first, second = (load(tmp_path / "runs" / f"{name}-0")[0].state_dict() for name in ("gated", row))
        assert all(torch.equal(second[name], value) for name, value in first.items() if not name.startswith("prior."))

    def test_the_rows_are_listed(self, monkeypatch):
        listed = importlib.import_module("reproduce").listed()
        assert [line.split()[0] for line in listed.splitlines()[1:-2]] == [*importlib.import_module("papers").ROWS]
        monkeypatch.setattr(sys, "argv", [str(EXPERIMENTS / "reproduce.py"), "vea"])
        with pytest.raises(SystemExit, match="^reproduce.py: Expected a row among vae, iwae-5, ") as stopped:
            runpy.run_path(str(EXPERIMENTS / "reproduce.py"), run_name="__main__")
        assert "\n" not in str(stopped.value.code)

    def test_the_committed_table_shows_the_last_line_of_each_row_and_is_below_what_was_published(self):
        text = (EXPERIMENTS / "results" / "published.md").read_text()
        last = {line["row"]: line for line in rows(EXPERIMENTS / "results" / "published.csv")}
        assert text.count("\n|") == 2 + len(last)
        for line in last.values():
            assert (line["particles"], line["images"]) == ("5000", "10000")
            assert f"(`{line['row']}`) | {float(line['published']):.2f} | {float(line['ours']):.2f} ±" in text
            assert float(line["ours"]) < float(line["published"])


class TestSweeps:
    @pytest.mark.slow
    def test_runs_of_a_sweep_are_runs_by_themselves(self, tmp_path, monkeypatch, few_digits):
        """In this process, of few digits."""
        sweeps = importlib.import_module("sweeps")
        monkeypatch.setattr(sweeps, "GRID", {"prior": ["StandardNormal"], "network": "MLP"} | PLAIN)

        def start(file, study, workers, url=None):
            assert commands.run(["sweep", str(file), "--study_dir", str(study), "--workers", f"{workers}"]) == 0
            return SimpleNamespace(wait=lambda: 0)

        monkeypatch.setattr(sweeps, "_start", start)
        monkeypatch.setattr(sweeps, "ProcessPoolExecutor", lambda *_: nullcontext(SimpleNamespace(map=map)))
        sweeps.main(kills=0, epochs=1, seeds=1, workers=0, latent=(2,), postgres=False, out=str(tmp_path))
        (row,) = rows(tmp_path / "sweeps.csv")
        counts = {"kills": "0", "runs": "1", "complete once": "1", "complete twice": "0", "here": "1", "identical": "1"}
        assert row.items() >= counts.items()
        assert [*row] == [*rows(EXPERIMENTS / "results" / "sweeps.csv")[0]]

    def test_committed_runs_are_each_complete_once_and_identical(self):
        for row in rows(EXPERIMENTS / "results" / "sweeps.csv"):
            assert int(row["kills"]) > 0 or float(row["overhead"]) > 0
            assert row["complete once"] == row["runs"]
            assert (row["complete twice"], row["identical"]) == ("0", row["here"])
