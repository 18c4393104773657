"""One sequence's view of the pool: its block table and its length, on the host and mirrored on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from paged_core.allocator import BlockAllocator
from paged_core.errors import InvalidBlock, SequenceTooLong
from paged_core.scalars import integer, positive

if TYPE_CHECKING:
    from paged_core.prefix import PrefixCache


class PagedSeqState:
    """The block table and length of one sequence.

    `blocks[i]` is the physical block that holds tokens i*block_size .. (i+1)*block_size - 1; it is the host's truth, as
    is `len`, the tokens held, which the caller advances after writing their K and V. Their device mirrors are

        block_table    int32 [max_blocks_per_seq]   `blocks`, then 0 past the end
        context_lens   int32 [1]                    `len`, as of the last `sync_context_len()`

    and stay the same two arrays for the life of the sequence, so whoever holds them sees every change. The `allocator`
    of every call is a BlockAllocator or a PrefixCache.
    """

    def __init__(self, block_size: int, max_blocks_per_seq: int) -> None:
        self.block_size = positive("block_size", block_size)
        self.max_blocks_per_seq = positive("max_blocks_per_seq", max_blocks_per_seq)
        self.blocks: list[int] = []
        self.len = 0
        self.block_table = mx.zeros((self.max_blocks_per_seq,), mx.int32)
        self.context_lens = mx.zeros((1,), mx.int32)

    def __repr__(self) -> str:
        return f"PagedSeqState({self.len} tokens in {len(self.blocks)} block(s) of {self.block_size}: {self.blocks})"

    def ensure_capacity(self, allocator: BlockAllocator | PrefixCache, target_len: int) -> None:
        """Hold enough blocks for `target_len` tokens. Does nothing when they are held already; never gives any back.

        All or none: SequenceTooLong when the table is too short for `target_len`, PoolExhausted when the allocator is
        short of blocks, and in either case nothing has changed. Only the new entries of the mirror are written.
        """
        target_len = integer("target_len", target_len, at_least=0)
        held, needed = len(self.blocks), self._check_table(target_len)
        if needed <= held:
            return
        new_blocks = allocator.allocate_n(needed - held)
        self.blocks += new_blocks
        self.block_table[held:needed] = mx.array(new_blocks, mx.int32)
        mx.async_eval(self.block_table)  # under way now: updates that nobody asks for would pile up as one long graph

    def sync_context_len(self) -> None:
        """Copy `len` to its device mirror. ValueError when `len` is negative or more than the blocks held can carry."""
        self.context_lens[:] = self._checked_len()  # the whole array: no chain of pending one-entry updates

    def fork(self, allocator: BlockAllocator | PrefixCache) -> PagedSeqState:
        """A second sequence with the same tokens, for another continuation. It shares every block that holds tokens; K
        and V are not copied. Before either of the two writes on, `unshare` makes the block it writes into its own.

        InvalidBlock when this sequence holds no tokens (it is new, or was released), or a block was freed behind it.
        """
        held = -(-self._checked_len() // self.block_size)
        if held == 0:
            raise InvalidBlock("nothing to fork: the sequence holds no tokens; it is new, or was released")
        allocator.share(self.blocks[:held])
        other = PagedSeqState(self.block_size, self.max_blocks_per_seq)
        other.adopt(self.blocks[:held], self.len)
        return other

    def adopt(self, blocks: Sequence[int], length: int) -> None:
        """Begin with `length` tokens whose K and V lie in `blocks` already, as after a prefix hit. The caller's
        references become this sequence's. ValueError when it holds blocks, or `length` tokens do not just fill these;
        SequenceTooLong when the table is too short."""
        length = integer("length", length, at_least=0)
        needed = self._check_table(length)
        if self.blocks:
            raise ValueError(f"blocks: expected a sequence that holds none yet, this one holds {len(self.blocks)}")
        if len(blocks) != needed:
            raise ValueError(f"blocks: expected {needed} of {self.block_size} for {length} tokens, got {len(blocks)}")
        self.blocks, self.len = list(blocks), length
        self.block_table[:needed] = mx.array(self.blocks, mx.int32)
        mx.async_eval(self.block_table)
        self.sync_context_len()

    def trim(self, allocator: BlockAllocator | PrefixCache, target_len: int) -> None:
        """Forget every token past the first `target_len`, and give back the blocks that are then without tokens, those
        held as mere room included. The last block kept may be somebody else's too: `unshare` before writing on.

        ValueError when it holds fewer tokens; InvalidBlock, and nothing changed, when a block was freed already.
        """
        target_len = integer("target_len", target_len, at_least=0)
        if target_len > self._checked_len():
            raise ValueError(f"target_len: expected at most the {self.len} tokens held, got {target_len}")
        kept = -(-target_len // self.block_size)
        allocator.free(self.blocks[kept:])
        self.block_table[kept : len(self.blocks)] = 0
        mx.async_eval(self.block_table)
        del self.blocks[kept:]
        self.len = target_len
        self.sync_context_len()

    def unshare(self, allocator: BlockAllocator | PrefixCache) -> list[tuple[int, int]]:
        """Copy on write: make the block that the next token goes into this sequence's own.

        When somebody else holds it too, or may find it in a PrefixCache (it was full before a `trim`), a fresh block
        takes its place. If it is partly filled, the answer is [(shared block, fresh block)] for
        `PagedPool.copy_blocks`, to be copied before the write; else it is empty. PoolExhausted, and nothing changed,
        when there is no block to copy to.
        """
        entry, offset = divmod(self._checked_len(), self.block_size)
        if entry == len(self.blocks) or not allocator.is_shared(self.blocks[entry]):
            return []
        shared, own = self.blocks[entry], allocator.allocate()
        allocator.free([shared])
        self.blocks[entry] = own
        self.block_table[entry] = own
        mx.async_eval(self.block_table)
        return [(shared, own)] if offset else []

    def release(self, allocator: BlockAllocator | PrefixCache) -> None:
        """Give every block back and become empty. InvalidBlock, and nothing changed, when one was freed already."""
        allocator.free(self.blocks)
        self.blocks = []
        self.len = 0
        self.block_table[:] = 0
        self.context_lens[:] = 0

    def _check_table(self, target_len: int) -> int:
        """The blocks that `target_len` tokens need, once it is sure that the table has entries for them."""
        needed = -(-target_len // self.block_size)
        if needed > self.max_blocks_per_seq:
            raise SequenceTooLong(
                f"{target_len} tokens need {needed} blocks of {self.block_size}; the block table has "
                f"{self.max_blocks_per_seq} entries, enough for {self.max_blocks_per_seq * self.block_size} tokens"
            )
        return needed

    def _checked_len(self) -> int:
        """`len`, which anybody may set, once it is sure that the blocks held have room for it."""
        length, room = integer("len", self.len), len(self.blocks) * self.block_size
        if not 0 <= length <= room:
            raise ValueError(f"len: expected 0 to {room} tokens ({len(self.blocks)} block(s) are held), got {length}")
        return length


def batch_tables(seqs: Iterable[PagedSeqState]) -> tuple[mx.array, mx.array]:
    """The tables of several sequences as `paged_attention` takes them, from the host's truth.

    Returns block_tables int32 [num_seqs, max_blocks], max_blocks the largest `max_blocks_per_seq`, 0 past each end, and
    context_lens int32 [num_seqs]. ValueError for a sequence whose `len` is more than its blocks can carry: what lies
    past them belongs to somebody else.
    """
    seqs = list(seqs)
    max_blocks = max((seq.max_blocks_per_seq for seq in seqs), default=0)
    block_tables = np.zeros((len(seqs), max_blocks), np.int32)
    for row, seq in zip(block_tables, seqs, strict=True):
        row[: len(seq.blocks)] = seq.blocks
    return mx.array(block_tables), mx.array([seq._checked_len() for seq in seqs], mx.int32)
