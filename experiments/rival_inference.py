r"""Rivals of the benchmark that ask a trained VAE: importance sampling, annealed importance sampling, and NUTS.

All ask the decoder of one VAE of 784-400-20 with a Bernoulli likelihood, whose weights they share. The estimators are
those of ``pyro_vae.evaluate.nll`` and ``pyro_vae.ais``: JAX's are jitted loops (``lax.scan``), torch's is a plain loop.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from own_steps import vae
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from pyro_vae import VAE

__all__ = ["jax_annealing", "jax_nll", "keep_compiled_code", "numpyro_nuts", "steep_vae", "torch_nll"]

GAIN = 2.0  # of the decoder's weights, so that images say something about z
LATENT = 20


def steep_vae(images: int) -> tuple[VAE, Tensor]:
    """Return a VAE with random weights, larger in the decoder, and images drawn from it."""
    torch.manual_seed(0)
    model = vae(binary=True)
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(GAIN)
        x: Tensor = model.decoder(torch.randn(images, LATENT)).sample()
    return model, x


def weights_of(model: VAE) -> dict[str, np.ndarray]:
    """Return the weights of the encoder and of the decoder by short names, as arrays."""
    names = {
        "e1": "encoder.network.layers.1.weight",
        "eb": "encoder.network.layers.1.bias",
        "e2": "encoder.network.layers.3.weight",
        "ec": "encoder.network.bias",
        "d1": "decoder.network.layers.1.weight",
        "db": "decoder.network.layers.1.bias",
        "d2": "decoder.network.layers.3.weight",
        "dc": "decoder.network.bias",
    }
    state = model.state_dict()
    return {short: state[name].numpy() for short, name in names.items()}


def torch_nll(model: VAE, x: Tensor, num: int) -> Callable[[], float]:
    """Return the mean of -log p(x) by ``num`` draws from the guide, in a loop over pairs of draws in plain torch."""
    w = {name: torch.from_numpy(value) for name, value in weights_of(model).items()}

    @torch.no_grad()
    def run() -> float:
        q = model.encoder(x)
        mean, scale = q.mean, q.stddev
        total = x.new_full((len(x),), -math.inf)
        for _ in range(num // 2):
            noise = torch.randn(2, len(x), LATENT)
            z = mean + scale * noise
            logits = linear(linear(z, w["d1"], w["db"]).relu(), w["d2"], w["dc"][0])
            log_p = -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
            log_w = log_p + (0.5 * (noise.square() - z.square()) + scale.log()).sum(-1)
            total = torch.logaddexp(total, log_w.logsumexp(0))
        return (math.log(num) - total).mean().item()

    return run


def _log_joint(w: dict[str, Any], x: Any, z: Any) -> Any:
    """Return log p(x, z) of shape ``(K, B)`` in JAX, for z of shape ``(K, B, 20)``."""
    import jax
    import jax.numpy as jnp

    logits = jax.nn.relu(z @ w["d1"].T + w["db"]) @ w["d2"].T + w["dc"][0]
    log_p = (x * logits - jnp.logaddexp(logits, 0.0)).sum(-1)
    return log_p - 0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)


def _posterior(w: dict[str, Any], x: Any) -> tuple[Any, Any]:
    """Return the mean and the scale of the guide in JAX."""
    import jax
    import jax.numpy as jnp

    out = jax.nn.relu(x @ w["e1"].T + w["eb"]) @ w["e2"].T
    return out[:, :LATENT] + w["ec"][0], jnp.exp(out[:, LATENT:] + w["ec"][1])


def jax_nll(model: VAE, x: Tensor, num: int) -> Callable[[], float]:
    """Return the mean of -log p(x) by ``num`` draws from the guide, by a jitted loop in JAX."""
    import jax
    import jax.numpy as jnp

    w, data = {name: jnp.asarray(value) for name, value in weights_of(model).items()}, jnp.asarray(x.numpy())

    @jax.jit
    def nll(x: Any, key: Any) -> Any:
        mean, scale = _posterior(w, x)

        def step(total: Any, key: Any) -> Any:
            noise = jax.random.normal(key, (1, *mean.shape))
            log_q = (-0.5 * (noise**2 + math.log(2 * math.pi)) - jnp.log(scale)).sum(-1)
            log_w = _log_joint(w, x, mean + scale * noise) - log_q
            return jnp.logaddexp(total, log_w[0]), None

        total, _ = jax.lax.scan(step, jnp.full(len(x), -jnp.inf), jax.random.split(key, num))
        return (math.log(num) - total).mean()

    return lambda: float(nll(data, jax.random.PRNGKey(0)))


def jax_annealing(model: VAE, x: Tensor, chains: int, temperatures: int, leapfrog: int) -> Callable[[], float]:
    """Return the mean bound on log p(x) by AIS from the guide, by a jitted loop in JAX with one size of steps."""
    import jax
    import jax.numpy as jnp

    w, data = {name: jnp.asarray(value) for name, value in weights_of(model).items()}, jnp.asarray(x.numpy())

    @jax.jit
    def anneal(x: Any, key: Any) -> Any:
        mean, scale = _posterior(w, x)

        def densities(u: Any) -> Any:
            def start_of(u: Any) -> Any:
                log_q = (-0.5 * (((u - mean) / scale) ** 2 + math.log(2 * math.pi)) - jnp.log(scale)).sum(-1)
                return log_q.sum(), log_q

            def joint_of(u: Any) -> Any:
                log_p = _log_joint(w, x, u)
                return log_p.sum(), log_p

            (_, start), start_grad = jax.value_and_grad(start_of, has_aux=True)(u)
            (_, joint), joint_grad = jax.value_and_grad(joint_of, has_aux=True)(u)
            return start, joint, start_grad, joint_grad

        def step(carry: Any, argument: Any) -> Any:
            (u, start, joint, start_grad, joint_grad), log_w = carry
            beta, before, key = argument
            log_w = log_w + (beta - before) * (joint - start)
            first, second = jax.random.split(key)
            momentum = jax.random.normal(first, u.shape)
            size = 0.2 * scale
            energy = (1 - beta) * start + beta * joint - 0.5 * (momentum**2).sum(-1)
            end = state = (u, start, joint, start_grad, joint_grad)
            momentum = momentum + 0.5 * size * ((1 - beta) * start_grad + beta * joint_grad)
            for i in range(leapfrog):
                new = end[0] + size * momentum
                end = (new, *densities(new))
                half = 0.5 if i == leapfrog - 1 else 1.0
                momentum = momentum + half * size * ((1 - beta) * end[3] + beta * end[4])
            ratio = (1 - beta) * end[1] + beta * end[2] - 0.5 * (momentum**2).sum(-1) - energy
            accepted = jnp.log(jax.random.uniform(second, ratio.shape)) < ratio
            state = tuple(
                jnp.where(accepted[..., None] if new.ndim > 2 else accepted, new, old)
                for new, old in zip(end, state, strict=True)
            )
            return (state, log_w), None

        betas = jnp.linspace(0, 1, temperatures + 1)
        first, rest = jax.random.split(key)
        u = mean + scale * jax.random.normal(first, (chains, *mean.shape))
        arguments = (betas[1:], betas[:-1], jax.random.split(rest, temperatures))
        (_, log_w), _ = jax.lax.scan(step, ((u, *densities(u)), jnp.zeros((chains, len(x)))), arguments)
        return (jax.nn.logsumexp(log_w, 0) - math.log(chains)).mean()

    return lambda: float(anneal(data, jax.random.PRNGKey(0)))


def keep_compiled_code(folder: str) -> None:
    """Store the code that JAX compiles in a folder, so that later runs of NumPyro load it."""
    import jax

    for option, value in (
        ("jax_compilation_cache_dir", folder),
        ("jax_persistent_cache_min_compile_time_secs", 0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        jax.config.update(option, value)


def numpyro_nuts(
    model: VAE, x: Tensor, draws: int, warmup: int, chains: int, method: str = "sequential"
) -> Callable[[], Tensor]:
    """Return draws ``(chains, draws, B, 20)`` from the posterior by NumPyro's NUTS; a chain moves all data together.

    ``method`` is NumPyro's: ``sequential`` runs chain after chain, ``vectorized`` all at once.
    """
    import jax
    import jax.numpy as jnp
    from numpyro.infer import MCMC, NUTS

    w, data = {name: jnp.asarray(value) for name, value in weights_of(model).items()}, jnp.asarray(x.numpy())

    def potential(z: Any) -> Any:
        return -_log_joint(w, data, z[None]).sum()

    options: dict[str, Any] = {"chain_method": method, "progress_bar": False}
    sampler = MCMC(NUTS(potential_fn=potential), num_warmup=warmup, num_samples=draws, num_chains=chains, **options)

    def run() -> Tensor:
        start = jax.random.normal(jax.random.PRNGKey(1), (chains, len(x), LATENT))
        sampler.run(jax.random.PRNGKey(0), init_params=start)
        return torch.from_numpy(np.array(sampler.get_samples(group_by_chain=True)))

    return run
