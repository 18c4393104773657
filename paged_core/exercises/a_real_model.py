"""Notebook 10: what a batch holds, and from which tokens one is drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from paged_core.batch import Batch
from paged_core.exercises.exercise import Exercise, Trial, attempt, trial
from paged_core.models.oracle import work_for
from paged_core.sampling import Sampling
from paged_core.viz.answers import Input
from paged_core.viz.style import sequence_style


def _batches(answer: Any) -> Iterator[Trial]:
    rng = random.Random(10)
    cases = [([0], [1]), ([3], [1]), ([0], [3]), ([4], [2]), ([0, 5], [2, 1]), ([7, 0, 2], [1, 3, 1]), ([0, 0], [2, 2])]
    for _ in range(200):
        count = rng.randint(1, 5)
        cases.append(([rng.randint(0, 9) for _ in range(count)], [rng.choice((1, 1, 2, 3, 4)) for _ in range(count)]))
    for computed, new in sorted(cases, key=lambda case: (len(case[0]), sum(case[1]))):
        expected = _rows(computed, new)
        got = attempt(answer, list(computed), list(new))
        inputs = [Input("computed", computed, sequence_style), Input("new", new, sequence_style)]
        words = "(sequence, position) of each row"
        yield trial(f"computed {computed}, new {new}", words, expected, got, inputs=inputs)


def _rows(computed: list[int], new: list[int]) -> list[list[Any]]:
    """What Batch.of lays out."""
    work = [work_for(range(first + count), range(8), first, count) for first, count in zip(computed, new, strict=True)]
    for i, item in enumerate(work):
        item.request.id = i
    batch = Batch.of(work, block_size=4)
    sequences = [item.request.id for item in batch.work for _ in range(item.num_tokens)]
    return [[seq, position] for seq, position in zip(sequences, batch.positions.tolist(), strict=True)]


def _nuclei(answer: Any) -> Iterator[Trial]:
    rng = random.Random(11)
    cases = [([1], 0.5), ([8, 4, 2, 1], 0.5), ([8, 4, 2, 1], 0.6), ([1, 2, 4, 8], 0.6), ([4, 1, 8, 2], 0.9),
             ([4, 1, 8, 2], 1.0), ([5, 5, 5], 0.5), ([1, 1000, 1], 0.01)]  # fmt: skip
    for _ in range(200):
        weights = [rng.randint(1, 30) for _ in range(rng.randint(1, 9))]
        cases.append((weights, rng.choice((0.113, 0.317, 0.529, 0.713, 0.877, 0.951))))
    for weights, top_p in sorted(cases, key=lambda case: len(case[0])):
        logits = np.log(np.array(weights, np.float32)) - 800  # so far from zero that exp of it alone is 0
        tokens, _ = Sampling(1.0, top_p=top_p).candidates(logits)
        got = attempt(answer, logits.tolist(), top_p)
        given = f"logits {[round(x, 2) for x in logits.tolist()]} (weights {weights}), top_p {top_p}"
        inputs = [Input("weights", weights, lambda _: "free")]
        yield trial(given, "tokens, the likeliest first", tokens.tolist(), got, inputs=inputs)


rows = Exercise("the rows of a batch", _batches, lines=3)
nucleus = Exercise("the nucleus", _nuclei, lines=5)
