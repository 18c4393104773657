"""The allocator: worked arithmetic first, then every refusal, then a long life beside a plain model."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paged_core import BlockAllocator, InvalidBlock, PagedCoreError, PoolExhausted

ROOT = Path(__file__).parent.parent


def state(allocator):
    """All that can be seen of an allocator without changing it, the order of its free list included."""
    return (
        allocator.capacity,
        allocator.free_count,
        allocator.in_use,
        allocator.peak_in_use,
        [allocator.ref_count(block) for block in range(allocator.capacity)],
        list(allocator._free),
    )


def test_blocks_leave_in_order_0_1_2():
    allocator = BlockAllocator(4)
    assert allocator.allocate() == 0
    assert allocator.allocate() == 1
    assert allocator.allocate_n(2) == [2, 3]
    assert (allocator.capacity, allocator.free_count, allocator.in_use) == (4, 0, 4)


def test_the_last_block_freed_is_the_next_one_out():
    allocator = BlockAllocator(6)
    allocator.allocate_n(4)  # 0 1 2 3 are live, 4 is next
    allocator.free([2, 0])  # 0 lies on top, 2 below it, then 4
    assert [allocator.allocate() for _ in range(4)] == [0, 2, 4, 5]


def test_allocate_n_takes_from_the_top_one_by_one():
    one_by_one, at_once = BlockAllocator(8), BlockAllocator(8)
    for allocator in (one_by_one, at_once):
        allocator.allocate_n(5)
        allocator.free([3, 1, 4])
    assert at_once.allocate_n(5) == [one_by_one.allocate() for _ in range(5)] == [4, 1, 3, 5, 6]


def test_one_too_many_takes_nothing_and_says_how_many_were_free():
    allocator = BlockAllocator(5)
    allocator.allocate_n(3)
    before = state(allocator)
    with pytest.raises(PoolExhausted, match=r"^3 block\(s\) needed, 2 of 5 free") as refusal:
        allocator.allocate_n(3)
    assert (refusal.value.needed, refusal.value.free, refusal.value.capacity) == (3, 2, 5)
    assert state(allocator) == before
    assert allocator.allocate_n(2) == [3, 4]
    with pytest.raises(PoolExhausted) as refusal:
        allocator.allocate()
    assert (refusal.value.needed, refusal.value.free) == (1, 0)


def test_the_peak_never_falls():
    allocator = BlockAllocator(10)
    assert allocator.peak_in_use == 0
    blocks = allocator.allocate_n(6)
    allocator.free(blocks[:5])
    assert (allocator.in_use, allocator.peak_in_use) == (1, 6)
    allocator.allocate_n(4)
    assert (allocator.in_use, allocator.peak_in_use) == (5, 6)
    with pytest.raises(PoolExhausted):
        allocator.allocate_n(6)  # refused: it never was in use
    assert allocator.peak_in_use == 6
    allocator.allocate_n(5)
    assert allocator.peak_in_use == 10


def test_a_shared_block_is_free_with_its_last_reference():
    allocator = BlockAllocator(3)
    a, b = allocator.allocate_n(2)
    allocator.share([a, a])  # three references in all
    assert (allocator.ref_count(a), allocator.ref_count(b), allocator.ref_count(2)) == (3, 1, 0)
    assert allocator.in_use == 2  # however many share it, a block is in use once
    allocator.free([a, b, a])
    assert (allocator.ref_count(a), allocator.in_use) == (1, 1)
    assert allocator.allocate() == b
    allocator.free([a])
    assert allocator.allocate() == a


def test_one_call_may_drop_all_references_of_a_block():
    allocator = BlockAllocator(3)
    a, b = allocator.allocate_n(2)
    allocator.share([a])
    allocator.free([a, b, a])  # the last mention of a is the one that frees it: it lies on top
    assert allocator.allocate_n(2) == [a, b]


@pytest.mark.parametrize(
    "verb, blocks, culprit",
    [
        ("free", [-1], "block -1 does not exist: ids run from 0 to 4"),
        ("free", [5], "block 5 does not exist: ids run from 0 to 4"),
        ("free", [0, 4], "block 4 is not live"),  # never handed out
        ("free", [0, 2], "block 2 is not live"),  # freed before: a double free
        ("free", [0, 1, 0], "block 0 is freed more often than it is referenced"),
        ("free", [1, 1, 1], "block 1 is freed more often than it is referenced"),  # it has two references
        ("share", [-1], "block -1 does not exist"),
        ("share", [5], "block 5 does not exist"),
        ("share", [0, 4], "block 4 is not live"),
        ("share", [0, 2], "block 2 is not live"),
    ],
)
def test_what_is_not_the_callers_to_give_is_refused_and_nothing_changes(verb, blocks, culprit):
    allocator = BlockAllocator(5)
    allocator.allocate_n(3)
    allocator.share([1])
    allocator.free([2])
    before = state(allocator)
    with pytest.raises(InvalidBlock, match=culprit):
        getattr(allocator, verb)(blocks)
    with pytest.raises(InvalidBlock, match=culprit):
        getattr(allocator, verb)(iter(blocks))  # an iterator is read once, and before anything is changed
    assert state(allocator) == before


def test_ref_count_of_no_block():
    allocator = BlockAllocator(2)
    for block in (-1, 2):
        with pytest.raises(InvalidBlock, match=f"block {block} does not exist"):
            allocator.ref_count(block)


@pytest.mark.parametrize("nothing", [[], (), iter([]), range(0)])
def test_nothing_to_do_is_no_error(nothing):
    allocator = BlockAllocator(1)
    allocator.free(nothing)
    allocator.share(nothing)
    assert allocator.allocate_n(0) == []
    assert state(allocator) == state(BlockAllocator(1))


def test_an_allocator_without_blocks():
    allocator = BlockAllocator(0)
    assert (allocator.capacity, allocator.free_count, allocator.in_use, allocator.peak_in_use) == (0, 0, 0, 0)
    assert allocator.allocate_n(0) == []
    with pytest.raises(PoolExhausted):
        allocator.allocate()


def test_numpy_integers_are_integers_and_come_back_as_plain_ones():
    allocator = BlockAllocator(np.int32(4))
    blocks = allocator.allocate_n(np.int64(2))
    allocator.share(np.array(blocks, np.int32))
    allocator.free(np.array(blocks, np.int32))
    allocator.free(np.array(blocks, np.uint8))
    assert [type(block) for block in allocator.allocate_n(4)] == [int] * 4


def test_exhaustion_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(PoolExhausted(needed=3, free=2, capacity=5)))
    assert (error.needed, error.free, error.capacity) == (3, 2, 5)
    assert isinstance(error, PagedCoreError)


def test_the_allocator_needs_no_tensor_library():
    """Run alone, without the package's __init__ (which imports everything): neither MLX nor NumPy is drawn in."""
    program = """
import importlib.util, pathlib, sys, types
package = types.ModuleType("paged_core")
package.__path__ = [str(pathlib.Path("paged_core").resolve())]
sys.modules["paged_core"] = package
from paged_core.allocator import BlockAllocator
assert BlockAllocator(2).allocate_n(2) == [0, 1]
print(sorted({"mlx", "numpy"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


class AllocatorBesideAModel(RuleBasedStateMachine):
    """The model: a list of free ids whose end is the top, and one list with every reference that is held."""

    @initialize(capacity=st.integers(0, 12))
    def begin(self, capacity):
        self.allocator = BlockAllocator(capacity)
        self.free_ids = list(reversed(range(capacity)))
        self.held: list[int] = []
        self.capacity, self.peak = capacity, 0

    @rule(n=st.integers(0, 14))
    def allocate_n(self, n):
        if n > len(self.free_ids):
            with pytest.raises(PoolExhausted):
                self.allocator.allocate_n(n)
            return
        expected = [self.free_ids.pop() for _ in range(n)]
        assert self.allocator.allocate_n(n) == expected
        self.held += expected
        self.peak = max(self.peak, len(set(self.held)))

    @rule(blocks=st.lists(st.integers(-2, 13), max_size=5))
    def share_anything(self, blocks):
        if set(blocks) <= set(self.held):
            self.allocator.share(blocks)
            self.held += blocks
        else:
            with pytest.raises(InvalidBlock):
                self.allocator.share(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share_what_is_live(self, data):
        self.share_anything(data.draw(st.lists(st.sampled_from(self.held), max_size=5)))

    @rule(blocks=st.lists(st.integers(-2, 13), max_size=5))
    def free_anything(self, blocks):
        left = list(self.held)
        try:
            for block in blocks:
                left.remove(block)
        except ValueError:  # not ours, or not so often
            with pytest.raises(InvalidBlock):
                self.allocator.free(blocks)
            return
        self.allocator.free(blocks)
        for block in blocks:
            self.held.remove(block)
            if block not in self.held:
                self.free_ids.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free_what_is_held(self, data):
        self.free_anything(data.draw(st.permutations(self.held))[: data.draw(st.integers(0, len(self.held)))])

    @invariant()
    def they_agree(self):
        assert self.allocator.capacity == self.capacity
        assert self.allocator.free_count == len(self.free_ids)
        assert self.allocator.in_use == len(set(self.held)) == self.capacity - len(self.free_ids)
        assert self.allocator.peak_in_use == self.peak
        for block in range(self.capacity):
            assert self.allocator.ref_count(block) == self.held.count(block)

    def teardown(self):
        """The free list has the model's order to the last block."""
        if hasattr(self, "allocator"):
            assert self.allocator.allocate_n(len(self.free_ids)) == self.free_ids[::-1]


TestAllocatorBesideAModel = AllocatorBesideAModel.TestCase
TestAllocatorBesideAModel.settings = settings(max_examples=60, stateful_step_count=40)
