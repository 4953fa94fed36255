r"""Guides refined for each datum, and the two parts of the inference gap: approximation and amortisation gap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_vae import ais, evaluate
from pyro_vae.compiled import GraphedFunction, Outputs, fast_products, max_batch_size
from pyro_vae.conditional import Conditional
from pyro_vae.missing import log_prob
from pyro_vae.program import arguments, reference_tensor
from pyro_vae.programs import VAE
from pyro_vae.seeds import eval_mode, normal_tensor
from pyro_vae.train.optimizers import Adam


class Gaps(NamedTuple):
    r"""log p(x), the ELBO of the refined guide and the ELBO of the encoder per datum, each ``(B,)``, in nats."""

    log_p: Tensor
    refined: Tensor
    elbo: Tensor

    @property
    def approximation(self) -> Tensor:
        r"""The approximation gap :math:`\log p(x) - \mathcal{L}[q^*]`. A richer guide family makes the gap smaller."""
        return self.log_p - self.refined

    @property
    def amortisation(self) -> Tensor:
        r"""The amortisation gap :math:`\mathcal{L}[q^*] - \mathcal{L}[q]`. A better encoder makes the gap smaller."""
        return self.refined - self.elbo


class PerDatumParameters(nn.Module):
    """A network with free parameters ``(B, params, *event)`` for the data x. The network accepts no other x."""

    def __init__(self, phi: Tensor, x: Tensor) -> None:
        super().__init__()
        self.phi = nn.Parameter(phi)
        self.rows = {key: i for i, key in enumerate(_keys(x))}

    def forward(self, x: Tensor) -> Tensor:
        """Return the parameters for the rows of x, in the order of x."""
        try:
            rows = [self.rows[key] for key in _keys(x)]
        except KeyError:
            raise ValueError("Expected x for which the guide was refined; got other x. Call refine(vae, x).") from None
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
    r"""Refine the guide for each datum within its family: :math:`q^* = \arg\max_q \mathcal{L}[q](x)`.

    The result is a VAE with the same prior and decoder, and a guide for these data alone. x has shape ``(B, *event)``;
    missing elements are NaN. Adam starts at the encoder's parameters and maximises the ELBO of ``num_particles`` draws
    for ``steps`` steps, with sticking-the-landing gradients. The learning rate starts at ``lr``, in units of the
    family's parameters, and decays as a cosine. The guide's parameters are averages over the second half of the steps.

    References:
        - Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018),
          https://arxiv.org/abs/1801.03558.
        - Sticking the Landing (Roeder, Wu and Duvenaud, 2017), https://arxiv.org/abs/1703.09194.

    Raises:
        ValueError: If the encoder is not a :class:`pyro_vae.conditional.Conditional`, as ``VAE.build`` creates, or a
            number is not positive.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> exact = refine(model.vae(), x, steps=1)  # nothing to gain
        >>> bool((evaluate.nll(exact, x, 10) + model.log_evidence(x) < 1e-3).all())
        True
    """
    if not isinstance(vae, VAE):
        raise ValueError(f"Expected a VAE, whose guide is one encoder; got {type(vae).__name__}.")
    encoder = vae.encoder
    if not isinstance(encoder, Conditional):
        raise ValueError(
            f"Expected an encoder that is a Conditional, whose parameters can be refined; got "
            f"{type(encoder).__name__}. Write it as Conditional(network, family)."
        )
    for name, number in {"steps": steps, "num_particles": num_particles, "lr": lr}.items():
        if number <= 0:
            raise ValueError(f"Expected a positive {name}; got {number}.")

    def gradient(phi: Tensor, x: Tensor, missing: bool) -> Outputs:
        """Return the gradient of minus the ELBO in the guide's parameters."""
        with torch.enable_grad():
            phi = phi.detach().requires_grad_()
            z = encoder.family(phi).rsample((num_particles,))
            q = encoder.family(phi.detach())
            log_w = vae.prior().log_prob(z) + log_prob(vae.decoder(z), x, missing) - q.log_prob(z)
            return Outputs(torch.autograd.grad(-log_w.mean(0).sum(), phi), None)

    def maximise(x: Tensor, steps: int, update: Callable[[], Any]) -> Tensor:
        with torch.no_grad():
            phi = encoder.parameters_of(x).clone().requires_grad_()
        optimizer = Adam([phi], lr=lr, eps=1e-4)  # steps fade where gradients do
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        tail, average = steps - steps // 2, torch.zeros_like(phi)
        missing = bool(x.isnan().any())
        graph = GraphedFunction(gradient, calls=steps, quiet=True, frozen=True)
        for step in range(steps):
            with fast_products("auto"):
                (phi.grad,) = graph((phi.detach(), x, missing), {}).tensors
            optimizer.step()
            schedule.step()
            average += phi.detach() / tail if step >= steps - tail else 0
            update()
        return average

    with eval_mode(vae, reference_tensor(vae).device, seed):
        x = normal_tensor(*arguments(vae, x))
        vae.check_data(x)
        parts = x.split(max_batch_size(lambda n: maximise(x[:n], 1, lambda: None), len(x), x.device))
        with tqdm(total=len(parts) * steps, desc="refine", leave=False, disable=not progress) as bar:
            phi = torch.cat([maximise(rows, steps, bar.update) for rows in parts])
    return VAE(vae.prior, vae.decoder, Conditional(PerDatumParameters(phi, x), encoder.family))


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
    r"""Split the inference gap, log p(x) minus the ELBO, into approximation and amortisation gaps, in nats per datum.

    .. math:: \log p(x) - \mathcal{L}[q] = \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation}}
        + \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q]}_{\text{amortisation}}

    :math:`q^*` is the guide of :func:`refine` after ``steps`` steps; without convergence the amortisation gap is too
    small. log p(x) is the larger of two lower bounds for each datum. The first bound is importance sampling from
    :math:`q^*`; like each ELBO, the bound uses ``num_particles`` draws. The second bound is ``log_p``, of shape
    ``(B,)``; for None, :func:`pyro_vae.ais.ais` computes the second bound from :math:`q^*` with 16 chains, unless
    ``temperatures`` is 0. Errors are as for :func:`refine` and :func:`pyro_vae.ais.ais`.

    Example:
        >>> from pyro_vae.oracle import LinearGaussian
        >>> model, x = LinearGaussian(torch.ones(4, 2), torch.zeros(4), scale=0.5), torch.randn(3, 4)
        >>> parts = gaps(model.vae("mean-field"), x, steps=50, temperatures=0, seed=0)  # an optimal encoder
        >>> bool((parts.amortisation.abs() < 0.1).all())
        True
    """
    refined = refine(vae, x, steps, seed=seed, progress=progress)
    best, amortised = (evaluate.log_weights(q, x, num_particles, progress=progress, seed=seed) for q in (refined, vae))
    if log_p is None and temperatures:
        log_p = ais.ais(refined, x, temperatures=temperatures, seed=seed, progress=progress)
    bound = evaluate.iwae(best)
    log_p = bound if log_p is None else torch.maximum(bound, log_p)
    return Gaps(log_p, evaluate.elbo(best), evaluate.elbo(amortised))
