"""Training: Pyro's SVI over minibatches."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import pyro
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import checkpoint
from pyro_vae.compiled import fast_products
from pyro_vae.conditional import Conditional
from pyro_vae.data import Dataset, from_tensor
from pyro_vae.objectives import ELBO, Objective
from pyro_vae.train.checks import check_device, check_settings, check_support
from pyro_vae.train.loop import Training, seeded
from pyro_vae.train.processes import together
from pyro_vae.vae import VAE

__all__ = ["fit"]


def fit(
    vae: VAE,
    dataset: Dataset | Tensor,
    objective: Objective | pyro.infer.ELBO = ELBO(),
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    run_dir: str | Path | None = None,
    progress: bool = True,
    lr_schedule: Literal["constant", "cosine", "one-cycle"] = "constant",
    clip_norm: float | None = None,
    compile: Literal["auto", "off", "graph", "inductor"] = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> dict[str, list[float]]:
    """Train a VAE by stochastic variational inference: Pyro's ``SVI`` and Adam, the step run as a graph.

    An untrained decoder starts where its mean is the data's, an untrained VampPrior at training images. Where elements
    of x are missing, as NaN, all is of what is observed (:class:`pyro_vae.missing.Missing`), and the encoder's network
    is given the data's mean in their place. Global state is left as it was: the seed reaches only this call, and Pyro's
    param store is put back, so that one VAE after another may be trained. Under ``torchrun`` the processes share each
    batch, and the numbers are those of one process.

    Arguments:
        vae: Trained in place, in training mode; left in evaluation mode, on ``device``.
        dataset: From :func:`pyro_vae.data.load`; or a tensor of shape ``(N, *event)``, split by
            :func:`pyro_vae.data.from_tensor`.
        objective: One of :mod:`pyro_vae.objectives`, or any ``pyro.infer.ELBO``. A schedule of its beta starts anew.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch, of all processes together.
        lr: Adam's learning rate; with ``one-cycle`` the largest.
        seed: Seed of the order, the noise and the draws. The same seed gives the same losses, to the last bit, on
            one machine.
        device: ``cpu`` or ``cuda``.
        run_dir: Folder for the weights, the configuration and the metrics. If not given nothing is written; the
            ``pyro-vae`` command makes one in runs/.
        progress: Whether to show a progress bar.
        lr_schedule: ``constant``; ``cosine``, to 0 over the run; ``one-cycle``, up over the first 0.3 of the run and
            down to nearly 0 (Super-Convergence, Smith and Topin, 2018).
        clip_norm: Largest norm of the whole gradient, of a loss summed over the minibatch; a longer one is shortened.
        compile: How a step is run once the first has shown that it can: ``graph``, what Pyro does recorded as tensor
            operations; ``inductor``, these compiled by TorchInductor; ``auto``, the graph, compiled where the run is
            long enough to pay for it and there is a compiler; ``off``, plain Pyro.
        precision: ``auto``, float32, matrix products in the fastest way that is as accurate as torch's default;
            ``float32``, torch's default; ``bfloat16``, products of bfloat16 numbers, parameters in float32.

    Returns:
        Lists with one number an epoch, in nats per datum: ``train``, the objective's loss, a mean over the epoch as
        it went; ``valid``, minus the ELBO at beta = 1 on the validation images, which is ``valid_reconstruction``,
        E[-log p(x | z)], plus ``valid_kl``; and ``seconds``, of the epoch. With an objective of this package also
        ``train_at_beta_1``, minus the ELBO at beta = 1 of the very draws that ``train`` is of, whatever was optimised,
        and ``beta``, at the epoch's last step.

    Raises:
        ValueError: If an argument is out of range, x is outside the likelihood's support or of another shape than
            the VAE was built for, torch cannot use the device, a schedule would not have ended by the last step, or
            training diverges.

    Example:
        >>> from pyro_vae import VAE, data
        >>> history = fit(VAE.build((1, 8, 8), latent=2), data.load("digits"), epochs=2, progress=False)
        >>> history["train"][1] < history["train"][0]
        True
    """
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "device": device,
        "lr_schedule": lr_schedule,
        "clip_norm": clip_norm,
        "compile": compile,
        "precision": precision,
    }
    check_settings(settings)
    check_device(device)
    dataset = dataset if isinstance(dataset, Dataset) else from_tensor(dataset)
    with together(device) as processes, seeded(seed, device), pyro.get_param_store().scope(), fast_products(precision):
        vae.to(device)
        check_support(vae, dataset)
        if isinstance(objective, Objective):
            objective.start(epochs * math.ceil(len(dataset.train) / batch_size))
        training = Training(vae, dataset, objective, settings, processes)
        writes = run_dir and processes.rank == 0
        run = checkpoint.create(run_dir, _config(vae, dataset, objective, settings)) if run_dir and writes else None
        mean = dataset.mean
        if isinstance(vae.decoder, Conditional):
            vae.decoder.start_at(mean)
        if isinstance(vae.encoder, Conditional):
            vae.encoder.fill_with(mean)
        if start_at := getattr(vae.prior, "start_at", None):
            start_at(dataset.train)
        for tensor in vae.state_dict().values():
            processes.same(tensor)
        return _run(training, run, progress and processes.rank == 0)


def _run(training: Training, run: Path | None, progress: bool) -> dict[str, list[float]]:
    history: dict[str, list[float]] = {}
    epochs = training.settings["epochs"]
    bar = tqdm(total=epochs * len(training.train), unit=" images", unit_scale=True, disable=not progress)
    try:
        with bar:
            for epoch in range(epochs):
                start = time.perf_counter()
                bar.set_description(f"epoch {epoch + 1}/{epochs}")
                with nullcontext() if training.missing else _complete(training.vae):
                    numbers = training.epoch(f"in epoch {epoch + 1}", bar.update)
                for name, number in (numbers | {"seconds": time.perf_counter() - start}).items():
                    history.setdefault(name, []).append(number)
                bar.set_postfix_str(_numbers(numbers))
                if run:
                    checkpoint.save_metrics(run, history)
    except KeyboardInterrupt:
        if run:
            checkpoint.save_weights(run, training.vae)
            raise KeyboardInterrupt(f"The weights so far are in {run}.") from None
        raise
    finally:
        training.vae.eval()
    if run:
        checkpoint.save_weights(run, training.vae)
    return history


def _complete(vae: VAE) -> AbstractContextManager:
    return vae.encoder.complete() if isinstance(vae.encoder, Conditional) else nullcontext()


def _numbers(numbers: dict[str, float]) -> str:
    """Write an epoch's numbers for the progress bar."""
    beta = f" at beta {numbers['beta']:.3g}" if numbers.get("beta", 1.0) != 1 else ""
    return f"nats: train loss {numbers['train']:.2f}{beta}, valid ELBO {-numbers['valid']:.2f}"


def _config(vae: VAE, dataset: Dataset, objective: pyro.infer.ELBO, settings: dict) -> dict:
    parts = {name: checkpoint.describe(part) for name, part in (vae.parts or {}).items() if name != "event_shape"}
    return dataset.config | parts | {"objective": checkpoint.describe(objective)} | settings
