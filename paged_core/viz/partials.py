"""Long contexts: partial softmaxes that merge, partitions of a real call, prompts in chunks, and batches of both.

A sequence keeps its colour and mark; which partition or chunk a thing belongs to is told by its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paged_core.chunks import chunks
from paged_core.executors.launch import Machine, split
from paged_core.viz.figure import Chart, chart
from paged_core.viz.style import LIGHT, LINE_COLORS, PALE, line_look, sequence_style, text_on
from paged_core.viz.svg import SMALL, TITLE_HEIGHT, Svg
from paged_core.viz.words import counted


def merge_picture(partitions: Sequence[Sequence[tuple[int, int]]], *, title: str) -> Svg:
    """Partial softmaxes in powers of two, exactly: `partitions` holds (logit, value) for each key of each partition.

    From top to bottom the logits; weights 2^(s - top) measured from the partition's own top; and measured from the
    common one, a dashed outline where a bar stood before, with the sums on the right of each.
    """
    tops = [max(s for s, _ in keys) for keys in partitions]
    top = max(tops)
    cell, gap, bar, left = 64, 190, 84, 176
    x0 = [left + sum(len(keys) * cell + gap for keys in partitions[:p]) for p in range(len(partitions))]
    width = x0[-1] + len(partitions[-1]) * cell + gap - 30
    y_logit, y_own, y_common = TITLE_HEIGHT + 34, TITLE_HEIGHT + 216, TITLE_HEIGHT + 366
    whole = [Fraction(2) ** (s - top) for keys in partitions for s, _ in keys]
    values = [v for keys in partitions for _, v in keys]
    total, acc = sum(whole), sum(w * v for w, v in zip(whole, values, strict=True))
    alt = "; ".join(
        f"partition {p}: logits {[s for s, _ in keys]}, top {own}, times {Fraction(2) ** (own - top)} in the merge"
        for p, (keys, own) in enumerate(zip(partitions, tops, strict=True))
    )
    picture = Svg(
        width,
        y_common + 78,
        title=title,
        alt=f"{alt}. Merged: top {top}, total {total}, acc {acc}, output {acc / total}.",
    )
    look = sequence_style(0)
    for words, y in (("logit s", y_logit + 27), ("value v", y_logit + 63)):
        picture.text(left - 18, y, words, anchor="end")
    for words, y in (("their own top", y_own), ("the common top", y_common)):
        picture.text(left - 18, y - 44, "weights from", anchor="end")
        picture.text(left - 18, y - 22, words, anchor="end", weight="bold")
    for p, (keys, own) in enumerate(zip(partitions, tops, strict=True)):
        x, end = x0[p], x0[p] + len(keys) * cell
        picture.text(x, y_logit - 10, f"partition {p}", weight="bold")
        shrink = Fraction(2) ** (own - top)
        weights = [Fraction(2) ** (s - own) for s, _ in keys]
        part_total, part_acc = sum(weights), sum(w * v for w, (_, v) in zip(weights, keys, strict=True))
        for i, ((s, v), w) in enumerate(zip(keys, weights, strict=True)):
            cx = x + i * cell
            picture.cell(cx, y_logit, cell - 8, 36, look, s, chosen=s == own)
            picture.cell(cx, y_logit + 40, cell - 8, 30, "empty", v)
            for y, factor in ((y_own, Fraction(1)), (y_common, shrink)):
                height = float(w * factor) * bar
                picture.rect(cx + 8, y - height, cell - 24, height, fill=look.color)
                if factor != 1:
                    picture.rect(cx + 8, y - float(w) * bar, cell - 24, float(w) * bar, dashed=True, stroke="muted")
                picture.text(cx + (cell - 8) / 2, y + 18, w * factor, anchor="middle", size=14)
        for y in (y_own, y_common):
            picture.line([(x, y), (end - 8, y)])
        lines = (f"top {own}", f"total {part_total}", f"acc {part_acc}")
        for i, words in enumerate(lines):
            picture.text(end + 6, y_own - 44 + 22 * i, words, weight="bold")
        picture.text(end + 6, y_common - 44, f"× {shrink}", weight="bold", color="danger" if shrink != 1 else "muted")
        picture.text(end + 6, y_common - 22, f"total {part_total * shrink}")
        picture.text(end + 6, y_common, f"acc {part_acc * shrink}")
    picture.text(
        left, y_common + 56, f"merged:  top {top},  total {total},  acc {acc},  output {acc / total}", weight="bold",
        size=18,
    )  # fmt: skip
    return picture


def partition_map(top: NDArray, total: NDArray, context_lens: Sequence[int], *, head: int = 0, title: str) -> Svg:
    """One head of a split decode, a row a sequence and a box a partition: how many keys it has, and as a level what
    share of the softmax's weight it brings to the merge. `top`, `total` [num_seqs, num_q_heads, num_partitions].
    """
    num_seqs, _, num_partitions = top.shape
    width, height, left, above = 92, 84, 166, TITLE_HEIGHT + 40
    shares = softmax_shares(top[:, head], total[:, head])
    empty = int((total[:, head] == 0).sum())
    picture = Svg(
        left + num_partitions * width + 12, above + num_seqs * (height + 14) + 34, title=title,
        alt=f"{num_seqs} sequences in {num_partitions} partitions, {empty} of them without a key; "
        + "; ".join(
            f"context {context}: {', '.join(f'{share:.0%}' for share in row)}"
            for context, row in zip(context_lens, shares, strict=True)
        ),
    )  # fmt: skip
    for p in range(num_partitions):
        words = f"partition {p}" if p == 0 else p
        picture.text(left + (p + 0.5) * width, above - 12, words, anchor="middle", size=SMALL, color="muted")
    for seq, context in enumerate(context_lens):
        look, y = sequence_style(seq), above + seq * (height + 14)
        picture.cell(12, y + height / 2 - 28, 26, 26, look, look.letter)
        picture.text(46, y + height / 2 - 9, f"{context:,} keys", weight="bold")
        keys = -(-context // num_partitions)
        for p in range(num_partitions):
            x, count = left + p * width, max(0, min(keys, context - p * keys))
            if total[seq, head, p] == 0:
                picture.cell(x, y, width - 6, height, "free", "empty", size=SMALL)
                continue
            share = float(shares[seq, p])
            level = share * (height - 26)
            picture.rect(x, y, width - 6, height, fill="paper")
            if level >= 1:
                picture.rect(x, y + height - level, width - 6, level, fill=look.color, pattern=look.pattern,
                             pattern_color=look.on_color)  # fmt: skip
            picture.text(x + (width - 6) / 2, y + 18, counted(count, "key"), anchor="middle", size=SMALL)
            words = f"{share:.0%}" if share >= 0.005 else "< 1%"
            picture.text(x + (width - 6) / 2, y + 44, words, anchor="middle", weight="bold", halo="paper")
    picture.text(
        12, picture.height - 14, "level and per cent: the partition's share of the softmax's weight", size=SMALL
    )
    return picture


def softmax_shares(top: NDArray, total: NDArray) -> NDArray[np.float64]:
    """What share of a softmax's weight each partition holds: [.., num_partitions], 0 where it has no key."""
    has_keys = total > 0
    tops = np.where(has_keys, top, -np.inf).astype(np.float64)
    base = tops.max(axis=-1, keepdims=True)
    weight = total * np.exp(tops - np.where(np.isfinite(base), base, 0))
    whole = weight.sum(axis=-1, keepdims=True)
    return weight / np.where(whole > 0, whole, 1)


def rule_map(
    machines: Mapping[str, Machine], head_tiles: int, num_seqs: Sequence[int], contexts: Sequence[int], *, title: str
) -> Chart:
    """How many partitions `launch.split` gives, by sequences in the batch and tokens a sequence; one panel a machine.
    `head_tiles` is the number of threadgroups that a sequence has anyway."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, to_hex

    colours, norm = colormaps["cividis"], LogNorm(1, 64)
    alt = f"Tables for {', '.join(machines)}: few sequences with long contexts are split, many or short ones are not."
    with chart(1, len(machines), title=title, alt=alt, size=(13, 5.2), sharey=True, squeeze=False) as (picture, axes):
        for ax, (name, machine) in zip(axes[0], machines.items(), strict=True):
            table = np.array([[split(seqs * head_tiles, c, machine) for c in contexts] for seqs in num_seqs])
            ax.imshow(table, norm=norm, cmap=colours, aspect="auto")
            for (y, x), partitions in np.ndenumerate(table):
                ink = text_on(to_hex(colours(norm(partitions))))
                weight = "bold" if partitions > 1 else "normal"
                ax.text(x, y, partitions, ha="center", va="center", color=ink, fontweight=weight)
            ax.set_xticks(range(len(contexts)), [_short(c) for c in contexts])
            ax.set_yticks(range(len(num_seqs)), num_seqs)
            ax.set(title=f"{name}: {machine.enough_threadgroups} threadgroups are enough", xlabel="tokens a sequence")
            ax.grid(visible=False)
        axes[0][0].set_ylabel("sequences in the batch")
    return picture


def partition_times(milliseconds: Mapping[tuple[str, int], float], chosen: Mapping[str, int], *, title: str) -> Chart:
    """Measured times, {(batch, number of partitions): ms}, a line a batch; a ring marks the number of partitions that
    the rule has `chosen` for it."""
    times = _by_name(milliseconds)
    alt = f"Lines of decode time by partitions for {', '.join(times)}; rings mark the rule's choices."
    with chart(title=title, alt=alt, size=(10, 5)) as (picture, ax):
        for i, (name, line) in enumerate(times.items()):
            ax.plot(list(line), list(line.values()), label=name, **line_look(i))
            at = chosen[name]
            ax.plot([at], [line[at]], "o", markersize=20, mfc="none", mec=LINE_COLORS[i], mew=2.5)
        ax.set(
            xlabel="partitions a sequence (ring: the rule's choice)",
            ylabel="milliseconds",
            xscale="log",
            ylim=(0, None),
        )
        ticks = sorted({n for line in times.values() for n in line})
        ax.set_xticks(ticks, [_short(n) for n in ticks])
        ax.minorticks_off()
        ax.legend()
    return picture


def chunk_triangles(num_tokens: int, sizes: Sequence[int], *, title: str) -> Svg:
    """What the calls of a chunked prompt read, one panel a chunk size: a row is a call, from left to right the keys it
    sees; solid its own, hatched those that earlier calls have read before.
    """
    side, gap, top, left = 236, 46, TITLE_HEIGHT + 44, 30
    look, facts = sequence_style(0), []
    picture_width = left + len(sizes) * (side + gap)
    for size in sizes:
        calls = chunks(num_tokens, size)
        own, again = num_tokens, sum(start for start, _ in calls)
        facts.append((size, calls, own, again))
    picture = Svg(
        picture_width, top + side + 104, title=title,
        alt="; ".join(f"chunks of {size}, {len(calls)} of them: {own + again} keys are read, {again} of them again"
                      for size, calls, own, again in facts),
    )  # fmt: skip
    for panel, (size, calls, own, again) in enumerate(facts):
        x = left + panel * (side + gap)
        scale = side / num_tokens
        words = "all at once" if size >= num_tokens else f"chunks of {size}"
        picture.text(x, top - 14, words, weight="bold")
        picture.rect(x, top, side, side, fill="none", stroke="muted", dashed=True, radius=0)
        height = side / len(calls)
        edge = "ink" if height > 6 else "none"
        for row, (start, stop) in enumerate(calls):
            y = top + row * height
            if start:
                picture.rect(x, y, start * scale, height, fill="faint", pattern="rising", pattern_color="muted",
                             stroke=edge, radius=0)  # fmt: skip
            picture.rect(x + start * scale, y, (stop - start) * scale, height, fill=look.color, stroke=edge, radius=0)
        picture.text(x, top + side + 22, f"keys 0 to {num_tokens - 1}", size=SMALL, color="muted")
        picture.text(x, top + side + 46, f"{counted(len(calls), 'call')}, {own + again:,} keys read", weight="bold")
    x, y = left, top + side + 70
    marks = (("plain", look.color, "the call's own keys"), ("rising", "faint", "read again, from the pages"))
    for pattern, fill, words in marks:
        picture.rect(x, y, 26, 18, fill=fill, pattern=pattern, pattern_color="muted")
        picture.text(x + 34, y + 14, words, size=SMALL)
        x += 252
    picture.text(x, y + 14, "a row is a call, first on top", size=SMALL, color="muted")
    return picture


def mixed_batch(context_lens: ArrayLike, query_start_loc: ArrayLike, *, title: str) -> Svg:
    """One call over prompts and decodes together: the rows of q above, below the context that each sequence's queries
    sit at the end of. For batches of some twenty rows and contexts of some thirty tokens.
    """
    contexts, starts = np.asarray(context_lens).tolist(), np.asarray(query_start_loc).tolist()
    cell, left, top = 30, 134, TITLE_HEIGHT + 40
    columns = max(max(contexts), starts[-1])
    below = top + 132
    facts = "; ".join(
        f"{sequence_style(i).letter}: rows {first} to {last - 1}, positions {context - last + first} to {context - 1}"
        for i, (context, first, last) in enumerate(zip(contexts, starts, starts[1:], strict=False))
    )
    picture = Svg(left + columns * cell + 150, below + len(contexts) * 48 + 20, title=title, alt=facts + ".")
    picture.text(left - 14, top + 21, "rows of q", anchor="end", weight="bold")
    picture.text(left - 14, top + 62, "query_start_loc", anchor="end", size=SMALL)
    picture.text(left - 14, below - 14, "context", anchor="end", weight="bold")
    picture.text(left, below - 14, "every token in the pages; the queries, outlined, are the newest", size=SMALL)
    for i, context in enumerate(contexts):
        look, queries = sequence_style(i), starts[i + 1] - starts[i]
        y = below + i * 48
        for row in range(starts[i], starts[i + 1]):
            picture.cell(left + row * cell, top, cell, 32, look, context - queries + row - starts[i], size=13)
        picture.line([(left + starts[i] * cell, top + 36), (left + starts[i] * cell, top + 48)])
        picture.text(left + starts[i] * cell, top + 63, starts[i], anchor="middle", size=SMALL)
        picture.cell(left - 42, y, 28, 32, look, look.letter)
        for position in range(context):
            new = position >= context - queries
            picture.cell(left + position * cell, y, cell, 32, look if new else "empty", position, chosen=new, size=13)
        words = "decode" if queries == 1 else "prompt" if queries == context else "chunk of a prompt"
        picture.text(left + context * cell + 10, y + 21, words, size=SMALL)
    picture.line([(left + starts[-1] * cell, top + 36), (left + starts[-1] * cell, top + 48)])
    picture.text(left + starts[-1] * cell, top + 63, starts[-1], anchor="middle", size=SMALL)
    return picture


def step_timeline(milliseconds: Mapping[tuple[str, int], float], *, title: str) -> Chart:
    """Measured steps, {(way to cut it, step): ms}, of a batch in which a prompt is computed; one row a way to cut it. A
    bar is a step, at its end the other requests get their next token; the longest wait for one stands at the right.
    """
    rows = {name: list(steps.values()) for name, steps in _by_name(milliseconds).items()}
    from matplotlib.ticker import MaxNLocator

    alt = f"Bars of steps over time for {', '.join(rows)}."
    with chart(title=title, alt=alt, size=(12, 1.6 + 0.8 * len(rows))) as (picture, ax):
        ends = [sum(steps) for steps in rows.values()]
        for row, steps in enumerate(rows.values()):
            times = np.array(steps)
            begins = np.concatenate([[0], times.cumsum()[:-1]])
            fills = [LINE_COLORS[0], PALE]
            colors = [fills[i % 2] for i in range(len(times))]
            ax.barh([row] * len(times), times, left=begins, height=0.62, color=colors)
            ax.plot(times.cumsum(), [row + 0.42] * len(times), "^", color=LIGHT.ink, markersize=6, clip_on=False)
            label = f"longest wait {times.max():,.3g} ms"
            ax.text(max(ends) * 1.03, row, label, va="center", fontweight="bold")
        ax.set_yticks(range(len(rows)), list(rows))
        ax.set(xlabel="milliseconds (bars: steps; triangles: the decodes' next tokens)", xlim=(0, max(ends) * 1.3))
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
    return picture


def _by_name(milliseconds: Mapping[tuple[str, int], float]) -> dict[str, dict[int, float]]:
    result: dict[str, dict[int, float]] = {}
    for (name, number), took in milliseconds.items():
        result.setdefault(name, {})[number] = took
    return result


def _short(number: int) -> str:
    return f"{number // 1024}k" if number >= 1024 and number % 1024 == 0 else str(number)
