"""A worker of a sweep: a process that trains one run after another."""

import inspect
import math
import sys
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

import torch

from pyro_vae import checkpoint, data, evaluate, fit
from pyro_vae.compare.rows import basis_of
from pyro_vae.data import Dataset
from pyro_vae.options import Options, dataset_of, error_message, fit_arguments, program_of
from pyro_vae.program import posterior_of
from pyro_vae.seeds import eval_mode
from pyro_vae.sweep.jobs import Job, key_of, run_name
from pyro_vae.sweep.locks import worker_lock
from pyro_vae.sweep.reading import words_of
from pyro_vae.sweep.study import Metric, Study
from pyro_vae.train.processes import Stopped

PARTICLES, IMAGES = 1000, 1000  # draws for -log p(x), and validation data
WARM_UP = 0.2  # share of the epochs before a run may be pruned


class Worker:
    """Trains the jobs of a study, and tells the process that started it about each epoch."""

    def __init__(
        self,
        study: Study,
        metric: Metric,
        prune: bool,
        tell: Callable[[dict[str, Any]], None],
        log: IO[str] | None = None,
    ) -> None:
        self.study, self.metric, self.prune, self.tell, self.log = study, metric, prune, tell, log
        self.one_basis = prune or study.sampler == "tpe"
        self._pruned = False  # whether the current run was stopped early
        self._kept: dict[Any, tuple[str, Any]] = {}  # the results of the previous run, with what they depend on

    def do(self, job: Job) -> None:
        """Train all seeds of a job, and record the results, or why it failed."""
        results, self._pruned = list[dict[str, Any]](), False
        try:
            for seed in job.seeds:
                results.append(self._run(job, seed, first=seed == job.seeds[0]))
        except KeyboardInterrupt:
            if not self._pruned:
                self.study.release(job)
                raise
            self.study.prune(job)
            self.tell({"event": "pruned", "number": job.number, "seeds": job.seeds})
        except Exception as error:
            traceback.print_exc(file=self.log)
            message = error_message(error, "pyro-vae train") or f"{type(error).__name__}: {checkpoint.one_line(error)}"
            self.study.fail(job, message, results)
            self.tell({"event": "failed", "number": job.number, "seeds": job.seeds})
        else:
            self.study.finish(job, results)
            self.tell({"event": "done", "number": job.number, "seeds": job.seeds})

    def _run(self, job: Job, seed: int, first: bool) -> dict[str, Any]:
        """Train a run, or the rest of it, and return its name, value and basis."""
        name = run_name(job.number, seed)
        run = self.study.folder / "runs" / name
        key = key_of(job.options)
        options = self._keep(key, _parse, job).instances() | {"seed": seed}
        of_data = str([options[name] for name in (*inspect.signature(data.load).parameters, "program")])
        dataset = self._keep(of_data, dataset_of, options)
        if not len(dataset.valid):
            raise ValueError("Expected validation data, by which a sweep compares its runs; got valid = 0.")
        program = program_of(options, dataset)
        basis = self._keep(key, _basis, program, dataset)
        if self.one_basis:
            self.study.check_basis(basis)
        place = {"resume": run} if (run / "config.yaml").exists() else {"run_dir": run, "overwrite": True}
        reported = 0

        def on_epoch(history: dict[str, list[float]]) -> None:
            nonlocal reported
            epoch, losses = len(history["valid"]), history["valid"]
            self.tell({"event": "epoch", "run": name, "epoch": epoch, "epochs": options["epochs"], "value": losses[-1]})
            if self.prune and first:
                for step in range(reported, epoch):
                    job.trial.report(losses[step], step)
                reported = epoch
                if WARM_UP * options["epochs"] <= epoch < options["epochs"] and job.trial.should_prune():
                    self._pruned = True
                    raise Stopped  # fit saves the run

        self.tell({"event": "run", "run": name, "epochs": options["epochs"]})
        arguments = fit_arguments(options) | place
        start = time.process_time()
        history = fit(program, dataset, progress=False, on_epoch=on_epoch, **arguments)
        print(f"{name}: {time.process_time() - start:.3f} CPU seconds of fit", file=self.log or sys.stderr, flush=True)
        value = min(history["valid"]) if options["patience"] else history["valid"][-1]
        if self.metric == "nll" or options["sleep"]:
            part = dataset.valid.to(options["device"])
            draws = PARTICLES if self.metric == "nll" else 1
            values = evaluate.per_image(program, part, draws, IMAGES, 0, proposal="adapted" if draws > 1 else "guide")
            value = (values.nll if self.metric == "nll" else -values.elbo).mean().item()
        if not math.isfinite(value):
            raise ValueError(f"Expected a finite {self.metric} of the validation data; got {value}.")
        return {"run": name, "seed": seed, "value": value, "seconds": sum(history["seconds"]), "basis": basis}

    def _keep(self, key: str, make: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function makes of arguments; call it only if its key differs from that of the previous run."""
        if self._kept.get(make, ("",))[0] != key:
            self._kept[make] = key, make(*arguments)
        return self._kept[make][1]


def _parse(job: Job) -> Options:
    return Options("train", fit, words_of(job.options))


def _basis(program: torch.nn.Module, dataset: Dataset) -> str:
    """Return what runs must share, so that their -log p(x) compare."""
    with eval_mode(program, torch.device("cpu"), 0):
        rows = evaluate.rows_of(program, dataset.train, slice(0, 2))
        return str(basis_of(dataset, dataset.config, posterior_of(program, rows)))


def work(spec: dict[str, Any], tell: Callable[[dict[str, Any]], bool]) -> int:
    """Train the jobs of a study until none is left; return 0, or 130 after an interrupt."""

    def check(event: dict[str, Any]) -> None:
        if not tell(event):  # nobody reads it
            raise Stopped

    folder = spec["folder"]
    try:
        with open(spec["log"], "a") as log, worker_lock(folder) as name:
            study = Study(folder, spec["url"], spec["sampler"], spec["space"], spec["seed"])
            worker = Worker(study, spec["metric"], spec["prune"], check, log)
            job: Job | None = None
            while job := study.claim(name, spec["trials"], job):
                with study.signs_of_life(job):
                    worker.do(job)
    except KeyboardInterrupt:
        return 130
    return 0
