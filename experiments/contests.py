"""The measurements of the benchmark; each runs in a new process, since torch and JAX read threads at their start."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import accelerator
import answers
import numpy as np
import pyro
import rival_libraries
import rival_pyro
import rivals
import torch
from own_steps import ours, vae
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from timing import in_turn, peak, switch, within

from pyro_vae import VAE, CompiledSVI, data, fit, likelihoods
from pyro_vae import priors as parts
from pyro_vae.networks import MLP, Conv
from pyro_vae.objectives import ELBO, IWAE
from pyro_vae.train.loop import Training
from pyro_vae.train.validation import Validation

__all__ = ["PARTS"]

Step = Callable[[], Any]
Numbers = dict[str, Any]


def steps(batch: int, rounds: int, binary: bool = False) -> Numbers:
    """Time one step of the ELBO."""
    model, x = vae(binary=binary), rivals.pixels(batch, binary)
    contestants = {
        "ours, inductor": (ours(model, ELBO(), x, "inductor"), False),
        "ours, graph": (ours(model, ELBO(), x, "graph"), False),
        "ours, bfloat16": (ours(model, ELBO(), x, "inductor", "bfloat16"), False),
        "matrix products": (rivals.products(batch), True),
        "handwritten, compiled": (rivals.handwritten(batch, binary=binary), True),
        "handwritten, eager": (rivals.handwritten(batch, compiled=False, binary=binary), True),
        "NumPyro": (rival_libraries.numpyro_update(batch, binary), False),
        "stock Pyro": (rival_pyro.stock_pyro(batch, binary), False),
    }
    return in_turn(contestants, rounds)


def priors(batch: int, rounds: int, prior: str) -> Numbers:
    """Time one step with a prior, and a step of Pyro's ``SVI`` with ``Trace_ELBO`` of the same program."""
    model = VAE.build((784,), 20, getattr(parts, prior), likelihoods.Bernoulli, network=partial(MLP, hidden=(400,)))
    x = rivals.pixels(batch, binary=True)
    stock = SVI(model.model, model.guide, PyroOptim(torch.optim.Adam, {"lr": rivals.LR}), Trace_ELBO())
    contestants: dict[str, tuple[Step, bool]] = {
        f"ours, {how}": (ours(model, ELBO(), x, how), False) for how in ("inductor", "graph")
    }
    return in_turn(contestants | {"stock Pyro": (partial(stock.step, x), False)}, rounds)


def convolutions(batch: int, rounds: int) -> Numbers:
    """Time one step of the ELBO with convolutions on images of 3x32x32."""
    gaussian, network = partial(likelihoods.Gaussian, scale=0.1), partial(Conv, activation="ReLU")
    model, x = VAE.build((3, 32, 32), 20, likelihood=gaussian, network=network), torch.rand(batch, 3, 32, 32)
    contestants = {
        "ours, inductor": (ours(model, ELBO(), x, "inductor"), False),
        "ours, graph": (ours(model, ELBO(), x, "graph"), False),
        "handwritten, compiled": (rivals.handwritten_convolutions(batch), True),
        "handwritten, eager": (rivals.handwritten_convolutions(batch, compiled=False), True),
        "handwritten, channels last": (rivals.handwritten_convolutions(batch, False, channels_last=True), True),
        "JAX": (rival_libraries.jax_convolutions(batch), False),
    }
    return in_turn(contestants, rounds)


def iwae(batch: int, rounds: int) -> Numbers:
    """Time one step of IWAE with 50 particles on 784-200-200-50, and measure the peak memory of its tensors."""
    network = partial(MLP, hidden=(200, 200), activation="Tanh")
    model, x = (
        VAE.build((784,), 50, likelihood=likelihoods.Bernoulli, network=network),
        rivals.pixels(batch, binary=True),
    )
    contestants = {
        "ours, inductor": (ours(model, IWAE(50), x, "inductor"), False),
        "ours, graph": (ours(model, IWAE(50), x, "graph"), False),
        "handwritten, compiled": (rivals.handwritten_iwae(batch), True),
        "stock Pyro": (rival_pyro.stock_renyi(batch), False),
    }
    found = in_turn(contestants, rounds)
    return found | {f"{name}, MB": peak(step) for name, (step, _) in contestants.items()}


def epochs(root: str, batch: int, rounds: int, alone: bool = False) -> Numbers:
    """Time an epoch of real MNIST in ``fit``, with its parts, in pythae's trainer and in Pyro's example."""
    mnist = data.load("mnist", root=root)
    found: dict[str, list[float]] = {"fit": [], "steps": [], "validation": []}
    spent = {"steps": 0.0, "validation": 0.0}

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = method(*args, **options)
            spent[name] += time.perf_counter() - start
            return result

        return run

    gradients, apply, validate = CompiledSVI.gradients, CompiledSVI.apply, Validation.__call__
    CompiledSVI.gradients = timed("steps", gradients)  # type: ignore[method-assign]
    CompiledSVI.apply = timed("steps", apply)  # type: ignore[method-assign]
    Validation.__call__ = timed("validation", validate)  # type: ignore[method-assign]

    def seen(self: Training, *callbacks: Any) -> dict[str, float]:
        spent.update(dict.fromkeys(spent, 0.0))
        start = time.perf_counter()
        numbers = epoch(self, *callbacks)
        for name, seconds in (spent | {"fit": time.perf_counter() - start}).items():
            found[name].append(seconds)
        for name, run in others.items():
            with switch(False):
                start = time.perf_counter()
                run()
                found.setdefault(name, []).append(time.perf_counter() - start)
        return numbers

    others = (
        {}
        if alone
        else {
            "pythae": rival_libraries.pythae_epoch(mnist.train[:], batch),
            "Pyro's example": rival_pyro.pyro_example_epoch(root, batch),
            "Pyro's example, cached": rival_pyro.pyro_example_epoch(root, batch, cached=True),
        }
    )
    epoch, Training.epoch = Training.epoch, seen  # type: ignore[method-assign, assignment]
    fit(vae((1, 28, 28)), mnist, epochs=rounds + 3, batch_size=batch, compile="inductor", progress=False)
    result = {name: median(times[3:]) for name, times in found.items()}
    return result | {"start": sum(found["fit"][:3]) - 3 * result["fit"], "images": len(mnist.train)}


def scaling(rounds: int) -> Numbers:
    """Time a step against batch, particles and latent size, around 256 images, 1 particle and 20 dimensions."""
    scales = {"batch": [256, 512, 1024, 2048, 4096], "particles": [1, 2, 4, 8, 16, 32], "latent": [128, 256, 512, 1024]}
    found: Numbers = {}
    for name, values in scales.items():
        steps: dict[str, tuple[Step, bool]] = {}
        for value in values:
            size = {"batch": 256, "particles": 1, "latent": 20} | {name: value}
            with pyro.get_param_store().scope() as store:
                step = ours(
                    vae(latent=size["latent"]), ELBO(size["particles"]), rivals.pixels(size["batch"]), "inductor"
                )
            steps[str(value)] = (partial(within, store, step), False)
        times = in_turn(steps, rounds)
        found[name] = [values, [times[value] for value in steps]]
    return found


def data_size(images: int, batch: int, rounds: int) -> Numbers:
    """Time an epoch on images that stay in a .npy file, and measure the peak of resident memory in megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        file = np.lib.format.open_memmap(path, "w+", np.uint8, (images, 28, 28))
        generator = np.random.default_rng(0)
        for start in range(0, images, 10_000):
            file[start : start + 10_000] = generator.integers(0, 256, (min(10_000, images - start), 28, 28), np.uint8)
        file.flush()
        del file
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak of resident memory
        dataset = data.load(str(path), valid=1000)
        history = fit(
            vae((1, 28, 28), hidden=32), dataset, epochs=rounds, batch_size=batch, compile="graph", progress=False
        )
    most = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"seconds": min(history["seconds"]), "MB": int(most.split()[1]) / 1024, "on disk": dataset.train.on_disk}


def parallel(root: str, batch: int, rounds: int) -> Numbers:
    """Time an epoch of real MNIST on the processes of torchrun, and return the losses."""
    mnist = data.load("mnist", root=root)
    torch.manual_seed(0)
    history = fit(vae((1, 28, 28)), mnist, epochs=rounds + 2, batch_size=batch, compile="inductor", progress=False)
    return {"seconds": median(history["seconds"][2:]), "losses": history["train"]}


def bfloat16(root: str, likelihood: str, epochs: int, seeds: int) -> Numbers:
    """Return the validation ELBO of MNIST in bfloat16 minus that in float32 after the same steps, nats, by seed."""
    binarize: Any = "dynamic" if likelihood == "Bernoulli" else "none"
    mnist = data.load("mnist", root=root, binarize=binarize)
    gaussian = partial(likelihoods.Gaussian, scale=0.1)
    found: dict[Any, list[float]] = {"auto": [], "bfloat16": []}
    for seed, precision in product(range(seeds), found):
        torch.manual_seed(seed)
        model = VAE.build((1, 28, 28), likelihood=gaussian if likelihood == "Gaussian" else likelihoods.Bernoulli)
        history = fit(
            model,
            mnist,
            epochs=epochs,
            seed=seed,
            precision=precision,
            lr_schedule="cosine",
            compile="inductor",
            progress=False,
        )
        found[precision].append(-history["valid"][-1])
    return {"apart": [b - a for a, b in zip(*found.values(), strict=True)]}


def cuda(rounds: int) -> Numbers:
    """Compare programs on the GPU with the CPU, and time steps and annealed importance sampling there."""
    return {
        "apart": accelerator.log_densities_apart("cuda"),
        "steps": {str(batch): accelerator.steps("cuda", batch, rounds) for batch in (128, 4096)},
        "ais": accelerator.seconds_of_ais("cuda"),
        "device": torch.cuda.get_device_name(),
    }


PARTS: dict[str, Callable[..., Numbers]] = {
    part.__name__: part
    for part in (
        *(steps, iwae, priors, convolutions, epochs, scaling, data_size, parallel, bfloat16, cuda),
        *(answers.nll, answers.annealing, answers.nuts),
    )
}


if __name__ == "__main__":
    name, arguments, output = sys.argv[1:]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with pyro.get_param_store().scope():
        numbers = PARTS[name](**json.loads(arguments))
    if int(os.environ.get("RANK", 0)) == 0:
        Path(output).write_text(json.dumps(numbers))
