"""Two ways to the same logits: over pages, and by mlx-lm over its dense cache; and how far they may lie apart."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from paged_core.batch import Batch
from paged_core.models.llama import Llama
from paged_core.pool import PagedPool
from paged_core.scheduler import Request, State, Work

ROUNDOFF = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}


def work_for(tokens: Sequence[int], blocks: Sequence[int], first: int, count: int, *, samples: bool = True) -> Work:
    """`count` tokens from `first` on, of a sequence that lies in `blocks`: work without a scheduler."""
    request = Request("", list(tokens), len(tokens), 1, frozenset(), (0,), State.RUNNING, list(blocks))
    return Work(request, first, count, samples)


def paged_logits(
    model: Llama,
    pool: PagedPool,
    blocks: Sequence[int],
    tokens: Sequence[int],
    *,
    prompt: int,
    chunks: Sequence[int] | None = None,
    blocks_after_prompt: Sequence[int] | None = None,
    executor: str = "auto",
) -> NDArray[np.float64]:
    """Logits after the first `prompt` tokens and after each that follows: float64 [len(tokens) - prompt + 1, vocab].

    K and V go into `blocks` of the pool; the prompt in one go or in `chunks`, the rest token by token. To see what a
    wrong block table does, hand one over as `blocks_after_prompt`: the tokens after the prompt go by it.
    """
    rows, first = [], 0
    for count in (*(chunks or [prompt]), *[1] * (len(tokens) - prompt)):
        table = blocks if first < prompt else blocks_after_prompt or blocks
        work = work_for(tokens, table, first, count, samples=first + count >= prompt)
        logits = model(Batch.of([work], pool.block_size), pool, executor=executor)
        rows.append(np.array(logits, np.float64))
        first += count
    return np.concatenate(rows)


def greedy(
    model: Llama,
    pool: PagedPool,
    blocks: Sequence[int],
    prompt: Sequence[int],
    num_new_tokens: int,
    *,
    blocks_after_prompt: Sequence[int] | None = None,
) -> list[int]:
    """The tokens with which the model goes on, always by the likeliest; blocks as in `paged_logits`."""
    tokens = list(prompt)
    logits = paged_logits(model, pool, blocks, tokens, prompt=len(tokens))
    for _ in range(num_new_tokens):
        tokens.append(int(logits[-1].argmax()))
        work = work_for(tokens, blocks_after_prompt or blocks, len(tokens) - 1, 1)
        logits = np.array(model(Batch.of([work], pool.block_size), pool))
    return tokens[len(prompt) :]


def mlx_lm_logits(model, tokens: Sequence[int], *, prompt: int) -> NDArray[np.float64]:
    """The same by mlx-lm's `model` over its own cache."""
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    parts = [tokens[:prompt], *([token] for token in tokens[prompt:])]
    rows = [model(mx.array([part]), cache=cache)[0, -1].astype(mx.float32) for part in parts]
    return np.array(mx.stack(rows), np.float64)


def logit_bound(logits: ArrayLike, dtype: mx.Dtype, num_layers: int, position: int) -> float:
    """How far two ways of computing a token's `logits` in `dtype` may lie apart by rounding.

    An estimate, not a proof: each layer rounds about a dozen times on its way (two norms, seven products, the softmax,
    two sums), each time by a unit roundoff u of what it has at hand, and products add up roundings of their own. 64 u a
    layer is 5 to 100 times what was seen. An angle of rotation is a float32 that grows with the position, and
    off by as many of its u. In float32 a wrong slot or position is hundreds of bounds away; in float16 and bfloat16,
    whose bounds are thousands of times as wide, it may lie within. So compare in float32.
    """
    return float(np.abs(logits).max() * num_layers * (64 * ROUNDOFF[dtype] + 2 * position * ROUNDOFF[mx.float32]))


def share_of_bound(
    got: NDArray, expected: NDArray, dtype: mx.Dtype, *, num_layers: int, first: int
) -> NDArray[np.float64]:
    """The largest difference of each row of logits, as a share of its bound; row i is after `first` + i tokens."""
    bounds = [logit_bound(row, dtype, num_layers, first + i) for i, row in enumerate(expected)]
    return np.abs(got - expected).max(axis=1) / bounds
