"""The visual language: one colour and one pattern for each sequence, the same in every figure.

Colour alone is not enough: one reader in twelve confuses some hues, a printer knows grey only, and a projector washes
out. So sequence A is orange *and* plain *and* lettered "A"; B is sky blue *and* hatched *and* lettered "B"; and so on.
The colours are Okabe and Ito's (2008), chosen to be told apart by colour-blind eyes; matplotlib calls them okabe_ito.

A sequence's colour says nothing else anywhere. What is no sequence, a dtype, a layout, a policy, a load, is drawn in
`LINE_COLORS`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
PATTERNS = (
    "plain",
    "rising",
    "dots",
    "level",
    "falling",
    "cross",
    "upright",
    "grid",
)  # eight: coprime with the colours

# Of what is no sequence: petrol, brown, purple, violet, grey. Neighbours differ in lightness too. Each has a contrast
# of 3 on white; the first two have it on the dark paper as well, and serve in drawings.
LINE_COLORS = ("#00808A", "#B8834A", "#4B2672", "#A67BC9", "#4D4D4D")
LINESTYLES = ("-", "--", ":", "-.", (0, (6, 2)))
MARKERS = ("o", "s", "^", "D", "v")
HATCHES = ("", "xx", "//", "..", "--")  # for bars
PALE = "#A3CDD0"  # beside the first of them: what comes along with it, what alternates with it


class Theme(NamedTuple):
    """The colours of everything that is not a sequence."""

    paper: str  # what the figure is drawn on
    ink: str  # text and outlines
    muted: str  # secondary text, rulers, free blocks
    faint: str  # fills that must not attract the eye
    danger: str  # NaN, refusals, stale entries


LIGHT = Theme(paper="#FFFFFF", ink="#1A1A1A", muted="#5C5C5C", faint="#EEEEEE", danger="#B3002D")
DARK = Theme(paper="#111111", ink="#F2F2F2", muted="#ABABAB", faint="#2B2B2B", danger="#FF7A90")

CACHED_COLOR = "#B8B8B8"  # a block that only the prefix cache keeps
WASTED_COLOR = "#8A8A8A"  # memory that is reserved and holds nothing
ANYONE_COLOR = "#A0A0A0"  # in a legend, where any sequence's colour may stand
ALLOWED_COLOR = "#C9D6DE"  # of errors: up to the bound


class SequenceStyle(NamedTuple):
    """How a sequence looks, wherever it is drawn."""

    number: int
    letter: str  # A, B, ... Z, AA, ...
    color: str  # fill
    on_color: str  # text on that fill, contrast 4.5 or better
    pattern: str  # one of PATTERNS


def sequence_style(index: int) -> SequenceStyle:
    """The look of the sequence with this number (0, 1, ...). Colour and pattern together repeat after 56 sequences."""
    if index < 0:
        raise ValueError(f"index: expected the number of a sequence, 0 or more, got {index}")
    color = COLORS[index % len(COLORS)]
    return SequenceStyle(index, letter(index), color, text_on(color), PATTERNS[index % len(PATTERNS)])


def line_look(index: int) -> dict[str, Any]:
    """What matplotlib's `plot` takes for line number `index` of a chart, 0 to 4: a line that is no sequence's."""
    return {"color": LINE_COLORS[index], "linestyle": LINESTYLES[index], "marker": MARKERS[index]}


def letter(index: int) -> str:
    """A, B, ..., Z, AA, AB, ...: the name of sequence number `index`."""
    name = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        name = chr(ord("A") + digit) + name
    return name


def luminance(color: str) -> float:
    """Relative luminance of "#RRGGBB", 0 (black) to 1 (white). Source: WCAG 2.2."""
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21; text needs 4.5, a line or a large letter 3. Source: WCAG 2.2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def text_on(fill: str) -> str:
    """Black or white, whichever is easier to read on this colour."""
    return max("#000000", "#FFFFFF", key=lambda text: contrast(text, fill))
