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

__all__ = ["CompiledSVI", "Posterior", "VAE", "fit", "load"]
__all__ += ["ais", "compare", "compiled", "conditional", "data", "evaluate", "guides", "likelihoods", "missing"]
__all__ += ["networks", "objectives", "oracle", "plots", "posterior", "priors", "programs", "report"]

_HOMES = {"CompiledSVI": "compiled", "Posterior": "program", "VAE": "programs", "fit": "train", "load": "checkpoint"}

if not TYPE_CHECKING:  # mypy would take __getattr__ to have every name, the misspelt ones too

    def __getattr__(name: str) -> object:
        """Import a room when it is first touched: not all who come in want matplotlib, nor ``--help`` torch."""
        if name not in __dir__():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        room = import_module(f"{__name__}.{_HOMES.get(name, name)}")
        return getattr(room, name) if name in _HOMES else room

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_HOMES.values()})
