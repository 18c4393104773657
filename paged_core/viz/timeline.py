"""A service over time: requests as rows, what each was doing as marks, and who held the pool at the step looked at.

A row is in the colour and pattern of its request, as its blocks are; what it does is told by the shape of the mark.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np

from paged_core.serving import AGAIN, DECODE, PREEMPTED, PROMPT, SWAPPED, WAITING, Service
from paged_core.viz.blocks import WIDTH
from paged_core.viz.figure import Chart, chart
from paged_core.viz.player import Player
from paged_core.viz.style import (
    ANYONE_COLOR,
    LINE_COLORS,
    SequenceStyle,
    letter,
    line_look,
    sequence_style,
    text_on,
)
from paged_core.viz.svg import SMALL, TITLE_HEIGHT, Svg, text_width

_LEFT = 64  # px: where time begins
_ANYONE = SequenceStyle(-1, "", ANYONE_COLOR, text_on(ANYONE_COLOR), "plain")  # for the legend


class _Look(NamedTuple):
    """How a doing is drawn, and its names: in the legend, of one request, of several."""

    legend: str
    one: str
    several: str
    mark: str  # see _draw_span


_LOOKS = {
    WAITING: _Look("waits to be admitted", "waits to be admitted", "wait to be admitted", "line"),
    PROMPT: _Look("computes its prompt", "computes its prompt", "compute prompts", "tall"),
    DECODE: _Look("gets a token a step", "gets a token", "get a token", "slim"),
    PREEMPTED: _Look("gave way: blocks lost", "waits, its blocks lost", "wait, their blocks lost", "dashes"),
    AGAIN: _Look("computes again", "computes again", "compute again", "striped"),
    SWAPPED: _Look(
        "gave way: blocks on the host", "waits, its blocks on the host", "wait, their blocks on the host", "hollow"
    ),
}


def timeline(
    service: Service,
    ids: Sequence[Hashable],
    step: int,
    *,
    title: str,
    first_step: int = 0,
    last_step: int | None = None,
    step_is_unit: bool = False,
    words: bool = True,
) -> Svg:
    """Rows for the requests `ids`, from `first_step` to `last_step`, with a cursor at `step`; below, in words and as a
    bar, what happens in that step (unless the `words` stand elsewhere) and who holds the pool, if it was watched.

    Time is in seconds, or in steps when `step_is_unit` (a StepCost of 1). A request's look is by its place in `ids`.
    """
    steps = service.steps
    begin, end = steps[first_step].begin_us, steps[-1 if last_step is None else last_step].end_us
    row = 30 if len(ids) <= 10 else 15
    top, scale = TITLE_HEIGHT + 22, (WIDTH - _LEFT - 16) / (end - begin)
    bottom = top + row * len(ids)
    said = what_happens(service, step, ids if len(ids) <= 10 else (), step_is_unit=step_is_unit)
    svg = Svg(WIDTH, bottom + 210, title=title, alt=f"{len(ids)} requests over time. {said}")

    def x_of(us: int) -> float:
        return _LEFT + (min(max(us, begin), end) - begin) * scale

    looked_at = steps[step]
    x0, x1 = x_of(looked_at.begin_us), x_of(looked_at.end_us)
    svg.rect(x0, top - 16, max(x1 - x0, 1), bottom - top + 20, fill="faint", stroke="none", radius=0)
    rows = {id: i for i, id in enumerate(ids)}
    for i in range(len(ids)):
        style = sequence_style(i)
        svg.cell(12, top + i * row + 1, 40, row - 3, style, style.letter, size=15 if row > 20 else 11)
    for span in service.spans:
        if span.id in rows and span.begin_us < end and span.end_us > begin:
            number, x = rows[span.id], x_of(span.begin_us)
            _draw_span(svg, span.what, sequence_style(number), x, x_of(span.end_us), top + number * row, row)
    for id, i in rows.items():
        served, middle = service.served[id], top + (i + 0.5) * row
        if begin <= served.arrived_us <= end:
            x = x_of(served.arrived_us)
            svg.line([(x, middle - row / 2 + 1), (x, middle + row / 2 - 1)], width=3)
        if served.token_us and begin <= served.token_us[0] <= end:
            x, r = x_of(served.token_us[0]), row * 0.24
            svg.rect(x - r, middle - r, 2 * r, 2 * r, fill="#FFFFFF", stroke="#000000", stroke_width=2, radius=r)
    for x in {x0, max(x1, x0 + 1)}:
        svg.line([(x, top - 16), (x, bottom + 4)], width=2)
    _axis(svg, begin, end, bottom, x_of, steps[first_step:last_step], step_is_unit)
    lines = wrap(said, 100) if words else []
    for i, line in enumerate(lines):
        svg.text(12, bottom + 54 + 20 * i, line, size=15)
    y = bottom + 50 + 20 * len(lines)
    if looked_at.tables is not None:
        _draw_pool(svg, y, looked_at.tables, rows, service.num_blocks)
        y += 46
    others = looked_at.tables is not None and service.num_blocks > 24 and not set(looked_at.tables) <= set(rows)
    svg.height = _legend(svg, y, {span.what for span in service.spans if span.id in rows}, others) + 8
    return svg


def film(
    service: Service, ids: Sequence[Hashable], steps: Sequence[int], *, title: str, start: int, **window: Any
) -> Player:
    """The timeline with its cursor at one of `steps` after the other; it begins at step number `start`. `window` is
    `timeline`'s first_step, last_step and step_is_unit."""
    frames = []
    for step in steps:
        named = ids if len(ids) <= 10 else ()
        said = what_happens(service, step, named, step_is_unit=window.get("step_is_unit", False))
        frames.append((said, timeline(service, ids, step, title=title, words=False, **window)))
    return Player(frames, title=title, start=list(steps).index(start))


def what_happens(service: Service, step: int, ids: Sequence[Hashable] = (), *, step_is_unit: bool = False) -> str:
    """A step in words: request by request when nobody is there but `ids`, else how many do what."""
    looked_at = service.steps[step]
    doing = {s.id: s.what for s in service.spans if s.begin_us <= looked_at.begin_us < s.end_us}
    groups = {what: [id for id, w in doing.items() if w == what] for what in _LOOKS}
    if set(doing) <= set(ids):
        names = {id: letter(i) for i, id in enumerate(ids)}
        parts = [
            f"{' and '.join(sorted(names[id] for id in group))} {look.one if len(group) == 1 else look.several}"
            for (what, look), group in zip(_LOOKS.items(), groups.values(), strict=True)
            if group
        ]
    else:
        parts = [
            f"{len(group)} {_LOOKS[what].one if len(group) == 1 else _LOOKS[what].several}"
            for what, group in groups.items()
            if group
        ]
    when = "" if step_is_unit else f", {looked_at.begin_us / 1e6:.2f} s"
    in_use = f"{looked_at.blocks_in_use:,} of {service.num_blocks:,} blocks in use"
    return f"Step {step}{when}: {'; '.join(parts) or 'nobody is here'}. {in_use}."


def _draw_span(svg: Svg, what: str, style: SequenceStyle, x0: float, x1: float, y: float, row: float) -> None:
    """Work is a tall box, striped when it was done before; a token a step is half as tall, and hollow while its blocks
    are elsewhere. Who has no blocks is a line."""
    mark, middle = _LOOKS[what].mark, y + row / 2
    if mark in ("line", "dashes"):
        lost = mark == "dashes"
        svg.line(
            [(x0, middle), (x1, middle)], color="danger" if lost else "muted", width=3.5 if lost else 2, dashed=lost
        )
        return
    height = row * (0.42 if mark in ("slim", "hollow") else 0.72)
    svg.rect(
        x0, middle - height / 2, max(x1 - x0, 1.2), height, fill="paper" if mark == "hollow" else style.color,
        pattern={"striped": "stripes", "hollow": "plain"}.get(mark, style.pattern), pattern_color=style.on_color,
        stroke_width=1.2 if row > 20 else 0.7, radius=2 if row > 20 else 0,
    )  # fmt: skip


def _axis(svg: Svg, begin: int, end: int, y: float, x_of, steps, step_is_unit: bool) -> None:
    svg.line([(_LEFT, y + 4), (WIDTH - 16, y + 4)], color="muted", width=1.5)
    if step_is_unit:
        every = -(-len(steps) // 15)  # "step 0" is the widest, and needs as much room as three of the others
        for i, step in enumerate(steps):
            if i % every:
                continue
            x = (x_of(step.begin_us) + x_of(step.end_us)) / 2
            svg.text(x, y + 22, f"step {i}" if i == 0 else i, size=SMALL, anchor="middle", color="muted")
        return
    unit = next(u for u in (100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 60_000_000)
                if (end - begin) / u <= 12)  # fmt: skip
    for us in range(-(-begin // unit) * unit, end + 1, unit):
        svg.line([(x_of(us), y + 4), (x_of(us), y + 9)], color="muted")
        if x_of(us) < WIDTH - 95:
            svg.text(x_of(us), y + 24, f"{us / 1e6:g}", size=SMALL, anchor="middle", color="muted")
    svg.text(WIDTH - 16, y + 24, "seconds", size=SMALL, anchor="end", color="muted")


def _draw_pool(svg: Svg, y: float, tables: Mapping[Hashable, Sequence[int]], rows: Mapping[Hashable, int], n: int):
    """Who holds how much of the pool: block by block when they are few, else as lengths of a bar."""
    svg.text(12, y + 21, "pool", size=SMALL, color="muted")
    width = WIDTH - _LEFT - 16
    if n <= 24:
        holders = {block: id for id, blocks in tables.items() for block in blocks}
        for block in range(n):
            x = _LEFT + block * width / n
            if block in holders:
                style = sequence_style(rows[holders[block]])
                svg.cell(x, y, width / n - 4, 32, style, f"{style.letter}: block {block}" if n <= 8 else style.letter)
            else:
                svg.cell(x, y, width / n - 4, 32, "free", f"block {block}" if n <= 8 else "")
        return
    svg.rect(_LEFT, y, width, 32, dashed=True, stroke="muted")
    begin = 0  # in blocks; the bar is drawn to whole px, so that the steps of a film have parts in common
    for row, blocks in sorted((rows[id], len(blocks)) for id, blocks in tables.items() if id in rows):
        style, x = sequence_style(row), round(_LEFT + width * begin / n)
        length = round(_LEFT + width * (begin + blocks) / n) - x
        svg.rect(x, y, length, 32, fill=style.color, pattern=style.pattern if length >= 8 else "plain",
                 pattern_color=style.on_color, stroke_width=1.5, radius=0)  # fmt: skip
        if length >= 16:
            halo = style.color if style.pattern != "plain" else None
            svg.text(x + length / 2, y + 21, style.letter, size=SMALL, anchor="middle", weight="bold",
                     color=style.on_color, halo=halo)  # fmt: skip
        begin += blocks
    if others := sum(len(blocks) for id, blocks in tables.items() if id not in rows):
        x = round(_LEFT + width * begin / n)
        svg.cell(x, y, round(_LEFT + width * (begin + others) / n) - x, 32, "empty")


def _legend(svg: Svg, y: float, doings: set[str], others: bool) -> float:
    x: float = 12
    entries: list[tuple[str, str]] = [(what, look.legend) for what, look in _LOOKS.items() if what in doings]
    entries += [("arrival", "arrival"), ("first", "first token")]
    for what, words in [*entries, ("others", "requests without a row")] if others else entries:
        if x + 32 + text_width(words, SMALL) > WIDTH:
            x, y = 12, y + 24
        if what == "others":
            svg.cell(x, y + 1, 22, 18, "empty")
        elif what == "arrival":
            svg.line([(x + 11, y + 2), (x + 11, y + 18)], width=3)
        elif what == "first":
            svg.rect(x + 6, y + 5, 10, 10, fill="#FFFFFF", stroke="#000000", stroke_width=2, radius=5)
        else:
            _draw_span(svg, what, _ANYONE, x, x + 22, y - 2, 24)
        svg.text(x + 29, y + 15, words, size=SMALL)
        x += 29 + text_width(words, SMALL) + 18
    return y + 24


def first_tokens(services: Mapping[str, Service], *, title: str) -> Chart:
    """Which share of the requests had its first token within how many seconds, one line a service."""
    alt = "Half the requests had their first token within: " + "; ".join(
        f"{name}, {service.first_token_us(50) / 1e6:.1f} s" for name, service in services.items()
    )
    with chart(title=title, alt=alt, size=(10, 4.8)) as (picture, ax):
        for i, (name, service) in enumerate(services.items()):
            waits = np.sort([served.first_token_us for served in service.served.values()]) / 1e6
            share = np.arange(1, len(waits) + 1) / len(waits) * 100
            ax.plot(waits, share, label=name, markevery=(40 + 20 * i, 120), **line_look(i))
        ax.set(xscale="log", xlabel="seconds from arrival to first token", ylabel="requests served by then (%)")
        ax.xaxis.set_major_formatter("{x:g}")
        picture.figure.legend(loc="outside lower center", ncols=2)
    return picture


def pressure(services: Mapping[str, Service], *, title: str) -> Chart:
    """How many requests run, and how many wait, over time, one line a service: means over a second."""
    alt = "At the busiest moment: " + "; ".join(
        f"{name}, {max(step.waiting for step in service.steps)} wait" for name, service in services.items()
    )
    with chart(1, 2, title=title, alt=alt, size=(11, 4.6)) as (picture, axes):
        for i, (name, service) in enumerate(services.items()):
            begins = np.array([step.begin_us for step in service.steps]) // 1_000_000
            seconds, first = np.unique(begins, return_index=True)
            for ax, what in zip(axes, ("running", "waiting"), strict=True):
                counts = np.array([getattr(step, what) for step in service.steps])
                means = np.add.reduceat(counts, first) / np.diff([*first, len(counts)])
                ax.plot(seconds, means, label=name, markevery=(4 * i, 25), **line_look(i))
        for ax, what in zip(axes, ("requests running", "requests waiting, or preempted"), strict=True):
            ax.set(title=what, xlabel="seconds", ylim=(0, None))
        picture.figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return picture


def trade(services: Mapping[int, Service], *, against: str, xlabel: str, title: str) -> Chart:
    """Time to the first token by whatever was varied, and beside it what it is traded for: `against` is "next token"
    (the time from one token to the next) or "preempted" (how often somebody gave way)."""
    right = {
        "next token": lambda s: f"next one {s.gap_us(99) / 1e3:.0f} ms",
        "preempted": lambda s: f"{s.total('preempted')} preempted",
    }[against]
    alt = "99 requests in 100 have their first token within, and beside it: " + "; ".join(
        f"{size:,}: {s.first_token_us(99) / 1e6:.1f} s, {right(s)}" for size, s in services.items()
    )
    places = range(len(services))
    with chart(1, 2, title=title, alt=alt, size=(11, 4.4)) as (picture, axes):
        for i, percent in enumerate((99, 50)):
            look, name = line_look(i), "half of them within" if percent == 50 else "99 in 100 within"
            axes[0].plot(places, [s.first_token_us(percent) / 1e6 for s in services.values()], label=name, **look)
            if against == "next token":
                axes[1].plot(places, [s.gap_us(percent) / 1e3 for s in services.values()], **look)
        axes[0].set(title="first token of a request", ylabel="seconds")
        axes[0].legend()
        if against == "next token":
            axes[1].set(title="next token", ylabel="milliseconds")
        else:
            bars = axes[1].bar(places, [s.total("preempted") for s in services.values()], color=LINE_COLORS[0])
            axes[1].bar_label(bars)
            axes[1].set(title="how often somebody gave way", ylabel="times")
        for ax in axes:
            ax.set(xlabel=xlabel, ylim=(0, ax.get_ylim()[1] * 1.06))
            ax.set_xticks(places, [f"{size:,}" for size in services])
    return picture
