"""The trials of a sweep in an Optuna study: who trains which one, and which ones must be trained again."""

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

from pyro_vae.checkpoint import display_path
from pyro_vae.compare.rows import format_spec
from pyro_vae.sweep.jobs import DONE, Job, Trials, key_of, run_name
from pyro_vae.sweep.library import import_optuna, local_url, quiet, state_of
from pyro_vae.sweep.locks import is_free, remove_free
from pyro_vae.sweep.space import Space

Sampler = Literal["grid", "tpe"]
Metric = Literal["elbo", "nll"]
MARK = "sweep.yaml"  # the copy of the file, which makes a directory a study
BEAT, GRACE = 15, 120  # seconds between signs of life of a trial, and without one until another worker takes it
PAUSE = 0.2  # seconds until a worker looks for another job, if two workers had the same one
DEATHS = 5  # workers that may die in a trial before it counts as failed


class Study:
    """An Optuna study in a database that several workers share, also on several machines.

    The attributes of a trial are ``number`` of its setting, ``options`` of ``train``, ``seeds``, ``worker``, and in the
    end ``results`` or a ``message``. A worker adds a trial when it starts to train, so the database has no trials that
    wait, and a claim takes as long in a large grid. A trial that failed without a message must be trained again: its
    worker died, was ``stopped``, or, with the attribute ``twice``, found that another worker had the same job.
    """

    def __init__(self, folder: Path, url: str | None, sampler: Sampler, space: Space, seed: int = 0) -> None:
        optuna = import_optuna()
        self.folder, self.sampler, self.is_local, self.space = folder, sampler, url is None, space
        self.grid = {key_of(options): options for options, _ in space.grid()} if sampler == "grid" else {}
        # A local study has a constant name, since its directory may be moved.
        name, url = (folder.name, url) if url else ("sweep", local_url(folder / "study.db"))
        with quiet():
            self.storage = optuna.storages.RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
                heartbeat_interval=BEAT,
                grace_period=GRACE,
            )
        samplers = optuna.samplers
        # The sampler of a grid proposes nothing.
        of_study = samplers.TPESampler(seed=seed) if sampler == "tpe" else samplers.RandomSampler()
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
        self.study = optuna.create_study(
            study_name=name, storage=self.storage, load_if_exists=True, sampler=of_study, pruner=pruner
        )

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

    def check_grid(self) -> None:
        """Refuse a study with trials outside of the grid."""
        for options in (job.options for job in self._trials().jobs() if self.sampler == "grid"):
            if key_of(options) in self.grid:
                continue
            names = dict.fromkeys(name for setting in (options, *self.grid.values()) for name in setting)
            new = {name: {key_of({name: setting.get(name)}) for setting in self.grid.values()} for name in names}
            name = next((n for n in names if key_of({n: options.get(n)}) not in new[n]), [*names][0])
            value = format_spec(options[name]) if name in options else "its default"
            raise self._other(f"it has runs in which {name} is {value}, and the file has none")

    def retry(self) -> None:
        """Let the jobs that failed so far, and those with a deleted run, be trained again."""
        trials, lacking = self._trials(), [job for job in self.jobs() if self.lacks(job)]
        numbers = {trial.number for trial in trials.trials if any(job.has(trial) for job in lacking)}
        self.study.set_user_attr("deleted", sorted(numbers | {*trials.deleted}))
        self.study.set_user_attr("forgiven", len(self.study.get_trials(deepcopy=False)))

    def lacks(self, job: Job, seed: int | None = None) -> bool:
        """Return whether the directory of a complete run, or of any run of a job, is deleted."""
        if job.state != "complete" or not self.is_local:
            return False
        names = [run_name(job.number, number) for number in (job.seeds if seed is None else [seed])]
        return not all((self.folder / "runs" / name).is_dir() for name in names)

    def jobs(self) -> list[Job]:
        """Return the runs of a grid, or the settings that a search has tried, by number and seeds."""
        jobs = self._trials().jobs()
        present = {(job.number, *job.seeds) for job in jobs}
        options_of = {job.number: job.options for job in jobs}
        numbers = {key_of(options): number for number, options in options_of.items()}
        new = itertools.count(max(options_of, default=-1) + 1)
        for setting, options in self.grid.items():
            number = numbers[setting] if setting in numbers else next(new)
            runs = [Job(number, options, [seed]) for seed in self.space.seeds]
            jobs += [run for run in runs if (number, *run.seeds) not in present]
        return sorted(jobs, key=lambda job: (job.number, job.seeds))

    def has_new(self, most: int | None) -> bool:
        """Return whether a search has fewer than ``most`` trials."""
        return most is not None and self._trials().tried() < most

    def count(self, state: str) -> int:
        """Return the number of jobs in a state."""
        return sum(job.state == state for job in self.jobs())

    def claim(self, worker: str, most: int | None = None, before: Job | None = None) -> Job | None:
        """Return a job that waits or, for a search with fewer than ``most`` trials, a new one; None if there is none.

        Its state is then ``running``. A worker that has trained a setting takes its other seeds first.
        """
        while True:
            jobs, number = self.jobs(), before.number if before else None
            running = {job.number for job in jobs if job.state == "running"}
            waiting = [job for job in jobs if job.state == "waiting"]
            if waiting:
                best = min(waiting, key=lambda job: (job.number != number, job.number in running))
                trials, job = self._begin(best, worker)
            elif self.has_new(most) and (suggested := self._suggested(worker, most)):
                trials, job = self._trials(), suggested
            else:
                return None
            if job.state != "running":
                continue
            if trials.had(job):
                self.release(job, "twice")
                time.sleep(PAUSE)
            elif trials.deaths(job) >= DEATHS:
                self.fail(job, f"{DEATHS} workers died in this trial, perhaps for lack of memory.")
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

    def release(self, job: Job, reason: Literal["stopped", "twice"] = "stopped") -> None:
        """Leave a job for a later call, or for another worker, which has it, too."""
        job.trial.set_user_attr(reason, True)
        self.study.tell(job.trial, state=state_of("FAIL"))

    def revive(self) -> None:
        """End the trials of dead workers: here by their locks, on other machines by missing signs of life."""
        optuna = import_optuna()
        for trial in self.study.get_trials(deepcopy=False, states=(state_of("RUNNING"),)):
            worker = trial.user_attrs.get("worker")
            late = trial.datetime_start and datetime.now() - trial.datetime_start > timedelta(seconds=GRACE)
            lock = self.folder / "workers" / str(worker)
            if (late and worker is None) or (worker and (is_free(lock) or (self.is_local and not lock.exists()))):
                with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):  # somebody was faster
                    self.study.tell(trial.number, state=state_of("FAIL"))
        with quiet():
            optuna.storages.fail_stale_trials(self.study)
        running = self.study.get_trials(deepcopy=False, states=(state_of("RUNNING"),))
        remove_free(self.folder / "workers", {trial.user_attrs.get("worker") for trial in running})

    @contextmanager
    def signs_of_life(self, job: Job) -> Iterator[None]:
        """Tell the other machines every few seconds that a trial is alive; on this machine, locks tell it."""
        if self.is_local and sys.platform != "win32":
            yield
            return
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

    def _trials(self) -> Trials:
        """Return the trials that have a job, but for those that another worker had."""
        trials = self.study.get_trials(deepcopy=False)
        own = [trial for trial in trials if "number" in trial.user_attrs and "twice" not in trial.user_attrs]
        attributes = self.study.user_attrs
        return Trials(own, attributes.get("forgiven", 0), attributes.get("deleted", []))

    def _begin(self, job: Job, worker: str) -> tuple[Trials, Job]:
        """Add a trial of a job, in one step; return all trials, and the job with its own."""
        optuna = import_optuna()
        before = {"params": job.trial.params, "distributions": job.trial.distributions} if job.trial else {}
        attributes = job.attributes | {"worker": worker}
        self.study.add_trial(optuna.create_trial(state=state_of("RUNNING"), user_attrs=attributes, **before))
        trials = self._trials()
        own = [trial for trial in trials.trials if job.has(trial) and trial.user_attrs["worker"] == worker]
        with quiet():
            return trials, replace(job, state="running", trial=optuna.Trial(self.study, own[-1]._trial_id))

    def _suggested(self, worker: str, most: int | None) -> Job | None:
        """Return a job with new options, or an ended one, if options repeat; None if there are enough jobs."""
        with quiet():
            trial = self.study.ask()
        trial.set_user_attr("worker", worker)
        if not self.has_new(most):  # another worker was faster
            self.study.tell(trial, state=state_of("FAIL"))
            return None
        options = self.space.suggest(trial)
        same = [job for job in self._trials().jobs() if key_of(job.options) == key_of(options)]
        job = Job(same[0].number if same else trial.number, options, [*self.space.seeds], "running", trial)
        for name in ("options", "seeds", "number"):  # the number last, by which others know the trial
            trial.set_user_attr(name, job.attributes[name])
        if not same or same[0].state not in DONE:
            return job
        for name in {"results", "message"} & {*same[0].trial.user_attrs}:
            trial.set_user_attr(name, same[0].trial.user_attrs[name])
        self.study.tell(trial, same[0].trial.value, state=same[0].trial.state)
        return replace(job, state=same[0].state)
