r"""What is missing of an image: how well does a VAE impute it, and are its intervals right?

Pixels are taken out of real digits: each with the same probability, whatever it is, or a half of each image, left,
right, top or bottom. A VAE is trained on what is left of the training images, which ``fit`` does by leaving the rest
out of the likelihood, and then draws the missing pixels of test images, which have holes of the same kind:
:math:`p(x_m \mid x_o)`, by ``VAE.impute``. Measured on missing pixels of test images alone:

- RMSE: of the mean of the draws, :math:`\sqrt{\mathbb{E} (x_i - \hat{x}_i)^2}`, white is 1;
- coverage: the share of pixels inside the central 50% and 90% intervals of their draws. With 99 draws the interval
  between the fifth least and the fifth greatest has probability 0.9 exactly, if draws and pixel are of one law;
- guide: the same of draws with one particle, that is with z from q(z | x) as it is, not resampled by its weight.

Two scales of the Gaussian likelihood: one for all pixels, learned; and one for each pixel, which the decoder gives.
Pixels are dequantised, since of a law with atoms (most pixels of a corner are 0) no interval has the right coverage.

For comparison a VAE trained on complete images, which never saw a hole; and three imputations that are no VAE: the
mean of the pixel in the training images; principal components, by alternating between a regularised fit and filling
in; and a mean over nearest neighbours. The rank and the number of neighbours are those with the least RMSE on the
validation images, of which the truth is known; nothing of the VAE is chosen so.

What the committed run shows: at random holes the intervals of a scale per pixel are nearly right, and those of one
scale too wide for pixels that hardly vary; the guide alone is worse, but where next to nothing is seen, and surer than
it should be; a VAE trained on complete images is too sure of many holes, of which its guide saw none. Trained on halves
it is worse than a pixel's mean and far too sure, resampled or not: no image has two opposite halves, so the data do not
say which go together.

References:
    MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei and Frellsen, 2019).

The committed table and figure: ``python experiments/imputation.py``
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import command, over_seeds, show, write_table
from imputers import rivals, rmse
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import VAE, fit, likelihoods, networks
from pyro_vae.conditional import Family
from pyro_vae.data import Dataset, Split, load

DRAWS = 99
HALF = "a half"
COLOURS = {"per pixel": "#2b6cb0", "one": "#dd6b20", "complete": "#2f855a", "guide": "#90cdf4"}
OTHERS = {"mean": ("0.75", "pixel's mean"), "components": ("0.5", "PCA"), "neighbours": ("0.2", "neighbours")}


SCALES: dict[str, Callable[[Sequence[int]], Family]] = {
    "one": likelihoods.Gaussian,
    "per pixel": partial(likelihoods.Gaussian, scale="per-pixel"),
}


def main(
    data: str = "digits",
    root: str = "data",
    fractions: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
    latent: int = 10,
    hidden: tuple[int, ...] = (256,),
    epochs: int = 50,
    batch_size: int = 64,
    lr: float = 2e-3,
    seeds: int = 3,
    num_particles: int = 50,
    images: int = 180,
    out: str = "experiments/results",
) -> None:
    """Train VAEs on images with holes, impute test images, and write imputation.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set of grey images.
        root: Folder where torchvision finds it.
        fractions: Shares of the pixels that are missing; and once a half of each image.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's learning rate.
        seeds: How many times each model is trained, each time with other holes.
        num_particles: Draws of z that each draw of the missing pixels is resampled from.
        images: Test images at most.
        out: Folder for the results.
    """
    if not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(f"Expected fractions between 0 and 1; got {fractions}.")
    dataset = load(data, root, dequantize=True)
    kinds: list[float | str] = [*fractions, HALF]
    runs: dict[tuple[float | str, str, str], list[dict[str, float]]] = {}
    curves: dict[tuple[float | str, str], list[tuple[list[float], list[float]]]] = {}
    shown: dict[float | str, Tensor] = {}
    complete: dict[str, VAE] = {}
    build = partial(VAE.build, dataset.event_shape, latent, network=partial(networks.MLP, hidden=hidden))
    train = partial(fit, epochs=epochs, batch_size=batch_size, lr=lr, progress=False)
    truth = dataset.test[:images]
    for seed, kind in tqdm([*product(range(seeds), ["", *kinds])], unit=" kinds of holes"):
        torch.manual_seed(seed)
        holed = with_holes(dataset, kind, seed) if kind else dataset
        x = holed.test[:images]
        found = rivals(holed, dataset, x) if kind else {}
        others = {f"RMSE, {key}": rmse(imputed, truth, x) for key, imputed in found.items()}
        for scale, likelihood in SCALES.items():
            torch.manual_seed(seed)
            vae = build(likelihood=likelihood)
            train(vae, holed, seed=seed)
            if not kind:
                complete[scale] = vae
                continue
            for trained, model in (("these holes", vae), ("complete images", complete[scale])):
                torch.manual_seed(seed)
                draws, guided = (model.impute(x, DRAWS, k) for k in (num_particles, 1))
                inside, inside_guided = (coverage(found, truth, x) for found in (draws, guided))
                row = {
                    "RMSE": rmse(draws.mean(0), truth, x),
                    "RMSE, guide": rmse(guided.mean(0), truth, x),
                    "coverage of 50%": inside[2],
                    "coverage of 90%": inside[4],
                    "coverage of 50%, guide": inside_guided[2],
                    "coverage of 90%, guide": inside_guided[4],
                } | others
                runs.setdefault((kind, scale, trained), []).append(row)
                if trained == "these holes":
                    curves.setdefault((kind, scale), []).append((inside, inside_guided))
                    shown[kind] = torch.stack([truth, x, draws.mean(0), *draws[:3]])[:, :12]
    stem = Path(out) / "imputation"
    rows = [
        {"missing": name(kind), "scale": scale, "trained on": trained} | over_seeds(found)
        for (kind, scale, trained), found in sorted(runs.items(), key=lambda run: kinds.index(run[0][0]))
    ]
    caption = (
        f"Missing pixels of {len(truth):,} test images of {dataset}: mean ± standard deviation over {seeds} seeds, "
        f"each with other holes. RMSE of the mean of {DRAWS} draws, white is 1; coverage is right at 0.5 and 0.9. Each "
        f"draw is resampled from {num_particles} particles; guide: from 1. Latent {latent}, hidden layers {hidden}, "
        f"{epochs} epochs."
    )
    write_table(rows, stem, caption.rstrip())
    picture(kinds, runs, curves, shown).savefig(stem.with_suffix(".png"), dpi=130)


def name(kind: float | str) -> str:
    """Return how a kind of holes is called."""
    return f"{kind:.0%}" if isinstance(kind, float) else kind


def with_holes(dataset: Dataset, kind: float | str, seed: int) -> Dataset:
    """Return a data set with pixels missing at random, or a half of each image; something is observed of each."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def cut(split: Split) -> Split:
        count, (*_, height, width) = len(split), dataset.event_shape
        if isinstance(kind, str):
            down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            halves = torch.stack([right < width // 2, right >= width // 2, down < height // 2, down >= height // 2])
            seen = halves[torch.randint(4, (count,), generator=generator)]
        else:
            seen = torch.rand(count, height, width, generator=generator) >= kind
            place = torch.randint(height * width, (count,), generator=generator)
            seen.flatten(1)[torch.arange(count), place] = True
        return replace(split, mask=seen.unsqueeze(1).expand(split.pixels.shape).contiguous())

    return replace(dataset, train=cut(dataset.train), valid=cut(dataset.valid), test=cut(dataset.test))


def coverage(draws: Tensor, truth: Tensor, x: Tensor) -> list[float]:
    """Return the share of missing pixels inside the central 10, 30, 50, 70 and 90% intervals of 99 draws."""
    ranked, inside = draws.sort(0).values, []
    for outside in (45, 35, 25, 15, 5):
        inside.append((ranked[outside - 1] <= truth) & (truth <= ranked[-outside]))
    return torch.stack(inside)[:, x.isnan()].double().mean(1).tolist()


def picture(
    kinds: Sequence[float | str],
    runs: dict[tuple[float | str, str, str], list[dict[str, float]]],
    curves: dict[tuple[float | str, str], list[tuple[list[float], list[float]]]],
    shown: dict[float | str, Tensor],
) -> Figure:
    """Draw the error against the fraction missing, coverage against nominal, and pages of images."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.4, 1])
    above, below = halves
    axes, *plain = above.subplots(1, 3)
    places = np.arange(len(kinds))

    def line(column: str, scale: str, trained: str, colour: str, label: str, style: str = "-") -> None:
        found = np.array([[run[column] for run in runs[kind, scale, trained]] for kind in kinds])
        axes.plot(places[:-1], found[:-1].mean(1), style, color=colour, label=label, linewidth=1.6)
        axes.plot(np.repeat(places, found.shape[1]), found.flatten(), "o", color=colour, markersize=3.5)

    for key, (grey, label) in OTHERS.items():
        line(f"RMSE, {key}", "one", "these holes", grey, label, "--")
    line("RMSE, guide", "one", "these holes", COLOURS["guide"], "VAE, one scale, guide alone", ":")
    line("RMSE", "one", "complete images", COLOURS["complete"], "VAE, one scale, trained on complete images")
    line("RMSE", "one", "these holes", COLOURS["one"], "VAE, one scale")
    line("RMSE", "per pixel", "these holes", COLOURS["per pixel"], "VAE, scale per pixel")
    axes.set_xticks(places, [name(kind) for kind in kinds])
    axes.set(xlabel="missing", ylabel="RMSE of a missing pixel", title="Error of the mean of the draws")
    axes.legend(frameon=False, fontsize=8, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    levels = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    for panel, scale in zip(plain, ("one", "per pixel"), strict=True):
        panel.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        for i, kind in enumerate(kinds):
            colour = "black" if kind == HALF else f"C{i}"
            found, guided = np.mean(curves[kind, scale], axis=0)
            panel.plot(levels, found, "o-", color=colour, markersize=4, linewidth=1.2, label=f"{name(kind)} missing")
            panel.plot(levels, guided, "x:", color=colour, markersize=4, linewidth=1.2)
        scaled = "one scale" if scale == "one" else "scale per pixel"
        panel.set(xlabel="central interval of the draws", ylabel="missing pixels inside it", xlim=(0, 1), ylim=(0, 1))
        panel.set_title(f"Coverage, {scaled} (crosses: guide alone)")
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    for panel in (axes, *plain):
        panel.spines[["top", "right"]].set_visible(False)
    chosen = [*dict.fromkeys([kinds[len(kinds) // 2 - 1], kinds[-2], HALF])]
    for panel, kind in zip(np.atleast_1d(below.subplots(1, len(chosen))), chosen, strict=True):
        show(panel, shown[kind], f"{name(kind)} missing: truth, what is observed, mean of the draws, three draws")
    return figure


if __name__ == "__main__":
    command(main)
