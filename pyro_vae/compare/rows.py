"""Runs evaluated on the same images, and ranked where they may be."""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from pyro_vae import checkpoint, data, evaluate
from pyro_vae.data import Dataset
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.objectives import ELBO
from pyro_vae.objectives.base import check_choice
from pyro_vae.program import point_of, posterior_of
from pyro_vae.programs import VAE
from pyro_vae.seeds import at_test
from pyro_vae.train import check_device, fit
from pyro_vae.words import images_or_rows

UNSEEN = ("root", "labelled", "labelled_seed")  # arguments of data.load on which no test image depends
UNSAID = ("run_dir", "progress", "overwrite", "resume", "logger", "on_nan")  # settings on which no number depends


@dataclass(frozen=True, eq=False)
class Row:
    """A run among the others of its group.

    Attributes:
        name: The run directory, or its last part where no other run has the same.
        group: In which group it is ranked, from 0.
        basis: What all of a group share: the arguments of ``data.load``, and whether p(x | z) is a density or a mass.
        settings: Its settings for training, in a few words each.
        about: The data set, in words.
        values: For each image the ELBO, its terms and -log p(x), in nats.
        difference: From the best of the group in -log p(x), in nats, with its standard error, paired over the images.
        num_particles: Draws per image for -log p(x).
        active: How many latent dimensions are used: :func:`pyro_vae.evaluate.active_units`; None where all may be
            collapsed, and there are too few data to tell.
        latent: Of how many.
        parameters: How many numbers are trained.
        history: The columns of metrics.csv.
        measures: Of the split: :func:`pyro_vae.evaluate.measures`.
    """

    name: str
    group: int
    basis: dict[str, Any]
    settings: dict[str, str]
    about: str
    values: evaluate.Values
    difference: tuple[float, float]
    num_particles: int
    proposal: evaluate.Proposal
    active: int | None
    latent: int
    parameters: int
    history: dict[str, list[float]]
    measures: dict[str, tuple[float, float]]

    @property
    def nll(self) -> tuple[float, float]:
        """-log p(x), its mean and standard error over the images, in nats."""
        return mean_and_error(self.values.nll)

    @property
    def seconds(self) -> float:
        """How long the training took; nan where the run does not say."""
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
    """Evaluate runs on the same images and rank them by -log p(x), best first, in groups of those that compare.

    A group is one data set, binarised and dequantised in one way, and densities or masses: log p(x) of a density may
    be of any size, and changes with the units of x; log p(x) of a mass is at most 0.

    Arguments:
        runs: Run directories.
        num_particles: Draws per image for -log p(x).
        images: How many images of the split, the first ones.
        seed: Seed of the draws; torch's own state is left alone.
        split: ``test``, ``valid`` or ``train``.
        device: ``cpu`` or ``cuda``.
        trust: Modules of your own whose classes the runs may name.
        progress: Whether to show a progress bar.
        proposal: What the draws for -log p(x) are from: ``guide``, or ``adapted`` to each image.

    Raises:
        FileNotFoundError: If a run is not there.
        ValueError: If there are none, a run cannot be read or was trained on a tensor, or an argument is out of range.
    """
    if not runs or num_particles < 1 or images < 2:
        got = f"{len(runs)} runs, num_particles = {num_particles} and images = {images}"
        raise ValueError(f"Expected at least 1 run, 1 particle and 2 images; got {got}.")
    check_choice("split", split, ("test", "valid", "train"))
    check_device(device)
    datasets, groups, rows = dict[str, Dataset](), dict[str, int](), list[Row]()
    # All of them before the first is evaluated.
    loaded = [(*_load(run, trust), *checkpoint.data_of(run, datasets)) for run in runs]
    folders = [Path(run).resolve().name for run in runs]
    bar = tqdm(zip(runs, folders, loaded, strict=True), total=len(runs), unit=" runs", disable=not progress)
    for run, folder, (vae, config, history, dataset, options) in bar:
        bar.set_description(folder)
        shape = tuple(checkpoint.event_shape(vae)) or dataset.event_shape
        if shape != dataset.event_shape:
            got = f"{dataset.config['data']!r} now has images of shape {dataset.event_shape}"
            raise ValueError(f"Expected images of shape {shape}, as the run {str(run)!r} was trained on; {got}.")
        if split not in dataset.splits:
            raise ValueError(f"Expected images held out for {split}; the run {str(run)!r} has none. Use test.")
        part = dataset.splits[split].to(device)
        values = evaluate.per_image(vae.to(device), part, num_particles, images, seed, progress, proposal)
        with at_test(vae, point_of(vae).device, seed):
            whole = posterior_of(vae, evaluate.rows_of(vae, part, slice(0, images)))
            kind = "a mass" if all(law.is_discrete for law in whole.structure.laws.values()) else "a density"
            given = evaluate.covariates(whole).replace(" | ", ", given ")
        held_out = dataset.config["valid"]
        about = f"{dataset}{'' if held_out is None else f' ({held_out:,} held out for validation)'}"
        path = Path(options["data"])
        basis = {key: value for key, value in options.items() if key not in UNSEEN}
        basis["columns"] = (options.get("columns") or [None])[0]  # which is x
        basis["data"] = str(path.resolve()) if path.exists() else options["data"]
        basis["log p(x)"] = f"of {kind}{given}"
        used = evaluate.usage(evaluate.activity(vae, whole, seed), len(whole)) if len(whole) > 1 else (0, 0, 1)
        row = Row(
            name=folder if folders.count(folder) == 1 else str(run),
            group=groups.setdefault(str(basis), len(groups)),
            basis=basis,
            settings={key: short(value) for key, value in config.items() if key not in (*options, *UNSEEN)},
            about=f"{about}, {len(whole):,} {split} {images_or_rows(shape)}",
            values=values,
            difference=(0.0, 0.0),
            num_particles=num_particles,
            proposal=proposal,
            active=used[0] if used[0] or not used[2] else None,
            latent=len(evaluate.dimensions(whole)),
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
    """Load a run, with today's defaults where its configuration says nothing, and its history."""
    try:
        vae, config = checkpoint.load(run, trust)
        history = checkpoint.load_metrics(run)
    except (ValueError, OSError) as error:
        raise type(error)(f"{error}" if str(run) in str(error) else f"{error} The run is {str(run)!r}.") from error
    parts = defaults(VAE.build) if checkpoint.parts_of(vae) else {}
    config = defaults(data.load) | parts | defaults(fit) | {"objective": checkpoint.describe(ELBO())} | config
    return vae, {key: value for key, value in config.items() if key not in UNSAID}, history


def short(spec: Any) -> str:
    """Write a part or a setting in a few words: of a class the arguments that are not its defaults."""
    if isinstance(spec, list):
        return f"[{', '.join(map(short, spec))}]"
    if not (isinstance(spec, dict) and "class_path" in spec):
        plain = str(spec).lower() if isinstance(spec, bool | None) else str(spec)
        return f"{spec:g}" if isinstance(spec, float) else plain
    module, _, name = spec["class_path"].rpartition(".")
    usual = defaults(getattr(sys.modules.get(module), name, lambda: None))  # not imported: that would run its code
    given = {key: value for key, value in (spec.get("init_args") or {}).items() if usual.get(key, spec) != value}
    arguments = ", ".join(f"{key}={short(value)}" for key, value in given.items())
    return f"{name}({arguments})" if arguments else name


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Default arguments as plain data, as a run's configuration has them."""
    defaults = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            with suppress(ValueError):  # a function, which is no plain data
                defaults[name] = checkpoint.describe(parameter.default)
    return defaults
