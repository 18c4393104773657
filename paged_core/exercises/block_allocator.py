"""Notebook 02: a free list, and the one among many blocks that must not be freed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from paged_core.allocator import BlockAllocator
from paged_core.errors import InvalidBlock, PoolExhausted
from paged_core.exercises.exercise import Exercise, Failure, Trial, attempt, same, trial
from paged_core.viz.answers import Input, Row, compared
from paged_core.viz.style import SequenceStyle, sequence_style

Step = tuple[str, int]  # ("takes", how many blocks) or ("gives back", what which earlier step took)


def _free_lists(answer: Any) -> Iterator[Trial]:
    """Lives of a pool: the same steps for the answer and for a BlockAllocator."""
    by_hand: list[tuple[int, list[Step]]] = [
        (4, [("takes", 2)]),
        (4, [("takes", 2), ("gives back", 0), ("takes", 3)]),
        (4, [("takes", 5), ("takes", 4)]),
        (2, [("takes", 0), ("takes", 3), ("takes", 2), ("takes", 1), ("gives back", 2), ("takes", 1)]),
        (0, [("takes", 0), ("takes", 1)]),
    ]
    rng = random.Random(2)
    lives = [(rng.randint(1, 6), _life(rng)) for _ in range(200)]
    for num_blocks, steps in by_hand + sorted(lives, key=lambda life: len(life[1])):
        yield _lived(answer, num_blocks, steps)


def _life(rng: random.Random) -> list[Step]:
    """Nothing is given back twice, nor what was refused: `_lived` leaves that out."""
    steps: list[Step] = []
    for _ in range(rng.randint(2, 12)):
        taken = [k for k, (what, _) in enumerate(steps) if what == "takes" and ("gives back", k) not in steps]
        steps.append(
            ("gives back", rng.choice(taken)) if taken and rng.random() < 0.4 else ("takes", rng.randint(0, 4))
        )
    return steps


def _lived(answer: Any, num_blocks: int, steps: list[Step]) -> Trial:
    allocator, mine = BlockAllocator(num_blocks), attempt(answer, num_blocks)
    if isinstance(mine, Failure):
        return trial(f"a pool of {num_blocks}", "a new free list", "a free list", mine)
    rows: list[Row] = []
    taken: dict[int, list[int]] = {}  # by which step
    for i, (what, number) in enumerate(steps):
        if what == "takes":
            rows.append(_take(allocator, mine, number))
            if isinstance(rows[-1].expected, list):
                taken[i] = rows[-1].expected
        elif number in taken:
            blocks = taken.pop(number)
            allocator.free(blocks)
            got = attempt(_ask, mine, "free", list(blocks))
            rows.append(Row(f"gives back {blocks}", "taken back", got if isinstance(got, Failure) else "taken back"))
        if not same(rows[-1].expected, rows[-1].got):
            break
    given = f"a pool of {num_blocks}; {', '.join(row.words for row in rows)}"
    expected, got = rows[-1].expected, rows[-1].got
    return Trial(given, expected, got, same(expected, got), partial(compared, rows, given=given))


def _ask(thing: Any, method: str, argument: Any) -> Any:
    return getattr(thing, method)(argument)


def _take(allocator: BlockAllocator, mine: Any, n: int) -> Row:
    try:
        expected: Any = allocator.allocate_n(n)
    except PoolExhausted:
        expected = "PoolExhausted"
    got = attempt(_ask, mine, "allocate_n", n)
    if isinstance(got, Failure) and isinstance(got.error, PoolExhausted):
        got = "PoolExhausted"
    return Row(f"takes {n}", expected, got)


def _culprits(answer: Any) -> Iterator[Trial]:
    rng = random.Random(3)
    cases: list[tuple[list[int], list[int]]] = [
        ([1], []), ([1], [0]), ([0], [0]), ([1], [0, 0]), ([2], [0, 0]), ([1, 1], [-1]), ([1, 1], [2]),
        ([1, 0], [0, 1, 7]), ([2, 1], [0, 1, 0, 1, 0]),
    ]  # fmt: skip
    drawn = []
    for _ in range(300):
        counts = [rng.choice((0, 1, 1, 2, 3)) for _ in range(rng.randint(1, 6))]
        drawn.append((counts, [rng.randint(-1 if rng.random() < 0.1 else 0, len(counts) - 1) for _ in range(5)]))
    for counts, blocks in cases + sorted(drawn, key=lambda case: len(case[0])):
        expected = _culprit(counts, blocks)
        mine = list(counts)
        got = attempt(answer, mine, list(blocks))
        if mine != counts and not isinstance(got, Failure):
            got = f"{got}, and ref_counts has become {mine}"
        given = f"ref_counts {counts}, blocks {blocks}"
        inputs = [Input("ref_counts", counts, _counted(counts)), Input("blocks to free", blocks, lambda _: "empty")]
        yield trial(given, "the culprit", expected, got, inputs=inputs)


def _counted(counts: list[int]) -> Callable[[int], SequenceStyle | str]:
    return lambda block: sequence_style(0) if counts[block] else "free"


def _culprit(counts: list[int], blocks: list[int]) -> int | None:
    """What a BlockAllocator with these references refuses, when the blocks come back one by one."""
    allocator = BlockAllocator(len(counts))
    allocator.allocate_n(len(counts))
    for block, count in enumerate(counts):
        allocator.share([block] * (count - 1)) if count else allocator.free([block])
    for block in blocks:
        try:
            allocator.free([block])
        except InvalidBlock:
            return block
    return None


free_list = Exercise("a free list", _free_lists, lines=10)
culprit = Exercise("the culprit", _culprits, lines=6)
