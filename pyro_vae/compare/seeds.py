"""Comparison of settings over seeds: what differs by more than luck, and which option matters."""

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compare.rows import Row
from pyro_vae.evaluate.summaries import mean_and_error

TRIALS = "trials.csv"  # the runs of a study, a line for each
LEVEL = 0.05  # of the tests


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: Name of the runs without the seed.
        group: Number of the group of comparable runs, from 0.
        rows: The runs, one for each seed.
        difference: -log p(x) minus -log p(x) of the best setting of the group, in nats, as means over seeds and images.
        seed_error: Standard error of the difference over seeds; nan if one of the two settings has one seed.
        image_error: Standard error of the difference over images, paired.
        p: Probability of a difference at least as large between equal settings, corrected for the number of
            comparisons in the group (Holm); nan for the best setting and for settings with one seed.
    """

    name: str
    group: int
    rows: Sequence[Row]
    difference: float = 0.0
    seed_error: float = 0.0
    image_error: float = 0.0
    p: float = math.nan

    @property
    def means(self) -> Tensor:
        """-log p(x) of each run, the mean over images, in nats."""
        return torch.stack([row.values.nll.double().mean() for row in self.rows])

    @property
    def nll(self) -> tuple[float, float]:
        """Mean of -log p(x) over seeds and images, and its standard error over seeds, in nats."""
        return mean_and_error(self.means)

    @property
    def options(self) -> dict[str, str]:
        """The settings of training, but for the seed."""
        return {name: value for name, value in self.rows[0].settings.items() if name != "seed"}


def over_seeds(rows: Sequence[Row]) -> list[Setting]:
    r"""Collect the rows of :func:`compare` by their settings, best first in each group, and test the differences.

    Runs of one setting differ in the seed alone; of runs with equal seeds one counts.

    The difference from the best setting :math:`b`, :math:`d = \bar\ell - \bar\ell_b`, has an error over seeds and one
    over images. Seeds are not paired; images are, by their mean over seeds :math:`\bar\ell_i`:

    .. math:: \sigma^2 = \frac{s^2}{S} + \frac{s_b^2}{S_b} + \frac{1}{N} \mathrm{Var}_i(\bar\ell_i - \bar\ell_{b,i})

    The test compares :math:`d / \sigma` with Student's t distribution, with the degrees of freedom of Welch and
    Satterthwaite (The generalization of "Student's" problem, Welch, 1947). Holm's method corrects for the number of
    comparisons (A simple sequentially rejective multiple test procedure, Holm, 1979). The best setting is chosen by
    the same numbers, so that its lead is on average too large.
    """
    collected: dict[str, dict[str, Row]] = {}
    for row in rows:  # a run that comes twice is one
        key = repr((row.group, sorted((name, repr(value)) for name, value in row.config.items() if name != "seed")))
        collected.setdefault(key, {}).setdefault(repr(row.config.get("seed")), row)
    groups = [[*runs.values()] for runs in collected.values()]
    settings = [Setting(runs[0].name.rpartition("-seed-")[0] or runs[0].name, runs[0].group, runs) for runs in groups]
    settings.sort(key=lambda setting: (setting.group, math.isnan(setting.nll[0]), setting.nll[0]))
    result = list[Setting]()
    for group in dict.fromkeys(setting.group for setting in settings):
        best, *others = (setting for setting in settings if setting.group == group)
        compared = [_against(setting, best) for setting in others]
        tested = sorted(
            (i for i, setting in enumerate(compared) if not math.isnan(setting.p)), key=lambda i: compared[i].p
        )
        largest = 0.0
        for rank, i in enumerate(tested):
            largest = max(largest, min(1.0, compared[i].p * (len(tested) - rank)))
            compared[i] = replace(compared[i], p=largest)
        result += [best, *compared]
    return result


def _against(setting: Setting, best: Setting) -> Setting:
    """Return a setting with its difference from the best one, the errors and the uncorrected probability."""
    from scipy.special import stdtr  # a slow import

    images = [torch.stack([row.values.nll.double() for row in s.rows]).mean(0) for s in (setting, best)]
    difference, image_error = mean_and_error(images[0] - images[1])
    errors = [s.nll[1] for s in (setting, best)]
    seed_error = math.hypot(*errors)
    parts = [*errors, image_error]
    freedom = [*(len(s.rows) - 1 for s in (setting, best)), len(images[0]) - 1]
    p, total = math.nan, math.hypot(*parts)
    if total > 0:  # false for nan
        scale = sum((part / total) ** 4 / number for part, number in zip(parts, freedom, strict=True) if part)
        p = 2 * float(stdtr(1 / scale, -abs(difference) / total))
    return replace(setting, difference=difference, seed_error=seed_error, image_error=image_error, p=p)


def importance(settings: Sequence[Setting]) -> dict[str, float]:
    """Return the share of each option in the variance of -log p(x) over the runs of a group, largest first.

    The shares are those of a functional analysis of variance on a random forest, by Optuna, and sum to 1
    (`An efficient approach for assessing hyperparameter importance <https://proceedings.mlr.press/v32/hutter14.html>`_,
    Hutter et al., 2014). They are empty for fewer than 4 settings, fewer than two options, and without Optuna.
    """
    options = {name: [s.options.get(name, "-") for s in settings] for name in differing([s.options for s in settings])}
    try:
        import optuna
    except ImportError:
        return {}
    finite = [i for i, setting in enumerate(settings) if math.isfinite(setting.nll[0])]
    if len(finite) < 4 or len(options) < 2 or len({settings[i].nll[0] for i in finite}) == 1:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    values: dict[str, list[Any]] = {name: [texts[i] for i in finite] for name, texts in options.items()}
    kinds = dict[str, Any]()
    for name, texts in values.items():
        kinds[name] = optuna.distributions.CategoricalDistribution([*dict.fromkeys(texts)])
        with suppress(ValueError):  # numbers have an order
            values[name] = numbers = [float(text) for text in texts]
            kinds[name] = optuna.distributions.FloatDistribution(min(numbers), max(numbers))
    for row, i in enumerate(finite):
        params = {name: column[row] for name, column in values.items()}
        for value in settings[i].means.tolist():
            study.add_trial(optuna.create_trial(params=params, distributions=kinds, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names of options with several values."""
    names = dict.fromkeys(name for options in settings for name in options)
    return [name for name in names if len({options.get(name, "-") for options in settings}) > 1]


def is_study(path: str | Path) -> bool:
    """Return whether a directory is the study of a sweep."""
    return (Path(path) / TRIALS).is_file()


def runs_of(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Return the run directories of studies and runs, and a sentence on each run that a study lacks.

    Raises:
        ValueError: If a study has no complete run.
    """
    runs, absent = list[Path](), list[str]()
    for path in map(Path, paths):
        if not is_study(path):
            runs.append(path)
            continue
        try:
            with (path / TRIALS).open(newline="") as file:
                rows: list[Mapping[str, str]] = [*csv.DictReader(file)]
            assert all(row["run"] and row["state"] for row in rows)
        except (KeyError, AssertionError, UnicodeDecodeError, csv.Error) as error:
            got = f"could not read {str(path / TRIALS)!r}. Repeat the command of the sweep, which writes it again"
            raise ValueError(f"Expected the table of a study; {got}.") from error
        complete = [path / "runs" / row["run"] for row in rows if row["state"] == "complete"]
        here = [run for run in complete if run.is_dir()]
        if not here:
            raise ValueError(f"Expected a study with complete runs; {str(path)!r} has none here. Run the sweep first.")
        runs += here
        absent += [f"{run.name}: its directory is not on this machine." for run in complete if run not in here]
        for row in rows:
            if row["state"] != "complete":
                absent.append(f"{row['run']}: {row['message'] or row['state'] + '.'}")
    return runs, absent
