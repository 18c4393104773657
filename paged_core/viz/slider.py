"""A slider that steers a picture: what is drawn stays a pure function, the slider only chooses its argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from paged_core.viz.svg import Svg


class Slider:
    """One of `options` on a slider, and `draw(option)` below it. Displayed where no kernel runs, it is the picture."""

    def __init__(self, draw: Callable[[Any], Svg], options: Sequence[Any], value: Any, *, description: str) -> None:
        from ipywidgets import HTML, Layout, SelectionSlider, VBox

        self.draw = draw
        self.choice = SelectionSlider(
            options=options, value=value, description=description,
            style={"description_width": "initial"}, layout=Layout(width="440px"),
        )  # fmt: skip
        self.picture = HTML()
        self.choice.observe(lambda change: self._show(), "value")
        self.widget = VBox([self.choice, self.picture])
        self._show()

    def __repr__(self) -> str:
        return repr(self.draw(self.choice.value))

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        return {**self.widget._repr_mimebundle_(), **self.draw(self.choice.value)._repr_mimebundle_()}

    def _show(self) -> None:
        self.picture.value = self.draw(self.choice.value).html
