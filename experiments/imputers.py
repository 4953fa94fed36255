"""Imputations without a VAE, for ``imputation.py``: means, principal components, nearest neighbours."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from sklearn.impute import KNNImputer
from torch import Tensor

from pyro_vae.data import Dataset

__all__ = ["components", "neighbours", "rivals", "rmse"]


def rivals(holed: Dataset, whole: Dataset, x: Tensor) -> dict[str, Tensor]:
    """Return imputations of x by each method, tuned on the validation images.

    References:
        missMDA: A Package for Handling Missing Values in Multivariate Data Analysis (Josse and Husson, 2016):
        principal components.

        Missing Value Estimation Methods for DNA Microarrays (Troyanskaya et al., 2001): nearest neighbours.
    """
    train, valid, truth = holed.train[:], holed.valid[:], whole.valid[:]

    def best(impute: Callable[[int, Tensor], Tensor], settings: Sequence[int]) -> Tensor:
        chosen = min(settings, key=lambda setting: rmse(impute(setting, valid), truth, valid))
        return impute(chosen, x)

    return {
        "mean": torch.where(x.isnan(), holed.mean, x),
        "components": best(partial(components, train), (1, 2, 5, 10, 20)),
        "neighbours": best(partial(neighbours, train), (3, 10, 30, 100)),
    }


def components(train: Tensor, rank: int, x: Tensor, rounds: int = 100) -> Tensor:
    """Impute by principal components: alternate between a fit, shrunk by the noise, and filling in."""
    rows = torch.cat([train, x]).flatten(1)
    gone, filled = rows.isnan(), torch.where(rows.isnan(), rows.nanmean(0).nan_to_num(), rows)
    for _ in range(rounds):
        mean = filled.mean(0)
        values, vectors = torch.linalg.eigh((filled - mean).T.cov(correction=0))
        noise = values[:-rank].mean()
        kept = vectors[:, -rank:] * (1 - noise / values[-rank:]).clamp(min=0)
        filled = torch.where(gone, mean + (filled - mean) @ kept @ vectors[:, -rank:].T, rows)
    return filled[len(train) :].view_as(x)


def neighbours(train: Tensor, number: int, x: Tensor) -> Tensor:
    """Impute by the mean over the training images that are nearest in the pixels that both have."""
    imputer = KNNImputer(n_neighbors=number, weights="distance", keep_empty_features=True)
    found = imputer.fit(train.flatten(1).numpy()).transform(x.flatten(1).numpy())
    return torch.from_numpy(found).view_as(x)


def rmse(found: Tensor, truth: Tensor, x: Tensor) -> float:
    """Return the root mean square error on the missing elements of x."""
    return (found - truth)[x.isnan()].square().mean().sqrt().item()
