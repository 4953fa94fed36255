"""Base classes: programs whose constructor builds the parts, and programs of x and a label."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor

from pyro_vae.conditional import mean
from pyro_vae.programs.hooks import Hooks, quietly


class Built(Hooks):
    """A base class: the constructor builds the parts; :attr:`made_with` keeps the arguments, for ``config.yaml``."""

    made_with: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the constructor's arguments, for a subclass too."""
        program = super().__new__(cls)
        with suppress(TypeError):  # __init__ raises it again
            bound = inspect.signature(cls.__init__).bind(program, *args, **kwargs)
            object.__setattr__(program, "made_with", dict([*bound.arguments.items()][1:]))
        return program

    @classmethod
    def build(cls, *args: Any, **kwargs: Any) -> Self:
        """Build the program from a class for each part, as :meth:`pyro_vae.VAE.build` does."""
        return cls(*args, **kwargs)


class OfLabels(Built):
    """A base class for x and a label or covariates y; a subclass defines ``vector(y)`` and ``at_prior(num, y)``."""

    inputs = 2
    number_is: str  # the name of the argument that is the number of labels
    least = 0  # the smallest label
    encoder: Any
    vector: Callable[[Tensor], Tensor]

    @property
    def labels(self) -> range:
        """All labels, counted from 0."""
        return range(getattr(self, self.number_is))

    @quietly
    def generate(self, num: int = 64, given: Tensor | int | None = None) -> Tensor:
        """Return ``num`` mean images E[x | z, y], of shape ``(num, *event)``, for draws of z from the prior.

        ``given`` is one label for all images, or y for each image in turn. With None, images take all labels in turn.
        """
        y = torch.atleast_1d(torch.arange(len(self.labels)) if given is None else torch.as_tensor(given))
        self.check_given(y)
        at_prior: Any = self.at_prior
        return mean(at_prior(num, y[torch.arange(num) % len(y)].to(self.reference.device)))

    def one_hot(self, y: Tensor) -> Tensor:
        """Return one-hot vectors of labels ``(*,)``, all zeros for a label that is not a class.

        The method reads no value, so that training can record a step as a graph.
        """
        return (y.unsqueeze(-1) == torch.arange(len(self.labels), device=y.device)).to(self.reference)

    def pictures_of(self, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, str]]:
        """Return samples of each label at the same draws of z, and decode each image's z under each label."""
        samples, z, rows = [], mean(self.encoder(x, self.vector(y))), [x]
        for label in self.labels:
            with torch.random.fork_rng():
                samples.append(self.generate(len(x), label))
            rows.append(mean(self.decoder(z, self.vector(torch.full_like(y, label)))))
        return {
            "samples": (torch.stack(samples), "Samples: a row for each label, a column for each style"),
            "styles": (torch.stack(rows), "Images above; below, their style under each label"),
        }

    def check_labels(self, y: Tensor) -> None:
        """Refuse labels that are not classes."""
        low, high, number = int(y.min()), int(y.max()), len(self.labels)
        if not self.least <= low <= high < number:
            unknown = ", or -1 where unknown" if self.least < 0 else ""
            raise ValueError(
                f"Expected labels y from 0 to {number - 1}{unknown}, for {self.number_is} = {number}; "
                f"got {low} to {high}. "
                f"Build the program with a larger {self.number_is}, or count the labels from 0."
            )


def are_labels(y: Tensor) -> bool:
    """Return whether y is a tensor of integers, of shape ``(B,)``."""
    return y.dim() == 1 and not y.is_floating_point()
