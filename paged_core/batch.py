"""A step's work as arrays: the new tokens of every sequence end to end, and where each finds its past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from paged_core.pool import slot_mapping
from paged_core.scheduler import Work


class Part(NamedTuple):
    """What one call of `paged_attention` computes: sequences with one new token each, or with several."""

    rows: slice  # of the batch's tokens
    block_tables: mx.array  # int32 [num_seqs, max_blocks]
    context_lens: mx.array  # int32 [num_seqs], the new tokens included
    query_start_loc: mx.array | None  # int32 [num_seqs + 1]; None when every sequence has one token


class Batch(NamedTuple):
    """What a model computes in one go: sequences with one new token first, then those with several.

    Everything but attention treats all tokens alike. For attention the two are apart, since each has a kernel of its
    own: to pass 31 decodes of 500 tokens through the kernel for prompts takes 3 to 5 times as long.
    """

    work: list[Work]  # in the order of this batch
    tokens: NDArray[np.int32]  # [num_tokens]
    positions: NDArray[np.int32]  # [num_tokens], of each token in its sequence
    logits_of: NDArray[np.int64]  # the tokens, by their place in this batch, whose logits are wanted
    slot_mapping: mx.array  # int32 [num_tokens]: where their K and V go
    parts: list[Part]

    @classmethod
    def of(cls, work: Sequence[Work], block_size: int) -> Batch:
        """The batch for a plan's `work`. Its tables and slots are checked here, once for all layers."""
        decodes, prompts = [w for w in work if w.num_tokens == 1], [w for w in work if w.num_tokens > 1]
        work = decodes + prompts
        counts = np.array([w.num_tokens for w in work], np.int32)
        ends = np.cumsum(counts, dtype=np.int32)
        contexts = np.array([w.first for w in work], np.int32) + counts
        slots, parts = [], []
        for part in (decodes, prompts):
            if not part:
                continue
            tables = np.zeros((len(part), max(len(w.request.blocks) for w in part)), np.int32)
            for row, w in zip(tables, part, strict=True):
                row[: len(w.request.blocks)] = w.request.blocks
            chosen = slice(0, len(decodes)) if part is decodes else slice(len(decodes), None)
            first = int(ends[len(decodes) - 1]) if part is prompts and decodes else 0
            starts = None if part is decodes else mx.array(np.concatenate([[first], ends[chosen]]) - first, mx.int32)
            arguments = mx.array(tables), mx.array(contexts[chosen])
            slots.append(slot_mapping(*arguments, block_size, starts))
            parts.append(Part(slice(first, first + slots[-1].size), *arguments, starts))
        return cls(
            work,
            np.array([token for w in work for token in w.request.tokens[w.first : w.first + w.num_tokens]], np.int32),
            (np.arange(ends[-1]) + np.repeat(contexts - ends, counts)).astype(np.int32),
            ends[[w.samples for w in work]].astype(np.int64) - 1,
            mx.concatenate(slots),
            parts,
        )
