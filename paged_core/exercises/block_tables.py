"""Notebook 03: from positions to slots and back, and a table that grows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from paged_core.cases import shuffled_allocator
from paged_core.errors import PoolExhausted, SequenceTooLong
from paged_core.exercises.exercise import Exercise, Failure, Trial, attempt, same, trial
from paged_core.pool import slot_mapping
from paged_core.sequence import PagedSeqState
from paged_core.viz.answers import Input, Row, compared
from paged_core.viz.style import SequenceStyle, letter, sequence_style

PAST_THE_END = 999  # what stands in a table where nobody may look


def _slots(answer: Any) -> Iterator[Trial]:
    rng = random.Random(3)
    by_hand = [([3], 4, 1, 1), ([5, 2], 4, 6, 2), ([5, 2], 4, 5, 3), ([7, 0], 4, 8, 1), ([9, 2, 31], 16, 41, 41)]
    drawn = []
    for _ in range(200):
        block_size, context = rng.randint(1, 5), rng.randint(1, 20)
        blocks = rng.sample(range(30), -(-context // block_size))
        drawn.append((blocks, block_size, context, rng.randint(0, context)))
    for blocks, block_size, context, new in by_hand + sorted(drawn, key=lambda case: case[2]):
        table = [*blocks, PAST_THE_END]
        starts = mx.array([0, new], mx.int32)
        tables, contexts = mx.array([table], mx.int32), mx.array([context], mx.int32)
        expected = slot_mapping(tables, contexts, block_size, starts).tolist()
        got = attempt(answer, list(table), block_size, context, new)
        given = f"blocks {table}, block_size {block_size}, context {context}, new {new}"
        words = f"slots of positions {context - new} to {context - 1}" if new else "no new token"
        inputs = [Input("blocks", table, _up_to(len(blocks)))]
        yield trial(given, words, expected, got, inputs=inputs)


def _up_to(end: int) -> Callable[[int], SequenceStyle | str]:
    """A sequence's own entries, and poison after them."""
    return lambda i: sequence_style(0) if i < end else "nan"


def _growths(answer: Any) -> Iterator[Trial]:
    """Steps of a sequence's life: (blocks in the pool, longest table, lengths asked for one after the other)."""
    rng = random.Random(4)
    cases: list[tuple[int, int, list[int]]] = [
        (4, 4, [4]), (4, 4, [1]), (4, 4, [0, 5]), (4, 4, [6, 6, 7, 3]), (2, 4, [9, 8]), (9, 2, [4, 9, 8]),
    ]  # fmt: skip
    drawn = [
        (rng.randint(1, 6), rng.randint(1, 6), [rng.randint(0, 24) for _ in range(rng.randint(1, 6))])
        for _ in range(200)
    ]
    for case in cases + sorted(drawn, key=lambda case: len(case[2])):
        yield _grown(answer, *case)


def _grown(answer: Any, num_blocks: int, max_blocks: int, lengths: list[int], block_size: int = 4) -> Trial:
    allocator, twin = (shuffled_allocator(num_blocks, seed=num_blocks) for _ in "ab")
    seq = PagedSeqState(block_size, max_blocks)
    blocks: list[int] = []
    rows: list[Row] = []
    wrong = None
    for length in lengths:
        refusal = None
        try:
            seq.ensure_capacity(twin, length)
        except (PoolExhausted, SequenceTooLong) as error:
            refusal = type(error)
        result = attempt(answer, blocks, block_size, max_blocks, length, allocator)
        if isinstance(result, Failure) and not (refusal and isinstance(result.error, refusal)):
            rows.append(Row(f"grow to {length}", refusal.__name__ if refusal else list(seq.blocks), result))
        elif refusal and not isinstance(result, Failure):
            rows.append(Row(f"grow to {length}", refusal.__name__, list(blocks)))
        else:
            rows.append(Row(f"{'refused' if refusal else 'grown to'} {length}: blocks", list(seq.blocks), list(blocks)))
        rows.append(Row(f"{length} asked for: blocks in use", twin.in_use, allocator.in_use))
        wrong = next((row for row in rows[-2:] if not same(row.expected, row.got)), None)
        if wrong:
            break
    asked = ", then ".join(map(str, lengths[: len(rows) // 2]))
    given = f"block_size {block_size}, max_blocks {max_blocks}, an allocator of {num_blocks}; target_len {asked}"
    last = wrong or rows[-1]
    draw = partial(compared, rows, given=given)
    return Trial(f"{given}; {last.words}", last.expected, last.got, wrong is None, draw)


def _owners(answer: Any) -> Iterator[Trial]:
    rng = random.Random(5)
    by_hand = [(4, [[1]], [3]), (4, [[2, 0], [1]], [5, 4]), (1, [[1], []], [1, 0])]
    drawn = []
    for _ in range(60):
        block_size, ids = rng.randint(1, 4), rng.sample(range(9), 9)
        lens = [rng.randint(0, 3 * block_size) for _ in range(rng.randint(1, 3))]
        drawn.append((block_size, [[ids.pop() for _ in range(-(-n // block_size))] for n in lens], lens))
    for block_size, tables, lens in by_hand + sorted(drawn, key=lambda case: sum(case[2])):
        owner: dict[int, list[int]] = {}
        for seq, (table, context) in enumerate(zip(tables, lens, strict=True)):
            if context:
                arrays = mx.array([table], mx.int32), mx.array([context], mx.int32)
                mapped = np.array(slot_mapping(*arrays, block_size, mx.array([0, context], mx.int32)))
                owner |= {slot: [seq, position] for position, slot in enumerate(mapped.tolist())}
        for slot in range(9 * block_size):
            expected = owner.get(slot)
            got = attempt(answer, slot, block_size, [list(table) for table in tables], list(lens))
            given = f"slot {slot}, block_size {block_size}, tables {tables}, lens {lens}"
            inputs = [Input(f"{letter(i)}: len {lens[i]}", table, _all(i)) for i, table in enumerate(tables)]
            yield trial(given, f"who has slot {slot}?", expected, got, inputs=inputs)


def _all(seq: int) -> Callable[[int], SequenceStyle]:
    return lambda _: sequence_style(seq)


slots = Exercise("slots by hand", _slots, lines=3)
grow = Exercise("a table that grows", _growths, lines=6)
whose = Exercise("backwards", _owners, lines=6)
