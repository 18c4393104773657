"""The pool as a grid of blocks: who holds which, what is free and in which order, and the most that was ever in use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from paged_core.allocator import BlockAllocator
from paged_core.sequence import PagedSeqState
from paged_core.viz.style import CACHED_COLOR, SequenceStyle, letter, sequence_style
from paged_core.viz.svg import SMALL, TITLE_HEIGHT, Svg, text_width
from paged_core.viz.words import counted, enumerated

WIDTH = 900  # px: a notebook's column
_GRID_WIDTH = 600
_LARGE = 700  # blocks: a pool beyond this is drawn in runs of 6 px a block, without ids


@dataclass(frozen=True)
class PoolSnapshot:
    """What an allocator and the holders of its blocks said at one moment."""

    ref_counts: tuple[int, ...]  # one a block
    free: tuple[int, ...]  # the free list; the next block out comes last
    peak_in_use: int
    held: tuple[tuple[int, ...], ...]  # for each sequence, its blocks in logical order

    @property
    def capacity(self) -> int:
        """Blocks, free or not."""
        return len(self.ref_counts)

    @property
    def in_use(self) -> int:
        """Blocks that are not on the free list."""
        return self.capacity - len(self.free)

    def holders(self, block: int) -> list[int]:
        """The numbers of the sequences that list this block."""
        return self._holders[block]

    @cached_property
    def any_overlisted(self) -> bool:
        """Whether some block is listed by more sequences than it has references."""
        return any(map(self.overlisted, range(self.capacity)))

    @cached_property
    def any_held_elsewhere(self) -> bool:
        """Whether some block is in use and no sequence lists it."""
        return any(count and not holders for count, holders in zip(self.ref_counts, self._holders, strict=True))

    @cached_property
    def _holders(self) -> list[list[int]]:
        holders: list[list[int]] = [[] for _ in self.ref_counts]
        for i, blocks in enumerate(self.held):
            for block in dict.fromkeys(blocks):  # who lists a block twice is one holder
                if 0 <= block < self.capacity:
                    holders[block].append(i)
        return holders

    def overlisted(self, block: int) -> bool:
        """Whether more sequences list this block than it has references: one of them reads what is not its own."""
        return len(self.holders(block)) > self.ref_counts[block]

    def __str__(self) -> str:
        """In words, for alternative text."""
        held = [f"{letter(i)} holds {enumerated(blocks)}" for i, blocks in enumerate(self.held) if blocks]
        shared = [block for block, count in enumerate(self.ref_counts) if count > 1]
        wrong = [block for block in range(self.capacity) if self.overlisted(block)]
        return (
            f"A pool of {self.capacity} blocks: {self.in_use} in use, {len(self.free)} free, peak {self.peak_in_use}. "
            + "".join(f"{words}. " for words in held)
            + (f"Shared: {enumerated(shared)}. " if shared else "")
            + (f"Listed by more than have a reference: {enumerated(wrong)}. " if wrong else "")
            + (f"Next out: {enumerated(self.free[::-1])}." if self.free else "The free list is empty.")
        )


def snapshot(allocator: BlockAllocator, sequences: Sequence[PagedSeqState | Sequence[int]] = ()) -> PoolSnapshot:
    """The state of `allocator` and of whoever holds its blocks: sequences, or plain lists of block ids."""
    return PoolSnapshot(
        ref_counts=tuple(allocator.ref_count(block) for block in range(allocator.capacity)),
        free=allocator.free_list,
        peak_in_use=allocator.peak_in_use,
        held=tuple(tuple(seq.blocks if isinstance(seq, PagedSeqState) else seq) for seq in sequences),
    )


def pool_map(
    pool: PoolSnapshot, *, title: str = "The pool, block by block", chosen: int | Collection[int] | None = None
) -> Svg:
    """One cell per physical block, the free list as the stack it is, and the watermark. `chosen` is drawn bold."""
    grid_bottom = TITLE_HEIGHT + grid_height(pool)
    bottom = max(grid_bottom + 68, TITLE_HEIGHT + _stack_height(pool))
    svg = Svg(WIDTH, bottom + 34, title=title, alt=str(pool))
    draw_grid(svg, 12, TITLE_HEIGHT, pool, chosen=chosen)
    draw_free_list(svg, 660, TITLE_HEIGHT, pool)
    draw_gauge(svg, 12, grid_bottom + 14, _GRID_WIDTH - 5, pool)
    svg.height = draw_legend(svg, 12, bottom + 8, pool) + 10
    return svg


def filmstrip(frames: Sequence[tuple[str, PoolSnapshot]], *, title: str) -> Svg:
    """One row per (what was done, the pool after it), time running down; blocks that changed hands are drawn bold."""
    words_width = 20 + max(text_width(words, SMALL + 1) for words, _ in frames)
    capacity = frames[0][1].capacity
    stack_width = 170
    cell = min(44.0, max(6.0, (WIDTH - words_width - stack_width - 24) / max(capacity, 1)))
    row, top = 40, TITLE_HEIGHT + 24
    alt = " ".join(f"{i}. {words}: {pool}" for i, (words, pool) in enumerate(frames, 1))
    svg = Svg(WIDTH, top + row * len(frames) + 40, title=title, alt=alt)
    stack_x = 12 + words_width + cell * capacity + 20
    svg.text(12 + words_width - 10, top - 8, "block", size=SMALL, color="muted", anchor="end")
    for block in range(capacity) if cell >= 18 else ():
        svg.text(
            12 + words_width + (block + 0.5) * cell - 1.5, top - 8, block, size=SMALL, color="muted", anchor="middle"
        )
    svg.text(stack_x, top - 8, "next out, then ...", size=SMALL, color="muted")
    before = None
    for i, (words, pool) in enumerate(frames):
        y = top + i * row
        svg.text(12, y + 22, words, size=SMALL + 1)
        for block in range(capacity):
            x = 12 + words_width + block * cell
            changed = before is not None and (
                before.holders(block) != pool.holders(block) or before.ref_counts[block] != pool.ref_counts[block]
            )
            draw_block(svg, x, y, cell - 3, row - 7, pool, block, chosen=changed)
        shown = [str(block) for block in pool.free[::-1]]
        svg.text(
            stack_x, y + 22, " ".join(shown[:6]) + (" ..." if len(shown) > 6 else "") or "none", mono=True, size=14
        )
        before = pool
    svg.height = draw_legend(svg, 12, top + row * len(frames) + 10, *(pool for _, pool in frames), changed=True) + 10
    return svg


def grid_height(pool: PoolSnapshot) -> float:
    """How high `draw_grid` draws this pool, px."""
    columns, _, cell_height = _grid(pool)
    return -(-pool.capacity // columns) * cell_height + 20 * (pool.capacity > _LARGE)


def draw_grid(
    svg: Svg, x: float, y: float, pool: PoolSnapshot, *, chosen: int | Collection[int] | None = None,
    draw: Callable[..., None] | None = None, cached: Collection[int] = (),
) -> None:  # fmt: skip
    """The blocks in rows, 600 px wide; each with the letters of its holders, its id, and its references if several.
    `draw` takes the place of `draw_block`. A pool of more than 700 is drawn in runs, the `cached` ones grey.
    """
    columns, width, height = _grid(pool)
    bold = () if chosen is None else (chosen,) if isinstance(chosen, int) else chosen
    if pool.capacity > _LARGE:
        _draw_runs(svg, x, y, pool, bold, cached)
        return
    for block in range(pool.capacity):
        row, column = divmod(block, columns)
        at = x + column * width, y + row * height
        (draw or draw_block)(svg, *at, width - 5, height - 5, pool, block, chosen=block in bold)


def draw_free_list(svg: Svg, x: float, y: float, pool: PoolSnapshot, most: int = 6) -> None:
    """The free list as a stack with its top on top: the block named there is the next one out."""
    top_first = pool.free[::-1]
    svg.text(x, y + 14, f"free list: {counted(len(top_first), 'block')}", size=SMALL, weight="bold")
    for i, block in enumerate(top_first[:most]):
        svg.cell(x, y + 24 + i * 26, 84, 24, "free", block, size=15)
    if top_first:
        svg.line([(x + 132, y + 36), (x + 92, y + 36)], arrow=True)
        svg.text(x + 138, y + 41, "next out", size=SMALL)
    else:
        svg.text(x, y + 42, "empty", color="danger", weight="bold")
    if len(top_first) > most:
        svg.text(x, y + 24 + most * 26 + 16, f"... and {len(top_first) - most} below", size=SMALL, color="muted")


def draw_gauge(svg: Svg, x: float, y: float, width: float, pool: PoolSnapshot, *, cached: int = 0) -> None:
    """Blocks in use of all there are, and the peak: the watermark that never falls. `cached` of them are in nobody's
    use, but kept."""
    unit, in_use = width / max(pool.capacity, 1), pool.in_use - cached
    svg.rect(x, y, width, 18, fill="none", stroke="muted")
    svg.rect(x, y, in_use * unit, 18, fill="muted", stroke="none")
    if cached:
        svg.cell(x + in_use * unit, y, cached * unit, 18, "cached")
    peak = x + pool.peak_in_use * unit
    svg.line([(peak, y - 5), (peak, y + 24)], width=3)
    words = f"in use {in_use} of {pool.capacity} blocks" + (f", {cached} cached" if cached else "")
    svg.text(x, y + 42, words, size=15, weight="bold")
    anchor = "end" if peak > x + width / 2 else "start"
    peak = max(peak, x + text_width(words, 15) + 24) if anchor == "start" else peak
    svg.text(peak, y + 42, f"peak {pool.peak_in_use}", size=15, anchor=anchor)


def draw_legend(svg: Svg, x: float, y: float, *pools: PoolSnapshot, changed: bool = False) -> float:
    """Whoever appears in one of these pools, and what the other looks mean; returns where it ends, px from the top."""
    indices = sorted({i for pool in pools for i, held in enumerate(pool.held) if held})
    entries: list[tuple[SequenceStyle | str, str]] = [
        (sequence_style(i), f"sequence {letter(i)}" if len(indices) < 5 else letter(i)) for i in indices
    ]
    if any(pool.any_held_elsewhere for pool in pools):
        entries.append(("empty", "held elsewhere"))
    entries.append(("free", "free"))
    start, x = x, svg.legend(x, y, entries)
    notes = []
    if any(max(pool.ref_counts, default=0) > 1 for pool in pools):
        notes.append("split cell: shared")
    if any(pool.any_overlisted for pool in pools):
        notes.append("red edge: listed by more than it has references")
    if changed:
        notes.append("bold edge: changed here")
    words = "; ".join(notes)
    if x + text_width(words, SMALL) > svg.width:
        x, y = start, y + 22
    svg.text(x, y + 14, words, size=SMALL, color="muted")
    return y + 18


def draw_block(svg: Svg, x, y, width, height, pool: PoolSnapshot, block: int, *, chosen: bool) -> None:
    """One block in the look of its holders, side by side if they are several, in a box of these px; bold if `chosen`,
    red if more list it than have a reference."""
    holders, references = pool.holders(block), pool.ref_counts[block]
    roomy = width >= 34
    size = 15 if roomy else min(13.0, width * 0.6)
    if not holders:
        label = block if width >= 24 else ""
        svg.cell(x, y, width, height, "empty" if references else "free", label, chosen=chosen, size=size)
        return
    part = width / len(holders)  # a shared block is shared by its holders in the picture too
    for i, holder in enumerate(holders):
        style = sequence_style(holder)
        words = f"{style.letter} {block}" if width >= 44 and len(holders) == 1 else style.letter if part >= 12 else ""
        svg.cell(x + i * part, y, part, height, style, words, size=min(size, 15 if len(holders) == 1 else 12))
    if chosen or pool.overlisted(block):
        svg.rect(x, y, width, height, stroke="danger" if pool.overlisted(block) else "ink", stroke_width=4)
    if width >= 56 and (references > 1 or len(holders) > 1):
        svg.rect(x + width - 24, y - 4, 26, 16, fill="paper", radius=8)
        svg.text(x + width - 11, y + 8, f"×{references}", size=12, anchor="middle", weight="bold")
        svg.text(x + 3, y + height - 3, block, size=11, color="#000000", halo="#FFFFFF")


def _draw_runs(
    svg: Svg, x: float, y: float, pool: PoolSnapshot, bold: Collection[int], cached: Collection[int]
) -> None:  # fmt: skip
    """Neighbours in a row that look alike as one box: thousands of blocks at the price of hundreds."""
    columns, pitch, _ = _grid(pool)
    rows = -(-pool.capacity // columns)

    def look(block: int) -> tuple[list[int], bool, bool]:
        kept = [-2] if block in cached else [-1] if pool.ref_counts[block] else []
        return pool.holders(block) or kept, pool.overlisted(block), block in bold

    marked = []
    for row in range(rows):
        first, top = row * columns, y + row * pitch
        boxes: dict[int, list[tuple[float, float, float, float]]] = {}  # by sequence; -1: held elsewhere; -2: cached
        for (holders, overlisted, chosen), run in groupby(range(first, min(first + columns, pool.capacity)), look):
            blocks = list(run)
            at, width = x + (blocks[0] - first) * pitch, len(blocks) * pitch
            part = pitch / max(len(holders), 1)  # who shares a block shares its height
            for i, holder in enumerate(holders):
                boxes.setdefault(holder, []).append((at, top + i * part, width, part))
            if overlisted or chosen:
                marked.append((at, top, width, "danger" if overlisted else "ink"))
        for holder, its in sorted(boxes.items()):
            if holder < 0:
                svg.boxes(its, fill="muted" if holder == -1 else CACHED_COLOR)
            else:
                style = sequence_style(holder)
                svg.boxes(its, fill=style.color, pattern=style.pattern, pattern_color=style.on_color)
    for at, top, width, color in marked:
        svg.rect(at, top, width, pitch, stroke=color, stroke_width=2, radius=0)
    svg.rect(x, y, columns * pitch, rows * pitch, stroke="muted", radius=0)
    svg.text(x, y + rows * pitch + 16, f"a row is {columns} blocks", size=SMALL, color="muted")


def _grid(pool: PoolSnapshot) -> tuple[int, float, float]:
    """Columns, and the pitch of a cell in px."""
    if pool.capacity > _LARGE:
        return 100, 6, 6
    columns = 8 if pool.capacity <= 40 else 16 if pool.capacity <= 128 else 40
    width = _GRID_WIDTH / columns
    return columns, width, max(18.0, min(48.0, width))


def _stack_height(pool: PoolSnapshot) -> float:
    return 24 + 26 * min(len(pool.free), 6) + (22 if len(pool.free) > 6 else 0)
