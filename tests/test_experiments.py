"""Each experiment, small: it writes its table and its figure, and the claims that are exact hold."""

import csv
import importlib
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from sklearn.neural_network import MLPClassifier

from pyro_vae import data, fit
from pyro_vae.data import loading

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
        "workers": 1,
    },
    "likelihoods": {
        "data": "digits",
        "chosen": ("Gaussian, learned", "DiscretizedLogistic"),
        "levels": 17,
        "hidden": (16,),
        "epochs": 1,
        "batch_size": 200,
        "seeds": 2,
        "images": 20,
        "num_particles": 3,
        "workers": 1,
    },
    "priors": {
        "data": "digits",
        "chosen": ("StandardNormal", "Flow, affine"),
        "latent": 4,
        "hidden": (16,),
        "epochs": 1,
        "batch_size": 200,
        "seeds": 2,
        "images": 20,
        "num_particles": 3,
        "workers": 1,
    },
    "tug_of_war": {"betas": (1.0, 10.0), "hidden": (32,), "epochs": 1, "batch_size": 200, "seeds": 2, "samples": 50},
}


@pytest.fixture
def few(monkeypatch, short_pilots):
    """The first 360 digits."""
    digits = loading.digits()
    monkeypatch.setattr(loading, "digits", lambda: digits._replace(x=digits.x[:360], labels=digits.labels[:360]))


@pytest.mark.parametrize("name", SMALL)
def test_writes_a_table_and_a_figure(name, few, tmp_path, monkeypatch, capsys):
    """In plain Pyro: to record a graph takes longer than the few steps."""
    # The classifier that judges samples need not be a good one: it stops after ten epochs.
    monkeypatch.setattr(importlib.import_module("common"), "MLPClassifier", partial(MLPClassifier, tol=10.0))
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "fit", partial(fit, compile="off"), raising=False)
    with torch.random.fork_rng():
        module.main(**SMALL[name], out=str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.csv", f"{name}.md", f"{name}.png"]
    committed = rows(EXPERIMENTS / "results" / f"{name}.csv")
    found, expected = (
        [key for key in table[0] if "SNR, K =" not in key] for table in (rows(tmp_path / f"{name}.csv"), committed)
    )
    assert found == expected
    assert (EXPERIMENTS / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


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


def test_the_committed_slopes_are_those_of_theory_and_of_the_readme():
    """Within 0.1 of -1/2 (guide, IWAE), +1/2 (guide, DReG) and +1/2 (model)."""
    table = rows(EXPERIMENTS / "results" / "signal_to_noise.csv")
    slopes = [(float(row["slope"]), float(row["slope in theory"])) for row in table if row["slope in theory"]]
    assert [theory for _, theory in slopes] == [-0.5, 0.5, 0.5]
    assert all(abs(found - theory) < 0.1 for found, theory in slopes)
    printed = ", ".join(f"{found:.2f}".replace("-", "−") for found, _ in slopes)
    assert f"[{printed}](experiments/results/signal_to_noise.md)" in (EXPERIMENTS.parent / "README.md").read_text()


def test_the_committed_lab_says_what_the_readme_and_the_notebook_say():
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


def test_the_readme_says_what_the_committed_priors_say():
    table = {row["prior"].split(",")[-1].strip(): row for row in rows(EXPERIMENTS / "results" / "priors.csv")}
    nll = [float(table[name]["-log p(x)"]) for name in ("500", "spline", "affine", "100", "StandardNormal")]
    bad = [float(table[name]["unreadable"]) for name in ("500", "spline", "affine", "100", "StandardNormal")]
    readme = " ".join((EXPERIMENTS.parent / "README.md").read_text().split())
    vamp, spline, affine, mixture, normal = (f"{number:.1f}" for number in nll)
    assert f"{vamp} nats with a VampPrior, {spline} with a spline flow, {affine} with an affine one" in readme
    assert f"{mixture} with a mixture and {normal} with a standard normal" in readme
    *first, last = (f"{number:.0%}" for number in bad)
    assert f"and {', '.join(first)} and {last} of the samples unreadable" in readme


def test_the_readme_says_what_the_committed_likelihoods_say():
    table = {row["likelihood"]: row for row in rows(EXPERIMENTS / "results" / "likelihoods.csv")}
    ways = [f"Gaussian, {scale}" for scale in ("scale 1", "learned", "optimal", "per-pixel")]
    one, learned, optimal, pixel, plain, mixed = (
        f"{float(table[name]['bits/dim']):.2f}" for name in (*ways, "DiscretizedLogistic", "DiscretizedLogisticMixture")
    )
    readme = " ".join((EXPERIMENTS.parent / "README.md").read_text().split())
    assert f"scale 1 takes {one} bits/dim, of a learned one {learned}, of the best one {optimal}" in readme
    sharpness = float(table["Gaussian, per-pixel"]["sharpness"])
    assert f"each pixel {pixel}, but its images are noise on strokes, {sharpness:.1f} times as sharp as real" in readme
    assert f"masses of the levels take {plain} and, mixed, {mixed}" in readme
    errors = {name: float(row["RMS"]) for name, row in table.items()}
    assert max(errors, key=errors.__getitem__) == "Gaussian, per-pixel"


def test_the_readme_says_what_the_committed_inference_says():
    table = {row["guide"]: row for row in rows(EXPERIMENTS / "results" / "inference.csv")}
    found = {key: float(value) for key, value in table["DiagonalNormal"].items() if key != "guide"}
    readme = " ".join((EXPERIMENTS.parent / "README.md").read_text().split())
    assert f"5,000 particles is {found['IS - AIS']:.2f} nats short of AIS, on 200 test images" in readme
    assert f"k-hat is above 0.7 for {found['k-hat > 0.7']:.0%} of them" in readme
    assert f"{found['approximation']:.2f} nats are the family's, {found['amortisation']:.2f} the encoder's" in readme


def test_the_readme_says_what_the_committed_adapted_proposals_say():
    (row,) = rows(EXPERIMENTS / "results" / "adapted" / "inference.csv")
    found = {key: float(value) for key, value in row.items() if key != "guide"}
    readme = " ".join((EXPERIMENTS.parent / "README.md").read_text().split())
    assert f"is {found['IS - AIS']:.2f} nats above AIS by 5,000 draws of the guide" in readme
    apart = f"{found['adapted - AIS']:.3f} ± {found['adapted - AIS ±']:.3f}".replace("-", "−")
    assert f"and {apart} by 1,000 adapted ones, in {1 / found[TIME]:.2f} of AIS's CPU time" in readme
    shares = f"{found['k-hat > 0.7']:.0%} and {found['adapted, k-hat > 0.7']:.1%} of the images"
    assert f"k-hat is above 0.7 for {shares}" in readme


def test_inference_asks_adapted_proposals_too(few, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("inference")
    monkeypatch.setattr(module, "fit", partial(fit, compile="off"))
    with torch.random.fork_rng():
        module.main(**SMALL["inference"] | {"chosen": ("DiagonalNormal",)}, num_adapted=30, out=str(tmp_path))
    (row,) = rows(tmp_path / "inference.csv")
    assert float(row["adapted - AIS"]) == pytest.approx(float(row["adapted"]) - float(row["AIS"]), abs=1e-4)
    assert 0 <= float(row["adapted, k-hat > 0.7"]) <= 1
    assert float(row[TIME]) > 0
    assert "30 draws, after at least 525 that fit them" in (tmp_path / "inference.md").read_text()


def test_the_committed_gaps_are_what_the_elbo_lacks():
    """Of log p(x), which is the larger of two bounds."""
    for row in rows(EXPERIMENTS / "results" / "inference.csv"):
        lacks = float(row["approximation"]) + float(row["amortisation"])
        best = min(float(row["IS"]), float(row["AIS"]))
        assert best - 0.5 < float(row["-ELBO"]) - lacks < best + 1e-3


def test_the_readme_says_what_the_committed_imputation_says():
    table = rows(EXPERIMENTS / "results" / "imputation.csv")
    found = {
        row["missing"]: float(row["coverage of 90%"])
        for row in table
        if (row["scale"], row["trained on"]) == ("per pixel", "these holes")
    }
    half = found.pop("a half")
    readme = " ".join((EXPERIMENTS.parent / "README.md").read_text().split())
    sentence = (
        "90% intervals of pixels missing at random hold {:.0%} to {:.0%} of them, and those of missing halves {:.0%}"
    )
    assert sentence.format(min(found.values()), max(found.values()), half) in readme


class TestSpeed:
    def test_writes_a_table_that_keeps_the_rows_of_other_parts(self, tmp_path, monkeypatch, capsys):
        """Code that only imports is run here, since a new process takes seconds for it."""
        speed, run = importlib.import_module("speed"), subprocess.run

        def here(program, **options):
            return exec(program[2], {}) if program[1] == "-c" else run(program, **options)

        monkeypatch.setattr(subprocess, "run", here)
        committed = rows(EXPERIMENTS / "results" / "speed.csv")
        kept = [row for row in committed if row["part"] == "steps"]
        with (tmp_path / "speed.csv").open("w") as file:
            writer = csv.DictWriter(file, committed[0])
            writer.writeheader()
            writer.writerows([*kept, *(row for row in committed if row["part"] == "startup")])
        speed.main(parts=("startup",), rounds=1, out=str(tmp_path))
        found = rows(tmp_path / "speed.csv")
        assert found[: len(kept)] == kept
        assert [row["part"] for row in found[len(kept) :]] == ["startup"] * 3
        assert (tmp_path / "speed.md").read_text().count("\n|") == 2 + len(found)

    def test_an_unknown_part_gets_a_sentence(self):
        speed = importlib.import_module("speed")
        with pytest.raises(ValueError, match="Expected parts among steps, .*; got step."):
            speed.main(parts=("step",))

    def test_the_committed_ratios_are_those_of_the_numbers_beside_them(self):
        table = rows(EXPERIMENTS / "results" / "speed.csv")
        assert {row["part"] for row in table} == set(importlib.import_module("speed").PARTS)
        for row in table:
            assert float(row["ratio"]) == pytest.approx(float(row["ours"]) / float(row["theirs"]))

    @pytest.mark.parametrize(
        ("what", "rival", "sentence"),
        [
            ("step, inductor", "stock Pyro", "takes {} of stock Pyro's time"),
            ("step, inductor", "handwritten, compiled", "{} of that of a loop written by hand"),
            ("step, inductor", "NumPyro", "{} of NumPyro's"),
            ("epoch of fit", "pythae", "takes {} of pythae's"),
        ],
    )
    def test_the_readme_says_what_the_committed_table_says(self, what, rival, sentence):
        table = rows(EXPERIMENTS / "results" / "speed.csv")
        found = [float(row["ratio"]) for row in table if (row["what"], row["rival"]) == (what, rival)]
        readme = " ".join((EXPERIMENTS.parent / "README.md").read_text().split())
        assert sentence.format(f"{min(found):.2f} to {max(found):.2f}") in readme


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

    def test_the_readme_says_what_the_committed_table_says(self):
        """And all are identical, and memory is flat within 5%."""
        table = rows(EXPERIMENTS / "results" / "reliability.csv")
        runs, kills, same = (sum(int(row[name]) for row in table) for name in ("runs", "kills", "identical"))
        assert same == runs
        assert {row["step"] for row in table} == {"off", "graph", "inductor"}
        text = (EXPERIMENTS / "results" / "reliability.md").read_text()
        share = re.search(r"at the end, ([+-][\d.]+)%", text)[1]
        assert abs(float(share)) < 5
        readme = " ".join((EXPERIMENTS.parent / "README.md").read_text().split())
        sentence = f"Of {runs} runs, killed {kills} times at random moments, all ended with the weights and the"
        assert sentence in readme
        assert f"changed by {share}% from epoch 20 to epoch 200" in readme


@pytest.mark.usefixtures("few")
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
        assert (out / "published.png").read_bytes().startswith(b"\x89PNG")
        # The same once more goes on with the run that is there, and adds a line that says the same.
        self.small(tmp_path, "vae")
        one, other = rows(out / "published.csv")
        assert one["ours"] == other["ours"]
        assert (out / "published.md").read_text().count("(`vae`)") == 1

    @pytest.mark.filterwarnings("ignore:Products of bfloat16 numbers take")
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
        with pytest.raises(ValueError, match="Expected --held_out true, to try another recipe"):
            self.small(tmp_path, "gated", recipe={"lr": 1e-3})

    def test_every_row_can_be_built(self):
        papers = importlib.import_module("papers")
        for row in papers.ROWS.values():
            assert row.build((1, 28, 28), seed=0).generate(2).shape == (2, 1, 28, 28)
            row.objective()

    def test_the_rows_are_listed(self, tmp_path):
        listed = importlib.import_module("reproduce").listed()
        assert [line.split()[0] for line in listed.splitlines()[1:-2]] == [*importlib.import_module("papers").ROWS]
        path = str(EXPERIMENTS / "reproduce.py")
        program = f"import runpy, sys\nsys.argv[:] = [{path!r}, 'vea']\nsys.path[0] = {str(EXPERIMENTS)!r}\n"
        bad = forked.run(f"{program}runpy.run_path({path!r}, run_name='__main__')", tmp_path)
        assert bad.returncode == 1
        assert bad.stderr.startswith("reproduce.py: Expected a row among vae, iwae-5, ")
        assert bad.stderr.count("\n") == 1

    def test_the_readme_shows_the_committed_table(self):
        text = (EXPERIMENTS / "results" / "published.md").read_text()
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert "\n".join(table) in (EXPERIMENTS.parent / "README.md").read_text()
        for line in rows(EXPERIMENTS / "results" / "published.csv"):
            assert (line["particles"], line["images"]) == ("5000", "10000")
            assert f"(`{line['row']}`) | {float(line['published']):.2f} |" in text
