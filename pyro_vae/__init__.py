"""Variational autoencoders as probabilistic programs: a Pyro model, a Pyro guide, and SVI."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vae import (
        ais,
        compare,
        compiled,
        conditional,
        data,
        evaluate,
        guides,
        likelihoods,
        missing,
        networks,
        objectives,
        oracle,
        page,
        plots,
        posterior,
        priors,
        programs,
        report,
    )
    from pyro_vae.checkpoint import load
    from pyro_vae.compiled import CompiledSVI
    from pyro_vae.program import Posterior
    from pyro_vae.programs import VAE
    from pyro_vae.train.fitting import fit
    from pyro_vae.train.second_stage import fit_prior

__all__ = ["CompiledSVI", "Posterior", "VAE", "fit", "fit_prior", "load"]
__all__ += ["ais", "compare", "compiled", "conditional", "data", "evaluate", "guides", "likelihoods", "missing"]
__all__ += ["networks", "objectives", "oracle", "page", "plots", "posterior", "priors", "programs", "report"]

_HOMES = {"CompiledSVI": "compiled", "Posterior": "program", "VAE": "programs", "fit": "train"}
_HOMES |= {"fit_prior": "train", "load": "checkpoint"}

if not TYPE_CHECKING:  # with a __getattr__, mypy would accept misspelt names

    def __getattr__(name: str) -> object:
        """Import a submodule at first use: ``--help`` does not import torch; training does not import matplotlib."""
        if name not in __dir__():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_HOMES.get(name, name)}")
        return getattr(module, name) if name in _HOMES else module

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_HOMES.values()})
