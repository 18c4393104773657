"""The pools: one K and one V array per layer, shared by every sequence, written in place."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from paged_core.arguments import (
    as_host_ints,
    check_dtype,
    check_fits_tables,
    check_pool_dtype,
    check_query_starts,
    check_shape,
    query_starts,
)
from paged_core.errors import InvalidBlock, InvalidBlockTable
from paged_core.layouts import X_BYTES, Geometry, PoolLayout, check_layout
from paged_core.scalars import integer, positive

MAX_SLOT = 2**31 - 1  # slots are int32


class PagedPool:
    """K and V of every layer, in blocks of `block_size` tokens. It stores; who owns which block is the allocator's.

    `num_blocks` x `block_size` slots a layer; slot s is block s // block_size, offset s % block_size. All arrays start
    as zeros. `dtype` is mx.float32, mx.float16 or mx.bfloat16; head_dim a multiple of 8 up to 512.

    Writes are in place: MLX updates an array where it lies only while nobody else holds it, so the pool is its arrays'
    single owner, settles every write before returning, and reads blocks out before writing them elsewhere. A slice of
    `k(layer)` kept alive across a write, or a pending (lazy) reader of it, costs a copy of the whole pool.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: mx.Dtype = mx.float16,
        layout: PoolLayout = PoolLayout.HND,
    ) -> None:
        self.num_layers = positive("num_layers", num_layers)
        self.num_blocks = positive("num_blocks", num_blocks)
        self.num_kv_heads = positive("num_kv_heads", num_kv_heads)
        self.block_size = positive("block_size", block_size)
        self.head_dim = positive("head_dim", head_dim)
        if self.head_dim % 8 or self.head_dim > 512:
            raise ValueError(f"head_dim: expected a multiple of 8 up to 512, got {head_dim}")
        if self.num_slots > MAX_SLOT:
            raise ValueError(f"num_blocks * block_size: expected fewer than 2^31 slots, got {self.num_slots}")
        check_pool_dtype("dtype", dtype)
        check_layout(layout)
        self.dtype, self.layout = dtype, layout
        k_shape, v_shape = layout.shapes(self.geometry, dtype.size)
        self._k = [mx.zeros(k_shape, dtype) for _ in range(self.num_layers)]
        self._v = self._k if self._one_array else [mx.zeros(v_shape, dtype) for _ in range(self.num_layers)]
        mx.eval(self._k, self._v)

    def __repr__(self) -> str:
        return (
            f"PagedPool({self.num_layers} layers x {self.num_blocks} blocks x {self.num_kv_heads} KV heads x "
            f"{self.block_size} tokens x {self.head_dim} dims, {self.dtype}, {self.layout.name}, {self.nbytes} bytes)"
        )

    @property
    def geometry(self) -> Geometry:
        """The sizes that a layout's addresses depend on."""
        return Geometry(self.num_blocks, self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def num_slots(self) -> int:
        """Tokens that a layer has room for."""
        return self.num_blocks * self.block_size

    @property
    def nbytes(self) -> int:
        """Bytes of K and V over all layers."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def _one_array(self) -> bool:
        return self.layout is PoolLayout.INTERLEAVED

    def k(self, layer: int) -> mx.array:
        """This layer's K array, in `layout`. The same object for the pool's life: later writes show in it."""
        return self._k[self._checked_layer(layer)]

    def v(self, layer: int) -> mx.array:
        """This layer's V array, likewise; in INTERLEAVED it is `k(layer)` itself."""
        return self._v[self._checked_layer(layer)]

    def write(self, layer: int, k: mx.array, v: mx.array, slot_mapping: mx.array, *, check: bool = True) -> None:
        """Put token t's K and V into slot `slot_mapping[t]`.

        k, v [num_tokens, num_kv_heads, head_dim] in the pool's dtype; slot_mapping int32 [num_tokens]. check=True looks
        at the slots: one out of range, or listed twice, raises InvalidBlock. A refused call writes nothing.
        """
        layer = self._checked_layer(layer)
        check_shape("slot_mapping", slot_mapping, ("num_tokens",))
        check_dtype("slot_mapping", slot_mapping, mx.int32)
        for name, x in (("k", k), ("v", v)):
            check_shape(name, x, (slot_mapping.size, self.num_kv_heads, self.head_dim))
            check_dtype(name, x, self.dtype)
        if check:
            self._check_distinct("slot_mapping", "slot", slot_mapping, self.num_slots)
        if slot_mapping.size == 0:
            return
        # Computed before the pool is touched: should they fail, nothing is half written, and should they read the pool,
        # its pending reader is gone.
        mx.eval(k, v, slot_mapping)
        block, token = slot_mapping // self.block_size, slot_mapping % self.block_size
        k_pool, v_pool = self._k[layer], self._v[layer]
        if self.layout is PoolLayout.X_SPLIT:
            k = k.reshape(*k.shape[:2], -1, X_BYTES // self.dtype.size)
        k_pool[self._head_vectors("k", block, token)] = k
        if self._one_array:  # two pending updates of one array in one graph make MLX copy it
            mx.eval(k_pool)
        v_pool[self._head_vectors("v", block, token)] = v
        mx.eval(k_pool, v_pool)

    def gather(self, layer: int, blocks: Sequence[int], length: int) -> tuple[mx.array, mx.array]:
        """The first `length` tokens that lie in `blocks`, in order, as dense k, v [length, num_kv_heads, head_dim].

        InvalidBlock for a block out of range, InvalidBlockTable when `blocks` hold fewer than `length` tokens.
        """
        layer = self._checked_layer(layer)
        blocks = self._checked_blocks("blocks", blocks)
        length, room = integer("length", length, at_least=0), len(blocks) * self.block_size
        if length > room:
            raise InvalidBlockTable(f"length: expected 0 to {room} tokens in {len(blocks)} block(s), got {length}")
        k, v = (self._dense(which, pool[layer], blocks, length) for which, pool in (("k", self._k), ("v", self._v)))
        mx.eval(k, v)  # read now: a pending reader would make the next write copy the pool
        return k, v

    def copy_blocks(self, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy block src[i] to block dst[i], K and V of every layer. All are read before any is written, so a block
        may be in both lists. InvalidBlock, and nothing copied, for a block out of range or a destination listed twice.
        """
        src, dst = self._checked_blocks("src", src), self._checked_blocks("dst", dst)
        if len(src) != len(dst):
            raise ValueError(f"src, dst: expected equally many blocks, got {len(src)} and {len(dst)}")
        self._check_distinct("dst", "block", np.array(dst, np.int64), self.num_blocks)
        for pool in self.arrays:
            self._put(pool, dst, self._take(pool, src))

    def read_blocks(self, blocks: Sequence[int]) -> list[NDArray[np.unsignedinteger]]:
        """The bits of whole blocks, copied to the host: for each of `arrays` one NumPy array [len(blocks), ...], of
        unsigned integers as wide as the dtype, so that nothing is rounded, NaN's payload included."""
        blocks = self._checked_blocks("blocks", blocks)
        return [np.array(self._take(pool, blocks).view(self._bits)) for pool in self.arrays]

    def write_blocks(self, blocks: Sequence[int], contents: Sequence[NDArray[np.unsignedinteger]]) -> None:
        """Put back what `read_blocks` gave, into other blocks or another pool of the same shape. InvalidBlock for a
        block out of range or listed twice, ValueError or TypeError for contents of another shape or dtype; then nothing
        is written."""
        blocks = self._checked_blocks("blocks", blocks)
        self._check_distinct("blocks", "block", np.array(blocks, np.int64), self.num_blocks)
        expected = [(len(blocks), *pool.shape[1:]) for pool in self.arrays]
        if (got := [x.shape for x in contents]) != expected:
            raise ValueError(f"contents: expected arrays of shapes {expected}, got {got}")
        contents = [mx.array(content) for content in contents]
        for i, content in enumerate(contents):
            check_dtype(f"contents[{i}]", content, self._bits)
        for pool, content in zip(self.arrays, contents, strict=True):
            self._put(pool, blocks, content.view(self.dtype))

    @property
    def arrays(self) -> list[mx.array]:
        """Every array of the pool once: K of each layer, then V; in INTERLEAVED the one array of each layer."""
        return self._k if self._one_array else self._k + self._v

    @property
    def _bits(self) -> mx.Dtype:
        return mx.uint32 if self.dtype.size == 4 else mx.uint16

    def _take(self, pool: mx.array, blocks: list[int]) -> mx.array:
        """Whole blocks, read now: a pending reader would make the next write copy the pool."""
        taken = pool[mx.array(blocks, mx.int32)]
        mx.eval(taken)
        return taken

    def _put(self, pool: mx.array, blocks: list[int], contents: mx.array) -> None:
        if blocks:
            mx.eval(contents)
            pool[mx.array(blocks, mx.int32)] = contents
            mx.eval(pool)

    def _dense(self, which: str, pool: mx.array, blocks: list[int], length: int) -> mx.array:
        """The first `length` tokens in `blocks`, [length, num_kv_heads, head_dim]."""
        table, heads = mx.array(blocks, mx.int32), mx.arange(self.num_kv_heads)[:, None]
        match self.layout:
            # A head's tokens lie side by side in a block, and are copied so: in half the time of token by token, and
            # dense attention, which wants each head's tokens together, finds them so.
            case PoolLayout.HND:
                taken = pool[table, heads]
            case PoolLayout.INTERLEAVED:
                taken = pool[table, int(which == "v"), heads]
            case _:
                slots = mx.arange(length)
                index = self._head_vectors(which, table[slots // self.block_size], slots % self.block_size)
                return pool[index].reshape(length, self.num_kv_heads, self.head_dim)
        taken = taken.reshape(self.num_kv_heads, len(blocks) * self.block_size, self.head_dim)
        return taken[:, :length].transpose(1, 0, 2)

    def _head_vectors(self, which: str, block: mx.array, token: mx.array) -> tuple:
        """The index of whole head vectors, token by token and head by head, in a layer's array.

        What it picks has shape [num_tokens, num_kv_heads, head_dim], save in X_SPLIT's K: [.., head_dim/x, x].
        """
        heads = mx.arange(self.num_kv_heads)
        match self.layout:
            case PoolLayout.HND:
                return block[:, None], heads, token[:, None]
            case PoolLayout.NHD:
                return block, token
            case PoolLayout.INTERLEAVED:
                return block[:, None], int(which == "v"), heads, token[:, None]
            case PoolLayout.X_SPLIT:
                x = X_BYTES // self.dtype.size
                inner = mx.arange(self.head_dim // x if which == "k" else self.head_dim)
                return block[:, None, None], heads[:, None], inner, token[:, None, None]

    def _checked_layer(self, layer: int) -> int:
        layer = integer("layer", layer)
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer: expected 0 to {self.num_layers - 1}, got {layer}")
        return layer

    def _checked_blocks(self, name: str, blocks: Sequence[int]) -> list[int]:
        blocks = as_host_ints(name, blocks)
        if blocks.ndim != 1:
            raise ValueError(f"{name}: expected a list of blocks, got shape {list(blocks.shape)}")
        blocks = blocks.tolist()
        for i, block in enumerate(blocks):
            if not 0 <= block < self.num_blocks:
                raise InvalidBlock(f"{name}[{i}]: expected a block from 0 to {self.num_blocks - 1}, got {block}")
        return blocks

    def _check_distinct(self, name: str, noun: str, values: mx.array | np.ndarray, limit: int) -> None:
        values = as_host_ints(name, values)
        outside = np.flatnonzero((values < 0) | (values >= limit))
        if outside.size:
            i = outside[0]
            raise InvalidBlock(f"{name}[{i}]: expected a {noun} from 0 to {limit - 1}, got {values[i]}")
        distinct, counts = np.unique(values, return_counts=True)
        if distinct.size < values.size:
            raise InvalidBlock(f"{name}: expected each {noun} once, got {distinct[counts > 1][0]} more than once")


def slot_mapping(
    block_tables: mx.array, context_lens: mx.array, block_size: int, query_start_loc: mx.array | None = None
) -> mx.array:
    """The slots of the newest tokens of each sequence: where this step's K and V go. int32 [num_tokens].

    block_tables int32 [num_seqs, max_blocks]; context_lens int32 [num_seqs], the new tokens included; query_start_loc
    int32 [num_seqs + 1] says which of the flattened tokens are whose, None that each sequence has one.

    Worked: block_size 4, block_table [5, 2], context 6, two new tokens: positions 4 and 5 lie in the second block, 2,
    so their slots are 8 and 9.

    ValueError when a sequence has fewer tokens than are to be written; InvalidBlockTable when it has more than its
    table has room for, or when an entry to be used is negative or so large that its slots exceed int32.
    """
    block_size = positive("block_size", block_size)
    check_shape("block_tables", block_tables, ("num_seqs", "max_blocks"))
    check_dtype("block_tables", block_tables, mx.int32)
    num_seqs, max_blocks = block_tables.shape
    check_shape("context_lens", context_lens, (num_seqs,))
    check_dtype("context_lens", context_lens, mx.int32)
    tables = as_host_ints("block_tables", block_tables)
    contexts = as_host_ints("context_lens", context_lens)
    if query_start_loc is not None:
        check_shape("query_start_loc", query_start_loc, (num_seqs + 1,))
        check_dtype("query_start_loc", query_start_loc, mx.int32)
    starts = query_starts(query_start_loc, num_seqs)
    check_query_starts(starts)
    num_queries = np.diff(starts)
    for seq in np.flatnonzero(contexts < num_queries):
        raise ValueError(
            f"context_lens[{seq}]: expected at least the {num_queries[seq]} token(s) to be written, got {contexts[seq]}"
        )
    check_fits_tables(contexts, max_blocks, block_size)
    seq_of_token = np.repeat(np.arange(num_seqs), num_queries)
    positions = (contexts - starts[1:])[seq_of_token] + np.arange(starts[-1])
    entries, offsets = np.divmod(positions, block_size)
    blocks = tables[seq_of_token, entries]
    slots = blocks * block_size + offsets
    for token in np.flatnonzero((blocks < 0) | (slots > MAX_SLOT)):
        raise InvalidBlockTable(
            f"block_tables[{seq_of_token[token]}, {entries[token]}]: expected a block from 0 to "
            f"{(MAX_SLOT + 1) // block_size - 1}, got {blocks[token]}"
        )
    return mx.array(slots.astype(np.int32))
