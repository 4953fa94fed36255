"""Programs that their constructors make of parts, and those of labels."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor

from pyro_vae.conditional import mean
from pyro_vae.programs.hooks import Hooks, quietly


class Built(Hooks):
    """A program whose constructor makes it of parts: its arguments are kept as :attr:`made_with`, for a run."""

    made_with: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments, a subclass's too."""
        program = super().__new__(cls)
        with suppress(TypeError):  # which __init__ raises in its own words
            bound = inspect.signature(cls.__init__).bind(program, *args, **kwargs)
            object.__setattr__(program, "made_with", dict([*bound.arguments.items()][1:]))
        return program

    @classmethod
    def build(cls, *args: Any, **kwargs: Any) -> Self:
        """Make the program, as the constructor does: as :meth:`pyro_vae.VAE.build`, of a class for each part."""
        return cls(*args, **kwargs)


class OfLabels(Built):
    """A program of x and y, which may be a label; to write one, give ``vector(y)``, and ``at_prior(num, y)``."""

    inputs = 2
    number_is: str  # the argument that says how many labels there are
    least = 0  # label
    encoder: Any
    vector: Callable[[Tensor], Tensor]

    @property
    def labels(self) -> range:
        """All labels, from 0 on."""
        return range(getattr(self, self.number_is))

    @quietly
    def generate(self, num: int = 64, given: Tensor | int | None = None) -> Tensor:
        """Return ``num`` mean images E[x | z, y], of shape ``(num, *event)``, z drawn from the prior.

        ``given`` is one label for all, or one y for each image, taken in turn; None: each label in turn.
        """
        y = torch.atleast_1d(torch.arange(len(self.labels)) if given is None else torch.as_tensor(given))
        self.check_given(y)
        at_prior: Any = self.at_prior
        return mean(at_prior(num, y[torch.arange(num) % len(y)].to(self.reference.device)))

    def one_hot(self, y: Tensor) -> Tensor:
        """Return labels ``(*,)`` as vectors of which one element is 1; none, of a label that is no class.

        Nothing here looks at values, so that a step can be a graph.
        """
        return (y.unsqueeze(-1) == torch.arange(len(self.labels), device=y.device)).to(self.reference)

    def pictures_of(self, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, str]]:
        """Return samples of each label, at the same noise, and the z of each image under each label."""
        samples, style, rows = [], mean(self.encoder(x, self.vector(y))), [x]
        for label in self.labels:
            with torch.random.fork_rng():
                samples.append(self.generate(len(x), label))
            rows.append(mean(self.decoder(style, self.vector(torch.full_like(y, label)))))
        return {
            "samples": (torch.stack(samples), "Samples: a row for each label, a column for each style"),
            "styles": (torch.stack(rows), "Images above; below, their style under each label"),
        }

    def check_labels(self, y: Tensor) -> None:
        """Refuse labels that are no classes."""
        low, high, number = int(y.min()), int(y.max()), len(self.labels)
        if not self.least <= low <= high < number:
            unknown = ", or -1 where there is none" if self.least < 0 else ""
            raise ValueError(
                f"Expected labels y from 0 to {number - 1}, {self.number_is} = {number}{unknown}; got {low} to {high}. "
                f"Build the program with more of {self.number_is}, or count the labels from 0."
            )


def are_labels(y: Tensor) -> bool:
    """Return whether y is whole numbers of shape ``(B,)``."""
    return y.dim() == 1 and not y.is_floating_point()
