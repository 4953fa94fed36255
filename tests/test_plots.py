"""Figures hold what they were given: read back from the axes, not looked at."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.stats import binom

from pyro_vae import plots
from pyro_vae.plots.style import BLUE, GREY, ORANGE, RED

EVENTS = [(8, 8), (1, 8, 8), (3, 9, 7)]
HISTORY = {
    "train": [3.0, 2.0, 1.0],
    "valid": [3.5, 2.5, 2.0],
    "valid_reconstruction": [3.0, 1.5, 0.5],
    "valid_kl": [0.5, 1.0, 1.5],
    "seconds": [1.0, 1.0, 1.0],
}


def page(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def tile(figure, event, row, column, gap=1):
    """Cut one image out of a page, as (height, width, 3)."""
    height, width = event[-2:]
    top, left = row * (height + gap), column * (width + gap)
    return page(figure)[top : top + height, left : left + width]


def as_drawn(x):
    x = x.reshape(-1, *x.shape[-2:])
    return np.moveaxis(x.expand(3, -1, -1).numpy(), 0, -1)


@pytest.mark.parametrize("event", EVENTS, ids=str)
class TestPages:
    def test_samples_are_in_reading_order_and_the_rest_is_blank(self, event):
        x = torch.rand(7, *event)
        figure = plots.samples(x)
        for i in range(7):
            np.testing.assert_array_equal(tile(figure, event, *divmod(i, 3)), as_drawn(x[i]))
        assert (tile(figure, event, 2, 1) == 1).all()

    def test_reconstructions_stand_under_their_originals(self, event):
        x, x_hat = torch.rand(2, 5, *event)
        figure = plots.reconstructions(x, x_hat)
        np.testing.assert_array_equal(tile(figure, event, 0, 3, gap=2), as_drawn(x[3]))
        np.testing.assert_array_equal(tile(figure, event, 1, 3, gap=2), as_drawn(x_hat[3]))

    def test_interpolations_and_manifolds_keep_rows_and_columns(self, event):
        x = torch.rand(3, 6, *event)
        for figure in (plots.interpolation(x), plots.manifold(x)):
            np.testing.assert_array_equal(tile(figure, event, 2, 4), as_drawn(x[2, 4]))

    def test_traversals_are_in_the_order_asked_for_and_named(self, event):
        x = torch.rand(3, 5, *event)
        figure = plots.traversal(x, order=[2, 0], nats=[0.5, 0.0, 1.25])
        np.testing.assert_array_equal(tile(figure, event, 0, 4), as_drawn(x[2, 4]))
        np.testing.assert_array_equal(tile(figure, event, 1, 0), as_drawn(x[0, 0]))
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert names == ["z2  1.25 nats", "z0  0.50 nats"]
        middles = figure.axes[0].get_yticks()
        assert middles[1] - middles[0] == event[-2] + 1


def test_values_outside_black_and_white_are_clipped():
    figure = plots.samples(torch.tensor([[[-1.0, 2.0]]]))
    np.testing.assert_array_equal(page(figure)[0, :, 0], [0, 1])


class TestLatentSpace:
    def test_two_dimensions_are_drawn_as_they_are(self):
        z = torch.randn(30, 2)
        drawn = plots.latent_space(z, torch.arange(30) % 3).axes[0].collections[0]
        np.testing.assert_allclose(drawn.get_offsets(), z, rtol=1e-6)
        assert len(set(map(tuple, drawn.to_rgba(drawn.get_array())))) == 3

    def test_more_are_drawn_as_their_principal_components(self):
        z = torch.randn(200, 3) * torch.tensor([0.1, 5.0, 1.0])
        points = np.asarray(plots.latent_space(z).axes[0].collections[0].get_offsets())
        assert abs(np.corrcoef(points[:, 0], z[:, 1])[0, 1]) > 0.99
        assert abs(np.corrcoef(points[:, 1], z[:, 2])[0, 1]) > 0.95

    def test_one_is_drawn_on_a_line(self):
        points = np.asarray(plots.latent_space(torch.randn(5, 1)).axes[0].collections[0].get_offsets())
        assert (points[:, 1] == 0).all()

    def test_the_labels_are_in_the_legend(self):
        legend = plots.latent_space(torch.randn(30, 2), 5 + torch.arange(30) % 3).axes[0].get_legend()
        assert [text.get_text() for text in legend.get_texts()] == ["5", "6", "7"]

    def test_many_labels_have_no_legend(self):
        assert plots.latent_space(torch.randn(30, 2), torch.arange(30)).axes[0].get_legend() is None


RUN = {"nll": (3.0, 0.5), "reconstruction": -2.0, "kl": 1.5, "seconds": [1.0, 2.0, 4.0], "valid": [9.0, 5.0, 4.0]}
GROUPS = [("masses", {"a": RUN, "b": RUN | {"nll": (4.0, 0.1), "valid": [], "seconds": []}}), ("densities", {"c": RUN})]


class TestComparison:
    def test_has_a_row_of_panels_for_each_group_and_the_best_above(self):
        pages = plots.comparison(GROUPS).subfigs
        assert [page.get_suptitle() for page in pages] == ["masses", "densities"]
        left, middle, right = pages[0].axes
        assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
        assert left.yaxis_inverted()
        assert [line.get_xydata().tolist() for line in left.lines if len(line.get_xdata()) == 1][0] == [[3.0, 0.0]]
        bar = left.collections[0].get_segments()[0]
        assert bar[:, 0].tolist() == [2.5, 3.5]
        assert middle.lines[0].get_xydata().tolist() == [[1.5, 2.0]]
        assert right.lines[0].get_xydata().tolist() == [[1.0, 9.0], [2.0, 5.0], [4.0, 4.0]]
        assert len(right.lines[1].get_xdata()) == 0

    def test_a_run_has_one_colour_throughout(self):
        left, middle, right = plots.comparison(GROUPS).subfigs[0].axes
        for i in range(2):
            assert left.lines[3 * i].get_color() == middle.lines[i].get_color() == right.lines[i].get_color()
        assert middle.lines[0].get_color() != middle.lines[1].get_color()

    def test_on_a_line_the_elbo_is_one(self):
        middle = plots.comparison(GROUPS).subfigs[0].axes[1]
        lines = middle.lines[2:]
        assert len(lines) == 7
        assert all(np.ptp(line.get_xydata().sum(1)) < 1e-9 for line in lines)

    def test_of_one_epoch_or_none_is_drawn(self):
        for history in ([], [1.0]):
            plots.comparison([("one", {"run": RUN | {"valid": history, "seconds": history}})])


def test_curves_show_reconstruction_and_divergence_apart():
    axes = plots.curves(HISTORY).axes
    drawn = [[line.get_ydata().tolist() for line in one.lines] for one in axes]
    assert drawn == [[HISTORY["train"], HISTORY["valid"]], [HISTORY["valid_reconstruction"]], [HISTORY["valid_kl"]]]
    assert axes[0].get_ylabel() == "nats per datum"


def test_curves_show_the_elbo_beside_another_objective():
    other = HISTORY | {"train_at_beta_1": [4.0, 3.0, 2.0]}
    drawn = {line.get_label(): line.get_ydata().tolist() for line in plots.curves(other).axes[0].lines}
    assert drawn["train, -ELBO"] == [4.0, 3.0, 2.0]
    same = plots.curves(HISTORY | {"train_at_beta_1": HISTORY["train"]}).axes[0].lines
    assert len(same) == len(drawn) - 1


def test_curves_of_one_epoch_are_drawn():
    plots.curves({key: values[:1] for key, values in HISTORY.items()})


K = torch.tensor([0.1, 0.6, 0.9, 0.3])
X, X_HAT = torch.rand(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def bars(axes):
    return [patch.get_height() for patch in axes.patches]


def colours(axes):
    return [to_hex(patch.get_facecolor()) for patch in axes.patches]


class TestBounds:
    PARTICLES, MEANS, ERRORS = (1, 10, 50), (105.0, 101.0, 100.0), (2.0, 1.5, 1.0)

    def test_are_drawn_against_particles_with_their_errors(self):
        axes = plots.bounds(self.PARTICLES, self.MEANS, self.ERRORS, title="Here").axes[0]
        assert axes.lines[0].get_xydata().tolist() == [[1.0, 105.0], [10.0, 101.0], [50.0, 100.0]]
        segments = axes.collections[0].get_segments()
        assert [segment[:, 1].tolist() for segment in segments] == [[103.0, 107.0], [99.5, 102.5], [99.0, 101.0]]
        assert (axes.get_xscale(), axes.get_ylabel(), axes.get_title()) == ("log", "nats per datum", "Here")
        assert [(text.get_text(), text.xy) for text in axes.texts] == [("-ELBO", (1, 105.0))]
        assert axes.get_legend() is None

    def test_others_lie_as_far_from_the_last_as_they_differ_from_it(self):
        others = {"AIS": (-4.0, 0.5), "another": (1.0, 0.0)}
        axes = plots.bounds(self.PARTICLES, self.MEANS, self.ERRORS, others).axes[0]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["AIS", "another"]
        lines = {line.get_label(): line for line in axes.lines}
        assert lines["AIS"].get_ydata() == [96.0, 96.0]
        assert lines["another"].get_ydata() == [101.0, 101.0]
        assert lines["AIS"].get_color() != lines["another"].get_color()
        band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        assert (band.y0, band.y1) == pytest.approx((95.5, 96.5))

    def test_of_one_number_without_an_error_are_drawn(self, tmp_path):
        plots.bounds([1], [3.0], [float("nan")], {"AIS": (1.0, float("nan"))}).savefig(tmp_path / "x.png")


class TestWeights:
    def test_every_image_is_in_both_histograms(self):
        left, right = plots.weights(torch.rand(200) * 2 - 0.5, 1 + 99 * torch.rand(200), 100).axes
        assert sum(bars(left)) == sum(bars(right)) == 200

    def test_weights_that_are_constant_but_for_rounding_are_counted(self):
        """A sample of as many as there are draws, or none, of the last or first bin."""
        right = plots.weights(torch.zeros(3), torch.tensor([100.0001, 100.0, 0.9999]), 100).axes[1]
        assert (bars(right)[0], bars(right)[-1]) == (1, 2)

    def test_titles_say_how_many_are_poor_and_the_median(self):
        left, right = plots.weights(K, torch.tensor([1.0, 20.0, 30.0, 50.0]), 1000).axes
        assert left.get_title() == "Pareto k-hat: 25.0% of 4 images above 0.7"
        assert right.get_title() == "Effective sample size of 1,000 draws: median 25"
        assert [line.get_xdata()[0] for line in left.lines] == [0.5, 0.7]

    def test_poor_images_are_of_another_colour(self):
        left = plots.weights(K, torch.ones(4), 100).axes[0]
        edges = np.array([patch.get_x() for patch in left.patches])
        drawn = [colours(left)[(edges < k + 1e-6).sum() - 1] for k in K.sort().values.tolist()]
        assert drawn[0] == drawn[1]
        assert len({*drawn}) == 3

    @pytest.mark.parametrize("k", [[0.1, math.inf, 1.3], [math.inf, math.inf], [0.4, 0.4, 0.4], [1.0]])
    def test_infinite_k_are_counted_as_the_largest(self, k):
        left = plots.weights(torch.tensor(k), torch.ones(len(k)), 100).axes[0]
        assert sum(bars(left)) == len(k)
        poor = sum(each > 0.7 for each in k) / len(k)
        assert f"{poor:.1%} of {len(k)} images above 0.7" in left.get_title()
        if k == [0.1, math.inf, 1.3]:
            assert (bars(left)[0], bars(left)[-1]) == (1, 1)
        assert colours(left)[-1] == to_hex(RED)

    @pytest.mark.parametrize("k", [[-0.33, 0.21], [0.49, 0.51, 0.69, 0.71], [0.7, 2.52, math.inf], [math.inf]])
    def test_bins_are_0_05_wide_and_part_where_k_is_judged(self, k):
        """Of float32, 0.7 is below 0.7, and as little poor."""
        k = torch.tensor(k)
        patches = plots.weights(k, torch.ones(len(k)), 100).axes[0].patches
        edges = np.array([[patch.get_x(), patch.get_x() + patch.get_width()] for patch in patches])
        np.testing.assert_allclose(np.diff(edges), 0.05)
        assert all(np.abs(edges - line).min() < 1e-9 for line in (0.5, 0.7))
        for patch, (low, high) in zip(patches, edges, strict=True):
            colour = RED if low > 0.699 else ORANGE if low > 0.499 else BLUE
            assert to_hex(patch.get_facecolor()) == to_hex(colour)
            inside = ((k.double() > low) & (k.double() < high)) | (k.isinf() & (patch is patches[-1]))
            assert patch.get_height() == inside.sum()


class TestDimensions:
    KL, ACTIVITY = torch.tensor([0.5, 3.0, 0.0]), torch.tensor([0.8, 0.02, -1e-4])

    def test_are_in_order_of_their_divergence(self):
        above, below = plots.dimensions(self.ACTIVITY, self.KL).axes
        assert bars(above) == [3.0, 0.5, 0.0]
        assert bars(below) == pytest.approx([0.02, 0.8, 1e-6])  # on a logarithmic axis, where below 0 is nothing
        assert [label.get_text() for label in below.get_xticklabels()] == ["z1", "z0", "z2"]
        assert (above.get_ylabel(), below.get_ylabel(), below.get_yscale()) == ("KL, nats", "activity", "log")

    def test_without_a_divergence_are_in_order_of_their_activity(self):
        (axes,) = plots.dimensions(self.ACTIVITY).axes
        assert bars(axes) == pytest.approx([0.8, 0.02, 1e-6])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["z0", "z1", "z2"]

    @pytest.mark.parametrize(("threshold", "active"), [(0.01, 2), (0.1, 1), (1.0, 0)])
    def test_those_in_use_are_counted_and_of_another_colour(self, threshold, active):
        above, below = plots.dimensions(self.ACTIVITY, self.KL, threshold).axes
        assert above.get_title().startswith(f"{active} of 3 dimensions are active")
        assert below.lines[0].get_ydata() == [threshold, threshold]
        used = [self.ACTIVITY[i] > threshold for i in (1, 0, 2)]
        assert colours(above) == colours(below) == [to_hex(BLUE if each else GREY) for each in used]

    def test_of_one_and_of_many_are_drawn(self):
        for latent in (1, 64):
            assert len(bars(plots.dimensions(torch.rand(latent), torch.rand(latent)).axes[0])) == latent


class TestGaps:
    def test_are_bars_on_each_other_the_largest_first(self):
        axes = plots.gaps(torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.5, 3.0, 2.0])).axes[0]
        assert bars(axes) == [2.0, 0.5, 1.0, 3.0, 2.0, 0.5]
        assert [patch.get_y() for patch in axes.patches] == [0.0, 0.0, 0.0, 2.0, 0.5, 1.0]
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert names == ["approximation, 1.17 nats on average", "amortisation, 1.83 nats on average"]

    def test_below_zero_they_do_not_carry_the_other(self):
        axes = plots.gaps(torch.tensor([-0.5]), torch.tensor([2.0])).axes[0]
        assert bars(axes) == [-0.5, 2.0]
        assert [patch.get_y() for patch in axes.patches] == [0.0, 0.0]


class TestWorst:
    @pytest.mark.parametrize("event", EVENTS, ids=str)
    def test_are_over_their_reconstructions_with_the_best_below(self, event):
        x, x_hat = torch.rand(2, 4, *event)
        pages = plots.worst(x, x_hat, K, num=2).axes
        assert [axes.get_title().partition(".")[0] for axes in pages] == [
            "Largest k-hat: the guide is worst",
            "Smallest: the guide is best",
        ]
        for axes, order in zip(pages, ([2, 1], [0, 3]), strict=True):
            shown = axes.images[0].get_array()
            for row, source in enumerate((x, x_hat)):
                for column, i in enumerate(order):
                    expected = as_drawn(source[i])
                    height, width = expected.shape[:2]
                    top, left = row * (height + 1), column * (width + 1)
                    np.testing.assert_array_equal(shown[top : top + height, left : left + width], expected)
            assert [label.get_text() for label in axes.get_xticklabels()] == [f"{K[i]:.2f}" for i in order]
            assert axes.get_xticks()[1] - axes.get_xticks()[0] == width + 1

    def test_of_one_image_with_an_infinite_k_are_drawn(self):
        for axes in plots.worst(X[:1], X_HAT[:1], torch.tensor([math.inf])).axes:
            assert [label.get_text() for label in axes.get_xticklabels()] == ["inf"]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_what_is_missing_or_out_of_range_is_drawn(self, channels):
        """A pixel is missing where one of its channels is."""
        x = torch.tensor([[[[0.5, -1.0], [2.0, 0.25]]]]).repeat(1, channels, 1, 1)
        x[0, -1, 0, 0] = math.nan
        shown = plots.worst(x, x, torch.zeros(1)).axes[0].images[0].get_array()[:2]
        expected = [list(plots.MISSING), [0.0] * 3, [1.0] * 3, [0.25] * 3]
        np.testing.assert_array_equal(np.reshape(shown, (4, 3)), np.array(expected, dtype=np.float32))

    def test_no_more_than_asked_for(self):
        assert len(plots.worst(X, X_HAT, K).axes[0].get_xticks()) == 4
        assert len(plots.worst(X, X_HAT, K, num=1).axes[0].get_xticks()) == 1


COVERED = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.5, 0.6], [1.0, 1.0, 1.0]])


def calibrated(counts, p_values, **options):
    names = [*(f"z{i}" for i in range(counts.shape[1] - 1)), "log p(x, z)"]
    return plots.calibration(
        counts, names, torch.tensor([0.0, 0.5, 1.0]), COVERED[:, : counts.shape[1] - 1], 100, p_values, **options
    )


class TestCalibration:
    COUNTS = torch.tensor([[25, 10, 24, 30], [25, 40, 26, 20], [30, 40, 25, 25], [20, 10, 25, 25]])
    P = torch.tensor([0.5, 1e-9, 0.9, 0.2])

    def test_histograms_are_of_the_counts_in_the_order_of_the_names_and_on_one_scale(self):
        axes = calibrated(self.COUNTS, self.P).axes
        for i, one in enumerate(axes[:4]):
            assert bars(one)[1:] == self.COUNTS[:, i].tolist()  # the first is the band
            assert one.get_ylim() == pytest.approx((0, 42))
        titles = ["z0, p = 0.5", "z1, p < 0.0001", "z2, p = 0.9", "log p(x, z), p = 0.2"]
        assert [one.get_title() for one in axes[:4]] == titles
        assert [one.get_xlabel() for one in axes[:4]] == [*["rank of the true z"] * 3, "rank"]

    def test_the_band_holds_99_in_100_counts(self):
        one = calibrated(self.COUNTS, self.P).axes[0]
        band = one.patches[0].get_extents().transformed(one.transData.inverted())
        assert (band.y0, band.y1) == pytest.approx(binom.interval(0.99, 100, 0.25))
        assert one.lines[0].get_ydata() == [25.0, 25.0]

    def test_coverage_is_a_line_for_each_dimension(self):
        axes = calibrated(self.COUNTS, self.P).axes[4]
        assert axes.get_title() == "true z within the interval"
        assert axes.lines[0].get_xydata().tolist() == [[0.0, 0.0], [1.0, 1.0]]
        for line, expected in zip(axes.lines[1:], COVERED.T, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), torch.stack([torch.tensor([0.0, 0.5, 1.0]), expected], 1))

    def test_panels_that_are_left_over_are_blank(self):
        assert [one.axison for one in calibrated(self.COUNTS, self.P).axes] == [True] * 5 + [False] * 3

    def test_of_many_only_the_least_uniform_are_drawn(self):
        figure = calibrated(self.COUNTS, self.P, most=2)
        titles = [one.get_title().partition(",")[0] for one in figure.axes]
        assert titles == ["z1", "log p(x", "true z within the interval"]
        assert figure.get_supxlabel().startswith("The 2 least uniform of 4 quantities. Grey: 99% of the bars")
        assert len(calibrated(torch.ones(4, 4), torch.ones(4), most=7).axes) == 8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_not_finite_is_not_drawn(bad):
    run = {"nll": (bad, math.nan), "reconstruction": bad, "kl": bad, "seconds": [1.0, 2.0], "valid": [bad, bad]}
    for runs in ({"bad": run}, {"bad": run, "a": RUN}):
        left, *_, right = plots.comparison([("masses", runs)]).axes
        assert np.isfinite([*left.get_xlim(), *right.get_ylim()]).all()
    assert plots.curves({"train": [2.0, bad, 1.0], "valid": [bad] * 3}).axes[0].lines[0].get_ydata()[2] == 1.0
    assert np.isfinite(plots.bounds([1, 9], [2.0, bad], [0.1, math.nan], {"AIS": (bad, 1.0)}).axes[0].get_ylim()).all()
    numbers = torch.tensor([0.3, bad])
    for figure in (plots.gaps(numbers, numbers), plots.dimensions(numbers, numbers)):
        assert np.isfinite(figure.axes[0].get_ylim()).all()
    assert len(plots.weights(numbers, numbers, 100).axes[0].patches) < 100
    z = torch.tensor([[0.0, 1.0, 2.0], [bad, 0.0, 0.0]])
    assert bad == 1e30 or len(plots.latent_space(z, torch.arange(2)).axes[0].collections[0].get_offsets()) == 1


class TestColumns:
    X, OTHER = torch.tensor([[0.0, 3.0], [1.0, 5.0], [1.0, 4.0], [0.0, math.nan]]), torch.zeros(4, 2)

    def test_histograms_are_of_both_the_most_apart_first(self):
        """Of whole numbers each has its bin; heights are shares, since bins are of width 1."""
        other = torch.tensor([[1.0, 30.0], [0.0, 30.0], [0.0, 30.0], [0.0, math.nan]])
        first, second = plots.columns(self.X, other, ["few", "off"], "A table").axes
        assert (first.get_title(), second.get_title()) == ("off", "few")
        assert [bar.get_height() for bar in second.patches[:2]] == [0.5, 0.5]
        assert {*second.patches[2].get_xy()[:, 1].tolist()} == {0.0, 0.25, 0.75}

    def test_pairs_are_drawn_against_each_other_without_what_is_missing(self):
        first, second = plots.columns(self.X, self.OTHER, ["a", "b"], "A table", pairs=True).axes
        assert (first.get_title(), second.get_title()) == ("b", "a")
        assert first.lines[1].get_xydata().tolist() == [[3.0, 0.0], [5.0, 0.0], [4.0, 0.0]]

    @pytest.mark.parametrize("pairs", [False, True])
    def test_any_table_is_drawn_and_of_many_columns_16(self, pairs, tmp_path):
        x = torch.randn(9, 40)
        x[:, 0], x[:, 1], x[:, 2], x[:, 3] = math.nan, 0.37, 1e30 * x[:, 2], 7.0
        figure = plots.columns(x, x.roll(1, 0), [f"x[{i}]" for i in range(40)], "A table", pairs)
        assert len(figure.axes) == 16
        assert figure.get_suptitle() == "A table: 16 of 40 columns"
        for part in (x[:1, :5], x[:, :1]):
            plots.columns(part, part, [f"x[{i}]" for i in range(part.shape[1])], "", pairs).savefig(
                tmp_path / "a.png", dpi=20
            )


class TestPosteriors:
    def test_pairs_are_below_the_diagonal_and_densities_on_it(self):
        guide, posterior = torch.randn(2, 300, 4)
        axes = plots.posteriors(guide, posterior, dims=(1, 3)).axes
        assert [one.axison for one in axes] == [True, False, True, True]
        for lines, z in zip(axes[2].lines, (posterior, guide), strict=True):
            np.testing.assert_array_equal(lines.get_xydata(), z[:, [1, 3]])
        assert (axes[2].get_xlabel(), axes[2].get_ylabel(), axes[3].get_xlabel()) == ("z1", "z3", "z3")
        names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
        assert sorted(names) == ["guide", "posterior, by NUTS"]

    def test_densities_are_of_the_draws(self):
        """Of one dimension the height at 0 is 1 / sqrt(2 pi) / stddev: 2e5 draws, 4000 or more in a bin, to a tenth."""
        stddev = torch.tensor([0.5, 2.0])
        guide, posterior = torch.randn(2, 200_000, 2) * stddev[:, None, None]
        *filled, line = plots.posteriors(guide, posterior, dims=(0, 1)).axes[0].patches
        assert len(filled) == 49
        assert filled[24].get_x() < 0 < filled[24].get_x() + filled[24].get_width()
        highest = torch.tensor([line.get_xy()[:, 1].max(), filled[24].get_height()])
        torch.testing.assert_close(highest * stddev, torch.full((2,), 0.3989), rtol=0.1, atol=0, check_dtype=False)

    def test_no_more_than_2000_points_are_drawn(self):
        z = torch.randn(5000, 2)
        assert all(len(line.get_xdata()) == 2000 for line in plots.posteriors(z, z, (0, 1)).axes[2].lines)

    @pytest.mark.parametrize("dims", [(0, 1), (1, 0)])
    def test_contours_are_of_the_exact_density_and_hold_their_shares(self, dims):
        """Of a Gaussian those around a share s are circles of radius sqrt(-2 log(1 - s)), in whatever order of dims."""
        z0, z1 = torch.linspace(-6, 6, 200), torch.linspace(-5, 7, 190)
        density = (-(z0[:, None] ** 2 + (z1[None] - 1) ** 2) / 2).exp()
        axes = plots.posteriors(torch.randn(9, 2), torch.randn(9, 2), dims, (z0, z1, density)).axes[2]
        assert (axes.get_xlabel(), axes.get_ylabel()) == tuple(f"z{i}" for i in dims)
        (contours,) = axes.collections
        for path, share in zip(contours.get_paths(), (0.99, 0.9, 0.5), strict=True):
            radius = np.hypot(*(path.vertices - dims).T)  # the mean of z0 is 0, of z1 it is 1
            np.testing.assert_allclose(radius, math.sqrt(-2 * math.log(1 - share)), rtol=0.02)

    @pytest.mark.parametrize("dims", [(0,), (0, 1, 2, 3)])
    def test_any_number_of_dimensions(self, dims):
        figure = plots.posteriors(torch.randn(30, 4), torch.randn(30, 4), dims)
        assert len(figure.axes) == len(dims) ** 2
        assert sum(one.axison for one in figure.axes) == len(dims) * (len(dims) + 1) / 2


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.samples(torch.rand(4, 1, 8, 8)),
        lambda: plots.latent_space(torch.randn(9, 2), torch.arange(9)),
        lambda: plots.curves(HISTORY),
        lambda: plots.comparison(GROUPS),
        lambda: plots.bounds([1, 10], [3.0, 2.0], [0.1, 0.1], {"AIS": (-0.5, 0.1)}),
        lambda: plots.calibration(
            torch.ones(20, 3), ["z0", "z1", "log p"], torch.rand(5), torch.rand(5, 2), 20, torch.rand(3)
        ),
        lambda: plots.dimensions(torch.rand(3), torch.rand(3)),
        lambda: plots.gaps(torch.rand(9), torch.rand(9)),
        lambda: plots.posteriors(torch.randn(50, 3), torch.randn(50, 3), (0, 1, 2)),
        lambda: plots.posteriors(
            *torch.randn(2, 50, 2), (0, 1), (torch.arange(3.0), torch.arange(4.0), torch.rand(3, 4))
        ),
        lambda: plots.weights(torch.rand(9), 1 + torch.rand(9), 100),
        lambda: plots.worst(X, X_HAT, K),
    ],
)
def test_a_figure_is_saved_without_a_display_and_pyplot_never_hears_of_it(figure, tmp_path):
    made = figure()
    assert isinstance(made, Figure)
    made.savefig(tmp_path / "figure.png", dpi=20)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_vectors_get_a_sentence():
    with pytest.raises(ValueError, match=r"Expected images .*; got shape \(2, 2, 64\). Reshape"):
        plots.samples(torch.rand(4, 64))
