"""A film of drawn frames that steps with a kernel and without one: live as a widget, in exported HTML by itself.

Where scripts may not run (GitHub, a fresh clone in JupyterLab), the first frame stands there as the picture it is. The
frames of a film have nearly everything in common, so they travel as a table of unique pieces and a few numbers each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, cached_property
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from paged_core.viz.svg import LEAST_WIDTH, PLAYER_STYLE, Svg


def script(name: str) -> str:
    """A script of this folder as a module by itself: after what they all use."""
    return "".join(Path(__file__).with_name(file).read_text(encoding="utf-8") for file in ("keys.js", name))


class Player:
    """`frames`, each a (caption, picture), to be stepped, scrubbed and played; `start` is the frame to begin with.

    The pictures are drawn before: what a step costs is the browser's affair. Displayed in a running notebook this is a
    widget, and `player.widget.frame` follows it both ways. Saved, it is text/html: a picture, and a script that turns
    it into the same player wherever scripts run. ValueError when there are no frames, or none with the number `start`.
    """

    def __init__(self, frames: Sequence[tuple[str, Svg]], *, title: str, start: int = 0) -> None:
        self.frames, self.title, self.start = list(frames), title, start
        if not self.frames:
            raise ValueError("frames: expected at least one (caption, picture), got none")
        if not 0 <= start < len(self.frames):
            raise ValueError(f"start: expected a frame from 0 to {len(self.frames) - 1}, got {start}")

    def __repr__(self) -> str:
        caption, picture = self.frames[self.start]
        return f"{self.title}: step {self.start + 1} of {len(self.frames)}. {caption} {picture!r}"

    @cached_property
    def film(self) -> dict[str, Any]:
        """All that the browser needs, as JSON can say it."""
        pictures = [picture for _, picture in self.frames]
        width = max(picture.width for picture in pictures)
        pieces, runs = encode([picture.pieces() for picture in pictures])
        return {
            "title": self.title,
            "css": PLAYER_STYLE,
            "width": width,
            "least_width": min(width, LEAST_WIDTH),
            "height": max(picture.height for picture in pictures),
            "captions": [caption for caption, _ in self.frames],
            "pieces": pieces,
            "frames": runs,
        }

    @property
    def html(self) -> str:
        """The still picture with its caption, and the script that brings it to life. The same film, the same bytes."""
        caption, picture = self.frames[self.start]
        film = _in_script(json.dumps(self.film, ensure_ascii=False, separators=(",", ":")))
        name = f"pc-{sha256(film.encode()).hexdigest()[:12]}"  # how the script finds its picture
        return (
            f'<div class="{name}">{picture.html}<p>{escape(caption)}</p>'
            "<p><em>In JupyterLab, run this cell: then the picture steps.</em></p></div>"  # gone once it is alive
            f'<script type="module">\n{script("player.js")}\n'
            f'comeAlive("{name}", {film}, {self.start});\n</script>'
        )

    @cached_property
    def widget(self) -> Any:
        """The live player: an anywidget with the traits `film` and `frame`."""
        return _widget_class()(film=self.film, frame=self.start)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        view, _ = self.widget._repr_mimebundle_()
        return {**view, "text/html": self.html, "text/plain": repr(self)}


def encode(documents: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """Documents in pieces -> (the table of unique pieces, a document each as runs of it: first, how many, first, ...).

    A piece is written with its two kinds of quotation marks exchanged: XML takes either, and inside a script inside
    HTML inside a notebook each double one would cost four characters.
    """
    numbers: dict[str, int] = {}
    films = []
    for pieces in documents:
        runs: list[int] = []
        for piece in pieces:
            number = numbers.setdefault(piece, len(numbers))
            if runs and number == runs[-2] + runs[-1]:
                runs[-1] += 1
            else:
                runs += [number, 1]
        films.append(runs)
    return [piece.translate(_QUOTES) for piece in numbers], films


def decode(table: Sequence[str], runs: Sequence[int]) -> str:
    """One document, exactly as it was before `encode`. (The browser needs no exchange of quotation marks.)"""
    pieces = (table[first : first + count] for first, count in zip(runs[::2], runs[1::2], strict=True))
    return "".join(piece for run in pieces for piece in run).translate(_QUOTES)


_QUOTES = str.maketrans("\"'", "'\"")


def _in_script(json_text: str) -> str:
    """JSON that nothing inside can end the <script> it stands in, or hide its end."""
    return json_text.replace("</", "<\\/").replace("<!--", "<\\u0021--")


@cache
def _widget_class() -> type:
    """Made when the first player is shown: `import paged_core.viz` draws in no widgets."""
    import traitlets
    from anywidget import AnyWidget

    class LivePlayer(AnyWidget):
        _esm = script("player.js")
        film = traitlets.Dict().tag(sync=True)
        frame = traitlets.Int(0).tag(sync=True)

    return LivePlayer
