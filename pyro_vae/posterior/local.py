r"""A guide of its own for each datum, and with it the two reasons why an ELBO falls short of log p(x)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_vae import ais, evaluate
from pyro_vae.compiled import how_many_fit
from pyro_vae.conditional import Conditional
from pyro_vae.missing import log_prob
from pyro_vae.program import arguments, point_of
from pyro_vae.programs import VAE
from pyro_vae.seeds import at_test, tracked
from pyro_vae.train.optimizers import Adam


class Gaps(NamedTuple):
    r"""Per datum, in nats, of shape ``(B,)``: log p(x), the ELBO of the family's best guide, and the encoder's ELBO."""

    log_p: Tensor
    refined: Tensor
    elbo: Tensor

    @property
    def approximation(self) -> Tensor:
        r"""What the family cannot do, :math:`\log p(x) - \mathcal{L}[q^*]`: smaller with a richer guide."""
        return self.log_p - self.refined

    @property
    def amortisation(self) -> Tensor:
        r"""What the encoder does not do, :math:`\mathcal{L}[q^*] - \mathcal{L}[q]`: smaller with a larger network."""
        return self.refined - self.elbo


class Table(nn.Module):
    """A network of rows of parameters, ``(B, params, *event)``, one for each of the data x, and for no others."""

    def __init__(self, phi: Tensor, x: Tensor) -> None:
        super().__init__()
        self.phi = nn.Parameter(phi)
        self.rows = {key: i for i, key in enumerate(_keys(x))}

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows of some of the data, in their order."""
        try:
            rows = [self.rows[key] for key in _keys(x)]
        except KeyError:
            raise ValueError("Expected data that the guide was refined for; got others. Refine one for them.") from None
        return self.phi[torch.tensor(rows, device=self.phi.device)]


def _keys(x: Tensor) -> list[bytes]:
    return [row.tobytes() for row in x.detach().cpu().contiguous().numpy()]


def refine(
    vae: VAE,
    x: Tensor,
    steps: int = 500,
    num_particles: int = 16,
    lr: float = 0.05,
    seed: int | None = None,
    progress: bool = False,
) -> VAE:
    r"""Fit a guide of its own, of the same family, to each of some data: :math:`q^* = \arg\max_q \mathcal{L}[q](x)`.

    The answer is a VAE with the same prior and decoder, and a guide for these data alone; x is of shape
    ``(B, *event)``, NaN where it is missing. From where the encoder is, Adam, its rate falling along a cosine from
    ``lr``, in the units of the family's parameters, climbs the ELBO of ``num_particles`` draws by the gradient that
    sticks the landing; the guide is the mean over the second half of its steps.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018).
        Sticking the Landing (Roeder, Wu and Duvenaud, 2017).

    Raises:
        ValueError: If the encoder is no :class:`pyro_vae.conditional.Conditional`, as those of ``VAE.build`` are, or a
            number is not positive.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> exact = refine(model.vae(), x, steps=1)  # nothing to gain
        >>> bool((evaluate.nll(exact, x, 10) + model.log_evidence(x) < 1e-3).all())
        True
    """
    if not isinstance(vae, VAE):
        raise ValueError(f"Expected a VAE, whose guide is one encoder of x; got {type(vae).__name__}.")
    encoder = vae.encoder
    if not isinstance(encoder, Conditional):
        raise ValueError(
            f"Expected an encoder that is a Conditional, whose parameters can be refined; got "
            f"{type(encoder).__name__}. Write it as Conditional(network, family)."
        )
    for name, number in {"steps": steps, "num_particles": num_particles, "lr": lr}.items():
        if number <= 0:
            raise ValueError(f"Expected a positive {name}; got {number}.")

    def climb(x: Tensor, steps: int, update: Callable[[], Any]) -> Tensor:
        with torch.no_grad():
            phi = encoder.propose(x).clone().requires_grad_()
        optimizer = Adam([phi], lr=lr, eps=1e-4)  # steps fade where gradients do
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        tail, average = steps - steps // 2, torch.zeros_like(phi)
        with torch.enable_grad():
            for step in range(steps):
                z = encoder.family(phi).rsample((num_particles,))
                q = encoder.family(phi.detach())
                log_w = vae.prior().log_prob(z) + log_prob(vae.decoder(z), x) - q.log_prob(z)
                (phi.grad,) = torch.autograd.grad(-log_w.mean(0).sum(), phi)
                optimizer.step()
                schedule.step()
                average += phi.detach() / tail if step >= steps - tail else 0
                update()
        return average

    with at_test(vae, point_of(vae).device, seed):
        x = tracked(*arguments(vae, x))
        vae.check_data(x)
        parts = x.split(how_many_fit(lambda n: climb(x[:n], 1, lambda: None), len(x), x.device))
        with tqdm(total=len(parts) * steps, desc="refine", leave=False, disable=not progress) as bar:
            phi = torch.cat([climb(rows, steps, bar.update) for rows in parts])
    return VAE(vae.prior, vae.decoder, Conditional(Table(phi, x), encoder.family))


def gaps(
    vae: VAE,
    x: Tensor,
    log_p: Tensor | None = None,
    num_particles: int = 1000,
    steps: int = 500,
    temperatures: int = 500,
    seed: int | None = None,
    progress: bool = False,
) -> Gaps:
    r"""Split what an ELBO falls short of log p(x) into what the guide's family cannot do and what the encoder does not.

    .. math:: \log p(x) - \mathcal{L}[q] = \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation}}
        + \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q]}_{\text{amortisation}}

    Source and :math:`q^*` are those of :func:`refine`: where it has not converged the second part is too small.
    log p(x) is the larger, datum by datum, of two lower bounds: importance sampling from :math:`q^*`, of as many draws
    as each ELBO, and ``log_p``, ``(B,)``; without it annealed importance sampling (:func:`pyro_vae.ais.ais`) from
    :math:`q^*`, of 16 chains, unless ``temperatures`` are 0. ``Raises`` are those of the two functions.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> found = gaps(model.vae("mean-field"), x, steps=50, temperatures=0, seed=0)  # amortised as well as can be
        >>> bool((found.amortisation.abs() < 0.1).all())
        True
    """
    refined = refine(vae, x, steps, seed=seed, progress=progress)
    both = (evaluate.log_weights(one, x, num_particles, progress=progress, seed=seed) for one in (refined, vae))
    ours, theirs = both
    if log_p is None and temperatures:
        log_p = ais.ais(refined, x, temperatures=temperatures, seed=seed, progress=progress)
    bound = evaluate.iwae(ours)
    return Gaps(bound if log_p is None else torch.maximum(bound, log_p), evaluate.elbo(ours), evaluate.elbo(theirs))
