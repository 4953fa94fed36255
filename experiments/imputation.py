r"""Imputation of missing pixels by a VAE: its error, and the coverage of its intervals.

Pixels are removed from real digits: each with the same probability, or a half of each image, left, right, top or
bottom. A VAE is trained on the remaining pixels of the training images: ``fit`` leaves the rest out of the likelihood.
It then draws the missing pixels of test images with holes of the same kind, :math:`p(x_m \mid x_o)`, by ``VAE.impute``.
Measured on the missing pixels of test images:

- RMSE: of the mean of the draws, :math:`\sqrt{\mathbb{E} (x_i - \hat{x}_i)^2}`, white is 1;
- coverage: the share of pixels inside the central 50% and 90% intervals of their draws. With 99 draws the interval
  between the fifth least and the fifth greatest has probability 0.9 if draws and pixel have one distribution;
- guide: the same with one particle: z is drawn from q(z | x), and not resampled by its weight.

The Gaussian likelihood has one learned scale for all pixels, or a scale per pixel from the decoder.
Pixels are dequantised, since no interval has the right coverage for a distribution with atoms (most pixels of a corner
are 0).

The table compares them with a VAE trained on complete images, and with three other methods: the mean of the pixel in
the training images; principal components, by alternating between a regularised fit and filling in; and a mean over
nearest neighbours. The rank and the number of neighbours minimise the RMSE on complete validation images; no setting of
the VAE is chosen in this way.

The committed run shows: For pixels missing at random, the intervals of a scale per pixel are nearly right, and the
intervals of one scale are too wide for pixels that hardly vary. The guide alone has a larger error, except if nearly
all pixels are missing, and its intervals are too narrow. A VAE trained on complete images gives too narrow intervals
for many missing pixels, since its guide never sees holes. Trained on halves, the VAE has a larger error than a pixel's
mean and far too narrow intervals, resampled or not: no training image shows two opposite halves, so the data do not
determine which halves go together.

References:
    MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei and Frellsen, 2019).

The committed table and figure: ``python experiments/imputation.py``
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import command, draw, mean_of, over_seeds, show, spread_of, write_table
from imputers import rivals, rmse
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import VAE, fit, likelihoods, networks
from pyro_vae.conditional import Family
from pyro_vae.data import Dataset, Split, load
from pyro_vae.plots.style import BLUE, GREEN, GREY, RED

DRAWS = 99
HALF = "a half"
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
    """Train VAEs on images with holes, impute test images; write imputation.csv, .md, .png and _images.png to ``out``.

    Args:
        data: Name of a data set of grey images.
        root: Folder where torchvision finds it.
        fractions: Shares of missing pixels; the table adds a half of each image.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's learning rate.
        seeds: Number of trainings of each model, each with new holes.
        num_particles: Draws of z from which each draw of the missing pixels is resampled.
        images: Largest number of test images.
        out: Folder for the results.
    """
    if not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(f"Expected fractions between 0 and 1; got {fractions}.")
    dataset = load(data, root, dequantize=True)
    kinds: list[float | str] = [*fractions, HALF]
    runs: dict[tuple[float | str, str, str], list[dict[str, float]]] = {}
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
                inside, inside_guided = (coverage(imputed, truth, x) for imputed in (draws, guided))
                row = {
                    "RMSE": rmse(draws.mean(0), truth, x),
                    "RMSE, guide": rmse(guided.mean(0), truth, x),
                    "coverage of 50%": inside[0],
                    "coverage of 90%": inside[1],
                    "coverage of 50%, guide": inside_guided[0],
                    "coverage of 90%, guide": inside_guided[1],
                } | others
                runs.setdefault((kind, scale, trained), []).append(row)
                if trained == "these holes":
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
    draw(figure, stem.with_suffix(".png"), rows)
    draw(pages, stem.with_name("imputation_images.png"), shown)


def name(kind: float | str) -> str:
    """Return the name of a kind of holes."""
    return f"{kind:.0%}" if isinstance(kind, float) else kind


def with_holes(dataset: Dataset, kind: float | str, seed: int) -> Dataset:
    """Return a data set with pixels missing at random, or a half of each image; each image keeps at least one pixel."""
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
    """Return the share of missing pixels inside the central 50% and 90% intervals of 99 draws."""
    ranked, inside = draws.sort(0).values, []
    for outside in (25, 5):
        inside.append((ranked[outside - 1] <= truth) & (truth <= ranked[-outside]))
    return torch.stack(inside)[:, x.isnan()].double().mean(1).tolist()


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the error of imputations and the coverage of their intervals against the missing share, from the table."""
    kinds = [*dict.fromkeys(row["missing"] for row in rows)]
    places = {kind: place + 0.5 * (kind == HALF) for place, kind in enumerate(kinds)}
    drawn = Figure(figsize=(8, 4.2), layout="constrained")
    left, right = drawn.subplots(1, 2)

    def line(axes: Axes, column: str, scale: str, trained: str, colour: str, **style: Any) -> None:
        chosen = [row for row in rows if (row["scale"], row["trained on"]) == (scale, trained)]
        cells = {row["missing"]: row[column] for row in chosen}
        across, up = [places[kind] for kind in cells], [*map(mean_of, cells.values())]
        spread = [*map(spread_of, cells.values())]
        ends = [place for place, kind in enumerate(cells) if kind != HALF]
        axes.plot([across[i] for i in ends], [up[i] for i in ends], color=colour, linewidth=1.3, **style)
        axes.errorbar(across, up, spread, fmt="o", color=colour, markersize=3.5)

    line(left, "RMSE, mean", "one", "these holes", "0.7", linestyle=":", label="pixel's mean")
    line(left, "RMSE, components", "one", "these holes", GREY, linestyle="--", label="principal components")
    line(left, "RMSE, neighbours", "one", "these holes", "black", linestyle="-.", label="nearest neighbours")
    line(left, "RMSE", "one", "these holes", BLUE, label="VAE, one scale")
    line(left, "RMSE", "per pixel", "these holes", RED, label="VAE, scale per pixel")
    line(left, "RMSE", "one", "complete images", GREEN, label="VAE, one scale, trained on complete images")
    left.set(title="Error of the mean of the draws", ylabel="RMSE of a missing pixel; white is 1")
    for level in ("90%", "50%"):
        right.axhline(float(level[:-1]) / 100, color="0.7", linewidth=1)
        line(right, f"coverage of {level}", "one", "these holes", BLUE)
        line(right, f"coverage of {level}", "per pixel", "these holes", RED)
        line(right, f"coverage of {level}", "one", "complete images", GREEN)
        right.text(max(places.values()) - 0.1, float(level[:-1]) / 100, f"{level} intervals", va="bottom", ha="right")
    right.set(title="Missing pixels inside their intervals", ylabel="share of missing pixels", ylim=(0.3, 1))
    for axes in (left, right):
        axes.set_xticks([*places.values()], [*places])
        axes.set(xlabel="missing of each image", xlim=(-0.4, max(places.values()) + 0.3))
    drawn.legend(loc="outside lower center", ncols=3, fontsize=8)
    return drawn


def pages(shown: Mapping[float | str, Tensor]) -> Figure:
    """Draw test images, their observed pixels, the mean of the draws and three draws, for three kinds of holes."""
    kinds = [*shown]
    chosen = [*dict.fromkeys([kinds[len(kinds) // 2 - 1], kinds[-2], HALF])]
    drawn = Figure(figsize=(6.5, 3.7 * len(chosen)), layout="constrained")
    for axes, kind in zip(drawn.subplots(len(chosen), 1, squeeze=False)[:, 0], chosen, strict=True):
        show(axes, shown[kind], f"{name(kind)} missing: truth, observed pixels, mean of the draws, three draws")
    return drawn


if __name__ == "__main__":
    command(main)
