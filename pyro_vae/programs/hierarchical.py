"""The hierarchical VAE, with several layers of latents."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.conditional import Conditional, Family, mean, module
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Gaussian
from pyro_vae.networks import Auto
from pyro_vae.priors import StandardNormal
from pyro_vae.programs.building import conditional, family_of, of_image, shape_of
from pyro_vae.programs.built import Built
from pyro_vae.programs.hooks import Draw, quietly

BOTTOM_UP, TOP_DOWN = "bottom-up", "top-down"


class HierarchicalVAE(Built):
    r"""A VAE with L layers of latents: z1 is next to x, and zL is at the top.

    .. math::
        p(x, z_1, \dots, z_L) = p(z_L) \, p(x \mid z_1) \prod_{l < L} p(z_l \mid z_{l+1})

    The guide ``bottom-up`` is :math:`q(z_1 \mid x) \prod_{l > 1} q(z_l \mid z_{l-1})`, a stack of recognition
    networks; ``top-down`` is :math:`q(z_L \mid x) \prod_{l < L} q(z_l \mid x, z_{l+1})`, in the model's order. The KL
    divergence has a closed form for every layer of ``top-down``, but only for the top layer of ``bottom-up``: the guide
    must draw the layer's parents in the model first. ``objective.report`` shows the method of each layer.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), for ``bottom-up``.
        Ladder Variational Autoencoders (Sønderby et al., 2016).
        VAE with a VampPrior (Tomczak and Welling, 2018), for ``top-down``.

    Arguments:
        event_shape: Shape of one x, for example ``(1, 28, 28)``.
        latents: Dimensions of z1, z2, and so on.
        guide: ``bottom-up`` or ``top-down``.
        prior: A class for p(zL). A VampPrior is a mixture of q(zL | u) over pseudo-inputs u.
        likelihood, network: Classes, as in :meth:`pyro_vae.VAE.build`; the networks read x and predict x.
        family: A class for q and p of each layer, called with the layer's dimensions.
        inner: A class for the networks between two layers; None stands for ``network``.

    Raises:
        ValueError: If a size is not positive, the guide is unknown, or the parts do not fit together.

    Example:
        >>> vae = HierarchicalVAE.build((64,), latents=(20, 5))
        >>> vae.generate(3).shape
        torch.Size([3, 64])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latents: Sequence[int] = (100, 50),
        guide: Literal["bottom-up", "top-down"] = "bottom-up",
        prior: Callable[[int], nn.Module] = StandardNormal,
        likelihood: Callable[[Sequence[int]], Family] = Gaussian,
        family: Callable[[int], Family] = DiagonalNormal,
        network: Callable[[Sequence[int], Sequence[int]], nn.Module] = Auto,
        inner: Callable[[Sequence[int], Sequence[int]], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        names = [f"z{i + 1}" for i in range(len(latents))]
        sizes = dict(zip(names, map(int, latents), strict=True))
        event_shape, inner = shape_of(event_shape, **sizes), inner or network
        if not sizes or guide not in (BOTTOM_UP, TOP_DOWN):
            got = guide if isinstance(guide, str) else "a class, which is the argument family"
            raise ValueError(
                f"Expected guide to be {BOTTOM_UP} or {TOP_DOWN}, and at least one layer in latents; got guide = {got} "
                f"and latents = {latents!r}."
            )
        p_x = family_of("likelihood", likelihood, event_shape)
        self.decoder = conditional(network, p_x, (sizes["z1"],))
        pairs = zip(names[-2::-1], names[:0:-1], strict=True)  # from the top
        self.layers = nn.ModuleDict(
            {low: conditional(inner, family_of("family", family, sizes[low]), (sizes[high],)) for low, high in pairs}
        )
        self.order, self.top = guide, names[-1]
        encoders: dict[str, Conditional] = {}
        shapes: dict[str, Sequence[int]] = {}  # of each encoder's first input
        before: list[Sequence[int]] = []
        for name in reversed(names) if guide == TOP_DOWN else names:
            q, (shapes[name], *beside) = family_of("family", family, sizes[name]), self.inputs_of(event_shape, *before)
            of_x = shapes[name] is event_shape
            encoders[name] = of_image(network, q, p_x, *beside) if of_x else conditional(inner, q, shapes[name])
            before = [(sizes[name],)]
        self.encoders = nn.ModuleDict(encoders)
        self.prior = self.new_prior(prior)

    def model(self, x: Tensor) -> Tensor:
        """Sample zL from the prior and each layer given the layer above; observe x, of shape ``(B, *event)``."""
        module("vae", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample(self.top, self.prior())
            for name, layer in self.layers.items():
                z = pyro.sample(name, layer(z))
            return pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Sample each layer given the layer before; ``top-down`` samples given x too."""
        module("vae", self)
        with pyro.plate("data", x.shape[0], dim=-1):
            before: list[Tensor] = []
            for name, encoder in self.encoders.items():
                before = [pyro.sample(name, encoder(*self.inputs_of(x, *before)))]

    def inputs_of(self, x: Any, *before: Any) -> tuple[Any, ...]:
        """Return a layer's inputs in the guide: x and the layer before; ``bottom-up`` omits x after the first layer."""
        return (x, *before) if self.order == TOP_DOWN else before or (x,)

    @property
    def top_encoder(self) -> Conditional:
        """The encoder of the top layer."""
        return self.encoders[self.top]  # type: ignore[return-value]

    def at_prior(self, num: int) -> TorchDistribution:
        """Return p(x | z1) at ``num`` draws of all layers."""
        return self.below(self.prior().sample((num,)))

    def below(self, z: Tensor) -> TorchDistribution:
        """Return p(x | z1) at a draw of all lower layers, given the top layer z of shape ``(*, latent)``."""
        for layer in self.layers.values():
            z = layer(z).sample()
        return self.decoder(z)

    def at_guide(self, draw: Draw, x: Tensor, *given: Tensor) -> TorchDistribution:
        """Return p(x | z1) at draws of all layers from the guide, or at each layer's mean."""
        return self.decoder(self.codes(x, draw)["z1"])

    def codes(self, x: Tensor, draw: Draw = mean) -> dict[str, Tensor]:
        """Return a dictionary with each layer's mean under the guide, or a draw, of shape ``(B, latent)``."""
        codes: dict[str, Tensor] = {}
        before: list[Tensor] = []
        for name, encoder in self.encoders.items():
            before = [draw(encoder(*self.inputs_of(x, *before)))]
            codes[name] = before[0]
        return codes

    @torch.no_grad()
    def pictures(self, x: Tensor, *given: Tensor) -> dict[str, tuple[Tensor, str]]:
        """Return reconstructions, samples, and draws of x given only the top layer of each image."""
        top = self.codes(x)[self.top]
        rows = torch.stack([x, self.reconstruct(x), *(mean(self.below(top)) for _ in range(6))])
        return super().pictures(x) | {"layers": (rows, f"Images, reconstructions, draws of p(x | {self.top})")}

    def pseudo_inputs(self, x: Any) -> Any:
        """Return the first input of the guide's top layer: training images, or the codes of the first 2,000 images."""
        few = x[:2000]
        inputs, *_ = self.inputs_of(few, *[*self.codes(few).values()][-2:-1])
        return x if inputs is few else inputs

    @quietly
    def blank(self, num: int) -> Tensor:
        """Return ``num`` draws of x, of shape ``(num, *event)``."""
        return self.at_prior(num).sample()
