"""A full evaluation of the model, of the guide and of the codes, with a diagnosis."""

import csv
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor

from pyro_vae import checkpoint, evaluate, plots
from pyro_vae.data import Dataset
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.objectives.base import check_choice
from pyro_vae.program import Posterior, posterior_of, reference_tensor
from pyro_vae.report import answers, codes, proposals
from pyro_vae.report.closing import COLUMNS, format_table
from pyro_vae.report.diagnosis import diagnosis, trusts
from pyro_vae.seeds import eval_mode
from pyro_vae.words import pair

TEXTS = ("table", "sections", "called", "weights", "diagnosis")  # beside the numbers in evaluation.json


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The evaluation of a program. ``str`` returns the table, the sections and the diagnosis as text.

    Attributes:
        table: ELBO, its two terms and -log p(x) of each split.
        sections: Lines of text on the test images, by heading.
        numbers: Numbers of the diagnosis by name: nats, shares and counts.
        images: Columns by name, with one number per test image; some columns cover only the first images.
        figures: Figures by name.
        called: Noun for the data: images or rows.
        weights: Hash of the program's weights, by ``checkpoint.digest``.
    """

    table: str
    sections: dict[str, list[str]]
    numbers: dict[str, float]
    images: dict[str, list[float]]
    figures: dict[str, "plots.Figure"] = field(repr=False)
    called: str = "images"
    weights: str = ""

    @property
    def diagnosis(self) -> list[str]:
        """The numbers in words, with advice, by :func:`pyro_vae.report.diagnosis`."""
        return diagnosis(self.numbers, self.called)

    def __str__(self) -> str:
        parts = [self.table]
        for head, lines in {**self.sections, "Diagnosis": [f"- {line}" for line in self.diagnosis]}.items():
            wrapped = [line if "\n" in line else textwrap.fill(line, 110, subsequent_indent="  ") for line in lines]
            parts.append("\n".join([head, *wrapped]))
        return "\n\n".join(parts)

    def save(self, folder: str | Path, more: Mapping[str, bytes] | None = None) -> None:
        """Write ``evaluation.txt``, ``evaluation.json`` and ``evaluation.csv`` (images) to a folder.

        ``more`` holds further files by name. If some files cannot be written, write the rest and raise OSError.
        """
        numbers = {name: value if math.isfinite(value) else str(value) for name, value in self.numbers.items()}
        rows = ([i, *row] for i, row in enumerate(zip_longest(*self.images.values(), fillvalue="")))
        texts = {
            "evaluation.txt": f"{self}\n",
            "evaluation.json": json.dumps(numbers | {name: getattr(self, name) for name in TEXTS}, indent=2) + "\n",
            "evaluation.csv": checkpoint.to_csv([[self.called[:-1], *self.images], *rows]),
        }
        checkpoint.write_all(Path(folder), texts | dict(more or {}))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read an evaluation from the files of :meth:`save`, without its figures.

        Raises:
            ValueError: If there is no such file, or a file cannot be read.
        """
        try:
            content = json.loads(checkpoint.safe_path(folder, "evaluation.json").read_text())
            table, sections, called, weights, _ = (content.pop(name) for name in TEXTS)
            numbers = {name: value if isinstance(value, int) else float(value) for name, value in content.items()}
            (_, *names), *rows = csv.reader(checkpoint.safe_path(folder, "evaluation.csv").read_text().splitlines())
            columns = [[float(cell) for cell in column if cell] for column in zip(*rows, strict=True)]
            sections = {str(head): [*map(str, lines)] for head, lines in sections.items()}
            return cls(str(table), sections, numbers, dict(zip(names, columns[1:], strict=True)), {}, called, weights)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error) as error:
            reason = checkpoint.one_line(error)
            raise ValueError(f"Expected a saved evaluation in {str(folder)!r}; cannot read it ({reason}).") from error


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
    """Evaluate a program: a table of all splits and, on test images, the model, the guide and the codes.

    Args:
        program: A VAE, or any program.
        dataset: Data of the program.
        num_particles: Draws per datum for -log p(x); k-hat needs at least 25.
        images: Number of images from the start of each split.
        chosen: Number of images, or 0, for expensive methods: guides refined per image, annealed importance sampling,
            and bidirectional Monte Carlo on equally many simulated images. By default the first method uses 50 images,
            and the other two methods run if k-hat shows that importance sampling is not reliable.
        temperatures: Number of temperatures of annealed importance sampling, which runs 16 chains.
        seed: Seed of the draws; torch's random state does not change.
        progress: Whether to show progress bars.
        proposal: Distribution of the draws for -log p(x): the ``guide``; ``adapted`` to each image; or ``both``. For
            ``both``, test images get two bounds if ten million draws suffice, and the better bound counts. Draws of
            the guide always judge the guide.

    Raises:
        ValueError: If there are no particles, images or temperatures, ``chosen`` is negative, or ``proposal`` is
            unknown.

    Example:
        >>> from pyro_vae import VAE, data
        >>> vae = VAE.build((1, 8, 8), latent=2)
        >>> report = evaluation(vae, data.load("digits"), num_particles=50, images=50, chosen=0, progress=False)
        >>> sorted(report.figures)
        ['bounds', 'calibration', 'dimensions', 'weights', 'worst']

    See Also:
        :func:`table`: The table alone. :func:`pyro_vae.compare.compare`: Several runs side by side.
    """
    settings = {"num_particles": num_particles, "images": images, "chosen": chosen, "temperatures": temperatures}
    for name, number in settings.items():
        if number is not None and number < (least := 0 if name == "chosen" else 1):
            raise ValueError(f"Expected {name} of at least {least}; got {number}.")
    check_choice("proposal", proposal, ("guide", "adapted", "both"))
    device = reference_tensor(program).device
    of_all: evaluate.Proposal = "guide" if proposal == "both" else proposal
    rest = (num_particles, images, seed, progress, of_all)
    names = [name for name in dataset.splits if name != "test"]
    values = {name: evaluate.per_image(program, dataset.splits[name].to(device), *rest) for name in names}
    with eval_mode(program, device, seed):
        target = posterior_of(program, evaluate.rows_of(program, dataset.test.to(device), slice(0, images)))
        reconstruction, kl = evaluate.elbo_terms(program, target, evaluate.DRAWS)
        if evaluate.sums_codes(program):
            sums, answer = codes.bounds(target, num_particles, progress)
            values["test"] = evaluate.Values(reconstruction - kl, reconstruction, kl, sums)
            questions = {"How good is the model?": [answer], "How are the codes used?": [codes.usage(target)]}
            return _collect(program, dataset, target, values, num_particles, questions)
        weigh = partial(evaluate.log_weights, program, target, num_particles, progress=progress)
        log_w: dict[evaluate.Proposal, Tensor] = {"guide": weigh()}
        reasons: list[str] = []
        if proposal == "adapted":
            log_w["adapted"] = weigh(proposal="adapted")
        elif proposal == "both":
            limit = proposals.OF_EVALUATION
            adapted, reasons = proposals.adapted_log_weights(program, target, num_particles, limit, progress)
            log_w |= {} if adapted is None else {"adapted": adapted}
        nll = {name: -evaluate.iwae(weights) for name, weights in log_w.items()}
        means = {name: values.mean().nan_to_num(math.inf).item() for name, values in nll.items()}
        best = min(log_w, key=means.__getitem__) if proposal == "both" else of_all
        values["test"] = evaluate.Values(reconstruction - kl, reconstruction, kl, nll[of_all])
        verdicts = {name: answers.weights(target, weights) for name, weights in log_w.items()}
        trust = trusts(verdicts[best].numbers | {"images": len(target)})
        few = answers.CHOSEN if chosen is None else chosen
        bounds = answers.bounds(target, log_w[best], 0 if trust and chosen is None else few, temperatures, progress)
        model = [bounds, answers.Answer(reasons)]
        if "adapted" in log_w:
            draws = f"{num_particles:,} draws {proposals.origin(target, best)}"
            headline = answers.Answer([f"-log p(x) ≤ {pair(mean_and_error(nll[best]))}: {draws}."])
            model = [headline, *model, answers.for_adapted(verdicts["adapted"])]
        guide = [verdicts["guide"]]
        guide[0].figures = answers.weight_figures(target, num_particles, guide[0].images)
        if few:
            minus_log_p = bounds.images.get("-log p(x) by AIS", nll[best][:few] if trust else None)
            guide.append(answers.gaps(target[:few], minus_log_p, progress))
        guide.append(answers.calibration(target, seed))
        questions = {"How good is the model?": model, "How good is the guide?": guide}
        questions["How are the codes used?"] = [answers.codes(target)]
    also = nll.get("adapted") if proposal == "both" else None
    result = _collect(program, dataset, target, values, num_particles, questions, of_all, also, nll[best])
    result.numbers["chosen"] = min(few, len(target))
    return result


def _collect(
    program: Any,
    dataset: Dataset,
    target: Posterior,
    values: dict[str, evaluate.Values],
    num_particles: int,
    questions: Mapping[str, Sequence[answers.Answer]],
    of_all: evaluate.Proposal = "guide",
    also: Tensor | None = None,
    best: Tensor | None = None,
) -> Evaluation:
    """Return the evaluation with a table of the values and the answers to the questions."""
    test = values["test"]
    best_nll = test.nll if best is None else best
    called = answers.noun_of(target)
    table = format_table(program, dataset, values, num_particles, of_all, also)
    result = Evaluation(table, {}, {}, {}, {}, called, checkpoint.digest(program))
    columns = dict(zip(COLUMNS, test._replace(nll=best_nll), strict=True))
    for question, parts in questions.items():
        if lines := [line for part in parts for line in part.lines]:
            result.sections[f"{question} The first {len(target):,} test {called}"] = lines
        for part in parts:
            result.numbers.update(part.numbers)
            result.figures.update(part.figures)
            columns |= part.images
    result.images.update({name: column.tolist() for name, column in columns.items()})
    (mean, error), (of_train, error_of_train) = (mean_and_error(values[name].nll) for name in ("test", "train"))
    result.numbers.update({"test -log p(x)": best_nll.mean().item(), "train -log p(x)": of_train})
    result.numbers.update({"test - train": mean - of_train, "test - train, error": math.hypot(error, error_of_train)})
    result.numbers.update({"images": len(target)})
    measures = evaluate.measures(program, dataset.test.to(reference_tensor(program).device), len(target))
    result.numbers.update({f"test {name}": mean for name, (mean, _) in measures.items()})
    return result
