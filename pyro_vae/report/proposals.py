"""Proposals for -log p(x): descriptions, and log-weights of adapted proposals within a limit of draws."""

from typing import Any

import torch
from torch import Tensor

from pyro_vae import evaluate
from pyro_vae.compiled import product_operations
from pyro_vae.program import Posterior
from pyro_vae.seeds import fork_rng

OF_TABLE = 1_000_000  # limit of draws from adapted proposals for a closing table
OF_EVALUATION = 10_000_000  # the same for an evaluation
OPERATIONS_OF_TABLE = 2e12  # of the matrix products for a closing table: about a minute
LEAST_DRAWS = 50


@torch.no_grad()
def affordable_draws(target: Posterior, images: int, most: int) -> int:
    """Return the number of draws for each image of a closing table, by the operations of a draw; at most ``most``."""
    few = target[:2] if not target.structure.all_rows else target
    with fork_rng(few.data[0].device):
        operations = product_operations(lambda: few.log_weights(1))
    draws = int(OPERATIONS_OF_TABLE * len(few) / max(1, images * operations))
    if draws >= most:
        return most
    rounded = draws - draws % 10 ** (len(str(draws)) - 1)  # one digit, and zeros
    return min(most, max(LEAST_DRAWS, rounded))


def origin(target: Posterior, proposal: evaluate.Proposal) -> str:
    """Describe a proposal in words; for an adapted proposal, add the number of draws that the fit takes."""
    least, most = evaluate.fitting_draws(target) if proposal == "adapted" else (0, 0)
    return f"{evaluate.ORIGINS[proposal]}{f', after {least:,} to {most:,} draws to fit it' if most else ''}"


def adapted_log_weights(
    program: Any, target: Posterior, num_particles: int, most: int, progress: bool
) -> tuple[Tensor | None, list[str]]:
    """Return log-weights ``(K, B)`` of adapted proposals, or None if the proposals need more than ``most`` draws.

    If no proposal can be adapted, return None and a line with the reason.
    """
    fitting, _ = evaluate.fitting_draws(target)
    if not fitting or len(target) * (fitting + num_particles) > most:
        return None, []
    try:
        return evaluate.log_weights(program, target, num_particles, progress=progress, proposal="adapted"), []
    except ValueError as error:
        return None, [f"No adapted proposal: {error}"]
