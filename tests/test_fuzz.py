"""Whatever is typed, ``pyro-vae`` does it, or says in one line what is wrong, and leaves no half-made run.

70 lines and configurations; ``FUZZED=500 pytest tests/test_fuzz.py`` takes so many.
"""

import contextlib
import inspect
import io
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pyro_vae import VAE, checkpoint, commands, compare, data, fit, report
from pyro_vae.__main__ import COMMANDS, main
from pyro_vae.options import ROOMS
from pyro_vae.options.classes import class_names
from pyro_vae.sweep import sweep

pytestmark = pytest.mark.slow

FUZZED = int(os.environ.get("FUZZED", "70"))
QUICK = {"data": "x.npy", "latent": 2, "network.hidden": "[4]", "epochs": 1, "compile": "off"}
SET = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
OWN = """
from torch import nn
from pyro_vae.priors import StandardNormal

class Mine(StandardNormal):
    '''A prior of the user's own.'''

class Broken(nn.Module):
    def __init__(self, latent):
        raise RuntimeError("a bug of the user's")

def function(latent): ...
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with data, a run, what is no run, configurations and a module; copied for every example."""
    folder = tmp_path_factory.mktemp("fuzz") / "world"
    folder.mkdir()
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        cheap(patch)
        numbers = np.random.default_rng(0)
        np.save("x.npy", numbers.integers(0, 256, (12, 4, 4), dtype=np.uint8))
        np.save("floats.npy", numbers.normal(size=(12, 5)))
        np.save("counts.npy", numbers.integers(0, 300, (12, 5)))
        np.save("bad.npy", np.full((12, 5), np.inf))
        np.savez("x.npz", x=numbers.random((12, 4, 4)), labels=np.arange(12), mask=numbers.random((12, 4, 4)) > 0.2)
        Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:150])
        Path("text.txt").write_text("nothing\n")
        Path("fuzz_parts.py").write_text(OWN)
        Path("good.yaml").write_text(yaml.safe_dump({"latent": 3, "prior": "StandardNormal"}))
        for name, content in {"a": "a: b: c", "list": "- 1", "empty": "", "tag": "!!python/name:os.system x"}.items():
            Path(f"{name}.yaml").write_text(content)
        Path("binary.yaml").write_bytes(bytes(range(256)))
        assert main(["train", *(f"--{name}={value}" for name, value in QUICK.items()), "--run_dir", "run"]) == 0
        for name in ("torn", "bare", "odd"):
            shutil.copytree("run", name)
        for path in Path("torn/checkpoint").iterdir():
            path.write_bytes(path.read_bytes()[:99])
        for name in ("model.safetensors", "checkpoint/last.safetensors"):
            Path("bare", name).unlink()
        Path("odd/config.yaml").write_text("latent: []\nprior: {class_path: os.system}\ndata: 3\n")
        shutil.rmtree("run/figures")  # large images, to one who trains on '.'
        Path("nothing").mkdir()
        Path("pictures").mkdir()
        for i, picture in enumerate(np.load("x.npy")):
            Image.fromarray(picture).save(f"pictures/{i}.png")
    return folder


def cheap(patch):
    """Put cheap things in place of the closing table and the figures."""
    patch.setattr(report, "table", lambda *args, **options: "a table")
    patch.setattr(report, "figures", lambda *args, **options: {})


def check(world, words, files=()):
    """Run a command in a copy of the world; check what it leaves and what it says."""
    out, err = io.StringIO(), io.StringIO()
    home = world.parent / "outer" / "here"  # so that '..' is ours too
    shutil.copytree(world, home)
    try:
        with contextlib.chdir(home), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            cheap(patch)
            warnings.simplefilter("ignore")
            for name, content in files:
                Path(name).write_bytes(content)
            before = contents(home.parent)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code = main(words)
                except SystemExit as ended:
                    code = ended.code
            after = contents(home.parent)
            if code:
                said = [line for line in err.getvalue().split("\n") if line.strip() and "\r" not in line]  # no bars
                assert len(said) == 1, said
                assert said[0].startswith("pyro-vae"), said
                assert "Traceback" not in err.getvalue() + out.getvalue()
                assert len(said[0]) < 1000, said
                assert before.items() <= after.items(), "a file is another than it was"
                new = {path for path in after.keys() - before.keys() if "__pycache__" not in path.parts}
                for run in {path.parent for path in new if path.name == "config.yaml"}:
                    checkpoint.load_state(run)
                    assert checkpoint.config_of(run)["latent"]
                    new -= {path for path in new if path.is_relative_to(run)}
                new -= {home / "runs"}  # where runs that name no folder of their own are
                assert not new, f"left behind: {new}; {said}"
            else:
                assert "Traceback" not in err.getvalue()
    finally:
        shutil.rmtree(home.parent)
    return code


def contents(folder):
    """Bytes of every file, and None for every folder, by path."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# What the options are, asked of the functions they are of.
TRAIN = sorted(
    {*inspect.signature(data.load).parameters, *inspect.signature(VAE.build).parameters}
    | {*inspect.signature(fit).parameters, "resume", "config", "trust", "help", "print_config"}
)
# What a configuration may have; the rest of it is refused at once.
TAKEN = [name for name in TRAIN if name not in {"vae", "dataset", "event_shape", "progress", "help", "print_config"}]
OTHERS = {
    "evaluate": [*inspect.signature(commands._evaluate).parameters, "config", "help"],
    "generate": [*inspect.signature(commands._generate).parameters, "config", "help"],
    "sweep": [*inspect.signature(sweep).parameters, "config", "help"],
    "compare": [*inspect.signature(compare.compare).parameters, "output", "config", "help"],
}
PARTS = {option: class_names(option) for option in ROOMS}
ARGUMENTS = sorted(
    f"{option}.{name}"
    for option, (room, _) in ROOMS.items()
    for part in PARTS[option]
    for name in [*inspect.signature(getattr(room, part)).parameters, "help", "class_path", "init_args"]
)
RUNS = ["run", "torn", "bare", "odd", "nothing", "nowhere", ".", "x.npy", "run/config.yaml", "run/figures", ""]
FILES = [
    "x.npy",
    "floats.npy",
    "counts.npy",
    "bad.npy",
    "x.npz",
    "cut.npy",
    "text.txt",
    "pictures",
    "",
    "digits.npy",
    "minst",
]
CONFIGS = ["good.yaml", "a.yaml", "list.yaml", "empty.yaml", "tag.yaml", "binary.yaml", "run/config.yaml"]
CONFIGS += ["odd/config.yaml", "torn/config.yaml", "no.yaml", ".", ""]
# Right values of an option, or such as cost little where they are taken: no thousand epochs, no run in '/'.
RIGHT = {
    "data": FILES,
    "config": CONFIGS,
    "resume": RUNS,
    "run": RUNS,
    "runs": RUNS,
    "run_dir": ["new", "new/er", "run", "torn", "nothing", "x.npy", "x.npy/run", "ünï 💥", "a'b\"c", ".", ".."],
    "output": ["new.png", "new/new.npy", "new.gif", "run", ".png", "nothing/x.png", "x.npy/x.png", "run/config.png"],
    "device": ["cpu", "cuda", "meta", "gpu", "cpu:7", ""],
    "binarize": ["none", "static", "dynamic", "threshold"],
    "dequantize": ["true", "false"],
    "overwrite": ["true", "false"],
    "counts": ["true", "false"],
    "valid": ["1", "2", "12", "0", "null"],
    "lr_schedule": ["constant", "cosine", "one-cycle"],
    "compile": ["off", "graph"],
    "precision": ["auto", "float32", "bfloat16"],
    "on_nan": ["stop", "skip"],
    "logger": ["null", "tensorboards"],
    "weights": ["final", "best", "last"],
    "split": ["train", "valid", "test"],
    "trust": ["fuzz_parts", "os", "", "a b"],
    **PARTS,
}
SMALL = ["0", "1", "2", "3", "-1", "+2", "1.0", "1.5", "0x2", "1_0", "nan", "x", "", "[2]", "null"]
# Where a large number would be a long training and no mistake.
SIZES = {"epochs", "hidden", "channels", "num_particles", "components", "images", "num", "chosen", "temperatures"}
SIZES |= {"layers", "blocks", "levels", "inputs", "steps", "latent", "rank", "cycles", "warmup", "units"}
NUMBERS = ["0", "-1", "-0.0", "1e-300", "1e300", "1e400", "nan", ".nan", "inf", "-inf", "1.5", "9" * 30, "0x10", "1e3"]
WORDS = [
    *("", " ", "true", "null", "~", "[]", "[1", "[0]", "[-3, 2]", "[[2]]", "[a, b]", "{}", "{a: b}", "{a: b: c}", "'"),
    *('"', "''", "\n", "\t", "a\nb", "ünïcødé", "💥", "\u202e", "%", "%(prog)s", "{0}", "$HOME", "*", "&a [*a]", "*a"),
    *("!!python/name:os.system", "? a", "- a", "--", "-", "@x", "#", "\\", "a: b: c", "a=b", "=", "==SUPPRESS=="),
    *("os.system", "os.path", "torch.nn.Linear", "pyro_vae", "pyro_vae.priors", "pyro_vae.likelihoods.Gaussian"),
    *(
        "pyro_vae.guides.DiagonalNormal",
        "pyro_vae.priors.StandardNormal",
        "pyro_vae.networks.Network",
        "no.such.Part",
        ".a",
    ),
    *("a.", "..", "a..b", "builtins.int", "fuzz_parts.Mine", "fuzz_parts.Broken", "fuzz_parts.function"),
    *("fuzz_parts.Nothing", "fuzz_parts", "{class_path: StandardNormal}", "{class_path: 3}", "{class_path: }"),
    *("{class_path: Gaussian, init_args: {scale: x}}", "{class_path: MLP, init_args: {hidden: [3]}}"),
    *("{class_path: MLP, init_args: 3}", "{class_path: [MLP]}", "{init_args: {hidden: [3]}}", "{class_path: no.such}"),
    *("{class_path: ELBO, init_args: {beta: {class_path: Linear, init_args: {warmup: 1}}}}", "{}}", "x" * 3000),
    *(name for names in PARTS.values() for name in names),
]
OUTWARD = {"run_dir", "output", "root"}  # where a word may be a folder to write in


def values(option):
    """Words for an option's value, the right ones more often."""
    name = option.rpartition(".")[2]
    right = [st.sampled_from(RIGHT[option if option in PARTS else name])] if name in RIGHT or option in PARTS else []
    if name in OUTWARD or name == "compile":
        return st.one_of(*right or [st.just("data")])
    if name in SIZES:
        return st.one_of(st.sampled_from(SMALL), st.sampled_from(["1", "2", "[3]"]), st.sampled_from(WORDS))
    wrong = st.sampled_from([*NUMBERS, *SMALL]), st.sampled_from(WORDS)
    return st.one_of(*right, *right, *right, *wrong, st.text(max_size=6).filter(lambda text: "\0" not in text))


def misspelt(name):
    """An option's name, of which a letter may be lost, doubled, or another."""
    return st.one_of(
        *[st.just(name)] * 12,
        st.sampled_from([name[:-1], name + "s", name.replace("_", "-"), name.upper(), f"{name}.x", f".{name}", ""]),
    )


@st.composite
def option(draw, names):
    """An option with a value, or without one."""
    name = draw(st.sampled_from(names))
    shown, value = draw(misspelt(name)), draw(values(name))
    form = draw(st.sampled_from(["two", "two", "two", "equals", "equals", "alone", "bare"]))
    dashes = draw(st.sampled_from(["--"] * 15 + ["-", "---", "—"]))
    word = f"{dashes}{shown}"
    return {"two": [word, value], "equals": [f"{word}={value}"], "alone": [word], "bare": [value]}[form]


def quick(command):
    """What makes an example quick, where it is not said otherwise after it."""
    if command == "train":
        return [f"--{name}={value}" for name, value in QUICK.items()]
    small = ["--num_particles", "2", "--images", "2"]
    return {"evaluate": [*small, "--chosen", "0"], "compare": small}.get(command, [])


@st.composite
def lines(draw):
    """A command line."""
    command = draw(st.sampled_from(["train"] * 6 + [*COMMANDS] + ["trian", "", "--help", "--config", "-h", "run"]))
    count = draw(st.integers(0, 4))
    if command == "train" and draw(st.integers(0, 5)) == 0:
        words = ["--resume", draw(st.sampled_from(RUNS))]
        names = ["epochs", "on_nan", "device", "logger", "trust", "resume", "latent"]
    elif command in OTHERS:
        words = [draw(st.sampled_from(["run", "run", *RUNS]))] * draw(st.sampled_from([0, 1, 1, 1, 2])) + quick(command)
        names = OTHERS[command]
    else:
        words = quick(command) + ["--run_dir", "new"] * draw(st.sampled_from([0, 1, 1, 1]))
        names = draw(st.sampled_from([TRAIN, TRAIN, ARGUMENTS, [*PARTS]]))
    for _ in range(count):
        words += draw(option(names))
    if draw(st.integers(0, 15)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from([*COMMANDS, *WORDS])))
    return [command, *words]


def plain(leaves):
    """Nested YAML of them."""
    keys = st.sampled_from(["class_path", "init_args", "a", "", 1, None, True, "scale", "hidden", "beta", "warmup"])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
        max_leaves=6,
    )


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from([*NUMBERS, *WORDS]),
    st.dates(),
    st.binary(max_size=3),
)


@st.composite
def part(draw, option):
    """A part by its class and arguments, right or nearly so."""
    kind = draw(st.sampled_from([*PARTS[option], *PARTS[option], *WORDS]))
    room = ROOMS[option][0]
    names = [*inspect.signature(getattr(room, kind)).parameters] if kind in PARTS[option] else ["scale", "hidden"]
    leaf = st.one_of(st.sampled_from([1, 2, 0.5, [3], "x", None, 0, -1]), plain(LEAVES))
    arguments = draw(st.dictionaries(st.sampled_from([*names, "nothing"]), leaf, max_size=2))
    if option == "objective" and draw(st.booleans()):
        inside = draw(st.sampled_from(["beta", "penalty"]))
        arguments[inside] = draw(part(f"objective.{inside}"))
    return {"class_path": kind, **({"init_args": arguments} if arguments or draw(st.booleans()) else {})}


@st.composite
def files(draw):
    """A configuration as bytes: options and garbage, and now and then no YAML at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(
            st.one_of(st.binary(max_size=40), st.sampled_from(WORDS).map(str.encode), st.text().map(str.encode))
        )
    small = st.sampled_from([0, 1, 2, -1, 1.5, "2", None, [2], "x", True])
    config = {"data": "x.npy", "epochs": 1, "compile": "off", "network": {"class_path": "MLP"}}
    config["network"]["init_args"] = {"hidden": [4]}
    for name in draw(st.lists(st.sampled_from(TAKEN), max_size=3, unique=True)):
        if name in OUTWARD or name == "compile":
            continue
        if name in SIZES:
            config[name] = draw(small)
        elif name in PARTS:
            config[name] = draw(st.one_of(part(name), part(name), plain(LEAVES)))
        else:
            right = [st.sampled_from(RIGHT[name]).map(yaml.safe_load)] if name in RIGHT and name not in OUTWARD else []
            config[name] = draw(st.one_of(*right, plain(LEAVES)))
    if draw(st.integers(0, 5)) == 0:
        config[draw(st.sampled_from([1, None, "", "latnet", "prior.x", "train", "a b"]))] = draw(plain(LEAVES))
    return yaml.safe_dump(config, allow_unicode=True).encode(errors="replace")


@settings(SET, max_examples=FUZZED * 7 // 10)
@given(words=lines())
def test_any_command_line_is_done_or_answered_in_one_line(world, words):
    check(world, words)


@settings(SET, max_examples=FUZZED * 3 // 10)
@given(content=files())
def test_any_configuration_is_done_or_answered_in_one_line(world, content):
    check(world, ["train", "--config", "fuzzed.yaml", "--run_dir", "new"], [("fuzzed.yaml", content)])
