"""The `ops` executor: attention over pages in plain MLX operations. Every kernel's twin, and the fallback."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from paged_core.arguments import as_host_ints, query_starts
from paged_core.layouts import PoolLayout

LOGITS_AT_ONCE = 1 << 25  # a chunk of queries has at most so many logits: 128 MB in float32


def why_not() -> str | None:
    """None: MLX's operations run everywhere."""
    return None


def run(call) -> mx.array:
    """Gather K and V out of the pages, then dense attention, in float32. Sequences with equally many queries go
    together, so all the decodes of a batch are one group and no prompt is padded to another's length.
    """
    contexts = as_host_ints("context_lens", call.context_lens)
    starts = query_starts(call.query_start_loc, len(contexts))
    num_queries = np.diff(starts)
    output = mx.zeros(call.q.shape, call.q.dtype)
    for queries in np.unique(num_queries[(num_queries > 0) & (contexts > 0)]):
        seqs = np.flatnonzero((num_queries == queries) & (contexts > 0))
        rows = starts[seqs][:, None] + np.arange(queries)  # [seqs, queries]: rows of q
        output[mx.array(rows)] = _attend_group(call, seqs, contexts[seqs], mx.array(rows)).astype(call.q.dtype)
    mx.eval(output)  # a lazy result would still hold the pool, and the next write would have to copy it
    return output


def _attend_group(call, seqs: np.ndarray, contexts: np.ndarray, rows: mx.array) -> mx.array:
    """float32 [seqs, queries, num_q_heads, head_dim] for sequences that have `queries` query tokens each."""
    num_seqs, queries = rows.shape
    num_kv_heads, head_dim = call.geometry.num_kv_heads, call.geometry.head_dim
    k, v = _gather(call, seqs, int(contexts.max()))  # [seqs, kv heads, 1, keys, D]
    keys = k.shape[-2]
    k_pos = mx.arange(keys)
    contexts = mx.array(contexts)[:, None, None]
    first_q_pos = contexts - queries
    oldest = 0 if call.sliding_window is None else first_q_pos - call.sliding_window + 1
    read = (k_pos < contexts) & (k_pos >= oldest)  # [seqs, 1, keys]: what some query of the sequence sees
    v = mx.where(read[:, None, ..., None], v, 0)  # zero times NaN is NaN: what no query sees must not be there at all

    per_head = (num_kv_heads, -1, 1, 1)
    slopes = None if call.alibi_slopes is None else call.alibi_slopes.reshape(per_head)
    sinks = None if call.sinks is None else call.sinks.reshape(per_head)
    q = call.q[rows].astype(mx.float32) * call.scale
    q = q.reshape(num_seqs, queries, num_kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)

    chunks = []
    step = max(1, LOGITS_AT_ONCE // (num_seqs * call.q.shape[1] * keys))
    for start in range(0, queries, step):
        q_chunk = q[..., start : start + step, :]  # [seqs, kv heads, group, chunk, D]
        q_pos = first_q_pos + mx.arange(start, start + q_chunk.shape[-2])[:, None]  # [seqs, chunk, 1]
        seen = k_pos <= q_pos
        if call.sliding_window is not None:
            seen = seen & (k_pos > q_pos - call.sliding_window)
        seen = seen[:, None, None]  # [seqs, 1, 1, chunk, keys]
        s = q_chunk @ k.swapaxes(-1, -2)
        if call.softcap is not None:
            s = call.softcap * mx.tanh(s / call.softcap)
        if slopes is not None:
            s = s - slopes * (q_pos - k_pos).astype(mx.float32)[:, None, None]
        s = mx.where(seen, s, -mx.inf)
        s_max = s.max(-1, keepdims=True)
        if sinks is not None:
            s_max = mx.maximum(s_max, sinks)
        w = mx.exp(s - s_max)
        total = w.sum(-1, keepdims=True)
        if sinks is not None:
            total = total + mx.exp(sinks - s_max)
        chunks.append(_weighted_sum(w / total, v, seen))
        mx.eval(chunks)
    output = mx.concatenate(chunks, axis=-2)
    return output.transpose(0, 3, 1, 2, 4).reshape(num_seqs, queries, -1, head_dim)


def _weighted_sum(p: mx.array, v: mx.array, seen: mx.array) -> mx.array:
    """p @ v, where a value that is not finite reaches only the queries that see it, though 0 * NaN is NaN."""
    output = p @ v
    finite = mx.isfinite(v)
    if mx.all(finite).item():
        return output
    poisoned = seen.astype(mx.float32) @ (~finite).astype(mx.float32)
    return mx.where(poisoned > 0, mx.nan, p @ mx.where(finite, v, 0))


def _gather(call, seqs: np.ndarray, keys: int) -> tuple[mx.array, mx.array]:
    """K and V of the first `keys` tokens of each sequence, dense: float32 [seqs, num_kv_heads, 1, keys, head_dim].

    Past a sequence's end the table's entries are not followed (block 0 stands in for them); the caller masks.
    """
    _, num_kv_heads, block_size, head_dim = call.geometry
    num_blocks = -(-keys // block_size)
    table = call.block_tables[mx.array(seqs), :num_blocks]
    in_use = mx.arange(num_blocks) * block_size < call.context_lens[mx.array(seqs)][:, None]
    table = mx.where(in_use, table, 0)
    k, v = call.k_pool[table], call.v_pool[table]  # [seqs, blocks, one block in this layout]
    match call.layout:  # -> [seqs, kv heads, blocks, tokens, D]
        case PoolLayout.HND:
            k, v = k.transpose(0, 2, 1, 3, 4), v.transpose(0, 2, 1, 3, 4)
        case PoolLayout.NHD:
            k, v = k.transpose(0, 3, 1, 2, 4), v.transpose(0, 3, 1, 2, 4)
        case PoolLayout.X_SPLIT:
            k = k.transpose(0, 2, 1, 4, 3, 5)  # [seqs, kv heads, blocks, tokens, D/x, x]
            v = v.transpose(0, 2, 1, 4, 3)
        case PoolLayout.INTERLEAVED:
            k, v = k[:, :, 0].transpose(0, 2, 1, 3, 4), v[:, :, 1].transpose(0, 2, 1, 3, 4)
    shape = (len(seqs), num_kv_heads, 1, num_blocks * block_size, head_dim)
    return tuple(x.astype(mx.float32).reshape(shape)[..., :keys, :] for x in (k, v))
