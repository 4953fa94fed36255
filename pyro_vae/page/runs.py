"""The runs of a page: program, data, settings, history and evaluation of each."""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae import checkpoint, report
from pyro_vae.compare.rows import format_spec
from pyro_vae.data import Dataset
from pyro_vae.report import Evaluation

PARTICLES, IMAGES = 100, 500  # of an evaluation for a page, if the run has none
PARTS = ("data", "program", "latent", "prior", "likelihood", "guide", "network", "objective", "binarize", "dequantize")
MAIN = (*PARTS, "epochs", "batch_size", "lr", "optimizer", "seed")
HARDWARE = {"python": "Python", "platform": "platform", "processor": "processor", "threads": "threads", "gpus": "GPUs"}


@dataclass(frozen=True, eq=False)
class Run:
    """A run and what can be read of it.

    Attributes:
        name: The run directory, or the last part of its path.
        folder: The run directory.
        config: Settings from ``config.yaml``.
        environment: Content of ``environment.json``.
        history: Columns of ``metrics.csv`` and ``seconds.csv``.
        program: The program with the final weights, or else the weights of the last checkpoint; None without weights.
        dataset: The data of the run; None if they were a tensor, or there is no program.
        final: Whether the weights are final.
        notes: Sentences on what the page lacks.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    history: dict[str, list[float]]
    program: Any
    dataset: Dataset | None
    final: bool
    notes: list[str]

    @property
    def settings(self) -> dict[str, str]:
        """The settings in a few words each, the parts first."""
        names = sorted(self.config, key=lambda name: MAIN.index(name) if name in MAIN else len(MAIN))
        return {name: format_spec(self.config[name]) for name in names}

    @property
    def origin(self) -> dict[str, str]:
        """The command, the time, the versions and the hardware of the training."""
        entries, rows = self.environment, {}
        if isinstance(command := entries.get("command"), list) and command:
            first, *rest = map(str, command)
            called = "pyro-vae" if Path(first).name in ("__main__.py", "pyro-vae") else Path(first).name
            rows["command"] = shlex.join([called, *rest])
        if self.program is not None:
            rows["parameters"] = f"{sum(parameter.numel() for parameter in self.program.parameters()):,}"
        if seconds := self.history.get("seconds"):
            rows["training"] = f"{len(seconds):,} epochs in {sum(seconds):,.1f} seconds"
        rows |= {"started": str(entries["started"])} if "started" in entries else {}
        git = entries.get("git")
        if isinstance(git, dict) and "commit" in git:
            rows["commit"] = f"{git['commit']}{', with changes' if git.get('changed') else ''}"
        for key, name in HARDWARE.items():
            if value := entries.get(key):
                rows[name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return rows | {str(name): str(value) for name, value in entries.get("packages", {}).items()}


def read(folder: str | Path, name: str, trust: Sequence[str], datasets: dict[str, Dataset]) -> Run:
    """Read a run, even one whose training has not ended; ``datasets`` is a cache.

    Raises:
        FileNotFoundError: If the run or its data do not exist.
        ValueError: If a file cannot be read, or ``config.yaml`` names a class that is not trusted.
    """
    path, notes, program, dataset = Path(folder), list[str](), None, None
    config, history = checkpoint.config_of(path), checkpoint.load_metrics(folder)
    final = (path / "model.safetensors").is_file()
    saved = final or (path / "checkpoint" / "last.safetensors").is_file()
    if not final:
        weights = "shows the weights of the last checkpoint" if saved else "has no images and no evaluation"
        notes.append(f"{_end(path)} The page {weights}.")
    spec = config.get("program")
    if isinstance(spec, dict) and "init_args" not in spec and "latent" not in config:
        notes.append("No images and no evaluation: config.yaml does not specify the program.")
    elif saved:
        program, config = checkpoint.load(folder, trust, "final" if final else "last")
        if config.get("data", "tensor") == "tensor":
            notes.append("No images and no evaluation: the data of the run were a tensor, which the run does not keep.")
        else:
            dataset, _ = checkpoint.data_of(folder, datasets)
    return Run(name, path, config, checkpoint.load_environment(folder), history, program, dataset, final, notes)


def _end(path: Path) -> str:
    """Return a sentence on why a run has no final weights."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        place = json.loads(checkpoint.safe_path(path, "diverged.json").read_text())
        return f"The training diverged in epoch {int(place['epoch'])}, step {int(place['step'])}."
    return "The training has not ended."


def evaluation_of(run: Run, num_particles: int | None, images: int | None, seed: int, progress: bool) -> Any:
    """Return the saved evaluation of a run's weights, or else a new one; None, with a note, if it is not possible.

    A saved evaluation counts only for the same weights, and if ``num_particles`` and ``images`` are None.
    """
    if run.dataset is None:
        return None
    if num_particles is None and images is None:
        with suppress(ValueError):
            saved = Evaluation.load(run.folder)
            if saved.weights == checkpoint.digest(run.program):
                return saved
    options: dict[str, Any] = {"num_particles": num_particles or PARTICLES, "images": images or IMAGES, "chosen": 0}
    options |= {"seed": seed, "progress": progress, "proposal": "guide"}
    try:
        return report.evaluation(run.program, run.dataset, **options)
    except ValueError as error:
        run.notes.append(f"No evaluation: {checkpoint.one_line(error)}")
        return None
