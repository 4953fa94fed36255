"""The semi-supervised VAE: some data have a known class."""

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import Family, module
from pyro_vae.data import Dataset
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Gaussian
from pyro_vae.networks import Auto
from pyro_vae.priors import StandardNormal
from pyro_vae.programs.building import LOSS, conditional, family_of, labels_of, of_image, shape_of
from pyro_vae.programs.built import OfLabels, are_labels
from pyro_vae.programs.hooks import Draw, quietly


class SemiSupervisedVAE(OfLabels):
    r"""A VAE of x and a class y, known for some data: model M2.

    .. math:: p(x, y, z) = p(y) \, p(z) \, p(x \mid y, z), \qquad q(y, z \mid x) = q(y \mid x) \, q(z \mid x, y)

    p(y) is uniform. An unknown y is -1; the ELBO sums over y exactly, and is a bound on :math:`\log p(x)`. With a known
    y, the ELBO is a bound on :math:`\log p(x, y)`, and the loss has a further term: ``weight`` times
    :math:`-\log q(y \mid x)`. This term is part of no density. Without y, all labels are unknown.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014), model M2.

    Arguments:
        event_shape: Shape of one x, for example ``(1, 28, 28)``.
        latent: Dimensions of z.
        classes: Number of classes.
        weight: The weight of the classification term; the paper uses 0.1 times the number of data per label.
        prior, likelihood, guide, network: Classes, as in :meth:`pyro_vae.VAE.build`.

    Raises:
        ValueError: If a size is not positive, the weight is negative, or the parts do not fit together.

    See Also:
        :func:`pyro_vae.data.labelled` hides labels; :class:`ConditionalVAE` is for labels that are all known.

    Example:
        >>> vae = SemiSupervisedVAE.build((64,), latent=2, classes=3)
        >>> vae.classify(torch.rand(5, 64)).shape
        torch.Size([5, 3])
    """

    number_is = "classes"
    least = -1
    vector = OfLabels.one_hot

    def __init__(
        self,
        event_shape: Sequence[int],
        latent: int = 20,
        classes: int = 10,
        weight: float = 50.0,
        prior: Callable[[int], nn.Module] = StandardNormal,
        likelihood: Callable[[Sequence[int]], Family] = Gaussian,
        guide: Callable[[int], Family] = DiagonalNormal,
        network: Callable[[Sequence[int], Sequence[int]], nn.Module] = Auto,
    ) -> None:
        super().__init__()
        event_shape = shape_of(event_shape, latent=latent, classes=classes)
        if classes < 2 or not weight >= 0:
            raise ValueError(
                f"Expected classes of at least 2 and weight of at least 0; got classes = {classes}, weight = {weight}."
            )
        self.classes, self.weight = classes, weight
        p_x = family_of("likelihood", likelihood, event_shape)
        self.decoder = conditional(network, p_x, (latent,), (classes,))
        self.encoder = of_image(network, family_of("guide", guide, latent), p_x, (classes,))
        self.classifier = of_image(network, _Label(classes), p_x)
        self.prior = self.new_prior(prior)
        self.logits = nn.Buffer(torch.zeros(classes), persistent=False)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Sample z and each unknown y; observe x, of shape ``(B, *event)``, given y and z."""
        module("vae", self)
        y, known = labels_of(x, y)
        with pyro.plate("data", x.shape[0], dim=-1):
            label = pyro.sample("y", dist.Categorical(logits=self.logits), obs=y.clamp(min=0), obs_mask=known)
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decoder(z, self.vector(label)), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Sum over an unknown y, and sample z given y; add the classification term of the known labels."""
        module("vae", self)
        (y, known), q = labels_of(x, y), dist.Categorical(logits=self.classifier(x).logits)
        with pyro.plate("data", x.shape[0], dim=-1):
            with poutine.mask(mask=~known):
                label = pyro.sample("y_unobserved", q, infer={"enumerate": "parallel"})
            pyro.sample("z", self.encoder(x, self.vector(torch.where(known, y, label))))
            loss = -self.weight * torch.where(known, q.log_prob(y.clamp(min=0)), 0.0)
            pyro.sample("classification", dist.Unit(loss), obs=loss.new_empty(*loss.shape, 0), infer=LOSS)

    @quietly
    def classify(self, x: Tensor) -> Tensor:
        """Return q(y | x), of shape ``(B, classes)``; :func:`pyro_vae.evaluate.posterior` estimates p(y | x)."""
        return self.classifier(*self.checked(x)).probs

    def at_prior(self, num: int, given: Tensor | None = None) -> TorchDistribution:
        """Return p(x | y, z) at ``num`` draws of z, with y from ``given`` or random."""
        y = dist.Categorical(logits=self.logits).sample((num,)) if given is None else given
        return self.decoder(self.prior().sample((num,)), self.vector(y))

    def at_guide(self, draw: Draw, x: Tensor, *given: Tensor) -> TorchDistribution:
        """Return p(x | y, z) at a draw or the mean of the guide's z; the most probable class replaces an unknown y."""
        y, known = labels_of(x, *given)
        one_hot = self.vector(torch.where(known, y, self.classifier(x).logits.argmax(-1)))
        return self.decoder(draw(self.encoder(x, one_hot)), one_hot)

    @torch.no_grad()
    def pictures(self, x: Tensor, *given: Tensor) -> dict[str, tuple[Tensor, str]]:
        """Return reconstructions, samples of each class, and images decoded from z under each class."""
        return super().pictures(x, *given) | self.pictures_of(x, self.classifier(x).logits.argmax(-1))

    def unlabelled(self, *data: Tensor) -> tuple[Tensor, ...]:
        """Return x and a label of -1 for each x: reports estimate log p(x)."""
        return data[0], labels_of(data[0])[0]

    @torch.no_grad()
    def measures(self, *data: Tensor) -> dict[str, Tensor]:
        """Return the accuracy: 1 if the class of largest q(y | x) is the label, 0 if not, NaN for an unknown label."""
        y, known = labels_of(*data)
        correct = (self.classifier(data[0]).logits.argmax(-1) == y).to(self.reference)
        return {"accuracy": torch.where(known, correct, torch.nan)}

    def check_dataset(self, dataset: Dataset, strict: bool = False) -> None:
        """Check x as :meth:`pyro_vae.VAE.check_dataset` does; refuse training labels of fewer than two classes."""
        super().check_dataset(dataset, strict)
        y = dataset.train.columns.get("y")
        classes = y[y >= 0].unique().tolist() if y is not None else []
        if len(classes) < 2:
            raise ValueError(
                f"Expected training labels y of at least 2 classes; got {classes or 'none'}. Add labels, with -1 where "
                "unknown, or train a VAE."
            )

    def check_given(self, *given: Tensor) -> None:
        """Refuse labels that are not classes."""
        for y in given:
            if not are_labels(y):
                raise ValueError(
                    f"Expected labels y, integers of shape (B,), -1 where unknown; got {y.dtype} of shape "
                    f"{tuple(y.shape)}."
                )
            self.check_labels(y)


class _Label(Family):
    """A categorical distribution over one-hot vectors."""

    params = 1

    def distribution(self, logits: Tensor) -> TorchDistribution:  # type: ignore[override]
        return dist.OneHotCategorical(logits=logits)
