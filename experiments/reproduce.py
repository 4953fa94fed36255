r"""Published numbers, one command each: train a row of a paper's table, evaluate it as the paper does, write it down.

All is of MNIST, binarised dynamically: 60,000 images to train on, drawn anew at every reading; the 10,000 test images
drawn once for all, with the seed of :func:`pyro_vae.data.load`. Of each row:

- -log p(x): the importance weighted bound with 5,000 draws on all test images, too large on average; nats per image;
- -ELBO at beta = 1, and active units: latent dimensions u with Var_x(E_q[u | x]) > 0.01;
- minutes: of training alone, by the clock;
- AIS, of two rows and 100 test images: what annealed importance sampling says of -log p(x), and what the bound with
  5,000 draws says of the same images, so that one sees how far that is off.

The recipe (``papers.py``) was chosen with ``--held_out true``: it trains on 50,000 of the training images and evaluates
on the other 10,000, never on test images. A row that was stopped goes on where it was when the command is given again.

References:
    Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016).

    VAE with a VampPrior (Tomczak and Welling, 2018).

    Exemplar VAE: Linking Generative Models, Nearest Neighbor Retrieval, and Data Augmentation (Norouzi, Fleet and
    Norouzi, 2020).

    On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov and Grosse, 2017).

The committed table and figure: ``python experiments/reproduce.py ROW --root DATA``, for each ROW of ``--list``.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure
from papers import RECIPE, ROWS, Row

from pyro_vae import VAE, ais, evaluate, fit
from pyro_vae.data import Dataset, load

COLUMNS = ("row", "source", "published", "ours", "stderr", "particles", "images", "minutes", "seed", "command")
POINTS = 20  # of the curve of a row
FEW = 200  # draws per image there
WITH_AIS = ("vae", "iwae-50")


def main(
    row: str,
    root: str = "data",
    runs: str = "runs/published",
    seed: int = 0,
    num_particles: int = 5000,
    images: int = 10_000,
    held_out: bool = False,
    epochs: int | None = None,
    temperatures: int = 1000,
    data: str = "mnist",
    out: str = "experiments/results",
) -> None:
    """Train a row, or go on with it, evaluate it, and write it to published.csv, .md and .png in ``out``.

    Args:
        row: Which one, of those that ``--list`` shows.
        root: Folder where torchvision finds MNIST.
        runs: Folder of the run directories.
        seed: Of the weights, the order and the draws.
        num_particles: Draws per image for -log p(x).
        images: How many test images, the first ones.
        held_out: Whether to try a recipe: train on 50,000 images, evaluate on the other 10,000 training images, and
            write nothing but the run.
        epochs: Passes over the training images, if not those of the row.
        temperatures: Of AIS, for the rows that have it.
        data: Name of another data set, to try the program.
        out: Folder for the results.
    """
    if row not in ROWS:
        raise ValueError(f"Expected a row among {', '.join(ROWS)}; got {row!r}.")
    wanted, words = ROWS[row], f"python experiments/reproduce.py {row} --seed {seed}"
    dataset = load(data, root, binarize="dynamic", valid=None if held_out else 0)
    vae = wanted.build(dataset.event_shape, seed)
    run = Path(runs) / f"{row}-{seed}{'-held-out' if held_out else ''}"
    where: dict[str, Any] = {"resume": run} if (run / "config.yaml").exists() else {"run_dir": run}
    length = epochs or wanted.epochs
    curve = Curve(run / "curve.csv", vae, dataset, length, images)
    history = fit(vae, dataset, wanted.objective(), length, seed=seed, on_epoch=curve, **RECIPE, **where)
    minutes = sum(history["seconds"]) / 60
    part = dataset.valid if held_out else dataset.test
    print(
        f"{wanted.title}: {minutes:.1f} minutes; {num_particles:,} draws for each of {min(images, len(part)):,} images"
    )
    values = evaluate.per_image(vae, part, num_particles, images, seed, progress=True)
    ours, error = values.nll.mean().item(), values.nll.std().item() / math.sqrt(len(values.nll))
    if held_out:
        print(f"-log p(x) of images held out: {ours:.2f} ± {error:.2f} nats; -ELBO {-values.elbo.mean():.2f}")
        return
    found = {"row": row, "source": wanted.source, "published": wanted.published, "ours": round(ours, 3)}
    found |= {"stderr": round(error, 3), "particles": num_particles, "images": len(values.nll)}
    found |= {"minutes": round(minutes, 1), "seed": seed, "command": words}
    also = {"row": row, "seed": seed, "-ELBO": round(-values.elbo.mean().item(), 3)}
    also |= {"active": evaluate.active_units(vae, part[:images], seed=seed), "latent": wanted.latent}
    also |= {"epochs": len(history["train"]), "threads": torch.get_num_threads()}
    also |= annealed(vae, dataset, values.nll, temperatures, seed) if row in WITH_AIS else {"AIS": "", "bound on the same": ""}
    stem = Path(out) / "published"
    stem.parent.mkdir(parents=True, exist_ok=True)
    append(stem.with_suffix(".csv"), [found])
    append(stem.with_name("published_more.csv"), [also])
    append(stem.with_name("published_curves.csv"), [{"row": row, "seed": seed} | point for point in read(curve.path)])
    draw(stem)
    print(f"-log p(x): {ours:.2f} ± {error:.2f} nats, published {wanted.published:.2f}; see {stem}.md")


class Curve:
    """Evaluates a VAE on test images as training goes on, at some epochs of it, and keeps a line of each in the run.

    It is called by ``fit``, with the history, and looks at nothing that decides how training goes on.

    Arguments:
        path: A .csv file: epoch, minutes of training, -log p(x).
        vae: What is trained.
        dataset: Its test images are looked at; where images are held out, they in their place.
        epochs: Of the whole training.
        images: How many.
    """

    def __init__(self, path: Path, vae: VAE, dataset: Dataset, epochs: int, images: int) -> None:
        self.path, self.vae, self.epochs, self.images = path, vae, epochs, images
        self.part = dataset.valid if len(dataset.valid) else dataset.test

    def __call__(self, history: dict[str, list[float]]) -> None:
        """Add a line, where one is due."""
        epoch = len(history["train"])
        if epoch * POINTS // self.epochs == (epoch - 1) * POINTS // self.epochs:
            return
        nll = evaluate.nll(self.vae, self.part[: self.images], FEW, seed=0).mean().item()
        points: list[dict[str, Any]] = [point for point in read(self.path) if int(point["epoch"]) < epoch]
        minutes = round(sum(history["seconds"]) / 60, 2)
        points.append({"epoch": epoch, "minutes": minutes, f"-log p(x), {FEW} draws": round(nll, 3)})
        self.path.unlink(missing_ok=True)
        append(self.path, points)


def annealed(vae: VAE, dataset: Dataset, nll: torch.Tensor, temperatures: int, seed: int) -> dict[str, float]:
    """Return what AIS says of -log p(x) of the first 100 test images, and what importance sampling said of them."""
    first = nll[:100]
    found = -ais.ais(vae, dataset.test[: len(first)], chains=16, temperatures=temperatures, seed=seed, progress=True)
    return {"AIS": round(found.mean().item(), 3), "bound on the same": round(first.mean().item(), 3)}


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines to a table, which is begun where there is none."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0]] if lines else [])
        if new:
            writer.writeheader()
        writer.writerows(lines)


def draw(stem: Path) -> None:
    """Write published.md and published.png anew, of the last line of each row."""
    found = {line["row"]: line for line in read(stem.with_suffix(".csv"))}
    more = {line["row"]: line for line in read(stem.with_name("published_more.csv"))}
    lines = [
        "| row | published | ours, nats | minutes | -ELBO | active units (paper's) | AIS, 100 images (bound there) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        if name in found:
            lines.append(written(name, row, found[name], more[name]))
    images, draws = (
        " to ".join(f"{number:,}" for number in sorted({int(line[key]) for line in found.values()}))
        for key in ("images", "particles")
    )
    caption = (
        f"MNIST, binarised dynamically, 60,000 training images; -log p(x) of {images} test images (drawn once, seed of "
        f"`data.load`) by the importance weighted bound with {draws} draws, ± its standard error over the images; the "
        f"ELBO at beta = 1 with {evaluate.DRAWS} draws; minutes of training on one CPU with two cores. Sources: see "
        "[published.csv](published.csv). `python experiments/reproduce.py ROW` makes a line."
    )
    stem.with_suffix(".md").write_text("\n".join([caption, "", *lines, ""]))
    picture(found, read(stem.with_name("published_curves.csv"))).savefig(stem.with_suffix(".png"), dpi=150)


def written(name: str, row: Row, found: dict[str, str], more: dict[str, str]) -> str:
    """Return a line of published.md."""
    paper = f" ({row.active})" if row.active else ""
    ours = f"{float(found['ours']):.2f} ± {float(found['stderr']):.2f}"
    annealed = f"{float(more['AIS']):.2f} ({float(more['bound on the same']):.2f})" if more["AIS"] else ""
    cells = [f"{row.title} (`{name}`)", f"{row.published:.2f}", ours, f"{float(found['minutes']):.0f}"]
    cells += [f"{float(more['-ELBO']):.2f}", f"{more['active']} of {more['latent']}{paper}", annealed]
    return "| " + " | ".join(cells) + " |"


def picture(found: dict[str, dict[str, str]], points: Sequence[dict[str, str]]) -> Figure:
    """Draw -log p(x) of test images against minutes of training, the published numbers as lines."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    groups = [[name for name in found if name.startswith("gated") is gated] for gated in (False, True)]
    shown = [group for group in groups if group]
    for axes, names in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        last = []
        for i, name in enumerate(names):
            seed, colour = found[name]["seed"], f"C{i}"
            curve = [point for point in points if (point["row"], point["seed"]) == (name, seed)]
            curve = [*{point["epoch"]: point for point in curve}.values()]
            minutes = [float(point["minutes"]) for point in curve]
            nll = [float(point[f"-log p(x), {FEW} draws"]) for point in curve]
            axes.plot(minutes, nll, color=colour, linewidth=1.5, label=ROWS[name].title)
            axes.plot(float(found[name]["minutes"]), float(found[name]["ours"]), "o", color=colour)
            axes.axhline(ROWS[name].published, color=colour, linestyle="--", linewidth=1)
            last += [float(found[name]["ours"]), ROWS[name].published]
        axes.set(xlabel="minutes of training", ylabel=f"-log p(x), test, nats ({FEW} draws; dots 5,000)")
        low, high = min(last, default=0.0), max(last, default=1.0)
        axes.set_ylim(low - 0.4, high + 6)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def listed() -> str:
    """Say which rows there are."""
    width = max(map(len, ROWS))
    heads = f"{'row':{width}}  {'published':>9}  {'paper':>6}  {'epochs':>6}  model"
    lines = (
        f"{name:{width}}  {row.published:9.2f}  {'-' if math.isnan(row.paper) else f'{row.paper:.2f}':>6}  "
        f"{row.epochs:6}  {row.title}"
        for name, row in ROWS.items()
    )
    return "\n".join([heads, *lines, "\n-log p(x) in nats per test image: dynamic MNIST, 5,000 draws, 10,000 images"])


if __name__ == "__main__":
    parser = ArgumentParser(description="Train a row of a published table, evaluate it, and write it down.")
    parser.add_argument("row", nargs="?", type=str, help="Which row, of those that --list shows.")
    parser.add_argument("--list", action="store_true", help="Show the rows.")
    parser.add_function_arguments(main, skip={"row"})
    given = parser.parse_args().as_dict()
    if given.pop("list") or not given["row"]:
        print(listed())
        sys.exit()
    try:
        main(**given)
    except KeyboardInterrupt as stopped:
        sys.exit(f"\nStopped. {stopped} Or give the same command again.")
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
