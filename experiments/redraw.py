"""Draw figures again from the numbers of their tables, without training anything: ``python experiments/redraw.py``.

Figures that show images of trained models, ``discontinuity.png`` and all ``*_images.png``, need their experiment.
"""

import importlib
from pathlib import Path

from common import command, draw, read_table

NAMES = (
    "blur",
    "estimators",
    "imputation",
    "inference",
    "likelihoods",
    "priors",
    "reliability",
    "schedules",
    "signal_to_noise",
    "speed",
    "tug_of_war",
    "published",
    "adapted/inference",
)


def main(names: tuple[str, ...] = NAMES, folder: str = "experiments/results") -> None:
    """Draw the figure of each table again.

    Args:
        names: Which tables.
        folder: Where the tables are, and the figures go.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"Expected names among {', '.join(NAMES)}; got {unknown[0]}.")
    for name in names:
        stem = Path(folder) / name
        module = importlib.import_module(stem.name)
        if name == "published":
            module.draw(stem)
        else:
            draw(module.figure, stem.with_suffix(".png"), read_table(stem.with_suffix(".csv")))


if __name__ == "__main__":
    command(main)
