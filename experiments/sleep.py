"""The effect of a sleep phase on the guide of a VAE of the digits.

``make train`` trains a VAE on 1,437 digits, and its encoder overfits them: on test images the ELBO falls short of
log p(x). A sleep trains the guide alone, on data that the model draws and on training images with its noise. The model,
and with it log p(x), stays the same. Before and after the sleep, on test images:

- ELBO at beta = 1, from draws of the guide, nats per image;
- -log p(x) by draws of a proposal adapted to each image, an upper bound on average, nats per image;
- k-hat > 0.7: the share of images for which importance sampling from the guide is not reliable;
- approximation and amortisation gap of the first images: the parts of log p(x) minus the ELBO.

References:
    The Wake-Sleep Algorithm (Hinton, Dayan, Frey and Neal, 1995).

    Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018).

The committed table: ``python experiments/sleep.py``.
"""

from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from common import command, write_table
from torch import Tensor

from pyro_vae import VAE, evaluate, fit, networks, posterior
from pyro_vae.data import load
from pyro_vae.evaluate.summaries import mean_and_error


def main(
    data: str = "digits",
    root: str = "data",
    latent: int = 8,
    hidden: tuple[int, ...] = (256, 256),
    epochs: int = 60,
    batch_size: int = 64,
    steps: int = 10_000,
    images: int = 180,
    refined: int = 50,
    num_particles: int = 1000,
    seed: int = 0,
    out: str = "experiments/results",
) -> None:
    """Train a VAE, then its guide by a sleep, and write sleep.csv and .md to ``out``.

    Args:
        data: Name of a data set.
        root: Folder where torchvision finds it.
        latent: Number of latent dimensions.
        hidden: Units of each hidden layer of the encoder and of the decoder.
        epochs: Passes over the training images.
        batch_size: Images in a minibatch.
        steps: Steps of the sleep.
        images: Number of test images, the first ones.
        refined: Number of these for the gaps.
        num_particles: Draws per image.
        seed: Seed of the weights, the order and the draws.
        out: Folder for the results.
    """
    dataset = load(data, root)
    torch.manual_seed(seed)
    vae = VAE.build(dataset.event_shape, latent, network=partial(networks.MLP, hidden=hidden))
    x = dataset.test[:images]
    start = process_time()
    fit(vae, dataset, epochs=epochs, batch_size=batch_size, lr=3e-3, lr_schedule="one-cycle", seed=seed)
    rows = [{"guide": "after training"} | measure(vae, x, refined, num_particles, process_time() - start)]
    start = process_time()
    posterior.sleep(vae, steps, dataset.train[:], seed=seed, progress=True)
    rows.append({"guide": "after the sleep"} | measure(vae, x, refined, num_particles, process_time() - start))
    caption = (
        f"{dataset}: the first {len(x):,} test images, ± the standard error over them; one seed. Latent {latent}, "
        f"Gaussian likelihood of learned scale, hidden layers {hidden}, {epochs} epochs, then a sleep of {steps:,} "
        f"steps. {num_particles:,} draws for each image; the gaps of the first {refined}. Nats per image. "
        "CPU seconds: of training, and of the sleep."
    )
    write_table(rows, Path(out) / "sleep", caption)


def measure(vae: VAE, x: Tensor, refined: int, num_particles: int, seconds: float) -> dict[str, Any]:
    """Return a row of the table."""
    log_w = evaluate.log_weights(vae, x, num_particles, seed=0)
    log_p = evaluate.iwae(evaluate.log_weights(vae, x, num_particles, seed=0, proposal="adapted"))
    gaps = posterior.gaps(vae, x[:refined], log_p[:refined], num_particles, seed=0)
    return {
        "ELBO": mean_and_error(evaluate.elbo(log_w)),
        "-log p(x)": mean_and_error(-log_p),
        "k-hat > 0.7": (evaluate.pareto_k(log_w) > 0.7).double().mean().item(),
        "approximation": mean_and_error(gaps.approximation),
        "amortisation": mean_and_error(gaps.amortisation),
        "CPU seconds": seconds,
    }


if __name__ == "__main__":
    command(main)
