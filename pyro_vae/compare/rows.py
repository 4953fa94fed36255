"""Evaluation of runs on the same images, and their ranking."""

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from pyro_vae import checkpoint, data, evaluate
from pyro_vae.data import Dataset
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.objectives import ELBO
from pyro_vae.objectives.base import check_choice
from pyro_vae.program import Posterior, posterior_of, reference_tensor
from pyro_vae.programs import VAE
from pyro_vae.seeds import eval_mode
from pyro_vae.train import check_device, fit
from pyro_vae.words import images_or_rows

# Arguments of data.load that do not change a test image.
TRAINING = ("root", "labelled", "labelled_seed", "labels", "schema")
OPERATION = ("run_dir", "progress", "overwrite", "resume", "logger", "on_nan")  # settings that change no number


@dataclass(frozen=True, eq=False)
class Row:
    """A run in the ranking of its group.

    Attributes:
        name: The run directory, or the last part of the path if no other run has the same last part.
        group: Number of the run's group, from 0.
        basis: Common properties of a group: arguments of ``data.load``, and whether p(x | z) is a density or a mass.
        config: Settings of the training and arguments of ``data.load``, as in ``config.yaml``.
        about: The data set, in words.
        values: ELBO, its two terms and -log p(x) of each image, in nats.
        difference: -log p(x) minus -log p(x) of the best run in the group, in nats, and the standard error, paired
            over the images.
        num_particles: Draws per image for -log p(x).
        proposal: Distribution of the draws.
        method: How -log p(x) was computed, in words.
        active: Number of active latent dimensions, see :func:`pyro_vae.evaluate.active_units`; None if all may be
            collapsed and the data are too few to tell.
        latent: Number of latent dimensions.
        parameters: Number of trained parameters.
        history: Columns of ``metrics.csv`` and ``seconds.csv``.
        measures: Further measures of the split, see :func:`pyro_vae.evaluate.measures`.
    """

    name: str
    group: int
    basis: dict[str, Any]
    config: dict[str, Any]
    about: str
    values: evaluate.Values
    difference: tuple[float, float]
    num_particles: int
    proposal: evaluate.Proposal
    method: str
    active: int | None
    latent: int
    parameters: int
    history: dict[str, list[float]]
    measures: dict[str, tuple[float, float]]

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings of the training, each in a few words."""
        hidden = {*inspect.signature(data.load).parameters}
        hidden -= {"labelled", "labelled_seed"} if self.config.get("labelled") else set()
        return {key: format_spec(value) for key, value in self.config.items() if key not in hidden}

    @property
    def nll(self) -> tuple[float, float]:
        """Mean of -log p(x) over the images, and its standard error, in nats."""
        return mean_and_error(self.values.nll)

    @property
    def seconds(self) -> float:
        """Seconds of training; nan if the run does not record them."""
        return sum(self.history.get("seconds", [math.nan]))


def compare(
    runs: Sequence[str | Path],
    num_particles: int = 1000,
    images: int = 1000,
    seed: int = 0,
    split: Literal["test", "valid", "train"] = "test",
    device: str = "cpu",
    trust: Sequence[str] = (),
    progress: bool = True,
    proposal: evaluate.Proposal = "guide",
) -> list[Row]:
    """Evaluate runs on the same images, and rank comparable runs in groups by -log p(x), best first.

    Runs of a group share the data set, binarisation and dequantisation, and p(x) is a density or a mass for all runs:
    log p(x) of a mass is at most 0; log p(x) of a density has no bound and changes with the units of x.

    Args:
        runs: Run directories.
        num_particles: Draws per image for -log p(x).
        images: Number of images from the start of the split.
        seed: Seed of the draws; torch's random state does not change.
        split: ``test``, ``valid`` or ``train``.
        device: ``cpu`` or ``cuda``.
        trust: Modules whose classes the runs may name, besides ``pyro_vae``.
        progress: Whether to show a progress bar.
        proposal: Distribution of the draws for -log p(x): ``guide``, or ``adapted`` to each image.

    Raises:
        FileNotFoundError: If a run does not exist.
        ValueError: If there is no run, a run cannot be read or was trained on a tensor, or an argument is out of range.

    See Also:
        :func:`pyro_vae.report.evaluation`: A full evaluation of one program, with a diagnosis.
    """
    if not runs or num_particles < 1 or images < 2:
        got = f"{len(runs)} runs, num_particles = {num_particles} and images = {images}"
        raise ValueError(f"Expected at least 1 run, 1 particle and 2 images; got {got}.")
    check_choice("split", split, ("test", "valid", "train"))
    check_device(device)
    datasets, groups, rows = dict[str, Dataset](), dict[str, int](), list[Row]()
    # Load all runs first, so that errors come before the first evaluation.
    loaded = [(*_load(run, trust), *checkpoint.data_of(run, datasets)) for run in runs]
    folders = [Path(run).resolve().name for run in runs]
    bar = tqdm(zip(runs, folders, loaded, strict=True), total=len(runs), unit=" runs", disable=not progress)
    for run, folder, (vae, config, history, dataset, options) in bar:
        bar.set_description(folder)
        shape = tuple(checkpoint.event_shape(vae)) or dataset.event_shape
        if shape != dataset.event_shape:
            got = f"{dataset.config['data']!r} now has images of shape {dataset.event_shape}"
            raise ValueError(f"Expected images of shape {shape}, as in the training of the run {str(run)!r}; {got}.")
        if split not in dataset.splits:
            raise ValueError(f"Expected images held out for {split}; the run {str(run)!r} has none. Use test.")
        part = dataset.splits[split].to(device)
        values = evaluate.per_image(vae.to(device), part, num_particles, images, seed, progress, proposal)
        with eval_mode(vae, reference_tensor(vae).device, seed):
            target = posterior_of(vae, evaluate.rows_of(vae, part, slice(0, images)))
            basis = basis_of(dataset, options, target)
        held_out = dataset.config["valid"]
        about = f"{dataset}{'' if held_out is None else f' ({held_out:,} held out for validation)'}"
        activity = evaluate.latent_activity(vae, target, seed) if len(target) > 1 else None
        active, _, unsure = (0, 0, 1) if activity is None else evaluate.usage(activity, len(target))
        row = Row(
            name=folder if folders.count(folder) == 1 else str(run),
            group=groups.setdefault(str(basis), len(groups)),
            basis=basis,
            config=config,
            about=f"{about}, {len(target):,} {split} {images_or_rows(shape)}",
            values=values,
            difference=(0.0, 0.0),
            num_particles=num_particles,
            proposal=proposal,
            method=evaluate.method(vae, num_particles, evaluate.ORIGINS[proposal]),
            active=active if active or not unsure else None,
            latent=len(evaluate.dimensions(target)),
            parameters=sum(parameter.numel() for parameter in vae.parameters()),
            history=history,
            measures=evaluate.measures(vae, part, images),
        )
        rows.append(row)
    ranked, best = [], dict[int, Row]()
    for row in sorted(rows, key=lambda row: (row.group, math.isnan(row.nll[0]), row.nll[0])):
        first = best.setdefault(row.group, row)
        difference = (0.0, 0.0) if row is first else mean_and_error(row.values.nll - first.values.nll)
        ranked.append(replace(row, difference=difference))
    return ranked


def _load(run: str | Path, trust: Sequence[str]) -> tuple[Any, dict[str, Any], dict[str, list[float]]]:
    """Load a run, its configuration completed with today's defaults, and its history."""
    try:
        vae, config = checkpoint.load(run, trust)
        history = checkpoint.load_metrics(run)
    except (ValueError, OSError) as error:
        raise type(error)(f"{error}" if str(run) in str(error) else f"{error} The run is {str(run)!r}.") from error
    parts = defaults(VAE.build) if checkpoint.parts_of(vae) else {}
    config = defaults(data.load) | parts | defaults(fit) | {"objective": checkpoint.to_spec(ELBO())} | config
    return vae, {key: value for key, value in config.items() if key not in OPERATION}, history


def basis_of(dataset: Dataset, options: Mapping[str, Any], target: Posterior) -> dict[str, Any]:
    """Return what runs must share, so that their -log p(x) compare.

    Args:
        dataset: The data set of a run.
        options: Arguments of ``data.load``.
        target: The program at some data.
    """
    supports = target.structure.observed_supports.values()
    kind = "a mass" if all(support.is_discrete for support in supports) else "a density"
    covariates = evaluate.covariates(target).replace(" | ", ", given ")
    path, schema = Path(options["data"]), dataset.schema
    basis = {key: value for key, value in options.items() if key not in TRAINING}
    basis["columns"] = (options.get("columns") or [None])[0]  # the column of x
    basis["x"] = [*schema.names] if schema else None
    basis["covariates"] = [column.name for column in schema.of_y] if schema and covariates else None
    basis["standardize"] = f"true, by {schema.log_scale():.9g} nats" if schema and schema.standardised else False
    basis["data"] = str(path.resolve()) if path.exists() else options["data"]
    basis["log p(x)"] = f"of {kind}{covariates}"
    return basis


def format_spec(spec: Any) -> str:
    """Return a part or a setting in a few words; for a class, list the arguments that differ from the defaults."""
    if isinstance(spec, list):
        return f"[{', '.join(map(format_spec, spec))}]"
    if not (isinstance(spec, dict) and "class_path" in spec):
        plain = str(spec).lower() if isinstance(spec, bool | None) else str(spec)
        return f"{spec:g}" if isinstance(spec, float) else plain
    module, _, name = spec["class_path"].rpartition(".")
    usual = defaults(getattr(sys.modules.get(module), name, lambda: None))  # an import would run the user's code
    changed = {key: value for key, value in (spec.get("init_args") or {}).items() if usual.get(key, spec) != value}
    arguments = ", ".join(f"{key}={format_spec(value)}" for key, value in changed.items())
    return f"{name}({arguments})" if arguments else name


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Return default arguments as plain data, as in a run's configuration."""
    defaults = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            with suppress(ValueError):  # a function is no plain data
                defaults[name] = checkpoint.to_spec(parameter.default)
    return defaults
