"""Runs on tables: the schema is in the run, rows come in the units of the table, and bad input is one sentence."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import close_briefly
from matplotlib.figure import Figure
from test_tables import COUNT, ad, annotated, counts, frame, pd, scipy_sparse, write

from pyro_vae import compare, data, load, plots, report
from pyro_vae.__main__ import main
from pyro_vae.checkpoint import data_of, load_metrics, load_schema
from pyro_vae.data import Column, Schema
from pyro_vae.data.splits import split_rows

QUICK = ["--epochs", "1", "--batch_size", "16", "--compile", "off"]
SMALL = ["--latent", "1", "--network.hidden", "[8]"]
X = ["height", "age", "dose"]
TRAIN = ["train", "--data", "x.csv", "--x", f"[{','.join(X)}]", *QUICK, *SMALL, "--standardize", "true"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs on one table, with and without units, with labels and covariates; and a run on sparse counts."""
    folder = tmp_path_factory.mktemp("runs")
    program = ["--program", "ConditionalVAE", "--program.latent", "1", "--covariates", "[city,mass]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        close_briefly(patch, 5, 20)
        patch.setattr(Figure, "savefig", lambda figure, to, **_: None)
        write(frame(), folder / "x.csv")
        annotated(folder / "c.h5ad", scipy_sparse.csr_matrix(counts()))
        for words in (
            [*TRAIN, "--run_dir", "units", "--labels", "city"],
            [*TRAIN[:-2], "--run_dir", "raw"],
            [*TRAIN, "--run_dir", "colours", "--labels", "size", "--seed", "1"],
            [*TRAIN, "--run_dir", "schema", "--schema", "units/schema.json"],
            [*TRAIN[:5], *QUICK, *program, "--program.given", "4", "--standardize", "true", "--run_dir", "vector"],
            [*TRAIN[:5], *QUICK, *program[:-1], "city", "--program.given", "3", "--run_dir", "class"],
            ["train", "--data", "c.h5ad", *QUICK, *SMALL, "--likelihood", "Poisson", "--run_dir", "cells"],
        ):
            assert main(words) == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch, unrendered):
    monkeypatch.chdir(folder)
    close_briefly(monkeypatch, 5, 20)


def test_the_schema_is_in_the_run_and_the_configuration_is_that_of_the_command(here):
    config = yaml.safe_load(Path("units/config.yaml").read_text())
    assert (config["x"], config["labels"], config["standardize"], "schema" in config) == (X, "city", True, False)
    for run in ("units", "schema", "vector", "cells"):
        dataset, config = data_of(run)[0], yaml.safe_load(Path(run, "config.yaml").read_text())
        assert dataset.config == {key: config[key] for key in dataset.config}
        assert dataset.schema == load_schema(run)
    assert load_schema("units") == data.load("x.csv", x=X, labels="city", standardize=True).schema
    assert load_schema("cells").names[0] == "gene 0"


def test_a_resumed_run_is_the_uninterrupted_run(here):
    shutil.copytree("units", "resumed")
    assert main(["train", "--resume", "resumed", "--epochs", "3"]) == 0
    assert main([*TRAIN, "--labels", "city", "--epochs", "3", "--run_dir", "whole"]) == 0
    assert load_metrics("resumed")["train"] == load_metrics("whole")["train"]
    for one, other in zip(*(load(run)[0].state_dict().values() for run in ("resumed", "whole")), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npy"])
def test_generated_rows_are_in_the_units_of_the_table(suffix, here):
    assert main(["generate", "units", "--num", "5", "--output", f"rows.{suffix}"]) == 0
    rows = {"csv": pd.read_csv, "parquet": pd.read_parquet, "npy": np.load}[suffix](f"rows.{suffix}")
    assert suffix == "npy" or [*rows.columns] == X
    program, schema = load("units")[0], load_schema("units")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mean, scale = schema.units
        np.testing.assert_allclose(np.asarray(rows), program.generate(5).double() * scale + mean, rtol=1e-6)


def test_generated_rows_have_the_columns_of_y(here):
    test = frame().iloc[split_rows(COUNT, None)[2]]
    assert main(["generate", "vector", "--num", "5"]) == 0
    rows = pd.read_csv("vector/figures/generated.csv")
    assert [*rows.columns] == [*X, "city", "mass"]
    assert rows["city"].tolist() == [*test["city"], test["city"].iloc[0]]
    assert rows["mass"].tolist() == pytest.approx([*test["mass"], test["mass"].iloc[0]], rel=1e-5)
    for given, expected in {None: ["Bern", "Oslo", "Turin", "Bern"], "Oslo": ["Oslo"] * 4}.items():
        words = ["generate", "class", "--num", "4", "--output", "rows.parquet"]
        assert main(words + (["--given", given] if given else [])) == 0
        assert pd.read_parquet("rows.parquet")["city"].tolist() == expected


def test_a_level_that_does_not_exist_is_refused(here, capsys):
    assert main(["generate", "class", "--given", "Rome"]) == 2
    assert "--given to be one of Bern, Oslo, Turin; got Rome" in capsys.readouterr().err


def test_the_table_says_the_change_to_the_units_of_the_table(here):
    program, (dataset, _) = load("units")[0], data_of("units")
    mask = dataset.test.mask
    expected = (load_schema("units").units[1].log() * (1 if mask is None else mask)).expand(4, -1).sum(1).mean()
    table = report.table(program, dataset, 5, progress=False)
    assert f"in the units of the table, -log p(x) of test rows is {expected:.2f} nats larger." in table
    assert "standardised" not in report.table(load("raw")[0], data_of("raw")[0], 5, progress=False)
    assert "in the units" not in report.table(load("cells")[0], data_of("cells")[0], 5, progress=False)


def test_runs_of_other_units_are_not_ranked_against_each_other(here):
    rows = {row.name: row for row in compare.compare(["units", "raw", "colours", "schema"], 5, 5, progress=False)}
    assert rows["units"].group == rows["colours"].group == rows["schema"].group != rows["raw"].group
    assert rows["units"].basis["standardize"] != rows["raw"].basis["standardize"]
    text = compare.table([*rows.values()])
    assert "standardize is true, by " in text or "standardize is false here and true, by " in text
    one, other = compare.compare(["vector", "class"], 5, 5, progress=False)
    assert one.group != other.group
    assert {str(row.basis["covariates"]) for row in (one, other)} == {"['city', 'mass']", "['city']"}


def test_evaluate_reads_the_units_of_the_run(here, capsys):
    assert main(["evaluate", "units", "--num_particles", "25", "--chosen", "0"]) == 0
    schema = Schema.read("units/schema.json")
    shutil.copytree("units", "spoilt")
    fields = json.loads(schema.to_json())
    fields["x"][0]["mean"] += 1
    Path("spoilt/schema.json").write_text(json.dumps(fields))
    assert main(["evaluate", "spoilt"]) == 2
    assert "Expected the data that 'spoilt' was trained on" in capsys.readouterr().err
    Path("spoilt/schema.json").write_text("{}")
    for command in ("evaluate", "generate"):
        assert main([command, "spoilt"]) == 2
        assert "Expected the schema.json of a run; could not read 'spoilt" in capsys.readouterr().err


def test_figures_have_the_units_and_the_levels_of_the_table(here):
    figures = report.figures(load("units")[0], data_of("units")[0])
    legend = figures["latent_space"].axes[0].get_legend()
    assert legend.get_title().get_text() == "city"
    assert [text.get_text() for text in legend.get_texts()] == ["Bern", "Oslo", "Turin"]
    (heights,) = (axes for axes in figures["marginals"].axes if axes.get_title() == "height")
    low, high = heights.get_xlim()
    assert 120 < low < 170 < high < 230


def test_a_legend_without_names_has_the_labels():
    figure = plots.latent_space(torch.rand(4, 2), torch.tensor([3, 5, 3, 5]))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["3", "5"]


def cells(**parts):
    rows = pd.DataFrame(index=[str(i) for i in range(9)])
    ad.AnnData(**{"X": np.ones((9, 2), np.float32), "obs": rows} | parts).write_h5ad("c.h5ad")
    return {"data": "c.h5ad"}


def text(content, name="t.csv"):
    Path(name).write_text(content)
    return {"data": name}


def numbers(**columns):
    rows = pd.DataFrame({"a": np.arange(9.0), "b": np.arange(9.0) ** 2, "kind": [*"uvw"] * 3} | columns)
    return {"data": write(rows, Path("t.parquet")), "x": ["a"]}


def twice():
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table([pyarrow.array([1.0, 2.0, 3.0])] * 2, names=["a", "a"]), "t.parquet")
    return {"data": "t.parquet"}


HOLES = [None, "u", "v"] * 3
BAD = {
    "no such column of x": (lambda: numbers() | {"x": ["aa"]}, r"columns of 't.parquet' for x, .*; got 'aa'.*: a\."),
    "no such label": (lambda: numbers() | {"labels": "kid"}, "labels and covariates; got 'kid'. Near names: kind"),
    "no such variable": (lambda: cells() | {"x": "2"}, "columns of 'c.h5ad' for x; got '2'. Near names: 0, 1"),
    "no such column of obs": (lambda: cells() | {"labels": "kind"}, "'c.h5ad' for labels.*; got 'kind'. It has none"),
    "x is a label": (lambda: numbers() | {"labels": "a"}, "different columns for x, labels and covariates; got 'a' tw"),
    "text in x": (lambda: numbers() | {"x": ["kind"]}, "numbers in the columns of 't.parquet'; got 'u' in 'kind'"),
    "no x": (lambda: {"data": write(pd.DataFrame({"a": range(9)}), Path("t.csv")), "labels": "a"}, "got none beside a"),
    "a name of two columns": (
        lambda: text("a,b,a\n" + "1,2,3\n" * 9),
        "name for each column of 't.csv'; got 'a' twice",
    ),
    "of two in parquet": (twice, "name for each column of 't.parquet'; got 'a' twice"),
    "two rows": (lambda: text("a,b\n1,2\n3,4\n") | {"standardize": True}, "at least 3 rows, .*'t.csv'; got 2"),
    "no rows": (lambda: cells(X=np.ones((0, 2)), obs=pd.DataFrame(index=[])), "at least 3 rows, .*'c.h5ad'; got 0"),
    "no columns": (lambda: cells(X=np.ones((9, 0), np.float32)), "column of x in 'c.h5ad'; got none beside the index"),
    "labels that are missing": (
        lambda: numbers(l=HOLES) | {"labels": "l"},
        "value in each row of column 'l' .*; got 3 of 9",
    ),
    "a missing category": (lambda: numbers(l=HOLES) | {"covariates": ["l"]}, "each row of column 'l' .*; got 3 of 9"),
    "no X": (lambda: cells(X=None, shape=(9, 2)), "Expected X in 'c.h5ad'; got no layers either"),
    "no X beside a layer": (
        lambda: cells(X=None, layers={"raw": np.ones((9, 2))}),
        "Expected X in 'c.h5ad'; got the layers raw. Choose one of them as layer",
    ),
    "no such layer": (lambda: cells() | {"layer": "raw"}, "a layer 'raw' in 'c.h5ad'; got no layers either"),
    "a layer of another file": (lambda: numbers() | {"layer": "raw"}, ".h5ad file for layer; got 't.parquet'"),
    "a missing number that is sparse": (
        lambda: cells(X=scipy_sparse.csr_matrix(np.diag([1.0, np.nan, *[2.0] * 7]).astype(np.float32))),
        "finite numbers in 'c.h5ad'; got 1 of 81 that are NaN",
    ),
    "a constant column": (
        lambda: numbers(c=7.0, d=1) | {"x": ["a", "c", "d"], "standardize": True},
        "differ in the training rows of each column, to standardise it; got only 7 in 'c', and 1 more such columns",
    ),
    "an infinite column": (
        lambda: numbers(c=[np.inf] * 9) | {"x": "c", "standardize": True},
        "to standardise it; got infinite ones in 'c'",
    ),
    "standardised counts": (
        lambda: numbers() | {"counts": True, "standardize": True},
        "at most one of .*counts=True and s",
    ),
    "columns and labels": (
        lambda: numbers() | {"x": None, "columns": ["a"], "labels": "b"},
        "columns, or labels, .*both",
    ),
    "arguments of an .h5ad file": (lambda: cells() | {"columns": ["0"]}, "labels and covariates for 'c.h5ad'"),
    "another kind of data": (
        lambda: {"data": "digits", "standardize": True},
        r"a table \(.csv.* for standardize; got 'di",
    ),
    "a schema that is none": (
        lambda: numbers() | {"schema": text("[]", "s.json")["data"]},
        "schema.json of a run; could",
    ),
    "hidden labels and covariates": (
        lambda: numbers() | {"covariates": "kind", "labelled": 3},
        "labelled, .* got both",
    ),
    "no schema": (lambda: numbers() | {"schema": "s.json"}, "schema.json of a run; there is nothing at 's.json'"),
    "a schema without units": (
        lambda: numbers() | {"standardize": True, "schema": text(Schema((Column("a"),)).to_json(), "s.json")["data"]},
        "schema with a mean and a scale of each column, .*; got columns that are not standardised",
    ),
}


def spoil():
    """Sparse counts with the index of a column that does not exist."""
    cells(X=scipy_sparse.csr_matrix(np.eye(9, dtype=np.float32)))
    with h5py.File("c.h5ad", "r+") as file:
        file["X/indices"][3] = 10**6
    return {"data": "c.h5ad"}


BAD["an index out of the matrix"] = (spoil, "a table; could not read 'c.h5ad' .*indices")
BAD |= {
    f"not a {suffix}": (lambda suffix=suffix: text("\x00 word", f"t.{suffix}"), f"a table; could not read 't.{suffix}'")
    for suffix in ("parquet", "h5ad")
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_tables_get_a_sentence(make, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = make()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        data.load(**options)
    assert "\n" not in str(caught.value)


def test_the_command_says_it_too_and_makes_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(frame(), tmp_path / "x.csv")
    for words in (["--labels", "town"], ["--labels", "dose"], ["--covariates", "city"], ["--layer", "a"]):
        assert main(["train", "--data", "x.csv", "--x", "age", *words, *QUICK, *SMALL, "--run_dir", "run"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("pyro-vae train: Expected ")
    assert not Path("run").exists()


@pytest.mark.parametrize(("module", "suffix"), [("anndata.io", "h5ad"), ("pyarrow.parquet", "parquet")])
def test_without_a_library_the_sentence_says_what_to_install(module, suffix, tmp_path, monkeypatch):
    path = annotated(tmp_path / "c.h5ad") if suffix == "h5ad" else write(frame(), tmp_path / "x.parquet")
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=rf"got no {module}. Run pip install .pyro_vae\[tables\]"):
        data.load(path)
