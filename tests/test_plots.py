"""Figures hold what they were given: read back from the axes, not looked at."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyro_vae import plots

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


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.samples(torch.rand(4, 1, 8, 8)),
        lambda: plots.latent_space(torch.randn(9, 2), torch.arange(9)),
        lambda: plots.curves(HISTORY),
        lambda: plots.comparison(GROUPS),
    ],
)
def test_a_figure_is_saved_without_a_display_and_pyplot_never_hears_of_it(figure, tmp_path):
    made = figure()
    assert isinstance(made, Figure)
    made.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_vectors_get_a_sentence():
    with pytest.raises(ValueError, match=r"Expected images .*; got shape \(2, 2, 64\). Reshape"):
        plots.samples(torch.rand(4, 64))
