"""Measured figures: matplotlib, dressed in the visual language, shown as a PNG with alternative text.

Drawn figures are `Svg`; a figure with measured numbers in it is a `Chart`, because nbval compares text but not a PNG.
matplotlib is imported when the first chart is made, and pyplot never: nothing is shown twice, no state is left over.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

from paged_core.viz.style import LIGHT, LINE_COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110  # a figure 10 in wide is 1,100 px: sharp on a projector, and about 40 KB

RC = {  # paper and ink are the light theme's in both themes: a PNG cannot know which page it will stand in
    "figure.facecolor": LIGHT.paper, "axes.facecolor": LIGHT.paper, "savefig.facecolor": LIGHT.paper,
    "text.color": LIGHT.ink, "axes.labelcolor": LIGHT.ink, "axes.edgecolor": LIGHT.muted,
    "xtick.color": LIGHT.ink, "ytick.color": LIGHT.ink,
    "font.size": 13, "axes.labelsize": 14, "axes.titlesize": 14, "legend.fontsize": 12, "figure.titlesize": 17,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#D9D9D9", "grid.linewidth": 0.8,
    "lines.linewidth": 2.5, "lines.markersize": 8, "hatch.linewidth": 0.8,
    "legend.edgecolor": "none", "legend.framealpha": 0.9,  # else the grid strikes its words out
}  # fmt: skip


class Chart:
    """A matplotlib figure with its title and alternative text; a notebook shows it as image/png and text/plain."""

    def __init__(self, figure: Figure, title: str, alt: str) -> None:
        self.figure, self.title, self.alt = figure, title, alt

    def __repr__(self) -> str:
        return f"{self.title}. {self.alt}"

    def png(self) -> bytes:
        """The picture in 256 colours, which is plenty for a chart and a third of the bytes."""
        from PIL import Image

        drawn, packed = BytesIO(), BytesIO()
        self.figure.savefig(drawn, format="png", dpi=DPI)
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
        return packed.getvalue()

    def _ipython_display_(self) -> None:
        """The picture, and under it its words to unfold: JupyterLab gives a PNG no alternative text of its own."""
        from IPython.display import display

        data, metadata = self._repr_mimebundle_()
        display(data, metadata=metadata, raw=True)
        words = f"<details><summary>In words</summary>{escape(repr(self))}</details>"
        display({"text/html": words, "text/plain": ""}, raw=True)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict[str, str], dict[str, Any]]:
        data = {"image/png": b64encode(self.png()).decode("ascii"), "text/plain": repr(self)}
        return data, {"image/png": {"alt": repr(self)}}


@contextmanager
def chart(
    rows: int = 1, cols: int = 1, *, title: str, alt: str, size: tuple[float, float] = (10, 4.5), **subplots: Any
) -> Iterator[tuple[Chart, Any]]:
    """A `Chart` of `size` inches and its axes (one, or an array), to be drawn on inside the `with`:

        with chart(title="...", alt="...") as (picture, ax):
            ax.plot(...)
        picture

    `subplots` goes to matplotlib's Figure.subplots. Axis labels carry their units; `alt` must not hold measured numbers
    unless the notebook's cell is one that nbval does not compare.
    """
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**RC, "axes.prop_cycle": cycler(color=LINE_COLORS)}):
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        yield Chart(figure, title, alt), figure.subplots(rows, cols, **subplots)
