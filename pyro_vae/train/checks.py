"""What is checked before training begins, and said in a sentence."""

from __future__ import annotations

import math

import torch

from pyro_vae.data import Dataset
from pyro_vae.vae import VAE

__all__ = ["check_device", "check_settings", "check_support"]

AT_ONCE = 4096


def check_settings(settings: dict) -> None:
    """Check the numbers that ``fit`` was given.

    Raises:
        ValueError: If one is out of range.
    """
    for name in ("epochs", "batch_size"):
        if settings[name] < 1:
            raise ValueError(f"Expected {name} of at least 1; got {settings[name]}.")
    if not 0 < settings["lr"] < math.inf:
        raise ValueError(f"Expected a positive learning rate; got lr = {settings['lr']}.")
    if settings["lr_schedule"] not in ("constant", "cosine", "one-cycle"):
        raise ValueError(f"Expected lr_schedule to be constant, cosine or one-cycle; got {settings['lr_schedule']!r}.")


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
    """Check that every x can be seen under the likelihood, which Pyro would say in a page; on disk the first 4,096.

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
            for start in range(0, AT_ONCE if split.on_disk else len(split), AT_ONCE):
                x = split[slice(start, start + AT_ONCE)].to(point)
                if not law.support.check(x).all():
                    low, high = x.min().item(), x.max().item()
                    raise ValueError(
                        f"Expected x in the support of {name}, {_support(law)}; got values in [{low:g}, {high:g}] "
                        f"({dataset}). Binarise with --binarize dynamic, or use the Gaussian likelihood."
                    )


def _support(law: torch.distributions.Distribution) -> str:
    return str(getattr(law.support, "base_constraint", law.support))
