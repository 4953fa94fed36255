r"""Encoding of a data set: draws of a latent site replace x, as data for a second program."""

from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data import Dataset, Split
from pyro_vae.evaluate.summaries import rows_of
from pyro_vae.evaluate.weighing import at_data, batches_that_fit
from pyro_vae.program import Posterior, reference_tensor
from pyro_vae.seeds import eval_mode


def encode(program: Any, dataset: Dataset, site: str = "z", seed: int = 0) -> Dataset:
    r"""Replace x in a data set by draws of a latent site from a Gaussian guide, as data for a second program.

    .. math:: x'_n = \mu(x_n) + \sigma(x_n) \, \epsilon

    The guide sees one draw of each x. Each read of the training data draws new codes; codes of validation and test data
    are drawn once. Labels and other columns do not change.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014), M1+M2,
        https://arxiv.org/abs/1406.5298.

    Raises:
        ValueError: If the site does not exist, or the guide's distribution is not an independent Normal given x alone.

    Example:
        >>> from pyro_vae import VAE, data
        >>> digits = data.load("digits")
        >>> encode(VAE.build(digits.event_shape, latent=5), digits).event_shape
        (5,)
    """

    def moments(rows: Posterior) -> Tensor:
        """Return loc and scale of the site's Normal, of shape ``(2, B, *event)``."""
        node: Any = rows.runner.run(rows.program.guide, 2).nodes.get(site)
        normal = node and node["fn"]
        while isinstance(normal, Independent):
            normal = normal.base_dist
        if isinstance(normal, Normal):
            parts = torch.stack([rows.runner.to_rows(part) for part in (normal.loc, normal.scale)])
            if torch.equal(parts[:, 0], parts[:, -1]):
                return parts[:, 0].cpu()
            got = "one that changes with another site's draw"
        else:
            got = "no such site" if normal is None else type(normal).__name__
        raise ValueError(
            f"Expected the guide to draw {site!r} from a Normal of x alone with independent elements; got {got}."
        )

    def codes(split: Split) -> Split:
        with eval_mode(program, reference_tensor(program).device, seed):  # since reading rows draws their noise
            data = rows_of(program, split, slice(None))
        with at_data(program, data, seed) as posterior:
            loc, scale = torch.cat([moments(rows) for rows in batches_that_fit(posterior, moments)], dim=1)
        return replace(split, pixels=loc, levels=0, noise=None, counts=False, mask=None, scale=scale)

    generator = torch.Generator().manual_seed(seed)
    train = codes(dataset.train)
    valid, test = (
        codes(split).with_fixed_noise(generator) if len(split) else train.part(torch.arange(0))
        for split in (dataset.valid, dataset.test)
    )
    config = {"data": "tensor", "binarize": "none", "dequantize": False, "counts": False}
    config, notes = dataset.config | config, (*dataset.notes, f"encoded as {site}")
    return Dataset(train, valid, test, constraints.real, config, notes=notes)
