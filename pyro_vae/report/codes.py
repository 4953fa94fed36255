"""Answers of an evaluation for a program with discrete codes and a point mass as guide."""

import torch

from pyro_vae import evaluate
from pyro_vae.evaluate.summaries import mean_and_error
from pyro_vae.program import Posterior
from pyro_vae.report.answers import PARTICLES, Answer, noun_of
from pyro_vae.words import aligned, pair


def bounds(target: Posterior, num: int, progress: bool) -> tuple[torch.Tensor, Answer]:
    """Return -log p(x), summed over ``num`` codes of each x, and the answer with sums over fewer codes."""
    numbers = [k for k in PARTICLES if k < num] + [num]
    sums = [evaluate.nll(target.program, target, k, progress=progress) for k in numbers]
    rows = [["codes summed, at most", *(f"{k:,}" for k in numbers)]]
    rows.append(["-log p(x) ≤", *(pair(mean_and_error(nll)) for nll in sums)])
    return sums[-1], Answer(["\n".join(aligned(rows)), "The guide is a point mass: no k-hat, gaps or calibration."])


def usage(target: Posterior) -> Answer:
    """Count the codes that the data use."""
    uses = target.program.usage(*target.data).double()
    alive, share = int((uses > 0).sum()), uses / uses.sum()
    perplexity = torch.special.entr(share).sum().exp().item()
    line = f"{alive} of {len(uses)} codes are in use by the {noun_of(target)}; perplexity {perplexity:.1f}."
    return Answer([line], {"codes alive": alive, "codes": len(uses), "perplexity": perplexity})
