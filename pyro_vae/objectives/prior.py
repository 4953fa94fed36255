"""An objective that trains only the prior, for the second stage of a trained program."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.objectives.base import Objective, Program, Terms
from pyro_vae.objectives.divergence import total
from pyro_vae.traces.sites import density_sites, inner, samples


class PriorCrossEntropy(Objective):
    r"""The cross-entropy of the prior: it trains p(z) on draws of the guide, and leaves the rest of the program.

    .. math:: -\mathbb{E}_{q(z \mid x)} [\log p(z)]

    Its minimum over all priors is the aggregate posterior, the mean of q(z | x) over the data. The ELBO with a new
    prior increases by as much as the cross-entropy decreases. :func:`pyro_vae.fit_prior` trains a prior with this
    objective. If the distribution of a site has a method ``bound``, as a :class:`pyro_vae.priors.Diffusion` prior's,
    then the bound replaces :math:`-\log p(z)`.

    References:
        Diagnosing and Enhancing VAE Models (Dai and Wipf, 2019), for two stages.
        Resampled Priors for Variational Autoencoders (Bauer and Mnih, 2019), for priors of a trained VAE.

    Example:
        >>> from pyro.infer import SVI
        >>> from pyro.optim import Adam
        >>> from pyro_vae import VAE, priors
        >>> vae = VAE.build((1, 8, 8), latent=2, prior=priors.Flow)
        >>> svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), loss=PriorCrossEntropy())
        >>> before = vae.encoder.network.bias.clone()
        >>> loss = svi.step(torch.rand(32, 1, 8, 8))
        >>> bool((vae.encoder.network.bias == before).all())
        True
    """

    def __init__(self) -> None:
        super().__init__(num_particles=1, vectorize_particles=True)

    def part_of(self, program: Any) -> nn.Module:
        """Return the program's prior."""
        prior = getattr(program, "prior", None)
        if not isinstance(prior, nn.Module):
            raise ValueError(
                f"Expected a program with a prior, a module, to train it alone; {type(program).__name__}.prior is "
                f"{'absent' if prior is None else repr(prior)[:80]}. Set it in the program, and call it in the model."
            )
        if not any(True for _ in prior.parameters()):
            raise ValueError(
                f"Expected a prior with parameters; {type(prior).__name__} has none. Choose another prior, as "
                "--prior Flow, --prior Diffusion or --prior GaussianMixture."
            )
        return prior

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Return the cross-entropy of all latent sites, and NaN for minus the ELBO."""
        loss, bounds = torch.zeros(()), Bounds()
        for model_trace, guide_trace in self._traces(bounds(model), torch.no_grad()(bounds(guide)), args, kwargs):
            expect, prior = self.expectation(model_trace, guide_trace), samples(model_trace)
            if expect.members:
                raise ValueError(
                    f"Expected a prior without classes that the model alone draws; {min(expect.members)!r} depends on "
                    "some. Draw them in the guide too."
                )
            drawn = density_sites(model_trace, guide_trace)
            loss = loss - total(expect.mean(prior[name]["log_prob"], q) for name, q in drawn.items() if name in prior)
        return Terms(loss, torch.tensor(float("nan")))


class Bounds(Messenger):
    """A handler of guide and model that replaces log-densities by minus a bound, where a distribution has one.

    The bound takes the draw and the distribution of its elements in the guide, which runs before the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guide: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and hasattr(msg["fn"], "bound"):
            msg["fn"] = _ByBound(msg["fn"], self.guide.get(msg["name"]))
        else:
            self.guide[msg["name"]] = inner(msg["fn"])


class _ByBound(TorchDistribution):
    """A distribution whose log-density is minus the bound of another distribution."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base: Any, guide: Any) -> None:
        self.base, self.guide, self.has_rsample = base, guide, base.has_rsample
        super().__init__(base.batch_shape, base.event_shape)

    @property
    def support(self) -> Any:
        return self.base.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.sample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return -self.base.bound(value, self.guide)
