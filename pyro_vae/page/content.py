"""The content of one run on the page: numbers, latent dimensions and images."""

import base64
import io
import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import constraints

from pyro_vae import evaluate, report
from pyro_vae.page import latents
from pyro_vae.page.charts import Chart, bars, scatter
from pyro_vae.page.pictures import Sprite, sprite, tile_bytes
from pyro_vae.page.runs import Run
from pyro_vae.program import Posterior, posterior_of, reference_tensor
from pyro_vae.report import Evaluation
from pyro_vae.report.closing import has_method
from pyro_vae.seeds import eval_mode
from pyro_vae.words import cells, images_or_rows

WALK, THUMBS, PICTURES, PREDICTIVE, WORST = 0.45, 0.12, 0.24, 0.13, 0.06  # shares of a run's bytes
DIMENSIONS, BASES, CHOSEN, DRAWS, SHOWN = 20, 4, 8, 9, 12  # the most of each
POINTS = 3000  # codes in the charts of all runs


@dataclass(eq=False)
class Content:
    """The parts of a run's page; a part that does not apply is empty."""

    run: Run
    headline: list[tuple[str, str]] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)
    notes: str = ""
    splits: Chart | None = None
    sections: dict[str, list[Any]] = field(default_factory=dict)
    diagnosis: list[str] = field(default_factory=list)
    codes: latents.Codes | None = None
    scatter: Chart | None = None
    thumbs: Sprite | None = None
    walk: dict[str, Any] | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)
    worst: dict[str, Any] | None = None
    predictive: dict[str, Any] | None = None
    figures: dict[str, str] = field(default_factory=dict)
    white: float = 0.0  # the value of x that is white; 0 if x is no image
    longest: int = 64
    points: int = 1000
    sprites: dict[str, Sprite] = field(default_factory=dict)

    def add(self, x: Tensor, most: float) -> Sprite:
        """Return images ``(rows, columns, *event)`` as a sprite that tiles of the page show."""
        new = sprite(x, most, longest=self.longest)
        return self.sprites.setdefault(new.name, new)


def content(run: Run, evaluation: Evaluation | None, seed: int, most: float, runs: int) -> Content:
    """Return the content of a run, whose images have at most ``most`` bytes; the page has ``runs`` runs."""
    result = Content(run, longest=64 if runs <= 4 else 32, points=max(50, POINTS // runs))
    if evaluation is not None:
        _numbers(result, evaluation)
    if run.dataset is None:
        return result
    try:
        with eval_mode(run.program, reference_tensor(run.program).device, seed), torch.no_grad():
            test = run.dataset.test.to(reference_tensor(run.program).device)
            target = posterior_of(run.program, evaluate.rows_of(run.program, test, slice(0, 1000)))
            if target.data[0].dim() in (3, 4):
                _images(result, target, evaluation, most)
            _latents(result, target, most)
    except ValueError as error:
        run.notes.append(f"No images and no latent dimensions: {error}")
    else:
        if not result.white:
            result.figures = column_figures(run, seed)
    return result


def _numbers(result: Content, evaluation: Evaluation) -> None:
    """Add the table of the splits, the sections and the diagnosis of an evaluation."""
    lines = evaluation.table.splitlines()
    result.table = cells(lines)
    result.notes = " ".join(lines[len(result.table) :])
    (_, *heads), *rows = result.table
    values = {row[0]: dict(zip(heads, row[1:], strict=True)) for row in rows}
    pairs = {name: [*map(float, row["-log p(x)"].split(" ± "))] for name, row in values.items()}
    result.splits = bars("-log p(x) by split", [(name, *pair) for name, pair in pairs.items()])
    for head, texts in evaluation.sections.items():
        result.sections[head] = [cells(text.splitlines()) if "\n" in text else text for text in texts]
    result.diagnosis = evaluation.diagnosis
    numbers = evaluation.numbers
    result.headline = [(f"{head}, test", values["test"][head]) for head in ("ELBO", "-log p(x)", "bits/dim") if head in heads]
    if "active" in numbers:
        result.headline.append(("active dimensions", f"{numbers['active']:.0f} of {numbers['latent']:.0f}"))
    if "k > 0.7" in numbers:
        result.headline.append((f"{evaluation.called} with k-hat above 0.7", f"{numbers['k > 0.7']:.1%}"))
    if "codes alive" in numbers:
        result.headline.append(("codes in use", f"{numbers['codes alive']:.0f} of {numbers['codes']:.0f}"))


def _latents(result: Content, target: Posterior, most: float) -> None:
    """Add the latent dimensions and the chart of the codes; for images, also the images of the points."""
    result.codes = codes = latents.codes(target)
    if codes is None:
        return
    points = min(len(target), result.points)
    labels = result.run.dataset.test.labels if result.run.dataset else None
    classes = None if labels is None or labels.dim() != 1 else [f"{label:g}" for label in labels[:points].tolist()]
    if classes and len({*classes}) > 30:  # numbers rather than classes
        classes = None
    names = (codes.names + [""])[:2]
    title = f"Means of q(z | x), the first {points:,} test {images_or_rows(target.data[0].shape[1:])}"
    result.scatter = scatter(title, codes.points[:points], names, classes)
    if result.white:
        x = target.data[0][:points] / result.white
        if len(x) * tile_bytes(x, result.longest) <= most * THUMBS:
            columns = math.ceil(math.sqrt(len(x)))
            blank = x.new_zeros(columns * math.ceil(len(x) / columns) - len(x), *x.shape[1:])
            result.thumbs = result.add(torch.cat([x, blank]).unflatten(0, (-1, columns)), most * THUMBS)
        _walk(result, target, codes, most * WALK)


def _walk(result: Content, target: Posterior, codes: latents.Codes, most: float) -> None:
    """Add images along each active dimension, for a few images to start from."""
    labels, x = result.run.dataset.test.labels if result.run.dataset else None, target.data[0]
    first = range(len(x)) if labels is None else dict(zip(labels.tolist()[: len(x)][::-1], range(len(x) - 1, -1, -1))).values()
    number = max(1, int(most // (latents.STEPS * tile_bytes(x, result.longest))))
    bases = max(1, min(BASES, number // max(1, min(len(codes.active), DIMENSIONS))))
    rows = sorted(first)[:bases]
    chosen = codes.active[: min(DIMENSIONS, number // bases)]
    frames = latents.walk(target[torch.tensor(rows)], chosen) if chosen else None
    if frames is None:
        return
    kl = dict(zip(codes.names, codes.kl or [], strict=False))
    dimensions = [
        {"name": name, "kl": f"{kl[name]:.2f} nats" if name in kl else "", "sprite": result.add(part.transpose(0, 1), most)}
        for name, part in zip(chosen, frames / result.white, strict=True)
        if (part.amax(0) - part.amin(0)).max() > 1 / 255  # a layer above another one changes no mean by itself
    ]
    if dimensions:
        bases = result.add(x[rows][None] / result.white, most)
        result.walk = {"dimensions": dimensions, "bases": bases, "rows": rows, "steps": latents.STEPS, "span": latents.SPAN}


def _images(result: Content, target: Posterior, evaluation: Evaluation | None, most: float) -> None:
    """Add the program's pictures, the images with the largest k-hat, and draws for a few images."""
    program, (x, *_) = target.program, target.data
    counts = result.run.dataset and result.run.dataset.support is constraints.nonnegative_integer
    result.white = white = max(x.nan_to_num(0.0).max().item(), 1.0) if counts else 1.0
    drawn = latents.predictive(target[:CHOSEN])
    if has_method(program, "pictures", target.data):
        pictures = program.pictures(*(column[:16] for column in target.data))
    else:
        pictures = {}
        with suppress(ValueError):  # data that cannot be drawn
            samples = target[:64].at(target[:64].simulate(1)).data[0]
            pictures["samples"] = samples[: len(samples) // 8 * 8].unflatten(0, (-1, 8)), "Draws of the model"
    for name, (page, title) in pictures.items():
        picture = sprite(page / white, most * PICTURES / len(pictures), 1, result.longest)
        alt = f"{picture.rows} rows of {picture.columns} images. {title}."
        result.pictures.append({"name": name, "title": title, "sprite": picture, "alt": alt})
    if drawn is not None:
        few = x[: len(drawn[0])]
        columns = [few, drawn.mean(0), drawn.std(0), *drawn[:DRAWS]]
        tiles = torch.stack([column.to(few) / white for column in columns], 1)
        heads = ["image", "mean", "standard deviation", *(f"draw {i + 1}" for i in range(DRAWS))]
        result.predictive = {"sprite": result.add(tiles, most * PREDICTIVE), "heads": heads, "num": len(drawn)}
    k = torch.tensor(evaluation.images.get("k-hat", []) if evaluation else [])
    if 0 < len(k) <= len(x) and has_method(program, "reconstruct", target.data):
        rows = k.argsort(descending=True)[:SHOWN]
        pair = torch.stack([x[rows], program.reconstruct(*(column[rows] for column in target.data))])
        picture = result.add(pair / white, most * WORST)
        marks = [(int(i), f"{k[i]:.2f}") for i in rows[: picture.columns]]
        result.worst = {"sprite": picture, "marks": marks}


def column_figures(run: Run, seed: int) -> dict[str, str]:
    """Return figures of a table's columns by title, as PNG files in ``data:`` addresses."""
    shown = {"marginals": "Columns of test data and of draws of the model", "reconstructions": "Columns, reconstructed"}
    figures = report.figures(run.program, run.dataset, seed)
    return {title: _address(figures[name]) for name, title in shown.items() if name in figures}


def _address(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, dpi=80)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
