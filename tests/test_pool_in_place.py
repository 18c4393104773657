"""A write of three slots, or a copy of three blocks, must not copy the pool: timed beside a real copy of it."""

from statistics import median
from time import perf_counter

import mlx.core as mx
import numpy as np
import pytest

from paged_core import PagedPool, PoolLayout, available_executors, paged_attention

BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM = 16, 8, 128
NUM_BLOCKS = 4096  # 134 MB of K and as much of V in half precision
SLOTS = mx.array([5, 9 * BLOCK_SIZE + 1, 4000 * BLOCK_SIZE + 15], mx.int32)
LARGEST_SHARE = (
    1 / 20
)  # of a full copy; in place it is 1/70 to 1/400, and one array copied by MLX is more than a copy by NumPy
FAST_EXECUTORS = [name for name in available_executors() if name != "simulator"]


def seconds(action, before=tuple, repeats=9):
    """The median time of `action`, once it has run twice. Each time, `action` gets what `before` gives, untimed."""
    times = []
    for _ in range(2 + repeats):
        given = before()
        start = perf_counter()
        action(*given)
        times.append(perf_counter() - start)
    return median(times[2:])


def stays_in_place(full_copy, action, before=tuple):
    """Whether the median time is under a twentieth of a full copy. On a busy machine one median of three must be."""
    return any(seconds(action, before) < LARGEST_SHARE * full_copy for _ in range(3))


@pytest.fixture(scope="module", params=PoolLayout, ids=lambda layout: layout.name)
def pool(request):
    mx.clear_cache()
    yield PagedPool(
        num_layers=1,
        num_blocks=NUM_BLOCKS,
        num_kv_heads=NUM_KV_HEADS,
        block_size=BLOCK_SIZE,
        head_dim=HEAD_DIM,
        layout=request.param,
    )
    mx.clear_cache()


@pytest.fixture(scope="module")
def full_copy(pool):
    """Seconds to copy all of the pool, which has 256 MB or more, by NumPy: five times as fast as MLX on a CPU."""
    assert pool.nbytes >= 256e6
    arrays = {id(array): array for array in (pool.k(0), pool.v(0))}.values()  # one or two
    assert sum(array.nbytes for array in arrays) == pool.nbytes
    return seconds(lambda: [np.asarray(array).copy() for array in arrays])


@pytest.fixture(scope="module")
def new_tokens():
    k, v = (mx.random.normal((SLOTS.size, NUM_KV_HEADS, HEAD_DIM)).astype(mx.float16) for _ in "kv")
    mx.eval(k, v)
    return k, v


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_a_write_stays_in_place(pool, full_copy, new_tokens, check):
    assert stays_in_place(full_copy, lambda: pool.write(0, *new_tokens, SLOTS, check=check))


def test_a_copy_of_blocks_stays_in_place(pool, full_copy):
    assert stays_in_place(full_copy, lambda: pool.copy_blocks([1, 2, 3000], [7, 8, 4095]))


def test_a_write_after_a_gather_stays_in_place(pool, full_copy, new_tokens):
    kept = []

    def gather():
        kept.append(pool.gather(0, [5, 9, 4000], 3 * BLOCK_SIZE))  # nobody has looked at it when the next write comes
        return ()

    assert stays_in_place(full_copy, lambda: pool.write(0, *new_tokens, SLOTS), before=gather)


def test_a_write_of_what_is_yet_to_be_computed_from_the_pool_stays_in_place(pool, full_copy, new_tokens):
    def derive():
        k, v = new_tokens
        return k + pool.k(0)[7].sum(), v + pool.v(0)[8].sum()  # both wait to read the pool

    assert stays_in_place(full_copy, lambda k, v: pool.write(0, k, v, SLOTS), before=derive)


@pytest.mark.parametrize("executor", FAST_EXECUTORS)
def test_a_write_right_after_attention_stays_in_place(pool, full_copy, new_tokens, executor):
    q = mx.random.normal((2, 2 * NUM_KV_HEADS, HEAD_DIM)).astype(mx.float16)
    tables, contexts = mx.array([[5, 9], [4000, 1]], mx.int32), mx.array([20, 32], mx.int32)
    kept = []

    def attend():
        kept.append(paged_attention(q, pool.k(0), pool.v(0), tables, contexts, layout=pool.layout, executor=executor))
        return ()

    assert stays_in_place(full_copy, lambda: pool.write(0, *new_tokens, SLOTS), before=attend)
    assert mx.isfinite(mx.stack(kept)).all().item()


def test_the_stop_watch_sees_a_copy(pool, full_copy, new_tokens):
    """A slice that is alive shares the array's memory, so the write has to copy it: that is what must not go unseen."""

    def keep_a_slice():
        kept = pool.k(0)[1:2]
        mx.eval(kept)
        return (kept,)

    slow = seconds(lambda kept: pool.write(0, *new_tokens, SLOTS), before=keep_a_slice, repeats=3)
    assert slow > LARGEST_SHARE * full_copy
