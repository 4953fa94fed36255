r"""Semi-supervised VAEs with a hundred labels.

Model M2 on binarised images, of which a hundred have labels, for several sets of labels with as many of each class:

- sampled: y of images without a label is drawn from q(y | x), with a score-function gradient, without the term;
- summed: y is summed out;
- term: summed, with the classification term of weight 0.1 times the images over the labels;
- M1+M2: the same, where x is a draw of z from the guide of a VAE that is trained on all images without labels.

The table has the accuracy: the share of test images whose label is the likeliest class of q(y | x). An epoch reads
images with labels ``repeat`` times, and divides the weight of the classification term by ``repeat``: the sum of these
terms stays the same, while the images' share of the bound grows ``repeat`` times. The script skips runs that are in
semi_supervised_runs.csv: you can stop it, or start it twice with different ``--chosen``.

References:
    Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014), Table 1.

    The Semi-Supervised VAE, a tutorial of Pyro: the accuracies beside ours.

The committed table and figure: ``python experiments/semi_supervised.py --root DATA``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import command, write_table
from matplotlib.figure import Figure
from published import append, read
from pyro import poutine
from torch import Tensor

from pyro_vae import VAE, evaluate, fit, likelihoods, networks
from pyro_vae.conditional import Family
from pyro_vae.data import Dataset, labelled, load
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.plots.style import BLUE, GREEN, RED
from pyro_vae.programs import SemiSupervisedVAE

DRAWN: Any = {"enumerate": None}


class Sampled(SemiSupervisedVAE):
    """M2 with a guide that draws y if it is not observed."""

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Draw z and y."""
        with poutine.infer_config(config_fn=lambda site: DRAWN):
            super().guide(x, y)


@dataclass(frozen=True)
class Variant:
    """A program to train, and published accuracies with 100 labels of MNIST; nan if there is none."""

    title: str
    program: type[SemiSupervisedVAE] = SemiSupervisedVAE
    term: bool = True
    codes: bool = False
    tutorial: float = math.nan
    paper: float = math.nan


VARIANTS = {
    "sampled": Variant("M2, y sampled", Sampled, term=False, tutorial=0.2007),
    "summed": Variant("M2, y summed out", term=False, tutorial=0.2254),
    "term": Variant("M2, y summed out, with the classification term", tutorial=0.9319, paper=0.8803),
    "M1+M2": Variant("M1+M2", codes=True, paper=0.9667),
}


def main(
    data: str = "mnist",
    root: str = "data",
    labels: int = 100,
    sets: int = 5,
    chosen: tuple[str, ...] = tuple(VARIANTS),
    latent: int = 50,
    hidden: tuple[int, ...] = (500,),
    epochs: int = 20,
    epochs_of_codes: int = 60,
    batch_size: int = 200,
    lr: float = 1e-3,
    repeat: int = 10,
    held_out: bool = False,
    out: str = "experiments/results",
) -> None:
    """Train the variants that the table lacks, and write semi_supervised.csv, .md and .png to ``out``.

    Args:
        data: Name of a data set with labels.
        root: Folder where torchvision finds it.
        labels: Number of training images with a label.
        sets: Number of sets of labels.
        chosen: Variants, by their names in ``VARIANTS``.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer.
        epochs: Passes over the training images.
        epochs_of_codes: Epochs of M1, and of M2 on its codes.
        batch_size: Images in a minibatch.
        lr: Adam's largest learning rate, of one cycle.
        repeat: Number of times that an epoch reads an image with a label.
        held_out: Whether to measure on images held out from training, to try a recipe.
        out: Folder for the results.
    """
    if unknown := [name for name in chosen if name not in VARIANTS]:
        raise ValueError(f"Expected variants among {', '.join(VARIANTS)}; got {unknown[0]}.")
    recipe = {"data": data, "labels": labels, "images": "held out" if held_out else "test", "latent": latent}
    recipe |= {"hidden": "-".join(map(str, hidden)), "batch_size": batch_size, "lr": lr, "repeat": repeat}
    lengths = {name: epochs_of_codes if VARIANTS[name].codes else epochs for name in chosen}
    stem = Path(out) / "semi_supervised"
    stem.parent.mkdir(parents=True, exist_ok=True)
    runs, whole = stem.with_name("semi_supervised_runs.csv"), load(data, root, binarize="dynamic")
    for number, name in product(range(sets), chosen):
        line = {"variant": name, "set": number, "epochs": lengths[name]} | recipe
        if any(all(row[key] == str(value) for key, value in line.items()) for row in read(runs)):
            continue
        start = time.process_time()
        program, codes = one(VARIANTS[name], whole, number, lengths[name], recipe | {"hidden": hidden})
        minutes = round((time.process_time() - start) / 60, 1)
        part = codes.valid if held_out else codes.test
        ((accuracy, _),) = evaluate.measures(program, part, len(part)).values()
        append(runs, [line | {"accuracy": round(accuracy, 4), "CPU minutes": minutes}])
        print(f"{VARIANTS[name].title}, labels {number}: {accuracy:.4f} of {len(part):,} {recipe['images']} images")
    if not held_out:
        measured = [row for row in read(runs) if row["images"] == "test"]
        write(stem, [row for row in measured if (row["data"], row["labels"]) == (data, str(labels))])


def one(
    variant: Variant, whole: Dataset, number: int, epochs: int, recipe: Mapping[str, Any]
) -> tuple[SemiSupervisedVAE, Dataset]:
    """Train a variant with one set of labels; return it and its data."""
    labels, repeat = recipe["labels"], recipe["repeat"]
    network = partial(networks.MLP, hidden=recipe["hidden"], activation="Softplus")
    how: dict[str, Any] = {"batch_size": recipe["batch_size"], "lr": recipe["lr"], "lr_schedule": "one-cycle"}
    dataset: Dataset = whole
    likelihood: Callable[[Sequence[int]], Family] = likelihoods.Bernoulli
    if variant.codes:
        torch.manual_seed(0)
        first = VAE.build(whole.event_shape, recipe["latent"], likelihood=likelihood, network=network)
        fit(first, whole, epochs=epochs, seed=0, **how)
        dataset, likelihood = evaluate.encode(first, whole), likelihoods.Gaussian
    shown = labelled(dataset, labels, number)
    rows = (shown.train.columns["y"] >= 0).nonzero().squeeze(-1)
    size, again = len(shown.train), torch.cat([torch.arange(len(shown.train)), rows.repeat(repeat - 1)])
    torch.manual_seed(number)
    program = variant.program.build(
        shown.event_shape,
        recipe["latent"],
        classes=10,
        weight=0.1 * size / (labels * repeat) if variant.term else 0.0,
        likelihood=likelihood,
        network=network,
    )
    fit(program, replace(shown, train=shown.train.part(again)), epochs=epochs, seed=number, **how)
    return program, shown


def write(stem: Path, runs: Sequence[Mapping[str, str]]) -> None:
    """Write the table and the figure of all runs that were evaluated on test images."""
    found = {name: [float(run["accuracy"]) for run in runs if run["variant"] == name] for name in VARIANTS}
    rows: list[dict[str, Any]] = []
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, accuracies in found.items():
        if not accuracies:
            continue
        variant = VARIANTS[name]
        mean, error = mean_and_error(torch.tensor(accuracies))
        rows.append({"variant": variant.title, "sets": len(accuracies), "accuracy": f"{mean:.4f} ± {error:.4f}"})
        others = {"tutorial": variant.tutorial, "paper": variant.paper}
        rows[-1] |= {name: f"{value:.4f}" if value == value else "" for name, value in others.items()}
        axes.plot([len(rows)] * len(accuracies), accuracies, "o", color=BLUE, alpha=0.6)
        for label, value, colour in (("tutorial", variant.tutorial, RED), ("paper", variant.paper, GREEN)):
            if value == value:
                axes.plot([len(rows)], [value], "_", color=colour, markersize=24)
                axes.annotate(label, (len(rows), value), (16, -3), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xticks(range(1, len(rows) + 1), [name for name, accuracies in found.items() if accuracies])
    axes.set(ylabel="accuracy of q(y | x), test images", ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    (data, labels) = {(run["data"], run["labels"]) for run in runs}.pop()
    epochs = ", ".join(
        f"{name} {'/'.join(sorted({run['epochs'] for run in runs if run['variant'] == name}))}" for name in found
    )
    caption = (
        f"{data}, binarised dynamically, {labels} labels, as many of each class; test images binarised once. Accuracy "
        "of the likeliest class of q(y | x): mean ± standard error over label sets. Tutorial: Pyro's, of 100 labels "
        "and grey pixels; paper: Kingma et al. (2014), of other architectures, quoted at second hand. "
        f"Epochs: {epochs}; other settings, and CPU minutes: `semi_supervised_runs.csv`."
        " In the figure a dot is a set of labels."
    )
    write_table(rows, stem, caption)
    figure.savefig(stem.with_suffix(".png"), dpi=150)
    print(f"\n{stem.with_suffix('.md').read_text()}")


if __name__ == "__main__":
    command(main)
