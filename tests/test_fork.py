"""Forks: n samples of one prompt share its blocks, and the first write into a shared block copies that block alone."""

import mlx.core as mx
import numpy as np
import pytest

from paged_core import (
    BlockAllocator,
    InvalidBlock,
    InvalidRequest,
    PagedPool,
    PagedSeqState,
    PoolExhausted,
    Preemption,
    PrefixCache,
    Scheduler,
    State,
    slot_mapping,
)
from tests.cases import LAYOUTS, query_starts, stored_bytes

BLOCK_SIZE, HEADS, HEAD_DIM = 4, 2, 8


def sequence(allocator, num_tokens, max_blocks=8):
    seq = PagedSeqState(BLOCK_SIZE, max_blocks)
    seq.ensure_capacity(allocator, num_tokens)
    seq.len = num_tokens
    seq.sync_context_len()
    return seq


def append(pool, allocator, seq, values):
    """Write one token a value: its K is the value, its V the value's negative. The blocks copied, as pairs."""
    seq.ensure_capacity(allocator, seq.len + len(values))
    copies = seq.unshare(allocator)
    pool.copy_blocks(*zip(*copies, strict=True)) if copies else None
    seq.len += len(values)
    seq.sync_context_len()
    slots = slot_mapping(seq.block_table[None], seq.context_lens, BLOCK_SIZE, query_starts([len(values)]))
    k = mx.broadcast_to(mx.array(values, mx.float32)[:, None, None], (len(values), HEADS, HEAD_DIM))
    for layer in range(pool.num_layers):
        pool.write(layer, k + layer, -k, slots)
    return copies


def tokens_of(pool, seq, layer=0):
    """The values that the sequence reads back, from its device mirror."""
    blocks = seq.block_table[: len(seq.blocks)].tolist()
    k, v = pool.gather(layer, blocks, seq.len)
    assert np.array_equal(np.array(v[:, 0, 0]), layer - np.array(k[:, 0, 0]))
    return (np.array(k[:, 0, 0]) - layer).astype(int).tolist()


def test_a_fork_by_hand():
    """6 tokens in blocks of 4: blocks 0 and 1. The fork shares both. Its first write goes into block 1, at offset 2."""
    allocator = BlockAllocator(8)
    parent = sequence(allocator, 6)
    child = parent.fork(allocator)
    assert (child.blocks, child.len, allocator.in_use) == ([0, 1], 6, 2)
    assert (child.block_table.tolist(), child.context_lens.tolist()) == ([0, 1] + [0] * 6, [6])
    assert [allocator.ref_count(block) for block in (0, 1)] == [2, 2]
    assert child.unshare(allocator) == [(1, 2)]  # block 1 is to be copied to block 2
    assert (child.blocks, child.block_table.tolist()) == ([0, 2], [0, 2] + [0] * 6)
    assert child.unshare(allocator) == parent.unshare(allocator) == []  # both write to their own now
    assert [allocator.ref_count(block) for block in (0, 1, 2)] == [2, 1, 1]
    parent.release(allocator)
    assert child.unshare(allocator) == []
    child.release(allocator)
    assert allocator.in_use == 0


def test_at_a_block_boundary_nothing_is_copied():
    """8 tokens fill blocks 0 and 1: the ninth goes into a new block in either, and none was shared."""
    allocator = BlockAllocator(8)
    parent = sequence(allocator, 8)
    child = parent.fork(allocator)
    for seq in (parent, child):
        seq.ensure_capacity(allocator, 9)
        assert seq.unshare(allocator) == []
    assert (parent.blocks, child.blocks) == ([0, 1, 2], [0, 1, 3])


def test_room_that_holds_no_token_is_not_shared():
    allocator = BlockAllocator(8)
    parent = sequence(allocator, 6)
    parent.ensure_capacity(allocator, 13)  # two blocks more than the tokens need
    child = parent.fork(allocator)
    assert (parent.blocks, child.blocks) == ([0, 1, 2, 3], [0, 1])


def test_a_sequence_cut_back_does_not_write_over_what_it_shares():
    """A rejected draft: 9 tokens are cut back to 4. The fifth goes into block 1, all of which the fork still reads."""
    allocator = BlockAllocator(8)
    parent = sequence(allocator, 9)
    child = parent.fork(allocator)
    parent.len = 4
    assert parent.unshare(allocator) == []  # none of its tokens is of use here: nothing to copy
    assert (parent.blocks, child.blocks) == ([0, 3, 2], [0, 1, 2])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("num_samples", [2, 5])
def test_n_samples_copy_one_block_each_save_the_last(layout, num_samples):
    """A prompt of 10 tokens: blocks 0 1 full, 2 half full. n samples write on. n - 1 of them copy block 2, the last has
    it to itself; and of the pool's bits nothing else changes."""
    pool = PagedPool(
        num_layers=2, num_blocks=16, num_kv_heads=HEADS, block_size=BLOCK_SIZE, head_dim=HEAD_DIM, dtype=mx.float32,
        layout=layout,
    )  # fmt: skip
    allocator = BlockAllocator(16)
    parent = PagedSeqState(BLOCK_SIZE, 8)
    prompt = list(range(100, 110))
    append(pool, allocator, parent, prompt)
    samples = [parent, *(parent.fork(allocator) for _ in range(num_samples - 1))]
    assert allocator.in_use == 3
    copied, before = [], pool.read_blocks(range(16))
    for i, seq in enumerate(samples):
        copied.append(append(pool, allocator, seq, [1000 + i]))
    assert [len(copies) for copies in copied] == [1] * (num_samples - 1) + [0]
    fresh = [to for copies in copied for _, to in copies]
    assert [source for copies in copied for source, _ in copies] == [2] * (num_samples - 1)
    assert len(set(fresh)) == num_samples - 1 and allocator.in_use == 3 + num_samples - 1
    for old, new in zip(before, pool.read_blocks(range(16)), strict=True):
        touched = {int(block) for block in np.flatnonzero((old != new).reshape(16, -1).any(1))}
        assert touched == {2, *fresh}
    for i, seq in enumerate(samples):
        append(pool, allocator, seq, [2000 + i, 3000 + i, 4000 + i])  # over the block's end
        for layer in range(2):
            assert tokens_of(pool, seq, layer) == [*prompt, 1000 + i, 2000 + i, 3000 + i, 4000 + i]
    for seq in samples:
        seq.release(allocator)
    assert allocator.in_use == 0


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_copy_is_bit_for_bit(layout):
    """Every 16-bit pattern there is: NaNs with their payloads, infinities, subnormals, minus zero."""
    pool = PagedPool(num_layers=1, num_blocks=65, num_kv_heads=1, block_size=16, head_dim=64, layout=layout)
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(64, -1)
    blocks = list(range(64))
    contents = pool.read_blocks(blocks)
    for x in contents:
        x[:] = patterns.repeat(x[0].size // patterns.shape[1], axis=1).reshape(x.shape)
    pool.write_blocks(blocks, contents)
    for block in (0, 31, 47, 63):  # 0x7c00.. and 0xfc00..: the NaNs of float16
        pool.copy_blocks([block], [64])
        for x, copy in zip(contents, pool.read_blocks([64]), strict=True):
            assert np.array_equal(copy[0], x[block])


def test_forks_in_a_cache_are_shared_with_those_who_ask_for_the_prompt():
    cache = PrefixCache(BlockAllocator(8), block_size=BLOCK_SIZE)
    parent = sequence(cache, 10)
    cache.register(cache.chain(range(10)), parent.blocks)
    child = parent.fork(cache)
    assert child.unshare(cache) == [(2, 3)]
    assert cache.match(cache.chain(range(9))) == [0, 1]
    assert [cache.ref_count(block) for block in range(4)] == [3, 3, 1, 1]


def test_a_findable_block_cut_back_is_copied_before_it_is_written():
    """Block 1 was full, and is findable as the tokens 4 to 7. Its one user goes back to 6 tokens and writes others."""
    pool = PagedPool(
        num_layers=1, num_blocks=4, num_kv_heads=HEADS, block_size=BLOCK_SIZE, head_dim=HEAD_DIM, dtype=mx.float32
    )
    cache = PrefixCache(BlockAllocator(4), block_size=BLOCK_SIZE)
    seq = PagedSeqState(BLOCK_SIZE, 8)
    append(pool, cache, seq, list(range(8)))
    cache.register(cache.chain(range(8)), seq.blocks)
    seq.trim(cache, 6)
    assert cache.is_shared(1) and not cache.is_shared(2) and cache.ref_count(1) == 1
    assert append(pool, cache, seq, [70, 80]) == [(1, 2)] and tokens_of(pool, seq) == [0, 1, 2, 3, 4, 5, 70, 80]
    assert (cache.in_use, cache.cached_count) == (2, 1)
    other = PagedSeqState(BLOCK_SIZE, 8)
    other.adopt(cache.match(cache.chain(range(9))), 8)
    assert tokens_of(pool, other) == list(range(8))


def test_nothing_to_fork():
    allocator = BlockAllocator(8)
    seq = sequence(allocator, 6)
    seq.release(allocator)
    for empty in (seq, PagedSeqState(BLOCK_SIZE, 8)):
        with pytest.raises(InvalidBlock, match="nothing to fork: the sequence holds no tokens; it is new, or was rel"):
            empty.fork(allocator)
    assert allocator.in_use == 0


def test_a_fork_of_blocks_freed_behind_its_back_is_refused():
    allocator = BlockAllocator(8)
    seq = sequence(allocator, 6)
    allocator.free(seq.blocks[1:])
    with pytest.raises(InvalidBlock, match="block 1 is not live"):
        seq.fork(allocator)
    assert [allocator.ref_count(block) for block in range(2)] == [1, 0]


def test_no_block_to_copy_to():
    allocator = BlockAllocator(2)
    parent = sequence(allocator, 6)
    child = parent.fork(allocator)
    with pytest.raises(PoolExhausted):
        child.unshare(allocator)
    assert (child.blocks, child.block_table.tolist()[:2], allocator.ref_count(1)) == ([0, 1], [0, 1], 2)
    parent.release(allocator)
    assert child.unshare(allocator) == []


def test_a_refused_write_of_blocks_writes_nothing():
    pool = PagedPool(num_layers=1, num_blocks=4, num_kv_heads=1, block_size=2, head_dim=8)
    contents = [x + 1 for x in pool.read_blocks([0, 1])]
    before = stored_bytes(pool)
    for blocks, given, error, message in (
        ([0, 4], contents, InvalidBlock, r"blocks\[1\]: expected a block from 0 to 3, got 4"),
        ([1, 1], contents, InvalidBlock, "expected each block once, got 1 more than once"),
        ([0], contents, ValueError, "contents: expected arrays of shapes"),
        ([0, 1], contents[:1], ValueError, "contents: expected arrays of shapes"),
        ([0, 1], [x.astype(np.float32) for x in contents], TypeError, r"contents\[0\]: expected dtype .*uint16"),
    ):
        with pytest.raises(error, match=message):
            pool.write_blocks(blocks, given)
    assert stored_bytes(pool) == before


# ------------------------------------------------------------------------------------------------- in the scheduler


def step(scheduler, token=lambda request: 7):
    plan = scheduler.plan()
    scheduler.complete(plan, {work.request.id: token(work.request) for work in plan.work if work.samples})
    return plan


def test_samples_of_a_request_by_hand():
    """A prompt of 6 in blocks of 4, three samples with first tokens 70, 71, 72. All three would write at offset 2 of
    block 1: the first two get copies, in blocks 2 and 3, and the third keeps block 1."""
    scheduler = Scheduler(BlockAllocator(8), block_size=4)
    scheduler.add("a", range(6), 4)
    step(scheduler, lambda request: 70)
    b = scheduler.fork("a", "b", token=71)
    c = scheduler.fork("a", "c", token=72)
    a = scheduler.requests["a"]
    assert [r.tokens[6:] for r in (a, b, c)] == [[70], [71], [72]]
    assert scheduler.running == [a, b, c] and scheduler.blocks.in_use == 2
    plan = scheduler.plan()
    assert plan.copies == [(1, 2), (1, 3)]
    assert [r.blocks for r in (a, b, c)] == [[0, 2], [0, 3], [0, 1]]
    scheduler.complete(plan, dict.fromkeys("abc", 9))
    assert step(scheduler).copies == []
    while scheduler.requests:
        step(scheduler)
    assert scheduler.blocks.in_use == 0
    assert (a.tokens[6:8], b.tokens[6:8], c.tokens[6:8]) == ([70, 9], [71, 9], [72, 9])


def test_samples_of_a_full_block_copy_nothing():
    """A prompt of 4 fills block 0. Each of the two goes on in a block of its own."""
    scheduler = Scheduler(BlockAllocator(8), block_size=4)
    a = scheduler.add("a", range(4), 4)
    step(scheduler)
    b = scheduler.fork("a", "b")
    assert (step(scheduler).copies, a.blocks, b.blocks) == ([], [0, 1], [0, 2])


@pytest.mark.parametrize("cached", [False, True], ids=["allocator", "cache"])
def test_a_sample_that_waits_is_computed_again_alone(cached):
    """No block for the copies: the last sample gives way, and what it shared is the others'."""
    blocks = BlockAllocator(2)
    blocks = PrefixCache(blocks, block_size=4) if cached else blocks
    scheduler = Scheduler(blocks, block_size=4)
    scheduler.add("a", range(6), 3)
    step(scheduler)
    b = scheduler.fork("a", "b", token=8)
    plan = scheduler.plan()
    assert (plan.copies, plan.preempted) == ([], [b])  # a alone holds block 1 now: no copy is needed
    assert (b.state, b.blocks, b.num_computed) == (State.WAITING, [], 0)
    scheduler.complete(plan, {"a": 7})
    while scheduler.requests:
        step(scheduler)
    assert (b.tokens, blocks.in_use) == ([*range(6), 8, 7, 7], 0)


def test_shared_blocks_are_swapped_out_by_their_bits_and_stay_where_they_are_for_the_others():
    scheduler = Scheduler(BlockAllocator(2), block_size=4, preemption=Preemption.SWAP, num_host_blocks=4)
    scheduler.add("a", range(6), 3)
    step(scheduler)
    b = scheduler.fork("a", "b")
    plan = scheduler.plan()
    assert (plan.swap_out, plan.copies, b.state) == ([(0, 0), (1, 1)], [], State.SWAPPED)
    scheduler.complete(plan, {"a": 7})
    while "a" in scheduler.requests:
        step(scheduler)
    plan = step(scheduler)
    assert [host for host, _ in plan.swap_in] == [0, 1] and plan.admitted == [b]
    while scheduler.requests:
        step(scheduler)
    assert (scheduler.blocks.in_use, scheduler.host_blocks.in_use) == (0, 0)


def test_what_cannot_be_forked():
    scheduler = Scheduler(BlockAllocator(8), block_size=4, max_running=2, max_tokens_per_step=4)
    scheduler.add("a", range(6), 4, stop_tokens=[99])
    for wrong, message in (("a", "is waiting, 0 of 6"), ("z", "no request 'z'")):
        with pytest.raises(InvalidRequest, match=message):
            scheduler.fork(wrong, "b")
    step(scheduler)
    with pytest.raises(InvalidRequest, match="is running, 4 of 6 prompt tokens computed"):
        scheduler.fork("a", "b")
    step(scheduler)
    with pytest.raises(InvalidRequest, match="request 'a' is here already, running"):
        scheduler.fork("a", "a")
    with pytest.raises(InvalidRequest, match="token: 99 ends request 'b' before it begins"):
        scheduler.fork("a", "b", token=99)
    with pytest.raises(TypeError, match=r"token: expected an integer, got 1\.5"):
        scheduler.fork("a", "b", token=1.5)
    plan = scheduler.plan()
    with pytest.raises(InvalidRequest, match="while a plan is carried out"):  # nobody knows yet what a's blocks hold
        scheduler.fork("a", "b")
    scheduler.complete(plan, {"a": 7})
    scheduler.fork("a", "b")
    with pytest.raises(InvalidRequest, match="2 are running"):
        scheduler.fork("a", "c")
    for name in "ab":
        scheduler.cancel(name)
        with pytest.raises(InvalidRequest, match="finished, or was cancelled"):
            scheduler.fork(name, "d")
    assert scheduler.blocks.in_use == 0
