"""Runs side by side, against runs whose every number is known: z has no part in x, and the guide is the prior."""

import math
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from pyro_vae import VAE, checkpoint, commands, compare, data, evaluate, likelihoods, objectives

PARTS = ("latent", "prior", "likelihood", "guide", "network")


def gaussian(scale):
    return partial(likelihoods.Gaussian, scale=scale)


def make(folder, likelihood=likelihoods.Gaussian, latent=2, trained=False, history=None, **options):
    """Write a run: of zeros, so that p(x) is p(x | z) for every z; or as it is before training."""
    data_options = {key: options.pop(key) for key in ("binarize", "dequantize", "valid", "root") if key in options}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE.build((1, 8, 8), latent, likelihood=likelihood)
    if not trained:
        for network in (vae.encoder.network, vae.decoder.network):
            for parameter in network.parameters():
                parameter.data.zero_()
    described = {name: checkpoint.to_spec(vae.parts[name]) for name in PARTS}
    config = data.load("digits", **data_options).config | described | options
    with checkpoint.lock_new(folder):
        checkpoint.write_header(folder, config, {})
    checkpoint.save_weights(folder, vae)
    if history:
        checkpoint.save_metrics(folder, history)
    return folder


def rows_of(*runs, **options):
    return compare.compare(runs, **({"num_particles": 3, "images": 50, "progress": False} | options))


@pytest.fixture
def two(tmp_path):
    return [make(tmp_path / name, gaussian(scale)) for name, scale in (("wide", 1.0), ("right", 0.5))]


class TestNumbers:
    def test_are_exact(self, two):
        x = data.load("digits").test[:50]
        exact = {name: Normal(0.0, s).log_prob(x).sum((1, 2, 3)) for name, s in (("wide", 1.0), ("right", 0.5))}
        for row in rows_of(*two):
            for value in (row.values.elbo, row.values.reconstruction, -row.values.nll):
                torch.testing.assert_close(value, exact[row.name], rtol=1e-5, atol=1e-3)
            assert (row.values.kl == 0).all()
            assert (row.active, row.latent) == (0, 2)
            assert row.nll[0] == pytest.approx(-exact[row.name].mean().item(), abs=1e-3)

    def test_are_ranked_with_the_difference_paired(self, two):
        best, other = rows_of(*two)
        assert (best.name, other.name) == ("right", "wide")
        assert best.difference == (0, 0)
        x = data.load("digits").test[:50]
        paired = (Normal(0.0, 0.5).log_prob(x) - Normal(0.0, 1.0).log_prob(x)).sum((1, 2, 3))
        assert other.difference[0] == pytest.approx(paired.mean().item(), rel=1e-4)
        assert other.difference[1] == pytest.approx(paired.std().item() / math.sqrt(50), rel=1e-3)
        assert other.difference[1] != pytest.approx(math.hypot(best.nll[1], other.nll[1]), rel=0.1)

    def test_do_not_depend_on_the_order_or_the_company(self, two):
        both, turned, alone = rows_of(*two), rows_of(*two[::-1]), rows_of(two[1])
        assert [row.difference for row in both] == [row.difference for row in turned]
        assert (both[0].values.nll == alone[0].values.nll).all()

    def test_are_of_the_same_images_where_noise_is_drawn_afresh(self, tmp_path):
        runs = [make(tmp_path / name, likelihoods.Bernoulli, binarize="dynamic", trained=True) for name in "ab"]
        assert [row.difference for row in rows_of(*runs, split="train")] == [(0, 0), (0, 0)]

    def test_one_that_is_not_a_number_comes_last(self, two, tmp_path):
        broken = make(tmp_path / "broken", gaussian(0.5))
        vae, _ = checkpoint.load(broken)
        vae.decoder.network.bias.data.fill_(1e30)
        checkpoint.save_weights(broken, vae)
        assert [row.name for row in rows_of(broken, *two)] == ["right", "wide", "broken"]

    def test_leave_torchs_generator_alone(self, two):
        before = torch.get_rng_state()
        rows_of(*two)
        assert (torch.get_rng_state() == before).all()


COINS = likelihoods.Bernoulli
GROUPS = {
    "density and mass": (
        {"likelihood": COINS, "binarize": "static"},
        {"binarize": "static"},
        "log p(x) is of a density here and of a mass there.",
    ),
    "binarised in two ways": (
        {"likelihood": COINS, "binarize": "static"},
        {"likelihood": COINS, "binarize": "dynamic"},
        "binarize is dynamic here and static there.",
    ),
    "dequantised or not": ({}, {"dequantize": True}, "dequantize is true here and false there."),
    "held out": ({}, {"valid": 100}, "valid is 100 here and none there."),
    "all of it": (
        {},
        {"likelihood": COINS, "binarize": "threshold"},
        "binarize is threshold here and none there; log p(x) is of a mass here and of a density there.",
    ),
}


@pytest.mark.parametrize(("first", "second", "reason"), GROUPS.values(), ids=GROUPS)
def test_what_may_not_be_ranked_is_not_and_the_table_says_why(first, second, reason, tmp_path):
    names = ["a", "b", "c", "d"]
    runs = [make(tmp_path / name, **options) for name, options in zip(names, (first, second) * 2, strict=True)]
    rows = rows_of(*runs)
    assert [row.group for row in rows] == [0, 0, 1, 1]
    assert {row.name for row in rows[:2]} == {"a", "c"}
    shown = " ".join(compare.table(rows).split())
    assert f"Not ranked against the first group: {reason}" in shown
    assert shown.count("from the best active") == 2
    titles = [page.get_suptitle() for page in compare.figure(rows).subfigs]
    assert len({*titles}) == 2
    assert all(title in shown for title in titles)


def test_another_data_set_is_another_group(tmp_path, two):
    path = tmp_path / "x.npy"
    np.save(path, torch.rand(40, 1, 8, 8).numpy())
    run = make(tmp_path / "mine", gaussian(1.0))
    config = (run / "config.yaml").read_text().replace("data: digits", f"data: {path}")
    (run / "config.yaml").write_text(config)
    rows = rows_of(*two, run)
    assert [row.group for row in rows] == [0, 0, 1]
    assert len(rows[2].values.nll) == 4  # a tenth of its images
    assert f"data is {path.resolve()} here and digits there" in " ".join(compare.table(rows).split())


def test_where_the_data_lie_makes_no_group(tmp_path):
    runs = [make(tmp_path / name, root=f"data/{name}") for name in "ab"]
    assert [row.group for row in rows_of(*runs)] == [0, 0]


class TestTable:
    def test_what_differs_is_a_column_and_the_rest_is_said_once(self, tmp_path):
        history = {"valid": [3.0, 2.0], "seconds": [1.5, 2.25]}
        iwae = checkpoint.to_spec(objectives.IWAE(num_particles=5))
        runs = [
            make(tmp_path / "a", gaussian(0.5), epochs=3, history=history),
            make(tmp_path / "b", gaussian(1.0), epochs=3, latent=3, objective=iwae),
        ]
        lines = compare.table(rows_of(*runs)).splitlines()
        first = " ".join(lines[: lines.index("")])
        assert first.startswith("The same for all: prior StandardNormal, guide DiagonalNormal, network Auto, epochs 3,")
        assert not {"latent", "likelihood", "objective"} & set(first.replace(",", "").split())
        head, a, b = lines[lines.index("") + 2 : lines.index("") + 5]
        assert head.split()[:4] == ["run", "latent", "likelihood", "objective"]
        assert a.split()[:4] == ["a", "2", "Gaussian(scale=0.5)", "ELBO"]
        assert b.split()[:4] == ["b", "3", "Gaussian(scale=1)", "IWAE(num_particles=5)"]
        assert a.split()[-2:] == ["54,468", "3.8"]
        assert b.split()[-1] == "-"
        assert "digits, not binarised, 50 test images; log p(x) is of a density" in lines
        assert "3 draws from the guide" in " ".join(lines)

    def test_a_class_that_is_not_imported_is_named_with_all_its_arguments(self, tmp_path):
        """Importing it would run its code; an objective is not needed to evaluate."""
        mine = {"class_path": "not_there.Mine", "init_args": {"k": 1, "beta": {"class_path": "not_there.Rise"}}}
        runs = [make(tmp_path / "a"), make(tmp_path / "b", objective=mine, clip_norm=0.5)]
        shown = compare.table(rows_of(*runs))
        assert "Mine(k=1, beta=Rise)" in shown
        assert "none" in next(line for line in shown.splitlines() if line.startswith("a "))

    def test_its_numbers_are_the_rows(self, two):
        rows = rows_of(*two)
        lines = compare.table(rows).splitlines()
        for row, line in zip(rows, lines[lines.index("") + 3 :], strict=False):
            cells = [f"{value.mean().item():.2f}" for value in row.values[:3]] + ["{:.2f} ± {:.2f}".format(*row.nll)]
            assert all(cell in line for cell in cells)
            assert ("best" if row is rows[0] else "{:+.2f} ± {:.2f}".format(*row.difference)) in line

    def test_a_collapsed_one_is_said_to_be(self, two, tmp_path):
        alive = make(tmp_path / "alive", gaussian(1.0), trained=True)
        vae, _ = checkpoint.load(alive)
        for parameter in vae.encoder.network.parameters():
            parameter.data.mul_(3)
        checkpoint.save_weights(alive, vae)
        lines = compare.table(rows_of(two[0], alive)).splitlines()
        assert "collapsed, 0 of 2" in next(line for line in lines if line.startswith("wide"))
        assert "  2 of 2" in next(line for line in lines if line.startswith("alive"))

    def test_runs_of_one_name_are_told_apart(self, tmp_path):
        runs = [make(tmp_path / parent / "run") for parent in ("a", "b")]
        assert [row.name for row in rows_of(*runs)] == [str(run) for run in runs]

    def test_of_one_run_there_is_nothing_to_tell_apart(self, two):
        lines = compare.table(rows_of(two[0])).splitlines()
        assert lines[0].startswith("wide: latent 2, prior StandardNormal, likelihood Gaussian(scale=1), ")


def test_the_figure_holds_the_rows(two, tmp_path):
    coins = make(tmp_path / "coins", COINS, binarize="static", history={"valid": [3.0, 2.0], "seconds": [1.5, 2.0]})
    rows = rows_of(coins, *two)
    drawn = compare.figure(rows)
    assert len(drawn.subfigs) == 2
    (left, middle, right), (other, *_) = (part.axes for part in drawn.subfigs)
    assert drawn.subfigs[0].get_suptitle() == "digits, binarised statically, 50 test images; log p(x) is of a mass"
    assert [label.get_text() for label in other.get_yticklabels()] == ["right", "wide"]
    assert left.lines[0].get_xdata().tolist() == [pytest.approx(rows[0].nll[0])]
    assert middle.lines[0].get_ydata().tolist() == [pytest.approx(-rows[0].values.reconstruction.mean().item())]
    assert right.lines[0].get_xydata().tolist() == [[1.5, 3.0], [3.5, 2.0]]


def test_the_table_says_where_it_cannot_tell(two):
    """Differences of 50 paired images: 2.0 errors at least, less, and within 0.1 nats; and of one image."""
    best, other = rows_of(*two)
    shown = {}
    for name, difference in {"worse": (0.3, 0.14), "unsure": (0.3, 0.2), "level": (0.02, 0.03)}.items():
        lines = compare.table([best, replace(other, name=name, difference=difference)]).splitlines()
        (shown[name],) = (line for line in lines if line.startswith(name))
    assert "+0.30 ± 0.14  " in shown["worse"]
    assert "+0.30 ± 0.20, cannot tell  " in shown["unsure"]
    assert "+0.02 ± 0.03, level  " in shown["level"]
    best, other = rows_of(*two, images=2)
    one = evaluate.Values(*(value[:1] for value in other.values))
    alone = replace(other, values=one, difference=(0.5, math.nan), active=None)
    (line,) = (line for line in compare.table([best, alone]).splitlines() if line.startswith("wide"))
    assert line.count("cannot tell") == 2


def test_of_many_runs_the_figure_holds_the_best_and_the_worst(two):
    row = rows_of(two[0])[0]
    many = [replace(row, name=f"run {i}", group=i // 1000) for i in range(1700)]
    many += [replace(row, group=2 + i) for i in range(7)]
    drawn = compare.figure(many)
    assert max(drawn.get_size_inches()) < 50
    names = [label.get_text() for label in drawn.subfigs[1].axes[0].get_yticklabels()]
    assert names == [f"run {i}" for i in (*range(1000, 1020), *range(1690, 1700))]
    assert drawn.subfigs[1].get_suptitle().endswith("; the best 20 and the worst 10 of 700 runs")
    assert len(drawn.subfigs) == 6
    assert drawn.subfigs[5].get_suptitle().endswith("; 3 more groups are not drawn")


def test_the_table_is_printed_before_the_figure_is_drawn(two, tmp_path, monkeypatch, capsys):
    rows = rows_of(*two)
    monkeypatch.setattr(compare, "compare", lambda *_, **__: rows)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="folder.png' is none"):  # before any work
        commands._compare(two, str(tmp_path / "folder.png"))
    monkeypatch.setattr("os.replace", Mock(side_effect=OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        commands._compare(two, str(tmp_path / "there.png"))
    assert compare.table(rows) in capsys.readouterr().out


def spoil(run, name, text):
    (run / name).write_text(text)
    return [run]


BAD = {
    "none": (lambda run: [], "at least 1 run, .*; got 0 runs"),
    "not there": (lambda run: [run, "nowhere"], "there is nothing at 'nowhere'"),
    "no weights": (lambda run: [(run / "model.safetensors").unlink() or run], "with model.safetensors; '.*wide' has"),
    "not YAML": (lambda run: spoil(run, "config.yaml", "a: b: c"), "could not read '.*wide/config.yaml'"),
    "another's weights": (
        lambda run: spoil(run, "config.yaml", (run / "config.yaml").read_text().replace("latent: 2", "latent: 3")),
        "Expected weights that fit the architecture .* The run is '.*wide'",
    ),
    "not trusted": (
        lambda run: spoil(
            run, "config.yaml", (run / "config.yaml").read_text().replace("pyro_vae.priors", "os.priors")
        ),
        "Expected parts of pyro_vae; the run names 'os.priors.StandardNormal'.* The run is '.*wide'",
    ),
    "metrics": (
        lambda run: spoil(run, "metrics.csv", "a,b\n1,x\n"),
        "table of numbers; could not read '.*metrics.csv'",
    ),
    "a tensor": (
        lambda run: spoil(
            run, "config.yaml", (run / "config.yaml").read_text().replace("data: digits", "data: tensor")
        ),
        "Expected a run on a named data set; '.*wide' was trained on a tensor",
    ),
}


@pytest.mark.parametrize(("runs", "message"), BAD.values(), ids=BAD)
def test_a_run_that_cannot_be_compared_is_named(runs, message, two):
    with pytest.raises((ValueError, OSError), match=message):
        rows_of(*runs(two[0]))


def test_images_of_another_shape_get_a_sentence(two, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, torch.rand(40, 6).numpy())
    spoil(two[0], "config.yaml", (two[0] / "config.yaml").read_text().replace("data: digits", f"data: {path}"))
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\).* the run '.*wide'; .* \(6,\)"):
        rows_of(*two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 1}, "images = 1"),
        ({"num_particles": 0}, "num_particles = 0"),
        ({"device": "gpu"}, "device = 'gpu'"),
        ({"split": "tets"}, "split to be test, valid or train; got 'tets'"),
    ],
)
def test_bad_input_gets_a_sentence(options, message, two):
    with pytest.raises(ValueError, match=message):
        rows_of(*two, **options)
