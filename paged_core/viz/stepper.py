"""A decode, lane by lane, as the simulator saw it: which load touches what, from which line of the kernel.

`Scene` takes a case and its trace apart; the pictures are pure functions of it, and `film` makes a player of them.
Nothing here knows what the kernel does: it says what the trace says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paged_core.cases import PagedCase
from paged_core.executors.source import files
from paged_core.executors.trace import Trace
from paged_core.viz.layouts import LINE_BYTES
from paged_core.viz.player import Player
from paged_core.viz.style import LINE_COLORS, sequence_style, text_on
from paged_core.viz.svg import SMALL, TITLE_HEIGHT, Svg
from paged_core.viz.words import counted

READ, WRITE = LINE_COLORS[:2]
CONSTANTS = ("sizes", "scalars")  # every lane reads the problem's sizes first; a GPU keeps them in its constant cache
POOLS = {"k_pool": "k", "v_pool": "v"}


class Access(NamedTuple):
    """One load or store instruction of a simdgroup: what its lanes touch side by side."""

    line: str  # of the source, "attention.metal:151"
    buffer: str
    is_write: bool
    itemsize: int  # bytes
    lanes: NDArray[np.int64]  # those that take part, ascending
    elements: NDArray[np.int64]  # of the buffer, one for each of these lanes

    @property
    def cache_lines(self) -> NDArray[np.int64]:
        """Numbers of the lines of 64 bytes that are touched, the buffer beginning on one."""
        return np.unique(self.elements * self.itemsize // LINE_BYTES)


class Place(NamedTuple):
    """Where in the pool: one slot and a run of its dims, for one KV head."""

    block: int
    head: int
    slot: int  # in the block
    first_dim: int
    last_dim: int


class Scene:
    """A traced decode: `case`, and the `trace` of it in the simulator. `sources` are the kernels' texts by file name,
    where they are not the package's own.
    """

    def __init__(self, case: PagedCase, trace: Trace, sources: Mapping[str, str] | None = None) -> None:
        self.case, self.trace, self.sources = case, trace, sources or files()
        self._accesses: dict[tuple[int, int, bool], list[Access]] = {}
        launch = trace.launches[0]
        self.grid, self.num_simdgroups, self.num_lanes = launch.grid, launch.simdgroups, launch.lanes
        self.num_threadgroups = int(np.prod(launch.grid))
        layout, geometry = case.pool.layout, _geometry(case)
        self._places: dict[str, dict[int, tuple[int, int, int, int]]] = {}  # which -> element -> block, head, slot, dim
        everywhere: Any = np.indices(geometry).reshape(4, -1)
        for which in "kv":
            block, head, slot, dim = everywhere
            itemsize = case.q.dtype.size
            at: Any = layout.element_offset(which, geometry, itemsize, block=block, head=head, token=slot, dim=dim)
            self._places[which] = dict(zip(at.tolist(), zip(*everywhere.tolist(), strict=True), strict=True))

    def accesses(self, threadgroup: int = 0, simdgroup: int = 0, *, constants: bool = False) -> list[Access]:
        """What one simdgroup does to memory, instruction by instruction. Reads of `sizes` and `scalars`, a dozen at the
        start, only where asked for.

        The trace has every lane by itself. The n-th time that lanes come to the same line for the same buffer is one
        instruction to all of them.
        """
        key = threadgroup, simdgroup, constants
        if key not in self._accesses:
            self._accesses[key] = self._grouped(*key)
        return self._accesses[key]

    def _grouped(self, threadgroup: int, simdgroup: int, constants: bool) -> list[Access]:
        records, lines = self.trace.records, self.trace.lines
        mine = (records["launch"] == 0) & (records["threadgroup"] == threadgroup) & (records["simdgroup"] == simdgroup)
        if not constants:
            mine &= ~np.isin(records["buffer"], CONSTANTS)
        seen: Counter = Counter()
        found: dict[tuple, list[tuple[int, int]]] = {}
        order: dict[tuple, int] = {}
        in_lane: Counter = Counter()
        for record, line in zip(records[mine].tolist(), lines[mine].tolist(), strict=True):
            _, _, _, lane, _, buffer, element, itemsize, is_write = record
            what = (line, buffer, is_write, itemsize)
            key = (*what, seen[lane, what])
            seen[lane, what] += 1
            found.setdefault(key, []).append((lane, element))
            order.setdefault(key, in_lane[lane])
            in_lane[lane] += 1
        result = []
        for key in sorted(found, key=order.__getitem__):
            (line, buffer, is_write, itemsize), (lanes, elements) = key[:4], np.array(sorted(found[key])).T
            result.append(Access(line, buffer, is_write, itemsize, lanes, elements))
        return result

    def sequence(self, threadgroup: int) -> int:
        """The sequence that a threadgroup of a decode works on: its z in the grid."""
        return threadgroup // (self.grid[0] * self.grid[1])

    def places(self, access: Access) -> list[Place]:
        """Where in the pool an access to `k_pool` or `v_pool` goes, each slot once, in the lanes' order."""
        dims: dict[tuple[int, int, int], list[int]] = {}
        for element in access.elements.tolist():
            block, head, slot, dim = self._places[POOLS[access.buffer]][element]
            dims.setdefault((block, head, slot), []).append(dim)
        return [Place(*where, min(run), max(run)) for where, run in dims.items()]

    def owner(self, block: int, slot: int) -> tuple[int, int] | None:
        """(sequence, token) of a slot that holds a token; None for one that holds NaN."""
        size = self.case.pool.block_size
        for number, seq in enumerate(self.case.seqs):
            if block in seq.blocks and (token := seq.blocks.index(block) * size + slot) < seq.len:
                return number, token
        return None

    def sentence(self, access: Access, threadgroup: int) -> str:
        """What an access is, in words."""
        first = int(access.elements[0])
        dims, heads = self.case.q.shape[2], self.case.q.shape[1]
        if access.buffer in POOLS:
            (place, *more) = self.places(access)
            owner = self.owner(place.block, place.slot)
            token = "a slot that holds no token" if owner is None else f"token {owner[1]}"
            name = "K" if access.buffer == "k_pool" else "V"
            words = f"{name} of {token} (block {place.block}, slot {place.slot}), KV head {place.head}, "
            return words + f"dims {place.first_dim} to {place.last_dim}" + (" and others" if more else "")
        run = f"dims {first % dims} to {int(access.elements[-1]) % dims}"
        match access.buffer:
            case "q":
                return f"query head {first // dims % heads}, {run}: kept in registers from here on"
            case "context_lens":
                return "how many tokens the sequence has: the same element for every lane"
            case "block_tables":
                seq, entry = divmod(first, self.case.block_tables.shape[1])
                blocks, size = self.case.seqs[seq].blocks, self.case.pool.block_size
                block = f"block {blocks[entry]}" if entry < len(blocks) else "past the end of the sequence"
                tokens = f"tokens {entry * size} to {(entry + 1) * size - 1}"
                return f"entry {entry} of the block table: {tokens} lie in {block}"
            case "top" | "total":
                per_simdgroup = next(b.size for b in self.trace.buffers if b.name == "top") // self.num_simdgroups
                simdgroup, head = divmod(first, per_simdgroup)
                what = "the largest logit" if access.buffer == "top" else "the sum of weights"
                return f"{what} of head {head}, in simdgroup {simdgroup}'s row of threadgroup memory"
            case "acc":
                return f"weighted values of head {first // dims}, {run}, in threadgroup memory"
            case "out":
                return f"the output of head {first // dims % heads}, {run}"
        return f"{access.buffer}[{first}]"


def film(scene: Scene, *, threadgroup: int = 0, simdgroup: int = 0, start: int = 0, title: str) -> Player:
    """Every access of a simdgroup, one after the other; it begins with number `start`."""
    frames = []
    for step in range(len(scene.accesses(threadgroup, simdgroup))):
        picture = step_picture(scene, step, threadgroup=threadgroup, simdgroup=simdgroup, words=False)
        frames.append((picture.alt, picture))
    return Player(frames, title=title, start=start)


def step_picture(scene: Scene, step: int, *, threadgroup: int = 0, simdgroup: int = 0, words: bool = True) -> Svg:
    """Access number `step` of a simdgroup: the kernel's line, what it is in `words`, the lanes and the cache lines they
    touch, and the pages, where the slots loaded so far are filled and the one of this step is outlined.
    """
    steps = scene.accesses(threadgroup, simdgroup)
    if not 0 <= step < len(steps):
        raise ValueError(f"step: expected 0 to {len(steps) - 1}, got {step}")
    access = steps[step]
    verb = "writes" if access.is_write else "reads"
    title = f"Simdgroup {simdgroup}, access {step + 1} of {len(steps)}: {verb} {access.buffer}"
    does = verb if access.lanes[0] == access.lanes[-1] else verb[:-1]
    said = f"{_lanes(access.lanes)} {does} {scene.sentence(access, threadgroup)}"
    picture = Svg(1010, 590 if words else 540, title=title, alt=f"{said}; {_lines_used(access)}.")
    _draw_source(picture, scene.sources, access.line, 14, TITLE_HEIGHT)
    y = TITLE_HEIGHT + 132
    if words:
        picture.text(14, y + 10, said, weight="bold")
        picture.text(14, y + 34, _lines_used(access), color="muted")
        y += 50
    _draw_lanes(picture, access, scene.num_lanes, 14, y)
    _draw_pages(picture, scene, steps[: step + 1], 14, y + 212)
    return picture


def _draw_source(picture: Svg, sources: Mapping[str, str], line: str, x: float, y: float) -> None:
    """The line, two before it and two after."""
    if not line:
        picture.text(x, y + 60, "(the compiler moved this access, and no longer knows the line)", color="muted")
        return
    file, _, number = line.rpartition(":")
    texts, here = sources[file].splitlines(), int(number)
    for row, at in enumerate(range(here - 2, here + 3)):
        top = y + row * 22
        if at == here:
            picture.rect(x - 4, top, picture.width - 2 * x + 8, 22, fill="faint", stroke="ink")
        text = texts[at - 1] if 0 < at <= len(texts) else ""
        indent = len(text) - len(text.lstrip())
        picture.text(x + 40, top + 16, at, size=SMALL, color="muted", anchor="end", mono=True)
        color, weight = ("ink", "bold") if at == here else ("muted", "normal")
        picture.text(x + 52 + indent * 7.8, top + 16, text.strip(), size=SMALL, color=color, weight=weight, mono=True)


def _draw_lanes(picture: Svg, access: Access, num_lanes: int, x: float, y: float) -> None:
    """Lanes above, the touched cache lines side by side below, and a stroke from each lane to its element."""
    left, width, height = x + 96, 27, 28
    color = WRITE if access.is_write else READ
    picture.text(left - 12, y + 19, "lane", anchor="end")
    taking_part = set(access.lanes.tolist())
    for lane in range(num_lanes):
        at = left + lane * width
        active = lane in taking_part
        picture.rect(at, y, width - 3, height, fill=color if active else "none", stroke="ink" if active else "muted",
                     dashed=not active)  # fmt: skip
        ink = text_on(color) if active else "muted"
        picture.text(at + (width - 3) / 2, y + 19, lane, size=SMALL, anchor="middle", color=ink)
    lines = access.cache_lines
    per_line = LINE_BYTES // access.itemsize
    below, total = y + 112, num_lanes * width
    gap = 8 if lines.size <= 8 else 2
    each = min(per_line * width, (total - (lines.size - 1) * gap) / lines.size)
    start = left + (total - lines.size * each - (lines.size - 1) * gap) / 2
    touched = set(access.elements.tolist())
    for i, line in enumerate(lines.tolist()):
        at = start + i * (each + gap)
        picture.rect(at, below, each, height, fill="faint", stroke="ink", radius=0)
        for cell in range(per_line):
            if line * per_line + cell in touched:
                picture.rect(at + cell * each / per_line, below, each / per_line, height, fill=color, radius=0,
                             stroke="paper" if lines.size <= 2 else "none")  # fmt: skip
        if lines.size <= 4:
            first = line * per_line
            words = f"{access.buffer}[{first} .. {first + per_line - 1}]"
            picture.text(
                at + each / 2, below + height + 18, words, size=SMALL, anchor="middle", color="muted", mono=True
            )
    picture.text(left - 12, below + 19, "memory", anchor="end")
    strokes = []
    place = {line: start + i * (each + gap) for i, line in enumerate(lines.tolist())}
    for lane, element in zip(access.lanes.tolist(), access.elements.tolist(), strict=True):
        line, cell = divmod(element, per_line)
        ends = [
            (left + lane * width + (width - 3) / 2, y + height),
            (place[line] + (cell + 0.5) * each / per_line, below),
        ]
        strokes.append(ends)
    picture.strokes(strokes, color=color, width=1.4)


def _draw_pages(picture: Svg, scene: Scene, steps: Sequence[Access], x: float, y: float) -> None:
    """Every slot of the pool, K above and V below, in physical order."""
    num_blocks, _, block_size, _ = _geometry(scene.case)
    left, gap = x + 96, 12
    width = min(34.0, (picture.width - left - 14 - (num_blocks - 1) * gap) / (num_blocks * block_size))
    for row, (buffer, name) in enumerate((("k_pool", "K"), ("v_pool", "V"))):
        done: set[tuple[int, int]] = set()
        now: set[tuple[int, int]] = set()
        for i, access in enumerate(steps):
            if access.buffer == buffer:
                slots = {(place.block, place.slot) for place in scene.places(access)}
                done |= slots
                now = slots if i == len(steps) - 1 else set()
        top = y + row * 46
        picture.text(left - 12, top + 24, f"{name} in pages", anchor="end")
        for block in range(num_blocks):
            for slot in range(block_size):
                at = left + block * (block_size * width + gap) + slot * width
                owner = scene.owner(block, slot)
                if owner is None:
                    picture.cell(at, top, width, 34, "nan", "", chosen=(block, slot) in now)
                    continue
                look = sequence_style(owner[0]) if (block, slot) in done else "empty"
                picture.cell(at, top, width, 34, look, owner[1], size=min(14, width * 0.8))
                if (block, slot) in now:
                    picture.rect(at + 1, top + 1, width - 2, 32, stroke="ink", stroke_width=5)
            if row == 1:
                middle = left + block * (block_size * width + gap) + block_size * width / 2
                picture.text(middle, top + 54, f"block {block}", size=SMALL, anchor="middle", color="muted")
    top = y + 118
    entries: list[tuple[Any, str]] = [
        (sequence_style(0), "loaded by this simdgroup so far"),
        ("empty", "not (yet)"),
        ("nan", "NaN: no token here"),
    ]
    picture.legend(left, top, entries)


def work_map(scene: Scene, *, threadgroup: int = 0, title: str) -> Svg:
    """Which simdgroup loads the K of which token, and how often: every load of every lane of a threadgroup."""
    seq = scene.sequence(threadgroup)
    context, size = scene.case.seqs[seq].len, scene.case.pool.block_size
    width, height, left, top = min(48.0, 780 / context), 34, 150, TITLE_HEIGHT + 54
    look = sequence_style(seq)
    picture = Svg(left + context * width + 200, top + scene.num_simdgroups * height + 24, title=title, alt="")
    for token in range(0, context, 1 if context <= 32 else 8 if context <= 128 else 16):
        picture.text(left + (token + 0.5) * width, top - 10, token, size=SMALL, anchor="middle", color="muted")
    for page, block in enumerate(scene.case.seqs[seq].blocks):
        begin, end = page * size, min((page + 1) * size, context)
        picture.line([(left + begin * width + 3, top - 28), (left + end * width - 3, top - 28)], color="muted")
        words = f"block {block}" if (end - begin) * width > 60 else block
        picture.text(left + (begin + end) / 2 * width, top - 35, words, size=SMALL, anchor="middle", color="muted")
    picture.text(left - 14, top - 10, "token", size=SMALL, anchor="end", color="muted")
    facts = []
    for simdgroup in range(scene.num_simdgroups):
        y = top + simdgroup * height
        loads = key_loads(scene, threadgroup, simdgroup)
        picture.text(left - 14, y + 22, f"simdgroup {simdgroup}", anchor="end")
        picture.rect(left, y + 2, context * width, height - 4, fill="none", stroke="muted", dashed=True, radius=0)
        for first, last, times in _runs(loads, one_by_one=width >= 24):
            words = "" if width < 24 else "K" if times == 1 else f"K ×{times}"
            picture.cell(left + first * width, y + 2, (last - first + 1) * width, height - 4, look, words, size=14)
        words = f"{len(loads)} keys" if loads else "nothing to do"
        picture.text(left + context * width + 14, y + 22, words, color="ink" if loads else "muted")
        stretches = ", ".join(f"{first} to {last}" for first, last, _ in _runs(loads)) or "none"
        facts.append(f"simdgroup {simdgroup}: {stretches}")
    picture.alt = f"Tokens whose K each simdgroup loads. {'; '.join(facts)}."
    return picture


def _runs(loads: Mapping[int, int], *, one_by_one: bool = False) -> list[tuple[int, int, int]]:
    """(first token, last token, times) of neighbours that are loaded equally often."""
    runs: list[tuple[int, int, int]] = []
    for token, times in sorted(loads.items()):
        if runs and not one_by_one and runs[-1][1:] == (token - 1, times):
            runs[-1] = (runs[-1][0], token, times)
        else:
            runs.append((token, token, times))
    return runs


def turns(scene: Scene, buffer: str, *, threadgroup: int = 0, title: str) -> Svg:
    """When each simdgroup is at a buffer of threadgroup memory: time from left to right, a box for every uninterrupted
    stay of one simdgroup. What barriers keep apart stands in a staircase.
    """
    records = scene.trace.records
    mine = records[(records["launch"] == 0) & (records["threadgroup"] == threadgroup) & (records["buffer"] == buffer)]
    who, writes = mine["simdgroup"].tolist(), mine["is_write"].tolist()
    stays: list[tuple[int, int, int]] = []  # simdgroup, loads, stores
    for simdgroup, is_write in zip(who, writes, strict=True):
        if not stays or stays[-1][0] != simdgroup:
            stays.append((simdgroup, 0, 0))
        _, loads, stores = stays[-1]
        stays[-1] = (simdgroup, loads + (not is_write), stores + is_write)
    width, height, left, top = min(96.0, 840 / len(stays)), 40, 130, TITLE_HEIGHT + 20
    facts = "; ".join(f"simdgroup {g}: {loads} loads, {stores} stores" for g, loads, stores in stays)
    bottom = top + scene.num_simdgroups * height
    picture = Svg(left + len(stays) * width + 20, bottom + 64, title=title, alt=f"In this order: {facts}.")
    for simdgroup in range(scene.num_simdgroups):
        y = top + simdgroup * height
        picture.text(left - 14, y + 25, f"simdgroup {simdgroup}", anchor="end")
        picture.line([(left, y + height), (picture.width - 20, y + height)], color="faint")
    for turn, (simdgroup, loads, stores) in enumerate(stays):
        x, y = left + turn * width, top + simdgroup * height
        for row, (count, color) in enumerate(((loads, READ), (stores, WRITE))):
            if count:
                picture.rect(x + 2, y + 3 + 17 * row, width - 4, 16, fill=color, radius=2)
                picture.text(x + width / 2, y + 15.5 + 17 * row, count, size=SMALL, anchor="middle",
                             color=text_on(color))  # fmt: skip
    picture.line([(left, bottom + 14), (left + 160, bottom + 14)], color="muted", arrow=True)
    picture.text(left + 172, bottom + 19, "time", size=SMALL, color="muted")
    x = left + 240
    for color, words in ((READ, f"loads of {buffer}"), (WRITE, f"stores to {buffer}")):
        picture.rect(x, bottom + 6, 24, 16, fill=color, radius=2)
        picture.text(x + 32, bottom + 19, words, size=SMALL)
        x += 170
    return picture


class Loads(NamedTuple):
    """How a buffer was used in a trace, every threadgroup, simdgroup and lane taken together."""

    loads: int
    stores: int
    distinct: int  # elements touched
    lines: int  # cache lines asked for, instruction by instruction


def loads_by_buffer(scene: Scene) -> dict[str, Loads]:
    """The whole first launch, buffer by buffer, in the order of the kernel's arguments."""
    records, result = scene.trace.records, {}
    lines: Counter = Counter()
    for threadgroup in range(scene.num_threadgroups):
        for simdgroup in range(scene.num_simdgroups):
            for access in scene.accesses(threadgroup, simdgroup, constants=True):
                lines[access.buffer] += access.cache_lines.size
    for buffer in scene.trace.buffers:
        mine = records[(records["launch"] == 0) & (records["buffer"] == buffer.name)]
        stores = int(mine["is_write"].sum())
        if mine.size:
            distinct = np.unique(mine["index"]).size
            result[buffer.name] = Loads(mine.size - stores, stores, distinct, lines[buffer.name])
    return result


def key_loads(scene: Scene, threadgroup: int = 0, simdgroup: int = 0) -> dict[int, int]:
    """How often a simdgroup loads the whole K of each token: {token: times}."""
    counts: Counter = Counter()
    for access in scene.accesses(threadgroup, simdgroup):
        if access.buffer == "k_pool":
            for element in access.elements.tolist():
                block, _, slot, _ = scene._places["k"][element]
                owner = scene.owner(block, slot)
                counts[None if owner is None else owner[1]] += 1
    return {token: times // scene.case.q.shape[2] for token, times in counts.items()}


def listing(scene: Scene, first: str, last: str, file: str = "attention.metal") -> str:
    """A passage of the kernel, from the line that contains `first` to the next that contains `last`, and how many loads
    and stores each line made in the trace.
    """
    texts, trace = scene.sources[file].splitlines(), scene.trace
    begin = next((i for i, text in enumerate(texts) if first in text), None)
    end = next((i for i, text in enumerate(texts) if begin is not None and i > begin and last in text), None)
    if begin is None or end is None:
        raise ValueError(f"{file} has no passage from {first!r} to {last!r}")
    indent = min(len(text) - len(text.lstrip()) for text in texts[begin : end + 1] if text.strip())
    lines, writes = trace.lines, trace.records["is_write"]
    loads, stores = Counter(lines[~writes].tolist()), Counter(lines[writes].tolist())
    rows = ["  loads  stores"]
    for number in range(begin + 1, end + 2):
        here = f"{file}:{number}"
        counts = f"{loads[here] or '':>7} {stores[here] or '':>7}"
        rows.append(f"{counts} {number:>4}  {texts[number - 1][indent:]}".rstrip())
    return "\n".join(rows)


def _geometry(case: PagedCase):
    pool = case.pool
    return pool.layout.geometry(pool.k(0).shape, pool.v(0).shape, case.q.dtype.size)


def _lanes(lanes: NDArray[np.int64]) -> str:
    first, last = int(lanes[0]), int(lanes[-1])
    return f"Lane {first}" if first == last else f"Lanes {first} to {last}"


def _lines_used(access: Access) -> str:
    lines, used = access.cache_lines.size, np.unique(access.elements).size * access.itemsize
    count = f"{counted(lines, 'cache line')} of {LINE_BYTES} bytes"
    if np.unique(access.elements).size == 1 and access.lanes.size > 1:
        return f"{count}: one element, for all lanes at once"
    return (
        f"{count}, used whole" if used == lines * LINE_BYTES else f"{count}, {used} bytes of {lines * LINE_BYTES} used"
    )
