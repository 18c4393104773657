"""The ground floors together, through a long life: sequences grow, fork, end and run dry in one pool of pages, beside
plain lists of every token they were ever given. What the pages hold must be what the lists hold, at every step."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from paged_core import (
    BlockAllocator,
    PagedSeqState,
    PoolExhausted,
    PoolLayout,
    SequenceTooLong,
    attention_error_bound,
    batch_tables,
    dense_attention,
    paged_attention,
    slot_mapping,
)
from tests.cases import check_within, nan_pool, query_starts, to_numpy

NUM_BLOCKS, MAX_BLOCKS, HEADS, HEAD_DIM = 14, 5, 2, 8


class PagesBesideLists(RuleBasedStateMachine):
    sequences = Bundle("sequences")

    @initialize(layout=st.sampled_from(PoolLayout), block_size=st.sampled_from([1, 3, 4]))
    def begin(self, layout, block_size):
        self.pool = nan_pool(
            num_layers=1, num_blocks=NUM_BLOCKS, num_kv_heads=HEADS, block_size=block_size, head_dim=HEAD_DIM,
            dtype=mx.float32, layout=layout,
        )  # fmt: skip
        self.allocator = BlockAllocator(NUM_BLOCKS)
        self.block_size = block_size
        self.tokens = {}  # id(seq): (seq, k, v), k and v [len, heads, head_dim]
        self.rng = np.random.default_rng(0)

    def random(self, *shape):
        return self.rng.standard_normal((*shape, HEAD_DIM)).astype(np.float32)

    @rule(target=sequences)
    def arrive(self):
        seq = PagedSeqState(self.block_size, MAX_BLOCKS)
        self.tokens[id(seq)] = seq, self.random(0, HEADS), self.random(0, HEADS)
        return seq

    @rule(seq=sequences, new=st.integers(0, 9))
    def append(self, seq, new):
        """A prompt, a chunk or a decode: make room, write, advance. Or be refused, and have lost nothing."""
        needed = -(-(seq.len + new) // self.block_size)
        refusal = None
        if needed > MAX_BLOCKS:
            refusal = SequenceTooLong
        elif needed - len(seq.blocks) > self.allocator.free_count:
            refusal = PoolExhausted
        if refusal:
            before = list(seq.blocks), seq.len, self.allocator.free_count
            with pytest.raises(refusal):
                seq.ensure_capacity(self.allocator, seq.len + new)
            assert (list(seq.blocks), seq.len, self.allocator.free_count) == before
            return
        seq.ensure_capacity(self.allocator, seq.len + new)
        seq.len += new
        seq.sync_context_len()
        k, v = self.random(new, HEADS), self.random(new, HEADS)
        slots = slot_mapping(seq.block_table[None], seq.context_lens, self.block_size, query_starts([new]))
        self.pool.write(0, mx.array(k), mx.array(v), slots)
        _, old_k, old_v = self.tokens[id(seq)]
        self.tokens[id(seq)] = seq, np.concatenate([old_k, k]), np.concatenate([old_v, v])

    @rule(target=sequences, parent=sequences)
    def fork(self, parent):
        """Full blocks are shared; the last, which both will write to, is copied."""
        child = PagedSeqState(self.block_size, MAX_BLOCKS)
        full, rest = divmod(parent.len, self.block_size)
        if not self.allocator.free_count:
            rest = 0  # no room for a copy: the child begins with what is shared
        shared = parent.blocks[:full]
        self.allocator.share(shared)
        child.blocks = shared
        child.block_table[:full] = mx.array(shared, mx.int32)
        child.len = full * self.block_size + rest
        child.ensure_capacity(self.allocator, child.len)
        child.sync_context_len()
        if rest:
            self.pool.copy_blocks(parent.blocks[full : full + 1], child.blocks[full:])
        _, k, v = self.tokens[id(parent)]
        self.tokens[id(child)] = child, k[: child.len], v[: child.len]
        return child

    @rule(seq=consumes(sequences))
    def end(self, seq):
        seq.release(self.allocator)
        del self.tokens[id(seq)]

    @rule(num_queries=st.integers(0, 3), window=st.sampled_from([None, 1, 4]))
    def attend(self, num_queries, window):
        seqs = [seq for seq, _, _ in self.tokens.values()]
        queries = [min(num_queries, seq.len) for seq in seqs]
        q = self.random(sum(queries), 2 * HEADS)
        tables, contexts = batch_tables(seqs)
        starts = np.cumsum([0, *queries])
        output = to_numpy(
            paged_attention(
                mx.array(q), self.pool.k(0), self.pool.v(0), tables, contexts, query_start_loc=query_starts(queries),
                layout=self.pool.layout, sliding_window=window, executor="ops",
            )
        )  # fmt: skip
        for start, stop, (_, k, v) in zip(starts[:-1], starts[1:], self.tokens.values(), strict=True):
            dense = q[start:stop], k, v
            bound = attention_error_bound(*dense, sliding_window=window, dtype="float32")
            check_within(output[start:stop], dense_attention(*dense, sliding_window=window), bound)

    @invariant()
    def pages_hold_what_was_given(self):
        for seq, k, v in self.tokens.values():
            assert seq.len == len(k)
            got_k, got_v = self.pool.gather(0, seq.blocks, seq.len)
            np.testing.assert_array_equal(np.array(got_k), k)
            np.testing.assert_array_equal(np.array(got_v), v)
            assert seq.block_table.tolist() == seq.blocks + [0] * (MAX_BLOCKS - len(seq.blocks))
            assert seq.context_lens.tolist() == [seq.len]

    @invariant()
    def every_block_is_accounted_for(self):
        held = [block for seq, _, _ in self.tokens.values() for block in seq.blocks]
        assert self.allocator.in_use == len(set(held))
        assert all(self.allocator.ref_count(block) == held.count(block) for block in set(held))


TestPagesBesideLists = PagesBesideLists.TestCase
TestPagesBesideLists.settings = settings(max_examples=40, stateful_step_count=25)


def test_the_machine_would_notice():
    """The same life with one mistake in it, a fork that forgets to copy its last block, does not pass."""

    class Forgetful(PagesBesideLists):
        def begin(self, layout, block_size):
            super().begin(layout, block_size)
            self.pool.copy_blocks = lambda src, dst: None

    machine = Forgetful()
    machine.begin(PoolLayout.HND, 4)
    parent = machine.arrive()
    machine.append(parent, 6)
    machine.pages_hold_what_was_given()
    machine.fork(parent)
    with pytest.raises(AssertionError):
        machine.pages_hold_what_was_given()
