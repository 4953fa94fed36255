"""Panels of a run's page: the codes, the sliders, the images, and the columns of a table."""

import base64
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from pyro_vae import report
from pyro_vae.data import Dataset
from pyro_vae.data.supports import white
from pyro_vae.page import latents
from pyro_vae.page.charts import scatter
from pyro_vae.page.content import Content
from pyro_vae.page.pictures import sprite, tile_bytes
from pyro_vae.program import Posterior
from pyro_vae.report import Evaluation
from pyro_vae.report.closing import has_method
from pyro_vae.words import images_or_rows

WALK, THUMBS, PICTURES, PREDICTIVE, WORST = 0.45, 0.12, 0.24, 0.13, 0.06  # shares of a run's bytes
STARTS, CHOSEN, DRAWS, SHOWN = 4, 8, 9, 12  # the most images of a panel
CLASSES = 30  # the most classes in a legend
FIGURES = {
    "marginals": "Columns of test data, and of draws of the model",
    "reconstructions": "Columns of test data, and their reconstructions",
}


def add_codes(content: Content, dataset: Dataset, target: Posterior) -> None:
    """Add the latent dimensions and the chart of the codes; for images, also the images of the points."""
    content.codes = codes = latents.codes(target)
    if codes is None:
        return
    x = target.data[0]
    rows = np.flatnonzero(np.isfinite(codes.points).all(1))[: content.points].tolist()
    if not rows:
        return
    classes, number, names = _classes(dataset, rows), len(rows), (codes.names + [""])[:2]
    title = f"Means of q(z | x), the first {number:,} test {images_or_rows(x.shape[1:])}"
    content.scatter = scatter(title, codes.points[rows], names, classes, rows)
    if x.dim() in (3, 4) and number * tile_bytes(x, content.longest) <= content.most * THUMBS:
        columns = math.ceil(math.sqrt(number))
        grid = x.new_zeros(columns * math.ceil(number / columns), *x.shape[1:])
        grid[:number] = x[rows] / white(x, dataset.support)
        content.thumbs = content.add(grid.unflatten(0, (-1, columns)), THUMBS)


def _classes(dataset: Dataset, rows: Sequence[int]) -> list[str] | None:
    """Return the name of the class of each row of the test data; None without labels, or if these are numbers."""
    labels, column = dataset.test.labels, dataset.schema.labels if dataset.schema else None
    levels = column.levels if column else ()
    if labels is None or labels.dim() > 1 or len(labels[rows].unique()) > CLASSES:
        return None
    return [levels[int(code)] if 0 <= code < len(levels) else f"{code:g}" for code in labels[rows].tolist()]


def add_walk(content: Content, dataset: Dataset, target: Posterior) -> None:
    """Add images along each active dimension, starting from an image of each of a few classes."""
    codes, x, labels = content.codes, target.data[0], dataset.test.labels
    if codes is None or not codes.active:
        return
    first: dict[Any, int] = {}
    for i, label in enumerate(range(len(x)) if labels is None or labels.dim() > 1 else labels[: len(x)].tolist()):
        first.setdefault(label, i)
    number = max(1, int(content.most * WALK // (latents.STEPS * tile_bytes(x, content.longest))))
    starts = [*first.values()][: max(1, min(STARTS, number // min(len(codes.active), content.sliders)))]
    names = codes.active[: min(content.sliders, number // len(starts))]
    frames = latents.walk(target[torch.tensor(starts)], names)
    if frames is None:
        return
    kl = dict(zip(codes.names, codes.kl, strict=True)) if codes.kl else {}
    dimensions = [
        {"name": name, "kl": f"{kl[name]:.2f} nats" if kl else "", "sprite": content.add(part.transpose(0, 1))}
        for name, part in zip(names, frames / white(x, dataset.support), strict=True)
        if (part.amax(0) - part.amin(0)).max() > 1 / 255  # a layer above another one changes no mean by itself
    ]
    if dimensions:
        sprite_of_starts = content.add(x[starts].unsqueeze(0) / white(x, dataset.support))
        content.walk = {"dimensions": dimensions, "starts": starts, "sprite": sprite_of_starts}
        content.walk |= {"steps": latents.STEPS, "span": latents.SPAN}


def add_images(content: Content, dataset: Dataset, target: Posterior) -> None:
    """Add the program's pictures, or else draws of the model; and draws of x given the codes of a few images."""
    program, x, pictures = target.program, target.data[0], {}
    if has_method(program, "pictures", target.data):
        pictures = program.pictures(*(column[:16] for column in target.data))
    else:
        with suppress(ValueError):  # data that cannot be drawn
            few = target[: min(64, len(target))]
            samples = few.at(few.simulate(1)).data[0]
            columns = math.ceil(math.sqrt(len(samples)))
            whole = samples[: len(samples) // columns * columns]
            pictures["samples"] = whole.unflatten(0, (-1, columns)), "Draws of x"
    for page, title in pictures.values():
        most = content.most * PICTURES / len(pictures)
        picture = sprite(page / white(x, dataset.support), most, gap=1, longest=content.longest)
        alt = f"{title}: {picture.rows} rows of {picture.columns} images."
        content.pictures.append({"title": title, "sprite": picture, "alt": alt})
    draws = latents.predictive(target[:CHOSEN])
    if draws is not None:
        columns_of_images = torch.stack([x[:CHOSEN], draws.mean(0), draws.std(0), *draws[:DRAWS]], dim=1)
        heads = ["image", "mean", "standard deviation", *(f"draw {i + 1}" for i in range(DRAWS))]
        picture = content.add(columns_of_images / white(x, dataset.support), PREDICTIVE)
        content.predictive = {"sprite": picture, "heads": heads}


def add_worst(content: Content, dataset: Dataset, target: Posterior, evaluation: Evaluation) -> None:
    """Add the images with the largest k-hat and their reconstructions."""
    k, x = torch.tensor(evaluation.images.get("k-hat", [])), target.data[0]
    if 0 < len(k) <= len(x) and has_method(target.program, "reconstruct", target.data):
        rows = k.argsort(descending=True)[:SHOWN].to(x.device)
        both = torch.stack([x[rows], target.program.reconstruct(*(column[rows] for column in target.data))])
        picture = content.add(both / white(x, dataset.support), WORST)
        content.worst = {"sprite": picture, "marks": [(i, f"{k[i]:.2f}") for i in rows.tolist()[: picture.columns]]}


def add_columns(content: Content, dataset: Dataset, seed: int) -> None:
    """Add the figures of a table's columns, as PNG files in ``data:`` addresses."""
    figures = report.figures(content.run.program, dataset, seed)
    for name, title in FIGURES.items():
        if name in figures:
            png = io.BytesIO()
            figures[name].savefig(png, dpi=80)
            content.figures[title] = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
