"""Memory as it lies: which number a pool keeps where, and which cache lines an access touches.

Everything is drawn from `PoolLayout.element_offset`, or from addresses that were measured: nothing here knows a layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paged_core.layouts import Geometry, PoolLayout
from paged_core.viz.controls import box, saved, slider, spoken
from paged_core.viz.figure import Chart, chart
from paged_core.viz.style import HATCHES, LIGHT, LINE_COLORS, PALE, text_on
from paged_core.viz.svg import SMALL, TITLE_HEIGHT, Svg, text_width
from paged_core.viz.words import counted

LINE_BYTES = 64  # a cache line of x86; Apple's and NVIDIA's have 128
RAMP = (
    "#00224E",
    "#213B6E",
    "#4C556C",
    "#6C6E72",
    "#8E8978",
    "#B1A570",
    "#D9C55C",
    "#FEE838",
)  # cividis, light or grey
USED = LINE_COLORS[0]  # the part of a cache line that an access uses
TOUCHED = PALE  # the part that comes along, because lines are moved whole
_AXES = ("head", "token", "dim")


class Region(NamedTuple):
    """K or V of one block: consecutive elements of an array, and who lives at each of them."""

    name: str  # "HND K"
    axes: str  # "[head, token, dim]", and what else there is to say about the array
    which: str  # "k" or "v"
    start: int  # its first element, counted from the start of the array
    coordinates: dict[str, NDArray[np.int64]]  # "head", "token", "dim" of element start + i; each [elements]

    @property
    def size(self) -> int:
        """Elements."""
        return self.coordinates["dim"].size

    def matching(self, access: Mapping[str, int] | None) -> NDArray[np.bool_]:
        """bool [elements]: those that an access like {"head": 1, "token": 2} reads; None reads all."""
        mask = np.ones(self.size, bool)
        for axis, value in (access or {}).items():
            _check_axis("access", axis)
            mask &= self.coordinates[axis] == value
        return mask


def regions(
    geometry: Geometry, itemsize: int, *, block: int, layouts: Sequence[PoolLayout] = tuple(PoolLayout)
) -> list[Region]:
    """What one block is made of in each layout: K and V, or K alone where V's array is its twin."""
    head, token, dim = np.indices(geometry[1:])
    result = []
    for layout in layouts:
        one_array, twins = "kv" in layout.axes("k"), layout.axes("k") == layout.axes("v")
        for which in "k" if twins and not one_array else "kv":
            at = layout.element_offset(which, geometry, itemsize, block=block, head=head, token=token, dim=dim)
            start, order = int(np.min(at)), np.argsort(at, axis=None)
            coordinates = {name: x.ravel()[order] for name, x in zip(_AXES, (head, token, dim), strict=True)}
            axes = f"[{', '.join(axis for axis in layout.axes(which) if axis not in ('block', 'kv'))}]"
            if one_array:
                axes += f"; the {'first' if which == 'k' else 'second'} half of the block"
            elif twins:
                axes += "; V likewise, in its own array"
            result.append(Region(f"{layout.name} {which.upper()}", axes, which, start, coordinates))
    return result


def lines_touched(elements: ArrayLike, itemsize: int, line_bytes: int = LINE_BYTES) -> int:
    """How many cache lines hold these elements of an array that begins on a line."""
    return np.unique(np.asarray(elements).ravel() * itemsize // line_bytes).size


def runs_of(elements: ArrayLike) -> int:
    """How many contiguous runs these elements make: 1 when a single copy could fetch them."""
    ordered = np.unique(np.asarray(elements).ravel())
    return int(np.count_nonzero(np.diff(ordered) != 1)) + bool(ordered.size)


def loads_of(
    records: NDArray, buffer: str, *, launch: int = 0, threadgroup: int = 0, simdgroup: int = 0
) -> NDArray[np.int64]:
    """What one simdgroup loads from `buffer`, out of a trace's records: elements [loads, lanes], in the order of time.

    Row n is the n-th load of every lane. Lanes go in step, so a row is one instruction: one request to memory.
    ValueError when the lanes do not load equally often, for then rows would be no instructions.
    """
    mine = records[
        (records["buffer"] == buffer)
        & (records["launch"] == launch)
        & (records["threadgroup"] == threadgroup)
        & (records["simdgroup"] == simdgroup)
        & ~records["is_write"]
    ]
    lanes, counts = np.unique(mine["lane"], return_counts=True)
    if np.unique(counts).size > 1:
        raise ValueError(f"records: expected equally many loads of {buffer} by each lane, got {counts.tolist()}")
    in_order = mine[np.lexsort((mine["step"], mine["lane"]))]
    return in_order["index"].astype(np.int64).reshape(max(1, lanes.size), -1).T


def memory_map(
    geometry: Geometry,
    itemsize: int,
    *,
    block: int = 0,
    colour_by: str = "head",
    only: Mapping[str, int] | None = None,
    chosen: Mapping[str, int] | None = None,
    title: str | None = None,
) -> Svg:
    """One block in every layout, element by element: a row is a cache line of 64 bytes, a cell one number.

    A cell shows the number of its head, token or dim, whichever `colour_by` says. `only` = {"head": 1, "token": 2} sets
    an access apart: what it does not read goes faint. `chosen` = {"head": 1, "token": 2, "dim": 3} outlines one number
    and says which element it is. Meant for blocks of a few lines; `line_map` shows real ones.
    """
    _check_axis("colour_by", colour_by)
    values = dict(zip(_AXES, geometry[1:], strict=True))[colour_by]
    cell, columns, label_width = 26, LINE_BYTES // itemsize, 54
    panels = []
    for region in regions(geometry, itemsize, block=block):
        kept, fact = region.matching(only), ""
        if only:
            elements = region.start + np.flatnonzero(kept)
            fact = f"{counted(runs_of(elements), 'run')}, {counted(lines_touched(elements, itemsize), 'line')}"
        elif chosen:
            fact = f"element {region.start + _only_one(region.matching(chosen))}"
        panels.append(_Panel(region.name, region.axes, fact, -(-kept.size // columns) * cell, (region, kept)))
    title = title or f"Block {block} in memory, by {colour_by}" + (f": {_words(only)}" if only else "")
    svg, places = _panel_grid(
        panels, label_width + columns * cell, title, f"a row is a line of {LINE_BYTES} bytes", legend_height=34
    )
    _ramp_legend(svg, 12, TITLE_HEIGHT, colour_by, values)
    for (region, kept), x, y in places:
        x += label_width
        rows = -(-region.size // columns)
        svg.rect(x, y, columns * cell, rows * cell, fill="faint", stroke="none", radius=0)
        for row in range(rows):
            first = region.start + row * columns
            svg.text(x - 8, y + row * cell + 18, first, size=SMALL, anchor="end", color="muted", mono=True)
        stretches = [
            each for each in _stretches(np.where(kept, region.coordinates[colour_by], -1), columns) if each[3] >= 0
        ]
        for value in range(values):
            marked = kept & (region.coordinates[colour_by] == value)
            for row, column, height, width in _tiles(marked, columns, across=True):
                box = (x + column * cell, y + row * cell, width * cell, height * cell)
                svg.rect(*box, fill=_ramp(value, values), stroke="none", radius=0)
        _grid_lines(svg, x, y, columns, rows, cell)
        for row, column, length, value in stretches:
            cx, on = x + (column + (length - 1) // 2 + 0.5) * cell, text_on(_ramp(value, values))
            svg.text(cx, y + row * cell + 19, value, anchor="middle", color=on, weight="bold")
        if chosen:
            index = _only_one(region.matching(chosen))
            row, column = divmod(index, columns)
            cx, cy = x + column * cell, y + row * cell
            value = int(region.coordinates[colour_by][index])
            on = text_on(_ramp(value, values)) if kept[index] else "ink"
            svg.text(cx + cell / 2, cy + 19, value, anchor="middle", color=on, weight="bold")
            svg.rect(cx - 2, cy - 2, cell + 4, cell + 4, stroke="paper", stroke_width=6, radius=2)
            svg.rect(cx - 2, cy - 2, cell + 4, cell + 4, stroke="danger", stroke_width=3.5, radius=2)
    return svg


def line_map(
    geometry: Geometry,
    itemsize: int,
    *,
    only: Mapping[str, int],
    block: int = 0,
    line_bytes: int = LINE_BYTES,
    title: str | None = None,
) -> Svg:
    """One block of a real size in every layout: a square is a cache line, filled as far as the access `only` uses it.

    What a memory moves is whole lines: an access that fills its squares gets what it pays for.
    """
    square, columns, per_line = 14, 32, line_bytes // itemsize
    panels = []
    for region in regions(geometry, itemsize, block=block):
        elements = region.start + np.flatnonzero(region.matching(only))
        share = np.bincount((elements - region.start) // per_line, minlength=-(-region.size // per_line)) / per_line
        touched = int(np.count_nonzero(share))
        fact = _used(touched, elements.size * itemsize, line_bytes)
        panels.append(_Panel(region.name, region.axes, fact, -(-share.size // columns) * square, (region, share)))
    title = title or f"The {line_bytes}-byte lines that hold {_words(only)}"
    svg, places = _panel_grid(
        panels,
        columns * square,
        title,
        f"a square is a line of {line_bytes} bytes: dark what is used, light what comes along",
    )
    for (_, share), x, y in places:
        rows = -(-share.size // columns)
        svg.rect(x, y, columns * square, rows * square, fill="faint", stroke="none", radius=0)
        for part in sorted(set(share.tolist()) - {0.0}):
            for row, column, height, width in _tiles(share == part, columns, across=part == 1):
                cx, cy = x + column * square, y + row * square
                if part < 1:
                    svg.rect(cx, cy, square, height * square, fill=TOUCHED, stroke="none", radius=0)
                used = max(part * square, 3) if part < 1 else width * square  # a sliver, too, has to be seen
                svg.rect(cx, cy, used, height * square, fill=USED, stroke="none", radius=0)
        _grid_lines(svg, x, y, columns, rows, square)
    return svg


def lane_map(
    loads: Mapping[str, tuple[ArrayLike, ArrayLike]],
    itemsize: int,
    *,
    title: str,
    line_bytes: int = LINE_BYTES,
) -> Svg:
    """What one load of a simdgroup asks of memory: lanes downwards, the lines they touch from left to right.

    `loads` maps the name of a panel, "HND" or "HND, as it is read", to (lanes, elements), two arrays that broadcast:
    lane lanes[i] reads element elements[i]. A single column is the best a memory can be asked; a diagonal is a line for
    every lane.
    """
    width, height, label_width, columns = 12, 6, 36, 34
    panels = []
    for name, (lanes, elements) in loads.items():
        lanes, elements = (np.broadcast_arrays(lanes, elements)[i].ravel() for i in range(2))
        lines, column = np.unique(elements * itemsize // line_bytes, return_inverse=True)
        if lines.size > columns:
            raise ValueError(f"loads[{name!r}]: expected at most {columns} lines, got {lines.size}")
        fact = _used(lines.size, np.unique(elements).size * itemsize, line_bytes)
        num_lanes = int(lanes.max()) + 1
        name, _, note = name.partition(", ")
        panels.append(_Panel(name, note, fact, num_lanes * height, (lanes, column, num_lanes, lines)))
    svg, places = _panel_grid(
        panels,
        label_width + columns * width,
        title,
        f"a column is a line of {line_bytes} bytes, a row a lane; dashed: lines in between are left out",
    )
    for (lanes, column, num_lanes, lines), x, y in places:
        x += label_width
        svg.rect(x, y, lines.size * width, num_lanes * height, fill="faint", stroke="none", radius=0)
        for lane in {0, num_lanes - 1}:
            svg.text(x - 6, y + lane * height + 10 * (lane == 0) + 5, lane, size=SMALL, anchor="end", color="muted")
        for lane, at in sorted(set(zip(lanes.tolist(), column.tolist(), strict=True))):
            svg.rect(
                x + at * width, y + lane * height, width, height, fill=USED, stroke="paper", stroke_width=0.8, radius=0
            )
        for at in range(1, lines.size):
            if lines[at] != lines[at - 1] + 1:  # a gap in memory
                cx = x + at * width
                svg.line([(cx, y), (cx, y + num_lanes * height)], color="muted", width=1, dashed=True)
    return svg


def cost_chart(milliseconds: Mapping[str, Mapping[str, float]], *, title: str, reference: tuple[str, float]) -> Chart:
    """Measured times, a group of bars for each operation and a bar for each layout; `reference` (name, ms) is a line.

    `milliseconds` maps an operation to {layout's name: ms}.
    """
    alt = f"Bars of milliseconds on a log scale, for {', '.join(milliseconds)}; a line for {reference[0]}."
    with chart(title=title, alt=alt) as (picture, ax):
        names = list(next(iter(milliseconds.values())))
        for i, name in enumerate(names):
            at = np.arange(len(milliseconds)) + (i - (len(names) - 1) / 2) * 0.2
            heights = [times[name] for times in milliseconds.values()]
            look = {"color": LINE_COLORS[i], "hatch": HATCHES[i], "edgecolor": LIGHT.paper}
            bars = ax.bar(at, heights, 0.19, label=name, **look)
            on_paper = {"facecolor": LIGHT.paper, "edgecolor": "none", "pad": 0.5}  # the line may pass behind it
            ax.bar_label(bars, [f"{height:.2g}" for height in heights], fontsize=11, bbox=on_paper, zorder=3)
        ax.axhline(reference[1], color=LIGHT.danger, linestyle="--")
        ax.annotate(
            f"{reference[0]}: {reference[1]:.2g}", (0.02, reference[1]), xycoords=("axes fraction", "data"),
            xytext=(0, 4), textcoords="offset points", va="bottom", color=LIGHT.danger,
        )  # fmt: skip
        ax.set(yscale="log", ylabel="milliseconds (log scale)", xticks=range(len(milliseconds)))
        ax.set_ylim(top=4 * reference[1])
        ax.set_xticklabels(milliseconds)
        ax.grid(axis="x", visible=False)
        ax.legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, -0.3))
    return picture


class LayoutExplorer:
    """Controls that steer `memory_map`: what to colour by, which number to follow, which access to keep apart.

    `chosen` = {"head": 1, "token": 2, "dim": 3} is the number to begin with. Displayed where no kernel runs, it is the
    picture.
    """

    ACCESSES = (
        ("everything", ()),
        ("one token of one head: attention reads K", ("head", "token")),
        ("one dim of one head", ("head", "dim")),
        ("one token of all heads: a write", ("token",)),
    )

    def __init__(self, geometry: Geometry, itemsize: int, *, block: int, chosen: Mapping[str, int]) -> None:
        from ipywidgets import HTML, Dropdown, Layout, ToggleButtons

        self.geometry, self.itemsize, self.block = geometry, itemsize, block
        words = {"style": {"description_width": "initial"}}
        self.colour_by = ToggleButtons(options=_AXES, value="token", description="Colour by", **words)
        self.colour_by.style.button_width = "80px"
        self.access = Dropdown(options=self.ACCESSES, description="Keep apart", layout=Layout(width="440px"), **words)
        self.at = {
            axis: slider(axis, value=chosen[axis], max=size - 1) for axis, size in zip(_AXES, geometry[1:], strict=True)
        }
        self.picture = HTML()
        for control in (self.colour_by, self.access, *self.at.values()):
            control.observe(lambda change: self._show(), "value")
        self.widget = box(([self.colour_by, self.access], list(self.at.values())), self.picture)
        self._show()

    def draw(self) -> Svg:
        """The picture as the controls stand."""
        at = {axis: slider.value for axis, slider in self.at.items()}
        only = {axis: at[axis] for axis in self.access.value}
        return memory_map(
            self.geometry, self.itemsize, block=self.block, colour_by=self.colour_by.value, only=only, chosen=at
        )

    def __repr__(self) -> str:
        return repr(self.draw())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        return saved(self.widget, self.draw())

    def _show(self) -> None:
        picture = self.draw()
        self.picture.value = spoken(picture, picture.alt)


class _Panel(NamedTuple):
    name: str
    note: str
    fact: str  # what the panel shows, in numbers
    height: float  # px, below its heading
    content: tuple


def _panel_grid(
    panels: Sequence[_Panel], width: float, title: str, unit: str, legend_height: float = 0
) -> tuple[Svg, list[tuple[tuple, float, float]]]:
    """A picture with the panels' headings in two columns, and (content, x, y) for what goes below each heading."""
    heading, gap_x, gap_y, margin = 46, 44, 18, 12
    top = TITLE_HEIGHT + 26 + legend_height
    places, y = [], top
    for i in range(0, len(panels), 2):
        row = panels[i : i + 2]
        places += [(panel, margin + j * (width + gap_x), y) for j, panel in enumerate(row)]
        y += heading + max(panel.height for panel in row) + gap_y
    facts = "; ".join(
        f"{panel.name} {panel.note}: {panel.fact}" if panel.fact else f"{panel.name} {panel.note}" for panel in panels
    )
    unit = unit[0].upper() + unit[1:]
    svg = Svg(2 * margin + 2 * width + gap_x + 20, y, title=title, alt=f"{unit}. {facts}.")
    svg.text(margin, top - 10, unit + ".", size=SMALL, color="muted")
    for panel, x, y in places:
        svg.text(x, y + 18, panel.name, weight="bold")
        svg.text(x + width, y + 18, panel.fact, size=15, weight="bold", anchor="end")
        svg.text(x, y + 36, panel.note, size=SMALL, color="muted")
    return svg, [(panel.content, x, y + heading) for panel, x, y in places]


def _stretches(values: NDArray, columns: int) -> list[tuple[int, int, int, Any]]:
    """Equal neighbours, row by row of `columns` values: (row, first column, how many, value)."""
    result = []
    for row in range(-(-values.size // columns)):
        line = values[row * columns : (row + 1) * columns]
        starts = np.flatnonzero(np.r_[True, line[1:] != line[:-1]])
        for start, stop in pairwise([*starts.tolist(), line.size]):
            result.append((row, start, stop - start, line[start].item()))
    return result


def _tiles(mask: NDArray[np.bool_], columns: int, *, across: bool) -> list[tuple[int, int, int, int]]:
    """What is marked, in as few boxes as reading row by row finds: (row, column, height, width). `across` joins
    neighbours in a row too."""
    open_: dict[tuple[int, int], int] = {}  # (column, width): the row where it began
    done: list[tuple[int, int, int, int]] = []
    for row in range(-(-mask.size // columns)):
        line = mask[row * columns : (row + 1) * columns]
        if across:
            spans = {(column, length) for _, column, length, marked in _stretches(line, columns) if marked}
        else:
            spans = {(column, 1) for column in np.flatnonzero(line).tolist()}
        done += [
            (first, column, row - first, length)
            for (column, length), first in open_.items()
            if (column, length) not in spans
        ]
        open_ = {span: open_.get(span, row) for span in spans}
    rows = -(-mask.size // columns)
    done += [(first, column, rows - first, length) for (column, length), first in open_.items()]
    return sorted(done)


def _grid_lines(svg: Svg, x: float, y: float, columns: int, rows: int, cell: float) -> None:
    """Thin lines between cells: two strokes of the pen, to and fro, however many cells there are."""
    for down in (True, False):
        points = []
        for i in range((columns if down else rows) + 1):
            ends = [
                (x + i * cell, y + j * rows * cell) if down else (x + j * columns * cell, y + i * cell) for j in (0, 1)
            ]
            points += ends if i % 2 == 0 else ends[::-1]
        svg.line(points, color="paper", width=1)


def _ramp_legend(svg: Svg, x: float, y: float, axis: str, values: int) -> None:
    svg.text(x, y + 18, axis, size=SMALL, weight="bold")
    x += text_width(axis, SMALL) + 12
    for value in range(values):
        colour = _ramp(value, values)
        svg.rect(x, y, 26, 26, fill=colour, stroke="paper", radius=0)
        svg.text(x + 13, y + 18, value, size=SMALL, anchor="middle", color=text_on(colour), weight="bold")
        x += 26


def _ramp(value: int, values: int) -> str:
    return RAMP[round(value * (len(RAMP) - 1) / max(1, values - 1))]


def _only_one(mask: NDArray[np.bool_]) -> int:
    (index,) = np.flatnonzero(mask)
    return int(index)


def _words(access: Mapping[str, int] | None) -> str:
    """{"head": 1, "token": 2} -> "head 1, token 2, every dim"."""
    access = access or {}
    return ", ".join(f"{axis} {access[axis]}" if axis in access else f"every {axis}" for axis in _AXES)


def _used(lines: int, num_bytes: int, line_bytes: int) -> str:
    if num_bytes == lines * line_bytes:
        return f"{counted(lines, 'line')}, used whole"
    return f"{counted(lines, 'line')}, {num_bytes / lines:.3g} of {line_bytes} bytes used"


def _check_axis(name: str, axis: str) -> None:
    if axis not in _AXES:
        raise ValueError(f"{name}: expected one of {', '.join(_AXES)}, got {axis!r}")
