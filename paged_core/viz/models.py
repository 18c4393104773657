"""A model's logits against another's, and how many tokens a second come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from paged_core.viz.figure import Chart, chart
from paged_core.viz.style import ALLOWED_COLOR, LIGHT, line_look


def logit_errors(shares: Mapping[str, ArrayLike], *, first: int, title: str) -> Chart:
    """For each name the largest difference of every token's logits, as a share of its bound, along the text; the first
    of them is after `first` tokens. Up to 1 is rounding."""
    lines = {name: np.asarray(values, float) for name, values in shares.items()}
    alt = "Difference over bound, token by token, on a log axis; up to 1 is rounding. " + "; ".join(
        f"{name}: {'within' if line.max() <= 1 else 'beyond'}" for name, line in lines.items()
    )
    with chart(title=title, alt=alt, size=(10, 4.4)) as (picture, ax):
        ax.axhspan(1e-3, 1, color=ALLOWED_COLOR, alpha=0.45, zorder=0)
        ax.axhline(1, color=LIGHT.ink, linewidth=1.5)
        for i, (name, line) in enumerate(lines.items()):
            ax.plot(range(first, first + len(line)), line, label=name, markevery=8, **line_look(i))
        ax.text(0.99, 0.35, "within the bound: rounding", transform=ax.get_yaxis_transform(), ha="right", va="center")
        ax.set(yscale="log", ylim=(1e-3, None), xlabel="tokens read", ylabel="difference of logits / bound")
        picture.figure.legend(loc="outside lower center", ncols=len(shares))
    return picture


def tokens_per_second(speeds: Mapping[str, Mapping[int, float]], *, title: str) -> Chart:
    """Tokens a second by how many requests are served at once, one line a name. Measured."""
    alt = "; ".join(
        f"{name}: {', '.join(f'{speed:,.0f} at {count}' for count, speed in line.items())}"
        for name, line in speeds.items()
    )
    counts: Sequence[int] = sorted({count for line in speeds.values() for count in line})
    with chart(title=title, alt=alt, size=(10, 4.2)) as (picture, ax):
        for i, (name, line) in enumerate(speeds.items()):
            look = line_look(i)
            if len(line) == 1:  # a mark and no line, open, for it may well lie on another
                look |= {"linestyle": "none", "markersize": 15, "markerfacecolor": "none", "markeredgewidth": 3}
            ax.plot(list(line), list(line.values()), label=name, **look)
        ax.set(xscale="log", xlabel="requests at once", ylabel="tokens a second", ylim=(0, None))
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.legend()
    return picture
