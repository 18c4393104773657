"""A block table as a lens, for one token: position -> logical block -> block -> slot -> byte in each layout."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np

from paged_core.layouts import PoolLayout
from paged_core.pool import PagedPool
from paged_core.sequence import PagedSeqState
from paged_core.viz.blocks import WIDTH, PoolSnapshot, draw_block, draw_gauge, draw_legend
from paged_core.viz.player import Player
from paged_core.viz.style import letter, sequence_style
from paged_core.viz.svg import SMALL, TITLE_HEIGHT, Svg

LENS_HEIGHT = 540  # px
_LEFT = 196  # px: where the rows begin, right of their names
_RIGHT = WIDTH - 12
_CELL = 34  # px: the height of a cell


class TokenAddress(NamedTuple):
    """Where one token of a sequence lies, step by step."""

    position: int  # in the sequence
    logical_block: int  # position // block_size
    offset: int  # position % block_size
    block: int  # blocks[logical_block], the physical block
    slot: int  # block * block_size + offset
    element: int  # from the start of the layer's array to this head's vector, dim 0
    byte: int  # element * itemsize


def locate(
    seq: PagedSeqState, pool: PagedPool, token: int, *, head: int = 0, which: str = "k",
    layout: PoolLayout | None = None,
) -> TokenAddress:  # fmt: skip
    """Follow the token at position `token` to its byte in this layer's K ("k") or V ("v") array, as the pool lies or
    as it would lie in `layout`.

    ValueError when the sequence holds no such token or the pool has no such head, or their block sizes differ.
    """
    if not 0 <= token < seq.len:
        raise ValueError(f"token: expected a position from 0 to {seq.len - 1}, got {token}")
    if not 0 <= head < pool.num_kv_heads:
        raise ValueError(f"head: expected a KV head from 0 to {pool.num_kv_heads - 1}, got {head}")
    if seq.block_size != pool.block_size:
        raise ValueError(f"seq: expected the pool's block_size {pool.block_size}, got {seq.block_size}")
    logical_block, offset = divmod(token, seq.block_size)
    block, itemsize = seq.blocks[logical_block], pool.dtype.size
    element = (layout or pool.layout).element_offset(
        which, pool.geometry, itemsize, block=block, head=head, token=offset, dim=0
    )  # fmt: skip
    slot = block * seq.block_size + offset
    return TokenAddress(token, logical_block, offset, block, slot, element, element * itemsize)


def table_lens(
    state: PoolSnapshot, seqs: Sequence[PagedSeqState], index: int, pool: PagedPool, token: int, *,
    head: int = 0, which: str = "k", title: str | None = None, note: str = "", alarm: bool = False,
) -> Svg:  # fmt: skip
    """Follow one token of sequence number `index` from its position to its byte. `state` is the snapshot of the pool
    that `seqs` live in, `note` a sentence or two below the title, red for an `alarm`. A sequence without tokens has
    nothing to follow, and the picture says so.
    """
    seq, name = seqs[index], letter(index)
    address = locate(seq, pool, token, head=head, which=which) if seq.len else None
    if address:
        title = title or f"Where is token {token} of sequence {name}?"
        alt = (
            f"Position {address.position} is offset {address.offset} of logical block {address.logical_block}; entry "
            f"{address.logical_block} of the block table names physical block {address.block}; that is slot "
            f"{address.slot}, and byte {address.byte:,} of the layer's {which.upper()} array (KV head {head}). "
        )
        others = (layout for layout in PoolLayout if layout is not pool.layout)
        bytes_ = (f"{x.name} {locate(seq, pool, token, head=head, which=which, layout=x).byte:,}" for x in others)
        alt += f"In other layouts: {', '.join(bytes_)}. "
        told = _device(seq)[address.logical_block]
        alt += (f"The device's entry says {told} instead. " if told != address.block else "") + str(state)
    else:
        title = title or f"Sequence {name} holds no token"
        alt = f"There is nothing to follow. {state}"
    top = TITLE_HEIGHT + 44 * bool(note)
    svg = Svg(WIDTH, top + LENS_HEIGHT + 112, title=title, alt=f"{note} {alt}".strip())
    for i, line in enumerate(wrap(note, 98)):
        svg.text(12, TITLE_HEIGHT + 8 + 20 * i, line, size=15, color="danger" if alarm else "ink")
    _draw_lens(svg, top, state, seq, index, pool, address, head, which)
    y = top + LENS_HEIGHT
    svg.text(12, y + 15, "pool, blocks", size=15, weight="bold")
    draw_gauge(svg, _LEFT, y, _RIGHT - _LEFT, state)
    next_out = " ".join(str(block) for block in state.free[:-11:-1]) + (" ..." if len(state.free) > 10 else "")
    svg.text(12, y + 68, "free list", size=15, weight="bold")
    svg.text(
        _LEFT,
        y + 68,
        f"next out first: {next_out}" if state.free else "empty",
        size=15,
        color="ink" if state.free else "danger",
    )
    svg.height = draw_legend(svg, 12, y + 84, state) + 10
    return svg


def film(
    state: PoolSnapshot, seqs: Sequence[PagedSeqState], index: int, pool: PagedPool, *, title: str, start: int = 0,
    tokens: Sequence[int] | None = None, **lens: Any,
) -> Player:  # fmt: skip
    """The lens on one token after the other: all of the sequence, or `tokens`; it begins with the token `start`. `lens`
    is `table_lens`'s head and which."""
    tokens = range(seqs[index].len) if tokens is None else tokens
    frames = []
    for token in tokens:
        at = locate(seqs[index], pool, token, **lens)
        caption = (
            f"Token {token} is offset {at.offset} of logical block {at.logical_block}; the table says block "
            f"{at.block}: slot {at.slot}, and, as this pool lies, byte {at.byte:,}."
        )
        frames.append((caption, table_lens(state, seqs, index, pool, token, **lens)))
    return Player(frames, title=title, start=list(tokens).index(start))


def mirrors(
    seqs: Sequence[PagedSeqState], *, title: str = "Block tables: the host's truth and the device's copy"
) -> Svg:
    """For each sequence its `blocks` and `len`, and below them what the device mirrors hold; a difference is red."""
    longest = max((seq.max_blocks_per_seq for seq in seqs), default=1)
    most = longest if longest <= 24 else 10  # of a long table the entries where something happens
    width = min(56.0, (_RIGHT - _LEFT - (130 if longest <= 24 else 192)) / most)
    height = 96
    stale = [letter(i) for i, seq in enumerate(seqs) if not _in_step(seq)]
    rows = [
        f"{letter(i)}: host {_some(seq.blocks)}, len {seq.len}; device {_some(_device(seq))}, "
        f"context_lens {seq.context_lens.item()}."
        for i, seq in enumerate(seqs)
    ]
    alt = " ".join(rows) + (f" Out of step: {', '.join(stale)}." if stale else " All in step.")
    svg = Svg(WIDTH, TITLE_HEIGHT + 20 + height * len(seqs) + 10, title=title, alt=alt)
    lens_x = _LEFT + most * width + 24 + 26 * (longest > most)
    svg.text(_LEFT - 12, TITLE_HEIGHT + 17, "entry", size=12, color="muted", anchor="end")
    svg.text(lens_x, TITLE_HEIGHT + 17, "tokens", size=12, color="muted")
    for i, seq in enumerate(seqs):
        y = TITLE_HEIGHT + 20 + i * height
        svg.cell(12, y + 2, 34, _CELL, sequence_style(i), letter(i))
        svg.text(_LEFT - 12, y + 24, "host", size=15, weight="bold", anchor="end")
        svg.text(_LEFT - 12, y + 24 + 40, "device", size=15, weight="bold", anchor="end")
        entries = _window(seq.max_blocks_per_seq, most, _of_interest(seq))
        _draw_table(svg, _LEFT, y + 2, seq, i, entries, width, None)
        _ellipsis(svg, _LEFT + most * width, y + 2, len(entries) < seq.max_blocks_per_seq)
        svg.text(lens_x, y + 24, f"len {seq.len}", size=15)
        in_step = seq.context_lens.item() == seq.len
        words = f"context_lens {seq.context_lens.item()}"
        svg.text(
            lens_x, y + 64, words, size=15, color="ink" if in_step else "danger", weight="normal" if in_step else "bold"
        )
    return svg


def _draw_lens(svg: Svg, top: float, state: PoolSnapshot, seq, index, pool, address: TokenAddress | None, head, which):
    """Four rows, and an arrow from each to the next."""
    rows = [top + 24, top + 110, top + 240, top + 328]
    names = ["positions", "block table", "pool", f"slots of block {address.block}" if address else "slots"]
    for i, (y, name) in enumerate(zip(rows, names, strict=True), 1):
        svg.text(12, y + 23, f"{i}  {name}", size=15 if len(name) < 17 else 13, weight="bold")
    token_x = _draw_positions(svg, rows[0], seq, index, address)
    entry_x = _draw_entries(svg, rows[1], seq, index, address)
    block_x = _draw_blocks(svg, rows[2], state, address)
    if address is None:
        svg.text(_LEFT, rows[0] + 23, "no token", size=15, color="muted")
        svg.text(_LEFT, rows[3] + 23, "nothing to follow: grow the sequence first", size=15, color="muted")
        return
    slot_x = _draw_slots(svg, rows[3], seq, index, address)
    _connect(svg, (token_x[address.position], rows[0] + _CELL), (entry_x[address.logical_block], rows[1]))
    below_table = (entry_x[address.logical_block], rows[1] + _CELL + 38)
    _connect(svg, below_table, (block_x[address.block], rows[2]))
    _connect(svg, (block_x[address.block], rows[2] + _CELL + 18), (slot_x[address.slot], rows[3]))
    told = _device(seq)[address.logical_block]
    if told != address.block and told in block_x:  # what the device would read instead
        svg.rect(block_x[told] - 18, rows[2], 36, _CELL, stroke="danger", stroke_width=4)
        x, y = below_table[0] - 12, rows[2] - 28
        path = [(x, below_table[1]), (x, y), (block_x[told], y), (block_x[told], rows[2] - 2)]
        svg.line(path, color="danger", width=2.5, dashed=True, arrow=True)
    _draw_sums(svg, rows[3] + _CELL, seq.block_size, address)
    _draw_addresses(svg, rows[3] + _CELL + 66, seq, pool, address, head, which)


def _draw_positions(svg: Svg, y: float, seq, index: int, address: TokenAddress | None) -> dict[int, float]:
    """The tokens of the sequence, block by block; returns the middle of each cell, px."""
    at, block_size = address or TokenAddress(0, 0, 0, 0, 0, 0, 0), seq.block_size
    fits = max(24, 10 + 8 * len(str(seq.len)))  # px: what a number of that many digits needs
    most = (_RIGHT - _LEFT - 80) // fits
    blocks = _window(len(seq.blocks), max(1, most // block_size), at.logical_block)
    offsets = _window(block_size, most, at.offset)
    spare = (_RIGHT - _LEFT - 56 - 8 * len(blocks)) / max(1, len(blocks) * len(offsets))
    width = min(max(30, fits), spare)
    middles = {}
    x = _ellipsis(svg, _LEFT, y, blocks.start > 0 or offsets.start > 0)
    for logical in blocks:
        name = f"logical block {logical}" if len(offsets) * width > 100 else logical
        svg.text(x, y - 6, name, size=12, color="muted")
        for position in (logical * block_size + offset for offset in offsets):
            look = sequence_style(index) if position < seq.len else "free"
            here = address is not None and position == at.position
            svg.cell(x, y, width - 2, _CELL, look, position, size=13, chosen=here)
            middles[position] = x + width / 2 - 1
            x += width
        x += 8
    _ellipsis(svg, x, y, blocks.stop < len(seq.blocks) or offsets.stop < block_size)
    return middles


def _draw_entries(svg: Svg, y: float, seq, index: int, address: TokenAddress | None) -> dict[int, float]:
    """The block table, on the host and on the device; returns the middle of each entry, px."""
    svg.text(_LEFT - 12, y + 23, "host", size=SMALL, anchor="end")
    svg.text(_LEFT - 12, y + 61, "device", size=SMALL, anchor="end")
    chosen = address.logical_block if address else None
    entries = _window(seq.max_blocks_per_seq, 11, chosen or 0)
    x = _ellipsis(svg, _LEFT, y, entries.start > 0)
    middles = _draw_table(svg, x, y, seq, index, entries, 56, chosen)
    _ellipsis(svg, x + len(entries) * 56, y, entries.stop < seq.max_blocks_per_seq)
    return middles


def _draw_blocks(svg: Svg, y: float, state: PoolSnapshot, address: TokenAddress | None) -> dict[int, float]:
    """The pool by block id, with everybody's blocks; returns the middle of each, px."""
    blocks = _window(state.capacity, 16, address.block if address else 0)
    middles = {}
    x = _ellipsis(svg, _LEFT, y, blocks.start > 0)
    for block in blocks:
        draw_block(svg, x, y, 36, _CELL, state, block, chosen=address is not None and block == address.block)
        svg.text(x + 18, y + _CELL + 15, block, size=12, color="muted", anchor="middle")
        middles[block] = x + 18
        x += 40
    _ellipsis(svg, x, y, blocks.stop < state.capacity)
    return middles


def _draw_slots(svg: Svg, y: float, seq, index: int, at: TokenAddress) -> dict[int, float]:
    """The slots of the physical block; returns the middle of each, px."""
    most = 16 if at.slot < 10_000 else 11
    offsets = _window(seq.block_size, most, at.offset)
    width = min(56.0, (_RIGHT - _LEFT - 56) / len(offsets))
    middles = {}
    x = _ellipsis(svg, _LEFT, y, offsets.start > 0)
    for offset in offsets:
        slot = at.block * seq.block_size + offset
        look = sequence_style(index) if at.logical_block * seq.block_size + offset < seq.len else "free"
        svg.cell(x, y, width - 4, _CELL, look, slot, chosen=slot == at.slot, size=14)
        middles[slot] = x + width / 2 - 2
        x += width
    _ellipsis(svg, x, y, offsets.stop < seq.block_size)
    return middles


def _draw_sums(svg: Svg, y: float, block_size: int, at: TokenAddress) -> None:
    sums = (
        f"{at.position} = {at.logical_block} × {block_size} + {at.offset}",
        f"table[{at.logical_block}] = {at.block}",
        f"slot = {at.block} × {block_size} + {at.offset} = {at.slot}",
    )
    svg.text(12, y + 34, "in figures", size=15, weight="bold")
    x = float(_LEFT)
    for words in sums:
        svg.text(x, y + 34, words, mono=True, size=14)
        x += 8.5 * len(words) + 30


def _draw_addresses(svg: Svg, y: float, seq, pool: PagedPool, at: TokenAddress, head: int, which: str) -> None:
    """A row a layout: where the vector begins, in how many pieces it lies, and a bar of the block with these pieces."""
    itemsize, bar, width = pool.dtype.size, _RIGHT - 150, 150.0
    svg.text(12, y + 14, "5  address", size=15, weight="bold")
    svg.text(12, y + 36, f"{which.upper()} of head {head}", size=SMALL)
    for i, words in enumerate(("bold: as this pool lies", "dashed: K before, V after")):
        svg.text(12, y + 56 + 20 * i, words, size=SMALL, color="muted")
    svg.text(bar, y - 8, f"bytes of block {at.block}", size=12, color="muted")
    for row, layout in enumerate(PoolLayout):
        top, weight = y + 24 * row, "bold" if layout is pool.layout else "normal"
        first = locate(seq, pool, at.position, head=head, which=which, layout=layout)
        elements = layout.element_offset(
            which, pool.geometry, itemsize, block=at.block, head=head, token=at.offset, dim=np.arange(pool.head_dim)
        )
        size = layout.strides(which, pool.geometry, itemsize)["block"]  # elements from one block to the next
        starts = np.flatnonzero(np.diff(elements, prepend=-2) != 1)
        lengths = np.diff(starts, append=elements.size)
        svg.text(_LEFT, top + 14, layout.name, mono=True, size=SMALL, weight=weight)
        words = f"element {first.element:,}, byte {first.byte:,}"
        svg.text(_LEFT + 104, top + 14, words, mono=True, size=SMALL, weight=weight)
        pieces = f"{starts.size} pieces of" if starts.size > 1 else "one piece,"
        words = f"{pieces} {lengths[0] * itemsize} bytes"
        svg.text(bar - 14, top + 14, words, size=SMALL, anchor="end", weight=weight)
        svg.rect(bar, top, width, 18, fill="faint", stroke="muted", radius=0)
        if "kv" in layout.axes(which):  # one array: V is the second half of each block
            svg.line([(bar + width / 2, top), (bar + width / 2, top + 18)], color="muted", dashed=True)
        left = (elements[starts] - at.block * size) / size * width
        marks = np.unique(np.round(left * 2) / 2)  # half a px apart at the least
        for x in marks.tolist():
            svg.rect(bar + x, top, max(1.2, lengths[0] / size * width), 18, fill="ink", stroke="none", radius=0)


def _draw_table(svg: Svg, x: float, y: float, seq, index: int, entries: range, width: float, chosen: int | None):
    """`blocks` in the upper row and the device mirror in the lower; an entry that differs has a red edge.

    Returns the middle of each entry, px.
    """
    device, held, middles = _device(seq), len(seq.blocks), {}
    for entry in entries:
        truth = seq.blocks[entry] if entry < held else ""
        look = sequence_style(index) if entry < held else "free"
        svg.text(x + 2, y - 5, entry, size=12, color="muted")
        svg.cell(x, y, width - 4, _CELL, look, truth, chosen=entry == chosen)
        svg.cell(x, y + 38, width - 4, _CELL, look, device[entry], chosen=entry == chosen)
        if device[entry] != (truth or 0):  # past the end it is padded with 0
            svg.rect(x, y + 38, width - 4, _CELL, stroke="danger", stroke_width=4)
        middles[entry] = x + width / 2 - 2
        x += width
    return middles


def _device(seq: PagedSeqState) -> list[int]:
    return np.asarray(seq.block_table).tolist()


def _in_step(seq: PagedSeqState) -> bool:
    padding = [0] * (seq.max_blocks_per_seq - len(seq.blocks))
    return _device(seq) == seq.blocks + padding and seq.context_lens.item() == seq.len


def _of_interest(seq: PagedSeqState) -> int:
    """The entry to show of a table too long for a picture: the first that is out of step, or else the newest."""
    padded = seq.blocks + [0] * (seq.max_blocks_per_seq - len(seq.blocks))
    differ = (entry for entry, (told, truth) in enumerate(zip(_device(seq), padded, strict=True)) if told != truth)
    return next(differ, len(seq.blocks))


def _some(entries: Sequence[int]) -> str:
    return str(list(entries)) if len(entries) <= 24 else f"[{', '.join(map(str, entries[:10]))}, ...]"


def _window(count: int, most: int, around: int) -> range:
    """At most `most` of `count` things, `around` among them."""
    start = max(0, min(around - most // 2, count - most))
    return range(start, min(count, start + most))


def _ellipsis(svg: Svg, x: float, y: float, more: bool) -> float:
    if more:
        svg.text(x, y + 23, "...", color="muted")
        return x + 26
    return x


def _connect(svg: Svg, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Down, across, down: the way a reader's finger goes."""
    middle = (start[1] + end[1]) / 2 - (8 if end[1] - start[1] > 40 else 2)
    svg.line([start, (start[0], middle), (end[0], middle), (end[0], end[1] - 2)], width=2.5, arrow=True)
