"""paged_attention(): checks the arguments, picks the executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from paged_core import executors
from paged_core.arguments import (
    as_host_ints,
    check_dtype,
    check_fits_tables,
    check_pool_dtype,
    check_query_starts,
    check_shape,
    query_starts,
)
from paged_core.errors import InvalidBlockTable
from paged_core.layouts import Geometry, PoolLayout, check_layout
from paged_core.scalars import finite, positive

if TYPE_CHECKING:
    from paged_core.executors.trace import Trace

MAX_RECORDS = 10_000_000  # of a trace: 160 MB, and about 800 MB more once Trace.records is asked for


class AttentionCall(NamedTuple):
    """The checked arguments of one `paged_attention`, as every executor takes them."""

    q: mx.array  # [num_tokens, num_q_heads, head_dim]
    k_pool: mx.array
    v_pool: mx.array
    block_tables: mx.array  # int32 [num_seqs, max_blocks]
    context_lens: mx.array  # int32 [num_seqs]
    query_start_loc: mx.array | None  # int32 [num_seqs + 1]; None: one query token a sequence
    scale: float
    layout: PoolLayout
    geometry: Geometry
    sliding_window: int | None
    softcap: float | None
    sinks: mx.array | None  # float32 [num_q_heads]
    alibi_slopes: mx.array | None  # float32 [num_q_heads]


def paged_attention(
    q: mx.array,
    k_pool: mx.array,
    v_pool: mx.array,
    block_tables: mx.array,
    context_lens: mx.array,
    *,
    query_start_loc: mx.array | None = None,
    scale: float | None = None,
    layout: PoolLayout = PoolLayout.HND,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: mx.array | None = None,
    alibi_slopes: mx.array | None = None,
    executor: str = "auto",
    check: bool = True,
) -> mx.array:
    """Causal attention of each sequence's newest tokens over K and V that lie in pages.

    q                [num_tokens, num_q_heads, head_dim], the pool's dtype; the queries of all sequences end to end
    k_pool, v_pool   one layer's arrays, in `layout`; float32, float16 or bfloat16
    block_tables     int32 [num_seqs, max_blocks]; entries past ceil(context / block_size) are neither read nor checked
    context_lens     int32 [num_seqs], tokens, the query tokens included; 0 gives zeros for that sequence's queries
    query_start_loc  int32 [num_seqs + 1]: sequence i has queries query_start_loc[i] .. query_start_loc[i+1] - 1, which
                     sit at the end of its context; None is decode, one query a sequence

    A logit is s = scale * q.k, scale 1/sqrt(head_dim) unless given; then softcap c > 0: s = c tanh(s / c); then ALiBi
    (float32 [num_q_heads]): s -= slope * (q_pos - k_pos). A query sees k_pos <= q_pos, and with a sliding_window w >= 1
    only k_pos > q_pos - w; what it does not see has no influence, NaN included. `sinks` (float32 [num_q_heads]) add one
    logit to each head's softmax that carries no value.

    num_q_heads is a multiple of num_kv_heads: query head h reads KV head h // (num_q_heads / num_kv_heads). head_dim is
    a multiple of 8 up to 512, block_size any positive integer.

    check=True also looks at the *values* in tables and lengths, which waits for a GPU: check once a step, then pass
    False. Shapes and dtypes are always checked. Returns q's shape and dtype.

    Raises ValueError or TypeError for an argument that does not fit, InvalidBlockTable for a table that must not be
    followed, ExecutorUnavailable for an executor that cannot run here.
    Source: PagedAttention, Kwon et al., SOSP 2023; the online softmax of Milakov and Gimelshein, 2018.
    """
    call = checked_call(
        q, k_pool, v_pool, block_tables, context_lens, query_start_loc, scale, layout, sliding_window, softcap, sinks,
        alibi_slopes, check,
    )  # fmt: skip
    return executors.choose(executor).run(call)


def trace(
    q: mx.array,
    k_pool: mx.array,
    v_pool: mx.array,
    block_tables: mx.array,
    context_lens: mx.array,
    *,
    query_start_loc: mx.array | None = None,
    scale: float | None = None,
    layout: PoolLayout = PoolLayout.HND,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: mx.array | None = None,
    alibi_slopes: mx.array | None = None,
    check: bool = True,
    max_records: int = MAX_RECORDS,
) -> Trace:
    """`paged_attention` in the simulator: its output, and a record of every load and store that its kernels make.

    The arguments are those of `paged_attention`; see `Trace` for what comes back. A decode makes about 2 * head_dim
    loads for each token of context and head. KernelError when there are more than `max_records` (of 16 bytes, and about
    80 more once `Trace.records` is asked for); a SimulatorFinding when a kernel is caught at something.
    """
    call = checked_call(
        q, k_pool, v_pool, block_tables, context_lens, query_start_loc, scale, layout, sliding_window, softcap, sinks,
        alibi_slopes, check,
    )  # fmt: skip
    return executors.choose("simulator").simulate(call, max_records=positive("max_records", max_records))


def checked_call(
    q, k_pool, v_pool, block_tables, context_lens, query_start_loc=None, scale=None, layout=PoolLayout.HND,
    sliding_window=None, softcap=None, sinks=None, alibi_slopes=None, check=True,
) -> AttentionCall:  # fmt: skip
    """The arguments of `paged_attention`, refused or ready for an executor."""
    check_layout(layout)
    check_shape("q", q, ("num_tokens", "num_q_heads", "head_dim"))
    num_tokens, num_q_heads, head_dim = q.shape
    check_pool_dtype("q", q.dtype)
    for name, pool in (("k_pool", k_pool), ("v_pool", v_pool)):
        if not isinstance(pool, mx.array):
            raise TypeError(f"{name}: expected an mlx array, got {type(pool).__name__}")
        check_dtype(name, pool, q.dtype, "q's dtype")
    geometry = layout.geometry(k_pool.shape, v_pool.shape, q.dtype.size)
    if head_dim != geometry.head_dim:
        raise ValueError(f"q: expected the pool's head_dim {geometry.head_dim}, got {head_dim}")
    if head_dim % 8 or not 0 < head_dim <= 512:
        raise ValueError(f"q: expected a head_dim that is a multiple of 8 up to 512, got {head_dim}")
    if geometry.num_kv_heads == 0 or num_q_heads == 0 or num_q_heads % geometry.num_kv_heads:
        raise ValueError(
            f"q: expected (the pools being {layout.name}, if that is right) num_q_heads in a multiple of the pool's "
            f"{geometry.num_kv_heads} KV heads, got {num_q_heads}"
        )
    if geometry.block_size == 0:
        raise ValueError(f"k_pool: expected a block_size of 1 or more, got shape {list(k_pool.shape)}")
    check_shape("block_tables", block_tables, ("num_seqs", "max_blocks"))
    check_dtype("block_tables", block_tables, mx.int32)
    num_seqs = block_tables.shape[0]
    check_shape("context_lens", context_lens, (num_seqs,))
    check_dtype("context_lens", context_lens, mx.int32)
    if query_start_loc is not None:
        check_shape("query_start_loc", query_start_loc, (num_seqs + 1,))
        check_dtype("query_start_loc", query_start_loc, mx.int32)
    elif num_tokens != num_seqs:
        raise ValueError(
            f"q: expected one query token for each of the {num_seqs} sequences, got {num_tokens}; "
            "several tokens a sequence need query_start_loc"
        )
    for name, x in (("sinks", sinks), ("alibi_slopes", alibi_slopes)):
        if x is not None:
            check_shape(name, x, (num_q_heads,))
            check_dtype(name, x, mx.float32)
    if sliding_window is not None:
        sliding_window = min(positive("sliding_window", sliding_window), 2**31 - 1)  # contexts are int32: all is seen
    if softcap is not None:
        softcap = finite("softcap", softcap)
        if softcap <= 0:
            raise ValueError(f"softcap: expected a positive number, got {softcap}")
    scale = head_dim**-0.5 if scale is None else finite("scale", scale)
    if check:
        _check_values(num_tokens, block_tables, context_lens, query_start_loc, geometry)
    return AttentionCall(
        q, k_pool, v_pool, block_tables, context_lens, query_start_loc, scale, layout, geometry,
        sliding_window, softcap, sinks, alibi_slopes,
    )  # fmt: skip


def _check_values(num_tokens, block_tables, context_lens, query_start_loc, geometry: Geometry) -> None:
    """Look at the numbers a kernel would follow blindly."""
    num_seqs, max_blocks = block_tables.shape
    num_blocks, _, block_size, _ = geometry
    contexts = as_host_ints("context_lens", context_lens)
    starts = query_starts(query_start_loc, num_seqs)
    check_query_starts(starts, num_tokens)
    num_queries = np.diff(starts)
    for seq in np.flatnonzero(contexts < 0):
        raise ValueError(f"context_lens[{seq}]: expected 0 tokens or more, got {contexts[seq]}")
    check_fits_tables(contexts, max_blocks, block_size)
    for seq in np.flatnonzero((0 < contexts) & (contexts < num_queries)):
        raise ValueError(
            f"context_lens[{seq}]: expected 0, or at least the sequence's {num_queries[seq]} query tokens, "
            f"got {contexts[seq]}"
        )
    tables = as_host_ints("block_tables", block_tables)
    in_use = np.arange(max_blocks) < -(-contexts // block_size)[:, None]
    for seq, entry in np.argwhere(in_use & ((tables < 0) | (tables >= num_blocks))):
        raise InvalidBlockTable(
            f"block_tables[{seq}, {entry}]: expected a block from 0 to {num_blocks - 1}, got {tables[seq, entry]}"
        )
