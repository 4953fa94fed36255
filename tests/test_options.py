"""From words to parts: names, and classes of the user's own, from a file in the current directory."""

import ast
import doctest
import re
from itertools import count
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import yaml

from pyro_vae import fit, load, options
from pyro_vae.__main__ import main
from pyro_vae.conditional import Family

README = (Path(__file__).parent.parent / "README.md").read_text()
SMALL = ["--latent", "2", "--epochs", "1", "--batch_size", "256", "--compile", "off"]

pytestmark = pytest.mark.usefixtures("elsewhere", "unrendered")


FILES = count()
HEAD = """import pyro.distributions as dist
import torch
from torch import nn
from pyro_vae.conditional import Family
from pyro_vae.networks import Network
"""


def own(body, home=None):
    """Write a file of the user's own; return its module. (One name would be imported once, so each has another.)"""
    home = home or f"own_{next(FILES)}"
    Path(f"{home}.py").write_text(f"{HEAD}{body}\n")
    return home


def config(content):
    Path("config.yaml").write_text(content)
    return "config.yaml"


class TestOwnParts:
    def trains(self, home, *options):
        """Train, load, evaluate; return the VAE and its configuration."""
        assert main(["train", *SMALL, "--network.hidden", "[16]", *options, "--run_dir", "r"]) == 0
        with pytest.raises(ValueError, match=home):
            load("r")
        assert main(["evaluate", "r", "--num_particles", "25", "--images", "20", "--chosen", "0", "--trust", home]) == 0
        return load("r", trust=[home])

    def test_the_prior_of_the_readme(self, capsys):
        blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
        (block,) = (block for block in blocks if "class Laplace(nn.Module)" in block)
        nodes = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)]
        Path("my_priors.py").write_text("\n".join(ast.get_source_segment(block, node) for node in nodes))
        vae, found = self.trains("my_priors", "--prior", "my_priors.Laplace")
        assert type(vae.prior).__name__ == "Laplace"
        assert all(value.any() for value in vae.prior.parameters())  # zero at the start: they have been trained
        assert found["prior"] == {"class_path": "my_priors.Laplace"}

    def test_the_likelihood_of_the_base_classs_docstring(self, capsys):
        examples = doctest.DocTestParser().get_examples(Family.__doc__)
        lines = [example.source for example in examples if example.source.startswith(("import", "class Poisson"))]
        Path("my_likelihoods.py").write_text("from pyro_vae.conditional import Family\n" + "".join(lines))
        counts = np.random.default_rng(0).poisson(3, (200, 5)).astype("float32")  # integers would be pixels
        np.save("counts.npy", counts)
        vae, _ = self.trains("my_likelihoods", "--likelihood", "my_likelihoods.Poisson", "--data", "counts.npy")
        assert "log p(x) is of a mass" in capsys.readouterr().out
        distribution = vae.decoder(torch.zeros(2))
        assert distribution.event_shape == (5,)
        assert distribution.log_prob(torch.as_tensor(counts)).max() < 0  # a mass

    def test_a_guide(self, capsys):
        own(
            "class Student(Family):\n    params = 2\n    def distribution(self, loc, log_scale):\n"
            "        return dist.StudentT(5.0, loc, log_scale.exp())",
            home="my_guides",
        )
        vae, _ = self.trains("my_guides", "--guide", "my_guides.Student")
        assert type(vae.encoder.family).__name__ == "Student"

    def test_a_file_names_them_all_with_their_arguments(self, capsys):
        own(EVERYTHING, home="my_everything")
        chosen = {
            "prior": ("Prior", {"scale": 2.0}),
            "likelihood": ("Scaled", {"scale": 0.25}),
            "guide": ("Scaled", {"scale": 0.125}),
            "network": ("Narrow", {"units": 5}),
        }
        parts = {
            option: {"class_path": f"my_everything.{name}", "init_args": arguments}
            for option, (name, arguments) in chosen.items()
        }
        name = config(yaml.safe_dump({**parts, "latent": 2, "epochs": 1, "batch_size": 256, "compile": "off"}))
        assert main(["train", "--config", name, "--run_dir", "r"]) == 0
        vae, found = load("r", trust=["my_everything"])
        assert {option: found[option] for option in parts} == parts
        assert (vae.prior.scale, vae.decoder.family.scale, vae.encoder.family.scale) == (2.0, 0.25, 0.125)
        assert vae.encoder.network.layers[1].out_features == 5
        options = ["--prior.scale", "3", "--likelihood.scale", "0.5", "--network.units", "6", "--run_dir", "s"]
        assert main(["train", "--config", name, *options]) == 0
        vae, _ = load("s", trust=["my_everything"])
        assert (vae.prior.scale, vae.decoder.family.scale, vae.encoder.family.scale) == (3.0, 0.5, 0.125)
        assert vae.encoder.network.layers[1].out_features == 6


EVERYTHING = """
class Prior(nn.Module):
    def __init__(self, latent, scale=1.0):  # no types: taken as they come
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(latent)), scale

    def forward(self):
        return dist.Normal(self.loc, self.scale).to_event(1)


class Scaled(Family):
    params = 1

    def __init__(self, event, scale: float = 1.0):
        super().__init__(event)
        self.scale = scale

    def distribution(self, loc):
        return dist.Normal(loc, self.scale)


class Narrow(Network):
    def __init__(self, in_shape, out_shape, units: int = 8):
        before, after = (torch.Size(shape).numel() for shape in (in_shape, out_shape))
        layers = nn.Flatten(), nn.Linear(before, units), nn.Tanh(), nn.Linear(units, after, bias=False)
        super().__init__(in_shape, out_shape, nn.Sequential(*layers))
"""

TWINS = """
from contextlib import suppress
from pyro_vae import guides, likelihoods, objectives, priors
from pyro_vae.__main__ import main

kinds = {priors: priors.StandardNormal, guides: guides.DiagonalNormal, likelihoods: likelihoods.Gaussian}
for room, kind in kinds.items():
    room.Twin = type("Twin", (kind,), {"__module__": room.__name__, "__doc__": "One of three."})
    room.__all__ = [*room.__all__, "Twin"]
for words in CASES:
    print("----")
    with suppress(SystemExit):
        main(["train", *words.split()])
"""


def test_off_in_a_file_is_a_word(elsewhere):
    Path("file.yaml").write_text("compile: off\n")
    for words in (["--config", "file.yaml"], ["--compile", "off"], ["--config", '{"compile": false}']):
        assert options.parse("train", fit, words)["compile"] == "off"


@pytest.mark.processes
def test_a_short_name_is_of_the_options_own_room():
    """Though other rooms and a file of the user's have classes of that name, all of them imported by then.

    In a process of its own, since a class once made stays among the subclasses of its base.
    """
    own(
        "from pyro_vae import likelihoods, objectives\nclass Twin(likelihoods.Gaussian):\n    '''Own.'''\n"
        "class Linear(objectives.Linear):\n    '''Own.'''\n",
        home="mine",
    )
    Path("short.yaml").write_text("prior: Twin\nguide: Twin\n")
    Path("long.yaml").write_text("likelihood: {class_path: Twin, init_args: {scale: 0.5}}\nprior: {class_path: Twin}\n")
    Path("mine.yaml").write_text("likelihood: {class_path: mine.Twin, init_args: {scale: 0.25}}\n")
    Path("beta.yaml").write_text("objective: {class_path: ELBO, init_args: {beta: {class_path: Linear}}}\n")
    cases = {
        "--likelihood mine.Twin --likelihood.scale 0.5": {"likelihood": ("mine.Twin", {"scale": 0.5})},
        "--prior Twin": {"prior": ("priors.Twin", None)},
        "--prior=Twin --guide Twin": {"prior": ("priors.Twin", None), "guide": ("guides.Twin", None)},
        "--likelihood Twin --likelihood.scale 0.5": {"likelihood": ("likelihoods.Twin", {"scale": 0.5})},
        "--likelihood=Twin --likelihood.scale=0.5": {"likelihood": ("likelihoods.Twin", {"scale": 0.5})},
        "--config short.yaml": {"prior": ("priors.Twin", None), "guide": ("guides.Twin", None)},
        "--config long.yaml": {"likelihood": ("likelihoods.Twin", {"scale": 0.5}), "prior": ("priors.Twin", None)},
        "--config mine.yaml": {"likelihood": ("mine.Twin", {"scale": 0.25})},
        "--config short.yaml --prior StandardNormal": {"prior": ("priors.StandardNormal", None)},
    }
    linear = ["--objective.beta Linear", "--config beta.yaml"]
    words = [f"{words} --print_config" for words in [*cases, *linear]] + ["--prior.help Twin", "--likelihood.help=Twin"]
    code = TWINS.replace("CASES", repr(words))
    done = forked.run(code, Path.cwd())
    assert done.stderr == ""
    *shown, first, second, of_prior, of_likelihood = done.stdout.split("----\n")[1:]
    for expected, text in zip(cases.values(), shown, strict=True):
        found = yaml.safe_load(text)
        for option, (path, arguments) in expected.items():
            assert found[option]["class_path"].removeprefix("pyro_vae.") == path
            assert found[option].get("init_args") == arguments
    for text in (first, second):
        beta = yaml.safe_load(text)["objective"]["init_args"]["beta"]
        assert beta["class_path"] == "pyro_vae.objectives.Linear"
    assert "pyro_vae.priors.Twin" in of_prior
    assert "--likelihood.scale" in of_likelihood


def prior(start="pass", forward="return dist.Normal(torch.zeros(2), 1.0).to_event(1)", arguments="self, latent"):
    """``train`` with a user's prior, whose ``__init__`` starts with line 9 and whose ``forward`` has line 11."""
    body = f"class P(nn.Module):\n    def __init__({arguments}):\n        super().__init__()\n        {start}\n"
    home = own(f"{body}    def forward(self):\n        {forward}")
    return ["train", *SMALL, "--prior", f"{home}.P"]


def distribution(body, params="params = 1", room="likelihood"):
    """``train`` with a user's family, whose distribution has line 9."""
    home = own(f"class F(Family):\n    {params}\n    def distribution(self, a):\n        {body}")
    return ["train", *SMALL, f"--{room}", f"{home}.F"]


def network(body):
    """``train`` with a user's network, whose layers are on line 8."""
    home = own(f"class N(Network):\n    def __init__(self, i, o):\n        super().__init__(i, o, {body})")
    return ["train", *SMALL, "--network", f"{home}.N"]


BAD = {
    "no file": (
        lambda: ["train", "--prior", "nowhere.P"],
        "Expected --prior to be one of .*; got nowhere.P, and there is no nowhere.py here",
    ),
    "no class": (lambda: ["train", "--guide", f"{own('class R(Family): ...')}.Q"], "a class Q in own_.*; it defines R"),
    "syntax": (
        lambda: ["train", "--prior", f"{own('def f(:')}.P"],
        r"own_\d+.py, line 6: SyntaxError: invalid syntax",
    ),
    "import": (
        lambda: ["train", "--prior", f"{own('import nonesuch')}.P"],
        "line 6: ModuleNotFoundError: No module named 'nonesuch'",
    ),
    "a name in the file": (
        lambda: ["train", "--prior", f"{own('nonesuch')}.P"],
        r"own_\d+.py, line 6: NameError: name 'nonesuch' is not",
    ),
    "a name in the file, by YAML": (
        lambda: ["train", "--config", config(f"prior: {own('nonesuch')}.P")],
        r"own_\d+.py, line 6: NameError: name 'nonesuch' is not",
    ),
    "no file, by YAML": (
        lambda: ["train", "--config", config("guide: {class_path: nowhere.P}")],
        "Expected --guide to be one of .*; got nowhere.P, and there is no nowhere.py here",
    ),
    "no Family": (
        lambda: ["train", "--likelihood", f"{own('class M(nn.Module): ...')}.M"],
        "the import path of your subclass of Family; got own_.*.M",
    ),
    "no Network": (
        lambda: ["train", "--network", f"{own('class M(nn.Module): ...')}.M"],
        "the import path of your subclass of Network; got own_.*.M",
    ),
    "a function": (lambda: ["train", "--prior", f"{own('def f(latent): ...')}.f"], r"of your class; got own_\d+.f"),
    "__init__, ValueError": (lambda: prior("raise ValueError('no good')"), r"own_\d+.py, line 9: no good"),
    "__init__, TypeError": (lambda: prior("latent + 'x'"), r"own_\d+.py, line 9: TypeError: unsupported operand"),
    "__init__, signature": (
        lambda: prior(arguments="self"),
        r"a prior that accepts.*prior\(2\); got: P.__init__\(\) takes 1 positional argument but 2",
    ),
    "forward, no distribution": (lambda: prior(forward="return torch.zeros(2)"), "returns a distribution; P"),
    "forward, event": (
        lambda: prior(forward="return dist.Normal(torch.zeros(2), 1.0)"),
        r"prior over event shape \(2,\); got \(\). Add .to_event\(1\)",
    ),
    "forward, error": (
        lambda: prior(forward="return self.distribution"),
        "line 11: AttributeError: 'P' object has no .*'distribution'",
    ),
    "forward, TypeError": (lambda: prior(forward="return 1 + ''"), "line 11: TypeError: unsupported operand"),
    "forward, parameters": (
        lambda: prior(forward="return dist.Normal(torch.zeros(2), -1.0)"),
        "line 11: Expected parameter scale .* GreaterThan",
    ),
    "argument": (lambda: [*prior(), "--prior.scale", "2"], "Expected an argument of P; got --prior.scale"),
    "argument's type": (
        lambda: [*prior(arguments="self, latent, scale: float = 1.0"), "--prior.scale", "x"],
        "Expected --prior.scale to be float; got x",
    ),
    "distribution, no distribution": (
        lambda: distribution("return a"),
        r"F.distribution\(\) to return a distribution of pyro.distributions; got torch.Tensor.$",
    ),
    "distribution of a guide, no distribution": (
        lambda: distribution("return a", room="guide"),
        r"F.distribution\(\) to return a distribution of pyro.distributions; got torch.Tensor.$",
    ),
    "distribution, event": (
        lambda: distribution("return dist.Normal(a[..., :2], 1.0)"),
        r"F.distribution\(\) to return a distribution over \(1, 8, 8\); got one over \(1, 8, 2\)",
    ),
    "distribution of a guide, event": (
        lambda: distribution("return dist.Normal(a.sum(-1), 1.0)", room="guide"),
        r"F.distribution\(\) to return a distribution over \(2,\); got one over \(256,\)",
    ),
    "distribution, error": (
        lambda: distribution("return dist.Normal(a, b)"),
        r"own_\d+.py, line 9: NameError: name 'b' is not",
    ),
    "distribution, how many": (
        lambda: distribution("return dist.Normal(a, 1.0)", "params = 2"),
        r"F.distribution\(\) to take params = 2 .*too many",
    ),
    "no params": (
        lambda: distribution("return dist.Normal(a, 1.0)", "pass"),
        "F.params.*params = 1",
    ),
    "no distribution": (
        lambda: ["train", "--guide", f"{own('class F(Family): ...')}.F"],
        r"a guide that accepts.*guide\(20\); got: Can't instantiate abstract class F",
    ),
    "layers, elements": (
        lambda: network("nn.Flatten()"),
        r"layers of N to return 64 elements.* \(1, 1, 8, 8\); got 2",
    ),
    "layers, error": (lambda: network("nn.Linear(2)"), r"own_\d+.py, line 8: TypeError: .*out_features"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_a_part_of_ones_own_is_one_sentence(arguments, message, capsys):
    assert main(arguments()) == 2
    shown = capsys.readouterr().err.strip()
    sentence = shown.splitlines()[-1]
    assert sentence.startswith("pyro-vae train: ")
    assert "Traceback" not in shown
    assert "Trace Shapes" not in shown
    assert re.search(message, sentence), shown


def test_an_error_that_is_not_the_users_is_no_sentence(monkeypatch):
    """A bug of ours keeps its traceback."""
    from pyro_vae import report

    def broken(*arguments):
        raise TypeError("a bug")

    monkeypatch.setattr(report, "table", broken)
    with pytest.raises(TypeError, match="a bug"):
        main(["train", *SMALL, "--run_dir", "r"])
