"""The trials of a sweep in an Optuna study: who trains which one, and which ones must be trained again."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

from pyro_vae.checkpoint import display_path
from pyro_vae.compare.rows import format_spec
from pyro_vae.sweep.library import import_optuna, local_url, quiet, state_of
from pyro_vae.sweep.locks import is_free, remove_free
from pyro_vae.sweep.space import Space

Sampler = Literal["grid", "tpe"]
Metric = Literal["elbo", "nll"]
MARK = "sweep.yaml"  # the copy of the file, which makes a directory a study
BEAT, GRACE = 15, 120  # seconds between signs of life of a trial, and without one until another worker takes it
DEATHS = 5  # workers that may die in a trial before it counts as failed


@dataclass(frozen=True)
class Job:
    """A trial that a worker has to train: one setting with one or several seeds."""

    trial: Any  # of Optuna
    number: int
    options: dict[str, Any]
    seeds: list[int]


class Study:
    """An Optuna study in a database that several workers share, also on several machines.

    A trial of a grid is one run; a trial of a search has all seeds of a setting. The attributes of a trial are
    ``number`` of its setting, ``options`` of ``train``, ``seeds``, and in the end ``results`` or a ``message``.
    """

    def __init__(self, folder: Path, url: str | None, sampler: Sampler, seed: int = 0) -> None:
        optuna = import_optuna()
        self.folder, self.sampler, self.is_local = folder, sampler, url is None
        # A local study has a constant name, since its directory may be moved.
        name, url = (folder.name, url) if url else ("sweep", local_url(folder / "study.db"))
        with quiet():
            self.storage = optuna.storages.RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
                heartbeat_interval=BEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=lambda _, trial: self._add_again(trial),
            )
        options = {"pruner": optuna.pruners.MedianPruner(n_startup_trials=5)}
        # The sampler of a grid proposes nothing: all trials are added.
        options["sampler"] = optuna.samplers.TPESampler(seed=seed) if sampler == "tpe" else None
        self.study = optuna.create_study(study_name=name, storage=self.storage, load_if_exists=True, **options)

    def check(self, rules: dict[str, Any]) -> None:
        """Refuse a study of another sweep; remember the rules of a new one."""
        before = self.study.user_attrs.get("rules")
        if before is None:
            self.study.set_user_attr("rules", rules)
        elif differ := [key for key in {**before, **rules} if before.get(key) != rules.get(key)]:
            key = differ[0]
            changed = f"{key} was {before.get(key)!r} and is now {rules.get(key)!r}"
            raise self._other("the data have changed since" if key == "data" else changed)

    def _other(self, change: str) -> ValueError:
        place = display_path(self.folder)
        advice = "Restore the former, or choose another --study_dir."
        return ValueError(f"Expected the sweep that the study {place!r} began with; {change}. {advice}")

    def check_basis(self, basis: str) -> None:
        """Refuse a run whose -log p(x) cannot be compared with the first run."""
        before = self.study.user_attrs.get("basis")
        if before is None:
            self.study.set_user_attr("basis", basis)
        elif before != basis:
            raise ValueError(
                f"Expected runs that compare, to search or prune; the first has {before}, this one {basis}."
            )

    def add_missing(self, space: Space) -> None:
        """Add the trials of a grid that the study lacks; refuse a study with trials outside of the grid."""
        numbers, present = dict[str, int](), set[tuple[str, int]]()
        for trial in self.trials():
            key = _key(trial.user_attrs["options"])
            numbers[key] = trial.user_attrs["number"]
            present.add((key, trial.user_attrs["seeds"][0]))
        grid = {_key(options): options for options, _ in space.grid()}
        if outside := [json.loads(key) for key in numbers if key not in grid]:
            names = dict.fromkeys(name for options in (*outside, *grid.values()) for name in options)
            new = {name: {_key({name: options.get(name)}) for options in grid.values()} for name in names}
            name = next((n for n in names if _key({n: outside[0].get(n)}) not in new[n]), [*names][0])
            value = format_spec(outside[0][name]) if name in outside[0] else "its default"
            raise self._other(f"it has runs in which {name} is {value}, and the file has none")
        for key, options in grid.items():
            number = numbers.setdefault(key, len(numbers))
            for seed in space.seeds:
                if (key, seed) not in present:
                    self._add({"number": number, "options": options, "seeds": [seed]})

    def retry(self) -> None:
        """Add the trials that failed again."""
        for trial in self.trials():
            if trial.state.name == "FAIL":
                attributes = {name: trial.user_attrs[name] for name in ("number", "options", "seeds")}
                self._add(attributes, trial.params, trial.distributions)

    def trials(self) -> list[Any]:
        """Return the last trial of each run or setting, or the one that is complete; leave out trials that died."""
        last: dict[tuple[int, str], Any] = {}
        for trial in self._counted():
            key = trial.user_attrs["number"], str(trial.user_attrs["seeds"])
            if key not in last or last[key].state.name not in ("COMPLETE", "PRUNED"):
                last[key] = trial
        return [*last.values()]

    def has_new(self, most: int | None) -> bool:
        """Return whether a search has fewer than ``most`` trials."""
        return most is not None and len(self._counted()) < most

    def _counted(self) -> list[Any]:
        """Return the trials but for those that died."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if "number" in trial.user_attrs]
        return [trial for trial in trials if trial.state.name != "FAIL" or "message" in trial.user_attrs]

    def open_trials(self) -> tuple[int, int]:
        """Return the numbers of trials that wait and that run."""
        states = [trial.state.name for trial in self.study.get_trials(deepcopy=False)]
        return states.count("WAITING"), states.count("RUNNING")

    def claim(self, worker: str, space: Space | None = None, most: int | None = None) -> Job | None:
        """Return a waiting trial or, for a search with fewer than ``most`` trials, a new one; None if there is none."""
        while True:
            waiting, _ = self.open_trials()
            if not waiting and (space is None or not self.has_new(most)):
                return None
            with quiet():
                trial = self.study.ask()
            trial.set_user_attr("worker", worker)
            if "number" not in trial.user_attrs:
                if space is None or not self.has_new(most):  # another worker was faster
                    self.study.tell(trial, state=state_of("FAIL"))
                    return None
                new: dict[str, Any] = {"options": space.suggest(trial), "seeds": [*space.seeds]}
                key = _key(new)
                same = [t for t in self._counted() if _key({name: t.user_attrs[name] for name in new}) == key]
                new["number"] = same[0].user_attrs["number"] if same else trial.number
                for name, value in new.items():
                    trial.set_user_attr(name, value)
                if same and same[0].state.name == "COMPLETE":  # the same runs again
                    self.finish(Job(trial, new["number"], new["options"], new["seeds"]), same[0].user_attrs["results"])
                    continue
            job = Job(trial, *(trial.user_attrs[name] for name in ("number", "options", "seeds")))
            if trial.user_attrs.get("deaths", 0) >= DEATHS:
                self.fail(job, f"{DEATHS} workers died in this trial, perhaps for lack of memory.")
            elif any(self._is_same(other, job) for other in self.study.get_trials(deepcopy=False)):
                self.study.tell(trial, state=state_of("FAIL"))
            else:
                return job

    def finish(self, job: Job, results: list[dict[str, Any]]) -> None:
        """Record the mean value of a trial, in nats, and its results by seed."""
        job.trial.set_user_attr("results", results)
        self.study.tell(job.trial, sum(result["value"] for result in results) / len(results))

    def prune(self, job: Job) -> None:
        """Record that a trial stopped early."""
        self.study.tell(job.trial, state=state_of("PRUNED"))

    def fail(self, job: Job, message: str, results: Sequence[dict[str, Any]] = ()) -> None:
        """Record that a trial cannot be trained, and why, and the results of the seeds before."""
        job.trial.set_user_attr("message", message)
        job.trial.set_user_attr("results", [*results])
        self.study.tell(job.trial, state=state_of("FAIL"))

    def release(self, job: Job) -> None:
        """Add a trial again, for another worker or a later call."""
        trial = self.study.tell(job.trial, state=state_of("FAIL"))
        self._add_again(trial, died=False)

    def revive(self) -> None:
        """Add the trials of dead workers again: here by their locks, on other machines by missing signs of life."""
        optuna = import_optuna()
        for trial in self.study.get_trials(deepcopy=False, states=(state_of("RUNNING"),)):
            worker = trial.user_attrs.get("worker")
            late = trial.datetime_start and datetime.now() - trial.datetime_start > timedelta(seconds=GRACE)
            if (late and worker is None) or (worker and is_free(self.folder / "workers" / worker)):
                with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):  # somebody was faster
                    self.study.tell(trial.number, state=state_of("FAIL"))
                    self._add_again(trial)
        with quiet():
            optuna.storages.fail_stale_trials(self.study)
        running = self.study.get_trials(deepcopy=False, states=(state_of("RUNNING"),))
        remove_free(self.folder / "workers", {trial.user_attrs.get("worker") for trial in running})

    @contextmanager
    def signs_of_life(self, job: Job) -> Iterator[None]:
        """Tell the other machines every few seconds that a trial is alive."""
        over = Event()

        def beat() -> None:
            while True:
                self.storage.record_heartbeat(job.trial._trial_id)
                if over.wait(BEAT):
                    return

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _add(self, attributes: dict[str, Any], params: Any = None, distributions: Any = None) -> None:
        optuna = import_optuna()
        options = {"params": params, "distributions": distributions, "user_attrs": attributes}
        self.study.add_trial(optuna.create_trial(state=state_of("WAITING"), **options))

    def _add_again(self, trial: Any, died: bool = True) -> None:
        attributes = {name: value for name, value in trial.user_attrs.items() if name != "worker"}
        if "number" in attributes:
            attributes["deaths"] = attributes.get("deaths", 0) + died
            self._add(attributes, trial.params, trial.distributions)

    def _is_same(self, other: Any, job: Job) -> bool:
        """Return whether another trial of the same run is done, or was claimed before."""
        attributes, state = other.user_attrs, other.state.name
        if other.number == job.trial.number or attributes.get("number") != job.number:
            return False
        before = other.number < job.trial.number and state == "RUNNING"
        return attributes["seeds"] == job.seeds and (state in ("COMPLETE", "PRUNED") or before)


def run_name(number: int, seed: int) -> str:
    """Return the name of a run's directory."""
    return f"{number:03d}-seed-{seed}"


def _key(options: dict[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=str)
