"""Sharing, drawn from a prefix cache's own state: keys in a chain, and who holds, keeps and evicts which block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from paged_core.prefix import BlockChain, PrefixCache
from paged_core.sequence import PagedSeqState
from paged_core.viz.blocks import WIDTH, PoolSnapshot, draw_block
from paged_core.viz.figure import Chart, chart
from paged_core.viz.style import SequenceStyle, letter, line_look, sequence_style
from paged_core.viz.svg import SMALL, TITLE_HEIGHT, Svg, text_width
from paged_core.viz.words import enumerated


class CacheSnapshot(NamedTuple):
    """What a prefix cache and the users of its blocks said at one moment."""

    pool: PoolSnapshot  # its ref_counts are the users'; the cache's own references are left out
    findable: frozenset[int]
    cached: tuple[int, ...]  # the next to be evicted first

    def keeps(self, block: int) -> bool:
        """Whether this block is cached: findable, and nobody uses it."""
        return block in self.findable and self.pool.ref_counts[block] == 0

    def __str__(self) -> str:
        """In words, for alternative text."""
        held = [f"{letter(i)} holds {enumerated(blocks)}" for i, blocks in enumerate(self.pool.held) if blocks]
        shared = [block for block, count in enumerate(self.pool.ref_counts) if count > 1]
        return (
            f"{self.pool.in_use - len(self.cached)} in use, {len(self.cached)} cached, {len(self.pool.free)} free. "
            + "".join(f"{words}. " for words in held)
            + (f"Shared: {enumerated(shared)}. " if shared else "")
            + (f"Findable: {enumerated(sorted(self.findable))}. " if self.findable else "")
            + (f"Evicted next: {enumerated(self.cached)}." if self.cached else "")
        ).rstrip()


def cache_snapshot(cache: PrefixCache, sequences: Sequence[PagedSeqState | Sequence[int]] = ()) -> CacheSnapshot:
    """The state of `cache` and of whoever holds its blocks: sequences, or plain lists of block ids."""
    pool = PoolSnapshot(
        ref_counts=tuple(cache.ref_count(block) for block in range(cache.capacity)),
        free=cache.allocator.free_list,
        peak_in_use=cache.peak_in_use,
        held=tuple(tuple(seq.blocks if isinstance(seq, PagedSeqState) else seq) for seq in sequences),
    )
    return CacheSnapshot(pool, frozenset(cache.findable_blocks), cache.eviction_order)


def cache_strip(frames: Sequence[tuple[str, CacheSnapshot]], *, title: str) -> Svg:
    """One row per (what was done, the cache after it), time running down: held blocks in the look of their users with
    the number of references if several, cached ones grey, findable ones underlined, changed ones bold."""
    words_width = 20 + max(text_width(words, SMALL + 1) for words, _ in frames)
    capacity, lists_width = frames[0][1].pool.capacity, 246
    cell = min(58.0, max(6.0, (WIDTH - words_width - lists_width - 24) / max(capacity, 1)))
    row, top, left = 46, TITLE_HEIGHT + 24, 12 + words_width
    alt = " ".join(f"{i}. {words}: {state}" for i, (words, state) in enumerate(frames, 1))
    svg = Svg(WIDTH, top + row * len(frames) + 40, title=title, alt=alt)
    free_x = left + cell * capacity + 18
    cached_x = free_x + 132
    svg.text(left - 10, top - 8, "block", size=SMALL, color="muted", anchor="end")
    for block in range(capacity) if cell >= 18 else ():
        svg.text(left + (block + 0.5) * cell - 2, top - 8, block, size=SMALL, color="muted", anchor="middle")
    svg.text(free_x, top - 8, "free, next out", size=SMALL, color="muted")
    svg.text(cached_x, top - 8, "evicted next", size=SMALL, color="muted")
    before: CacheSnapshot | None = None
    for i, (words, state) in enumerate(frames):
        y = top + i * row
        svg.text(12, y + 23, words, size=SMALL + 1)
        for block in range(capacity):
            changed = before is not None and look_of(before, block) != look_of(state, block)
            draw_cache_block(svg, left + block * cell, y, cell - 4, row - 14, state, block, chosen=changed)
        for x, blocks in ((free_x, state.pool.free[::-1]), (cached_x, state.cached)):
            svg.text(x, y + 23, _beginning(blocks), mono=True, size=14)
        before = state
    svg.height = draw_cache_legend(svg, 12, top + row * len(frames) + 8, [state for _, state in frames]) + 12
    return svg


def hash_chains(
    prompts: Mapping[str, tuple[Sequence[int], BlockChain, Sequence[int]]], *, root: bytes, title: str
) -> Svg:
    """How keys are made, one row a prompt: name -> (tokens, its chain, the blocks it found). Each full block with its
    tokens, the key that comes from the key before it and these tokens, and the block that was found under it; then the
    tokens without a key. `root` is the key that all chains start from. A key of one byte is written as a number, a
    longer one as its first hexadecimal digits.
    """

    def name(key: bytes) -> object:
        return key[0] if len(key) == 1 else key.hex()[:4]

    token, oval, arrow = 34, 58, 22  # px: a token's width, a key's, the arrow's between
    size = next(iter(prompts.values()))[1].block_size
    pitch, row, top, left = arrow + token * size + arrow + oval, 92, TITLE_HEIGHT + 30, 12
    most = max(len(tokens) for tokens, _, _ in prompts.values())
    width = max(WIDTH, left + oval + pitch * -(-most // size) + 20)
    alt = f"Every chain starts from {name(root)}; found are block ids. " + " ".join(
        f"{words}: keys {enumerated([name(key) for key in chain.keys])}; found {enumerated(found) or 'nothing'}."
        for words, (_, chain, found) in prompts.items()
    )
    svg = Svg(width, top + row * len(prompts) + 40, title=title, alt=alt)
    for number, (words, (tokens, chain, found)) in enumerate(prompts.items()):
        y, x, look = top + number * row, left, sequence_style(number)
        svg.text(left, y - 9, words, size=SMALL + 1, weight="bold")
        svg.rect(x, y, oval, 34, radius=17, stroke="muted")
        svg.text(x + oval / 2, y + 23, name(root), anchor="middle", mono=True)
        x += oval
        for start in range(0, len(tokens), size):
            block = tokens[start : start + size]
            hit = start // size < len(found)
            svg.line([(x, y + 17), (x + arrow, y + 17)], color="muted")
            x += arrow
            for t, value in enumerate(block):
                svg.cell(x + t * token, y, token, 34, look, value, size=14)
            if len(block) == size:
                if hit:
                    svg.rect(x, y, token * size, 34, stroke_width=4)
                last = start + size == len(tokens)
                below = f"found: block {found[start // size]}" if hit else f"computed{': has the last token' * last}"
                svg.text(x + token * size / 2, y + 54, below, size=SMALL, anchor="middle")
                x += token * size
                svg.line([(x, y + 17), (x + arrow - 3, y + 17)], arrow=True)
                x += arrow
                svg.rect(x, y, oval, 34, radius=17, stroke_width=3 if hit else 1.5)
                svg.text(x + oval / 2, y + 23, name(chain.keys[start // size]), anchor="middle", mono=True)
                x += oval
            else:
                svg.text(x, y + 54, "computed; no key: not full", size=SMALL)
    y = top + row * len(prompts) - 8
    svg.rect(left, y, 34, 20, radius=10)
    svg.text(left + 42, y + 15, "key = hash(key before + tokens)", size=SMALL)
    svg.text(left + 300, y + 15, "bold edge: found in the cache, neither computed nor stored again", size=SMALL)
    svg.height = y + 34
    return svg


def outputs(values: Mapping[str, Sequence[float]], *, title: str) -> Chart:
    """Attention outputs over each other, dimension by dimension; the first is the truth, drawn as a broad line. Whoever
    is further from it than a hundredth of its largest element is said to leave it.
    """
    (words, truth), *others = values.items()
    margin = max(map(abs, truth)) / 100
    alt = f"The broad line is {words}. " + " ".join(
        f"{name} {'lies on' if max(abs(a - b) for a, b in zip(truth, line, strict=True)) < margin else 'leaves'} it."
        for name, line in others
    )
    with chart(title=title, alt=alt, size=(10, 4)) as (picture, ax):
        for i, (words, numbers) in enumerate(values.items()):
            look = line_look(i - 1) if i else {"linewidth": 9, "color": "#BBBBBB"}
            ax.plot(range(len(numbers)), numbers, label=words, **look)
        ax.set(xlabel="dimension of the head", ylabel="attention output", xticks=range(len(values[words])))
        picture.figure.legend(loc="outside lower center", ncols=len(values))
    return picture


def hit_rates(rates: Mapping[str, Mapping[int, float]], *, title: str) -> Chart:
    """The share of prompt tokens that were found (%), by the size of the pool in blocks: name -> {blocks: share}."""
    alt = "; ".join(
        f"{words}: {', '.join(f'{int(share)} % in {size:,} blocks' for size, share in shares.items())}"
        for words, shares in rates.items()
    )
    sizes = sorted({size for shares in rates.values() for size in shares})
    with chart(title=title, alt=alt, size=(10, 4.2)) as (picture, ax):
        for i, (words, shares) in enumerate(rates.items()):
            ax.plot(list(shares), list(shares.values()), label=words, **line_look(i))
        ax.set(xlabel="pool (blocks)", ylabel="prompt tokens found (%)", xscale="log", ylim=(0, 100))
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.minorticks_off()
        ax.legend()
    return picture


def prompt_costs(milliseconds: Mapping[str, Mapping[int, float]], *, title: str) -> Chart:
    """Milliseconds by prompt length, in one line a name: measured, so the words that go with it are too."""
    alt = "; ".join(f"{words}, {max(line):,} tokens: {line[max(line)]:.2f} ms" for words, line in milliseconds.items())
    with chart(title=title, alt=alt, size=(10, 4.2)) as (picture, ax):
        for i, (words, line) in enumerate(milliseconds.items()):
            ax.plot(list(line), list(line.values()), label=words, **line_look(i))
        lengths = list(next(iter(milliseconds.values())))
        ax.set(xscale="log", yscale="log", xlabel="prompt (tokens)", ylabel="milliseconds")
        ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.legend()
    return picture


def look_of(state: CacheSnapshot, block: int) -> tuple[object, ...]:
    """All that the picture of this block shows: equal where it looks the same."""
    return state.pool.holders(block), state.pool.ref_counts[block], state.keeps(block), block in state.findable


def draw_cache_block(svg: Svg, x, y, width, height, state: CacheSnapshot, block: int, *, chosen: bool) -> None:
    """As `draw_block`, in a box of these px; a cached block is grey, a findable one is underlined, 8 px below it."""
    if state.keeps(block):
        svg.cell(x, y, width, height, "cached", block, chosen=chosen, size=15)
    else:
        draw_block(svg, x, y, width, height, state.pool, block, chosen=chosen)
    if block in state.findable:
        svg.line([(x, y + height + 6), (x + width, y + height + 6)], width=4)


def draw_cache_legend(svg: Svg, x: float, y: float, states: Sequence[CacheSnapshot]) -> float:
    """Whoever appears in one of these states, and what the other looks mean; returns where it ends, px from the top."""
    users = sorted({i for state in states for i, held in enumerate(state.pool.held) if held})
    entries: list[tuple[SequenceStyle | str, str]] = [(sequence_style(i), f"used by {letter(i)}") for i in users]
    x = svg.legend(x, y, [*entries, ("cached", "cached: kept, nobody uses it"), ("free", "free")])
    svg.text(12, y + 38, "split cell: shared; underlined: findable; bold edge: changed here", size=SMALL, color="muted")
    return y + 42


def _beginning(blocks: Sequence[int], most: int = 13) -> str:
    """As many ids as go into so many characters."""
    words = " ".join(str(block) for block in blocks)
    return (words if len(words) <= most else words[: words.rfind(" ", 0, most - 3)] + " ...") or "none"
