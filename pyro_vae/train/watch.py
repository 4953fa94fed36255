"""What goes wrong without a number that is not finite, said once in words."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import pyro
from torch import Tensor, nn

__all__ = ["Watch"]

NOTHING = 0.001  # nats of KL below which codes say nothing
EPOCHS = 5
LEVEL = 1 / 256  # of the range of x: a scale below it is of single grey levels


class Watch:
    """Says once of each, as a warning: nothing is trained, the KL stays at zero, the likelihood's scale runs to zero.

    Arguments:
        program: What is trained.
        spread: The range of x, largest less smallest.
    """

    def __init__(self, program: nn.Module, spread: float) -> None:
        self.program, self.spread = program, spread or 1.0
        self._said: set[str] = set()
        self._looked = False
        self._first_scale = math.nan

    def parameters(self, trained: Sequence[Tensor]) -> None:
        """Look, once, at which parameters a step has met."""
        if self._looked:
            return
        self._looked = True
        known = {id(tensor) for tensor in trained}
        own = dict(self.program.named_parameters())
        left_out = [name for name, value in own.items() if value.requires_grad and id(value) not in known]
        if not known:
            self._say(
                "Expected parameters that Pyro knows of; the model and the guide show none that may be trained, so "
                "nothing is. Call module or pyro.param in them, and leave requires_grad on."
            )
        elif left_out:
            self._say(
                f"Expected a model and a guide that show Pyro all parameters; {len(left_out)} of the program's, as "
                f"{left_out[0]!r}, are in neither, and are not trained. Call module in the program, or freeze them."
            )
        mine = {*map(id, own.values())}
        others = [name for name, value in pyro.get_param_store().named_parameters() if id(value) not in mine]
        if others:
            self._say(
                f"Expected all parameters in the program, whose weights are what is saved; Pyro's store has "
                f"{others[0]!r} too. Make it an nn.Parameter of the program or of a part of it, or keep it yourself."
            )

    def outside(self, times: float, sites: Sequence[str], total: int) -> None:
        """Look at which latents are outside the data's plate, which stands for so many times fewer data than all."""
        if sites and times > 1.001:
            self._say(
                f"The latent site {sites[0]!r} is outside the plate of the data, which is not scaled to them: its "
                f"prior counts in each minibatch, {times:.3g} times too much. Write pyro.plate('data', {total}, "
                "subsample_size=len(x)) in model and guide, or subsample=rows."
            )

    def skipped(self, words: str) -> None:
        """Say that a batch was left out, and why."""
        self._say(f"A batch was left out: {words} How many are, of each epoch, is in metrics.csv.")

    def epoch(self, history: Mapping[str, Sequence[float]], scale: float) -> None:
        """Look at what an epoch came to.

        Arguments:
            history: Numbers of all epochs so far.
            scale: The least scale of p(x | z), a density's; nan if there is none.
        """
        if "valid" not in history:
            return
        last = history["valid_kl"][-EPOCHS:]
        if len(last) == EPOCHS and all(kl < NOTHING for kl in last):
            self._say(
                f"The KL has stayed at zero for {EPOCHS} epochs ({last[-1]:.2g} nats): the codes say nothing of the "
                "images. Try --objective.beta Linear, --objective.free_bits 0.1, a smaller beta or decoder."
            )
        if not math.isfinite(history["valid"][-1]):
            self._say(f"Expected a finite ELBO of the validation images; it is {-history['valid'][-1]}.")
        first, self._first_scale = self._first_scale, scale if math.isnan(self._first_scale) else self._first_scale
        if scale < LEVEL * self.spread and scale < first:
            self._say(
                f"The likelihood's scale runs to zero ({scale:.2g}, where x spans {self.spread:.3g}): its density "
                "grows without bound, and the ELBO with it. Fix it, as --likelihood.scale 0.1, use --dequantize true, "
                "or a mass of grey levels, as DiscretizedLogistic."
            )

    def _say(self, words: str) -> None:
        start = words[:30]
        if start not in self._said:
            self._said.add(start)
            warnings.warn(words, stacklevel=2)
