r"""Gaps in the latent spaces of a plain autoencoder and of a VAE.

The script trains the same two networks twice: as a plain autoencoder on squared error, where the code of x is the
encoder's mean; and as a VAE (Gaussian likelihood of learned scale, standard normal prior, beta = 1, 1 particle).
Architecture, initial weights, epochs, batch size and optimiser are the same. Then it decodes points of latent space:

- the codes of test images: both models are trained on such codes, so they show no gap;
- the standard normal: the VAE's prior; a plain autoencoder has no prior, and no scale of its codes;
- a Gaussian with the mean and the covariance of the training codes, which is fair to both;
- the box around the codes: uniform between the least and the greatest training code of each dimension;
- halfway: the midpoint of the codes of two test images of different classes.

:class:`common.Judge` scores the decoded images: confidence and entropy (nats) of a classifier, distance to the nearest
real training image (RMS per pixel, white is 1), and the share of unreadable images. The *jitter* measures the latent
space: the change of the image, in RMS per pixel, for a step of a tenth of the spread of the codes,
:math:`z + 0.1 s \epsilon` with s the standard deviation of the training codes in each dimension. If it is large,
neighbours in latent space are not neighbours as images.

The committed table shows: In 2 dimensions the codes of both models fill the plane. The plain autoencoder's draws are
about as readable as the VAE's, but its jitter is larger. In 16 dimensions draws from the standard normal are far from
any real image if a plain autoencoder decodes them, and much nearer if the VAE does; a Gaussian fitted to the codes
makes up a part of the difference. Both models have gaps, since a mixture of the posteriors of the data is not the
prior, and both are hardest to read halfway between classes.

References:
    Auto-Encoding Variational Bayes (Kingma and Welling, 2014).

    From Variational to Deterministic Autoencoders (Ghosh et al., 2020): a density fitted to a plain autoencoder's
    codes after training gives samples as good as a VAE's.

The committed table and figure: ``python experiments/discontinuity.py``
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from common import Judge, command, draw, over_seeds, show, write_table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from torch import Tensor
from torch.distributions import MultivariateNormal
from tqdm.auto import tqdm

from pyro_vae import VAE, fit, networks
from pyro_vae.conditional import Conditional
from pyro_vae.data import Dataset, load
from pyro_vae.plots.style import CLASSES


def main(
    data: str = "digits",
    root: str = "data",
    latents: tuple[int, ...] = (2, 16),
    hidden: tuple[int, ...] = (256, 256),
    epochs: int = 150,
    batch_size: int = 64,
    lr: float = 1e-3,
    seeds: int = 3,
    points: int = 1000,
    out: str = "experiments/results",
) -> None:
    """Train both models for each latent size and seed, and write discontinuity.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set with labels.
        root: Folder where torchvision finds it.
        latents: Numbers of latent dimensions. A figure of 2 dimensions, and of draws of the largest number, needs 2
            among them.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's learning rate.
        seeds: Number of trainings of each model.
        points: Number of points from each place.
        out: Folder for the results.
    """
    dataset = load(data, root)
    judge = Judge(dataset)
    runs: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    drawn: dict[str, dict[int, VAE]] = {}
    trainers: dict[str, Callable] = {"plain autoencoder": fit_plain, "VAE": partial(fit, progress=False)}
    for latent, model, seed in tqdm([*product(latents, trainers, range(seeds))], unit=" models"):
        torch.manual_seed(seed)
        vae = VAE.build(dataset.event_shape, latent=latent, network=partial(networks.MLP, hidden=hidden))
        trainers[model](vae, dataset, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        torch.manual_seed(seed)
        for place, found in scores(vae, dataset, judge, points).items():
            runs.setdefault((model, latent, place), []).append(found)
        drawn.setdefault(model, {}).setdefault(latent, vae)
    stem = Path(out) / "discontinuity"
    caption = (
        f"Decoded points of latent space: {dataset}, {points:,} points a row (of test images, the first "
        f"{min(points, len(dataset.test)):,}), mean ± standard deviation over {seeds} seeds; {epochs} epochs, hidden "
        f"layers {hidden}; the VAE at beta = 1 with 1 particle. The classifier is right on {judge.accuracy:.1%} of "
        f"the test images; unreadable: confidence below {judge.readable:.3f}, as 5% of them are. Distance and jitter: "
        "RMS per pixel, white is 1."
    )
    real = {"model": "real test images", "latent": "", "points": ""} | judge(dataset.test[:points])
    rows: list[dict] = [
        {"model": model, "latent": latent, "points": place} | over_seeds(found)
        for (model, latent, place), found in runs.items()
    ]
    write_table([real | {"jitter (RMS)": ""}, *rows], stem, caption)
    if 2 in latents:
        draw(picture, stem.with_suffix(".png"), drawn, dataset, judge)


def fit_plain(vae: VAE, dataset: Dataset, epochs: int, batch_size: int, lr: float, seed: int) -> None:
    """Train the VAE's two networks as a plain autoencoder, from the weights with which ``fit`` starts."""
    torch.manual_seed(seed)
    if isinstance(vae.decoder, Conditional):
        vae.decoder.start_at(dataset.mean)
    optimiser = torch.optim.Adam(vae.parameters(), lr)
    for _ in range(epochs):
        for batch in torch.randperm(len(dataset.train)).split(batch_size):
            x = dataset.train[batch]
            loss = (vae.decoder(vae.encoder(x).mean).mean - x).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@torch.no_grad()
def scores(vae: VAE, dataset: Dataset, judge: Judge, points: int) -> dict[str, dict[str, float]]:
    """Return the scores of the images decoded from each place."""
    spread = vae.encoder(dataset.train[:]).mean.std(0)
    found = {}
    for place, z in places(vae, dataset, points).items():
        x = vae.decoder(z).mean
        moved = vae.decoder(z + 0.1 * spread * torch.randn_like(z)).mean
        found[place] = judge(x) | {"jitter (RMS)": (moved - x).square().mean().sqrt().item()}
    return found


def places(vae: VAE, dataset: Dataset, points: int) -> dict[str, Tensor]:
    """Return points of latent space by the place that they come from."""
    train, test = vae.encoder(dataset.train[:]).mean, vae.encoder(dataset.test[:points]).mean
    low, high = train.amin(0), train.amax(0)
    a, b = torch.randint(len(test), (2, 10 * points))
    labels = dataset.test.labels
    assert labels is not None
    differ = labels[a] != labels[b]
    return {
        "codes of test images": test,
        "standard normal": vae.prior().sample((points,)),
        "Gaussian fitted to codes": fitted(train).sample((points,)),
        "box around codes": low + (high - low) * torch.rand(points, len(low)),
        "halfway between classes": (test[a] + test[b])[differ][:points] / 2,
    }


@torch.no_grad()
def picture(models: dict[str, dict[int, VAE]], dataset: Dataset, judge: Judge) -> Figure:
    """Draw each plane of codes, images decoded in its gaps and between codes, and draws in more dimensions."""
    labels = dataset.test.labels
    assert labels is not None
    first = torch.stack([(labels == c).nonzero()[0, 0] for c in labels.unique()])
    start, end = dataset.test[first[0::2][: len(first) // 2]], dataset.test[first[1::2]]
    figure = Figure(figsize=(9, 6.9), layout="constrained")
    grid = figure.add_gridspec(len(models), 1)
    for row, (name, trained) in enumerate(models.items()):
        vae, latent = trained[2], max(trained)
        axes = figure.add_subfigure(grid[row]).subplot_mosaic(
            "mgp;msp", width_ratios=[1.3, 1.1, 0.95], height_ratios=[1, 4.4]
        )
        codes = vae.encoder(dataset.train[:2000]).mean
        centres, radii = gaps(codes)
        seen = torch.cat([codes, centres - radii[:, None], centres + radii[:, None]])  # so that no circle is cut
        latent_map(axes["m"], vae, dataset, judge, seen)
        for number, (centre, radius) in enumerate(zip(centres.tolist(), radii.tolist(), strict=True), start=1):
            axes["m"].add_patch(Circle(centre, radius, fill=False, linewidth=1))
            axes["m"].annotate(f"{number}", centre, ha="center", va="center", fontsize=8)
        for path in torch.stack([vae.encoder(start).mean, vae.encoder(end).mean], dim=1):
            axes["m"].plot(path[:, 0].numpy(), path[:, 1].numpy(), color="black", linewidth=0.9, linestyle="--")
        axes["m"].set_title(f"{name[0].upper()}{name[1:]}: codes in 2 dimensions", weight="bold")
        torch.manual_seed(0)
        x = trained[latent].generate(100)
        show(axes["p"], x.reshape(10, 10, *x.shape[1:]), f"{latent} dimensions: draws from N(0, I)")
        show(axes["g"], vae.decoder(centres).mean.unsqueeze(0), f"In the gaps, 1 to {len(centres)}")
        show(axes["s"], vae.interpolate(start, end, steps=11), "Along the dashed lines")
    return figure


def latent_map(axes: Axes, vae: VAE, dataset: Dataset, judge: Judge, seen: Tensor, steps: int = 150) -> None:
    """Draw codes by label over the entropy of each decoded point, on a plane that holds the points ``seen``."""
    assert dataset.train.labels is not None
    labels = dataset.train.labels[:2000].numpy()
    codes = vae.encoder(dataset.train[:2000]).mean.numpy()
    margin = 0.02 * (seen.amax(0) - seen.amin(0))
    low, high = ((seen.amin(0) - margin).numpy(), (seen.amax(0) + margin).numpy())
    right, up = (np.linspace(low[i], high[i], steps, dtype=codes.dtype) for i in range(2))
    plane = torch.from_numpy(np.stack(np.meshgrid(right, up), axis=-1))
    nats = judge.entropy(vae.decoder(plane).mean.flatten(0, 1)).reshape(steps, steps)
    drawn = axes.pcolormesh(right, up, nats, cmap="Greys", vmin=0, vmax=2.0, rasterized=True)
    scale = axes.inset_axes((1.03, 0.1, 0.03, 0.8))
    axes.figure.colorbar(drawn, cax=scale, label="entropy of the classifier, nats", extend="max", ticks=[0, 1, 2])
    for c in np.unique(labels):
        own = codes[labels == c]
        axes.scatter(own[:, 0], own[:, 1], 4, color=CLASSES[c % 10], linewidths=0)
        outline = [withStroke(linewidth=2.5, foreground="white")]
        axes.annotate(f"{c}", np.median(own, 0), ha="center", va="center", size=11, weight="bold", path_effects=outline)
    axes.set(xlabel="z0", ylabel="z1", xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")


def gaps(codes: Tensor, count: int = 8, steps: int = 200) -> tuple[Tensor, Tensor]:
    """Return centres and radii of the largest circles that hold no code, within the 90% ellipse of the codes."""
    low, high = codes.amin(0), codes.amax(0)
    plane = low + (high - low) * torch.cartesian_prod(*[torch.linspace(0, 1, steps)] * 2)
    away = torch.linalg.solve_triangular(torch.linalg.cholesky(codes.T.cov()), (plane - codes.mean(0)).T, upper=False)
    plane = plane[away.square().sum(0) < -2 * math.log(0.1)]
    empty = torch.cdist(plane, codes).amin(1)
    found = []
    for _ in range(count):
        found.append(int(empty.argmax()))
        empty = empty.minimum(torch.cdist(plane, plane[found[-1:]])[:, 0] - empty[found[-1]])
    return plane[found], torch.cdist(plane[found], codes).amin(1)


def fitted(codes: Tensor) -> MultivariateNormal:
    """Return the Gaussian with the mean and the covariance of codes ``(N, latent)``."""
    return MultivariateNormal(codes.mean(0), codes.T.cov())


if __name__ == "__main__":
    command(main)
