"""An answer beside what was expected, from the answer's own run: the first difference is marked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from textwrap import wrap
from typing import Any, NamedTuple

from paged_core.viz.style import SequenceStyle, sequence_style
from paged_core.viz.svg import SIZE, SMALL, TITLE_HEIGHT, Svg, text_width

WIDTH = 900  # px: a notebook's column
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_MOST_ROWS, _MOST_CELLS = 9, 12
_CELL = 32  # px: the height of a cell


class Row(NamedTuple):
    """One line of a comparison: a list of things is drawn as cells, anything else is written out."""

    words: str
    expected: Any
    got: Any


class Input(NamedTuple):
    """Something that went in, as cells, each in the look that its place gives it."""

    words: str
    cells: Sequence[Any]
    look: Callable[[int], SequenceStyle | str] = lambda _: sequence_style(0)


def compared(
    rows: Sequence[Row], *, title: str, given: str, inputs: Sequence[Input] = (),
    equal: Callable[[Any, Any], bool] | None = None,
) -> Svg:  # fmt: skip
    """Rows of expected and got side by side, those up to the first that differs; there its first difference has a red
    edge. `given` says what went in, `inputs` are drawn, and `equal` says whether two things agree.
    """
    equal = equal or _equal
    first = next((i for i, row in enumerate(rows) if not equal(row.expected, row.got)), len(rows) - 1)
    shown = rows[max(0, first + 1 - _MOST_ROWS) : first + 1]
    left = 24 + min(300, max(text_width(words, 15) for words, *_ in (*shown, *inputs)))
    half = (WIDTH - left - 12) / 2
    alt = " ".join(f"{row.words}: expected {written(row.expected)}, got {written(row.got)}." for row in shown)
    svg = Svg(WIDTH, 0, title=title, alt=f"Given {given}: {alt}")
    y = _given(svg, given)
    for i, part in enumerate(inputs):
        y += 10 * (i == 0)
        svg.text(12, y + 21, part.words, size=15)
        width = min(46.0, (WIDTH - left - 12) / max(1, len(part.cells)))
        for j, value in enumerate(part.cells):
            svg.cell(left + j * width, y, width - 4, _CELL, part.look(j), written(value), size=15)
        y += _CELL + 8
    y += 24 if inputs else 16
    for x, words in ((left, "expected"), (left + half, "got")):
        svg.text(x, y, words, size=15, weight="bold", color="muted")
    y += 10
    if len(shown) <= first:
        svg.text(12, y + 14, f"{first + 1 - len(shown)} before, all as expected", size=SMALL, color="muted")
        y += 22
    for row in shown:
        right = equal(row.expected, row.got)
        at = None if right else _first_difference(row, equal)
        label = wrap(row.words, 34) or [""]
        for i, line in enumerate(label):
            svg.text(12, y + 21 + 18 * i, line, size=15)
        heights = (
            _draw(svg, left, y, half - 20, row.expected, at, wrong=False),
            _draw(svg, left + half, y, half - 20, row.got, at, wrong=not right),
        )
        y += max(*heights, 18 * len(label)) + 10
    svg.height = y + 10
    return svg


def grids(
    expected: Sequence[Sequence[Any]], got: Any, *, title: str, given: str, down: str, across: str,
    look: Callable[[Any], SequenceStyle | str], label: Callable[[Any], object],
) -> Svg:  # fmt: skip
    """Two tables side by side, each cell in the `look` and with the `label` of what is in it. What differs is hatched,
    and the first to do so has a red edge. What is no table of the expected shape is written out.
    """
    num_rows, num_columns = len(expected), len(expected[0])
    is_table = (
        isinstance(got, list) and [len(r) if isinstance(r, list) else -1 for r in got] == [num_columns] * num_rows
    )
    places = [(r, c) for r in range(num_rows) for c in range(num_columns)]
    wrong = [(r, c) for r, c in places if is_table and not _equal(expected[r][c], got[r][c])]
    half = (WIDTH - 24) / 2
    cell = min(46.0, (half - 60) / num_columns)
    alt = f"Expected {written(expected)}, got {written(got)}."
    svg = Svg(WIDTH, 0, title=title, alt=f"Given {given}: {alt}")
    y = _given(svg, given) + 16
    svg.text(12, y, f"expected  ({down} down, {across} across)", size=15, weight="bold", color="muted")
    svg.text(12 + half, y, "got", size=15, weight="bold", color="muted")
    y += 30
    for x, table, mark in ((48.0, expected, []), (48 + half, got if is_table else None, wrong)):
        if table is None:
            _draw(svg, x - 36, y - 14, half - 20, got, None, wrong=True)
            continue
        for r, c in places:
            if r == 0:
                svg.text(x + (c + 0.5) * cell, y - 6, c, size=SMALL, color="muted", anchor="middle")
            if c == 0:
                svg.text(x - 8, y + (r + 0.65) * cell, r, size=SMALL, color="muted", anchor="end")
            at = x + c * cell, y + r * cell, cell - 3, cell - 3
            value = table[r][c]
            svg.cell(*at, "nan" if (r, c) in mark else look(value), label(value), size=15)
            if wrong and (r, c) == wrong[0]:
                svg.rect(*at, stroke="danger" if mark else "ink", stroke_width=4)
    svg.height = y + num_rows * cell + 14
    if wrong:
        r, c = wrong[0]
        words = f"first difference: {down} {r}, {across} {c}; {len(wrong)} of {len(places)} differ"
        svg.text(12, svg.height + 10, words, size=15, color="danger", weight="bold")
        svg.height += 26
    return svg


def written(thing: Any, most: int = 150) -> str:
    """In a line of text, cut where it is long."""
    words = str(thing)
    if isinstance(thing, float):
        words = f"{thing:.6g}" if thing % 1 else f"{thing:.1f}"  # 8.0 is not 8
    elif isinstance(thing, list):
        words = f"[{', '.join(written(part) for part in thing)}]"
    elif isinstance(thing, bytes):
        words = thing.hex()
    elif isinstance(thing, Iterator):
        words = f"a {type(thing).__name__}, not what it yields"
    return cut(_ADDRESS.sub("", words), most)  # the address of an object is another one in every run


def cut(words: str, most: int = 150) -> str:
    """Their beginning, where they are more than `most` characters."""
    return words if len(words) <= most else words[: most - 4] + " ..."


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and one == other  # True is not 1


def _given(svg: Svg, given: str) -> float:
    """What went in, below the title; returns where it ends, in px."""
    lines = wrap(f"given {given}", 104)
    for i, line in enumerate(lines):
        svg.text(12, TITLE_HEIGHT + 12 + 20 * i, line, size=15)
    return TITLE_HEIGHT + 12 + 20 * len(lines)


def _first_difference(row: Row, equal: Callable[[Any, Any], bool]) -> int | None:
    """The first cell in which the two lists of a row differ, or in which one of them has ended."""
    if not isinstance(row.expected, list) or not isinstance(row.got, list):
        return None
    pairs = zip(row.expected, row.got, strict=False)
    return next((i for i, pair in enumerate(pairs) if not equal(*pair)), min(len(row.expected), len(row.got)))


def _draw(svg: Svg, x: float, y: float, width: float, thing: Any, at: int | None, *, wrong: bool) -> float:
    """A list as cells, with a mark at cell `at`; anything else in words. Returns its height in px."""
    if not isinstance(thing, list) or any(isinstance(part, list) for part in thing):
        lines = wrap(written(thing, 320), int(width / text_width("n", 15))) or [""]
        for i, line in enumerate(lines):
            color = "danger" if wrong else "ink"
            svg.text(x, y + 21 + 18 * i, line, size=15, color=color, weight="bold" if wrong else "normal")
        return 18 * len(lines) + 12
    start = max(0, (at or 0) + 2 - _MOST_CELLS)
    parts = thing[start : start + _MOST_CELLS]
    longest = max((text_width(written(part), SIZE) + 14 for part in parts), default=0)
    cell = max(14.0, min(max(38.0, longest), (width - 40) / max(1, len(parts))))
    if start:
        svg.text(x, y + 21, "...", size=15, color="muted")
        x += 22
    for i, part in enumerate(parts):
        svg.cell(x + i * cell, y, cell - 4, _CELL, "empty", written(part), size=15)
        if start + i == at:
            svg.rect(x + i * cell, y, cell - 4, _CELL, stroke="danger" if wrong else "ink", stroke_width=4)
    if at == len(thing):  # it ended too early: the cell that is missing
        svg.rect(
            x + len(parts) * cell, y, 34, _CELL, stroke="danger" if wrong else "muted", stroke_width=3, dashed=True
        )
    if start + len(parts) < len(thing):
        svg.text(x + len(parts) * cell + 4, y + 21, "...", size=15, color="muted")
    if not thing and at is None:
        svg.text(x, y + 21, "nothing", size=15, color="danger" if wrong else "muted")
    return _CELL


def held(value: object) -> SequenceStyle | str:
    """The look of something that is there, in the first sequence's colour, or is not."""
    return sequence_style(0) if value else "free"
