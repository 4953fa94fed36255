"""The page about runs, read as text: its sections, its pictures, its numbers, and names that look like HTML."""

import base64
import csv
import importlib
import io
import itertools
import json
import re
import sys
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae import VAE, checkpoint, data, likelihoods, networks, page, plots, programs, report
from pyro_vae.__main__ import main
from pyro_vae.page import building, latents
from pyro_vae.page.charts import bars, curves
from pyro_vae.page.content import Content
from pyro_vae.page.pictures import sprite
from pyro_vae.program import posterior_of
from pyro_vae.report import Evaluation
from pyro_vae.seeds import eval_mode

FEW = {"num_particles": 25, "images": 20, "progress": False}
EVIL = "x<!--\"'&<script>😀"
HISTORY = {
    "train": [3.0, 2.0, 1.5],
    "valid": [3.5, float("nan"), 2.0],
    "valid_kl": [0.5, 1.0, 1.5],
    "seconds": [1.0] * 3,
}
OF_ALL = {"summary", "trained", "curves", "evaluation", "latents"}
OF_IMAGES = OF_ALL | {"images", "predictive", "worst"}
OF_EVALUATION = {"summary", "evaluation", "worst"}


@pytest.fixture(autouse=True)
def few_simulated(monkeypatch, tmp_path):
    monkeypatch.setattr("pyro_vae.report.answers.SIMULATED", 20)
    monkeypatch.chdir(tmp_path)


def active(program):
    """The program, with codes that vary with x."""
    encoder = getattr(program, "encoder", None) or program.encoders["z1"]
    layers = [layer for layer in encoder.network.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    layers[-1].weight.data.mul_(20)
    return program


def write(folder, program, dataset, history=HISTORY):
    """Write a run of an untrained program."""
    config = dataset.config | checkpoint.program_spec(program)
    with checkpoint.lock_new(folder):
        checkpoint.write_header(Path(folder), config, {})
    checkpoint.save_weights(Path(folder), program)
    checkpoint.save_metrics(Path(folder), history)
    return folder


def vae(dataset, latent=3, likelihood=likelihoods.Gaussian):
    return active(VAE.build(dataset.event_shape, latent, likelihood=likelihood))


class Page(HTMLParser):
    """The elements of a page: names, attributes and texts in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.stack = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        element = {"name": name, "text": "", "in": [*self.stack], **dict(attributes)}
        self.elements.append(element)
        if name not in ("meta", "img", "input", "br"):
            self.stack.append(element)

    def handle_endtag(self, name):
        while self.stack and self.stack.pop()["name"] != name:
            pass

    def handle_data(self, text):
        for element in self.stack:
            element["text"] += text

    def named(self, *names):
        return [element for element in self.elements if element["name"] in names]

    def of(self, kind):
        return [element for element in self.elements if kind in element.get("class", "").split()]

    @property
    def sections(self):
        return {element["id"] for element in self.named("section")}


def pixels(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2]))))


MINE = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self, hidden: int = 8):
        super().__init__()
        self.hidden = hidden
        self.mean = nn.Linear(2, 64)
        self.codes = nn.Sequential(nn.Linear(64, hidden), nn.Linear(hidden, 2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.mean(z).unflatten(-1, (1, 8, 8))
            return pyro.sample("x", dist.Normal(mean, 0.3).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(9 * self.codes(x.flatten(-3)), 0.5).to_event(1))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A program of a user without any method beside its model and guide."""
    Path("mine_of_page.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("mine_of_page").Mine()
    sys.modules.pop("mine_of_page")


@pytest.fixture
def digits():
    return data.load("digits")


@pytest.fixture
def brief(monkeypatch):
    """Pages without evaluations."""
    monkeypatch.setattr(building, "evaluation_of", lambda *_: None)


class TestPrograms:
    def test_a_slider_shows_the_frames_of_the_program(self, digits, brief):
        program = vae(digits)
        text = Page(page.html([write("run", program, digits)], **FEW))
        images = {image["id"]: pixels(image["href"]) for image in text.named("image")}
        (article,) = [element for element in text.of("chooser") if element["in"][-2].get("id") == "walk"]
        inside = [element for element in text.elements if article in element["in"]]
        names = [element["aria-label"] for element in inside if element.get("type") == "range"]
        hrefs = [element["href"][1:] for element in inside if element["in"][-1].get("class") == "tile"]
        starts = [int(e["aria-label"].split()[-1]) for e in inside if e.get("class") == "thumb"]
        assert sorted(names) == ["z[0]", "z[1]", "z[2]"]
        assert len(starts) == 4
        for row, start in enumerate(starts):
            expected = program.traverse(digits.test[start : start + 1][0], 3.0, 13).clamp(0, 1) * 255
            for name, href in zip(names, hrefs, strict=True):
                frames = images[href][8 * row : 8 * row + 8].reshape(8, 13, 8).swapaxes(0, 1)
                np.testing.assert_allclose(frames, expected[int(name[2]), :, 0], rtol=0, atol=0.51)

    @pytest.mark.parametrize(
        ("build", "options", "sections"),
        [
            (vae, {}, OF_IMAGES | {"walk"}),
            (lambda ds: active(programs.ConditionalVAE.build(ds.event_shape, latent=2)), {}, OF_IMAGES | {"walk"}),
            (
                lambda ds: active(programs.HierarchicalVAE.build(ds.event_shape, latents=[3, 2])),
                {},
                OF_IMAGES | {"walk"},
            ),
            (lambda ds: programs.VQVAE.build(ds.event_shape, codes=4, dim=2), {}, OF_IMAGES - {"worst"}),
            (lambda ds: programs.SemiSupervisedVAE.build(ds.event_shape, latent=2), {"labelled": 20}, OF_IMAGES),
        ],
        ids=["VAE", "Conditional", "Hierarchical", "VQ", "SemiSupervised"],
    )
    def test_a_program_of_this_package_has_the_sections_that_apply(self, build, options, sections):
        dataset = data.load("digits", **options)
        text = Page(page.html([write("run", build(dataset), dataset)], **FEW))
        assert sections <= text.sections <= sections | {"walk"}
        assert not text.named("aside")

    def test_a_program_of_a_user_needs_no_further_method(self, mine, digits):
        text = Page(page.html([write("run", mine, digits)], **FEW, trust=["mine_of_page"]))
        assert text.sections == (OF_IMAGES | {"walk"}) - {"worst"}

    def test_a_table_has_columns_and_no_images(self):
        rows = [[*row, ("<red>", "blue")[i % 2]] for i, row in enumerate(torch.randn(60, 3).tolist())]
        with open("rows.csv", "w", newline="") as file:
            csv.writer(file).writerows([["a&b", '"c"', "<d>", "kind"], *rows])
        dataset = data.load("rows.csv", labels="kind", standardize=True)
        text = Page(page.html([write("run", vae(dataset, 2), dataset)], **FEW))
        assert text.sections == OF_ALL | {"columns"}
        assert {element["text"] for element in text.named("button")} == {"<red>", "blue"}
        assert not text.named("image")

    def test_counts_and_missing_pixels_have_colours(self, brief):
        np.save("counts.npy", np.random.default_rng(0).poisson(3.0, (60, 1, 4, 4)).astype(np.float32))
        x = torch.rand(60, 1, 4, 4)
        x[:, :, 0] = torch.nan
        np.save("missing.npy", x.numpy())
        for name, options, likelihood in [
            ("counts", {"counts": True}, likelihoods.Poisson),
            ("missing", {}, likelihoods.Gaussian),
        ]:
            dataset = data.load(f"{name}.npy", **options)
            program = VAE.build(dataset.event_shape, 2, likelihood=likelihood)
            program.start(dataset)  # which fills missing pixels
            text = Page(page.html([write(name, program, dataset)], **FEW))
            assert text.sections >= OF_IMAGES - OF_EVALUATION
            images = [pixels(image["href"]) for image in text.named("image")]
            if name == "missing":
                blue = np.round(255 * np.asarray(plots.MISSING))
                assert any(image.ndim == 3 and (image[0, 0] == blue).all() for image in images)
            else:
                assert max(image.max() for image in images) == 255


class TestRuns:
    def test_without_history(self, brief):
        dataset = data.load("digits", valid=0)
        text = Page(page.html([write("run", vae(dataset), dataset, {})], **FEW))
        assert text.sections == (OF_IMAGES | {"walk"}) - OF_EVALUATION - {"curves"}

    def test_a_run_that_has_not_ended_shows_its_curves(self, digits):
        run = Path(write("run", vae(digits), digits))
        (run / "model.safetensors").unlink()
        text = Page(page.html([run], **FEW))
        assert text.sections == {"trained", "curves"}
        assert "has not ended" in text.named("aside")[0]["text"]
        (run / "diverged.json").write_text(json.dumps({"epoch": 3, "step": 14}))
        assert "epoch 3, step 14" in Page(page.html([run], **FEW)).named("aside")[0]["text"]
        (run / "diverged.json").write_text("[")
        assert "has not ended" in Page(page.html([run], **FEW)).named("aside")[0]["text"]

    def test_a_run_on_a_tensor_shows_its_curves(self, digits):
        run = Path(write("run", vae(digits), digits))
        config = (run / "config.yaml").read_text().replace("data: digits", "data: tensor")
        (run / "config.yaml").write_text(config)
        text = Page(page.html([run], **FEW))
        assert text.sections == {"trained", "curves"}
        assert "tensor" in text.named("aside")[0]["text"]

    def test_weights_that_are_not_finite_give_a_note(self, digits):
        program = vae(digits)
        for parameter in program.parameters():
            parameter.data.fill_(torch.nan)
        text = Page(page.html([write("run", program, digits)], **FEW))
        assert text.sections >= {"trained", "curves"}
        assert "No evaluation" in text.named("aside")[0]["text"]

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"runs": []}, "at least 1 run"),
            ({"runs": ["run"], "num_particles": 0}, "num_particles = 0"),
            ({"runs": ["run"], "images": 1}, "images = 1"),
            ({"runs": ["run"], "images": -3}, "images = -3"),
            ({"runs": ["run", "nowhere"]}, "nothing at 'nowhere'"),
            ({"runs": ["run"], "device": "tpu"}, "tpu"),
        ],
    )
    def test_bad_arguments_are_refused_before_any_work(self, arguments, match, digits, monkeypatch):
        write("run", vae(digits), digits)
        monkeypatch.setattr(building, "evaluation_of", pytest.fail)
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            page.html(**arguments, progress=False)


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A page of a run whose name and command look like HTML, and of another run."""
    digits, folder = data.load("digits"), tmp_path_factory.mktemp("evil")
    with torch.random.fork_rng():
        run, plain = (Path(write(folder / name, vae(digits), digits)) for name in (EVIL, "plain"))
    environment = json.loads((run / "environment.json").read_text())
    environment["command"] = ["pyro-vae", EVIL]
    (run / "environment.json").write_text(json.dumps(environment))
    return Page(page.html([run, plain], **FEW))


class TestText:
    def test_names_stay_text(self, evil):
        assert len(evil.named("script")) == 1
        assert EVIL in [element["text"] for element in evil.named("th", "h3")]
        assert any(EVIL.replace("'", "'\"'\"'") in element["text"] for element in evil.named("td"))
        series = [json.loads(e["data-chart"])["series"] for e in evil.named("figure") if "data-chart" in e]
        assert any(line["name"].startswith(EVIL) for lines in series for line in lines)

    def test_nothing_leaves_the_page(self, evil):
        (policy,) = [e["content"] for e in evil.named("meta") if e.get("http-equiv") == "Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; img-src data:")
        for element in evil.elements:
            for attribute in ("src", "href", "srcset", "action", "data", "poster"):
                assert element.get(attribute, "#").startswith(("#", "data:image/png;base64,"))
        assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", evil.named("style")[0]["text"])

    def test_readers_of_all_kinds(self, evil):
        levels = [int(element["name"][1]) for element in evil.named("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert evil.named("html")[0]["lang"] == "en"
        assert all(element["alt"] for element in evil.named("img"))
        assert all(element["aria-label"] for element in evil.named("svg") if element.get("role") == "img")
        assert all(e.get("aria-hidden") or e.get("role") for e in evil.named("svg") if "x" not in e)
        for table in evil.named("table"):
            inside = [element for element in evil.elements if table in element["in"]]
            assert [element["name"] for element in inside].count("caption") == 1
            assert all(element["scope"] in ("row", "col") for element in inside if element["name"] == "th")
        for element in evil.named("input"):
            assert element.get("aria-label") or any(parent["name"] == "label" for parent in element["in"])
        names = [element["id"] for element in evil.elements if "id" in element]
        assert len(names) == len({*names})

    def test_masses_and_densities_share_no_table_and_no_chart(self, digits, monkeypatch):
        monkeypatch.setattr(building, "evaluation_of", lambda *_: True)
        monkeypatch.setattr(building, "_content", lambda run, *_: Content(run, 1e5))
        binary = data.load("digits", binarize="static")
        runs = [write("real-1", vae(digits), digits), write("mass-1", vae(binary, 2, likelihoods.Bernoulli), binary)]
        runs += [
            write("real-2", vae(digits, 2), digits),
            write("mass-2", vae(binary, 3, likelihoods.Bernoulli), binary),
        ]
        text = Page(page.html(runs, **FEW))
        section = next(element for element in text.named("section") if element["id"] == "comparison")
        tables = [element for element in text.named("tbody") if section in element["in"]]
        kinds = [{e["text"].split("-")[0] for e in text.named("th") if table in e["in"]} for table in tables]
        assert sorted(map(sorted, kinds)) == [["mass"], ["real"]]
        charts = [json.loads(e["data-chart"])["series"] for e in text.named("figure") if "data-chart" in e]
        for lines in charts:
            assert len({line["name"].split("-")[0] for line in lines}) == 1


class TestNumbers:
    def test_a_saved_evaluation_of_the_same_weights_counts(self, digits, monkeypatch):
        program = vae(digits)
        run = write("run", program, digits)
        saved = report.evaluation(program, digits, 30, 25, 0, progress=False, proposal="guide")
        saved.save(run)
        again = Evaluation.load(run)
        assert (again.table, again.sections, again.called) == (saved.table, saved.sections, saved.called)
        assert again.diagnosis == saved.diagnosis
        for name, column in saved.images.items():
            np.testing.assert_array_equal(again.images[name], column)
        monkeypatch.setattr(report, "evaluation", lambda *_, **__: pytest.fail("a new evaluation"))
        text = page.html([run], progress=False)
        assert "30 draws" in text
        for cell in re.findall(r"-?[\d.]+ ± [\d.]+", saved.table):
            assert f">{cell}<" in text
        program.decoder.network.load_state_dict({k: v + 1 for k, v in program.decoder.network.state_dict().items()})
        checkpoint.save_weights(Path(run), program)
        with pytest.raises(pytest.fail.Exception):
            page.html([run], progress=False)

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"table": 3}', "[" * 99999])
    def test_a_damaged_evaluation_is_refused_in_a_sentence(self, content):
        Path("evaluation.json").write_text(content)
        with pytest.raises(ValueError, match="Expected a saved evaluation in '.'; cannot read it"):
            Evaluation.load(".")

    def test_a_changed_evaluation_gives_a_note(self, digits):
        program = vae(digits)
        run = write("run", program, digits)
        report.evaluation(program, digits, 25, 20, 0, progress=False, proposal="guide").save(run)
        saved = json.loads(Path(run, "evaluation.json").read_text())
        for change in ({"table": ""}, {"table": "a  b\nc  d"}, {"sections": {"a": 3}}, {"active": 1, "latent": "2"}):
            Path(run, "evaluation.json").write_text(json.dumps({**saved, **change}))
            text = Page(page.html([run], progress=False))
            assert text.sections >= {"trained", "curves", "latents"}
            Path(run, "evaluation.json").write_text(json.dumps({**saved, "table": ""}))
        assert "pyro-vae evaluate" in Page(page.html([run], progress=False)).named("aside")[0]["text"]

    def test_codes_that_are_not_finite_are_left_out(self, digits, brief, monkeypatch):
        codes, run = latents.codes, write("run", vae(digits), digits)

        def some(target, rows):
            result = codes(target)
            result.points[rows] = np.inf
            return result

        for rows, number in ([1, 5], 178), (slice(None), 0):
            monkeypatch.setattr(latents, "codes", partial(some, rows=rows))
            shown = [
                int(e["data-row"]) for e in Page(page.html([run], progress=False)).named("circle") if "data-row" in e
            ]
            assert len(shown) == number
            assert not {*shown} & {1, 5}

    def test_a_curve_has_the_history(self):
        chart, *rest = curves({"run": HISTORY})
        assert [part.title for part in rest] == ["Divergence: KL(q || p), valid"]
        train, valid = chart.data["series"]
        assert (train["x"], train["y"], valid["y"]) == ([1, 2, 3], HISTORY["train"], [3.5, None, 2.0])
        places = [[*map(float, pair)] for pair in re.findall(r"([\d.]+) ([\d.]+)", chart.marks[0]["path"])]
        low, high, bottom, top = chart.data["y"]
        for value, (_, y) in zip(HISTORY["train"], places, strict=True):
            assert y == pytest.approx(bottom + (value - low) / (high - low) * (top - bottom), abs=0.06)
        assert chart.marks[1]["path"].count("M") == 2  # a gap at the value that is not finite

    def test_a_long_history_is_thinned_and_keeps_its_ends(self):
        values = torch.randn(50_000).tolist()
        (chart,) = curves({"run": {"train": values}})
        line = chart.data["series"][0]
        assert len(line["x"]) <= 2400
        assert (line["x"][0], line["x"][-1]) == (1, 50_000)
        assert line["y"][-1] == pytest.approx(values[-1], rel=1e-5)

    def test_bars_are_two_standard_errors(self):
        chart = bars("title", [("a", 1.0, 0.5), ("b", 2.0, float("nan")), ("c", float("nan"), 1.0), ("d", 5.0, 0.25)])
        scale = chart.x.end - chart.x.start
        widths = [(mark["to"] - mark["from"]) / scale * (chart.x.high - chart.x.low) for mark in chart.marks]
        assert widths == pytest.approx([2.0, 0.0, 1.0], abs=0.01)
        assert bars("title", [("a", 1.0, 0.5)]) is None


class TestSizes:
    @pytest.mark.parametrize("event", [(1, 8, 8), (3, 20, 31), (200, 150), (1, 1, 65)])
    def test_a_sprite_keeps_to_its_bytes(self, event):
        x = torch.rand(6, 9, *event)
        for most in (100, 3000, 40_000, 10**7):
            result = sprite(x, most, gap=1)
            image = pixels(result.source)
            assert image.shape[1::-1] == result.size
            assert max(result.width, result.height) <= 65
            tile = result.height * (result.width * (3 if len(event) == 3 and event[0] == 3 else 1) + 1)
            assert len(result.source) * 3 / 4 <= max(most, tile) * 1.3 + 300

    @pytest.mark.parametrize("number", [1, 10])
    def test_runs_of_large_images_are_below_five_megabytes(self, number, brief, monkeypatch):
        images = np.random.default_rng(0).integers(0, 256, (120, 3, 64, 64), dtype=np.uint8)
        np.save("images.npy", images)
        dataset = data.load("images.npy")
        program = active(VAE.build(dataset.event_shape, 20, network=partial(networks.MLP, hidden=(4,))))
        history = {"train": torch.randn(3000).tolist(), "valid": torch.randn(3000).tolist(), "seconds": [1.0] * 3000}
        runs = [write(f"run{i}", program, dataset, history) for i in range(number)]
        content, contents = building._content, []

        def content_of_first(run, *rest):
            contents.append(replace(contents[0], run=run) if contents else content(run, *rest))
            return contents[-1]

        monkeypatch.setattr(building, "_ranking", lambda *_, **__: [])
        monkeypatch.setattr(building, "_content", content_of_first)
        text = page.html(runs, progress=False)
        of_tiles = sum(len(tiles.source) for tiles in contents[0].sprites.values())  # once for equal runs
        size = len(text.encode()) + (number - 1) * of_tiles
        assert {"walk", "images", "predictive"} <= {*re.findall(r'<section id="(\w+)"', text)}
        assert 1e6 < size < 5e6


class TestCommand:
    def test_writes_one_file_into_the_run_or_here(self, digits, capsys, brief, monkeypatch):
        monkeypatch.setattr(building, "_content", lambda run, *_: Content(run, 1e5))
        write("runs/a", vae(digits), digits)
        write("runs/b", vae(digits), digits)
        few = ["--num_particles", "25", "--images", "20"]
        assert main(["report", "runs/a", *few]) == 0
        assert "runs/a/report.html" in capsys.readouterr().out
        assert main(["report", "runs/a", "runs/b", "runs/a", *few]) == 0
        text = Page(Path("report.html").read_text())
        assert text.named("title")[0]["text"] == "Report of 2 runs"
        assert main(["report", "runs/a", *few, "--output", "new/folder/r.html"]) == 0
        assert Path("new/folder/r.html").read_text() == Path("runs/a/report.html").read_text()

    @pytest.mark.parametrize(
        ("words", "match"),
        [
            (["runs/a", "--output", "r.pdf"], "end in .html; got 'r.pdf'"),
            (["nowhere"], "nothing at 'nowhere'"),
            (["runs/a", "--images", "1"], "2 images; got 1 runs"),
            ([], "arguments are required: runs"),
            (["runs/a", "--output", "runs/a/config.yaml/r.html"], "config.yaml"),
        ],
    )
    def test_bad_input_writes_nothing(self, words, match, digits, capsys):
        write("runs/a", vae(digits), digits)
        before = sorted(Path().rglob("*"))
        few = [] if "--images" in words else ["--images", "20"]
        assert main(["report", *words, *few, "--num_particles", "25"]) == 2
        error = capsys.readouterr().err
        assert re.search(match, error)
        assert "Traceback" not in error
        assert sorted(Path().rglob("*")) == before


def test_one_draw_of_one_datum_has_its_class():
    dataset = data.load("digits", labelled=20)
    program = programs.SemiSupervisedVAE.build(dataset.event_shape, latent=2)
    with torch.no_grad(), eval_mode(program, torch.device("cpu")):
        target = posterior_of(program, dataset.test[:3])
        for rows, num in ((1, 1), (3, 1), (1, 2), (3, 2)):
            draws = target[:rows].complete(num, {"z": torch.randn(num, rows, 2)})
            assert {value.shape[:2] for value in draws.values()} == {(num, rows)}
