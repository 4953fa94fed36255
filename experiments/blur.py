r"""Is a VAE blurry because of squared error, of the prior, or of the posterior's noise?

The script trains VAEs of one decoder with four likelihoods, two learned priors on the codes of one of them, a VQ-VAE
with two priors, and a GAN with the same decoder, on grey images for the same number of epochs. Images of a VAE are
means, E[x | z], clamped to [0, 1]. There are three kinds, and each adds one cause of blur:

- reconstructions, of test images at the guide's mean: the likelihood, and the size of the code that it pays for;
- reconstructions at draws of the guide: the posterior's noise too. An ideal prior, equal to the aggregate posterior,
  has samples like these;
- samples, z from the prior: the prior too.

The measures (see ``sharpness.py``) compare the images with real test images. The first row has the images that are
reconstructed: it shows how far two sets of real images differ. Squared error with scale 1 is an ELBO with a large beta,
where few nats of code pay. The optimal scale is squared error without this cause.

References:
    Simple and Effective VAE Training with Calibrated Decoders (Rybkin, Daniilidis and Levine, 2021).

    Diagnosing and Enhancing VAE Models (Dai and Wipf, 2019): two stages.

    Neural Discrete Representation Learning (van den Oord, Vinyals and Kavukcuoglu, 2017).

The committed table and figures: ``python experiments/blur.py --root DATA``. Repeat the
command to resume. With ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647`` before it, glibc reuses the memory of
large arrays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import gan
import torch
from common import command, draw, show, write_table
from matplotlib.figure import Figure
from sharpness import Quality, images_of, measure
from torch import Tensor

from pyro_vae import VAE, fit, fit_prior, likelihoods, networks, priors
from pyro_vae.data import Dataset, load
from pyro_vae.plots.style import BLUE, GREEN, GREY, ORANGE
from pyro_vae.programs import VQVAE

LR, GAN_LR = 2e-3, 1e-3  # of Adam: the largest of one cycle, but for the GAN
KINDS = {  # of images: colour, mark and place in the figure
    "real": (GREY, "s", 0.0),
    "reconstructions": (GREEN, "D", -0.2),
    "reconstructions at draws": (ORANGE, "^", 0.0),
    "samples": (BLUE, "o", 0.2),
}


@dataclass(frozen=True)
class Row:
    """A model of the table: its title; its likelihood; or the row of its first stage, and its prior."""

    title: str
    likelihood: Callable[..., Any] | None = None
    first: str = ""
    prior: Callable[..., Any] | None = None


LOGISTIC = likelihoods.DiscretizedLogistic
TRANSFORMER = partial(priors.Autoregressive, width=128, layers=2)
ROWS = {
    "real": Row("other real images"),
    "gaussian-1": Row("Gaussian, scale 1 (L2)", partial(likelihoods.Gaussian, scale=1.0)),
    "gaussian-optimal": Row("Gaussian, optimal scale", partial(likelihoods.Gaussian, scale="optimal")),
    "continuous-bernoulli": Row("ContinuousBernoulli", likelihoods.ContinuousBernoulli),
    "logistic": Row("DiscretizedLogistic", LOGISTIC),
    "logistic-flow": Row("DiscretizedLogistic, Flow prior", first="logistic", prior=priors.Flow),
    "logistic-diffusion": Row("DiscretizedLogistic, Diffusion prior", first="logistic", prior=priors.Diffusion),
    "vq": Row("VQ-VAE, independent codes", LOGISTIC),
    "vq-autoregressive": Row("VQ-VAE, Autoregressive prior", first="vq", prior=TRANSFORMER),
    "gan": Row("GAN"),
}
NOTE = (
    "Models without another name are VAEs. Bits/dim (an upper bound) of likelihoods with a mass; densities of grey "
    "levels have none. Rate: KL(q(z | x) || p(z)) in nats, -log p(c) of the VQ-VAE. Sharpness: variance of the "
    "Laplacian, over that of the reference. Precision and recall (k = 3), density and coverage (k = 5), and Frechet "
    "distance are in 64 features of a small classifier trained here on the real training images (test accuracy "
    "{accuracy:.1%}): not the FID or the precision of papers. Unreadable: no class of this classifier has probability "
    "0.9. Memorised: nearer to a training image, in pixels, than 99% of the reference; blurred images are near, too. "
    "Seconds: of training, with the first stage, if any; threads: {threads}."
)


def main(
    data: str = "mnist",
    root: str = "data",
    rows: tuple[str, ...] = tuple(ROWS),
    epochs: int = 6,
    prior_epochs: int = 12,
    num: int = 2000,
    images: int = 500,
    num_particles: int = 100,
    seed: int = 0,
    runs: str = "runs/blur",
    out: str = "experiments/results",
) -> None:
    """Train or resume each row, measure its images, and write blur.csv, .md, .png and blur_images.png to ``out``.

    The table also has the rows that an earlier call with the same numbers has measured.

    Args:
        data: Name of a data set of grey images with labels.
        root: Folder where torchvision finds it.
        rows: Rows to train and measure, by their names in ``ROWS``.
        epochs: Passes over the training images, of each model.
        prior_epochs: Passes of each second stage.
        num: Number of images of each kind, and of the reference; at most half of the test images.
        images: Number of test images for bits/dim and the rate, the first ones.
        num_particles: Draws per image for bits/dim.
        seed: Seed of the weights, the order, the draws and the classifier.
        runs: Folder of the run directories and of what has been measured.
        out: Folder for the results.
    """
    if unknown := [name for name in rows if name not in ROWS]:
        raise ValueError(f"Expected rows among {', '.join(ROWS)}; got {unknown[0]}.")
    dataset = load(data, root)
    num, images = min(num, len(dataset.test) // 2), min(images, len(dataset.test))
    folder = Path(runs) / f"{Path(data).stem}-{epochs}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    latent, channels = (8, (32,)) if prod(dataset.event_shape) < 256 else (32, (32, 64))
    training = Training(dataset, folder, epochs, prior_epochs, seed, latent, channels)
    quality = Quality(dataset, num, channels, seed, folder / "classifier.pt")
    x = dataset.test[num : 2 * num]
    results: dict[str, dict[str, Any]] = {}
    for name, row in ROWS.items():
        path = folder / f"{training.run(name).name}-{num}-{images}-{num_particles}.pt"
        if name in rows and not path.is_file():
            model, seconds = training(name)
            numbers = measure(model, dataset, images, num_particles, seed) | {"seconds": seconds if model else "-"}
            kinds, lines = images_of(model, x, seed, only_samples=bool(row.first)), list[dict[str, Any]]()
            for i, (kind, batch) in enumerate(kinds.items(), start=1):
                values = numbers if i == len(kinds) else dict.fromkeys(numbers, "-")
                line = {"model": row.title, "images": kind, "bits/dim": values["bits/dim"], "rate": values["rate"]}
                lines.append(line | quality(batch) | {"seconds": values["seconds"]})
            torch.save({"lines": lines, "images": torch.stack([batch[:10] for batch in kinds.values()])}, path)
        if path.is_file():
            results[name] = torch.load(path, weights_only=True)
            print(f"{row.title}: {path}")
    table = [line for result in results.values() for line in result["lines"]]
    stem = Path(out) / "blur"
    caption = (
        f"{num:,} images of each kind against the first {num:,} test images of {dataset}, the reference; seed {seed}. "
        f"Images of a VAE are means E[x | z]. Latent {latent}; convolutions of {channels} channels, "
        f"residual in the VQ-VAE; {epochs} epochs, {prior_epochs} of a second stage, Adam in one cycle to {LR:g}, for "
        f"the GAN at {GAN_LR:g}. Bits/dim, with {num_particles} particles, and rate on the first {images:,} test "
        "images. "
    )
    note = NOTE.format(accuracy=quality.classifier.accuracy, threads=torch.get_num_threads())
    write_table(table, stem, caption + note)
    draw(figure, stem.with_suffix(".png"), table)
    draw(pages, stem.with_name("blur_images.png"), table, torch.cat([result["images"] for result in results.values()]))


@dataclass(frozen=True)
class Training:
    """Trains rows, each in a directory of a folder; a row that has one resumes."""

    dataset: Dataset
    folder: Path
    epochs: int
    prior_epochs: int
    seed: int
    latent: int
    channels: tuple[int, ...]

    def run(self, name: str) -> Path:
        """Return the directory of a row."""
        return self.folder / (f"{name}-{self.prior_epochs}" if ROWS[name].prior else name)

    def __call__(self, name: str) -> tuple[Any, float]:
        """Return the trained model of a row and the seconds of its training; None for the real images."""
        row, run = ROWS[name], self.run(name)
        options: dict[str, Any] = {"seed": self.seed, "batch_size": 128, "lr": LR}
        if name == "real":
            return None, 0.0
        where = {"resume": run} if (run / "config.yaml").exists() else {"run_dir": run}
        if row.first:
            program, before = self(row.first)
            options |= {"epochs": self.prior_epochs, "lr_schedule": "one-cycle", **where}
            return program, before + sum(fit_prior(program, self.dataset, row.prior, **options)["seconds"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.build(name)
        if name == "gan":
            options |= {"lr": GAN_LR, "path": run.with_suffix(".state")}
            return model, sum(gan.train(model, self.dataset, self.epochs, **options))
        options |= {"epochs": self.epochs, "lr_schedule": "one-cycle", **where}
        return model, sum(fit(model, self.dataset, **options)["seconds"])

    def build(self, name: str) -> Any:
        """Build the GAN, or the program of a row's first stage."""
        shape, likelihood = self.dataset.event_shape, ROWS[name].likelihood
        if name == "gan":
            return gan.GAN(shape, self.latent, self.channels)
        if likelihood is LOGISTIC:
            likelihood = partial(LOGISTIC, levels=self.dataset.train.levels)
        network: Any = partial(networks.ResNet if name == "vq" else networks.Conv, channels=self.channels)
        options: dict[str, Any] = {"likelihood": likelihood, "network": network}
        if name == "vq":
            grid, codes, dim = ((4, 4), 32, 8) if len(self.channels) == 1 else ((7, 7), 128, 16)
            return VQVAE.build(shape, codes, dim, grid, **options)
        return VAE.build(shape, self.latent, **options)


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw sharpness, coverage and unreadable images, a line for each model and a mark for each kind of images."""
    models = [*dict.fromkeys(row["model"] for row in rows)]
    page = Figure(figsize=(8, 1.6 + 0.36 * len(models)), layout="constrained")
    titles = {"sharpness": "Sharpness (reference: 1)", "coverage": "Coverage", "unreadable": "Unreadable"}
    for axes, (key, title) in zip(page.subplots(1, 3, sharey=True), titles.items(), strict=True):
        for kind, (colour, mark, shift) in KINDS.items():
            points = [(row[key], models.index(row["model"]) + shift) for row in rows if row["images"] == kind]
            axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=5, label=kind) if points else None
        axes.set(title=title, ylim=(len(models) - 0.5, -0.5))
        axes.margins(x=0.1)
        axes.grid(axis="x", color="0.9")
    page.axes[0].axvline(1, color="0.5", linewidth=1, linestyle="--")
    page.axes[0].set_yticks(range(len(models)), models)
    page.legend(*page.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS))
    return page


def pages(rows: Sequence[Mapping[str, Any]], images: Tensor) -> Figure:
    """Draw ten images of each line of the table, ``(lines, 10, *event)``."""
    page = Figure(figsize=(8, 0.42 * len(rows)), layout="constrained")
    for axes, row, x in zip(page.subplots(len(rows), 1, squeeze=False)[:, 0], rows, images, strict=True):
        show(axes, x[None])
        axes.set_anchor("E")
        kind = "" if row["images"] == "real" else f": {row['images']}"
        axes.text(-0.01, 0.5, row["model"] + kind, transform=axes.transAxes, ha="right", va="center", fontsize=8)
    return page


if __name__ == "__main__":
    command(main)
