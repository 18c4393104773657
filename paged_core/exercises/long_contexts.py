"""Notebook 07: the merge of two partial softmaxes, in Python and in the kernel."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from paged_core.cases import paged_case
from paged_core.exercises.exercise import Exercise, Trial, attempt, close, trial
from paged_core.exercises.metal import Passage, run, sequences

ADD = Passage("if (partial_total[at] != 0.0f) acc +=", "  }\n  out[row * HEAD_DIM")


def _merges(answer: Any) -> Iterator[Trial]:
    rng = random.Random(7)
    cases: list[tuple[list[tuple[float, float]], list[tuple[float, float]]]] = [
        ([(0.0, 1.0)], [(0.0, 3.0)]), ([(1.0, 1.0)], [(0.0, 3.0)]), ([(0.0, 1.0)], [(2.0, 3.0)]), ([(1.0, 5.0)], []),
        ([], [(1.0, 5.0)]), ([], []), ([(900.0, 2.0)], [(901.0, 4.0)]), ([(-800.0, 2.0)], [(-801.0, 4.0)]),
        ([(800.0, 1.0)], [(-800.0, 3.0)]),
    ]  # fmt: skip
    for n in range(2, 40):
        keys = [(round(rng.gauss(0, 3), 1), round(rng.gauss(0, 3), 1)) for _ in range(n)]
        cut = rng.randint(0, n)
        cases.append((keys[:cut], keys[cut:]))
    for left, right in cases:
        a, b, expected = _partial(left), _partial(right), _partial(left + right)
        got = attempt(answer, a, b)
        given = f"a {_numbers(a)}, b {_numbers(b)}"
        yield trial(given, "top, total, acc", list(expected), got, close)


def _partial(keys: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    top = max((s for s, _ in keys), default=-math.inf)
    weights = [math.exp(s - top) for s, _ in keys]
    return top, math.fsum(weights), math.fsum(w * v for w, (_, v) in zip(weights, keys, strict=True))


def _numbers(partial: tuple[float, float, float]) -> str:
    return f"({', '.join(f'{x:.6g}' for x in partial)})"


def _added(answer: str) -> Iterator[Trial]:
    # A wide table and few tokens: four partitions a sequence, some of them without a key.
    case = paged_case(context_lens=[0, 1, 3, 10, 40], head_dim=64, num_q_heads=2, num_kv_heads=1, spare_entries=64)
    for _, tried in sequences(case, run(ADD, answer, case), "four partitions, each a quarter of the tokens or none"):
        yield tried


merge = Exercise("the merge", _merges, lines=5)
add = Exercise("the merge, in Metal", _added, lines=2, marker="//")
