"""A free list in the long run: how it comes apart, why that costs nothing, and what an operation costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from paged_core.viz.blocks import PoolSnapshot
from paged_core.viz.figure import Chart, chart
from paged_core.viz.style import LINE_COLORS, line_look, sequence_style

FREE, IN_USE = 0.93, 0.36  # greys: the orange of sequence A is 0.64 to whoever sees no colours


def longest_run(blocks: Collection[int]) -> int:
    """The most of these block ids that follow each other: the largest piece a contiguous allocator could give."""
    ids = np.sort(np.fromiter(blocks, np.int64))
    ends = np.flatnonzero(np.diff(ids) != 1)  # a run ends before each gap
    return int(np.diff(np.concatenate([[-1], ends, [ids.size - 1]])).max()) if ids.size else 0


def fragmentation(pool: PoolSnapshot, free: Sequence[int], longest: Sequence[int], *, title: str) -> Chart:
    """The pool as it lies now, block by block, and two counts over the requests that came: how many blocks were free,
    and how many of them lay side by side. Sequence A of the snapshot is picked out in its colour.
    """
    columns = 64
    cells = np.full(-(-pool.capacity // columns) * columns, FREE)
    cells[: pool.capacity] = [FREE if count == 0 else IN_USE for count in pool.ref_counts]
    image = np.repeat(cells.reshape(-1, columns, 1), 3, axis=2)
    style = sequence_style(0)
    color = [int(style.color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    for block in pool.held[0]:
        image[block // columns, block % columns] = color
    alt = (
        f"Left, {pool.capacity} blocks in {image.shape[0]} rows of {columns}: {pool.in_use} in use, {len(pool.free)} "
        f"free and scattered; the {len(pool.held[0])} blocks of sequence A are scattered too. "
        f"Right, over {len(free)} requests: the free blocks, and below them the longest run of neighbours among them."
    )
    with chart(1, 2, title=title, alt=alt, size=(11, 4.8), width_ratios=(1, 1.25)) as (picture, (left, right)):
        left.imshow(image, interpolation="nearest", aspect="equal")
        left.set(xticks=[0, 16, 32, 48, 63], xlabel=f"block id mod {columns}", ylabel=f"block id // {columns}")
        left.grid(False)
        left.set_title("dark: in use, light: free, orange: A", fontsize=12)
        right.plot(free, color=LINE_COLORS[0], linewidth=1, label="free: what pages can hand out")
        right.plot(longest, color=LINE_COLORS[2], linewidth=1.8, label="longest run: what a contiguous allocator can")
        steady = max(free[len(free) // 4 :], default=0)  # at first the whole pool is free: off the chart
        right.set(xlabel="requests that came", ylabel="blocks", ylim=(0, 1.45 * steady))
        right.legend(loc="upper right")
    return picture


def cost_per_block(nanoseconds: Mapping[int, float], *, title: str) -> Chart:
    """Measured: {blocks in the pool: nanoseconds to take one block and give it back}."""
    alt = "; ".join(f"{capacity:,} blocks: {ns:.0f} ns" for capacity, ns in nanoseconds.items())
    with chart(title=title, alt=alt, size=(9, 3.6)) as (picture, ax):
        ax.plot(*zip(*nanoseconds.items(), strict=True), **line_look(0))
        ax.set_xscale("log", base=2)
        ax.set(xlabel="blocks in the pool", ylabel="ns per block", ylim=(0, 2 * max(nanoseconds.values())))
    return picture
