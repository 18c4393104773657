"""What happens to a pool, moment by moment: a recorder to put in an allocator's place, and the film it gives.

pool = Recorder(BlockAllocator(8), seqs)  # `seqs`, whoever holds blocks: sequences, or lists of ids
...                                       # `pool` goes wherever the allocator went
pool.player(title="...")
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

from paged_core.allocator import BlockAllocator
from paged_core.errors import PagedCoreError
from paged_core.prefix import PrefixCache
from paged_core.sequence import PagedSeqState
from paged_core.viz.blocks import (
    WIDTH,
    PoolSnapshot,
    draw_block,
    draw_free_list,
    draw_gauge,
    draw_grid,
    draw_legend,
    grid_height,
    snapshot,
)
from paged_core.viz.player import Player
from paged_core.viz.sharing import CacheSnapshot, cache_snapshot, draw_cache_block, draw_cache_legend, look_of
from paged_core.viz.style import CACHED_COLOR, letter, sequence_style
from paged_core.viz.svg import SMALL, TITLE_HEIGHT, Svg
from paged_core.viz.words import blocks_named, ids

VERBS = ("allocate", "allocate_n", "share", "free", "match", "register", "forget")
_STACK = 4  # how many blocks of the free list are drawn
Holder = PagedSeqState | Sequence[int]


class Moment(NamedTuple):
    """What was done, and the pool after it."""

    words: str
    state: CacheSnapshot  # of a plain allocator: with nothing cached or findable


class Recorder:
    """Stands in for `allocator`, a BlockAllocator or a PrefixCache, and keeps a `Moment` for each thing that is done.

    `holders` are looked at anew each time, so they may be a list that grows, or a dict whose lists are replaced. What
    happens to a sequence, a fork or a copy on write, may be several verbs of the allocator: a moment ends when the next
    verb begins and everything handed out so far is listed by somebody. (Whoever takes blocks and is not among the
    holders keeps the moment open; `say` ends it.) A refusal is a moment too, and is raised as ever.
    """

    def __init__(
        self, allocator: BlockAllocator | PrefixCache, holders: Sequence[Holder] | Mapping[Any, Holder]
    ) -> None:  # fmt: skip
        self.allocator, self.holders = allocator, holders
        state = self._look()
        self.moments = [Moment(f"{_blocks_in_use(state)}: this is the beginning.", state)]
        self._said, self._open = "", False
        self._evicted: list[int] = []  # since the last moment

    @property  # type: ignore[misc]
    def __class__(self):  # a Scheduler asks what it was given
        return type(self.allocator)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "allocator":
            raise AttributeError(name)  # while it is being made or copied
        attribute = getattr(self.allocator, name)
        return self._recorded(attribute) if name in VERBS else attribute

    def say(self, words: str) -> None:
        """The next moment begins here, and its sentence begins with `words`."""
        self._cut()
        self._said = words

    def player(self, *, title: str, start: int = -1) -> Player:
        """The film so far; it begins with moment number `start`, the last one unless told."""
        self._cut()
        pictures = [moment_picture(self.moments, i, title=title) for i in range(len(self.moments))]
        captions = [moment.words for moment in self.moments]
        return Player(
            list(zip(captions, pictures, strict=True)), title=title, start=start % len(captions) if start < 0 else start
        )

    def _recorded(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self._open and not self._in_transit():
                self._cut()
            order, evictions = self._cached()
            try:
                result = verb(*args, **kwargs)
            except PagedCoreError as refusal:
                self._cut()
                words = f"{self._said}: refused" if self._said else "Refused"
                self.moments.append(Moment(f"{words}. {refusal}.", self._look()))
                self._said = ""
                raise
            self._evicted += order[: self._cached()[1] - evictions]
            self._open = True
            return result

        return recorded

    def _cut(self) -> None:
        state, before = self._look(), self.moments[-1].state
        if self._open and state != before:
            changed = what_changed(before, state, self._evicted)
            self.moments.append(Moment(f"{self._said}. {changed}" if self._said else changed, state))
            self._said, self._evicted = "", []
        self._open = False

    def _in_transit(self) -> bool:
        """Whether somebody is in the middle of something: of a block whose references changed, there are more than are
        listed."""
        pool, before = self._look().pool, self.moments[-1].state.pool
        return any(
            now > was and now > len(pool.holders(block))
            for block, (was, now) in enumerate(zip(before.ref_counts, pool.ref_counts, strict=True))
        )

    def _cached(self) -> tuple[tuple[int, ...], int]:
        """The blocks that may be evicted, in that order, and how many ever were."""
        cache = self.allocator
        return (cache.eviction_order, cache.evictions) if isinstance(cache, PrefixCache) else ((), 0)

    def _look(self) -> CacheSnapshot:
        holders = list(self.holders.values() if isinstance(self.holders, Mapping) else self.holders)
        if isinstance(self.allocator, PrefixCache):
            return cache_snapshot(self.allocator, holders)
        return CacheSnapshot(snapshot(self.allocator, holders), frozenset(), ())


def what_changed(before: CacheSnapshot, after: CacheSnapshot, evicted: Collection[int] = ()) -> str:
    """In words, from the two states: who took, shares, copied, gave back; and what the cache keeps. Which blocks were
    `evicted` in between has to be said, for they may be findable again, as something else."""
    was, now = before.pool, after.pool
    told = []
    if evicted:
        told.append(f"{_begin(evicted)} {_is(evicted)} evicted: kept, but used by nobody, and room was needed.")
    for i, (old, new) in enumerate(zip_longest(was.held, now.held, fillvalue=())):
        moved = [(x, y) for x, y in zip(old, new, strict=False) if x != y]
        if len(moved) == 1 and len(old) <= len(new):
            ((x, y),) = moved
            told.append(f"{letter(i)} gets block {y} in place of block {x}, which others hold too: copy on write.")
            old = (*old, y)  # what else it took is told below
        else:
            told += _gave_back(letter(i), [block for block in old if block not in new], after)
        told += _took(letter(i), [block for block in new if block not in old], before, evicted)
    if added := sorted(after.findable - (before.findable - set(evicted))):
        told.append(f"{_begin(added)} {_is(added)} findable from now on.")
    if wrong := [block for block in range(now.capacity) if now.overlisted(block) and not was.overlisted(block)]:
        told.append(f"{_begin(wrong)}: listed by more sequences than have a reference!")
    return " ".join(told) or "Nothing that is drawn here changed."


def _took(name: str, blocks: Sequence[int], before: CacheSnapshot, evicted: Collection[int]) -> list[str]:
    found = [block for block in blocks if before.keeps(block) and block not in evicted]
    shared = [block for block in blocks if before.pool.ref_counts[block]]
    fresh = [block for block in blocks if block not in found and block not in shared]
    with_whom = sorted({letter(i) for block in shared for i in before.pool.holders(block)})
    parts = []
    if shared:
        parts.append(f"shares {blocks_named(shared)} with {' and '.join(with_whom) or 'others'}")
    if found:
        parts.append(f"finds {blocks_named(found)} in the cache")
    if fresh:
        parts.append(f"takes {blocks_named(fresh)} off the free list")
    return [f"{name} {' and '.join(parts)}."] if parts else []


def _gave_back(name: str, blocks: Sequence[int], after: CacheSnapshot) -> list[str]:
    if not blocks:
        return []
    held = [block for block in blocks if after.pool.ref_counts[block]]
    kept = [block for block in blocks if after.keeps(block)]
    words = f"{name} gives back {blocks_named(blocks)}"
    if held:
        words += f"; {ids(held)} {_stay(held)}, for others hold {_it(held)}"
    if kept:
        words += f"; {ids(kept)} {_stay(kept)} findable in the cache"
    if len(held) + len(kept) < len(blocks):
        words += f"; next out is block {after.pool.free[-1]}" if after.pool.free else ""
    return [words + "."]


def moment_picture(moments: Sequence[Moment], index: int, *, title: str) -> Svg:
    """The pool at one moment: its blocks, free list and gauge; and below, every moment as a column, this one framed."""
    state = moments[index].state
    pool, states = state.pool, [moment.state for moment in moments]
    was = states[max(index - 1, 0)]
    changed = {block for block in range(pool.capacity) if look_of(was, block) != look_of(state, block)}
    caching = any(each.findable for each in states)
    alt = f"Moment {index + 1} of {len(moments)}. {moments[index].words} {state if caching else pool}"
    most_free = max(len(each.pool.free) for each in states)
    stack = 24 + 26 * min(most_free, _STACK) + 22 * (most_free > _STACK)
    grid_bottom = TITLE_HEIGHT + grid_height(pool)
    bottom = max(grid_bottom + 68 + 24 * caching, TITLE_HEIGHT + stack) + 26
    svg = Svg(WIDTH, bottom + 400, title=title, alt=alt)

    def draw(svg: Svg, x, y, width, height, pool: PoolSnapshot, block: int, *, chosen: bool) -> None:
        if caching:
            draw_cache_block(svg, x, y, width, height - 8, state, block, chosen=chosen)
        else:
            draw_block(svg, x, y, width, height, pool, block, chosen=chosen)

    draw_grid(svg, 12, TITLE_HEIGHT, pool, chosen=changed, draw=draw, cached=frozenset(state.cached))
    draw_free_list(svg, 660, TITLE_HEIGHT, pool, most=_STACK)
    draw_gauge(svg, 12, grid_bottom + 14, 595, pool, cached=len(state.cached))
    if caching:
        words = " ".join(map(str, state.cached[:12])) + (" ..." if len(state.cached) > 12 else "")
        svg.text(12, grid_bottom + 80, f"evicted next: {words or 'none is cached'}", size=15)
    bottom = _draw_history(svg, 12, bottom, states, index)
    if caching:
        svg.height = draw_cache_legend(svg, 12, bottom, states) + 8
    else:
        svg.height = draw_legend(svg, 12, bottom, *(each.pool for each in states), changed=True) + 10
    return svg


def _draw_history(svg: Svg, x: float, y: float, states: Sequence[CacheSnapshot], index: int) -> float:
    """Every moment as a column of blocks, block 0 on top; of a pool with more than 64, of how many are in use. Returns
    where it ends, px."""
    capacity = states[0].pool.capacity
    few = capacity <= 64
    cell = max(3.0, min(14.0, 150 / max(capacity, 1))) if few else 120 / capacity
    left, width, height = x + 72, min(80.0, (WIDTH - x - 84) / len(states)), cell * capacity
    svg.text(x, y, "moment by moment", size=SMALL, weight="bold")
    y += 12
    for words, at in (("block 0" if few else "all", y + 11), (f"block {capacity - 1}" if few else "none", y + height)):
        svg.text(left - 8, at, words, size=SMALL, color="muted", anchor="end")
    for i, state in enumerate(states):
        at = left + i * width
        if few:
            for (users, cached, held), run in groupby(range(capacity), partial(_plain_look, state)):
                blocks = list(run)
                top, length = y + blocks[0] * cell, len(blocks) * cell
                part = (width - 4) / max(len(users), 1)
                for j, style in enumerate(map(sequence_style, users)):
                    svg.rect(at + j * part, top, part, length, fill=style.color, pattern=style.pattern,
                             pattern_color=style.on_color, stroke="none", radius=0)  # fmt: skip
                if not users:
                    fill = CACHED_COLOR if cached else "muted" if held else "faint"
                    svg.rect(at, top, width - 4, length, fill=fill, stroke="none", radius=0,
                             pattern="upright" if cached else "plain")  # fmt: skip
        else:
            in_use = (state.pool.in_use - len(state.cached)) * cell
            svg.rect(at, y, width - 1, height, fill="faint", stroke="none", radius=0)
            svg.rect(at, y + height - in_use, width - 1, in_use, fill="muted", stroke="none", radius=0)
        if width >= 20 or (i + 1) % 10 == 0:
            svg.text(at + (width - 4) / 2, y + height + 18, i + 1, size=SMALL, color="muted", anchor="middle")
    for row in range(1, capacity) if few and cell >= 6 else ():
        svg.line([(left, y + row * cell), (left + len(states) * width - 4, y + row * cell)], color="paper", width=1)
    svg.rect(left + index * width - 3, y - 3, width + 2, height + 6, stroke_width=3)
    return y + height + 34


def _plain_look(state: CacheSnapshot, block: int) -> tuple[list[int], bool, bool]:
    return state.pool.holders(block), state.keeps(block), state.pool.ref_counts[block] > 0


def _blocks_in_use(state: CacheSnapshot) -> str:
    in_use, capacity = state.pool.in_use - len(state.cached), state.pool.capacity
    return f"{in_use or 'None'} of {capacity} blocks {'is' if in_use == 1 else 'are'} in use"


def _begin(blocks: Collection[int]) -> str:
    return blocks_named(blocks).capitalize()


def _is(blocks: Collection[int]) -> str:
    return "is" if len(blocks) == 1 else "are"


def _stay(blocks: Collection[int]) -> str:
    return "stays" if len(blocks) == 1 else "stay"


def _it(blocks: Collection[int]) -> str:
    return "it" if len(blocks) == 1 else "them"
