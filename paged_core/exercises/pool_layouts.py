"""Notebook 04: the address of a number, in one layout and in all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from paged_core.exercises.exercise import Exercise, Trial, attempt, same, trial
from paged_core.layouts import X_BYTES, Geometry, PoolLayout
from paged_core.viz.answers import grids
from paged_core.viz.style import sequence_style


def _x_split(answer: Any) -> Iterator[Trial]:
    """All dims of all tokens of one block and head, as one table of addresses."""
    cases = [(Geometry(1, 1, 2, 8), 4, 0, 0), (Geometry(3, 2, 4, 8), 4, 0, 1), (Geometry(3, 2, 4, 8), 4, 2, 1)]
    cases += [
        (Geometry(4, 3, 5, 16), 2, 3, 2),
        (Geometry(2, 2, 3, 24), 4, 1, 0),
        (Geometry(70_000, 8, 16, 128), 2, 69_999, 7),
    ]
    for g, itemsize, block, head in cases:
        x = X_BYTES // itemsize
        tokens, dims = range(min(g.block_size, 4)), range(g.head_dim if g.head_dim < 32 else 9)
        expected = [
            [
                PoolLayout.X_SPLIT.element_offset("k", g, itemsize, block=block, head=head, token=token, dim=dim)
                for dim in dims
            ]
            for token in tokens
        ]
        got = attempt(_table, answer, tokens, dims, block, head, g, x)
        table = got if isinstance(got, list) else [[got] * len(dims)]  # one that fails does so at once
        at = next(((t, d) for t in tokens for d in dims if not same(expected[t][d], table[t][d])), (0, 0))
        sizes = f"num_kv_heads {g.num_kv_heads}, block_size {g.block_size}, head_dim {g.head_dim}, x {x}"
        yield Trial(
            f"block {block}, head {head}, token {at[0]}, dim {at[1]}; {sizes}",
            expected[at[0]][at[1]],
            table[at[0]][at[1]],
            same(expected, got),
            partial(
                grids, expected, got, given=f"block {block}, head {head}; {sizes}", down="token", across="dim",
                look=lambda _: sequence_style(0), label=lambda value: value if isinstance(value, int) else "!",
            ),
        )  # fmt: skip


def _table(answer: Any, tokens: range, dims: range, block: int, head: int, g: Geometry, x: int) -> list[list[Any]]:
    return [[answer(block, head, token, dim, g, x) for dim in dims] for token in tokens]


def _any_layout(answer: Any) -> Iterator[Trial]:
    rng = random.Random(4)
    cases = []
    for layout in PoolLayout:
        for which in "kv":
            for g in (Geometry(2, 2, 2, 8), Geometry(7, 3, 5, 16), Geometry(100_000, 8, 16, 128)):
                for _ in range(6):
                    at = [rng.randrange(size) for size in g]
                    cases.append((layout, which, g, dict(zip(("block", "head", "token", "dim"), at, strict=True))))
    for layout, which, g, where in sorted(cases, key=lambda case: case[2].num_blocks):
        itemsize = rng.choice((2, 4))
        axes, shape = layout.axes(which), layout.shapes(g, itemsize)[which == "v"]
        at = {**where, "kv": int(which == "v")}
        if "group" in axes:
            at["group"], at["dim"] = divmod(where["dim"], X_BYTES // itemsize)
        at = {axis: at[axis] for axis in sorted(axes)}  # in no order that would help
        expected = layout.element_offset(which, g, itemsize, **where)
        got = attempt(answer, axes, shape, dict(at))
        given = f"{which.upper()} in {layout.name}: axes {axes}, shape {shape}, at {at}"
        yield trial(given, "element", expected, got)


x_split = Exercise("X_SPLIT by hand", _x_split, lines=3)
any_layout = Exercise("one formula for all", _any_layout, lines=4)
