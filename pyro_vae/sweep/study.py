"""The trials of a sweep in an Optuna study: who trains which one, and which ones must be trained again."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

from pyro_vae.sweep.locks import is_free
from pyro_vae.sweep.space import Space

Sampler = Literal["grid", "tpe"]
Metric = Literal["elbo", "nll"]
BEAT, GRACE = 15, 120  # seconds between signs of life of a trial, and without one until another worker takes it
DEATHS = 5  # workers that may die in a trial before it counts as failed
ORDER = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")  # of two trials of one run, the first state counts


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

    def __init__(self, folder: Path, name: str, url: str | None, sampler: Sampler, seed: int = 0) -> None:
        optuna = import_optuna()
        self.folder, self.sampler = folder, sampler
        self.url = url or f"sqlite:///{folder / 'study.db'}"
        with _quiet():
            self.storage = optuna.storages.RDBStorage(
                self.url,
                engine_kwargs={"connect_args": {"timeout": 60}} if self.url.startswith("sqlite") else None,
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
            raise ValueError(
                f"Expected the sweep that the study {self.study.study_name!r} began with; {key} was "
                f"{before.get(key)!r} and is now {rules.get(key)!r}. Restore it, or choose another --study_dir."
            )

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
        if outside := [key for key in numbers if key not in grid]:
            raise ValueError(
                f"Expected the sweep that the study {self.study.study_name!r} began with; it has runs of {outside[0]}, "
                "which are not in the grid. Restore them, or choose another --study_dir."
            )
        for key, options in grid.items():
            number = numbers.setdefault(key, len(numbers))
            for seed in space.seeds:
                if (key, seed) not in present:
                    self._add({"number": number, "options": options, "seeds": [seed]})

    def trials(self) -> list[Any]:
        """Return the trials without those that died or that repeat another one."""
        best: dict[tuple[int, str], Any] = {}
        for trial in self.study.get_trials(deepcopy=False):
            attributes = trial.user_attrs
            if "number" not in attributes or (trial.state.name == "FAIL" and "message" not in attributes):
                continue
            key = attributes["number"], str(attributes["seeds"])
            other = best.setdefault(key, trial)
            if ORDER.index(trial.state.name) < ORDER.index(other.state.name):
                best[key] = trial
        return [*best.values()]

    def open_trials(self) -> tuple[int, int]:
        """Return the numbers of trials that wait and that run."""
        states = [trial.state.name for trial in self.study.get_trials(deepcopy=False)]
        return states.count("WAITING"), states.count("RUNNING")

    def claim(self, worker: str, space: Space | None = None, most: int | None = None) -> Job | None:
        """Return a waiting trial or, for a search with fewer than ``most`` trials, a new one; None if there is none."""
        while True:
            waiting, _ = self.open_trials()
            if not waiting and (space is None or most is None or len(self.trials()) >= most):
                return None
            with _quiet():
                trial = self.study.ask()
            trial.set_user_attr("worker", worker)
            if "number" not in trial.user_attrs:
                if space is None or most is None or len(self.trials()) >= most:  # another worker was faster
                    self.study.tell(trial, state=_state("FAIL"))
                    return None
                new = {"number": trial.number, "options": space.suggest(trial), "seeds": [*space.seeds]}
                for name, value in new.items():
                    trial.set_user_attr(name, value)
            job = Job(trial, *(trial.user_attrs[name] for name in ("number", "options", "seeds")))
            if trial.user_attrs.get("deaths", 0) >= DEATHS:
                self.fail(job, f"{DEATHS} workers died in this trial, perhaps for lack of memory.")
            elif any(self._is_same(other, job) for other in self.study.get_trials(deepcopy=False)):
                self.study.tell(trial, state=_state("FAIL"))
            else:
                return job

    def finish(self, job: Job, results: list[dict[str, Any]]) -> None:
        """Record the mean value of a trial, in nats, and its results by seed."""
        job.trial.set_user_attr("results", results)
        self.study.tell(job.trial, sum(result["value"] for result in results) / len(results))

    def prune(self, job: Job) -> None:
        """Record that a trial stopped early."""
        self.study.tell(job.trial, state=_state("PRUNED"))

    def fail(self, job: Job, message: str) -> None:
        """Record that a trial cannot be trained, and why."""
        job.trial.set_user_attr("message", message)
        self.study.tell(job.trial, state=_state("FAIL"))

    def release(self, job: Job) -> None:
        """Add a trial again, for another worker or a later call."""
        trial = self.study.tell(job.trial, state=_state("FAIL"))
        self._add_again(trial, died=False)

    def revive(self) -> None:
        """Add the trials of dead workers again: here by their locks, on other machines by missing signs of life."""
        optuna = import_optuna()
        for trial in self.study.get_trials(deepcopy=False, states=(_state("RUNNING"),)):
            worker = trial.user_attrs.get("worker")
            late = trial.datetime_start and datetime.now() - trial.datetime_start > timedelta(seconds=GRACE)
            if (late and worker is None) or (worker and is_free(self.folder / "workers" / worker)):
                with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):  # somebody was faster
                    self.study.tell(trial.number, state=_state("FAIL"))
                    self._add_again(trial)
        with _quiet():
            optuna.storages.fail_stale_trials(self.study)

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
        self.study.add_trial(optuna.create_trial(state=_state("WAITING"), **options))

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
        done = state in ("COMPLETE", "PRUNED") or (state == "FAIL" and "message" in attributes)
        return attributes["seeds"] == job.seeds and (done or (state == "RUNNING" and other.number < job.trial.number))


def run_name(number: int, seed: int) -> str:
    """Return the name of a run's directory."""
    return f"{number:03d}-seed-{seed}"


def import_optuna() -> Any:
    """Return the module ``optuna``, without its messages of progress; raise a sentence if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        advice = 'Install it with: pip install "pyro_vae[sweep]"'
        raise ValueError(f"Expected Optuna, which stores the trials of a sweep; got none. {advice}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Optuna's warnings that a heartbeat is experimental, and meant for its own loop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?i).*heartbeat|fail_stale_trials")
        yield


def _state(name: str) -> Any:
    return import_optuna().trial.TrialState[name]


def _key(options: dict[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=str)
