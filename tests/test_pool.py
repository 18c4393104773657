"""The pool keeps what it is given, where it is told, and nothing else moves."""

import mlx.core as mx
import numpy as np
import pytest

from paged_core import PagedPool, PoolLayout, slot_mapping
from paged_core.cases import nan_pool

LAYERS, BLOCKS, HEADS, BLOCK_SIZE, HEAD_DIM = 2, 7, 3, 5, 16
EVERY_LAYOUT = pytest.mark.parametrize("layout", PoolLayout, ids=lambda layout: layout.name)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=["f32", "f16", "bf16"])


def make_pool(layout=PoolLayout.HND, dtype=mx.float32, make=PagedPool, **sizes):
    sizes = {
        "num_layers": LAYERS,
        "num_blocks": BLOCKS,
        "num_kv_heads": HEADS,
        "block_size": BLOCK_SIZE,
        "head_dim": HEAD_DIM,
        **sizes,
    }
    return make(**sizes, dtype=dtype, layout=layout)


def filled_pool(layout, dtype=mx.float32):
    """Every slot of every layer holds numbers of its own: (pool, k, v), k and v dense [layers, slots, heads, dims]."""
    pool = make_pool(layout, dtype)
    k, v = (random(LAYERS, BLOCKS * BLOCK_SIZE, dtype=dtype, seed=seed) for seed in (1, 2))
    for layer in range(LAYERS):
        pool.write(layer, k[layer], v[layer], slots(range(BLOCKS * BLOCK_SIZE)))
    return pool, k, v


def random(*shape, dtype=mx.float32, seed=0):
    return mx.array(np.random.default_rng(seed).standard_normal((*shape, HEADS, HEAD_DIM)), dtype)


def slots(values):
    return mx.array(list(values), mx.int32)


def equal(a, b):
    """The same bits; a NaN equals a NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and mx.array_equal(a, b, equal_nan=True).item()


def dense(pool, layer):
    """All of a layer, slot by slot: k, v [slots, heads, dims]."""
    return pool.gather(layer, range(pool.num_blocks), pool.num_slots)


def test_the_default_is_half_precision_in_the_seeds_order():
    pool = PagedPool(num_layers=1, num_blocks=2, num_kv_heads=3, block_size=4, head_dim=8)
    assert (pool.dtype, pool.layout) == (mx.float16, PoolLayout.HND)
    assert (pool.k(0).shape, pool.v(0).shape, pool.k(0).dtype) == ((2, 3, 4, 8), (2, 3, 4, 8), mx.float16)
    assert (pool.num_layers, pool.num_blocks, pool.num_kv_heads, pool.block_size, pool.head_dim) == (1, 2, 3, 4, 8)


@EVERY_LAYOUT
@EVERY_DTYPE
def test_arrays_and_bytes(layout, dtype):
    pool = make_pool(layout, dtype)
    assert pool.nbytes == 2 * LAYERS * BLOCKS * HEADS * BLOCK_SIZE * HEAD_DIM * dtype.size
    for layer in range(LAYERS):
        assert (pool.k(layer).shape, pool.v(layer).shape) == layout.shapes(pool.geometry, dtype.size)
        assert pool.k(layer).dtype == pool.v(layer).dtype == dtype
        assert not mx.any(pool.k(layer)).item() and not mx.any(pool.v(layer)).item()
    assert (pool.k(0) is pool.v(0)) == (layout is PoolLayout.INTERLEAVED)


@EVERY_LAYOUT
@EVERY_DTYPE
def test_what_is_written_is_gathered(layout, dtype):
    pool = make_pool(layout, dtype, make=nan_pool)
    k, v = random(9, dtype=dtype, seed=1), random(9, dtype=dtype, seed=2)
    blocks = [6, 2]  # tokens 0..4 in block 6, slots 30..34; tokens 5..8 in block 2, slots 10..13
    pool.write(1, k, v, slots([30, 31, 32, 33, 34, 10, 11, 12, 13]))
    got_k, got_v = pool.gather(1, blocks, 9)
    assert equal(got_k, k) and equal(got_v, v)
    for length in (0, 1, 5, 6):
        got_k, got_v = pool.gather(1, blocks, length)
        assert equal(got_k, k[:length]) and equal(got_v, v[:length])

    everywhere = mx.full((BLOCKS * BLOCK_SIZE, HEADS, HEAD_DIM), mx.nan, dtype)
    assert all(equal(x, everywhere) for x in dense(pool, 0))  # the other layer is untouched
    written = slots([*range(30, 35), *range(10, 14)])
    for got, expected in zip(dense(pool, 1), (k, v), strict=True):
        expected_layer = mx.array(everywhere)
        expected_layer[written] = expected
        assert equal(got, expected_layer)  # and so is every other slot


@EVERY_LAYOUT
def test_tokens_in_any_order_and_written_again(layout):
    pool, k, v = filled_pool(layout)
    new_k, new_v = random(4, seed=3), random(4, seed=4)
    at = slots([34, 0, 17, 4])
    pool.write(0, new_k, new_v, at)
    k, v = mx.array(k[0]), mx.array(v[0])
    k[at], v[at] = new_k, new_v
    got_k, got_v = dense(pool, 0)
    assert equal(got_k, k) and equal(got_v, v)


@EVERY_LAYOUT
def test_one_head_one_token_a_block(layout):
    pool = make_pool(layout, num_kv_heads=1, block_size=1, head_dim=8, num_blocks=3)
    k, v = mx.arange(16.0).reshape(2, 1, 8), -mx.arange(16.0).reshape(2, 1, 8)
    pool.write(0, k, v, slots([2, 0]))
    got_k, got_v = pool.gather(0, [2, 0], 2)
    assert equal(got_k, k) and equal(got_v, v)


@EVERY_LAYOUT
def test_writing_no_tokens(layout):
    pool, k, v = filled_pool(layout)
    pool.write(0, random(0), random(0), slots([]))
    assert equal(dense(pool, 0)[0], k[0]) and equal(dense(pool, 0)[1], v[0])


@EVERY_LAYOUT
@EVERY_DTYPE
def test_blocks_are_copied_in_every_layer(layout, dtype):
    pool, k, v = filled_pool(layout, dtype)
    pool.copy_blocks([1, 4], [6, 0])
    for layer in range(LAYERS):
        for got, was in zip(dense(pool, layer), (k[layer], v[layer]), strict=True):
            expected = mx.array(was).reshape(BLOCKS, BLOCK_SIZE, HEADS, HEAD_DIM)
            expected[mx.array([6, 0])] = expected[mx.array([1, 4])]
            assert equal(got, expected.reshape(was.shape))


@EVERY_LAYOUT
def test_blocks_can_change_places_in_one_copy(layout):
    pool, k, _ = filled_pool(layout)
    pool.copy_blocks([2, 3, 3], [3, 2, 5])
    got = dense(pool, 0)[0].reshape(BLOCKS, BLOCK_SIZE, HEADS, HEAD_DIM)
    was = k[0].reshape(got.shape)
    for to, from_ in enumerate([0, 1, 3, 2, 4, 3, 6]):
        assert equal(got[to], was[from_])


@EVERY_LAYOUT
def test_nothing_to_copy(layout):
    pool, k, _ = filled_pool(layout)
    pool.copy_blocks([], [])
    pool.copy_blocks([3], [3])
    assert equal(dense(pool, 0)[0], k[0])


@EVERY_LAYOUT
def test_later_writes_show_in_arrays_held_from_before(layout):
    pool = make_pool(layout)
    k, v = pool.k(1), pool.v(1)
    pool.write(1, random(1) + 9, random(1), slots([12]))
    assert pool.k(1) is k and pool.v(1) is v
    assert mx.any(k).item() and mx.any(v).item()
    pool.copy_blocks([2], [0])
    assert pool.k(1) is k and pool.v(1) is v


@EVERY_LAYOUT
def test_a_slice_somebody_keeps_shows_the_past_and_the_pool_the_present(layout):
    """A slice shares the pool's memory. MLX must then copy: slow, but nobody may see a wrong number."""
    pool, k, _ = filled_pool(layout)
    kept, lazy = pool.k(0)[2:3], pool.k(0).sum()
    mx.eval(kept)
    before, total = np.array(kept), mx.array(np.array(pool.k(0)).astype(np.float64).sum(), mx.float32)
    pool.write(0, random(5, seed=8), random(5, seed=9), slots(range(10, 15)))  # the whole of block 2
    pool.copy_blocks([0], [1])
    np.testing.assert_array_equal(np.array(kept), before)
    assert abs(lazy - total).item() < 1e-2
    assert equal(pool.gather(0, [2], 5)[0], random(5, seed=8))
    assert equal(pool.gather(0, [1], 5)[0], k[0, :5])


@EVERY_LAYOUT
def test_lazy_arguments_even_ones_that_read_the_pool(layout):
    """What is written may not have been computed yet, and may be computed from the very array it goes to."""
    pool, k, v = filled_pool(layout)
    total = pool.k(0).sum() + pool.v(0).sum()  # lazy
    pool.write(0, random(1) + total, random(1) * 2, slots([3]) + 1)
    got_k, got_v = pool.gather(0, [0], 5)
    both = k[0].sum() + v[0].sum()
    if layout is PoolLayout.INTERLEAVED:
        both = 2 * both  # k(0) and v(0) are one array that holds both
    assert mx.allclose(got_k[4], random(1)[0] + both, rtol=0, atol=1e-2).item()
    assert equal(got_v[4], random(1)[0] * 2)
    assert equal(got_k[:4], k[0, :4])


@EVERY_LAYOUT
def test_unchecked_writes_write_the_same(layout):
    checked, unchecked = make_pool(layout), make_pool(layout)
    for pool, check in ((checked, True), (unchecked, False)):
        pool.write(0, random(3, seed=1), random(3, seed=2), slots([7, 30, 1]), check=check)
    assert equal(checked.k(0), unchecked.k(0)) and equal(checked.v(0), unchecked.v(0))


def test_block_lists_of_every_kind():
    pool, k, _ = filled_pool(PoolLayout.HND)
    expected = k[0, 10:15]
    for blocks in (
        [2],
        (2,),
        range(2, 3),
        np.array([2]),
        np.array([2], np.uint8),
        mx.array([2], mx.int32),
        [np.int64(2)],
    ):
        assert equal(pool.gather(0, blocks, 5)[0], expected)
        pool.copy_blocks(blocks, blocks)
    assert equal(pool.gather(np.int64(0), [2], np.int32(5))[0], expected)


def test_gathered_tokens_are_the_callers():
    """A later write must not show in what was gathered before."""
    pool, k, _ = filled_pool(PoolLayout.NHD)
    got, _ = pool.gather(0, [0], 5)
    pool.write(0, random(5, seed=7), random(5, seed=8), slots(range(5)))
    assert equal(got, k[0, :5])


def test_slots_worked_by_hand():
    """block_size 4. Tokens 4 and 5 of the first sequence lie in its second block, 2: slots 8 and 9. The second has
    token 8, in its third block, 7: slot 28."""
    tables = mx.array([[5, 2, -1], [0, 1, 7]], mx.int32)
    contexts = mx.array([6, 9], mx.int32)
    got = slot_mapping(tables, contexts, 4, mx.array([0, 2, 3], mx.int32))
    assert (got.dtype, got.tolist()) == (mx.int32, [8, 9, 28])
    assert slot_mapping(tables, contexts, 4).tolist() == [9, 28]  # decode: the newest token of each


def test_slots_of_a_whole_prompt_of_nothing_and_of_a_full_table():
    tables = mx.array([[5, 2], [3, -1], [4, 6]], mx.int32)
    contexts = mx.array([3, 0, 8], mx.int32)
    assert slot_mapping(tables, contexts, 4, mx.array([0, 3, 3, 5], mx.int32)).tolist() == [20, 21, 22, 26, 27]
    nobody = slot_mapping(mx.zeros((0, 3), mx.int32), mx.zeros((0,), mx.int32), 4)
    assert (nobody.shape, nobody.dtype) == ((0,), mx.int32)
    no_table = slot_mapping(mx.zeros((1, 0), mx.int32), mx.zeros((1,), mx.int32), 4, mx.array([0, 0], mx.int32))
    assert no_table.tolist() == []


def test_blocks_of_one_token_have_their_blocks_number():
    tables = mx.array([[5, 2, 9]], mx.int32)
    assert slot_mapping(tables, mx.array([3], mx.int32), 1, mx.array([0, 3], mx.int32)).tolist() == [5, 2, 9]


def test_the_last_slot_that_int32_can_name():
    table, context = mx.array([[2**27 - 1]], mx.int32), mx.array([16], mx.int32)
    assert slot_mapping(table, context, 16).tolist() == [2**31 - 1]


@pytest.mark.parametrize("length", [1, 4, 5, 31, 32])
def test_slots_agree_with_a_plain_loop(length):
    rng = np.random.default_rng(length)
    contexts = rng.integers(length, 40, 6)
    queries = rng.integers(0, length + 1, 6)
    tables = rng.permutation(6 * 8).reshape(6, 8)
    expected = [
        int(table[position // 5]) * 5 + position % 5
        for table, context, new in zip(tables, contexts.tolist(), queries.tolist(), strict=True)
        for position in range(context - new, context)
    ]
    got = slot_mapping(
        mx.array(tables, mx.int32), mx.array(contexts, mx.int32), 5, mx.array(np.cumsum([0, *queries]), mx.int32)
    )
    assert got.tolist() == expected
