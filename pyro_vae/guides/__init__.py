"""Guide families q(z | x); :class:`pyro_vae.conditional.Family` is the base class.

Families of vectors have event shape ``(latent,)``. Quantisers, for a VQVAE, have event shape ``(dim, height, width)``.
"""

from pyro_vae.guides.quantisers import FSQ, VQ, Quantiser
from pyro_vae.guides.vectors import DiagonalNormal, Flow, FullNormal, LowRankNormal

__all__ = ["FSQ", "VQ", "DiagonalNormal", "Flow", "FullNormal", "LowRankNormal", "Quantiser"]
