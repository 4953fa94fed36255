"""The parts of a run's page, and its numbers."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_vae.page.charts import Chart, bars
from pyro_vae.page.latents import Codes
from pyro_vae.page.pictures import Sprite, sprite
from pyro_vae.page.runs import Run
from pyro_vae.report import Evaluation
from pyro_vae.words import cells

HEADS = ("ELBO", "-log p(x)", "bits/dim")  # of the table, for the summary


@dataclass(eq=False)
class Content:
    """The parts of a run's page; a part that does not apply is empty.

    Attributes:
        run: The run.
        most: The most bytes of all its images before compression.
        longest: The most pixels of an image in height and width; a larger image is reduced.
        points: The most points in the chart of the codes.
        sliders: The most dimensions with a slider.
        headline: Names and values of the summary.
        diagnosis: Sentences of the summary.
        table: Cells of the evaluation's table of splits.
        notes: Explanation of the table.
        splits: Chart of the table.
        sections: Texts of the evaluation by heading; a table is a list of rows.
        codes: The latent dimensions.
        scatter: Chart of the codes.
        thumbs: Images of the points in the chart.
        walk: Images along each dimension.
        pictures: The program's pictures.
        predictive: Draws for a few images.
        worst: Images with the largest k-hat.
        figures: Figures of a table's columns by title.
        sprites: The sprites whose tiles the page shows, by name.
    """

    run: Run
    most: float
    longest: int = 64
    points: int = 500
    sliders: int = 20
    headline: list[tuple[str, str]] = field(default_factory=list)
    diagnosis: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)
    notes: str = ""
    splits: Chart | None = None
    sections: dict[str, list[Any]] = field(default_factory=dict)
    codes: Codes | None = None
    scatter: Chart | None = None
    thumbs: Sprite | None = None
    walk: dict[str, Any] | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)
    predictive: dict[str, Any] | None = None
    worst: dict[str, Any] | None = None
    figures: dict[str, str] = field(default_factory=dict)
    sprites: dict[str, Sprite] = field(default_factory=dict)

    def add(self, x: Tensor, share: float = 1.0) -> Sprite:
        """Return images ``(rows, columns, *event)`` as a sprite of at most a share of the bytes, for tiles."""
        new = sprite(x, self.most * share, longest=self.longest)
        return self.sprites.setdefault(new.name, new)

    def add_numbers(self, evaluation: Evaluation) -> None:
        """Add the table of splits, the sections, the diagnosis and the summary of an evaluation."""
        lines = evaluation.table.splitlines()
        self.table = cells(lines)
        self.notes = " ".join(lines[len(self.table) :])
        (_, *heads), *rows = self.table
        values = {split: dict(zip(heads, row, strict=True)) for split, *row in rows}
        pairs = {split: row["-log p(x)"].split(" ± ") for split, row in values.items()}
        title = "-log p(x) by split"
        self.splits = bars(title, [(split, float(mean), float(error)) for split, (mean, error) in pairs.items()])
        for head, texts in evaluation.sections.items():
            self.sections[head] = [cells(text.splitlines()) if "\n" in text else text for text in texts]
        self.diagnosis, numbers = evaluation.diagnosis, evaluation.numbers
        self.headline = [(f"{head}, test", values["test"][head]) for head in HEADS if head in heads]
        if "k > 0.7" in numbers:
            self.headline.append((f"{evaluation.called} with k-hat above 0.7", f"{numbers['k > 0.7']:.1%}"))
        for name, part, whole in (("active dimensions", "active", "latent"), ("codes in use", "codes alive", "codes")):
            if part in numbers:
                self.headline.append((name, f"{numbers[part]:.0f} of {numbers[whole]:.0f}"))
