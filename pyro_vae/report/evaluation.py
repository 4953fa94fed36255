"""A full evaluation: how good the model is, how good the guide, and what codes say; with a diagnosis."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyro_vae import checkpoint, evaluate
from pyro_vae.data import Dataset
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.program import point_of, posterior_of
from pyro_vae.report.diagnosis import diagnosis
from pyro_vae.report.findings import Findings
from pyro_vae.report.table import written
from pyro_vae.seeds import at_test

__all__ = ["Evaluation", "evaluation"]

WIDTH = 110


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found of a program. Printed, it is a table with sections and a diagnosis.

    Attributes:
        table: ELBO, its two terms and -log p(x), of each split.
        sections: Lines under headings, of the test images.
        numbers: By name, all that :func:`pyro_vae.report.diagnosis` speaks of; nats, shares and counts.
        images: Columns by name, a number for each test image; shorter where an image of the rest was not asked.
        figures: By name.
    """

    table: str
    sections: dict[str, list[str]]
    numbers: dict[str, float]
    images: dict[str, list[float]]
    figures: dict[str, Figure] = field(repr=False)

    @property
    def diagnosis(self) -> list[str]:
        """What it means, in words."""
        return diagnosis(self.numbers)

    def __str__(self) -> str:
        parts = [self.table]
        for head, lines in {**self.sections, "Diagnosis": [f"- {line}" for line in self.diagnosis]}.items():
            indented = (
                textwrap.fill(line, WIDTH, subsequent_indent="  ") if len(line) > WIDTH else line for line in lines
            )
            parts.append("\n".join([head, *indented]))
        return "\n\n".join(parts)

    def save(self, folder: str | Path) -> None:
        """Write ``evaluation.txt``, ``evaluation.json`` (numbers) and ``evaluation.csv`` (a line an image)."""
        checkpoint.write(checkpoint.inside(folder, "evaluation.txt"), f"{self}\n")
        found = {key: value if math.isfinite(value) else str(value) for key, value in self.numbers.items()}
        text = json.dumps(found | {"diagnosis": self.diagnosis}, indent=2)
        checkpoint.write(checkpoint.inside(folder, "evaluation.json"), f"{text}\n")
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(["image", *self.images])
        for i in range(len(self.images["ELBO"])):
            writer.writerow([i, *(column[i] if i < len(column) else "" for column in self.images.values())])
        checkpoint.write(checkpoint.inside(folder, "evaluation.csv"), table.getvalue())


def evaluation(
    program: Any,
    dataset: Dataset,
    num_particles: int = 1000,
    images: int = 1000,
    chosen: int = 50,
    temperatures: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a program: its table on each split, and on test images all that is to ask of model, guide and codes.

    What costs much per image is of the first ``chosen`` ones: annealed importance sampling, bidirectional Monte Carlo
    on as many simulated ones, and guides refined for each.

    Arguments:
        program: A VAE, or any program.
        dataset: What to evaluate it on.
        num_particles: Draws per datum for -log p(x); of fewer than 25 there is no k-hat.
        images: How many images of each split, the first ones.
        chosen: How many of them for what costs much; 0 for none.
        temperatures: Of annealed importance sampling, 16 chains.
        seed: Seed of the draws; torch's own state is left as it was.
        progress: Whether to show progress bars.

    Raises:
        ValueError: If there are no particles, images or temperatures, or ``chosen`` is negative.

    Example:
        >>> from pyro_vae import VAE, data
        >>> digits = data.load("digits")
        >>> vae = VAE.build(digits.event_shape, latent=2)
        >>> found = evaluation(vae, digits, num_particles=50, images=50, chosen=0, progress=False)
        >>> sorted(found.figures)
        ['bounds', 'calibration', 'dimensions', 'weights', 'worst']
    """
    for name, number, least in (
        ("num_particles", num_particles, 1),
        ("images", images, 1),
        ("chosen", chosen, 0),
        ("temperatures", temperatures, 1),
    ):
        if number < least:
            raise ValueError(f"Expected {name} of at least {least}; got {number}.")
    point = point_of(program)
    values = {
        name: evaluate.per_image(program, part.to(point.device), num_particles, images, seed, progress)
        for name, part in dataset.splits.items()
        if name != "test"
    }
    with at_test(program, point.device, seed):
        whole = posterior_of(program, evaluate.rows_of(program, dataset.test.to(point.device), slice(0, images)))
        reconstruction, kl = evaluate.split(program, whole, evaluate.DRAWS)
        log_w = evaluate.log_weights(program, whole, num_particles, progress=progress)
        values["test"] = evaluate.Values(reconstruction - kl, reconstruction, kl, -evaluate.iwae(log_w))
        found = Findings(whole, log_w, values["test"], seed)
        found.bounds(chosen, temperatures, progress)
        found.guide(chosen, progress)
        if len(whole) > 1:  # nothing changes from an image to itself
            found.codes()
    test, train = values["test"].nll, values["train"].nll
    found.numbers |= {
        "test -log p(x)": test.mean().item(),
        "train -log p(x)": train.mean().item(),
        "test - train, error": math.hypot(mean_and_error(test)[1], mean_and_error(train)[1]),
    }
    table = written(program, dataset, values, num_particles)
    return Evaluation(table, found.sections, found.numbers, found.images, found.figures)
