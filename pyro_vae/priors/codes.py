r"""Priors p(c) over the codes of a grid, for a VQVAE: the event shape is ``(height, width)``."""

from collections.abc import Sequence
from math import prod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints


class Independent(nn.Module):
    r"""Independent codes, with learned probabilities at each place of the grid.

    .. math:: p(c) = \prod_i p_i(c_i)

    The probabilities start at 1 / K. ``shape`` is height, width and the number of codes K.

    Example:
        >>> Independent((7, 7, 512))().event_shape
        torch.Size([7, 7])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(_grid_and_codes(shape, self)))

    def forward(self) -> TorchDistribution:
        """Return the prior, with event shape ``(height, width)``."""
        return dist.Categorical(logits=self.logits).to_event(2)


class Autoregressive(nn.Module):
    r"""An autoregressive prior: a causal transformer over the codes of the grid, row by row.

    .. math:: p(c) = \prod_i p(c_i \mid c_1, \dots, c_{i-1})

    A sample takes one pass of the transformer for each place of the grid. Train this prior in a second stage, by
    :func:`pyro_vae.fit_prior`: the codes of a trained program are its data.

    References:
        Attention Is All You Need (Vaswani et al., 2017).
        Neural Discrete Representation Learning (van den Oord, Vinyals and Kavukcuoglu, 2017), for the second stage.

    Arguments:
        shape: Height, width and the number of codes.
        width: Units of each token; a multiple of ``heads``.
        layers: Layers of the transformer.
        heads: Heads of each attention.
        dropout: Share of units that training drops.

    Raises:
        ValueError: If a number is below 1, or ``width`` is no multiple of ``heads``.

    Example:
        >>> Autoregressive((7, 7, 512))().event_shape
        torch.Size([7, 7])
    """

    def __init__(
        self, shape: Sequence[int], width: int = 128, layers: int = 3, heads: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        *grid, codes = _grid_and_codes(shape, self)
        if min(width, layers, heads) < 1 or width % heads:
            raise ValueError(
                "Expected width, layers and heads of at least 1, and a width that is a multiple of heads; got "
                f"{width}, {layers} and {heads}."
            )
        self.grid, self.codes, self.places = tuple(grid), codes, prod(grid)
        self.embedding = nn.Embedding(codes + 1, width)  # the last one stands before the first code
        self.position = nn.Parameter(0.02 * torch.randn(self.places, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.logits = nn.Linear(width, codes)
        self.mask = nn.Buffer(torch.full((self.places, self.places), -torch.inf).triu(1), persistent=False)
        with torch.no_grad():
            self.logits.weight.mul_(0.1)
            self.logits.bias.zero_()

    def forward(self) -> TorchDistribution:
        """Return the prior, with event shape ``(height, width)``."""
        return CodeSequence(self)

    def next_logits(self, codes: Tensor) -> Tensor:
        """Return the logits ``(N, T + 1, K)`` of each next code, given codes ``(N, T)``, at most ``places - 1``."""
        first = codes.new_full((len(codes), 1), self.codes)
        tokens = torch.cat([first, codes], 1)
        number = tokens.shape[1]
        h = self.layers(self.embedding(tokens) + self.position[:number], self.mask[:number, :number], is_causal=True)
        return self.logits(h)


def _grid_and_codes(shape: Any, prior: nn.Module) -> Sequence[int]:
    """Return the shape; refuse a number of dimensions, as a VAE passes."""
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(
            f"Expected (height, width, codes), as a VQVAE passes, for the prior {type(prior).__name__}; got {shape}. "
            "Use --program VQVAE, or another prior."
        )
    return shape


class CodeSequence(dist.TorchDistribution):
    """The distribution of an :class:`Autoregressive` prior."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, prior: Autoregressive, batch_shape: Any = ()) -> None:
        self.prior = prior
        super().__init__(torch.Size(batch_shape), torch.Size(prior.grid))

    @property
    def support(self) -> constraints.Constraint:
        """Integers from 0 to K - 1."""
        return constraints.independent(constraints.integer_interval(0, self.prior.codes - 1), 2)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "CodeSequence":
        """Return the distribution with another batch shape."""
        return CodeSequence(self.prior, batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw codes of the grid, place by place."""
        shape = self._extended_shape(sample_shape)
        codes = torch.zeros(prod(shape[:-2]), 0, dtype=torch.long, device=self.prior.position.device)
        for _ in range(self.prior.places):
            code = dist.Categorical(logits=self.prior.next_logits(codes)[:, -1]).sample()
            codes = torch.cat([codes, code.unsqueeze(-1)], 1)
        return codes.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of codes, in nats, of the batch shape."""
        batch = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        codes = value.reshape(-1, self.prior.places)
        logits = self.prior.next_logits(codes[:, :-1]).log_softmax(-1)
        log_prob = logits.gather(-1, codes.unsqueeze(-1)).sum((-2, -1))
        return log_prob.reshape(value.shape[:-2]).expand(batch)
