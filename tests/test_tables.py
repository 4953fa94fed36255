"""Tables by the names of their columns: round trips, labels, covariates, units, sparse counts, and what is refused."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.distributions import Normal, constraints

from pyro_vae import VAE, data, fit, likelihoods, programs
from pyro_vae.data import Column, Schema
from pyro_vae.data.splits import split_rows

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
scipy_sparse = pytest.importorskip("scipy.sparse")
ad = pytest.importorskip("anndata")

COUNT = 40
QUICK = ["--epochs", "1", "--batch_size", "16", "--compile", "off", "--network.hidden", "[8]"]


def generator():
    return np.random.default_rng(3)


def frame():
    """A column of each kind: floats, whole numbers, missing numbers, text, booleans, categories."""
    numbers = generator()
    return pd.DataFrame(
        {
            "height": numbers.normal(170, 8, COUNT),
            "mass": numbers.normal(70, 9, COUNT).astype(np.float32),
            "age": numbers.normal(40, 9, COUNT),
            "visits": numbers.integers(0, 9, COUNT),
            "dose": pd.array([None if i % 7 == 3 else i % 5 for i in range(COUNT)], dtype="Int64"),
            "smokes": numbers.random(COUNT) > 0.5,
            "city": numbers.choice(["Turin", "Bern", "Oslo"], COUNT),
            "size": pd.Categorical(numbers.choice(["s", "l"], COUNT), categories=["s", "m", "l"]),
        }
    )


def write(table, path):
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def annotated(path, x=None, **layers):
    """An .h5ad file with the text, the categories and the numbers of a table as columns of its rows."""
    x = counts() if x is None else x
    obs = frame().set_index(np.array([f"cell {i}" for i in range(COUNT)]))
    names = pd.DataFrame(index=[f"gene {i}" for i in range(x.shape[1])])
    content = ad.AnnData(None if layers else x, obs=obs, var=names, layers=layers)
    content.write_h5ad(path)
    return str(path)


def counts():
    return generator().poisson(0.4, (COUNT, 6)).astype(np.float32)


def all_rows(dataset, read=lambda split: split[:]):
    """The rows of all splits in the order of the file."""
    order = torch.cat(split_rows(COUNT, None)).argsort()
    return torch.cat([read(split) for split in dataset.splits.values()])[order]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_names_numbers_and_missing_values_come_back(suffix, tmp_path):
    names, expected = ["height", "mass", "visits", "dose", "smokes"], frame()
    dataset = data.load(write(expected, tmp_path / f"x.{suffix}"), x=names, labels="city", covariates=["size", "age"])
    assert dataset.names == tuple(names)
    x = all_rows(dataset)
    assert torch.equal(x.isnan(), torch.tensor(expected[names].isna().to_numpy()))
    numbers = torch.tensor(expected[names].astype("float64").to_numpy()).float()
    assert torch.equal(x.nan_to_num(), numbers.nan_to_num())
    assert dataset.schema.labels == Column("city", ("Bern", "Oslo", "Turin"))
    labels = all_rows(dataset, lambda split: split.labels)
    assert [dataset.schema.labels.levels[code] for code in labels] == expected["city"].tolist()
    sizes = ("s", "m", "l") if suffix == "parquet" else ("l", "s")  # a text file has no empty level, and no order
    assert dataset.schema.covariates == (Column("size", sizes), Column("age"))
    back = dataset.schema.columns_from(all_rows(dataset, lambda split: split.columns["y"]))
    assert back["size"] == expected["size"].tolist()
    assert back["age"] == pytest.approx(expected["age"].tolist())


def test_without_names_x_is_the_other_columns_in_order(tmp_path):
    path = write(frame().drop(columns="size"), tmp_path / "x.csv")
    dataset = data.load(path, labels="smokes", covariates="city")
    assert dataset.names == ("height", "mass", "age", "visits", "dose")
    assert dataset.words.endswith("(height, mass, age, visits, dose); labels: smokes (2 levels); y: city (3 levels)")


LABELS = {
    "whole numbers": ([3, 7, 3, 5], [0, 2, 0, 1], ("3", "5", "7")),
    "whole floats": ([3.0, 7.0, 3.0, 5.0], [0, 2, 0, 1], ("3", "5", "7")),
    "booleans": ([True, False, True, True], [1, 0, 1, 1], ("False", "True")),
    "text": (["b", "a", "b", "b"], [1, 0, 1, 1], ("a", "b")),
    "categories": (pd.Categorical(["b", "a", "b", "b"], categories=["b", "c", "a"]), [0, 2, 0, 0], ("b", "c", "a")),
    "fractions": ([0.5, 1.5, 0.5, 2.0], [0.5, 1.5, 0.5, 2.0], ()),
}


@pytest.mark.parametrize(("values", "codes", "levels"), LABELS.values(), ids=LABELS)
def test_labels_are_codes_of_sorted_levels_or_of_the_order_of_the_categories(values, codes, levels, tmp_path):
    kind = pd.Series(values).repeat(10)
    path = write(pd.DataFrame({"x": range(COUNT), "kind": kind.reset_index(drop=True)}), tmp_path / "x.parquet")
    dataset = data.load(path, labels="kind")
    assert all_rows(dataset, lambda split: split.labels)[::10].tolist() == codes
    assert dataset.schema.labels.levels == levels


class TestCovariates:
    def test_one_category_is_a_label_and_several_columns_are_a_vector(self, tmp_path):
        path = write(frame(), tmp_path / "x.parquet")
        one = data.load(path, x="height", covariates="city").train
        assert one.columns["y"].dtype == torch.int64
        assert torch.equal(one.columns["y"], one.columns["city"])
        more = data.load(path, x="height", covariates=["mass", "size"]).train.columns
        assert more["y"].shape == (32, 4)
        assert torch.equal(more["y"][:, 0], more["mass"])
        assert torch.equal(more["y"][:, 1:].argmax(1), more["size"])

    def test_labels_beside_covariates_are_no_y(self, tmp_path):
        dataset = data.load(write(frame(), tmp_path / "x.csv"), x="height", labels="city", covariates="smokes")
        assert torch.equal(dataset.train.columns["y"], dataset.train.columns["smokes"])
        assert torch.equal(dataset.train.columns["labels"], dataset.train.labels)

    def test_a_program_takes_y_or_the_columns_by_name(self, tmp_path):
        class Own(programs.ConditionalVAE):
            """A program that takes a column by its name."""

            def model(self, x, mass):
                return super().model(x, mass)

            def guide(self, x, mass):
                return super().guide(x, mass)

        path = write(frame(), tmp_path / "x.csv")
        both, one = (data.load(path, x="height", covariates=names) for names in (["city", "mass"], "mass"))
        for program, dataset in ((programs.ConditionalVAE((1,), 1, given=4), both), (Own((1,), 1, given=1), one)):
            assert fit(program, dataset, epochs=1, compile="off", progress=False)["train"]
        with pytest.raises(ValueError, match="an argument y or city, for the covariates; Own.model takes x, mass"):
            fit(program, both)


class TestStandardise:
    NAMES = ["height", "visits", "dose"]

    def load(self, folder, **options):
        path = write(frame(), folder / "x.csv")
        return data.load(path, x=self.NAMES, covariates=["mass", "city"], standardize=True, **options)

    def test_by_the_training_rows_without_what_is_missing(self, tmp_path):
        dataset, train = self.load(tmp_path), split_rows(COUNT, None)[0]
        rows = frame().iloc[train][self.NAMES].astype(float)
        mean, scale = dataset.schema.units
        np.testing.assert_allclose(mean, rows.mean(), rtol=1e-12)
        np.testing.assert_allclose(scale, rows.std(ddof=0), rtol=1e-12)
        np.testing.assert_allclose(dataset.train[:], (rows - rows.mean()) / rows.std(ddof=0), rtol=1e-5, atol=1e-6)
        expected = torch.tensor(frame()[self.NAMES].astype(float).to_numpy())
        torch.testing.assert_close(dataset.in_units(all_rows(dataset)), expected, rtol=1e-6, atol=1e-5, equal_nan=True)
        mass = frame()["mass"].iloc[train].astype(float)
        assert (dataset.schema.covariates[0].mean, dataset.schema.covariates[0].scale) == pytest.approx(
            (mass.mean(), mass.std(ddof=0))
        )
        assert dataset.train.columns["mass"].mean() == pytest.approx(0, abs=1e-6)
        assert dataset.support is constraints.real

    def test_numbers_that_float32_does_not_tell_apart_are_fine(self, tmp_path):
        seconds = 1.7e9 + np.arange(COUNT) / 8
        path = write(pd.DataFrame({"seconds": seconds, "y": np.arange(COUNT) % 3}), tmp_path / "x.csv")
        with pytest.raises(ValueError, match="tells apart in column 'seconds'"):
            data.load(path)
        dataset = data.load(path, standardize=True)
        np.testing.assert_allclose(dataset.in_units(all_rows(dataset))[:, 0], seconds, rtol=0, atol=1e-6)

    def test_the_density_changes_by_the_sum_of_the_logs(self, tmp_path):
        """-log of a Normal density in the units of the table, from a Normal of the standardised rows."""
        dataset = self.load(tmp_path)
        z, (mean, scale) = dataset.test[:].double(), dataset.schema.units
        before = -Normal(0.0, 1.0).log_prob(z.nan_to_num()).masked_fill(z.isnan(), 0).sum(1)
        x = dataset.in_units(z).nan_to_num()
        after = -Normal(mean, scale).log_prob(x).masked_fill(z.isnan(), 0).sum(1)
        assert dataset.test.mask is not None
        assert (after - before).mean().item() == pytest.approx(dataset.schema.log_scale(dataset.test.mask))
        assert dataset.schema.log_scale() == pytest.approx(scale.log().sum().item())

    def test_another_file_has_the_units_and_the_levels_of_a_run(self, tmp_path):
        dataset = self.load(tmp_path)
        (tmp_path / "schema.json").write_text(dataset.schema.to_json())
        assert Schema.read(tmp_path / "schema.json") == dataset.schema
        some = frame()[frame()["city"] == "Oslo"].assign(height=180.0)
        path = write(some[some.columns[::-1]], tmp_path / "some.csv")
        options = {"covariates": ["mass", "city"], "standardize": True, "schema": str(tmp_path / "schema.json")}
        other = data.load(path, **options)
        assert other.schema == dataset.schema
        assert set(other.train.columns["city"].tolist()) == {1}
        mean, scale = dataset.schema.units
        assert other.train[:, ...][:, 0].tolist() == pytest.approx(
            [((180 - mean) / scale)[0].item()] * len(other.train)
        )
        for change, message in {
            "city": "Expected the levels Bern, Oslo, Turin in column 'city' of .*; got 'Rome', which is none of them",
            "mass": r"Expected numbers in the columns of .*; got 'Rome' in 'mass'",
        }.items():
            write(some.assign(**{change: "Rome"}), tmp_path / "other.csv")
            with pytest.raises(ValueError, match=message):
                data.load(str(tmp_path / "other.csv"), **options)


class TestAnnotated:
    def test_x_the_rows_and_the_names(self, tmp_path):
        dataset = data.load(annotated(tmp_path / "c.h5ad"), labels="size", covariates=["city", "dose"])
        assert dataset.names == tuple(f"gene {i}" for i in range(6))
        assert dataset.schema.labels.levels == ("s", "m", "l")
        assert torch.equal(all_rows(dataset), torch.from_numpy(counts()))
        assert all_rows(dataset, lambda split: split.columns["dose"]).isnan().sum() == frame()["dose"].isna().sum()
        chosen = data.load(annotated(tmp_path / "c.h5ad"), x=["gene 4", "gene 0"])
        assert torch.equal(all_rows(chosen), torch.from_numpy(counts()[:, [4, 0]]))

    def test_a_slice_has_the_codes_of_the_whole_table(self, tmp_path):
        """anndata drops the levels that a slice lacks, and counts the codes again."""
        whole = data.load(annotated(tmp_path / "whole.h5ad"), labels="size")
        (tmp_path / "schema.json").write_text(whole.schema.to_json())
        cells = ad.read_h5ad(tmp_path / "whole.h5ad")
        cells[cells.obs["size"] == "l"].copy().write_h5ad(tmp_path / "slice.h5ad")
        codes = [
            data.load(str(tmp_path / "slice.h5ad"), labels="size", **options).train.labels.unique().tolist()
            for options in ({}, {"schema": str(tmp_path / "schema.json")})
        ]
        assert codes == [[0], [2]]

    SPARSE = {
        "csr": lambda p: annotated(p / "c.h5ad", scipy_sparse.csr_matrix(counts())),
        "csc": lambda p: annotated(p / "c.h5ad", scipy_sparse.csc_matrix(counts())),
        "csr of whole numbers": lambda p: annotated(p / "c.h5ad", scipy_sparse.csr_matrix(counts().astype(np.int64))),
        "array": lambda p: annotated(p / "c.h5ad", scipy_sparse.csr_array(counts())),
        "layer": lambda p: annotated(p / "c.h5ad", spliced=scipy_sparse.csr_matrix(counts())),
    }

    @pytest.mark.parametrize("options", [{}, {"counts": True}, {"standardize": True}], ids=["plain", "counts", "units"])
    @pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
    def test_sparse_rows_are_the_dense_rows(self, make, options, tmp_path):
        (tmp_path / "dense").mkdir()
        dense = data.load(annotated(tmp_path / "dense" / "c.h5ad"), labels="city", **options)
        layer = {"layer": "spliced"} if make is self.SPARSE["layer"] else {}
        sparse = data.load(make(tmp_path), labels="city", **options, **layer)
        for split, other in zip(sparse.splits.values(), dense.splits.values(), strict=True):
            assert split.stored
            assert (split.on_disk, other.stored) == (False, False)
            for index in (slice(None), slice(2, 9), torch.tensor([3, 0, 3])):
                torch.testing.assert_close(split[index], other[index])
                assert split[index].layout == torch.strided
        assert sparse.support is dense.support
        torch.testing.assert_close(sparse.mean, dense.mean)
        torch.testing.assert_close(sparse.schema.units, dense.schema.units)
        if "standardize" not in options:
            assert sparse.digests == dense.digests

    def test_a_program_trains_on_sparse_rows_as_on_dense_rows(self, tmp_path):
        histories = []
        for name, x in {"dense": counts(), "sparse": scipy_sparse.csr_matrix(counts())}.items():
            dataset = data.load(annotated(tmp_path / f"{name}.h5ad", x), counts=True)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                vae = VAE.build(dataset.event_shape, latent=2, likelihood=likelihoods.NegativeBinomial)
            histories.append(fit(vae, dataset, epochs=2, batch_size=8, compile="off", progress=False))
            del histories[-1]["seconds"]
        assert histories[0] == histories[1]

    @pytest.mark.parametrize(("x", "support"), [(np.zeros, constraints.boolean), (np.ones, constraints.boolean)])
    def test_sparse_rows_of_one_number(self, x, support, tmp_path):
        dataset = data.load(annotated(tmp_path / "c.h5ad", scipy_sparse.csr_matrix(x((COUNT, 6), np.float32))))
        assert dataset.support is support
        assert torch.equal(all_rows(dataset), torch.from_numpy(x((COUNT, 6), np.float32)))

    @pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix"])
    def test_a_sparse_matrix_of_scipy_is_read(self, kind, tmp_path):
        scipy_sparse.save_npz(tmp_path / "x.npz", getattr(scipy_sparse, kind)(counts()))
        dataset = data.load(str(tmp_path / "x.npz"), counts=True)
        assert dataset.train.stored
        assert torch.equal(all_rows(dataset), torch.from_numpy(counts()))

    @pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix"])
    @pytest.mark.parametrize(
        ("part", "place", "value"), [("indices", 3, 10**6), ("indices", 0, -1), ("indptr", 2, 10**6)]
    )
    def test_a_damaged_sparse_matrix_is_refused(self, tmp_path, kind, part, place, value):
        path = annotated(tmp_path / "c.h5ad", getattr(scipy_sparse, kind)(counts()))
        with h5py.File(path, "a") as file:
            file["X"][part][place] = value
        with pytest.raises(ValueError, match="Expected a table; could not read"):
            data.load(path)

    @pytest.mark.parametrize("blocks", [1, 3, 1000])
    def test_columns_become_rows_in_blocks(self, tmp_path, monkeypatch, blocks):
        x = np.random.default_rng(0).poisson(0.3, (COUNT, 50)).astype(np.float32)
        monkeypatch.setattr("pyro_vae.data.table_files.BYTES", 2**20 * blocks / np.count_nonzero(x))
        dataset = data.load(annotated(tmp_path / "c.h5ad", scipy_sparse.csc_matrix(x)))
        assert torch.equal(all_rows(dataset), torch.from_numpy(x))

    @pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix"])
    def test_memory_is_that_of_the_sparse_numbers_and_a_batch(self, tmp_path, kind):
        """A tenth of 2,000 columns x 20,000 rows, in a new process; dense rows would take 160 MB."""
        if not Path("/proc/self/clear_refs").exists():
            pytest.skip("only Linux tells the peak of memory since a moment, in /proc")
        columns = (np.arange(20_000)[:, None] % 10 + 10 * np.arange(200)).ravel().astype(np.int32)
        parts = (1 + np.arange(len(columns), dtype=np.float32) % 9, columns, 200 * np.arange(20_001, dtype=np.int32))
        x = getattr(scipy_sparse, kind)(scipy_sparse.csr_matrix(parts, shape=(20_000, 2000)))
        for name, part in {"small": x[:9], "large": x}.items():
            ad.AnnData(part, obs=pd.DataFrame(index=[f"{i}" for i in range(part.shape[0])])).write_h5ad(
                tmp_path / f"{name}.h5ad"
            )
        script = """
            import sys; from pathlib import Path; import torch; from pyro_vae import data
            def kilobytes(name):
                lines = Path("/proc/self/status").read_text().splitlines()
                return next(int(line.split()[1]) for line in lines if line.startswith(name))
            def use(path):
                dataset = data.load(path, counts=True)
                for rows in torch.randperm(len(dataset.train)).split(128):
                    dataset.train.batch(rows)
                return dataset
            use("small.h5ad")
            before = kilobytes("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            dataset = use("large.h5ad")
            print(kilobytes("VmHWM") - before)
        """
        code = "\n".join(line[12:] for line in script.splitlines())
        kept = (x.data.nbytes + x.indices.nbytes + x.indptr.nbytes) / 1024
        peaks = list[int]()
        for _ in range(3):  # the least counts: pages of libraries and of the allocator come and go
            run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
            peaks.append(int(run.stdout))
            if peaks[-1] <= 1.2 * (kept + 128 * 2000 * 4 / 1024):
                break
        else:
            pytest.fail(f"peaks of {peaks} kB for {kept:.0f} kB of sparse numbers")
