"""A panel of ipywidgets: sliders move a code, and a picture shows the decoded code. The module needs ipywidgets."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ipywidgets import HTML, Button, Dropdown, FloatSlider, HBox, Image, IntSlider, Label, ToggleButtons, VBox
from torch import Tensor

from pyro_vae.plots.axes import Axes

SIZES = {"style": {"description_width": "15em"}, "layout": {"width": "30em", "flex": "none"}}  # with long names


class Panel(VBox):
    """Sliders, dropdowns and the picture of one code.

    Arguments:
        codes: The code of each row, of shape ``(N, D)``.
        decode: A function of the code, the rows at the start and the end, the share of the end, and labels by name.
        paint: A function from the decoding, and the rows at the start and the end, to a picture: PNG or HTML.
        axes: Sets of sliders by name.
        labels: Labels by name: the options of a dropdown, and the label of each row.

    Attributes:
        code: The code, of shape ``(D,)``.
        decoded: The decoding of the code.
        start, end, mix, kind, sliders, labels, reset, picture: The widgets; ``sliders`` by name of the set.
    """

    def __init__(
        self,
        codes: Tensor,
        decode: Callable[[Tensor, int, int, float, dict[str, int]], Tensor],
        paint: Callable[[Tensor, int, int], bytes | str],
        axes: Mapping[str, Axes],
        labels: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    ) -> None:
        self._codes, self._decode, self._paint, self._axes, self._labels = codes, decode, paint, axes, labels
        self._silent = False  # while the panel sets its own widgets
        last = len(codes) - 1
        self.start = IntSlider(0, 0, last, description="start, row")
        self.end = IntSlider(min(1, last), 0, last, description="end, row")
        self.mix = FloatSlider(0.0, min=0.0, max=1.0, step=0.01, description="start to end")
        self.labels = {name: Dropdown(options=options, description=name) for name, (options, _) in labels.items()}
        self.kind = ToggleButtons(options=[*axes])
        self.reset = Button(description="Reset")
        self.sliders = {kind: _sliders(of) for kind, of in axes.items()}
        self.picture: Any = None
        self._box = VBox()
        self._begin(0.0)
        controls = HBox([self.start, self.end, self.mix]), HBox([self.kind, *self.labels.values(), self.reset])
        super().__init__([*controls, HBox([self._box, VBox([Label("start, decoded, end"), self.picture])])])
        for widget in (self.start, self.end, self.mix, self.kind, *self.labels.values()):
            widget.observe(self._change, "value")
        for kind, sliders in self.sliders.items():
            for i, slider in enumerate(sliders):
                slider.observe(lambda change, kind=kind, i=i: self._move(kind, i, change["new"]), "value")
        self.reset.on_click(lambda _: self._begin(0.0))

    def _begin(self, mix: float) -> None:
        """Go to the labels of the row at the start, and to the code at a share of the way to the end."""
        self._silent = True
        self.mix.value = mix
        for name, widget in self.labels.items():
            widget.value = self._labels[name][1][self.start.value]
        self._silent = False
        self._interpolate()

    def _interpolate(self) -> None:
        """Go to the code between the rows at the start and the end."""
        self.code = self._codes[self.start.value].lerp(self._codes[self.end.value], self.mix.value)
        self._set_sliders()
        self._draw()

    def _change(self, change: Any) -> None:
        widget = change["owner"]
        if self._silent:
            return
        if widget is self.kind:
            self._set_sliders()
        elif widget in self.labels.values():
            self._draw()
        elif widget is self.start:
            self._begin(self.mix.value)
        else:
            self._interpolate()

    def _move(self, kind: str, i: int, value: float) -> None:
        """Move the code along the direction of a slider; the values of the other sliders do not change."""
        if not self._silent:
            axes = self._axes[kind]
            self.code = self.code + (value - axes.coordinates(self.code)[i]) * axes.vectors[i]
            self._draw()

    def _set_sliders(self) -> None:
        """Show the sliders of the chosen kind at the code's coordinates, or at the end of their range."""
        sliders, values = self.sliders[self.kind.value], self._axes[self.kind.value].coordinates(self.code)
        self._silent = True
        for slider, value in zip(sliders, values.tolist(), strict=True):
            slider.value = min(max(value, slider.min), slider.max)
        self._silent = False
        self._box.children = sliders

    def _draw(self) -> None:
        rows, labels = (self.start.value, self.end.value), {name: widget.value for name, widget in self.labels.items()}
        self.decoded = self._decode(self.code, *rows, self.mix.value, labels)
        content = self._paint(self.decoded, *rows)
        self.picture = self.picture or (Image() if isinstance(content, bytes) else HTML())
        self.picture.value = content

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Add the picture, which a notebook shows without a kernel."""
        content = self.picture.value
        is_html = isinstance(content, str)
        bundle = {"text/html": content} if is_html else {"image/png": base64.b64encode(content).decode()}
        return super()._repr_mimebundle_(**options) | bundle


def _sliders(axes: Axes) -> list[FloatSlider]:
    bounds = zip(axes.names, axes.low.tolist(), axes.high.tolist(), strict=True)
    return [
        FloatSlider(low, min=low, max=high, step=(high - low) / 200, description=name, **SIZES)
        for name, low, high in bounds
    ]
