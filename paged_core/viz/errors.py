"""How far an answer lies from the oracle: along lengths and dtypes, and query by query and head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike

from paged_core.cases import PagedCase, share_of_bound, to_numpy
from paged_core.reference import dense_attention
from paged_core.viz.figure import Chart, chart
from paged_core.viz.style import ALLOWED_COLOR, LIGHT, LINE_COLORS, line_look
from paged_core.viz.svg import SMALL, TITLE_HEIGHT, Svg, text_width

DECADES = 5  # an error map shows 10^-5 to 10^5 of the bound
_VERDICTS: dict[str, dict[str, Any]] = {
    "within the bound": {"fill": "faint"},
    "out of bounds": {"fill": LINE_COLORS[1]},
    "NaN": {"fill": "paper", "pattern": "cross", "pattern_color": "danger"},
}
ALLOWED, CAUGHT = ("#F7F7F7", ALLOWED_COLOR), ("#F2A65A", "#5A0A1E")  # from light to dark, in grey too


class ErrorAtLength(NamedTuple):
    """The worst of one comparison with the oracle, over all queries, heads and dims."""

    dtype: str
    length: int  # tokens of context
    error: float  # max |output - oracle|
    bound: float  # max of the derived bound
    share: float  # max error / bound, element by element
    lost_token: float  # the same share for an answer that leaves out one token


def error_at_length(case: PagedCase, output: mx.array) -> ErrorAtLength:
    """Compare a decode of one sequence with the oracle, and what the answer would be without its newest token, too."""
    oracle, bound = case.oracle(), case.bound()
    ((k, v),) = case.dense
    lost = dense_attention(to_numpy(case.q), k[:-1], v[:-1], **case.features)
    answer = to_numpy(output)
    shares = [float(np.max(share_of_bound(x, oracle, bound))) for x in (answer, lost)]
    return ErrorAtLength(case.dtype, len(k), float(np.max(np.abs(answer - oracle))), float(np.max(bound)), *shares)


def error_chart(rows: Sequence[ErrorAtLength]) -> Chart:
    """Error and bound by context length, and the error as a share of its bound, for a right answer and a wrong one."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    lengths = sorted({row.length for row in rows})
    alt = (
        f"Two log-log charts for {', '.join(dtypes)} and contexts of {lengths[0]} to {lengths[-1]} tokens. Left: the "
        "largest error (marks) and its bound (lines). Right: error over bound, at most 1, of the answer (filled "
        "marks) and of one that lost a token (open marks)."
    )
    with chart(1, 2, title="How close is paged to dense?", alt=alt, size=(12, 5.6)) as (picture, (left, right)):
        for i, dtype in enumerate(dtypes):
            look = line_look(i)
            these = [row for row in rows if row.dtype == dtype]
            x = [row.length for row in these]
            left.plot(x, [row.bound for row in these], **look | {"marker": ""}, zorder=2)
            # an error of exactly zero, as at length 1, has no place on a log axis
            left.plot(*_positive(x, [row.error for row in these]), **look | {"linestyle": ""}, label=dtype)
            right.plot(*_positive(x, [row.share for row in these]), **look, label=dtype)
            right.plot(*_positive(x, [row.lost_token for row in these]), **look, mfc=LIGHT.paper)
        left.set(ylabel="largest error (marks), bound (lines)", title="The error and its bound", ylim=(1e-9, 1e-1))
        right.axhspan(1e-6, 1, color=ALLOWED_COLOR, alpha=0.45, zorder=0)
        right.axhline(1, color=LIGHT.ink, linewidth=1.5)
        right.set(ylabel="error / bound", title="As a share of the bound")
        for ax in (left, right):
            ax.set(xscale="log", yscale="log", xlabel="context length (tokens)")
            ax.set_xscale("log", base=2)
            ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
            ax.tick_params(axis="x", labelsize=11)
        right.set_ylim(1e-6, 1e6)
        right.text(lengths[0], 2e-6, "allowed: filled marks must stay here", va="bottom", color=LIGHT.muted)
        right.text(
            lengths[-1], 5e5, "one token lost (open marks): caught here", ha="right", va="top", color=LIGHT.danger
        )
        left.legend(loc="lower left")
    return picture


def error_maps(maps: Mapping[str, ArrayLike], *, first_position: int, block_size: int, title: str) -> Chart:
    """Where an answer is wrong: a map for each name, head by head (down) and query by query (across).

    `maps` holds shares of the bound, float [num_queries, num_q_heads]: up to 1 is allowed, infinity is NaN in the
    output. `first_position` is the position of query 0 in its sequence; thin lines stand where blocks begin.
    """
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap
    from matplotlib.patches import Rectangle

    halves = [LinearSegmentedColormap.from_list("half", ends)(np.linspace(0, 1, 64)) for ends in (ALLOWED, CAUGHT)]
    colours = ListedColormap(np.concatenate(halves))
    cols = min(3, len(maps))
    rows = -(-len(maps) // cols)
    words = [f"{name}: {verdict(share)}" for name, share in maps.items()]
    alt = "Maps of error over bound, heads down and query positions across. " + "; ".join(words) + "."
    with chart(rows, cols, title=title, alt=alt, size=(12, 1.1 + 2.2 * rows), squeeze=False, sharey=True) as (
        picture,
        axes,
    ):
        for ax, (name, share) in zip(axes.flat, maps.items(), strict=False):
            share = np.asarray(share, float).T  # [heads, queries]
            heads, queries = share.shape
            left, right = first_position - 0.5, first_position + queries - 0.5
            with np.errstate(divide="ignore"):
                decades = np.clip(np.log10(share), -DECADES, DECADES)
            image = ax.imshow(
                decades,
                cmap=colours,
                vmin=-DECADES,
                vmax=DECADES,
                aspect="auto",
                extent=(left, right, heads - 0.5, -0.5),
            )
            for head, query in np.argwhere(np.isinf(share)):
                box = (first_position + query - 0.5, head - 0.5)
                ax.add_patch(Rectangle(box, 1, 1, facecolor="#000000", edgecolor=LIGHT.paper, hatch="xxx", linewidth=0))
            borders = np.arange(first_position + -first_position % block_size, first_position + queries, block_size)
            for border in borders:
                ax.axvline(border - 0.5, color=LIGHT.ink, linewidth=0.8, alpha=0.6)
            ax.set_title(f"{name}: {verdict(share)}", fontsize=12.5)
            ax.set_xticks(borders)
            ax.set_yticks(range(heads))
            ax.grid(visible=False)
        for ax in axes[-1]:
            ax.set_xlabel("position of the query")
        for ax in axes[:, 0]:
            ax.set_ylabel("query head")
        for ax in axes.flat[len(maps) :]:
            ax.set_visible(False)
        bar = picture.figure.colorbar(image, ax=axes, ticks=[-DECADES, 0, DECADES], shrink=0.9, pad=0.02)
        bar.ax.set_yticklabels([f"$10^{{-{DECADES}}}$", "1", f"$10^{DECADES}$"])
        bar.set_label("error / bound\nallowed up to 1; hatched: NaN")
    return picture


def verdict_map(share: ArrayLike, *, first_position: int, block_size: int, title: str) -> Svg:
    """One map of `error_maps` as a drawing, with three verdicts in place of shades: the same on every machine."""
    share = np.asarray(share, float).T  # [heads, queries]
    heads, queries = share.shape
    cell, left, top = 30, 70, TITLE_HEIGHT + 44
    bad = [first_position + int(query) for query in np.flatnonzero((share > 1).any(axis=0))]
    alt = (
        f"Heads 0 to {heads - 1} down, query positions {first_position} to {first_position + queries - 1} across. "
        + (f"Wrong at the positions {', '.join(map(str, bad))}." if bad else "All within the bound.")
    )
    svg = Svg(left + queries * cell + 16, top + heads * cell + 62, title=title, alt=alt)
    x = 12.0
    for words, look in _VERDICTS.items():
        svg.rect(x, TITLE_HEIGHT + 2, 22, 18, **look)
        svg.text(x + 29, TITLE_HEIGHT + 16, words, size=SMALL)
        x += 29 + text_width(words, SMALL) + 22
    for head in range(heads):
        svg.text(left - 10, top + head * cell + 20, head, anchor="end")
        for query, value in enumerate(share[head].tolist()):
            look = _VERDICTS[verdict(value)]
            svg.rect(left + query * cell, top + head * cell, cell, cell, stroke="paper", radius=0, **look)
    for query in range(queries):
        position = first_position + query
        if position % block_size == 0:
            x = left + query * cell
            svg.line([(x, top - 6), (x, top + heads * cell + 6)], width=2)
            svg.text(x + cell / 2, top + heads * cell + 20, position, anchor="middle")
    svg.text(12, top + heads * cell + 20, "head", size=SMALL, color="muted")
    svg.text(left, top + heads * cell + 44, "position of the query; a block begins at each line", color="muted")
    return svg


def verdict(share: ArrayLike) -> str:
    """What shares of the bound amount to: "within the bound", "NaN", "out of bounds", "out of bounds, NaN"."""
    share = np.asarray(share, float)
    nan, out = bool(np.isinf(share).any()), bool(((share > 1) & np.isfinite(share)).any())
    return {(False, False): "within the bound", (True, False): "NaN", (False, True): "out of bounds"}.get(
        (nan, out), "out of bounds, NaN"
    )


def _positive(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b > 0]
    return [a for a, _ in kept], [b for _, b in kept]
