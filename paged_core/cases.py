"""Cases of paged attention with everything around them, and the oracle's verdict on an output.

For tests, notebooks, and whoever changes a kernel: a trial of any executor is two lines.

    case = paged_case(dtype="float16", layout=PoolLayout.NHD, context_lens=[0, 17, 300], sliding_window=5)
    case.check(case.attend(executor="native"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from paged_core.allocator import BlockAllocator
from paged_core.attention import paged_attention
from paged_core.layouts import PoolLayout
from paged_core.pool import PagedPool, slot_mapping
from paged_core.reference import attention_error_bound, dense_attention
from paged_core.sequence import PagedSeqState, batch_tables

PAST_THE_END = (-1, 2**31 - 1, -(2**31))  # table entries that nobody may follow


@dataclass
class PagedCase:
    """The arguments of one `paged_attention`, what they were made from, and the same K and V dense."""

    pool: PagedPool
    allocator: BlockAllocator
    seqs: list[PagedSeqState]
    q: mx.array  # [num_tokens, num_q_heads, head_dim]
    block_tables: mx.array  # int32 [num_seqs, max_blocks]
    context_lens: mx.array  # int32 [num_seqs]
    query_start_loc: mx.array | None  # int32 [num_seqs + 1], None for decode
    features: dict  # scale, sliding_window, softcap, sinks, alibi_slopes: those that are in use
    dtype: str
    dense: list[tuple[NDArray, NDArray]]  # per sequence: k, v [context, num_kv_heads, head_dim], float32, as stored

    @property
    def arguments(self) -> dict:
        """The keyword arguments of `paged_attention` and `trace`, the executor apart."""
        return {
            "q": self.q,
            "k_pool": self.pool.k(0),
            "v_pool": self.pool.v(0),
            "block_tables": self.block_tables,
            "context_lens": self.context_lens,
            "query_start_loc": self.query_start_loc,
            "layout": self.pool.layout,
            **self.features,
        }

    def attend(self, executor: str = "ops", **changed) -> mx.array:
        """`paged_attention` of this case, some of its arguments replaced by `changed`."""
        return paged_attention(**{**self.arguments, "executor": executor, **changed})

    def tables_with(self, entries: Mapping[tuple[int, int], int]) -> mx.array:
        """The block tables with some entries changed, {(sequence, entry): block}: what a bug would make of them."""
        tables = np.array(self.block_tables)
        for at, block in entries.items():
            tables[at] = block
        return mx.array(tables)

    def elements(self, which: str) -> NDArray[np.int64]:
        """The elements of the K or V array ("k" or "v") that some query sees, ascending: all that a kernel may read."""
        geometry, itemsize = self.pool.geometry, self.pool.dtype.size
        head, dim = np.arange(geometry.num_kv_heads)[:, None], np.arange(geometry.head_dim)
        found = []
        for i, seq in enumerate(self.seqs):
            rows = self.queries(i)
            first_query = seq.len - (rows.stop - rows.start)
            oldest = max(0, first_query + 1 - self.features.get("sliding_window", first_query + 1))
            position = np.arange(oldest, seq.len if rows.stop > rows.start else oldest)
            block, token = np.array(seq.blocks, np.int64)[position // seq.block_size], position % seq.block_size
            at = self.pool.layout.element_offset(
                which, geometry, itemsize, block=block[:, None, None], head=head, token=token[:, None, None], dim=dim
            )
            found.append(np.ravel(at))
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def queries(self, seq: int) -> slice:
        """The rows of q, and of the output, that belong to a sequence."""
        if self.query_start_loc is None:
            return slice(seq, seq + 1)
        start, stop = np.asarray(self.query_start_loc)[seq : seq + 2].tolist()
        return slice(start, stop)

    def oracle(self) -> NDArray[np.float64]:
        """What `attend` must give, but for rounding: float64 [num_tokens, num_q_heads, head_dim]."""
        return self._per_sequence(dense_attention)

    def bound(self) -> NDArray[np.float64]:
        """How far from the oracle each element may lie: float64 [num_tokens, num_q_heads, head_dim]."""
        return self._per_sequence(attention_error_bound, dtype=self.dtype)

    def share_of_bound(self, output: mx.array) -> NDArray[np.float64]:
        """|output - oracle| / bound, element by element, with infinity for NaN: right is 1 or less everywhere."""
        return share_of_bound(to_numpy(output), self.oracle(), self.bound())

    def check(self, output: mx.array) -> float:
        """The largest error as a share of its bound. AssertionError when `output` has not q's shape and dtype, or lies
        outside the bound anywhere."""
        if (output.shape, output.dtype) != (self.q.shape, self.q.dtype):
            raise AssertionError(f"got {output.dtype} {output.shape}, expected {self.q.dtype} {self.q.shape}")
        return check_within(to_numpy(output), self.oracle(), self.bound())

    def _per_sequence(self, dense_function, **options) -> NDArray[np.float64]:
        q, features = to_numpy(self.q), {name: to_numpy(x) for name, x in self.features.items()}
        result = np.full(q.shape, np.nan)
        for seq, (k, v) in enumerate(self.dense):
            rows = self.queries(seq)
            result[rows] = dense_function(q[rows], k, v, **features, **options)
        return result


def paged_case(
    *,
    context_lens: Sequence[int],
    num_queries: Sequence[int] | None = None,
    dtype: str = "float32",
    layout: PoolLayout = PoolLayout.HND,
    head_dim: int = 64,
    block_size: int = 16,
    num_q_heads: int = 4,
    num_kv_heads: int = 2,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    alibi: bool = False,
    scale: float | None = None,
    spare_blocks: int = 3,
    spare_entries: int = 2,
    seed: int = 0,
) -> PagedCase:
    """Sequences of `context_lens` tokens in a pool, and `num_queries` query tokens for each (None: decode).

    The free list is shuffled, so block tables are scattered. Whatever must not influence the output is as bad as it can
    be: every slot that no query sees holds NaN (free blocks, the tail of a last block, tokens that slid out of every
    query's window), and table entries past a sequence's end are out of range, `spare_entries` of them at the least.
    """
    rng = np.random.default_rng(seed)
    mx_dtype = getattr(mx, dtype)
    blocks_needed = [-(-context // block_size) for context in context_lens]
    num_blocks = sum(blocks_needed) + max(1, spare_blocks)
    max_blocks = max(blocks_needed, default=0) + spare_entries

    pool = nan_pool(
        num_layers=1, num_blocks=num_blocks, num_kv_heads=num_kv_heads, block_size=block_size, head_dim=head_dim,
        dtype=mx_dtype, layout=layout,
    )  # fmt: skip
    allocator = shuffled_allocator(num_blocks, seed)
    seqs = []
    for context in context_lens:
        seq = PagedSeqState(block_size, max(1, max_blocks))
        seq.ensure_capacity(allocator, context)
        seq.len = context
        seq.sync_context_len()
        seqs.append(seq)
    tables, contexts = batch_tables(seqs)

    def normal(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape, np.float32)).astype(mx_dtype)

    query_counts = [1] * len(seqs) if num_queries is None else list(num_queries)
    q = normal(sum(query_counts), num_q_heads, head_dim)
    dense = []
    for context, queries in zip(context_lens, query_counts, strict=True):
        k, v = (to_numpy(normal(context, num_kv_heads, head_dim)).astype(np.float32) for _ in "kv")
        first_seen = context - queries + 1 - sliding_window if sliding_window is not None else 0
        for x in (k, v):
            x[: max(0, first_seen) if queries else context] = np.nan
        dense.append((k, v))
    if sum(context_lens):
        slots = slot_mapping(tables, contexts, block_size, query_starts(context_lens))
        k, v = (mx.array(np.concatenate(x)).astype(mx_dtype) for x in zip(*dense, strict=True))
        pool.write(0, k, v, slots)

    table_values = np.array(tables)
    past_the_end = np.arange(table_values.shape[1]) >= np.array(blocks_needed, int).reshape(-1, 1)
    table_values[past_the_end] = rng.choice(PAST_THE_END, past_the_end.sum())

    features = {
        "scale": scale,
        "sliding_window": sliding_window,
        "softcap": softcap,
        "sinks": mx.array(rng.standard_normal(num_q_heads), mx.float32) if sinks else None,
        "alibi_slopes": mx.array(2.0 ** -np.arange(1, num_q_heads + 1), mx.float32) if alibi else None,
    }
    return PagedCase(
        pool=pool,
        allocator=allocator,
        seqs=seqs,
        q=q,
        block_tables=mx.array(table_values),
        context_lens=contexts,
        query_start_loc=None if num_queries is None else query_starts(num_queries),
        features={name: value for name, value in features.items() if value is not None},
        dtype=dtype,
        dense=dense,
    )


def share_of_bound(output: NDArray, expected: NDArray, bound: NDArray) -> NDArray[np.float64]:
    """|output - expected| / bound, element by element; NaN is infinitely far off."""
    share = np.abs(output - expected) / bound
    return np.where(np.isnan(share), np.inf, share)


def check_within(output: NDArray, expected: NDArray, bound: NDArray) -> float:
    """The largest |output - expected| / bound. AssertionError, with the worst element, where it is more than 1."""
    share = share_of_bound(output, expected, bound)
    if not share.size:
        return 0.0
    worst = np.unravel_index(np.argmax(share), share.shape)
    if share[worst] > 1:
        raise AssertionError(
            f"element {tuple(map(int, worst))}: got {output[worst]:.9g}, oracle {expected[worst]:.9g}, "
            f"bound {bound[worst]:.3g}; {int(np.sum(share > 1))} of {share.size} elements are out of bounds"
        )
    return float(share[worst])


def nan_pool(**options) -> PagedPool:
    """A pool whose every slot holds NaN: what reads a slot nobody wrote shows it."""
    pool = PagedPool(**options)
    for layer in range(pool.num_layers):
        pool.k(layer)[:] = mx.nan
        pool.v(layer)[:] = mx.nan
        mx.eval(pool.k(layer), pool.v(layer))
    return pool


def shuffled_allocator(num_blocks: int, seed: int = 0) -> BlockAllocator:
    """An allocator that has lived: all its blocks are free, in no order."""
    allocator = BlockAllocator(num_blocks)
    blocks = allocator.allocate_n(num_blocks)
    allocator.free(np.random.default_rng(seed).permutation(blocks).tolist())
    return allocator


def query_starts(num_queries: Sequence[int]) -> mx.array:
    """query_start_loc: int32 [num_seqs + 1]."""
    return mx.array(np.cumsum([0, *num_queries]), mx.int32)


def to_numpy(x):
    """An mlx array as float64 NumPy (bfloat16 has no NumPy twin); anything else as it is."""
    return np.array(x.astype(mx.float32), np.float64) if isinstance(x, mx.array) else x
