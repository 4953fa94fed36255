"""Warnings of training problems with finite numbers: untrained parameters, a KL of zero, a collapsing scale."""

import math
import warnings
from collections.abc import Mapping, Sequence

import pyro
from torch import Tensor, nn

KL_ZERO = 0.001  # nats
EPOCHS = 5  # with a KL below that before a warning
MIN_SCALE = 1 / 256  # of the range of x; a smaller scale resolves single grey levels


class Monitor:
    """Watches a run, and warns of each problem once."""

    def __init__(self, program: nn.Module, value_range: float) -> None:
        self.program, self.value_range = program, value_range or 1.0  # the range of x
        self._warned: set[str] = set()
        self._checked_parameters = False
        self._first_scale = math.nan

    def check_parameters(self, trained: Sequence[Tensor]) -> None:
        """Warn, after the first step, of parameters that the step did not train or that no file will hold."""
        if self._checked_parameters:
            return
        self._checked_parameters = True
        ids, own = {*map(id, trained)}, dict(self.program.named_parameters())
        untrained = [name for name, value in own.items() if value.requires_grad and id(value) not in ids]
        if not ids:
            self.warn(
                "Expected parameters that are registered with Pyro and require a gradient; model and guide have none, "
                "so nothing is trained. Call module or pyro.param in them, and set requires_grad."
            )
        elif untrained:
            self.warn(
                f"Expected all parameters to be registered with Pyro; {len(untrained)} of the program's, as "
                f"{untrained[0]!r}, are not, and are not trained. Call module in the program, or freeze them."
            )
        own_ids = {*map(id, own.values())}
        foreign = [name for name, value in pyro.get_param_store().named_parameters() if id(value) not in own_ids]
        if foreign:
            self.warn(
                f"Expected all parameters in the program, whose weights are saved; Pyro's store has {foreign[0]!r} "
                "too. Make it an nn.Parameter of the program or of one of its modules, or save it yourself."
            )

    def check_plate(self, factor: float, sites: Sequence[str], total: int) -> None:
        """Warn of latent sites outside the data's plate; an epoch counts the sites' prior ``factor`` times."""
        if sites and factor > 1.001:
            self.warn(
                f"Expected every latent site in the data's plate, or a plate that is scaled to all data; {sites[0]!r} "
                f"is outside it, so its prior counts {factor:.3g} times too much. Write pyro.plate('data', {total}, "
                "subsample_size=len(x)) in model and guide, or subsample=rows."
            )

    def check_epoch(self, history: Mapping[str, Sequence[float]], scale: float) -> None:
        """Warn after an epoch of a KL of zero, an infinite ELBO, or a small ``scale`` of p(x | z) (nan: no scale)."""
        if "valid" not in history:
            return
        last = history["valid_kl"][-EPOCHS:]
        if len(last) == EPOCHS and all(kl < KL_ZERO for kl in last):
            self.warn(
                f"The KL has been zero for {EPOCHS} epochs ({last[-1]:.2g} nats): the latent variables carry no "
                "information about x (posterior collapse). Try --objective.beta Linear, --objective.free_bits 0.1, a "
                "smaller beta or a smaller decoder."
            )
        if not math.isfinite(history["valid"][-1]):
            self.warn(f"Expected a finite ELBO of the validation images; got {-history['valid'][-1]}.")
        if math.isnan(self._first_scale):
            self._first_scale = scale
        elif scale < min(MIN_SCALE * self.value_range, self._first_scale):
            self.warn(
                f"The likelihood's scale tends to zero ({scale:.2g}, where x spans {self.value_range:.3g}): its "
                "density is unbounded, and so is the ELBO. Fix the scale, as --likelihood.scale 0.1, use --dequantize "
                "true, or a mass of grey levels, as DiscretizedLogistic."
            )

    def warn(self, message: str) -> None:
        """Warn, unless a message with the same start was shown before."""
        if message[:30] not in self._warned:
            self._warned.add(message[:30])
            warnings.warn(message, stacklevel=2)
