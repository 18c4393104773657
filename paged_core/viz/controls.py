"""What the explorers have in common: sliders with a name, a picture that is heard when it changes, and what is saved.

An explorer's buttons and lists are those of ipywidgets. Its sliders are not: theirs go without a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

from paged_core.viz.player import script
from paged_core.viz.svg import Svg

_CSS = """
.pc-slider, .pc-slider label { display: flex; align-items: center; gap: 8px; }
.pc-slider label { flex: 1; }
.pc-slider { max-width: 100%; margin: 2px; font: 14px/2 system-ui, sans-serif; color: inherit; }
.pc-slider input { flex: 1; min-width: 60px; accent-color: #2f8fd0; }
.pc-slider > span { min-width: 2em; font-variant-numeric: tabular-nums; }
.pc-controls .widget-html-content { min-width: 0; }
.pc-controls :focus-visible { outline: 3px solid #2f8fd0; outline-offset: -1px; }
"""
_HEARD_ONLY = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"  # for screen readers


def slider(description: str, *, value: int, max: int, min: int = 0, tooltip: str = "", width: str = "300px") -> Any:
    """A widget with the traits `value`, `min`, `max` and `disabled`; a value beyond the limits becomes the limit."""
    from ipywidgets import Layout

    return _slider_class()(
        description=description, value=value, min=min, max=max, tooltip=tooltip, layout=Layout(width=width)
    )


def box(rows: Sequence[Sequence[Any]], picture: Any) -> Any:
    """Rows of controls, which wrap where there is little room, above the picture that they steer."""
    from ipywidgets import HBox, Layout, VBox

    wrapped = (HBox(row, layout=Layout(flex_flow="row wrap")) for row in rows)
    return VBox([*wrapped, picture]).add_class("pc-controls")


def spoken(picture: Svg, words: str) -> str:
    """The picture for a control to put in place of the last one, and `words` on what it shows now for who hears it."""
    return f'<div role="alert" style="{_HEARD_ONLY}">{escape(words)}</div>{picture.html}'


def saved(widget: Any, picture: Svg) -> dict[str, Any]:
    """The live controls; and the picture, for GitHub, for an HTML export and for whoever has not run the cell."""
    still = picture._repr_mimebundle_()
    note = "<p><em>With a running kernel this picture has controls: in JupyterLab, run the cell.</em></p>"
    return {**widget._repr_mimebundle_(), **still, "text/html": still["text/html"] + note}


@cache
def _slider_class() -> type:
    """Made when the first slider is: `import paged_core.viz` draws in no widgets."""
    import traitlets
    from anywidget import AnyWidget

    class Slider(AnyWidget):
        _esm = script("slider.js")
        _css = _CSS
        description = traitlets.Unicode().tag(sync=True)
        value = traitlets.Int().tag(sync=True)
        min = traitlets.Int(0).tag(sync=True)
        max = traitlets.Int(100).tag(sync=True)
        disabled = traitlets.Bool(False).tag(sync=True)

        @traitlets.validate("value")
        def _within(self, proposal):
            return sorted((self.min, proposal.value, self.max))[1]

    return Slider
