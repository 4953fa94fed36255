r"""Images of models, and measures of their quality, in pixels and in the features of a small classifier.

The features are the 64 units before the last layer of a convolutional classifier, trained here on the real training
images. They are no features of ImageNet: numbers do not compare with the FID or the precision of a paper.

References:
    Diatom autofocusing in brightfield microscopy: a comparative study (Pech-Pacheco et al., 2000): the variance of the
    Laplacian.

    Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019).

    Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020): density and coverage.

    GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017): the Frechet
    distance of features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from pyro_vae import evaluate, networks
from pyro_vae.conditional import mean
from pyro_vae.data import Dataset

__all__ = ["Classifier", "Quality", "density_coverage", "frechet", "images_of", "inside", "measure", "nearest"]
__all__ += ["precision_recall", "sharpness"]

FEATURES = 64
STEPS = 1500  # of the training of the classifier
READABLE = 0.9  # least class probability of a readable image
AT_ONCE = 500  # images


def sharpness(x: Tensor) -> float:
    r"""Return the mean over images ``(N, channels, height, width)`` of the variance of their discrete Laplacian.

    .. math:: (\Delta x)_{ij} = x_{i+1,j} + x_{i-1,j} + x_{i,j+1} + x_{i,j-1} - 4 x_{ij}
    """
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).to(x)
    edges = conv2d(x.reshape(-1, 1, *x.shape[-2:]), kernel[None, None])
    return edges.flatten(1).var(1, correction=0).mean().item()


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances ``(N, M)`` of points ``(N, D)`` and ``(M, D)``; of a point to itself exactly 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def inside(points: Tensor, centres: Tensor, k: int) -> Tensor:
    """Return whether each point is in the ball of each centre, ``(points, centres)``.

    The radius of a ball is the distance from its centre to the k-th nearest of the rest of the centres. Points on the
    sphere are outside, as in the code of Naeem et al.: equal sets have precision, recall, density and coverage 1.
    """
    if len(centres) <= k:
        raise ValueError(f"Expected more than k = {k} images, for balls to the k-th nearest; got {len(centres)}.")
    radii = distances(centres, centres).kthvalue(k + 1, dim=1).values  # the nearest is the centre
    return distances(points, centres) < radii


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Return the share of fakes in a ball of a real point, and the share of real points in a ball of a fake."""
    precision, recall = inside(fake, real, k).any(1), inside(real, fake, k).any(1)
    return precision.double().mean().item(), recall.double().mean().item()


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Return the mean number of balls of real points around a fake, over k, and the share of balls with a fake."""
    within = inside(fake, real, k)
    return within.double().sum(1).mean().item() / k, within.any(0).double().mean().item()


def frechet(a: Tensor, b: Tensor) -> float:
    r"""Return the squared Frechet distance of two Gaussians with the moments of points ``(N, D)`` and ``(M, D)``.

    .. math:: \|m_a - m_b\|^2 + \mathrm{tr}\big(S_a + S_b - 2 (S_a S_b)^{1/2}\big)

    The trace of the root is that of the symmetric :math:`(S_a^{1/2} S_b S_a^{1/2})^{1/2}`.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    of_product = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * of_product).item()


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the Euclidean distance of each point to the nearest centre, ``(N,)``, for many centres."""
    squares = centres.square().sum(1)
    rows = (part.square().sum(1) + (squares - 2 * part @ centres.T).amin(1) for part in points.split(AT_ONCE))
    return torch.cat([*rows]).clamp(min=0).sqrt()


class Classifier(nn.Module):
    """A convolutional classifier of images, trained for :data:`STEPS` steps; a file keeps it.

    Args:
        dataset: A data set with labels.
        channels: Channels after each halving.
        seed: Seed of the weights and of the minibatches.
        path: File that keeps the weights; None to keep none.
    """

    def __init__(self, dataset: Dataset, channels: Sequence[int], seed: int = 0, path: Path | None = None) -> None:
        super().__init__()
        train, test = dataset.train, dataset.test
        if train.labels is None or test.labels is None:
            raise ValueError(f"Expected a data set with labels, for the classifier; got {dataset}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            out = (1, int(train.labels.max()) + 1)
            self.network = networks.Conv(dataset.event_shape, out, channels, FEATURES)
            if path and path.is_file():
                self.load_state_dict(torch.load(path, weights_only=True))
            else:
                self.learn(train[:], train.labels)
                if path:
                    torch.save(self.state_dict(), path)
        with torch.no_grad():
            right = torch.cat([self.logits(x) for x in test[:].split(AT_ONCE)]).argmax(1) == test.labels
        self.accuracy = right.double().mean().item()

    def logits(self, x: Tensor) -> Tensor:
        """Return logits ``(N, classes)`` of images."""
        return self.network(x)[:, 0]

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return features ``(N, FEATURES)`` of images."""
        layers: Any = self.network.layers
        return torch.cat([layers[:-1](part) for part in x.split(AT_ONCE)])

    @torch.no_grad()
    def confidence(self, x: Tensor) -> Tensor:
        """Return the largest class probability of each image."""
        return torch.cat([self.logits(part) for part in x.split(AT_ONCE)]).softmax(1).amax(1)

    def learn(self, x: Tensor, labels: Tensor) -> None:
        """Train with Adam, in one cycle of the learning rate."""
        adam = torch.optim.Adam(self.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, STEPS)
        for _ in range(STEPS):
            rows = torch.randint(len(x), (128,))
            adam.zero_grad()
            cross_entropy(self.logits(x[rows]), labels[rows]).backward()
            adam.step()
            schedule.step()


class Quality:
    """Measures images against real test images.

    Args:
        dataset: A data set with labels.
        num: Number of real images: the first ``num`` test images are the reference.
        channels, seed, path: As for :class:`Classifier`.
    """

    def __init__(self, dataset: Dataset, num: int, channels: Sequence[int], seed: int, path: Path | None) -> None:
        real = dataset.test[:num]
        self.classifier = Classifier(dataset, channels, seed, path)
        self.features, self.sharpness = self.classifier.features(real), sharpness(real)
        self.train = dataset.train[:].flatten(1)
        self.close = nearest(real.flatten(1), self.train).quantile(0.01)

    def __call__(self, x: Tensor) -> dict[str, Any]:
        """Return each measure of images x, ``(N, *event)``."""
        features = self.classifier.features(x)
        precision, recall = precision_recall(self.features, features)
        density, coverage = density_coverage(self.features, features)
        return {
            "sharpness": sharpness(x) / self.sharpness,
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            "Frechet": frechet(self.features, features),
            "unreadable": (self.classifier.confidence(x) < READABLE).double().mean().item(),
            "memorised": (nearest(x.flatten(1), self.train) < self.close).double().mean().item(),
        }


@torch.no_grad()
def images_of(model: Any, x: Tensor, seed: int, only_samples: bool = False) -> dict[str, Tensor]:
    """Return each kind of images of a model: reconstructions of x, and as many samples as x has images.

    Without a model, x itself is the only kind. A guide that is a point mass has reconstructions at no other draws.
    """
    if model is None:
        return {"real": x}
    parts, kinds = x.split(AT_ONCE), dict[str, Tensor]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(model, "guide") and not only_samples:
            kinds["reconstructions"] = torch.cat([model.reconstruct(part) for part in parts])
            at_draws = torch.cat([mean(model.at_guide(lambda q: q.sample(), part)) for part in parts])
            if not torch.equal(at_draws, kinds["reconstructions"]):
                kinds["reconstructions at draws"] = at_draws
        kinds["samples"] = torch.cat([model.generate(len(part)) for part in parts])
    return {kind: images.clamp(0, 1) for kind, images in kinds.items()}


def measure(model: Any, dataset: Dataset, images: int, num_particles: int, seed: int) -> dict[str, float | str]:
    """Return bits/dim of a mass, and the rate, on test images; '-' for a model without them."""
    if not hasattr(model, "guide"):
        return {"bits/dim": "-", "rate": "-"}
    x = dataset.test[:images]
    bits: float | str = "-"
    if model.decoder.family.distribution(*torch.zeros(model.decoder.family.params, 1)).support.is_discrete:
        nll = evaluate.nll(model, x, num_particles, seed=seed).mean().item()
        bits = evaluate.bits_per_dim(nll, x[0].numel())
    return {"bits/dim": bits, "rate": evaluate.elbo_terms(model, x, 10, seed)[1].mean().item()}
