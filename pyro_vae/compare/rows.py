"""Runs evaluated on the same images, and ranked where they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from pyro_vae import checkpoint, data, evaluate
from pyro_vae.checkpoint import load, load_metrics
from pyro_vae.compare.words import defaults, short
from pyro_vae.data import Dataset
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.objectives import ELBO
from pyro_vae.program import Posterior, point_of, posterior_of
from pyro_vae.seeds import at_test
from pyro_vae.train import check_device, fit
from pyro_vae.vae import VAE

__all__ = ["Row", "compare"]

# Settings of which no number depends.
UNSAID = ("run_dir", "progress", "overwrite", "resume", "logger", "on_nan")


@dataclass(frozen=True, eq=False)
class Row:
    """A run, as it stands among the others of its group.

    Arguments:
        name: The run directory, or its last part where that says which.
        group: Which group it is ranked in, from 0.
        basis: What all of a group share: the arguments of ``data.load``, and whether p(x | z) is a density or a mass.
        settings: What it was trained with, in a few words each.
        about: The data set, in words.
        values: For each image the ELBO, its terms and -log p(x), in nats.
        difference: From the best of the group in -log p(x), in nats, and the standard error of that over the images,
            paired; 0 and 0 for the best itself.
        num_particles: Draws per image for -log p(x).
        active: How many latent dimensions are used, of the images: :func:`pyro_vae.evaluate.active_units`.
        latent: Of how many.
        parameters: How many numbers are trained.
        history: The columns of metrics.csv.
    """

    name: str
    group: int
    basis: dict[str, Any]
    settings: dict[str, str]
    about: str
    values: evaluate.Values
    difference: tuple[float, float]
    num_particles: int
    active: int
    latent: int
    parameters: int
    history: dict[str, list[float]]

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
) -> list[Row]:
    """Evaluate runs on the same images and rank them by -log p(x), best first, in groups of what may be compared.

    A group is one data set, binarised and dequantised in one way, and densities or masses: log p(x) of a density may
    be of any size, and changes with the units of x; log p(x) of a mass is at most 0. The difference of two runs is
    over the same images, so its standard error is that of the paired differences, which is smaller than the two runs'
    own say.

    Arguments:
        runs: Run directories.
        num_particles: Draws per image for -log p(x).
        images: How many images of the split, the first ones.
        seed: Seed of the draws; torch's own state is left as it was.
        split: ``test``, ``valid`` or ``train``.
        device: ``cpu`` or ``cuda``.
        trust: Modules of your own whose classes the runs may name.
        progress: Whether to show a progress bar.

    Returns:
        A row for each run; :func:`table` and :func:`figure` show them.

    Raises:
        FileNotFoundError: If a run is not there.
        ValueError: If there are none, a run cannot be read or was trained on a tensor, or an argument is out of range.
    """
    if not runs or num_particles < 1 or images < 2:
        raise ValueError(
            "Expected at least 1 run, 1 particle and 2 images; "
            f"got {len(runs)} runs, num_particles = {num_particles} and images = {images}."
        )
    if split not in ("test", "valid", "train"):
        raise ValueError(f"Expected split to be test, valid or train; got {split!r}.")
    check_device(device)
    found = [_read(run, trust) for run in runs]  # all of them before the first is evaluated
    folders = [Path(run).resolve().name for run in runs]
    datasets: dict[str, Dataset] = {}
    rows = []
    with tqdm(total=len(runs), unit=" runs", disable=not progress) as bar:
        for run, folder, (vae, config) in zip(runs, folders, found, strict=True):
            bar.set_description(folder)
            options = checkpoint.arguments(data.load, config)
            config = {key: value for key, value in config.items() if key not in options}
            if str(options) not in datasets:
                datasets[str(options)] = data.load(**options)
            dataset = datasets[str(options)]
            _check_shape(vae, run, dataset)
            if split not in dataset.splits:
                raise ValueError(f"Expected images held out for {split}; the run {str(run)!r} has none. Use test.")
            part = dataset.splits[split].to(device)
            values = evaluate.per_image(vae.to(device), part, num_particles, images, seed, progress)
            with at_test(vae, point_of(vae).device, seed):
                whole = posterior_of(vae, evaluate.rows_of(vae, part, slice(0, images)))
                basis = _basis(whole, options)
            row = Row(
                name=folder if folders.count(folder) == 1 else str(run),
                group=0,
                about=_about(dataset, f"{len(values.nll):,} {split} images"),
                basis=basis,
                settings={key: short(value) for key, value in config.items()},
                values=values,
                difference=(0.0, 0.0),
                num_particles=num_particles,
                active=evaluate.active_units(vae, whole, seed=seed) if len(whole) > 1 else 0,
                latent=len(evaluate.dimensions(whole)),
                parameters=sum(parameter.numel() for parameter in vae.parameters()),
                history=load_metrics(run),
            )
            rows.append(row)
            bar.update()
    return _ranked(rows)


def _read(run: str | Path, trust: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Load a run, with today's defaults for what its configuration does not say; an error names the run."""
    try:
        vae, config = load(run, trust)
        load_metrics(run)
    except (ValueError, OSError) as error:
        named = str(run) in str(error)
        raise type(error)(str(error) if named else f"{error} The run is {str(run)!r}.") from error
    if config.get("data", "tensor") == "tensor":
        raise ValueError(
            f"Expected runs on named data sets; {str(run)!r} was trained on a tensor. Save the tensor with numpy.save "
            "and train on the file, or use evaluate.per_image."
        )
    parts: list[Any] = [VAE.build] if checkpoint.parts_of(vae) else []
    usual = {key: value for function in (data.load, *parts, fit) for key, value in defaults(function).items()}
    usual["objective"] = checkpoint.describe(ELBO())  # where none is given
    return vae, {key: value for key, value in (usual | config).items() if key not in UNSAID}


def _check_shape(vae: Any, run: str | Path, dataset: Dataset) -> None:
    shape = tuple(checkpoint.event_shape(vae)) or dataset.event_shape
    if shape != dataset.event_shape:
        raise ValueError(
            f"Expected images of shape {shape}, as the run {str(run)!r} was trained on; "
            f"{dataset.config['data']!r} now has images of shape {dataset.event_shape}."
        )


def _about(dataset: Dataset, images: str) -> str:
    held_out = dataset.config["valid"]
    return f"{dataset}{'' if held_out is None else f' ({held_out:,} held out for validation)'}, {images}"


def _basis(whole: Posterior, options: dict[str, Any]) -> dict[str, Any]:
    """What two runs must share to be ranked. The root of a data set with a name is not of it."""
    path = Path(options["data"])
    options = {key: value for key, value in options.items() if key != "root"}
    kind = "a mass" if all(law.is_discrete for law in whole.structure.laws.values()) else "a density"
    given = evaluate.covariates(whole)
    about = {"log p(x)": f"of {kind}{given.replace(' | ', ', given ')}"}
    return options | {"data": str(path.resolve()) if path.exists() else options["data"]} | about


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Number the groups in order of appearance, and sort each by -log p(x)."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.basis), []).append(row)
    ranked = []
    for number, group in enumerate(groups.values()):
        group.sort(key=lambda row: (math.isnan(row.nll[0]), row.nll[0]))
        best = group[0].values.nll
        for row in group:
            paired = (0.0, 0.0) if row is group[0] else mean_and_error(row.values.nll - best)
            ranked.append(replace(row, group=number, difference=paired))
    return ranked
