"""A sweep trains each run once, with the numbers of the run by itself, whoever dies."""

import csv
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from pyro_vae import checkpoint, commands, fit
from pyro_vae.options import dataset_of, fit_arguments, program_of
from pyro_vae.sweep import best_of, sweep
from pyro_vae.sweep.locks import worker_lock
from pyro_vae.sweep.reading import parsed, read
from pyro_vae.sweep.running import _open, records
from pyro_vae.sweep.space import Choice, Range, Space
from pyro_vae.sweep.study import DEATHS, Study
from pyro_vae.sweep.worker import Worker

FILES = ("model.safetensors", "metrics.csv", "config.yaml")
TINY = {"data": "digits", "epochs": 1, "network": {"class_path": "MLP", "init_args": {"hidden": [8]}}}


def write(folder, content):
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


class TestSpace:
    @pytest.mark.parametrize(
        ("text", "settings"),
        [
            ("latent: 2", [{"latent": 2}]),
            ("latent: [2, 8]", [{"latent": 2}, {"latent": 8}]),
            ("latent: {low: 2, high: 6, number: 3}", [{"latent": 2}, {"latent": 4}, {"latent": 6}]),
            ("lr: {low: 1e-4, high: 1e-2, log: true, number: 3}", [{"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-2}]),
            (
                "objective: {class_path: ELBO, init_args: {beta: {low: 0, high: 1, number: 3}}}",
                [{"objective": {"class_path": "ELBO", "init_args": {"beta": beta}}} for beta in (0.0, 0.5, 1.0)],
            ),
            ('data: "1e3"', [{"data": "1e3"}]),
            ("columns: [x, y]", [{"columns": ["x", "y"]}]),
            ("columns: [[x], [x, y]]", [{"columns": ["x"]}, {"columns": ["x", "y"]}]),
            ("columns: {values: [[x], [x, y]]}", [{"columns": ["x"]}, {"columns": ["x", "y"]}]),
            (
                "latent: [2, 8]\noptimizer: [adam, muon]",
                [{"latent": i, "optimizer": name} for i in (2, 8) for name in ("adam", "muon")],
            ),
            (
                "prior: [StandardNormal, {class_path: Flow, init_args: {layers: {values: [2, 3]}}}]",
                [{"prior": "StandardNormal"}]
                + [{"prior": {"class_path": "Flow", "init_args": {"layers": i}}} for i in (2, 3)],
            ),
            (
                "settings: [{lr: 1e-3, epochs: 2}, {lr: [1e-4, 1e-2]}]\nlatent: [2, 3]",
                [{"latent": i} | s for i in (2, 3) for s in ({"lr": 1e-3, "epochs": 2}, {"lr": 1e-4}, {"lr": 1e-2})],
            ),
            (
                "network: {class_path: MLP, init_args: {hidden: [8, 8]}}",
                [{"network": {"class_path": "MLP", "init_args": {"hidden": [8, 8]}}}],
            ),
        ],
    )
    def test_grid_has_each_setting_once(self, tmp_path, text, settings):
        assert [options for options, _ in read(write(tmp_path, text)).grid()] == settings

    @pytest.mark.parametrize(
        ("seeds", "expected"),
        [({}, (0,)), ({"seed": 3}, (3,)), ({"seeds": 3}, (0, 1, 2)), ({"seeds": 2, "seed": 5}, (5, 6))]
        + [({"seeds": [7, 1]}, (7, 1)), ({"seed": [4, 2]}, (4, 2))],
    )
    def test_seeds_are_counted_or_listed(self, tmp_path, seeds, expected):
        assert read(write(tmp_path, {"latent": 2} | seeds)).seeds == expected

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("latnt: [2]", ["latnt"]),
            ("latent: [2, x]", ["latent", "x"]),
            ("latent: []", ["latent", "[]"]),
            ("latent: [2, 2]", ["latent", "2 twice"]),
            ("latent: {low: 3, high: 3}", ["latent", "low < high"]),
            ("latent: {low: 3}", ["latent", "high"]),
            ("latent: {low: 1, high: 2, step: 3}", ["latent", "step"]),
            ("lr: {low: 0, high: 1, log: true}", ["lr", "low > 0"]),
            ("lr: {low: 1, high: 2, number: 0}", ["lr", "number", "0"]),
            ("lr: {low: a, high: b}", ["lr", "'a'"]),
            ("lr: {values: 3}", ["lr", "3"]),
            ("prior: [Flw]", ["prior", "Flw"]),
            ("prior: [{class_path: Flow, init_args: {layrs: {values: [1, 2]}}}]", ["layrs"]),
            ("settings: [2, 3]", ["settings", "[2, 3]"]),
            ("settings: [{latent: 2}, {latent: 2}]", ["settings", "twice"]),
            ("settings: [{latent: 2}]\nlatent: [3]", ["latent", "both"]),
            ("settings: [{latent: 2, seed: 3}]", ["seed"]),
            ("settings: [{latent: 2}, {latnt: 3}]", ["latnt"]),
            ("settings: [{latent: []}]", ["settings.0.latent"]),
            ("settings: [{latent: 2, resume: runs/x}]", ["resume"]),
            ("latent: 2\nseeds: 0", ["seeds", "0"]),
            ("latent: 2\nseeds: [1, 1]", ["seeds", "[1, 1]"]),
            ("latent: 2\nseeds: many", ["seeds", "many"]),
            ("program: ConditionalVAE\nlatent: [2, 4]\nresume: runs/x", ["resume"]),
            *((f"{name}: x", [name, "Remove"]) for name in ("run_dir", "stage", "overwrite", "trust", "config")),
            ("[1, 2]", ["[1, 2]"]),
            ("a: b: c", ["YAML"]),
            ("", ["None"]),
            ("3: 4", ["[3]"]),
            ("latent: 2\nlatent: 3", ["latent twice"]),
            ("network: {class_path: MLP, init_args: {hidden: [8], hidden: [9]}}", ["hidden twice"]),
            (f"lr: {[*(1e-3 * (i + 1) for i in range(30)), 'bad']}", ["lr", "bad"]),
            ("lr: {low: 1e-3, high: .inf, number: 3}", ["lr", "inf"]),
            ("lr: {low: 1e-3, high: 1e-2, log: 'yes'}", ["lr", "'yes'"]),
            ("lr: {low: 1e-3, high: 1e-2, number: 30000000}", ["lr", "30000000"]),
            ("latent: {values: [2], low: 3}", ["latent", "values, low"]),
            ("latent: 2\nseeds: [0, 1]\nseed: 5", ["[0, 1]", "5"]),
            ("latent: 2\nseed: -5", ["-5"]),
            ("latent: 2\nseeds: [99999999999999999999]", ["99999999999999999999"]),
        ],
    )
    def test_refuses_in_one_sentence(self, tmp_path, text, words):
        with pytest.raises(ValueError, match="Expected") as error:
            read(write(tmp_path, text)).grid()
        assert all(word in str(error.value) for word in words), error.value
        assert "\n" not in str(error.value)

    def test_a_file_of_many_ranges_is_read_at_once(self, tmp_path):
        inner = "".join(f"{name}: {{low: 1, high: 9}}, " for name in ("num_particles", "beta", "free_bits"))
        ranges = "".join(
            f"{name}: {{low: 1, high: 9}}\n" for name in ("latent", "epochs", "batch_size", "lr", "clip_norm")
        )
        space = read(write(tmp_path, f"{ranges}objective: {{class_path: ELBO, init_args: {{{inner}}}}}"))
        assert len(space.searched) == 6

    def test_range_of_a_grid_needs_a_number(self, tmp_path):
        space = read(write(tmp_path, "lr: {low: 1e-4, high: 1e-2}"))
        with pytest.raises(ValueError, match="number"):
            space.grid()

    def test_search_suggests_only_values_of_the_space(self):
        import optuna

        flow = {"class_path": "Flow", "init_args": {"layers": Range("prior.Flow.layers", 2, 4)}}
        options = {"latent": Range("latent", 2, 8), "lr": Range("lr", 1e-4, 1e-2, log=True)}
        space = Space(options | {"prior": Choice("prior", ("StandardNormal", flow)), "epochs": 1}, (0,))
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        settings = [space.suggest(study.ask()) for _ in range(60)]
        assert {setting["latent"] for setting in settings} == {*range(2, 9)}
        assert all(1e-4 <= setting["lr"] <= 1e-2 for setting in settings)
        layers = {s["prior"]["init_args"]["layers"] for s in settings if isinstance(s["prior"], dict)}
        assert layers == {2, 3, 4}
        assert any(setting["prior"] == "StandardNormal" for setting in settings)
        assert space.searched == ["latent", "lr", "prior"]

    def test_search_suggests_options_that_change_together(self, tmp_path):
        import optuna

        text = "settings: [{lr: {low: 1e-4, high: 1e-3}, epochs: 1}, {lr: {low: 0.1, high: 0.2}, epochs: 2}]\nlatent: 2"
        space = read(write(tmp_path, text))
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        settings = [space.suggest(study.ask()) for _ in range(40)]
        assert {(s["epochs"], s["lr"] < 0.05) for s in settings} == {(1, True), (2, False)}
        assert space.searched == ["lr", "epochs"]
        assert {*space.sample()} == {"lr", "epochs", "latent"}


def grid(seeds=(0, 1), latent=(2, 3), **options):
    return Space(TINY | {"latent": Choice("latent", latent)} | options, seeds)


def open_study(folder, space=None, sampler="grid"):
    return Study(folder, None, sampler, space or grid())


@pytest.fixture
def study(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "workers").mkdir()
    return open_study(tmp_path)


def states(study):
    return [(job.number, job.seeds[0], job.state) for job in study.jobs()]


def counts(study):
    return study.count("waiting"), study.count("running")


RUNS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def claim_all(*studies, finish=False):
    """Claim jobs by the studies in turn until none is left, and finish each if asked; return their runs in order."""
    jobs = []
    while job := (study := studies[len(jobs) % len(studies)]).claim(f"worker {len(jobs)}"):
        if finish:
            study.finish(job, [{"seed": seed, "value": 1.0} for seed in job.seeds])
        jobs.append((job.number, *job.seeds))
    return sorted(jobs)


class TestStudy:
    def test_two_workers_claim_each_job_once(self, study):
        other = open_study(study.folder)
        assert claim_all(study, other) == RUNS
        assert other.claim("late") is None

    def test_two_workers_that_claim_at_the_same_moment_share_no_job(self, study, monkeypatch):
        other, jobs = open_study(study.folder), study.jobs
        monkeypatch.setattr("pyro_vae.sweep.study.PAUSE", 0)

        def stale():
            waiting = jobs()
            monkeypatch.setattr(study, "jobs", jobs)
            assert (job := other.claim("b")).number == 0
            assert job.seeds == [0]
            return waiting  # as before the claim of b

        monkeypatch.setattr(study, "jobs", stale)
        job = study.claim("a")
        assert (job.number, job.seeds) == (1, [0])
        assert counts(study) == (2, 2)

    def test_two_machines_with_different_grids_share_no_number(self, study, monkeypatch):
        other, jobs = open_study(study.folder, grid(latent=(4, 2, 3))), study.jobs
        monkeypatch.setattr("pyro_vae.sweep.study.PAUSE", 0)

        def stale():
            waiting = jobs()
            monkeypatch.setattr(study, "jobs", jobs)
            assert other.claim("b").options["latent"] == 4
            return waiting

        monkeypatch.setattr(study, "jobs", stale)
        job = study.claim("a")
        assert (job.number, job.options["latent"]) == (1, 2)

    def test_a_job_of_a_dead_worker_is_claimed_again(self, study):
        with worker_lock(study.folder) as name:
            study.claim(name)
            study.revive()
            assert counts(study) == (3, 1)  # alive
        (study.folder / "workers" / name).touch()  # as after SIGKILL, which releases the lock
        study.revive()
        study.revive()
        assert counts(study) == (4, 0)
        assert claim_all(study) == RUNS
        study.revive()  # these workers have no locks
        assert counts(study) == (4, 0)

    def test_a_job_that_kills_its_workers_fails_in_the_end(self, study):
        for i in range(4 * DEATHS):
            job = study.claim(f"dead-{i}")
            (study.folder / "workers" / f"dead-{i}").touch()
            assert job
            study.revive()
        assert study.claim("last") is None
        assert [state for *_, state in states(study)] == ["failed"] * 4
        assert all("workers died" in row["message"] for row in records(study))
        study.retry()
        assert claim_all(study, finish=True) == RUNS

    def test_a_worker_trains_the_seeds_of_a_setting(self, study):
        jobs = {"a": None, "b": None}
        for worker in "abab":
            jobs[worker] = study.claim(worker, before=jobs[worker])
            assert jobs[worker].number == "ab".index(worker)

    def test_a_released_job_waits_again(self, study):
        for _ in range(2 * DEATHS):
            study.release(study.claim("a"))  # counts for no death
        assert states(study) == [(*run, "waiting") for run in RUNS]

    def test_a_job_without_signs_of_life_is_claimed_again(self, study, monkeypatch):
        study.is_local = False
        job = study.claim("on another machine")
        with study.signs_of_life(job):
            study.revive()
            assert counts(study) == (3, 1)
        monkeypatch.setattr(study.storage, "grace_period", -1)
        study.revive()
        assert counts(study) == (4, 0)

    def test_a_grid_may_grow(self, study):
        study.finish(study.claim("a"), [{"seed": 0, "value": 1.0}])
        grown = open_study(study.folder, grid((0, 1, 2), (3, 2, 4)))
        grown.check_grid()
        assert {(job.options["latent"], job.number) for job in grown.jobs()} == {(2, 0), (3, 1), (4, 2)}
        assert counts(grown) == (8, 0)
        assert states(grown)[0] == (0, 0, "complete")

    def test_claims_of_a_large_grid_read_only_trials(self, tmp_path):
        many = open_study(tmp_path, grid(range(50), range(2, 22)))
        many.finish(many.claim("a"), [{"seed": 0, "value": 1.0}])
        assert counts(many) == (999, 0)
        assert len(many.study.get_trials(deepcopy=False)) == 1

    def test_another_sweep_is_refused(self, study):
        study.claim("a")
        with pytest.raises(ValueError, match="latent is 2"):
            open_study(study.folder, grid(latent=(3, 5))).check_grid()
        open_study(study.folder, grid(latent=(2, 5))).check_grid()  # no run was of latent 3
        study.check({"metric": "elbo", "data": "a"})
        study.check({"metric": "elbo", "data": "a"})
        with pytest.raises(ValueError, match="metric was 'elbo' and is now 'nll'"):
            study.check({"metric": "nll", "data": "a"})
        with pytest.raises(ValueError, match="the data have changed"):
            study.check({"metric": "elbo", "data": "b"})

    def test_best_is_the_mean_over_seeds_of_whole_settings_that_compare(self):
        values = [(0, 2.0), (0, 3.0), (1, 1.0), (1, 5.0), (2, 0.0), (2, None)]
        rows = [{"number": number, "value": value, "basis": None if value is None else "a"} for number, value in values]
        runs, mean = best_of(rows)
        assert ([run["number"] for run in runs], mean) == ([0, 0], 2.5)
        assert best_of([*rows, {"number": 3, "value": 0.0, "basis": "b"}]) is None

    def test_a_failed_job_is_trained_again_if_asked(self, study):
        job = study.claim("a")
        study.fail(job, "It diverged.")
        assert counts(study) == (3, 0)
        study.retry()
        assert counts(study) == (4, 0)
        assert claim_all(study, finish=True) == RUNS
        assert {state for *_, state in states(study)} == {"complete"}

    def test_a_worker_that_ends_after_a_claim_is_dead(self, study):
        with worker_lock(study.folder) as name:
            study.claim(name)
        study.revive()
        assert counts(study) == (4, 0)
        assert not [*(study.folder / "workers").iterdir()]

    def test_a_killed_start_can_be_repeated(self, tmp_path, study):
        assert not (tmp_path / "sweep.yaml").exists()
        file = write(tmp_path.parent, TINY | {"latent": [2, 3]})
        assert counts(_open(tmp_path, file, None, grid(), {"sampler": "grid"})) == (4, 0)

    def test_a_deleted_run_is_not_the_best(self, study):
        (study.folder / "runs/000-seed-1").mkdir()
        for _ in range(2):
            job = study.claim("a")
            study.finish(job, [{"seed": job.seeds[0], "value": 1.0, "basis": "a"}])
        rows = {row["run"]: row for row in records(study)}
        assert (rows["000-seed-0"]["state"], rows["000-seed-1"]["state"]) == ("deleted", "complete")
        assert best_of([*rows.values()]) is None
        for _ in range(2):
            study.retry()
            assert counts(study) == (3, 0)
            assert (job := study.claim("a")).seeds == [0]
            study.finish(job, [{"seed": 0, "value": 1.0}])

    def test_a_moved_study_is_the_same(self, study):
        study.finish(study.claim("a"), [{"seed": 0, "value": 1.0}])
        place = study.folder.parent / "moved?b#c %41"
        study.folder.rename(place)
        assert counts(open_study(place)) == (3, 0)

    def test_a_search_takes_the_results_of_equal_settings(self, tmp_path):
        space = Space(TINY | {"latent": Choice("latent", (2, 3))}, (0, 1))
        search, latents = open_study(tmp_path, space, "tpe"), []
        while job := search.claim("a", 6):
            latents.append(job.options["latent"])
            if job.options["latent"] == 2:
                search.finish(job, [{"seed": seed, "value": 1.0} for seed in job.seeds])
            else:
                search.fail(job, "It diverged.")
        assert sorted(latents) == [2, 3]
        assert len(search.jobs()) == 2
        assert len(search.study.get_trials()) == 6

    def test_a_search_tries_the_setting_of_a_dead_worker_again(self, tmp_path):
        (tmp_path / "workers").mkdir()
        space = Space(TINY | {"latent": Range("latent", 2, 900)}, (0, 1))
        search = open_study(tmp_path, space, "tpe")
        job = search.claim("dead", 2)
        (tmp_path / "workers/dead").touch()
        search.revive()
        again = search.claim("b", 2)
        assert (again.number, again.options, again.trial.params) == (job.number, job.options, job.trial.params)
        assert search.claim("c", 2).number != job.number
        assert search.claim("d", 2) is None


def train(options, folder):
    """Train a run by itself; return its history."""
    arguments = parsed(options)
    dataset = dataset_of(arguments)
    where = {"run_dir": folder, "progress": False}
    return fit(program_of(arguments, dataset), dataset, **(fit_arguments(arguments) | where))


class TestWorker:
    def do(self, study, options, events=None, metric="elbo", prune=False):
        study = open_study(study.folder, Space(TINY | options, (4,)))
        Worker(study, metric, prune, (events if events is not None else []).append).do(study.claim("me"))
        return records(study)[0]

    def test_run_is_that_of_fit(self, study, tmp_path):
        events = []
        row = self.do(study, {"latent": 3}, events)
        history = train(TINY | {"latent": 3, "seed": 4}, tmp_path / "alone")
        for name in FILES:
            assert (tmp_path / "runs/000-seed-4" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        assert row["state"] == "complete"
        assert row["value"] == history["valid"][-1]
        assert [event["event"] for event in events] == ["run", "epoch", "done"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"latent": 2, "likelihood": "Bernoulli"}, "Bernoulli"),
            ({"latent": 2, "valid": 0}, "valid = 0"),
            ({"latent": 2, "lr": 1e30}, "diverged"),
        ],
    )
    def test_a_run_that_fails_is_recorded(self, study, options, message):
        row = self.do(study, options)
        assert row["state"] == "failed"
        assert message in row["message"]
        assert "\n" not in row["message"]

    def test_a_value_that_is_not_finite_is_recorded(self, study, monkeypatch):
        monkeypatch.setattr("pyro_vae.sweep.worker.fit", lambda *_, **__: {"valid": [math.nan], "seconds": [1.0]})
        row = self.do(study, {"latent": 2})
        assert row["state"] == "failed"
        assert "nan" in row["message"]

    def test_nll_is_below_the_elbo(self, study):
        row = self.do(study, {"latent": 2}, metric="nll")
        program, _ = checkpoint.load(study.folder / "runs/000-seed-4")
        elbo = checkpoint.load_metrics(study.folder / "runs/000-seed-4")["valid"][-1]
        assert program is not None
        assert row["value"] < elbo

    def test_a_run_below_the_median_is_pruned_and_can_go_on(self, study):
        import optuna

        for _ in range(5):
            losses = {step: -1e6 for step in range(20)}
            study.study.add_trial(optuna.create_trial(value=-1e6, intermediate_values=losses))
        row = self.do(study, {"latent": 2, "epochs": 10}, prune=True)
        run = study.folder / "runs/000-seed-4"
        assert row["state"] == "pruned"
        assert len(checkpoint.load_metrics(run)["valid"]) == 2  # a fifth of 10
        assert checkpoint.load_state(run)[0]["epochs"] == 2  # it can go on

    def test_a_search_refuses_runs_that_do_not_compare(self, study):
        study.check_basis("of a mass")
        row = self.do(study, {"latent": 2}, prune=True)
        assert row["state"] == "failed"
        assert "of a density" in row["message"]


ARGUMENTS = [
    ({"workers": -1}, "worker"),
    ({"sampler": "random"}, "sampler"),
    ({"sampler": "tpe"}, "trials"),
    ({"trials": 3}, "trials"),
    ({"metric": "loss"}, "metric"),
    ({"storage": "postgres"}, "postgres"),
    ({"storage": "sqlite:////nowhere/at/all.db"}, "nowhere"),
    ({"storage": "mine://me:secret@host/db"}, "mine"),
]


@pytest.mark.parametrize(("options", "word"), ARGUMENTS)
def test_bad_arguments_leave_nothing(tmp_path, options, word):
    file = write(tmp_path, "latent: 2")
    with pytest.raises(ValueError, match=word) as error:
        sweep(file, tmp_path / "study", **options)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "study").exists()


def test_a_directory_with_other_files_is_refused(tmp_path):
    file = write(tmp_path, TINY | {"latent": [2, 3]})
    with pytest.raises(ValueError, match="mine.yaml"):
        sweep(file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_data_are_not_searched(tmp_path):
    file = write(tmp_path, TINY | {"latent": 2, "binarize": ["static", "dynamic"]})
    with pytest.raises(ValueError, match="binarize"):
        sweep(file, tmp_path / "study", sampler="tpe", trials=3)


def test_runs_without_validation_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="valid = 0"):
        sweep(write(tmp_path, TINY | {"latent": [2, 3], "valid": 0}), tmp_path / "study")


def test_a_sweep_in_this_process_is_like_one_in_others(tmp_path, capsys):
    settings, threads = [{"latent": 2, "lr": 1e30}, {"latent": 3, "lr": 1e-3}], torch.get_num_threads()
    file = write(tmp_path, TINY | {"settings": settings, "seeds": [1]})
    rows = sweep(file, tmp_path / "study", workers=0, progress=False)
    assert [(row["run"], row["state"]) for row in rows] == [("000-seed-1", "failed"), ("001-seed-1", "complete")]
    assert torch.get_num_threads() == threads
    assert capsys.readouterr().err == ""
    assert "diverged" in (tmp_path / "study/logs/worker-1.txt").read_text()
    train(TINY | {"latent": 3, "lr": 1e-3, "seed": 1}, tmp_path / "alone")
    for name in FILES:
        run = tmp_path / "study/runs/001-seed-1"
        assert (run / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def command(*words):
    return [sys.executable, "-m", "pyro_vae", "sweep", *map(str, words)]


def children(pid):
    return [*map(int, subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split())]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="Needs pgrep.")
def test_a_killed_sweep_ends_as_runs_by_themselves(tmp_path, capsys):
    """Its worker is killed, then the worker's parent, then all its processes."""
    file, folder = write(tmp_path, TINY | {"epochs": 20, "latent": [2, 3, 4]}), tmp_path / "study"
    process = subprocess.Popen(
        command(file, "--study_dir", folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )

    def wait_for(number):
        checkpoint = folder / f"runs/00{number}-seed-0/checkpoint/last.safetensors"
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.02)
        (nursery,) = children(process.pid)
        return nursery

    os.kill(children(wait_for(0))[0], signal.SIGKILL)
    os.kill(wait_for(1), signal.SIGKILL)
    wait_for(2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = ["sweep", str(file), "--study_dir", str(folder), "--workers", "0"]
    assert commands.run(again) == 0
    assert "3 runs: 3 complete" in capsys.readouterr().out
    for run in (folder / "runs").iterdir():
        alone = tmp_path / f"alone-{run.name}"
        train(yaml.safe_load((run / "config.yaml").read_text()), alone)
        for name in FILES:
            assert (run / name).read_bytes() == (alone / name).read_bytes(), name
    with (folder / "trials.csv").open() as lines:
        rows = [*csv.DictReader(lines)]
    assert [(row["run"], row["latent"]) for row in rows] == [(f"00{i}-seed-0", str(i + 2)) for i in range(3)]
    assert commands.run(again) == 0  # nothing is left to train
    assert "worker" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(("forks", "workers"), [(True, 2), (False, 1)])
def test_a_sweep_in_processes_is_complete(tmp_path, monkeypatch, forks, workers):
    program = "from pyro_vae.sweep import nursery; nursery.FORKS = False; nursery.main()"
    if not forks:
        monkeypatch.setattr("pyro_vae.sweep.team.FORKS", False)
        monkeypatch.setattr("pyro_vae.sweep.team.NURSERY", program)
    file = write(tmp_path, TINY | {"latent": [2, 3, 4][: workers + 1]})
    rows = sweep(file, tmp_path / "study", workers=workers, progress=False)
    assert [row["state"] for row in rows] == ["complete"] * (workers + 1)
    logs = {path.name for path in (tmp_path / "study/logs").iterdir()}
    assert logs == {"workers.txt", *(f"worker-{i + 1}.txt" for i in range(workers))}
