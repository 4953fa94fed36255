"""Pictures that change with every move of a slider: images as a PNG file, numbers as an HTML table."""

import html
import io
import math
from collections.abc import Sequence

import PIL.Image
from torch import Tensor

from pyro_vae.plots.images import grid

SIDE = 140  # pixels, about, of an image of x


def png(x: Tensor) -> bytes:
    """Return a row of images, for x of shape ``(number, *event)``, as a PNG file; small images are enlarged."""
    factor = max(1, SIDE // max(x.shape[-2:]))
    pixels = (grid(x[None], gap=1) * 255).round().byte().numpy()
    content = io.BytesIO()
    PIL.Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1)).save(content, "png", compress_level=1)
    return content.getvalue()


def table(x: Tensor, names: Sequence[str]) -> str:
    """Return columns of numbers, for x of shape ``(number, names)``, as an HTML table with a line for each name."""
    lines = []
    for name, values in zip(names, x.T.tolist(), strict=True):
        cells = (f"<td>{'missing' if math.isnan(value) else f'{value:.4g}'}</td>" for value in values)
        lines.append(f"<tr><td>{html.escape(name)}</td>{''.join(cells)}</tr>")
    return f'<div style="max-height: 24em; overflow: auto"><table>{"".join(lines)}</table></div>'
