"""The second stage of a trained program: a new prior, trained on draws of the guide."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pyro_vae.objectives import PriorCrossEntropy
from pyro_vae.seeds import fork_rng
from pyro_vae.train.fitting import fit
from pyro_vae.train.settings import check_program, hook


def fit_prior(
    program: nn.Module, data: Any, prior: Callable[[int], nn.Module] | None = None, seed: int = 0, **options: Any
) -> dict[str, list[float]]:
    r"""Train only the prior of a trained program, on draws of its guide; the other parts stay the same.

    .. math:: \max_\theta \; \mathbb{E}_{q(z \mid x)} [\log p_\theta(z)]

    A guide trained with a simple prior leaves gaps: the aggregate posterior, the mean of q(z | x) over the data,
    differs from p(z). A prior trained on the guide's draws fills this gap. The ELBO increases by as much as
    :math:`\mathbb{E}_q[\log p(z)]` does. Samples then come from places that the decoder knows. With
    :class:`pyro_vae.priors.Diffusion` the result is a latent diffusion model with a likelihood in nats.

    The function is :func:`pyro_vae.fit` with the objective :class:`pyro_vae.objectives.PriorCrossEntropy`. ``train`` in
    the history is this cross-entropy, in nats per datum; ``valid`` is minus the ELBO of the whole program. A resumed
    second stage needs the call ``fit(program, data, objectives.PriorCrossEntropy(), resume=run)``.

    Arguments:
        program: A trained program with a module ``prior``. The function changes it in place.
        data: As in :func:`pyro_vae.fit`.
        prior: Class of the new prior, as in :meth:`pyro_vae.VAE.build`; None to train the program's prior.
        seed: Seed of the new prior's weights, and the seed of :func:`pyro_vae.fit`.
        options: Further arguments of :func:`pyro_vae.fit`, but for ``objective`` and ``sleep``.

    Returns:
        The history of :func:`pyro_vae.fit`.

    Raises:
        ValueError: As in :func:`pyro_vae.fit`; or if the program has no prior, the prior has no parameters, or the
            program cannot replace its prior.

    References:
        Diagnosing and Enhancing VAE Models (Dai and Wipf, 2019).
        High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022).

    Example:
        >>> from pyro_vae import VAE, data, fit, priors
        >>> digits = data.load("digits")
        >>> vae = VAE.build((1, 8, 8), latent=2)
        >>> _ = fit(vae, digits, epochs=1, progress=False)
        >>> history = fit_prior(vae, digits, priors.Flow, epochs=2, progress=False)
        >>> type(vae.prior).__name__, history["train"][1] < history["train"][0]
        ('Flow', True)
    """
    if "objective" in options:
        raise ValueError(f"Expected no objective: fit_prior has its own; got {options['objective']!r}. Use fit.")
    check_program(program)
    if prior is not None:
        if not (replace := hook(program, "replace_prior")):
            raise ValueError(
                "Expected a program with a method replace_prior, as the programs of pyro_vae; "
                f"{type(program).__name__} has none. Set its prior, and leave out prior."
            )
        with fork_rng(torch.device("cpu"), seed):
            replace(prior)
    return fit(program, data, PriorCrossEntropy(), seed=seed, **options)
