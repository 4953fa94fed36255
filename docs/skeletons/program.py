"""A program of your own: an ``nn.Module`` with a model and a guide. Copy the file and change it."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot


class ClusterVAE(nn.Module):
    r"""A VAE given a label y, whose prior is a mixture: the class k of the mixture is summed out, never drawn.

    .. math:: p(x, z \mid y) = \mathcal{N}(x; f(z, y), s^2 I) \sum_k \pi_k \, \mathcal{N}(z; m_k, I)

    x is of shape ``(B, features)``; y holds whole numbers from 0 to ``labels - 1``, of shape ``(B,)``; PyTorch raises a
    RuntimeError for other labels. Source of the prior: `Variational Deep Embedding <https://arxiv.org/abs/1611.05148>`_
    (Jiang et al., 2017).

    Example:
        >>> from pyro_vae import evaluate
        >>> evaluate.nll(ClusterVAE(64), (torch.rand(5, 64), torch.arange(5)), num_particles=10).shape  # nats per datum
        torch.Size([5])
    """

    def __init__(self, features: int = 64, labels: int = 10, classes: int = 3, latent: int = 2) -> None:
        super().__init__()
        self.features, self.labels, self.classes, self.latent = features, labels, classes, latent
        self.encoder = nn.Sequential(nn.Linear(features + labels, 32), nn.Tanh(), nn.Linear(32, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent + labels, 32), nn.Tanh(), nn.Linear(32, features))
        self.means = nn.Parameter(torch.randn(classes, latent))
        self.logits, self.log_scale = nn.Parameter(torch.zeros(classes)), nn.Parameter(torch.tensor(-1.0))

    def model(self, x: Tensor, y: Tensor) -> None:
        """Draw k and z, then observe x given z and y."""
        pyro.module("cluster", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.logits))  # in the model alone: summed out
            z = pyro.sample("z", dist.Normal(self.means[k], 1.0).to_event(1))
            given = one_hot(y, self.labels).to(z).expand(*z.shape[:-1], -1)  # z may have draws on its left
            mean = self.decoder(torch.cat([z, given], -1))
            pyro.sample("x", dist.Normal(mean, self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Draw z given x and y."""
        pyro.module("cluster", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            loc, log_scale = self.encoder(torch.cat([x, one_hot(y, self.labels).to(x)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
