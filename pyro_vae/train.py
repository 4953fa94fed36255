"""Training: Pyro's SVI over minibatches."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import checkpoint
from pyro_vae.conditional import Conditional
from pyro_vae.data import Dataset, Split, from_tensor
from pyro_vae.objectives import ELBO, Objective
from pyro_vae.vae import VAE

__all__ = ["check_device", "check_support", "fit"]


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
) -> dict[str, list[float]]:
    """Train a VAE by stochastic variational inference: Pyro's ``SVI`` and Adam.

    An untrained decoder starts where its mean is the data's. Global state is left as it was: the seed reaches only
    this call, and Pyro's param store is put back, so that one VAE after another may be trained.

    Arguments:
        vae: Trained in place, and left on ``device``.
        dataset: From :func:`pyro_vae.data.load`; or a tensor of shape ``(N, *event)``, split by
            :func:`pyro_vae.data.from_tensor`.
        objective: One of :mod:`pyro_vae.objectives`, or any ``pyro.infer.ELBO``. A schedule of its beta starts anew.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        lr: Adam's learning rate.
        seed: Seed of the order, the noise and the draws. The same seed gives the same losses, to the last bit, on
            one machine.
        device: ``cpu`` or ``cuda``.
        run_dir: Folder for the weights, the configuration and the metrics. If not given nothing is written; the
            ``pyro-vae`` command makes one in runs/.
        progress: Whether to show a progress bar.

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
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"Expected {name} of at least 1; got {value}.")
    if not 0 < lr < math.inf:
        raise ValueError(f"Expected a positive learning rate; got lr = {lr}.")
    check_device(device)
    dataset = dataset if isinstance(dataset, Dataset) else from_tensor(dataset)
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "device": device}
    vae.to(device)
    with _seeded(seed, device), pyro.get_param_store().scope():
        check_support(vae, dataset)
        if isinstance(objective, Objective):
            objective.start(epochs * math.ceil(len(dataset.train) / batch_size))
        run = checkpoint.create(run_dir, _config(vae, dataset, objective, settings)) if run_dir else None
        if isinstance(vae.decoder, Conditional):
            vae.decoder.start_at(dataset.mean)
        return _run(vae, dataset, objective, settings, run, progress)


def _run(
    vae: VAE,
    dataset: Dataset,
    objective: pyro.infer.ELBO,
    settings: dict,
    run: Path | None,
    progress: bool,
) -> dict[str, list[float]]:
    train, valid = dataset.train.to(settings["device"]), dataset.valid.to(settings["device"])
    point = vae.reference
    svi = SVI(vae.model, vae.guide, PyroOptim(torch.optim.Adam, {"lr": settings["lr"]}), loss=objective)
    history: dict[str, list[float]] = {}
    bar = tqdm(
        total=settings["epochs"] * len(train),
        unit=" images",
        unit_scale=True,
        disable=not progress,
    )
    try:
        with bar:
            for epoch in range(settings["epochs"]):
                start, total, plain, beta = time.perf_counter(), 0.0, 0.0, 1.0
                bar.set_description(f"epoch {epoch + 1}/{settings['epochs']}")
                order = torch.randperm(len(train), device=point.device)
                for step, batch in enumerate(order.split(settings["batch_size"])):
                    beta = objective.beta_now if isinstance(objective, Objective) else 1.0
                    total += _step(svi, train[batch].to(point.dtype), f"in epoch {epoch + 1}, step {step + 1}")
                    plain += objective.plain.item() if isinstance(objective, Objective) else 0.0
                    bar.update(len(batch))
                reconstruction, kl = _validate(vae, valid, settings)
                numbers = {
                    "train": total / len(train),
                    "valid": reconstruction + kl,
                    "valid_reconstruction": reconstruction,
                    "valid_kl": kl,
                }
                if isinstance(objective, Objective):
                    numbers |= {"train_at_beta_1": plain / len(train), "beta": beta}
                for name, number in (numbers | {"seconds": time.perf_counter() - start}).items():
                    history.setdefault(name, []).append(number)
                bar.set_postfix_str(_numbers(numbers))
                if run:
                    checkpoint.save_metrics(run, history)
    except KeyboardInterrupt:
        if run:
            checkpoint.save_weights(run, vae)
            raise KeyboardInterrupt(f"The weights so far are in {run}.") from None
        raise
    if run:
        checkpoint.save_weights(run, vae)
    return history


def _numbers(numbers: dict[str, float]) -> str:
    """Write an epoch's numbers for the progress bar."""
    beta = f" at beta {numbers['beta']:.3g}" if numbers.get("beta", 1.0) != 1 else ""
    return f"nats: train loss {numbers['train']:.2f}{beta}, valid ELBO {-numbers['valid']:.2f}"


def _step(svi: SVI, x: Tensor, where: str) -> float:
    """Take one step of SVI; say in a sentence that it diverged, which Pyro says in a page."""
    try:
        loss = svi.step(x)
    except ValueError as error:
        broken = re.search(r"parameter (\w+) .*? of distribution (\w+).*? the constraint (\S+?),", str(error))
        if not broken:
            raise
        raise ValueError(
            f"Training diverged {where}: expected {broken[1]} of a {broken[2]} to satisfy {broken[3]}. "
            "Try a smaller lr, or scale the data to [0, 1]; a family of your own must keep to that range."
        ) from error
    if not math.isfinite(loss):
        raise ValueError(
            f"Training diverged {where}: expected a finite loss; got {loss}. "
            "Try a smaller lr, or scale the data to [0, 1]."
        )
    return loss


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's generators, of the CPU and of ``device``, for as long as the context lasts."""
    cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
        torch.manual_seed(seed)
        yield


def _validate(vae: VAE, split: Split, settings: dict) -> tuple[float, float]:
    """Return E[-log p(x | z)] and the divergence, nats per datum, with the same draws at every call."""
    reconstruction = kl = 0.0
    with _seeded(settings["seed"], settings["device"]):
        for start in range(0, len(split), 1024):
            x = split[slice(start, start + 1024)].to(vae.reference.dtype)
            log_likelihood, sites = ELBO().split(vae.model, vae.guide, x)
            reconstruction -= log_likelihood
            kl += sum(site.nats for site in sites.values())
    return reconstruction / len(split), kl / len(split)


def check_device(device: str) -> None:
    """Check that torch can use a device.

    Raises:
        ValueError: If it cannot, as where there is no GPU.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Expected a device that torch can use, as 'cpu'; got device = {device!r}.") from error


def check_support(vae: VAE, dataset: Dataset) -> None:
    """Check that every x can be seen under the likelihood, which Pyro would say in a page.

    Raises:
        ValueError: If an x is of another shape or outside the likelihood's support.
    """
    point = vae.reference
    with torch.no_grad():
        law = vae.decoder(vae.prior().sample((1,)))
        if law.event_shape != dataset.event_shape:
            raise ValueError(
                f"Expected data of shape (N, {', '.join(map(str, law.event_shape))}), as the VAE was built for; "
                f"got images of shape {dataset.event_shape}."
            )
        name = type(getattr(law, "base_dist", law)).__name__
        for split in dataset.splits.values():
            for start in range(0, len(split), 4096):
                x = split[slice(start, start + 4096)].to(point)
                if not law.support.check(x).all():
                    low, high = x.min().item(), x.max().item()
                    raise ValueError(
                        f"Expected x in the support of {name}, {_support(law)}; got values in [{low:g}, {high:g}] "
                        f"({dataset}). Binarise with --binarize dynamic, or use the Gaussian likelihood."
                    )


def _support(law: torch.distributions.Distribution) -> str:
    return str(getattr(law.support, "base_constraint", law.support))


def _config(vae: VAE, dataset: Dataset, objective: pyro.infer.ELBO, settings: dict) -> dict:
    parts = {name: checkpoint.describe(part) for name, part in (vae.parts or {}).items() if name != "event_shape"}
    return dataset.config | parts | {"objective": checkpoint.describe(objective)} | settings
