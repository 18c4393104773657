"""Memory that requests hold, slot by slot and step by step: what is written, what is reserved and empty, what is free.

All of it is drawn from `workload.Stretch`, that is, from what the allocators really handed out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from paged_core.viz.figure import Chart, chart
from paged_core.viz.style import LIGHT, WASTED_COLOR, line_look, sequence_style
from paged_core.viz.svg import SMALL, Svg, text_width
from paged_core.workload import LengthHistogram, Stretch

USED_COLOR, FOLLOWED_COLOR = "#2F2F2F", "#D6A6FF"
PARTS = {  # of a budget: (words, colour, hatch)
    "used": ("written", USED_COLOR, ""),
    "to_come": ("reserved, written later", WASTED_COLOR, "//"),
    "never": ("reserved, never written", "#C9C9C9", "xx"),
    "free": ("free, but too little for the next request", LIGHT.paper, ""),
}
ROWS = 512  # pixels that the whole memory is drawn in
GIB = 2**30


def slot_map(stretches: Mapping[str, Stretch], *, title: str, alt: str) -> Svg:
    """Every slot at every watched step, one panel a stretch: for memories of some dozen slots. A box is a span, one
    above the other its written part, with how many slots that is, and its empty part.
    """
    width, height, left, top = 52, 19, 84, 92  # of a slot at a step, and of the first panel, px
    num_steps = 1 + max(step for stretch in stretches.values() for step, spans in stretch.spans.items() if len(spans))
    num_slots = max(stretch.budget for stretch in stretches.values())
    bottom, panel = top + num_slots * height, num_steps * width
    picture = Svg(left + len(stretches) * (panel + left), bottom + 100, title=title, alt=alt)
    requests = set()
    for number, (name, stretch) in enumerate(stretches.items()):
        x0 = left + number * (panel + left)
        picture.text(x0, top - 14, name, weight="bold")
        picture.cell(x0, top, panel, stretch.budget * height, "free")
        picture.text(x0 - 52, top + 15, "slot", size=SMALL, anchor="middle", color="muted")
        for slot in range(0, stretch.budget, 4):
            picture.text(x0 - 8, top + slot * height + 15, slot, size=SMALL, anchor="end", color="muted")
        for step in range(num_steps):
            x = x0 + step * width
            words = f"step {step}" if step == 0 else step
            picture.text(x + width / 2, bottom + 20, words, size=SMALL, anchor="middle", color="muted")
            for request, start, tokens, used in stretch.spans[step].tolist():
                requests.add(request)
                look, y = sequence_style(request), top + start * height
                if used < tokens:
                    picture.cell(x, y + used * height, width, (tokens - used) * height, "empty", tokens - used, size=14)
                picture.cell(x, y, width, used * height, look, f"{look.letter} {used}", size=14)
    looks: list = [(sequence_style(request), "written") for request in sorted(requests)]
    legend_end = picture.legend(left, bottom + 46, [*looks, ("empty", "reserved, empty"), ("free", "free")])
    picture.width = max(picture.width, legend_end, text_width(title, 19) + 24)
    return picture


def memory_over_time(stretches: Mapping[str, Stretch], *, token_bytes: int, title: str, alt: str) -> Chart:
    """The whole memory at the watched steps, one panel a stretch, slot 0 on top. One request stands out: of
    those at the middle step, the one that is there longest.
    """
    from matplotlib.patches import Patch

    with chart(1, len(stretches), title=title, alt=alt, size=(12, 5.4), sharey=True, squeeze=False) as (picture, axes):
        for ax, (name, stretch) in zip(axes[0], stretches.items(), strict=True):
            steps = sorted(stretch.spans)
            followed = _longest_at(stretch, steps[len(steps) // 2])
            image = np.stack([_column(stretch.spans[step], stretch.budget, followed) for step in steps], axis=1)
            extent = (steps[0], steps[-1], stretch.budget * token_bytes / GIB, 0)
            ax.imshow(image, aspect="auto", extent=extent, interpolation="nearest")
            ax.set(title=name, xlabel="step")
            ax.grid(visible=False)
        axes[0][0].set_ylabel("slots (GiB)")
        looks = {
            "written": USED_COLOR,
            "written by one request": FOLLOWED_COLOR,
            "reserved, empty": WASTED_COLOR,
            "free": LIGHT.paper,
        }
        handles = [Patch(facecolor=color, edgecolor=LIGHT.muted, label=words) for words, color in looks.items()]
        picture.figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return picture


def _longest_at(stretch: Stretch, step: int) -> int:
    there: dict[int, int] = {}
    for spans in stretch.spans.values():
        for request in np.unique(spans["request"]).tolist():
            there[request] = there.get(request, 0) + 1
    return max(np.unique(stretch.spans[step]["request"]).tolist(), key=there.__getitem__)


def _column(spans: NDArray[np.void], budget: int, followed: int) -> NDArray[np.float64]:
    """One step as ROWS colours, each the mean over its slots; where the followed request is, its colour."""
    from matplotlib.colors import to_rgb

    colors = np.array([to_rgb(c) for c in (LIGHT.paper, USED_COLOR, WASTED_COLOR, FOLLOWED_COLOR)])
    written = np.where(spans["request"] == followed, 3, 1)
    change = np.zeros(budget + 1, np.intp)  # of the colour from one slot to the next; spans do not overlap
    np.add.at(change, spans["start"], written)
    np.add.at(change, spans["start"] + spans["used"], 2 - written)
    np.add.at(change, spans["start"] + spans["tokens"], -2)
    slots = change.cumsum()[:-1]
    slots = slots[: budget // ROWS * ROWS].reshape(ROWS, -1)
    column = colors[slots].mean(axis=1)
    column[(slots == 3).any(axis=1)] = colors[3]
    return column


def budget_bars(stretches: Mapping[str, Stretch], *, since: int, token_bytes: int, title: str, alt: str) -> Chart:
    """How each memory divides into written, reserved and free, in the mean over the steps from `since` on."""
    with chart(title=title, alt=alt, size=(10, 1.6 + 0.75 * len(stretches))) as (picture, ax):
        left = np.zeros(len(stretches))
        for part, (words, color, hatch) in PARTS.items():
            sizes = np.array([stretch.mean(part, since) * token_bytes / GIB for stretch in stretches.values()])
            ax.barh(
                range(len(stretches)),
                sizes,
                left=left,
                color=color,
                hatch=hatch,
                edgecolor=LIGHT.ink,
                label=words,
                height=0.7,
            )
            left += sizes
        for y, stretch in enumerate(stretches.values()):
            ax.text(left[y] * 1.01, y, f"{stretch.mean('running', since)} requests", va="center", fontweight="bold")
        ax.set_yticks(range(len(stretches)), list(stretches))
        ax.set(xlabel="GiB, mean over the steps", xlim=(0, np.max(left) * 1.2), xticks=np.linspace(0, np.max(left), 5))
        ax.xaxis.set_major_formatter("{x:.4g}")
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        picture.figure.legend(loc="outside lower center", ncols=2)
    return picture


def request_lengths(histograms: Mapping[str, LengthHistogram], *, title: str, alt: str) -> Chart:
    """The share of requests per bin of prompt tokens and of generated tokens."""
    with chart(1, 2, title=title, alt=alt, size=(10, 4), sharey=True) as (picture, axes):
        for i, (name, histogram) in enumerate(histograms.items()):
            for axis, edges in enumerate((histogram.prompt_edges, histogram.output_edges)):
                counts = histogram.counts.sum(axis=1 - axis)
                share = counts / counts.sum() * 100
                look = line_look(i)
                axes[axis].stairs(
                    share, edges, label=name, color=look["color"], linestyle=look["linestyle"], linewidth=2.5
                )
        for ax, what in zip(axes, ("prompt tokens", "generated tokens"), strict=True):
            ax.set(xscale="log", xlabel=what)
            ax.xaxis.set_major_formatter("{x:,.0f}")
        axes[0].set_ylabel("requests (%)")
        axes[0].legend(loc="upper left")
    return picture


def block_size_costs(
    sweep: Mapping[int, Stretch], table_bytes: Mapping[int, int], *, since: int, token_bytes: int, title: str, alt: str
) -> Chart:
    """What a block size gives and takes, by block size: requests at once; bytes that hold nothing, and bytes of block
    table, per request; table entries that attention reads in a step. `table_bytes` are those of one request.
    """
    sizes = list(sweep)
    running = np.array([run.mean("running", since) for run in sweep.values()])
    empty = np.array([run.mean("to_come", since) + run.mean("never", since) for run in sweep.values()])
    blocks = np.array([(run.budget - run.mean("free", since)) // size for size, run in sweep.items()])
    with chart(1, 3, title=title, alt=alt, size=(12, 4.4)) as (picture, axes):
        axes[0].plot(sizes, running, **line_look(0))
        axes[0].set(title="requests at once", ylim=(0, None))
        kib = 1024
        axes[1].plot(sizes[1:], empty[1:] * token_bytes / running[1:] / kib, label="empty slots", **line_look(0))
        axes[1].plot(sizes, [table_bytes[size] / kib for size in sizes], label="block table", **line_look(1))
        axes[1].set(title="bytes a request (KiB)", yscale="log")
        axes[1].legend()
        axes[2].plot(sizes, blocks, **line_look(0))
        axes[2].set(title="table entries read a step", yscale="log")
        for ax in axes:
            ax.set(xscale="log", xlabel="block size (tokens)")
            ax.xaxis.set_major_formatter("{x:,.0f}")
            ax.yaxis.set_major_formatter("{x:,.7g}")
    return picture


def queues(stretches: Mapping[str, Stretch], *, step_s: float, title: str, alt: str) -> Chart:
    """How many requests run, and how many wait, over time: means over ten seconds."""
    steps = round(10 / step_s)
    with chart(1, 2, title=title, alt=alt, size=(10, 4.2)) as (picture, axes):
        for i, (name, stretch) in enumerate(stretches.items()):
            look = line_look(i) | {"label": name, "markevery": 6}
            for ax, counts in zip(axes, (stretch.running, stretch.waiting), strict=True):
                means = np.array(counts)[: len(counts) // steps * steps].reshape(-1, steps).mean(axis=1)
                ax.plot((np.arange(len(means)) + 0.5) / 6, means, **look)
        for ax, what in zip(axes, ("requests running", "requests waiting"), strict=True):
            ax.set(title=what, xlabel="minutes", ylim=(0, None))
            ax.yaxis.set_major_formatter("{x:,.0f}")
        axes[1].legend()
    return picture
