r"""A data set of codes, for a second program."""

from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data import Dataset, Split
from pyro_vae.evaluate.summaries import rows_of
from pyro_vae.evaluate.weighing import at_data, batches_that_fit
from pyro_vae.program import Posterior, point_of
from pyro_vae.seeds import at_test


def encode(program: Any, dataset: Dataset, site: str = "z", seed: int = 0) -> Dataset:
    r"""Return the data set of codes: its x are draws of a site from a Gaussian guide, for a second program.

    .. math:: x'_n = \mu(x_n) + \sigma(x_n) \, \epsilon

    The guide sees one draw of each x; of training data the codes are drawn anew at every reading, of the others once.
    Labels and further columns stay.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014), M1+M2.

    Raises:
        ValueError: If there is no such site, or its law is not a normal of x alone, independent by element.

    Example:
        >>> from pyro_vae import VAE, data
        >>> digits = data.load("digits")
        >>> encode(VAE.build(digits.event_shape, latent=5), digits).event_shape
        (5,)
    """

    def law_of(rows: Posterior) -> Tensor:
        node: Any = rows.runner.run(rows.program.guide, 2).nodes.get(site)
        law = node and node["fn"]
        while isinstance(law, Independent):
            law = law.base_dist
        got = "no such site" if law is None else "" if isinstance(law, Normal) else type(law).__name__
        if not got:
            parts = torch.stack([rows.runner.to_rows(part) for part in (law.loc, law.scale)])
            if torch.equal(parts[:, 0], parts[:, -1]):
                return parts[:, 0].cpu()
            got = "one that changes with another site's draw"
        raise ValueError(
            f"Expected the guide to draw {site!r} from a Normal of x alone, independent by element; got {got}."
        )

    def code(split: Split) -> Split:
        with at_test(program, point_of(program).device, seed):  # which draws the noise of the rows
            data = rows_of(program, split, slice(None))
        with at_data(program, data, seed) as whole:
            loc, scale = torch.cat([law_of(rows) for rows in batches_that_fit(whole, law_of)], dim=1)
        return replace(split, pixels=loc, levels=0, noise=None, counts=False, mask=None, scale=scale)

    generator = torch.Generator().manual_seed(seed)
    train = code(dataset.train)
    valid, test = (
        code(split).frozen(generator) if len(split) else train.part(torch.arange(0))
        for split in (dataset.valid, dataset.test)
    )
    config = {"data": "tensor", "binarize": "none", "dequantize": False, "counts": False}
    config, notes = dataset.config | config, (*dataset.notes, f"encoded as {site}")
    return Dataset(train, valid, test, constraints.real, config, notes=notes)
