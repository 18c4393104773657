"""A small SVG writer whose pictures are legible wherever a notebook is opened.

JupyterLab shows image/svg+xml, and inline <svg> in text/html, only in *trusted* notebooks: in a fresh clone, before
anything has run, both are stripped. An <img> with a data: URL survives. So that is what an `Svg` displays as, with its
words as alternative text; light or dark is decided inside the picture, which carries its own paper and ink, by the
colour scheme of the page it stands in. The same bytes come out of the same state, so nbval compares the pictures too.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from paged_core.viz.style import CACHED_COLOR, DARK, LIGHT, SequenceStyle, Theme

FONT = "system-ui, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"
MONO = "ui-monospace, Menlo, 'DejaVu Sans Mono', monospace"
SIZE = 16  # px: body text; never smaller than SMALL, for the back row
SMALL = 13
TITLE_HEIGHT = 44  # px: the drawing begins below this
LEAST_WIDTH = 720  # px: a wide picture shrinks no further, so that SMALL stays legible

_PATTERN_STROKES = {  # in a tile of 8 x 8 px; plain has none
    "rising": "M-2 2L2 -2M0 8L8 0M6 10L10 6",
    "falling": "M-2 6L2 10M0 0L8 8M6 -2L10 2",
    "cross": "M0 0L8 8M0 8L8 0",
    "level": "M0 4H8",
    "upright": "M4 0V8",
    "grid": "M0 4H8M4 0V8",
    "stripes": "M-2 2L2 -2M0 8L8 0M6 10L10 6",  # bold, and no sequence's
}


class Svg:
    """A picture `width` x `height` px with a title on top and alternative text; what is drawn later lies above.

    Colours are "#RRGGBB", or "paper", "ink", "muted", "faint", "danger", which follow the theme. Coordinates are px
    from the top left. `title` stands in the picture; `alt` says in words what it shows, for whoever cannot see it.
    """

    def __init__(self, width: float, height: float, *, title: str, alt: str) -> None:
        self.width, self.height, self.title, self.alt = width, height, title, alt
        self._body: list[str] = []
        self._patterns: dict[str, str] = {}
        self.text(12, 28, title, size=19, weight="bold")

    def __repr__(self) -> str:
        return f"{self.title}{self._stop} {self.alt}"

    def __str__(self) -> str:
        """The SVG document."""
        return "".join(self.pieces())

    def pieces(self) -> list[str]:
        """The document in parts: what the frames of a player have in common, down to its words, is kept once."""
        size = f'width="{_n(self.width)}" height="{_n(self.height)}" viewBox="0 0 {_n(self.width)} {_n(self.height)}"'
        title, alt = escape(self.title), escape(self.alt)
        return [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="',
            *(title, f"{self._stop} ", alt),
            f'" font-family="{FONT}"><title>',
            *(title, "</title><desc>", alt),
            f"</desc><style>{_STYLE}</style><defs>",
            *self._patterns.values(),
            '</defs><rect width="100%" height="100%" class="f-paper"/>',
            *self._body,
            "</svg>",
        ]

    @property
    def _stop(self) -> str:
        return "" if self.title[-1:] in ".?!" else "."

    @property
    def html(self) -> str:
        """The picture as an <img>, for text/html outputs and for widgets. Where there is little room it is scrolled."""
        url = "data:image/svg+xml," + quote(str(self), safe=" '=:;/,()!@$*+-.?[]")
        style = f"max-width:100%;min-width:{_n(min(self.width, LEAST_WIDTH))}px;height:auto"
        return f'<div style="overflow-x:auto"><img alt="{escape(repr(self))}" src="{url}" style="{style}"></div>'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": repr(self)}

    def text(
        self, x: float, y: float, words: object, *, size: float = SIZE, color: str = "ink", anchor: str = "start",
        weight: str = "normal", mono: bool = False, halo: str | None = None,
    ) -> None:  # fmt: skip
        """Words with their baseline at `y`. `anchor` start, middle or end; `halo` a colour that keeps a pattern off."""
        if not str(words):
            return
        extra = "" if weight == "normal" else f' font-weight="{weight}"'
        extra += f' font-family="{MONO}"' if mono else ""
        extra += "" if anchor == "start" else f' text-anchor="{anchor}"'
        extra += ' paint-order="stroke" stroke-width="5" stroke-linejoin="round"' if halo else ""
        at = f'x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}"'
        self._body.append(f"<text {at}{_paint(color, halo)}{extra}>{escape(str(words))}</text>")

    def rect(
        self, x: float, y: float, width: float, height: float, *, fill: str = "none", stroke: str = "ink",
        stroke_width: float = 1, dashed: bool = False, pattern: str = "plain", pattern_color: str = "ink",
        radius: float = 3,
    ) -> None:  # fmt: skip
        """A box: filled, then hatched with `pattern`, then outlined."""
        box = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="{_n(radius)}"'
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        outline = f' stroke-width="{_n(stroke_width)}"{dash}' if stroke != "none" else ""
        if pattern == "plain":
            self._body.append(f"<rect {box}{_paint(fill, stroke)}{outline}/>")
            return
        self._body.append(f"<rect {box}{_paint(fill)}/>")
        self._body.append(f"<rect {box}{_paint(self._pattern(pattern, pattern_color), stroke)}{outline}/>")

    def line(
        self, points: Sequence[tuple[float, float]], *, color: str = "ink", width: float = 1.5, dashed: bool = False,
        arrow: bool = False,
    ) -> None:  # fmt: skip
        """A line through `points`, with an arrow head at its end if asked for."""
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._body.append(f'<polyline points="{path}" {_paint("none", color)[1:]} stroke-width="{_n(width)}"{dash}/>')
        if arrow:
            (x1, y1), (x2, y2) = points[-2], points[-1]
            length = max(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 1e-9)
            ux, uy, head = (x2 - x1) / length, (y2 - y1) / length, 5 + 2 * width
            left = (x2 - head * ux - head / 2 * uy, y2 - head * uy + head / 2 * ux)
            right = (x2 - head * ux + head / 2 * uy, y2 - head * uy - head / 2 * ux)
            tip = " ".join(f"{_n(x)},{_n(y)}" for x, y in ((x2, y2), left, right))
            self._body.append(f'<polygon points="{tip}"{_paint(color)}/>')

    def strokes(
        self, segments: Sequence[Sequence[tuple[float, float]]], *, color: str = "ink", width: float = 1.5
    ) -> None:
        """Many lines of one colour, as one element."""
        path = "".join(f"M{'L'.join(f'{_n(x)},{_n(y)}' for x, y in points)}" for points in segments)
        self._body.append(f'<path d="{path}" {_paint("none", color)[1:]} stroke-width="{_n(width)}"/>')

    def boxes(
        self, boxes: Sequence[tuple[float, float, float, float]], *, fill: str, pattern: str = "plain",
        pattern_color: str = "ink",
    ) -> None:  # fmt: skip
        """Many boxes (x, y, width, height) of one look without outlines, as one element or two."""
        path = "".join(f"M{_n(x)},{_n(y)}h{_n(w)}v{_n(h)}h{_n(-w)}z" for x, y, w, h in boxes)
        self._body.append(f'<path d="{path}"{_paint(fill)}/>')
        if pattern != "plain":
            self._body.append(f'<path d="{path}"{_paint(self._pattern(pattern, pattern_color))}/>')

    def cell(
        self, x: float, y: float, width: float, height: float, look: SequenceStyle | str, label: object = "", *,
        chosen: bool = False, size: float = SIZE,
    ) -> None:  # fmt: skip
        """A box in the look of a sequence, or "free", "cached", "nan": the atom of every picture of a pool."""
        thick = 4 if chosen else 1.5
        if isinstance(look, SequenceStyle):
            self.rect(
                x, y, width, height, fill=look.color, pattern=look.pattern, pattern_color=look.on_color,
                stroke_width=thick,
            )  # fmt: skip
            color, halo = look.on_color, look.color if look.pattern != "plain" else None
        else:
            fill, stroke, color, pattern = _LOOKS[look]
            self.rect(
                x, y, width, height, fill=fill, stroke="ink" if chosen else stroke, pattern=pattern, stroke_width=thick,
                pattern_color=stroke, dashed=look == "free" and not chosen,
            )  # fmt: skip
            halo = fill if pattern != "plain" else None
        size = min(size, (width - 4) / (0.7 * len(str(label)))) if str(label) else size  # a long number shrinks
        middle, baseline = x + width / 2, y + height / 2 + size * 0.36
        self.text(middle, baseline, label, size=size, anchor="middle", weight="bold", color=color, halo=halo)

    def legend(self, x: float, y: float, entries: Sequence[tuple[SequenceStyle | str, str]]) -> float:
        """One row of (look, words) beginning at (x, y); returns where it ends, in px."""
        for look, words in entries:
            self.cell(x, y, 22, 18, look, look.letter if isinstance(look, SequenceStyle) else "", size=12)
            self.text(x + 29, y + 14, words, size=SMALL)
            x += 29 + text_width(words, SMALL) + 20
        return x

    def _pattern(self, pattern: str, color: str) -> str:
        name = f"{pattern}-{color.lstrip('#')}"
        if pattern == "dots":
            mark = f'<circle cx="4" cy="4" r="1.4"{_paint(color)}/>'
        else:
            width = 2.6 if pattern == "stripes" else 1.2
            mark = f'<path d="{_PATTERN_STROKES[pattern]}" {_paint("none", color)[1:]} stroke-width="{width}"/>'
        opacity = 0.85 if pattern == "stripes" else 0.45
        self._patterns[name] = (
            f'<pattern id="{name}" width="8" height="8" patternUnits="userSpaceOnUse">'
            f'<g opacity="{opacity}">{mark}</g></pattern>'
        )
        return f"url(#{name})"


def text_width(words: str, size: float = SIZE) -> float:
    """About how wide `words` come out, in px: nobody knows which font the reader has."""
    return 0.58 * size * len(words)


_LOOKS = {  # fill, stroke, text, pattern
    "free": ("none", "muted", "muted", "plain"),
    "cached": (CACHED_COLOR, "ink", "#000000", "upright"),
    "nan": ("paper", "danger", "danger", "cross"),
    "empty": ("faint", "muted", "muted", "plain"),
}


def _rules(theme: Theme) -> str:
    return "".join(f".f-{name}{{fill:{color}}}.s-{name}{{stroke:{color}}}" for name, color in theme._asdict().items())


def _player_rules() -> str:
    """The same for pictures inside a page, which are light or dark as the place is that they stand in."""
    both = zip(Theme._fields, LIGHT, DARK, strict=True)
    return "".join(
        f".pc-player .{what[0]}-{name}{{{what}:{light};{what}:light-dark({light},{dark})}}"  # old browsers: the first
        for name, light, dark in both
        for what in ("fill", "stroke")
    )


PLAYER_STYLE = _player_rules()
_STYLE = f":root{{color-scheme:light dark}}{_rules(LIGHT)}@media(prefers-color-scheme:dark){{{_rules(DARK)}}}"


def _paint(fill: str, stroke: str | None = None) -> str:
    """Fixed colours as attributes; those that follow the theme as classes, because only a style sheet can know it."""
    paints = [("fill", fill)] + ([("stroke", stroke)] if stroke else [])
    classes = " ".join(f"{what[0]}-{color}" for what, color in paints if color in Theme._fields)
    attributes = "".join(f' {what}="{color}"' for what, color in paints if color not in Theme._fields)
    return attributes + (f' class="{classes}"' if classes else "")


def _n(x: float) -> str:
    """A coordinate, as short as it can be, and the same on every machine."""
    return f"{round(float(x), 1):.6g}"
