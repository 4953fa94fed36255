"""Rows of the benchmark's table: each part runs contests in new processes, and compares their numbers with limits."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rivals import one_thread_environment
from timing import cpu_name
from tqdm.auto import tqdm

__all__ = ["ALL", "PARTS", "Row"]

HERE = Path(__file__).parent
ALL = os.cpu_count() or 1
Row = dict[str, Any]
Numbers = dict[str, Any]


def contest(name: str, threads: int, processes: int = 1, **arguments: Any) -> Numbers:
    """Run one of ``contests.PARTS`` in a new process, or in several with torchrun; return its numbers."""
    environment = os.environ | one_thread_environment(threads) | {"PYTHONWARNINGS": "ignore"}
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "numbers.json"
        done = subprocess.run(
            [*launch, str(HERE / "contests.py"), name, json.dumps(arguments), str(output)],
            env=environment,
            preexec_fn=(lambda: os.sched_setaffinity(0, {ALL - 1})) if threads == processes == 1 else None,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ValueError(f"Expected the contest {name!r} to succeed; got: {done.stderr[-1500:]}")
        return json.loads(output.read_text())


def line(what: str, setting: str, ours: float, rival: str, theirs: float, bar: float, unit: str = "ms") -> Row:
    """Return a row of the table: our number, a rival's, their ratio, and its upper limit."""
    return {
        "part": sys._getframe(1).f_code.co_name,
        "what": what,
        "setting": setting,
        "ours": ours,
        "unit": unit,
        "rival": rival,
        "theirs": theirs,
        "ratio": ours / theirs,
        "at most": bar,
        "CPU": cpu_name(),
    }


def steps(rounds: int) -> Iterator[Row]:
    """Time one step of the ELBO, 784-400-20-400-784."""
    for threads, batch, binary in product(dict.fromkeys((1, ALL)), (128, 512), (False, True)):
        numbers = contest("steps", threads, batch=batch, rounds=rounds, binary=binary)
        small = batch == 128
        bars = {"NumPyro": 0.95, "handwritten, compiled": 0.85 if small else 1.0, "stock Pyro": 0.4}
        bars["matrix products"] = 1.25 if small else 1.6
        likelihood = "Bernoulli" if binary else "Gaussian"
        setting = f"{likelihood}, batch {batch}, threads {threads}, core {numbers['cpu']:.2f}"
        for rival, bar in bars.items():
            yield line("step, inductor", setting, numbers["ours, inductor"], rival, numbers[rival], bar)
        for rival, bar in (("stock Pyro", 0.4), ("handwritten, eager", 0.95)):
            yield line("step, graph", setting, numbers["ours, graph"], rival, numbers[rival], bar)
        yield line("step, bfloat16", setting, numbers["ours, bfloat16"], "float32", numbers["ours, inductor"], 1.0)


def iwae(rounds: int) -> Iterator[Row]:
    """Time one step of IWAE, K = 50, 784-200-200-50."""
    for threads, batch in product(dict.fromkeys((1, ALL)), (20, 100)):
        numbers = contest("iwae", threads, batch=batch, rounds=rounds)
        setting = f"batch {batch}, threads {threads}, core {numbers['cpu']:.2f}"
        for how in ("inductor", "graph"):
            yield line(f"IWAE-50, {how}", setting, numbers[f"ours, {how}"], "stock Pyro", numbers["stock Pyro"], 0.35)
        hand = "handwritten, compiled"
        yield line("IWAE-50, inductor", setting, numbers["ours, inductor"], hand, numbers[hand], 1.05)
        for how in ("inductor", "graph"):
            ours = numbers[f"ours, {how}, MB"]
            yield line(f"IWAE-50, {how}, peak", setting, ours, hand, numbers[f"{hand}, MB"], 1.2, "MB")


def priors(rounds: int) -> Iterator[Row]:
    """Time one step with a VampPrior of 500 pseudo-inputs and with a Flow prior, Bernoulli pixels."""
    for threads, prior in product(dict.fromkeys((1, ALL)), ("VampPrior", "Flow")):
        numbers = contest("priors", threads, batch=128, rounds=rounds, prior=prior)
        setting = f"batch 128, threads {threads}, core {numbers['cpu']:.2f}"
        for how in ("inductor", "graph"):
            yield line(f"{prior}, {how}", setting, numbers[f"ours, {how}"], "stock Pyro", numbers["stock Pyro"], 0.45)


def convolutions(rounds: int) -> Iterator[Row]:
    """Time one step with convolutions on 3x32x32."""
    for threads in dict.fromkeys((1, ALL)):
        numbers = contest("convolutions", threads, batch=64, rounds=rounds)
        setting = f"batch 64, threads {threads}, core {numbers['cpu']:.2f}"
        best = min(numbers["ours, inductor"], numbers["ours, graph"])
        for rival in ("handwritten, compiled", "handwritten, eager", "handwritten, channels last", "JAX"):
            yield line("step, convolutions", setting, best, rival, numbers[rival], 0.9)


def epochs(rounds: int, root: str) -> Iterator[Row]:
    """Time one epoch of ``fit`` on 50,000 images of MNIST and 10,000 for validation; the example's has 60,000."""
    for threads in dict.fromkeys((1, ALL)):
        numbers = contest("epochs", threads, root=root, batch=128, rounds=min(rounds, 5))
        setting = f"batch 128, threads {threads}"
        yield line("epoch of fit", setting, numbers["fit"], "pythae", numbers["pythae"], 0.5, "s")
        share = numbers["images"] / 60_000
        for name in ("Pyro's example", "Pyro's example, cached"):
            yield line(
                "epoch of fit", setting, numbers["fit"], f"{name}, same images", share * numbers[name], 0.35, "s"
            )
        numbers = contest("epochs", threads, root=root, batch=128, rounds=rounds, alone=True)
        around = numbers["fit"] - numbers["steps"] - numbers["validation"]
        yield line("around the steps of fit", setting, around, "its epoch", numbers["fit"], 0.05, "s")
        yield line("validation, 10,000 images", setting, numbers["validation"], "its epoch", numbers["fit"], 0.1, "s")
        yield line("recording and compiling", setting, numbers["start"], "20 epochs", 20 * numbers["fit"], 1.0, "s")


def scaling(rounds: int) -> Iterator[Row]:
    """Fit the exponents of the cost of a step, and of an epoch in the number of images."""
    numbers = contest("scaling", 1, rounds=rounds)
    sizes = [50_000, 100_000, 200_000, 400_000, 800_000, 1_600_000]
    runs = [contest("data_size", 1, images=images, batch=512, rounds=2) for images in tqdm(sizes, desc="data size")]
    numbers["images"] = [sizes, [1e3 * run["seconds"] for run in runs]]
    for name, (values, times) in numbers.items():
        slope, _ = np.polyfit(np.log(values), np.log(times), 1)
        yield line(
            f"cost against {name}", f"{values[0]:,} to {values[-1]:,}", slope, "proportional", 1.0, 1.05, "exponent"
        )
    on_disk = [run["MB"] for run in runs if run["on disk"]]
    yield line("memory", f"{sizes[-1]:,} images on disk", on_disk[-1], "400,000", on_disk[0], 1.05, "MB")


def parallel(rounds: int, root: str) -> Iterator[Row]:
    """Time an epoch of MNIST in two processes of one thread against one process, with the same batches."""
    for batch in (128, 512, 2048, 8192):
        one, two = (contest("parallel", 1, n, root=root, batch=batch, rounds=min(rounds, 5)) for n in (1, 2))
        yield line("two processes", f"batch {batch}", two["seconds"], "one", one["seconds"], 1 / 1.7, "s")
        apart = abs(two["losses"][0] / one["losses"][0] - 1)
        yield line("two processes, first epoch's loss apart", f"batch {batch}", apart, "one", 1.0, 1e-5, "relative")


def bfloat16(rounds: int, root: str) -> Iterator[Row]:
    """Compare the ELBO after the same steps, as a mean over seeds, since rounding alone makes two runs diverge."""
    for likelihood in ("Bernoulli", "Gaussian"):
        epochs, seeds = min(rounds, 10), min(rounds, 4)
        numbers = contest("bfloat16", ALL, root=root, likelihood=likelihood, epochs=epochs, seeds=seeds)["apart"]
        mean, error = np.mean(numbers), np.std(numbers, ddof=1) / len(numbers) ** 0.5
        setting = f"{likelihood}, {epochs} epochs of MNIST, mean of {seeds} seeds, ± {error:.2f}"
        yield line("ELBO, bfloat16 and float32 apart", setting, abs(float(mean)), "1 nat", 1.0, 0.5, "nats an image")


def startup(rounds: int) -> Iterator[Row]:
    """Measure the CPU time of the imports, ``--help``, and a wrong option, each in a new process."""
    new = {
        "torch": ["-c", "import torch"],
        "help": ["-m", "pyro_vae", "--help"],
        "options": ["-m", "pyro_vae", "train", "--help"],
        "wrong": ["-m", "pyro_vae", "train", "--latnt", "2"],
        "pyro": ["-c", "import pyro"],
        "both": ["-c", "import pyro; import pyro_vae"],
        "all": ["-c", "import pyro; from pyro_vae import VAE, data, evaluate, fit, load, objectives"],
    }
    times: dict[str, list[float]] = {name: [] for name in new}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(rounds):
        for name, arguments in new.items():
            before = _seconds_of_children()
            program = [sys.executable, *arguments]
            subprocess.run(program, env=environment, capture_output=True, check=name != "wrong")
            times[name].append(_seconds_of_children() - before)
    numbers, where = {name: float(np.median(values)) for name, values in times.items()}, "a new process"
    yield line("pyro-vae --help", where, numbers["help"], "a second", 1.0, 1.0, "CPU s")
    yield line("pyro-vae train --help", where, numbers["options"], "import torch", numbers["torch"], 1.0, "CPU s")
    yield line("pyro-vae train, wrong option", where, numbers["wrong"], "import torch", numbers["torch"], 1.0, "CPU s")
    yield line("import pyro, pyro_vae", where, numbers["both"], "import pyro", numbers["pyro"], 1.1, "CPU s")
    yield line("the same, with VAE, fit, ...", where, numbers["all"], "import pyro", numbers["pyro"], 1.1, "CPU s")


def evaluation(rounds: int) -> Iterator[Row]:
    """Time -log p(x), AIS and NUTS under a decoder of 20-400-784 with a Bernoulli likelihood, one thread."""
    rounds = min(rounds, 5)
    numbers = contest("nll", 1, images=1000, num=1000, rounds=rounds)
    setting = f"1,000 images x 1,000 draws, core {numbers['cpu']:.2f}"
    for rival, bar in (("JAX", 0.85), ("torch", 0.75)):
        yield line("-log p(x)", setting, numbers["ours"] / 1000, rival, numbers[rival] / 1000, bar, "s")
    numbers = contest("annealing", 1, images=20, chains=16, temperatures=500, rounds=rounds)
    setting = f"20 images x 16 chains, core {numbers['cpu']:.2f}"
    yield line("AIS, an evaluation", setting, numbers["ours"], "JAX", numbers["JAX"], 1.0)
    length = {"draws": 500, "warmup": 300, "chains": 4, "rounds": rounds}
    numbers = contest("nuts", 1, images=1, **length)
    setting = f"4 chains of 300 + 500, core {numbers['cpu']:.2f}"
    rivals = ("NumPyro, sequential", "NumPyro, vectorized")
    for rival in (*rivals, *(f"{name}, compiling" for name in rivals)):
        yield line("NUTS, one image, an independent draw", setting, numbers["ours"], rival, numbers[rival], 1.0)
    many = contest("nuts", 1, images=10, alone=True, **length)["seconds"]
    yield line("NUTS, ten images", setting, many, "one image", numbers["seconds"], 3.0, "s")


def cuda(rounds: int) -> Iterator[Row]:
    """Compare every program on a GPU with the CPU, and time steps and AIS there; without a GPU, name the command."""
    if not torch.cuda.is_available():
        tqdm.write("No GPU: the part cuda has no rows. Run --parts '[cuda]' on a machine that has one.")
        return
    numbers = contest("cuda", ALL, rounds=rounds)
    where = numbers["device"]
    for name, nats in numbers["apart"].items():
        yield line(f"{name}, log p(x, z) on the GPU and the CPU apart", where, nats, "1 nat", 1.0, 0.01, "nats")
    for batch, times in numbers["steps"].items():
        for how, rival in product(("graph", "inductor"), ("handwritten, compiled", "handwritten, eager")):
            ours, theirs = times[f"ours, {how}"], times[rival]
            yield line(f"step on a GPU, {how}", f"{where}, batch {batch}", ours, rival, theirs, 1.05)
        memory = times["ours, inductor, MB"], times["handwritten, compiled, MB"]
        yield line("peak on a GPU", f"{where}, batch {batch}", memory[0], "handwritten, compiled", memory[1], 1.2, "MB")
    yield line("AIS, 20 images", where, numbers["ais"]["seconds"], "a minute", 60.0, 1.0, "s")


def _seconds_of_children() -> float:
    """Return the CPU time of ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


PARTS: dict[str, Callable[..., Iterator[Row]]] = {
    part.__name__: part
    for part in (*(steps, iwae, priors, convolutions, epochs, scaling, parallel, bfloat16, evaluation, startup, cuda),)
}
