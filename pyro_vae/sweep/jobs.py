"""Jobs of a sweep, and what the trials of a study tell about them."""

import json
from dataclasses import dataclass
from typing import Any

DONE = ("complete", "pruned", "failed")  # states that need no worker


@dataclass(frozen=True)
class Job:
    """A job: one run of a grid, or one setting of a search with all seeds.

    ``trial`` decides the ``state``: a complete or pruned trial, or else the last trial whose worker lives.
    """

    number: int
    options: dict[str, Any]
    seeds: list[int]
    state: str = "waiting"  # or running, complete, pruned or failed
    trial: Any = None  # of Optuna

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of its trials."""
        return {"number": self.number, "options": self.options, "seeds": self.seeds}

    def has(self, trial: Any) -> bool:
        """Return whether a trial is of this job."""
        return bool(trial.user_attrs["number"] == self.number and trial.user_attrs["seeds"] == self.seeds)


@dataclass(frozen=True)
class Trials:
    """The trials of a study at one moment.

    Failures before the trial number ``forgiven`` do not count, nor do the trials ``deleted``.
    """

    trials: list[Any]
    forgiven: int
    deleted: list[int]

    def state(self, trial: Any) -> str:
        """Return the state that a job has by a trial."""
        if trial.state.name == "FAIL":
            return "failed" if "message" in trial.user_attrs and trial.number >= self.forgiven else "waiting"
        return "waiting" if trial.number in self.deleted else str(trial.state.name.lower())

    def jobs(self) -> list[Job]:
        """Return each job that has a trial, with the trial that decides the state of the job."""
        last = dict[tuple[int, str], Job]()
        for trial in self.trials:
            key, state = (trial.user_attrs["number"], str(trial.user_attrs["seeds"])), self.state(trial)
            if key not in last or (state != "waiting" and last[key].state not in ("complete", "pruned")):
                number, options, seeds = (trial.user_attrs[name] for name in ("number", "options", "seeds"))
                last[key] = Job(number, options, seeds, state, trial)
        return [*last.values()]

    def tried(self) -> int:
        """Return the number of trials that run or have ended, and of jobs that wait for another trial."""
        ended = sum(self.state(trial) != "waiting" for trial in self.trials)
        return ended + sum(job.state == "waiting" for job in self.jobs())

    def deaths(self, job: Job) -> int:
        """Return how many workers died in the trials of a job."""
        lost = [trial for trial in self.trials if job.has(trial) and self.state(trial) == "waiting"]
        return sum(trial.number >= self.forgiven and "stopped" not in trial.user_attrs for trial in lost)

    def had(self, job: Job) -> bool:
        """Return whether another trial conflicts with the trial of a job.

        An earlier trial conflicts if it has the same number and other options. A trial of the same job conflicts if it
        is earlier or has ended.
        """
        for trial in self.trials:
            state, earlier = self.state(trial), trial.number < job.trial.number
            if trial.number == job.trial.number or trial.user_attrs["number"] != job.number or state == "waiting":
                continue
            if earlier and key_of(trial.user_attrs["options"]) != key_of(job.options):
                return True
            if trial.user_attrs["seeds"] == job.seeds and (earlier or state in DONE):
                return True
        return False


def key_of(options: dict[str, Any]) -> str:
    """Return a text that equal options share."""
    return json.dumps(options, sort_keys=True, default=str)


def run_name(number: int, seed: int) -> str:
    """Return the name of a run's directory."""
    return f"{number:03d}-seed-{seed}"
