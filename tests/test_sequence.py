"""A sequence's table and length: all or none on the host, and on the device only what changed."""

import io

import mlx.core as mx
import numpy as np
import pytest

from paged_core import (
    BlockAllocator,
    InvalidBlock,
    PagedSeqState,
    PoolExhausted,
    SequenceTooLong,
    batch_tables,
)
from paged_core.cases import shuffled_allocator

PLANTED = 777  # in a mirror entry: whatever rewrites the entry removes it


def state(seq, allocator):
    return (
        list(seq.blocks),
        seq.len,
        seq.block_table.tolist(),
        seq.context_lens.tolist(),
        allocator.free_count,
        allocator.peak_in_use,
    )


def mirror_of(seq):
    return [*seq.blocks, *[0] * (seq.max_blocks_per_seq - len(seq.blocks))]


def pending_operations(array):
    """How many operations MLX has yet to run for `array`."""
    graph = io.StringIO()
    mx.export_to_dot(graph, array)
    return graph.getvalue().count("shape=rectangle")


def test_a_new_sequence_holds_nothing():
    seq = PagedSeqState(block_size=4, max_blocks_per_seq=3)
    assert (seq.blocks, seq.len) == ([], 0)
    assert (seq.block_table.dtype, seq.block_table.tolist()) == (mx.int32, [0, 0, 0])
    assert (seq.context_lens.dtype, seq.context_lens.tolist()) == (mx.int32, [0])


@pytest.mark.parametrize("tokens, blocks", [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (12, 3)])
def test_blocks_of_four_for_so_many_tokens(tokens, blocks):
    seq, allocator = PagedSeqState(4, 3), BlockAllocator(8)
    seq.ensure_capacity(allocator, tokens)
    assert seq.blocks == list(range(blocks))
    assert seq.block_table.tolist() == mirror_of(seq)
    assert (seq.len, allocator.in_use) == (0, blocks)  # room is not tokens: the caller advances `len`


def test_a_block_of_one_token():
    seq, allocator = PagedSeqState(1, 3), BlockAllocator(3)
    seq.ensure_capacity(allocator, 3)
    assert seq.blocks == [0, 1, 2]


def test_growth_keeps_what_is_held_and_is_idempotent():
    seq, allocator = PagedSeqState(4, 6), shuffled_allocator(10)
    seq.ensure_capacity(allocator, 5)
    first = list(seq.blocks)
    for enough in (5, 8, 1, 0):
        seq.ensure_capacity(allocator, enough)
    assert (seq.blocks, allocator.in_use) == (first, 2)
    seq.ensure_capacity(allocator, 17)
    assert (seq.blocks[:2], len(set(seq.blocks))) == (first, 5)
    assert seq.block_table.tolist() == mirror_of(seq)


def test_only_new_entries_of_the_mirror_are_written():
    seq, allocator = PagedSeqState(4, 8), shuffled_allocator(20)
    seq.ensure_capacity(allocator, 12)
    seq.block_table[:] = PLANTED
    seq.ensure_capacity(allocator, 12)  # nothing new
    assert seq.block_table.tolist() == [PLANTED] * 8
    seq.ensure_capacity(allocator, 13)  # one new block
    assert seq.block_table.tolist() == [PLANTED] * 3 + seq.blocks[3:4] + [PLANTED] * 4
    seq.ensure_capacity(allocator, 21)  # two more
    assert seq.block_table.tolist() == [PLANTED] * 3 + seq.blocks[3:6] + [PLANTED] * 2


def test_a_refused_growth_writes_nothing():
    seq, allocator = PagedSeqState(4, 8), shuffled_allocator(5)
    seq.ensure_capacity(allocator, 12)
    seq.block_table[:] = PLANTED
    before = state(seq, allocator)
    with pytest.raises(PoolExhausted) as refusal:
        seq.ensure_capacity(allocator, 24)  # 6 blocks, 3 held, 2 free
    assert (refusal.value.needed, refusal.value.free) == (3, 2)
    with pytest.raises(SequenceTooLong, match="33 tokens need 9 blocks of 4; the block table has 8 entries"):
        seq.ensure_capacity(allocator, 33)
    with pytest.raises(ValueError, match=r"target_len: expected an integer of 0 or more, got -1"):
        seq.ensure_capacity(allocator, -1)
    assert state(seq, allocator) == before
    seq.ensure_capacity(allocator, 20)  # the two that are free are still to be had
    assert len(seq.blocks) == 5


def test_a_table_too_short_is_told_from_a_pool_too_small():
    """Both would fail; no release of another sequence helps a table, so that is what is said."""
    with pytest.raises(SequenceTooLong):
        PagedSeqState(4, 2).ensure_capacity(BlockAllocator(1), 9)


def test_the_device_is_handed_as_many_numbers_as_are_new(monkeypatch):
    seq, allocator = PagedSeqState(1, 1 << 20), BlockAllocator(64)
    seq.ensure_capacity(allocator, 10)
    written = []

    class Watched:
        def __setitem__(self, entries, values):
            written.append((entries, values.tolist()))

    seq.block_table = Watched()
    monkeypatch.setattr(mx, "async_eval", lambda array: None)
    seq.ensure_capacity(allocator, 11)
    seq.ensure_capacity(allocator, 11)
    assert written == [(slice(10, 11), [10])]


def test_the_mirrors_are_the_same_two_arrays_for_life():
    seq, allocator = PagedSeqState(2, 4), shuffled_allocator(8)
    table, lens = seq.block_table, seq.context_lens
    for tokens in (1, 2, 3, 7):
        seq.ensure_capacity(allocator, tokens)
        seq.len = tokens
        seq.sync_context_len()
        assert (table.tolist(), lens.tolist()) == (mirror_of(seq), [tokens])
    seq.release(allocator)
    assert (table.tolist(), lens.tolist()) == ([0] * 4, [0])
    seq.ensure_capacity(allocator, 3)
    assert seq.block_table is table and seq.context_lens is lens
    assert table.tolist() == mirror_of(seq)


def test_a_mirror_taken_before_a_change_keeps_what_it_showed():
    """A lazy reader of the mirror must not see the future."""
    seq, allocator = PagedSeqState(2, 4), BlockAllocator(4)
    seq.ensure_capacity(allocator, 2)
    reader = seq.block_table + 100
    seq.ensure_capacity(allocator, 6)
    assert reader.tolist() == [100, 100, 100, 100]
    assert seq.block_table.tolist() == [0, 1, 2, 0]


def test_the_length_reaches_the_device_at_sync():
    seq, allocator = PagedSeqState(4, 4), BlockAllocator(4)
    seq.ensure_capacity(allocator, 6)
    seq.len = 6
    assert seq.context_lens.tolist() == [0]
    seq.sync_context_len()
    assert seq.context_lens.tolist() == [6]


@pytest.mark.parametrize("length, error", [(-1, ValueError), (9, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_length_the_blocks_cannot_carry_is_not_synced(length, error):
    seq, allocator = PagedSeqState(4, 4), BlockAllocator(4)
    seq.ensure_capacity(allocator, 8)
    seq.len = 8
    seq.sync_context_len()
    seq.len = length
    with pytest.raises(error, match=f"^len: expected .*, got {length}"):
        seq.sync_context_len()
    with pytest.raises(error, match=f"^len: expected .*, got {length}"):
        batch_tables([seq])
    assert seq.context_lens.tolist() == [8]


def test_release_gives_all_back_last_block_next_out():
    seq, allocator = PagedSeqState(2, 4), shuffled_allocator(6)
    seq.ensure_capacity(allocator, 7)
    seq.len = 7
    seq.sync_context_len()
    held = list(seq.blocks)
    seq.release(allocator)
    assert (seq.blocks, seq.len, allocator.in_use) == ([], 0, 0)
    assert allocator.allocate_n(4) == held[::-1]
    seq.release(allocator)  # an empty sequence has nothing to give
    assert allocator.in_use == 4


def test_release_after_somebody_freed_a_block_is_refused_whole():
    seq, allocator = PagedSeqState(2, 4), BlockAllocator(6)
    seq.ensure_capacity(allocator, 7)
    seq.len = 7
    seq.sync_context_len()
    allocator.free(seq.blocks[2:3])
    before = state(seq, allocator)
    with pytest.raises(InvalidBlock, match="block 2 is not live"):
        seq.release(allocator)
    assert state(seq, allocator) == before


def test_trim_gives_back_what_holds_no_token_any_more():
    """10 tokens and room for 14, in blocks of 4: 4 blocks. 5 tokens are left in two of them."""
    seq, allocator = PagedSeqState(4, 6), BlockAllocator(8)
    seq.ensure_capacity(allocator, 14)
    seq.len = 10
    seq.trim(allocator, 5)
    assert (seq.blocks, seq.len, seq.block_table.tolist()) == ([0, 1], 5, mirror_of(seq))
    assert (seq.context_lens.tolist(), allocator.in_use, allocator.allocate()) == ([5], 2, 3)  # 3: last listed
    seq.trim(allocator, 5)
    assert seq.blocks == [0, 1]
    before = state(seq, allocator)
    with pytest.raises(ValueError, match="target_len: expected at most the 5 tokens held, got 6"):
        seq.trim(allocator, 6)
    assert state(seq, allocator) == before
    allocator.free([1])
    before = state(seq, allocator)
    with pytest.raises(InvalidBlock, match="block 1 is not live"):
        seq.trim(allocator, 0)
    assert state(seq, allocator) == before


def test_a_sequence_begins_with_blocks_that_are_filled_already():
    seq, allocator = PagedSeqState(4, 3), BlockAllocator(8)
    blocks = allocator.allocate_n(4)[2:]
    for given, length, error, message in (
        (blocks, 9, ValueError, "blocks: expected 3 of 4 for 9 tokens, got 2"),
        (blocks, 4, ValueError, "blocks: expected 1 of 4 for 4 tokens, got 2"),
        (range(4), 16, SequenceTooLong, "16 tokens need 4 blocks of 4; the block table has 3 entries"),
    ):
        with pytest.raises(error, match=message):
            seq.adopt(given, length)
        assert (seq.blocks, seq.len) == ([], 0)
    seq.adopt(blocks, 8)
    assert (seq.blocks, seq.len, seq.block_table.tolist(), seq.context_lens.tolist()) == ([2, 3], 8, [2, 3, 0], [8])
    with pytest.raises(ValueError, match="expected a sequence that holds none yet, this one holds 2"):
        seq.adopt([], 0)
    seq.release(allocator)
    assert allocator.in_use == 2


def test_shared_blocks_outlive_a_release():
    seq, allocator = PagedSeqState(2, 4), BlockAllocator(6)
    seq.ensure_capacity(allocator, 6)
    allocator.share(seq.blocks[:2])
    seq.release(allocator)
    assert [allocator.ref_count(block) for block in range(3)] == [1, 1, 0]


def test_thousands_of_steps_leave_no_growing_graph():
    """Nobody looks at the mirrors here, as in an engine that reads the host's truth."""
    seq, allocator = PagedSeqState(4, 1024), BlockAllocator(1024)
    for _ in range(4000):
        seq.ensure_capacity(allocator, seq.len + 1)
        seq.len += 1
        seq.sync_context_len()
        assert pending_operations(seq.context_lens) <= 1
    assert pending_operations(seq.block_table) <= 1
    for _ in range(500):
        seq.release(allocator)
        seq.ensure_capacity(allocator, 5)
    assert pending_operations(seq.block_table) <= 1
    assert seq.block_table.tolist() == mirror_of(seq)


def test_a_batch_is_made_from_the_hosts_truth():
    allocator = BlockAllocator(20)
    short, empty, long = PagedSeqState(4, 2), PagedSeqState(4, 1), PagedSeqState(4, 5)
    short.ensure_capacity(allocator, 3)  # block 0
    long.ensure_capacity(allocator, 9)  # blocks 1 2 3
    short.len, long.len = 3, 9  # not synced
    tables, contexts = batch_tables([short, empty, long])
    assert (tables.dtype, contexts.dtype) == (mx.int32, mx.int32)
    assert tables.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 0, 0]]
    assert contexts.tolist() == [3, 0, 9]


def test_a_batch_is_a_copy():
    seq, allocator = PagedSeqState(4, 2), BlockAllocator(2)
    tables, _ = batch_tables([seq])
    seq.ensure_capacity(allocator, 8)
    assert tables.tolist() == [[0, 0]]


def test_batches_of_nobody_and_of_a_generator():
    tables, contexts = batch_tables([])
    assert (tables.shape, tables.dtype, contexts.shape, contexts.dtype) == ((0, 0), mx.int32, (0,), mx.int32)
    tables, contexts = batch_tables(PagedSeqState(4, n) for n in (1, 3))
    assert (tables.shape, contexts.shape) == ((2, 3), (2,))


def test_numpy_integers():
    seq, allocator = PagedSeqState(np.int64(4), np.int32(3)), BlockAllocator(4)
    seq.ensure_capacity(allocator, np.int32(5))
    seq.len = np.int64(5)
    seq.sync_context_len()
    assert (seq.blocks, seq.context_lens.tolist()) == ([0, 1], [5])
    assert batch_tables([seq])[1].tolist() == [5]
