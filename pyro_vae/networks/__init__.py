r"""Networks: tensors in, tensors out, no probability.

A network maps ``(*, *in_shape)`` to ``(*, *out_shape)``, where ``*`` is any number of dimensions that belong to
Pyro's plates. A decoder's ``out_shape`` is ``(params, *event)``, an encoder's is ``(params, latent)``.
"""

from pyro_vae.networks.dense import MLP, GatedMLP, Joint, Network
from pyro_vae.networks.images import Auto, Conv, ResNet

__all__ = ["MLP", "Auto", "Conv", "GatedMLP", "Joint", "Network", "ResNet"]
