"""Curves of a training, and runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.plots.style import BLUE, GREEN, ORANGE, finite, styled

CURVES = {
    "Loss": [
        ("train", "train, the objective", BLUE),
        ("train_at_beta_1", "train, -ELBO", GREEN),
        ("valid", "valid, -ELBO", ORANGE),
    ],
    "Reconstruction: E[-log p(x | z)], valid": [("valid_reconstruction", "", ORANGE)],
    "Divergence: KL(q || p), valid": [("valid_kl", "", GREEN)],
    "Accuracy of q(y | x), valid": [("valid_accuracy", "", BLUE)],
}


@styled
def curves(history: Mapping[str, Sequence[float]]) -> Figure:
    """Draw training curves, with reconstruction and divergence apart, from what ``fit`` returns.

    Where the objective is not the ELBO at beta = 1, that is drawn beside it. Where nothing is held out for validation
    there is the loss alone.
    """
    epochs = np.arange(1, len(history["train"]) + 1)
    same = np.array_equal(history.get("train_at_beta_1", []), history["train"])
    columns = {*history} - ({"train_at_beta_1"} if same else set())
    shown = {title: [line for line in lines if line[0] in columns] for title, lines in CURVES.items()}
    shown = {title: lines for title, lines in shown.items() if lines}
    figure = Figure(figsize=(10 * len(shown) / 3, 3.2), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for key, label, colour in lines:
            axes.plot(epochs, finite(history[key]), color=colour, label=label, linewidth=1.5)
        if len(lines) > 1:
            axes.legend()
        _fit_to(axes, [history[key][len(epochs) // 20 :] for key, _, _ in lines])
        axes.set(title=title, xlabel="epoch")
    figure.axes[0].set_ylabel("nats per datum")
    return figure


@styled
def comparison(groups: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> Figure:
    """Draw runs side by side, a row of panels for each group of those that may be ranked together.

    Left -log p(x), best above; in the middle the ELBO's two terms, with lines of one ELBO; right -ELBO of the
    validation images against seconds of training. A group is a title and runs by name, each with ``nll``, a mean and
    its standard error; ``reconstruction`` and ``kl``, numbers; ``seconds`` since the start and ``valid``, one number an
    epoch, or none.
    """
    heights = [1.6 + max(1.4, 0.28 * len(runs)) for _, runs in groups]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    pages = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)
    for page, (title, runs) in zip(pages[:, 0], groups, strict=True):
        page.suptitle(title, fontsize=10)
        left, middle, right = page.subplots(1, 3)
        for i, run in enumerate(runs.values()):
            colour, valid, (nll, error) = f"C{i % 10}", finite(run["valid"]), finite(run["nll"])
            left.errorbar(nll, i, xerr=error, fmt="o", color=colour, capsize=3)
            middle.plot(*finite([run["kl"], -run["reconstruction"]]), "o", color=colour)
            right.plot(run["seconds"][: len(valid)], valid, "-o", color=colour, linewidth=1.5, markevery=[-1])
        left.set_yticks(range(len(runs)), [*runs])
        left.set(ylim=(len(runs) - 0.5, -0.5), xlabel="-log p(x), nats per datum")
        middle.margins(0.2)
        (start, end), (low, high) = middle.get_xlim(), middle.get_ylim()
        for elbo in np.linspace(start + low, end + high, 9)[1:-1]:
            middle.plot([start, end], [elbo - start, elbo - end], color="0.85", linewidth=0.8, zorder=0)
        middle.set(xlim=(start, end), ylim=(low, high))
        middle.set(xlabel="KL(q || p), nats; one ELBO on each line", ylabel="E[-log p(x | z)], nats")
        right.set(xlabel="seconds of training", xlim=(0, None), ylabel="-ELBO, valid, nats")
        _fit_to(right, [run["valid"][len(run["valid"]) // 4 :] for run in runs.values()])
    return figure


def _fit_to(axes: Axes, tails: Sequence[Sequence[float]]) -> None:
    """Fit the axis to the last epochs: the first fall so far that these would look flat."""
    values = np.concatenate(tails)
    values = values[np.isfinite(values)]
    if len(values):
        margin = 0.05 * (values.max() - values.min()) or max(1.0, abs(values.max()) / 1000)
        axes.set(ylim=(values.min() - margin, values.max() + margin))
