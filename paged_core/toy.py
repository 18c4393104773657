"""The smallest model in which it matters what comes before a block: two layers of attention, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from paged_core.attention import paged_attention
from paged_core.pool import PagedPool, slot_mapping
from paged_core.reference import Float64, attention_error_bound, dense_attention


class TwoLayers:
    """Tokens 0 to 31, one head, no weights: in each layer q = k = v = the hidden states. The first layer is computed
    from scratch by the oracle; the second one's K and V lie in `pool`, which is what there is to share and to spoil.
    """

    HEAD_DIM, NUM_TOKENS = 16, 32

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        self.pool = PagedPool(
            num_layers=1, num_blocks=num_blocks, num_kv_heads=1, block_size=block_size, head_dim=self.HEAD_DIM,
            dtype=mx.float32,
        )  # fmt: skip
        # Small numbers, so that attention looks around and not only at the token itself.
        self._embedding = 0.3 * np.random.RandomState(5).standard_normal((self.NUM_TOKENS, self.HEAD_DIM))

    def hidden(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What enters the second layer, [num_tokens, 1, HEAD_DIM]: each embedding, plus what it attended to."""
        x = self._embedding[list(tokens)][:, None]
        return (x + dense_attention(x, x, x)).astype(np.float32)

    def compute(self, tokens: Sequence[int], blocks: Sequence[int], first: int = 0) -> None:
        """Write K and V of the tokens from `first` on into the sequence's blocks."""
        x = mx.array(self.hidden(tokens)[first:])
        starts = mx.array([0, len(tokens) - first], mx.int32)
        slots = slot_mapping(*_as_batch(tokens, blocks), self.pool.block_size, starts)
        self.pool.write(0, x, x, slots)

    def answer(self, tokens: Sequence[int], blocks: Sequence[int]) -> NDArray[np.float32]:
        """The second layer's attention output for the last token, [HEAD_DIM], with K and V read from the blocks."""
        q = mx.array(self.hidden(tokens)[-1:])
        return np.array(paged_attention(q, self.pool.k(0), self.pool.v(0), *_as_batch(tokens, blocks)))[0, 0]

    def truth(self, tokens: Sequence[int]) -> tuple[Float64, Float64]:
        """What `answer` would be in exact arithmetic, and how far from it a float32 kernel may lie; both [HEAD_DIM]."""
        x = self.hidden(tokens)
        return dense_attention(x[-1:], x, x)[0, 0], attention_error_bound(x[-1:], x, x, dtype="float32")[0, 0]


def _as_batch(tokens: Sequence[int], blocks: Sequence[int]) -> tuple[mx.array, mx.array]:
    return mx.array([list(blocks)], mx.int32), mx.array([len(tokens)], mx.int32)
