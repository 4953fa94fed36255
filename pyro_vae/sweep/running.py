"""``sweep``: read the file, open the study, start the workers and record the runs."""

import inspect
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm.auto import tqdm

from pyro_vae import checkpoint, data
from pyro_vae.compare.rows import format_spec
from pyro_vae.compare.seeds import TRIALS
from pyro_vae.objectives.base import check_choice
from pyro_vae.options import dataset_of
from pyro_vae.sweep.jobs import DONE, run_name
from pyro_vae.sweep.library import import_optuna
from pyro_vae.sweep.reading import parsed, read
from pyro_vae.sweep.space import Space
from pyro_vae.sweep.study import MARK, Metric, Sampler, Study
from pyro_vae.sweep.team import Team
from pyro_vae.words import nats

TRIES, PAUSE = 3, 0.5  # to open a database, and seconds between
OWN = {MARK, "study.db", "study.db-journal", "runs", "workers", "logs", TRIALS}  # names in a study


def sweep(
    file: str | Path,
    study_dir: str | Path | None = None,
    workers: int = 1,
    sampler: Sampler = "grid",
    trials: int | None = None,
    metric: Metric = "elbo",
    prune: bool = False,
    storage: str | None = None,
    retry: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train a run for each setting and seed of a YAML file, in several processes of one thread each.

    Each run is an ordinary run directory in ``study_dir/runs``, with the same numbers as a run by itself on one thread.
    After Ctrl-C, or if the sweep or a worker is killed, the same call resumes the sweep: finished runs stay, unfinished
    runs continue. A run that cannot be trained is recorded with its error, and the other runs continue. You may add
    seeds, values of a grid, and trials of a search later.

    Args:
        file: A YAML file of options of ``train``. A list is a grid over its values; ``{low: 1e-4, high: 1e-2, log:
            true, number: 5}`` is a range; ``seeds: 5`` trains each setting with seeds 0 to 4. An argument of a class
            has several values as ``{values: [2, 4]}``.
        study_dir: Directory of the study; by default studies/ and the name of the file.
        workers: Number of processes; 0 to train in this process, as for a debugger.
        sampler: ``grid`` for all settings; ``tpe`` for a search by `Optuna <https://optuna.org>`_'s tree-structured
            Parzen estimator (Algorithms for Hyper-Parameter Optimization, Bergstra et al., 2011).
        trials: Number of settings that a search tries; only with ``tpe``.
        metric: What a search minimises, in nats per validation datum, as the mean over seeds: ``elbo``, minus the ELBO;
            ``nll``, the upper bound on -log p(x) by 1,000 draws of proposals that are adapted to each datum.
        prune: Whether to stop a run, after a fifth of its epochs, whose validation ELBO is below the median of other
            runs at the same epoch (at least 5).
        storage: Database URL of an Optuna storage that workers on several machines share, as
            ``postgresql://user@host/name``; by default ``study.db`` in the study directory.
        retry: Whether to train the runs that failed before, or that you deleted, again.
        progress: Whether to show a progress bar for each worker.

    Returns:
        A dictionary for each run: ``run`` (its directory), ``number`` of its setting, ``seed``, ``state`` (complete,
        pruned, failed, skipped, deleted, running or waiting), ``value`` of the metric, ``seconds`` of training,
        ``message`` of a failed run, and the searched ``options``.

    Raises:
        ValueError: If the file has an unknown option or value; the directory or the storage has another sweep or other
            files; there are no validation data; or Optuna is not installed.
        OSError: If the study cannot be written.
    """
    check_choice("sampler", sampler, ("grid", "tpe"))
    check_choice("metric", metric, ("elbo", "nll"))
    if workers < 0:
        raise ValueError(f"Expected a number of workers, or 0 to train in this process; got {workers}.")
    if (trials is not None) != (sampler == "tpe") or (trials is not None and trials < 1):
        needed = "a number of trials for the sampler tpe, as 50" if sampler == "tpe" else "no trials for a grid"
        raise ValueError(f"Expected {needed}; got {trials}.")
    space = read(file)
    if sampler == "grid":
        space.grid()  # checks its size
    rules: dict[str, Any] = {"sampler": sampler, "metric": metric, "prune": prune, **_check_data(space, sampler)}
    folder = Path(study_dir or Path("studies") / Path(file).stem).absolute()
    study = _open(folder, Path(file), storage, space, rules)
    if retry:
        study.retry()
    spec: dict[str, Any] = {"folder": folder, "url": storage, "sampler": sampler, "space": space}
    spec |= {"metric": metric, "prune": prune, "trials": trials}

    def on_end(event: dict[str, Any]) -> None:
        rows = records(study)
        _save(folder, rows)
        for line in _lines(event, rows) if progress else ():
            tqdm.write(line)

    try:
        with Team(study, spec, progress, on_end) as team:
            team.work(workers)
    except KeyboardInterrupt:
        number = sum(row["state"] in DONE for row in records(study))
        raise KeyboardInterrupt(f"{number} runs are finished. Repeat the command to resume.") from None
    finally:
        study.revive()
        _save(folder, rows := records(study))
    return rows


def records(study: Study) -> list[dict[str, Any]]:
    """Return a dictionary for each run of a study, in the order of their numbers and seeds."""
    rows, searched = [], study.space.searched
    for job in study.jobs():
        attributes = job.trial.user_attrs if job.trial else {}
        results = {result["seed"]: result for result in attributes.get("results", [])}
        state, ended = job.state, job.state in ("failed", "pruned")
        for seed in job.seeds:
            result, name = results.get(seed, {}), run_name(job.number, seed)
            now = "complete" if result and ended else state
            now = "deleted" if study.lacks(job, seed) else now
            row = {"run": name, "number": job.number, "seed": seed, "state": now}
            row |= {key: None if now == "deleted" else result.get(key) for key in ("value", "seconds", "basis")}
            row["message"] = attributes.get("message", "") if now == "failed" else ""
            state = "skipped" if ended and now != "complete" else state
            row["options"] = {name: job.options.get(name) for name in searched}
            rows.append(row)
    return rows


def best_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], float] | None:
    """Return the runs of the setting with the lowest mean over its seeds, and the mean, in nats.

    Only settings with all their runs count. The result is None if there are none, or if the values of some runs do not
    compare.
    """
    settings: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        settings.setdefault(row["number"], []).append(row)
    whole = [runs for runs in settings.values() if all(row["value"] is not None for row in runs)]
    if len({row["basis"] for runs in whole for row in runs}) != 1:
        return None
    means = [fmean(row["value"] for row in runs) for runs in whole]
    return whole[means.index(min(means))], min(means)


def _lines(event: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each run that an event ends: its options, its value, and the best run so far."""
    done = sum(row["state"] in DONE for row in rows)
    for row in rows:
        if row["number"] != event["number"] or row["seed"] not in event["seeds"]:
            continue
        options = ", ".join(f"{name} {format_spec(value)}" for name, value in row["options"].items())
        outcome = row["message"] or ("pruned" if row["value"] is None else f"{nats(row['value'])} nats")
        best = best_of(rows)
        so_far = f"; best {nats(best[1])}, {setting_name(best[0])}" if best else ""
        yield f"{row['run']} ({options}): {outcome}; {done} of {len(rows)}{so_far}"


def setting_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of a setting with the number of its seeds."""
    return rows[0]["run"] if len(rows) == 1 else f"{rows[0]['run'].rpartition('-seed-')[0]}, mean of {len(rows)} seeds"


def _open(folder: Path, file: Path, storage: str | None, space: Space, rules: dict[str, Any]) -> Study:
    """Open the study of a directory, or make both; refuse other files, another sweep, and a storage that is absent."""
    others = sorted({path.name for path in folder.iterdir()} - OWN) if folder.is_dir() else []
    if others and not (folder / MARK).is_file():
        raise ValueError(
            f"Expected a new directory or a study; {checkpoint.display_path(folder)!r} has other files, as "
            f"{others[0]!r}. Choose another --study_dir."
        )
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with checkpoint.lock(folder):
            study = _connect(folder, storage, rules["sampler"], space)
            study.check(rules | _rules(space, rules["sampler"]))
            (folder / "runs").mkdir(exist_ok=True)
            study.check_grid()
            checkpoint.write(folder / MARK, file.read_bytes())
    except BaseException:
        if new and not (folder / MARK).exists():
            shutil.rmtree(folder)
        raise
    return study


def _connect(folder: Path, storage: str | None, sampler: Sampler, space: Space) -> Study:
    """Open the study in its database; try again where another machine makes the tables at the same moment."""
    optuna = import_optuna()
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    error: Exception
    for _ in range(TRIES):
        try:
            return Study(folder, storage, sampler, space)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, OSError) as problem:
            error = problem
            if not isinstance(problem, DBAPIError | optuna.exceptions.StorageInternalError):
                break
            time.sleep(PAUSE)
    url = re.sub(r"//[^@/]*@", "//...@", storage or "study.db")  # without a password
    reason = checkpoint.one_line(error.__cause__ or error).split("(Background")[0]
    raise ValueError(f"Expected a database that Optuna can use; could not open {url} ({reason}).") from None


def _rules(space: Space, sampler: Sampler) -> dict[str, Any]:
    """Return the constants of a search: the options with all values, and the seeds. A grid may grow."""
    return (
        {}
        if sampler == "grid"
        else {name: str(value) for name, value in space.options.items()} | {"seeds": [*space.seeds]}
    )


def _check_data(space: Space, sampler: Sampler) -> dict[str, str]:
    """Return digests of the data, if all runs share them; refuse a search over options that change the data."""
    of_data = [name for name in space.searched if name in inspect.signature(data.load).parameters]
    if of_data and sampler == "tpe":
        raise ValueError(f"Expected one {of_data[0]}, since a search compares its runs; got several. Use a grid.")
    dataset = dataset_of(parsed(space.sample()))
    if not len(dataset.valid):
        raise ValueError("Expected validation data, by which a sweep compares its runs; got valid = 0.")
    return {} if of_data else {"data": str(dataset.digests)}


def _save(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a line for each run."""
    names = [*dict.fromkeys(name for row in rows for name in row["options"])]
    heads = ["run", "number", "seed", "state", "value", "seconds", "message"]
    cells = [[*(row[head] for head in heads), *(format_spec(row["options"][name]) for name in names)] for row in rows]
    lines = [["" if cell is None else cell for cell in line] for line in cells]
    checkpoint.write(folder / TRIALS, checkpoint.to_csv([[*heads, *names], *lines]))
