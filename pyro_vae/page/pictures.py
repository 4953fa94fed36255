"""Images as sprites: one PNG for a grid of images, inside the page."""

import base64
import hashlib
import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pyro_vae.plots.images import colours

GREY = 0.5  # of the lines between the tiles


@dataclass(frozen=True)
class Sprite:
    """A grid of images as one PNG.

    Attributes:
        source: The PNG as a ``data:`` address.
        rows: Number of rows of tiles.
        columns: Number of columns of tiles.
        width: Pixels of a tile and of the gap after it, from left to right.
        height: Pixels of a tile and of the gap after it, from top to bottom.
        gap: Pixels between the tiles.
        reduction: One pixel of a tile is the mean of ``reduction`` by ``reduction`` pixels.
    """

    source: str
    rows: int
    columns: int
    width: int
    height: int
    gap: int
    reduction: int

    @property
    def name(self) -> str:
        """A name that two equal sprites share."""
        return f"i{hashlib.blake2b(self.source.encode(), digest_size=6).hexdigest()}"

    @property
    def size(self) -> tuple[int, int]:
        """The width and the height of the PNG in pixels."""
        return self.columns * self.width - self.gap, self.rows * self.height - self.gap


def sprite(x: Tensor, most: float, gap: int = 0, longest: int = 64) -> Sprite:
    """Return images ``(rows, columns, *event)`` as a sprite of at most ``most`` bytes, without the tiles beyond.

    Tiles are reduced to at most ``longest`` pixels in height and width.
    """
    tiles, reduction = _tiles(x, longest)
    rows, columns, height, width, channels = tiles.shape
    number = max(1, int(most // (height * (width * channels + 1))))
    columns = min(columns, max(1, number // rows))
    rows = min(rows, max(1, number // columns))
    page = torch.full((rows, columns, height + gap, width + gap, channels), GREY)
    page[:, :, :height, :width] = tiles[:rows, :columns]
    page = page.transpose(1, 2).reshape(rows * (height + gap), columns * (width + gap), channels)
    page = (page[: len(page) - gap, : page.shape[1] - gap] * 255).round().byte()
    content = io.BytesIO()
    Image.fromarray(page.squeeze(-1).numpy()).save(content, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return Sprite(source, rows, columns, width + gap, height + gap, gap, reduction)


def tile_bytes(x: Tensor, longest: int) -> int:
    """Return the bytes of one of the images ``(N, *event)`` as a tile; a PNG of tiles is not larger."""
    height, width = (-(-side // (-(-max(x.shape[-2:]) // longest))) for side in x.shape[-2:])
    colour = x.dim() == 4 and x.shape[1] >= 3 or bool(x.isnan().any())
    return height * (width * (3 if colour else 1) + 1)


def _tiles(x: Tensor, longest: int) -> tuple[Tensor, int]:
    """Return images as colours ``(rows, columns, height, width, 1 or 3)`` in [0, 1], reduced to ``longest`` pixels."""
    reduction = -(-max(x.shape[-2:]) // longest)
    if reduction > 1:
        x = avg_pool2d(x.float().flatten(0, -3).unsqueeze(1), reduction, ceil_mode=True).reshape(
            *x.shape[:-2], *(-(-side // reduction) for side in x.shape[-2:])
        )
    tiles = colours(x, x.dim() == 5)
    grey = bool((tiles == tiles[..., :1]).all())
    return tiles[..., :1] if grey else tiles, reduction
