"""A full evaluation: how good the model is, how good the guide, and what codes say; with a diagnosis."""

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import checkpoint, evaluate
from pyro_vae.data import Dataset
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.objectives.base import check_choice
from pyro_vae.program import point_of, posterior_of
from pyro_vae.report import findings, proposals
from pyro_vae.report.closing import COLUMNS, write_table
from pyro_vae.report.diagnosis import diagnosis, trusts
from pyro_vae.seeds import at_test
from pyro_vae.words import pair


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An evaluation of a program. Printed, it is a table with sections and a diagnosis.

    Attributes:
        table: ELBO, its two terms and -log p(x), of each split.
        sections: Lines under headings, of the test images; a table is one of them, and is not wrapped.
        numbers: By name, all that :func:`pyro_vae.report.diagnosis` speaks of; nats, shares and counts.
        images: Columns by name, a number for each test image; shorter where only the first images were asked.
        figures: By name.
        called: What the data are called: images, or rows.
    """

    table: str
    sections: dict[str, list[str]]
    numbers: dict[str, float]
    images: dict[str, list[float]]
    figures: dict[str, Figure] = field(repr=False)
    called: str = "images"

    @property
    def diagnosis(self) -> list[str]:
        """What it means, in words."""
        return diagnosis(self.numbers, self.called)

    def __str__(self) -> str:
        parts = [self.table]
        for head, lines in {**self.sections, "Diagnosis": [f"- {line}" for line in self.diagnosis]}.items():
            shown = [line if "\n" in line else textwrap.fill(line, 110, subsequent_indent="  ") for line in lines]
            parts.append("\n".join([head, *shown]))
        return "\n\n".join(parts)

    def save(self, folder: str | Path, more: Mapping[str, bytes] | None = None) -> None:
        """Write ``evaluation.txt``, ``evaluation.json`` (numbers), ``evaluation.csv`` (a line an image), and more.

        What can be written is, and OSError is raised for the rest.
        """
        numbers = {name: value if math.isfinite(value) else str(value) for name, value in self.numbers.items()}
        rows = ([i, *row] for i, row in enumerate(zip_longest(*self.images.values(), fillvalue="")))
        texts = {
            "evaluation.txt": f"{self}\n",
            "evaluation.json": json.dumps(numbers | {"diagnosis": self.diagnosis}, indent=2) + "\n",
            "evaluation.csv": checkpoint.table([[self.called[:-1], *self.images], *rows]),
        }
        checkpoint.write_all(Path(folder), texts | dict(more or {}))


def evaluation(
    program: Any,
    dataset: Dataset,
    num_particles: int = 1000,
    images: int = 1000,
    chosen: int | None = None,
    temperatures: int = 500,
    seed: int = 0,
    progress: bool = True,
    proposal: evaluate.Proposal | Literal["both"] = "both",
) -> Evaluation:
    """Evaluate a program: its table on each split and, on test images, its model, its guide and its codes.

    Arguments:
        program: A VAE, or any program.
        dataset: Its data.
        num_particles: Draws per datum for -log p(x); of fewer than 25 there is no k-hat.
        images: How many images of each split, the first ones.
        chosen: How many of them for what costs much, or 0: guides refined for each, annealed importance sampling, and
            bidirectional Monte Carlo on as many simulated ones. If not given, guides are refined for 50, and the other
            two asked where k-hat does not trust importance sampling.
        temperatures: Of annealed importance sampling, 16 chains.
        seed: Seed of the draws; torch's own state is left alone.
        progress: Whether to show progress bars.
        proposal: What the draws for -log p(x) are from: the ``guide``, or ``adapted`` to each image, or, of test
            images, ``both``, where ten million draws are enough; the better bound counts. The guide is judged by its
            own draws either way.

    Raises:
        ValueError: If there are no particles, images or temperatures, ``chosen`` is negative, or there is no such
            ``proposal``.

    Example:
        >>> from pyro_vae import VAE, data
        >>> vae = VAE.build((1, 8, 8), latent=2)
        >>> found = evaluation(vae, data.load("digits"), num_particles=50, images=50, chosen=0, progress=False)
        >>> sorted(found.figures)
        ['bounds', 'calibration', 'dimensions', 'weights', 'worst']
    """
    settings = {"num_particles": num_particles, "images": images, "chosen": chosen, "temperatures": temperatures}
    for name, number in settings.items():
        if number is not None and number < (least := 0 if name == "chosen" else 1):
            raise ValueError(f"Expected {name} of at least {least}; got {number}.")
    check_choice("proposal", proposal, ("guide", "adapted", "both"))
    device = point_of(program).device
    of_all: evaluate.Proposal = "guide" if proposal == "both" else proposal
    rest = (num_particles, images, seed, progress, of_all)
    others = [name for name in dataset.splits if name != "test"]
    values = {name: evaluate.per_image(program, dataset.splits[name].to(device), *rest) for name in others}
    with at_test(program, device, seed):
        whole = posterior_of(program, evaluate.rows_of(program, dataset.test.to(device), slice(0, images)))
        reconstruction, kl = evaluate.split(program, whole, evaluate.DRAWS)
        weigh = partial(evaluate.log_weights, program, whole, num_particles, progress=progress)
        log_w: dict[evaluate.Proposal, Tensor] = {"guide": weigh()}
        why: list[str] = []
        if proposal == "adapted":
            log_w["adapted"] = weigh(proposal="adapted")
        elif proposal == "both":
            other, why = proposals.by_adapted(program, whole, num_particles, proposals.OF_EVALUATION, progress)
            log_w |= {} if other is None else {"adapted": other}
        nll = {name: -evaluate.iwae(weights) for name, weights in log_w.items()}
        means = {name: values.mean().nan_to_num(math.inf).item() for name, values in nll.items()}
        best = min(log_w, key=means.__getitem__) if proposal == "both" else of_all
        test = values["test"] = evaluate.Values(reconstruction - kl, reconstruction, kl, nll[of_all])
        verdicts = {name: findings.weights(whole, weights) for name, weights in log_w.items()}
        trust = trusts(verdicts[best].numbers | {"images": len(whole)})
        few = findings.CHOSEN if chosen is None else chosen
        bounds = findings.bounds(whole, log_w[best], 0 if trust and chosen is None else few, temperatures, progress)
        model = [bounds, findings.Finding(why)]
        if "adapted" in log_w:
            draws = f"{num_particles:,} draws {proposals.origin(whole, best)}"
            headline = findings.Finding([f"-log p(x) ≤ {pair(mean_and_error(nll[best]))}: {draws}."])
            model = [headline, *model, findings.of_adapted(verdicts["adapted"])]
        guide = [verdicts["guide"]]
        guide[0].figures = findings.figures_of_weights(whole, num_particles, guide[0].images)
        if few:
            known = nll[best][:few] if trust else None
            guide.append(findings.gaps(whole[:few], bounds.images.get("-log p(x) by AIS", known), progress))
        guide.append(findings.calibration(whole, seed))
        answers = {"How good is the model?": model, "How good is the guide?": guide}
        answers["What do codes say?"] = [findings.codes(whole)]
    called = findings.name_of(whole)
    also = nll.get("adapted") if proposal == "both" else None
    table = write_table(program, dataset, values, num_particles, of_all, also)
    found = Evaluation(table, {}, {}, {}, {}, called)
    columns = dict(zip(COLUMNS, test._replace(nll=nll[best]), strict=True))
    for question, parts in answers.items():
        if lines := [line for part in parts for line in part.lines]:
            found.sections[f"{question} The first {len(whole):,} test {called}"] = lines
        for part in parts:
            found.numbers.update(part.numbers)
            found.figures.update(part.figures)
            columns |= part.images
    found.images.update({name: column.tolist() for name, column in columns.items()})
    (mean, error), (of_train, error_of_train) = (mean_and_error(values[name].nll) for name in ("test", "train"))
    found.numbers.update({"test -log p(x)": nll[best].mean().item(), "train -log p(x)": of_train})
    found.numbers.update({"test - train": mean - of_train, "test - train, error": math.hypot(error, error_of_train)})
    found.numbers.update({"images": len(whole), "chosen": min(few, len(whole))})
    measures = evaluate.measures(program, dataset.test.to(device), images)
    found.numbers.update({f"test {name}": mean for name, (mean, _) in measures.items()})
    return found
