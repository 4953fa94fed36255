"""Settings over seeds, on numbers whose means, errors and tests are known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_vae import compare, evaluate, plots
from pyro_vae.compare.seeds import LEVEL


def row(name, nll, settings, seed=0, group=0, seconds=1.0, config=None):
    nll = torch.as_tensor(nll)
    return compare.Row(
        name=f"{name}-seed-{seed}",
        group=group,
        basis={"data": "digits", "log p(x)": "of a density" if group == 0 else "of a mass"},
        config={"latent": 2, "prior": "Flow", "seed": seed} | settings | (config or {}),
        about="digits, 5 test images",
        values=evaluate.Values(-nll - 1, -nll, torch.ones_like(nll), nll),
        difference=(0.0, 0.0),
        num_particles=10,
        proposal="guide",
        method="by importance sampling",
        active=2,
        latent=2,
        parameters=7,
        history={"seconds": [seconds], "valid": [1.0]},
        measures={},
    )


def runs(means, images=8, name="a", spread=0.0, **settings):
    """Return a row for each mean, with equal deviations of the images in all rows."""
    deviations = spread * torch.linspace(-1, 1, images)
    return [row(name, mean + deviations, settings, seed) for seed, mean in enumerate(means)]


class TestOverSeeds:
    def test_errors_are_those_of_seeds_and_of_paired_images(self):
        a, b = [1.0, 2.0, 4.0], [5.0, 5.5, 9.0]
        rows = runs(a, spread=3.0) + runs(b, name="b", spread=5.0, latent="8")
        best, other = compare.over_seeds(rows)
        assert (best.name, other.name) == ("a", "b")
        assert best.nll == pytest.approx((np.mean(a), np.std(a, ddof=1) / math.sqrt(3)))
        assert other.difference == pytest.approx(np.mean(b) - np.mean(a))
        assert other.seed_error == pytest.approx(math.hypot(stats.sem(a), stats.sem(b)))
        assert other.image_error == pytest.approx(stats.sem(2.0 * np.linspace(-1, 1, 8)))  # spread 5 - 3

    def test_without_noise_of_images_it_is_welchs_test(self):
        a, b = [1.0, 2.0, 4.0], [5.0, 5.5, 9.0, 6.0]
        _, other = compare.over_seeds(runs(a) + runs(b, name="b", latent="8"))
        assert other.p == pytest.approx(stats.ttest_ind(b, a, equal_var=False).pvalue)

    def test_without_noise_of_seeds_it_is_the_paired_test_of_images(self):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, 30, generator=generator, dtype=torch.float64)
        rows = [row("a", x, {}, seed) for seed in range(2)] + [row("b", y + 9, {"latent": "8"}, s) for s in range(2)]
        _, other = compare.over_seeds(rows)
        assert other.p == pytest.approx(stats.ttest_rel(y + 9, x).pvalue, rel=1e-6)

    def test_holm_corrects_for_the_number_of_comparisons(self):
        rows = runs([0.0, 1.0, 2.0]) + [
            r
            for i, shift in enumerate((3.0, 4.0, 9.0))
            for r in runs([shift, shift + 1.5, shift + 2], name=f"{i}", latent=str(10 + i))
        ]
        settings = compare.over_seeds(rows)[1:]
        plain = [stats.ttest_ind(s.means, [0.0, 1.0, 2.0], equal_var=False).pvalue for s in settings]
        order = np.argsort(plain)
        expected = np.maximum.accumulate([min(1, (3 - i) * plain[j]) for i, j in enumerate(order)])
        assert [settings[j].p for j in order] == pytest.approx(expected.tolist())

    def test_one_seed_decides_nothing(self):
        _, other = compare.over_seeds(runs([1.0, 2.0]) + runs([50.0], name="b", latent="8"))
        assert math.isnan(other.p)
        assert math.isnan(other.seed_error)
        assert "cannot tell" in compare.table_over_seeds(
            compare.over_seeds(runs([1.0]) + runs([2.0], name="b", latent="8"))
        )

    def test_equal_settings_differ_in_at_most_five_percent(self):
        """Of 2,000 pairs of equal settings, 60 to 140 would differ by chance alone at 5%; fails 1 time in 1e5."""
        generator = torch.Generator().manual_seed(1)
        rejected = 0
        for _ in range(2000):
            images = torch.randn(2, 1, 20, generator=generator) + torch.randn(2, 3, 20, generator=generator)
            nll = images + 0.7 * torch.randn(2, 3, 1, generator=generator)
            both = [
                [row(n, x, {"latent": n}, s) for s, x in enumerate(part)] for n, part in zip("ab", nll, strict=True)
            ]
            rejected += compare.over_seeds(both[0] + both[1])[1].p < LEVEL
        assert rejected <= 140

    def test_runs_that_differ_beside_their_texts_are_two_settings(self):
        rows = [row(f"{i}", torch.zeros(8) + i, {}, s, config={"labelled": i}) for i in range(2) for s in range(2)]
        assert [len(setting.rows) for setting in compare.over_seeds(rows)] == [2, 2]

    def test_a_run_that_comes_twice_is_one_seed(self):
        (setting,) = compare.over_seeds([*runs([1.0, 2.0]), *runs([1.0, 2.0], name="copy")])
        assert len(setting.rows) == 2

    def test_the_name_is_that_of_the_run_without_the_seed(self):
        (setting,) = compare.over_seeds([row("my-seed-test/runs/000", torch.zeros(8), {})])
        assert setting.name == "my-seed-test/runs/000"

    def test_groups_are_apart(self):
        rows = runs([5.0, 6.0]) + [row("m", torch.zeros(8), {"latent": "3"}, s, group=1) for s in range(2)]
        settings = compare.over_seeds(rows)
        assert [(s.name, s.group, s.difference) for s in settings] == [("a", 0, 0.0), ("m", 1, 0.0)]
        assert "Not ranked against the first group" in compare.table_over_seeds(settings)

    def test_nan_comes_last_and_takes_no_part_in_the_tests(self):
        rows = runs([1.0, 2.0]) + runs([math.nan, 2.0], name="b", latent="8") + runs([9.0, 9.5], name="c", latent="9")
        settings = compare.over_seeds(rows)
        assert [s.name for s in settings] == ["a", "c", "b"]
        plain = stats.ttest_ind([9.0, 9.5], [1.0, 2.0], equal_var=False).pvalue
        assert settings[1].p == pytest.approx(plain)  # one comparison


class TestImportance:
    def test_shares_are_those_of_the_variance(self):
        """Of additive effects on a full grid, a share is the variance of the effect over the sum of the variances."""
        strong, weak = (0.0, 3.0, 9.0), (0.0, 1.0, 2.0, 3.0)
        rows = [
            r
            for i, u in enumerate(strong)
            for j, v in enumerate(weak)
            for r in runs([u + v, u + v + 1e-3], name=f"{i}{j}", latent=str(i), prior=str(j))
        ]
        shares = compare.importance(compare.over_seeds(rows))
        total = np.var(strong) + np.var(weak)
        assert list(shares) == ["latent", "prior"]
        assert shares["latent"] == pytest.approx(np.var(strong) / total, abs=0.05)
        assert sum(shares.values()) == pytest.approx(1)

    def test_numbers_have_an_order(self):
        """An option without effect has hardly a share, though each of its values comes once."""
        rate = [1e-3 * (7 * i % 20 + 1) for i in range(20)]
        rows = [
            r
            for i in range(20)
            for r in runs([i // 10, i // 10 + 0.01], name=str(i), latent=str(i // 10), lr=f"{rate[i]:g}")
        ]
        assert compare.importance(compare.over_seeds(rows))["lr"] < 0.03

    def test_equal_runs_have_none(self):
        rows = [r for i in range(6) for r in runs([1.0, 1.0], name=str(i), latent=str(i), prior=str(i % 2))]
        assert compare.importance(compare.over_seeds(rows)) == {}

    def test_few_settings_or_one_option_have_none(self):
        assert compare.importance(compare.over_seeds(runs([1.0, 2.0]))) == {}
        rows = [r for i in range(6) for r in runs([i, i + 1.0], name=str(i), latent=str(i))]
        assert compare.importance(compare.over_seeds(rows)) == {}


def test_table_has_the_means_and_the_number_of_comparisons():
    rows = (
        runs([1.0, 1.1, 0.9]) + runs([5.0, 5.1, 4.9], name="b", latent="8") + runs([1.0, 1.3, 0.8], name="c", prior="X")
    )
    lines = compare.table_over_seeds(compare.over_seeds(rows), ["d-seed-0: it diverged."]).splitlines()
    line = next(line for line in lines if line.startswith("b "))
    assert line.split()[:3] == ["b", "8", "Flow"]
    assert "yes, p = " in line
    assert any("of this group: 2," in line for line in lines)
    assert "- d-seed-0: it diverged." in lines


class TestStudies:
    def study(self, folder, rows, runs):
        (folder / "runs").mkdir(parents=True)
        for name in runs:
            (folder / "runs" / name).mkdir()
        lines = ["run,number,seed,state,value,seconds,message", *rows]
        (folder / "trials.csv").write_text("\n".join(lines))
        return folder

    def test_runs_are_the_complete_ones_that_are_here(self, tmp_path):
        rows = ["000-seed-0,0,0,complete,1,1,", "000-seed-1,0,1,failed,,,It diverged.", "001-seed-0,1,0,complete,2,1,"]
        study = self.study(tmp_path / "s", rows, ["000-seed-0", "000-seed-1"])
        folders, absent = compare.runs_of([study, tmp_path / "other"])
        assert folders == [study / "runs" / "000-seed-0", tmp_path / "other"]
        assert ["000-seed-1" in line or "001-seed-0" in line for line in absent] == [True, True]
        assert any("It diverged." in line for line in absent)

    @pytest.mark.parametrize(
        "content", [b"garbage,x\n1,2\n", b"run,state\n\xff\xfe,complete\n", b"run,state\n000-seed-0\n"]
    )
    def test_a_table_that_cannot_be_read_is_refused(self, tmp_path, content):
        (tmp_path / "trials.csv").write_bytes(content)
        with pytest.raises(ValueError, match="trials.csv"):
            compare.runs_of([tmp_path])

    def test_a_study_without_runs_is_refused(self, tmp_path):
        study = self.study(tmp_path / "s", ["000-seed-0,0,0,waiting,,,"], [])
        with pytest.raises(ValueError, match="complete runs"):
            compare.runs_of([study])


class TestFigure:
    def test_has_a_panel_for_each_option_and_one_for_seconds(self):
        rows = [r for i in (1, 10, 100) for r in runs([float(i)], name=str(i), latent=str(i), prior="AB"[i > 1])]
        figure = compare.figure_over_seeds(compare.over_seeds(rows))
        panels = [axes for axes in figure.axes if axes.axison]
        assert [axes.get_xlabel() for axes in panels] == ["latent", "prior", "seconds of training"]
        assert panels[0].get_xscale() == "log"
        assert [tick.get_text() for tick in panels[1].get_xticklabels()] == ["A", "B"]

    def test_means_of_values_are_joined(self):
        figure = plots.slices({"latent": ["2", "2", "8"]}, [1.0, 3.0, math.inf], [1.0] * 3, ["a", "b", "c"])
        points, means = figure.axes[0].lines
        assert points.get_ydata()[:2].tolist() == [1, 3]
        assert means.get_ydata()[0] == 2
        assert figure.axes[1].texts[0].get_text() == "a"
