"""A prompt cut into chunks: the calls that it becomes, and what they read."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from paged_core.cases import PagedCase, query_starts
from paged_core.scalars import positive


class Chunk(NamedTuple):
    """The queries of one call: positions start .. stop - 1. They see the keys 0 .. stop - 1, each up to its own."""

    start: int
    stop: int


def chunks(num_tokens: int, size: int) -> list[Chunk]:
    """`num_tokens` of prompt, `size` at a time; the last chunk has what is left."""
    positive("size", size)
    return [Chunk(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def steps(case: PagedCase, size: int) -> list[dict[str, mx.array]]:
    """The calls that compute a case's first sequence in chunks, for `case.attend(executor, **step)`.

    The first sequence must be all prompt, as many queries as tokens. Each call takes one chunk of it, and along with it
    every query of the other sequences: in a served batch these are decodes, which get one token a call.
    """
    (num_tokens, *others), num_queries = np.array(case.context_lens).tolist(), np.diff(np.array(case.query_start_loc))
    if num_queries[0] != num_tokens:
        raise ValueError(f"case: expected a first sequence of {num_tokens} queries, one a token, got {num_queries[0]}")
    result = []
    for start, stop in chunks(num_tokens, size):
        step = {
            "q": mx.concatenate([case.q[start:stop], case.q[num_tokens:]]),
            "context_lens": mx.array([stop, *others], mx.int32),
            "query_start_loc": query_starts([stop - start, *num_queries[1:]]),
        }
        mx.eval(*step.values())
        result.append(step)
    return result


def keys_read(num_tokens: int, size: int) -> int:
    """K vectors of one head that the calls must read from memory, each call every key it sees, once."""
    return sum(stop for _, stop in chunks(num_tokens, size))


def keys_loaded(num_tokens: int, size: int, tile_queries: int) -> int:
    """K vectors of one head that kernel paged_prompt loads: once for each tile of `tile_queries` queries (rows of a
    threadgroup / query heads of a KV head), up to the newest key that the tile sees. The copies that fill up its last
    tile of keys are not counted.
    """
    tiles = (chunks(stop - start, tile_queries) for start, stop in chunks(num_tokens, size))
    starts = (start for start, _ in chunks(num_tokens, size))
    return sum(start + tile.stop for start, inside in zip(starts, tiles, strict=True) for tile in inside)
