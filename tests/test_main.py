"""The command: what it writes, what it prints, and what it says of bad input."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import close_briefly

from pyro_vae import commands, data, guides, likelihoods, load, networks, options, priors, report
from pyro_vae.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent
SMALL = ["--latent", "2", "--network.hidden", "[16]", "--epochs", "2", "--batch_size", "256", "--compile", "off"]
FIGURES = {"curves", "interpolation", "latent_space", "manifold", "reconstructions", "samples", "traversal"}
EVALUATION = {"bounds", "calibration", "dimensions", "weights", "worst"}  # and gaps, where images are chosen
FAST = ["--num_particles", "25", "--images", "50", "--chosen", "0", "--proposal", "guide"]

pytestmark = pytest.mark.usefixtures("elsewhere")

ABSTRACT = ("Network", "Joint", "Quantiser")  # or of several inputs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run, made once."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        close_briefly(patch)
        assert main(["train", *SMALL, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained, capsys):
    """A copy of it to spoil."""
    return Path(shutil.copytree(trained, "run"))


COLUMNS = ["train", "valid", "valid_reconstruction", "valid_kl", "train_at_beta_1", "beta"]


class TestTrain:
    def test_prints_a_table_and_the_run_directory(self, capsys, unrendered, monkeypatch):
        monkeypatch.setattr("pyro_vae.report.proposals.OF_TABLE", 50 * (175 * 2 + 20))
        assert main(["train", *SMALL, "--run_dir", "here/run"]) == 0
        shown = capsys.readouterr()
        lines = shown.out.splitlines()
        assert lines[0] == "digits, not binarised: 1,437 train, 180 valid, 180 test images of 1x8x8"
        start = next(i for i, line in enumerate(lines) if line.startswith("split"))
        assert lines[start].split() == ["split", "images", "ELBO", "E[log", "p(x|z)]", "KL", "-log", "p(x)", "adapted"]
        for name, line in zip(("train", "valid", "test"), lines[start + 1 :], strict=False):
            split, images, *cells = line.replace("±", "").split()
            assert (cells.pop() == "-") is (name != "test")
            numbers = [float(cell) for cell in cells]
            assert (split, images) == (name, "50")
            assert numbers[0] == pytest.approx(numbers[2] - numbers[4], abs=0.02)  # ELBO = reconstruction - KL
        assert "a density" in shown.out
        assert "20 draws" in shown.out
        assert lines[-2:] == ["run:     here/run", "more:    pyro-vae evaluate here/run"]
        assert "valid ELBO" in shown.err  # the bar

    def test_says_how_much_is_missing(self, capsys, unrendered):
        generator = np.random.default_rng(0)
        x, mask = generator.integers(0, 256, (40, 6, 6), dtype=np.uint8), generator.random((40, 6, 6)) > 0.25
        np.savez("x.npz", x=x, mask=mask)
        share = f"{100 * (1 - mask.mean()):.3g}% missing"
        assert main(["train", "--data", "x.npz", "--run_dir", "run", *SMALL]) == 0
        assert main(["evaluate", "run", *FAST]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"x.npz, not binarised, {share}: 32 train, 4 valid, 4 test images of 1x6x6\n")
        assert shown.count(f"{1 - mask.mean():.1%} of the pixels missing, left out") == 2
        assert {path.stem for path in Path("run/figures").iterdir()} == FIGURES | EVALUATION

    def test_draws_every_figure(self, run):
        assert {path.stem for path in (run / "figures").iterdir()} == FIGURES

    def test_names_a_run_directory_itself(self, unrendered):
        assert main(["train", *SMALL, "--epochs", "1"]) == 0
        (made,) = Path("runs").iterdir()
        assert made.name.startswith("digits-20")

    def test_gives_the_same_run_again_from_its_own_configuration(self, run, unrendered):
        assert main(["train", "--config", str(run / "config.yaml"), "--run_dir", "again"]) == 0
        first, second = load(run), load("again")
        assert first[1] == second[1]
        for mine, theirs in zip(first[0].parameters(), second[0].parameters(), strict=True):
            assert (mine == theirs).all()

    def test_every_option_reaches_its_part(self, unrendered):
        options = "--likelihood Bernoulli --binarize dynamic --valid 100 --objective.beta 0.5 --network Conv"
        assert main(["train", *options.split(), "--network.channels", "[4]", "--epochs", "1", "--run_dir", "r"]) == 0
        vae, config = load("r")
        assert type(vae.decoder.family).__name__ == "Bernoulli"
        assert type(vae.encoder.network).__name__ == "Conv"
        assert config["network"]["init_args"]["channels"] == [4]
        assert config["objective"]["init_args"]["beta"] == 0.5
        assert (config["binarize"], config["valid"]) == ("dynamic", 100)

    @pytest.mark.parametrize("how", ["option", "file"])
    def test_a_class_comes_with_its_own_defaults(self, how, capsys):
        """And not with the arguments of the class it replaces, where both have them."""
        Path("c.yaml").write_text("objective:\n  class_path: IWAE\n  init_args:\n    gradient: dreg\n")
        chosen = ["--objective", "IWAE"] if how == "option" else ["--config", "c.yaml"]
        with pytest.raises(SystemExit):
            main(["train", *chosen, "--print_config"])
        found = yaml.safe_load(capsys.readouterr().out)["objective"]["init_args"]
        gradient = "pathwise" if how == "option" else "dreg"
        assert found == {"num_particles": 50, "gradient": gradient, "vectorize_particles": True, "resample": None}

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (
                "--objective IWAE --objective.num_particles 3 --objective.gradient dreg --objective.resample 1",
                {"class_path": "IWAE", "num_particles": 3, "gradient": "dreg", "resample": 1},
            ),
            ("--objective Renyi --objective.alpha 0.3", {"class_path": "Renyi", "alpha": 0.3}),
            ("--objective ReweightedWakeSleep --objective.num_particles 2", {"class_path": "ReweightedWakeSleep"}),
            (
                "--objective.beta Linear --objective.beta.warmup 2",
                {"beta": {"class_path": "Linear", "warmup": 2, "start": 0.0}},
            ),
            (
                "--objective.beta Cyclical --objective.free_bits 0.1",
                {"beta": {"class_path": "Cyclical", "warmup": 1.0, "start": 0.0, "cycles": 4, "ramp": 0.5}},
            ),
            (
                "--objective.penalty MMD --objective.penalty.weight 3",
                {"penalty": {"class_path": "MMD", "weight": 3.0, "bandwidth": None}},
            ),
        ],
    )
    def test_every_objective_by_name(self, options, expected, capsys, unrendered):
        def flat(spec):
            if not isinstance(spec, dict) or "class_path" not in spec:
                return spec
            arguments = {key: flat(value) for key, value in spec.get("init_args", {}).items()}
            return {"class_path": spec["class_path"].rpartition(".")[2]} | arguments

        assert main(["train", *SMALL, *options.split(), "--epochs", "1", "--run_dir", "r"]) == 0
        found = flat(load("r")[1]["objective"])
        assert found.items() >= expected.items()
        header = Path("r/metrics.csv").read_text().splitlines()[0].split(",")
        assert header == ["epoch", *COLUMNS]
        assert Path("r/seconds.csv").read_text().startswith("epoch,seconds\n1,")
        assert main(["train", "--config", "r/config.yaml", "--run_dir", "again"]) == 0
        assert Path("r/metrics.csv").read_bytes() == Path("again/metrics.csv").read_bytes()

    def test_takes_data_and_a_class_of_the_users_own(self, capsys, unrendered):
        Path("my_parts.py").write_text(
            "import pyro_vae.priors\nclass Mine(pyro_vae.priors.StandardNormal):\n    '''Own.'''\n"
        )
        np.save("x.npy", np.random.default_rng(0).random((40, 5)))
        assert main(["train", "--data", "x.npy", "--prior", "my_parts.Mine", "--epochs", "1", "--run_dir", "r"]) == 0
        drawn = {"curves", "latent_space", "marginals", "reconstructions"}
        assert {path.stem for path in Path("r/figures").iterdir()} == drawn
        assert capsys.readouterr().out.endswith("pyro-vae evaluate r --trust my_parts\n")
        assert main(["evaluate", "r"]) == 2
        assert "If you trust it: " in capsys.readouterr().err
        assert main(["evaluate", "r", "--trust", "my_parts", *FAST]) == 0
        Path("s.yaml").write_text("data: x.npy\nprior: my_parts.Mine\nepochs: 1\nlatent: [2, 3]\n")
        assert main(["sweep", "s.yaml", "--workers", "0"]) == 0
        assert capsys.readouterr().out.endswith("pyro-vae compare studies/s --trust my_parts\n")
        del sys.modules["my_parts"]


class TestEvaluate:
    def test_repeats_the_closing_table(self, capsys, monkeypatch, unrendered):
        close_briefly(monkeypatch, 25)
        assert main(["train", *SMALL, "--run_dir", "run"]) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("train ", "valid", "test"))]
        assert main(["evaluate", "run", *FAST]) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if "±" in line][:3] == rows

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:AIS")  # of so few temperatures
    @pytest.mark.usefixtures("short_pilots", "brief_gaps", "unrendered")
    def test_prints_and_writes_the_evaluation_and_draws_its_figures(self, run, capsys):
        options = ["--num_particles", "30", "--images", "40", "--chosen", "2", "--temperatures", "15", "--seed", "3"]
        assert main(["evaluate", "run", *options]) == 0
        shown = capsys.readouterr().out
        written = (run / "evaluation.txt").read_text()
        assert shown.startswith(written)
        figures, also, took = shown[len(written) :].split("\n")[1:-1]
        assert figures == "figures: run/figures"
        assert also == "also:    evaluation.txt, .json and .csv (a line for each image) in run"
        assert re.fullmatch(r"took:    \d+\.\d minutes(, at most \d+\.\d\d GiB of memory)?", took)
        assert {path.stem for path in (run / "figures").iterdir()} == FIGURES | EVALUATION | {"gaps"}
        vae, config = load(run)
        found = report.evaluation(vae, data.load("digits"), 30, 40, 2, 15, 3, progress=False)
        assert written == f"{found}\n"
        assert json.loads((run / "evaluation.json").read_text()).items() >= found.numbers.items()
        assert len((run / "evaluation.csv").read_text().splitlines()) == 41
        for words in (
            "AIS, 15 temperatures, the first 2 images",
            "30 draws from the guide",
            "The first 40 test images",
        ):
            assert words in written
        assert load(run)[1] == config

    @pytest.mark.slow
    def test_prints_and_writes_what_it_can(self, run, capsys, unrendered):
        shutil.rmtree(run / "figures")
        (run / "figures").write_text("a file")
        assert main(["evaluate", "run", *FAST]) == 2
        shown = capsys.readouterr()
        assert shown.out == (run / "evaluation.txt").read_text()
        said = shown.err.splitlines()[-1]
        assert re.search("Could not write figures/bounds.png, .*.png in 'run'", said), said
        assert len((run / "evaluation.csv").read_text().splitlines()) == 51

    @pytest.mark.slow
    def test_with_none_chosen_there_is_no_ais(self, run, capsys, unrendered):
        assert main(["evaluate", "run", *FAST]) == 0
        assert "temperatures, the first" not in capsys.readouterr().out
        assert {path.stem for path in (run / "figures").iterdir()} == FIGURES | EVALUATION
        assert "AIS" not in (run / "evaluation.csv").read_text()

    def test_a_run_on_a_tensor_says_so(self, run, capsys):
        config = yaml.safe_load((run / "config.yaml").read_text()) | {"data": "tensor"}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        assert main(["evaluate", "run"]) == 2
        assert "was trained on a tensor. Use report.table" in capsys.readouterr().err


class TestGenerate:
    def test_numbers_and_a_picture(self, run, capsys):
        assert main(["generate", "run", "--num", "5", "--output", "some/x.npy"]) == 0
        assert capsys.readouterr().out == "some/x.npy\n"
        x = np.load("some/x.npy")
        assert x.shape == (5, 1, 8, 8)
        assert main(["generate", "run", "--num", "5", "--output", "y.npy"]) == 0
        assert (np.load("y.npy") == x).all()
        assert main(["generate", "run", "--num", "5", "--seed", "1", "--output", "y.npy"]) == 0
        assert (np.load("y.npy") != x).any()
        assert main(["generate", "run"]) == 0
        assert (run / "figures" / "generated.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
class TestCompare:
    OPTIONS = ("--num_particles", "20", "--images", "50")

    def test_a_table_and_a_figure(self, run, capsys):
        other = ["--likelihood.scale", "0.3", "--run_dir", "other"]
        assert main(["train", *SMALL, *other]) == 0
        capsys.readouterr()
        assert main(["compare", "run", "other", *self.OPTIONS, "--output", "some/c.png"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(
            "The same for all: latent 2, prior StandardNormal, guide DiagonalNormal, network Auto("
        )
        head = next(i for i, line in enumerate(lines) if line.startswith("run "))
        assert {line.split()[0] for line in lines[head + 1 : head + 3]} == {"run", "other"}
        assert "best" in lines[head + 1]
        assert "20 draws" in " ".join(lines)
        assert lines[-1] == "figure: some/c.png"
        assert Path("some/c.png").read_bytes().startswith(b"\x89PNG")

    def test_the_seed_and_the_split_reach_it(self, run, capsys):
        shown = []
        for more in ([], [], ["--seed", "1"], ["--split", "valid"]):
            assert main(["compare", "run", *self.OPTIONS, *more]) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1]
        assert len({*shown}) == 3
        assert "50 valid images" in shown[3]


class TestHelp:
    @pytest.mark.parametrize("option", ["--help", "-h"])
    def test_says_what_each_subcommand_does_in_its_own_words(self, option, capsys):
        with pytest.raises(SystemExit) as ended:
            main([option])
        assert ended.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert {name: getattr(commands, f"_{name}").__doc__.split("\n")[0] for name in COMMANDS} == COMMANDS
        for name, line in COMMANDS.items():
            assert f"{name} {line}" in shown
        assert "pyro-vae SUBCOMMAND --help" in shown

    def test_version(self, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"pyro-vae {version('pyro_vae')}\n"

    @pytest.mark.parametrize(
        ("command", "option"),
        [*((name, "--seed") for name in COMMANDS if name != "sweep"), ("sweep", "--workers")],
    )
    def test_explains_every_option(self, command, option, capsys):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert option in capsys.readouterr().out

    def test_shows_the_known_classes_of_each_room_and_no_other(self, capsys):
        with pytest.raises(SystemExit):
            main(["train", "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        for room in (priors, likelihoods, guides, networks):
            assert f"known: {', '.join(name for name in room.__all__ if name not in ABSTRACT)})" in shown
        assert "known: ELBO, IWAE, PriorCrossEntropy, Renyi," in shown
        assert shown.count("known: ") == len([option for option in options.ROOMS if "." not in option])

    def test_explains_the_arguments_of_a_class(self, capsys):
        with pytest.raises(SystemExit):
            main(["train", "--objective.help", "ELBO"])
        shown = " ".join(capsys.readouterr().out.split())
        assert "Free nats of each latent dimension" in shown
        assert not re.search(":[a-z]+:`", shown)  # Sphinx's roles
        for name in ("Linear", "Cosine", "Cyclical", "TotalCorrelation", "MMD"):
            assert name in shown

    def test_print_config_is_a_configuration(self, capsys):
        with pytest.raises(SystemExit):
            main(["train", *SMALL, "--print_config"])
        Path("mine.yaml").write_text(capsys.readouterr().out)
        assert main(["train", "--config", "mine.yaml", "--run_dir", "r"]) == 0
        assert load("r")[1]["network"]["init_args"]["hidden"] == [16]

    def test_the_committed_configuration_is_valid(self, capsys):
        with pytest.raises(SystemExit):
            main(["train", "--config", str(ROOT / "experiments" / "digits.yaml"), "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["data"] == "digits"


def array(x):
    np.save("x.npy", x)
    return ["train", "--data", "x.npy"]


def text(name, content):
    Path(name).write_text(content)
    return name


BAD = {
    "unknown objective": (
        lambda: ["train", "--objective", "Foo"],
        "--objective to be one of ELBO, IWAE, PriorCrossEntropy, Renyi, .* or the import path .*; got Foo",
    ),
    "unknown schedule": (
        lambda: ["train", "--objective.beta", "Foo"],
        "--objective.beta to be a number, or one of Cosine, Cyclical, Linear, or .*; got Foo",
    ),
    "unknown penalty": (lambda: ["train", "--objective.penalty", "Foo"], "one of MMD, TotalCorrelation, .*; got Foo"),
    "warm-up": (
        lambda: ["train", "--objective.beta", "Linear", "--objective.beta.warmup", "1.5"],
        "Expected warmup to be a whole number of steps, as 2000, or a fraction .*; got 1.5",
    ),
    "long warm-up": (
        lambda: ["train", *SMALL, "--objective.beta", "Linear", "--objective.beta.warmup", "5000"],
        "beta to reach 1 within the run, of .* steps; the warm-up takes 5,000",
    ),
    "no particles": (lambda: ["train", "--objective", "IWAE", "--objective.num_particles", "0"], "at least 1; got 0"),
    "gradient": (
        lambda: ["train", "--objective.gradient", "dreg"],
        "--objective.gradient to be 'pathwise', 'stl'; got dreg",
    ),
    "penalty's weight": (
        lambda: ["train", "--objective.penalty", "MMD", "--objective.penalty.weight", "x"],
        "--objective.penalty.weight to be float; got x",
    ),
    "unknown data set": (lambda: ["train", "--data", "minst"], "Expected one of digits, mnist, .*; got 'minst'"),
    "NaN": (
        lambda: array(np.full((9, 4), np.nan)),
        "observed element in every row in 'x.npy'; got 9 of 9 rows",
    ),
    "support": (lambda: ["train", "--likelihood", "Bernoulli"], "support of Bernoulli, .* --binarize dynamic"),
    "latent 0": (lambda: ["train", "--latent", "0"], "latent of at least 1; got 0"),
    "no path": (lambda: ["train", "--data", "no/x.npy"], "there is nothing at 'no/x.npy'"),
    "no run": (lambda: ["evaluate", "nowhere"], "Expected a run directory; there is nothing at 'nowhere'"),
    "not a run": (lambda: ["generate", "."], "Expected a run directory with config.yaml; '.' has none"),
    "device": (lambda: ["train", "--device", "gpu"], "device that torch can use, as 'cpu'; got device = 'gpu'"),
    "run_dir": (lambda: ["train", "--run_dir", text("file", "") + "/run"], "make the run directory 'file/run'"),
    "run_dir there": (lambda: ["train", "--run_dir", "r"], "'r' holds a run already. Choose another --run_dir"),
    "no run to compare": (lambda: ["compare"], "arguments are required: runs. See pyro-vae compare --help"),
    "one of the runs": (lambda: ["compare", "r", "nowhere"], "there is nothing at 'nowhere'"),
    "compare's output": (lambda: ["compare", "r", "--output", "x.gif"], "end in .png; got 'x.gif'"),
    "compare's images": (lambda: ["compare", "r", "--images", "1"], "2 images; got 1 runs, .* images = 1"),
    "split": (lambda: ["compare", "r", "--split", "tets"], "--split to be 'test', 'valid', 'train'; got tets"),
    "evaluate's particles": (
        lambda: ["evaluate", "r", "--num_particles", "0"],
        "Expected num_particles of at least 1; got 0",
    ),
    "evaluate's images": (lambda: ["evaluate", "r", "--images", "0"], "Expected images of at least 1; got 0"),
    "chosen": (lambda: ["evaluate", "r", "--chosen", "-1"], "Expected chosen of at least 0; got -1"),
    "temperatures": (lambda: ["evaluate", "r", "--temperatures", "x"], "Expected --temperatures to be int; got x"),
    "evaluate's device": (lambda: ["evaluate", "r", "--device", "gpu"], "torch can use, as 'cpu'; got device = 'gpu'"),
    "no images": (lambda: ["generate", "r", "--num", "0"], "at least 1 image; got num = 0"),
    "output": (lambda: ["generate", "r", "--output", "x.gif"], "end in .png or .npy; got 'x.gif'"),
    "unknown class": (
        lambda: ["train", "--likelihood", "Gausian"],
        "--likelihood to be one of .*Gaussian.*, or the import path of your subclass of Family; got Gausian",
    ),
    "unknown module": (
        lambda: ["train", "--prior", "no.Prior"],
        "--prior to be one of Autoregressive, .* StandardNormal, .* got no.Prior, and there is no no.py here",
    ),
    "another room's": (
        lambda: ["train", "--likelihood", "pyro_vae.priors.StandardNormal"],
        "--likelihood to be one of .*; got pyro_vae.priors.StandardNormal",
    ),
    "no distribution": (lambda: ["train", "--prior", "pyro_vae.likelihoods.Bernoulli"], "Expected a prior whose"),
    "objective": (lambda: ["train", "--objective", "EBLO"], "--objective to be one of ELBO, .*; got EBLO"),
    "number": (lambda: ["train", "--epochs", "many"], "Expected --epochs to be int; got many"),
    "nested number": (
        lambda: ["train", "--objective.beta", "x"],
        "Expected --objective.beta to be a number, or one of Cosine, Cyclical, Linear, .*; got x",
    ),
    "list": (lambda: ["train", "--network.hidden", "3"], r"--network.hidden to be a list, as \[200, 200\]; got 3"),
    "choice": (lambda: ["train", "--binarize", "on"], "--binarize to be 'none', .*'threshold'; got on"),
    "either": (
        lambda: ["train", "--likelihood", "Gaussian", "--likelihood.scale", "x"],
        "--likelihood.scale to be float or 'learned', 'per-pixel', 'optimal'; got x",
    ),
    "argument": (
        lambda: ["train", "--network", "MLP", "--network.depth", "3"],
        "Expected an argument of MLP; got --network.depth",
    ),
    "option": (lambda: ["train", "--epoch_number", "3"], "unrecognized arguments: --epoch_number"),
    "no config": (lambda: ["train", "--config", "no.yaml"], "--config: File does not exist: .*no.yaml"),
    "bad config": (lambda: ["train", "--config", text("a.yaml", "a: b: c")], "Problems parsing config"),
    "no command": (lambda: [], "Expected a subcommand, train, evaluate, generate, sweep, compare, report; got none"),
    "no such command": (lambda: ["trian"], "invalid choice: 'trian'"),
    "no such option": (lambda: ["--fast", "train"], "unrecognized arguments: --fast. See pyro-vae --help"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_sentence(arguments, message, run, capsys):
    run.rename("r")
    weights = Path("r/model.safetensors").read_bytes()
    assert main(arguments()) == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("pyro-vae")
    assert "\n" not in shown
    assert "Traceback" not in shown
    assert Path("r/model.safetensors").read_bytes() == weights
    assert re.search(message, shown), shown


def test_interrupted_says_where_the_weights_are(monkeypatch, capsys):
    from pyro_vae.compiled import CompiledSVI

    steps = iter(range(3))

    def step(self, *args, **kwargs):
        if next(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(CompiledSVI, "apply", step)
    assert main(["train", *SMALL, "--run_dir", "run"]) == 130
    assert "interrupted. The weights so far are in run." in capsys.readouterr().err
    assert load("run")[1]["latent"] == 2


@pytest.mark.processes
@pytest.mark.parametrize("command", [["-m", "pyro_vae"], None], ids=["module", "script"])
def test_as_a_program(command):
    program = [sys.executable, *command] if command else [str(Path(sys.executable).with_name("pyro-vae"))]
    done = subprocess.run([*program, "train", "--data", "minst"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pyro-vae train: Expected one of digits, ")
    assert done.stderr.count("\n") == 1


def test_the_global_generator_and_the_path_are_as_they_were(capsys, unrendered):
    before, path = torch.get_rng_state(), list(sys.path)
    assert main(["train", *SMALL, "--run_dir", "run"]) == 0
    assert (torch.get_rng_state() == before).all()
    assert sys.path == path
    assert len(data.load("digits").train) == 1437
