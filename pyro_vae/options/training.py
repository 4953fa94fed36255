"""The data set, the program and the arguments of ``fit`` that the options of ``train`` name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pyro_vae import VAE, data, fit
from pyro_vae.data import Dataset
from pyro_vae.objectives import PriorCrossEntropy
from pyro_vae.options.classes import class_of, columns_of, make
from pyro_vae.seeds import fork_rng
from pyro_vae.train import check_support


def dataset_of(options: Mapping[str, Any]) -> Dataset:
    """Load the data set that the options of ``train`` name."""
    columns = columns_of(class_of(options["program"])[0], options)
    return data.load(**_arguments(data.load, {**options, "columns": columns}))


def program_of(options: Mapping[str, Any], dataset: Dataset) -> nn.Module:
    """Make the untrained program that the options of ``train`` name; refuse data outside its support."""
    with fork_rng(torch.device("cpu"), options["seed"]):
        program = make(*class_of(options["program"]), dataset.event_shape, _arguments(VAE.build, options))
        check_support(program, dataset, strict=True)
    if isinstance(options["objective"], PriorCrossEntropy):
        kind = type(options["objective"]).__name__
        raise ValueError(f"Expected --stage prior RUN for {kind}, which trains the prior of a trained program.")
    return program


def fit_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``fit`` among the options of ``train``, without the program and the data."""
    return {name: value for name, value in _arguments(fit, options).items() if name not in ("program", "data")}


def _arguments(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in inspect.signature(function).parameters if name in options}
