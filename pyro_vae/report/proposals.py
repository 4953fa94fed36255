"""Draws for -log p(x): what they are from, and adapted ones where they are few enough."""

from typing import Any

from torch import Tensor

from pyro_vae import evaluate
from pyro_vae.program import Posterior

OF_TABLE = 1_000_000  # draws, at most, that a closing table takes of adapted proposals
OF_EVALUATION = 10_000_000  # the same of an evaluation


def origin(whole: Posterior, proposal: evaluate.Proposal) -> str:
    """Say what draws are from, and how many fit an adapted proposal before."""
    least, most = evaluate.fitting_draws(whole) if proposal == "adapted" else (0, 0)
    return f"{evaluate.ORIGINS[proposal]}{f', after {least:,} to {most:,} that fit it' if most else ''}"


def by_adapted(
    program: Any, whole: Posterior, num_particles: int, most: int, progress: bool
) -> tuple[Tensor | None, list[str]]:
    """Return the log-weights ``(K, B)`` of draws from adapted proposals; None where these take more than ``most``.

    None, too, where no proposal can be adapted: then there is a line that says why.
    """
    fitting, _ = evaluate.fitting_draws(whole)
    if not fitting or len(whole) * (fitting + num_particles) > most:
        return None, []
    try:
        return evaluate.log_weights(program, whole, num_particles, progress=progress, proposal="adapted"), []
    except ValueError as error:
        return None, [f"No adapted proposal: {error}"]
