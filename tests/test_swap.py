"""Swapping: K and V leave the pool and come back bit for bit, in every layout and dtype; and when the file fails."""

import os
import resource
import signal
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest

from paged_core import (
    BlockAllocator,
    HostBlocks,
    InvalidBlock,
    PagedPool,
    Preemption,
    PrefixCache,
    Scheduler,
    State,
    SwapError,
)
from tests.cases import DTYPES, LAYOUTS, stored_bytes


def pool_of(num_blocks=6, layout=LAYOUTS[0], dtype="float16", num_layers=2, head_dim=16):
    return PagedPool(
        num_layers=num_layers, num_blocks=num_blocks, num_kv_heads=2, block_size=4, head_dim=head_dim,
        dtype=getattr(mx, dtype), layout=layout,
    )  # fmt: skip


def fill(pool, blocks, seed=0):
    """Any bits at all: among them NaNs of every payload, infinities, subnormals, minus zero. What was written."""
    rng = np.random.default_rng(seed)
    contents = [
        rng.integers(0, 1 << 8 * x.itemsize, x.shape, np.uint64).astype(x.dtype) for x in pool.read_blocks(blocks)
    ]
    half = {2: 0x7C01, 4: 0x7F800001}[contents[0].itemsize]  # a signalling NaN of float16, of float32
    for x in contents:
        x.reshape(len(blocks), -1)[:, ::7] = half
    pool.write_blocks(blocks, contents)
    return contents


def equal(contents, others):
    return all(np.array_equal(x, y) for x, y in zip(contents, others, strict=True))


@contextmanager
def full_disk(nbytes):
    """As if nothing fitted into a file beyond so many bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, old[0][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old[0])
        signal.signal(signal.SIGXFSZ, old[1])


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_out_and_in_again_bit_for_bit(layout, dtype, where, tmp_path):
    """Blocks 4 1 2 go to host blocks 0 3 1, the pool is overwritten, and they come back into 0 5 3."""
    pool = pool_of(layout=layout, dtype=dtype)
    host = HostBlocks(pool, 4, tmp_path / "swap" if where == "file" else None)
    assert host.nbytes == pool.nbytes // 6 * 4
    written = fill(pool, [4, 1, 2])
    assert equal(pool.read_blocks([4, 1, 2]), written)
    host.swap_out([(4, 0), (1, 3), (2, 1)])
    fill(pool, range(6), seed=1)
    others = pool.read_blocks([1, 2, 4])
    host.swap_in([(0, 0), (3, 5), (1, 3)])
    assert equal(pool.read_blocks([0, 5, 3]), written)
    assert equal(pool.read_blocks([1, 2, 4]), others)
    host.swap_out([])
    host.swap_in([])


def test_blocks_that_are_not_there():
    pool = pool_of()
    host = HostBlocks(pool, 2)
    fill(pool, range(6))
    before = stored_bytes(pool)
    for call in (
        lambda: host.swap_out([(6, 0)]),
        lambda: host.swap_in([(0, 6)]),
        lambda: host.swap_in([(0, 1), (1, 1)]),
    ):
        with pytest.raises(InvalidBlock, match="blocks"):
            call()
    for call in (lambda: host.swap_out([(0, 2)]), lambda: host.swap_in([(-1, 0)])):
        with pytest.raises(InvalidBlock, match="host block: expected 0 to 1, got"):
            call()
    with pytest.raises(ValueError, match="num_blocks: expected a positive integer, got 0"):
        HostBlocks(pool, 0)
    assert stored_bytes(pool) == before


@pytest.mark.parametrize("path", ["missing/swap", "file/swap", "."])
def test_a_swap_file_that_cannot_be_made(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(SwapError, match="path: cannot make the swap file"):
        HostBlocks(pool_of(), 2, tmp_path / path)


def test_a_full_disk_is_an_error_and_not_the_end(tmp_path):
    """The second record does not fit. When there is room again, the same file goes on."""
    pool = pool_of()
    host = HostBlocks(pool, 3, tmp_path / "swap")
    written = fill(pool, [0, 1])
    before = stored_bytes(pool)
    for limit in (host.nbytes // 3, host.nbytes // 2):  # nothing of the second record, or half of it
        with full_disk(limit), pytest.raises(SwapError, match="host block 1 cannot be written to the swap file"):
            host.swap_out([(0, 0), (1, 1)])
        with pytest.raises(SwapError, match="host block 1 is not in the swap file"):
            host.swap_in([(0, 3), (1, 4)])
    assert stored_bytes(pool) == before
    host.swap_out([(0, 0), (1, 1)])
    host.swap_in([(0, 3), (1, 4)])
    assert equal(pool.read_blocks([3, 4]), written)


def test_a_file_cut_off_behind_our_back(tmp_path):
    pool = pool_of()
    host = HostBlocks(pool, 2, tmp_path / "swap")
    fill(pool, range(6))
    host.swap_out([(0, 0), (1, 1)])
    os.truncate(tmp_path / "swap", host.nbytes - 1)
    before = stored_bytes(pool)
    with pytest.raises(SwapError, match="host block 1 is not in the swap file"):
        host.swap_in([(0, 4), (1, 5)])
    assert stored_bytes(pool) == before


def test_the_file_is_closed_with_its_owner(tmp_path):
    host = HostBlocks(pool_of(), 2, tmp_path / "swap")
    file = host._file
    os.fstat(file)
    del host
    with pytest.raises(OSError):
        os.fstat(file)


# ------------------------------------------------------------------------------------- a scheduler over a real pool


class Engine:
    """The smallest there can be: carries a plan out in one pool. K of a token is a number made of all tokens up to it,
    V likewise; a request's next token depends on every K and V it reads back, so a wrong bit anywhere changes what
    comes."""

    def __init__(self, scheduler, host=None):
        self.scheduler, self.host = scheduler, host
        self.pool = host.pool if host else pool_of(scheduler.blocks.capacity, dtype="float32")
        self.preempted = self.moved = 0

    def step(self):
        plan = self.scheduler.plan()
        try:
            if plan.swap_out or plan.swap_in:
                self.host.swap_out(plan.swap_out)
                self.host.swap_in(plan.swap_in)
            if plan.copies:
                self.pool.copy_blocks(*zip(*plan.copies, strict=True))
            sampled = {}
            for request, first, count, samples in plan.work:
                self.write(request, first, count)
                token = self.read(request, first + count)
                if samples:
                    sampled[request.id] = token
        except SwapError:
            self.scheduler.abandon(plan)
            self.scheduler.preemption = Preemption.RECOMPUTE
            return []
        self.preempted += len(plan.preempted)
        self.moved += len(plan.swap_in)
        return self.scheduler.complete(plan, sampled)

    def write(self, request, first, count):
        block_size = self.pool.block_size
        slots = [request.blocks[p // block_size] * block_size + p % block_size for p in range(first, first + count)]
        values = [history(request.tokens[: p + 1]) for p in range(first, first + count)]
        k = mx.broadcast_to(mx.array(values, mx.float32)[:, None, None], (count, 2, self.pool.head_dim))
        for layer in range(self.pool.num_layers):
            self.pool.write(layer, k + layer, -k - layer, mx.array(slots, mx.int32))

    def read(self, request, length):
        """The next token: from what the pool holds for this request, which must be what was written for its tokens."""
        expected = np.array([history(request.tokens[: p + 1]) for p in range(length)], np.float32)
        for layer in range(self.pool.num_layers):
            k, v = (np.array(x[:, 0, 0]) for x in self.pool.gather(layer, request.blocks, length))
            assert np.array_equal(k, expected + layer) and np.array_equal(v, -expected - layer)
        return int(k.sum()) % 5


def history(tokens):
    value = 1
    for token in tokens:
        value = (value * 31 + token + 1) % 65521
    return value


def alone(prompt, max_new_tokens):
    """The tokens of a request that has the pool to itself."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(sum(history(tokens[: p + 1]) + 1 for p in range(len(tokens))) % 5)
    return tokens


def requests(num_requests, seed):
    rng = np.random.default_rng(seed)
    prompts = [[*([1] * int(rng.integers(0, 9))), *rng.integers(0, 3, rng.integers(1, 12)).tolist()]
               for _ in range(num_requests)]  # fmt: skip
    return {i: (prompt, int(rng.integers(1, 14))) for i, prompt in enumerate(prompts)}


def run(engine, work):
    added = {i: engine.scheduler.add(i, prompt, new) for i, (prompt, new) in work.items()}
    for _ in range(3000):
        engine.step()
        if not engine.scheduler.requests:
            break
    for i, (prompt, new) in work.items():
        assert added[i].state is State.FINISHED
        assert added[i].tokens == alone(prompt, new)
    assert engine.scheduler.blocks.in_use == engine.scheduler.host_blocks.in_use == 0


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("cached", [False, True], ids=["allocator", "cache"])
@pytest.mark.parametrize("preemption", Preemption)
def test_a_pool_too_small_changes_no_token(preemption, cached, where, tmp_path):
    """12 requests in 9 blocks: whoever gives way and comes back ends with the tokens it would have had alone."""
    blocks = BlockAllocator(9)
    blocks = PrefixCache(blocks, block_size=4) if cached else blocks
    scheduler = Scheduler(
        blocks, block_size=4, max_running=5, max_tokens_per_step=10, preemption=preemption, num_host_blocks=7
    )
    pool = pool_of(9, dtype="float32", head_dim=8)
    engine = Engine(scheduler, HostBlocks(pool, 7, tmp_path / "swap" if where == "file" else None))
    run(engine, requests(12, seed=3))
    assert engine.preempted > 3
    assert bool(engine.moved) == (preemption is Preemption.SWAP)
    assert not cached or blocks.hits > 5


def test_a_swap_file_that_fails_in_the_middle_of_a_step(tmp_path):
    """The disk is full when the first block is to leave: the step is abandoned, the rest goes on by recompute."""
    scheduler = Scheduler(BlockAllocator(9), block_size=4, max_running=5, preemption=Preemption.SWAP, num_host_blocks=7)
    engine = Engine(scheduler, HostBlocks(pool_of(9, dtype="float32", head_dim=8), 7, tmp_path / "swap"))
    with full_disk(100):
        run(engine, requests(12, seed=3))
    assert scheduler.preemption is Preemption.RECOMPUTE
    assert (engine.moved, scheduler.host_blocks.peak_in_use > 0) == (0, True)


def test_a_swap_file_lost_while_a_request_waits_in_it(tmp_path):
    """What was swapped out cannot be read again: it is computed from its tokens, and every block is accounted for."""
    scheduler = Scheduler(BlockAllocator(9), block_size=4, max_running=5, preemption=Preemption.SWAP, num_host_blocks=7)
    engine = Engine(scheduler, HostBlocks(pool_of(9, dtype="float32", head_dim=8), 7, tmp_path / "swap"))
    lose = scheduler.abandon
    scheduler.abandon = lambda plan: (abandoned.append(plan), lose(plan))
    abandoned, swap_in = [], engine.host.swap_in

    def swap_in_once_lost(moves):
        if moves and not abandoned:
            os.truncate(tmp_path / "swap", 0)
        swap_in(moves)

    engine.host.swap_in = swap_in_once_lost
    run(engine, requests(12, seed=3))
    assert abandoned and all(plan.swap_in for plan in abandoned)
