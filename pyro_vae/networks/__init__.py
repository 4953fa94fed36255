r"""Networks: maps from tensors to tensors, for encoders and decoders.

A network maps ``(*, *in_shape)`` to ``(*, *out_shape)``, where ``*`` is any number of dimensions of Pyro's plates. The
``out_shape`` of a decoder is ``(params, *event)``, of an encoder ``(params, latent)``.
"""

from pyro_vae.networks.dense import MLP, GatedMLP, Joint, Network
from pyro_vae.networks.images import Auto, Conv, ResNet

__all__ = ["MLP", "Auto", "Conv", "GatedMLP", "Joint", "Network", "ResNet"]
