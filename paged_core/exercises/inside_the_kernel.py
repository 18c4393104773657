"""Notebook 06, in Metal: what a new maximum does to what was gathered, and the walk along the block table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from paged_core.cases import PagedCase, paged_case, to_numpy
from paged_core.executors.trace import Trace
from paged_core.exercises.exercise import Exercise, Trial, trial
from paged_core.exercises.metal import Passage, run, sequences, traced
from paged_core.viz.answers import Input
from paged_core.viz.style import sequence_style
from paged_core.viz.words import counted

RESCALE = Passage(
    "const float rescale = exp(top[h] - tile_top);", "      UNROLL_ON_GPU for (int j = 0; j < KEYS; ++j) s[h]"
)
FOLLOW = Passage("int entry = tile / problem.block_size;", "\n    // Logits: each lane")
HEAD_DIM = 64


def _rescaled(answer: str) -> Iterator[Trial]:
    case = paged_case(
        context_lens=[1, 4, 33, 40, 70, 100], head_dim=HEAD_DIM, block_size=3, num_q_heads=2, num_kv_heads=1
    )
    output = run(RESCALE, answer, case)
    for _, tried in sequences(case, output, "a simdgroup has its second tile from token 32 on"):
        yield tried


def _followed(answer: str) -> Iterator[Trial]:
    case = paged_case(context_lens=[1, 3, 4, 13, 22], head_dim=HEAD_DIM, block_size=3, num_q_heads=2, num_kv_heads=1)
    seen = traced(FOLLOW, answer, case)
    output = to_numpy(seen.output) if isinstance(seen, Trace) else seen
    for i, tried in sequences(case, output, f"block_size 3, blocks {[seq.blocks for seq in case.seqs]}"):
        yield _where_read(tried, case, seen, i) if isinstance(seen, Trace) and not tried.right else tried


def _where_read(tried: Trial, case: PagedCase, seen: Trace, i: int) -> Trial:
    """The trial again, in terms of the slots that the trace says were read for each position."""
    seq = case.seqs[i]
    expected = [seq.blocks[p // seq.block_size] * seq.block_size + p % seq.block_size for p in range(seq.len)]
    loads = seen.records[(seen.records["buffer"] == "k_pool") & (seen.records["threadgroup"] == i)]
    loads = loads[loads["lane"] == 0]
    loads = loads[np.lexsort((loads["step"], loads["simdgroup"]))]
    got: Any = (loads["index"] // HEAD_DIM)[:: HEAD_DIM // 32].tolist()[: seq.len]
    if got == expected:
        return tried  # K is right: then it is V
    given = f"a sequence of {counted(seq.len, 'token')} in blocks {seq.blocks}, block_size {seq.block_size}"
    inputs = [Input("blocks", seq.blocks, lambda _: sequence_style(i))]
    return trial(given, "slots read, by position", expected, got, inputs=inputs)


rescale = Exercise("a new maximum", _rescaled, lines=4, marker="//")
follow = Exercise("follow the table", _followed, lines=6, marker="//")
