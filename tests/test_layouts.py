"""Where a number lives, asked in three ways: the layout's arithmetic, NumPy's, and what a write really changed."""

import mlx.core as mx
import numpy as np
import pytest

from paged_core import PagedPool, PoolLayout
from paged_core.layouts import Geometry

SMALL = Geometry(num_blocks=5, num_kv_heads=3, block_size=4, head_dim=16)
EVERY_LAYOUT = pytest.mark.parametrize("layout", PoolLayout, ids=lambda layout: layout.name)
EVERY_ITEMSIZE = pytest.mark.parametrize("itemsize", [2, 4])
K_AND_V = pytest.mark.parametrize("which", ["k", "v"])


def axis_indices(layout, which, itemsize, block, head, token, dim):
    """The index into the array of `layout`, written out by hand from the interface's table of shapes."""
    x = 16 // itemsize
    match layout:
        case PoolLayout.HND:
            return block, head, token, dim
        case PoolLayout.NHD:
            return block, token, head, dim
        case PoolLayout.X_SPLIT if which == "k":
            return block, head, dim // x, token, dim % x
        case PoolLayout.X_SPLIT:
            return block, head, dim, token
        case PoolLayout.INTERLEAVED:
            return block, "kv".index(which), head, token, dim


def test_the_four_layouts_by_name():
    assert [layout.name for layout in PoolLayout] == ["HND", "NHD", "X_SPLIT", "INTERLEAVED"]


def test_shapes_as_the_interface_has_them():
    n, h, b, d = SMALL
    assert PoolLayout.HND.shapes(SMALL, 2) == ((n, h, b, d),) * 2
    assert PoolLayout.NHD.shapes(SMALL, 2) == ((n, b, h, d),) * 2
    assert PoolLayout.X_SPLIT.shapes(SMALL, 2) == ((n, h, d // 8, b, 8), (n, h, d, b))  # 8 half-precision numbers
    assert PoolLayout.X_SPLIT.shapes(SMALL, 4) == ((n, h, d // 4, b, 4), (n, h, d, b))  # are as many bytes as 4 floats
    assert PoolLayout.INTERLEAVED.shapes(SMALL, 2) == ((n, 2, h, b, d),) * 2


@EVERY_LAYOUT
@EVERY_ITEMSIZE
def test_the_shapes_give_the_sizes_back(layout, itemsize):
    assert layout.geometry(*layout.shapes(SMALL, itemsize), itemsize) == SMALL


@EVERY_LAYOUT
@EVERY_ITEMSIZE
@K_AND_V
def test_strides_are_those_of_a_contiguous_array(layout, itemsize, which):
    shape = layout.shapes(SMALL, itemsize)["kv".index(which)]
    array = np.empty(shape, {2: np.float16, 4: np.float32}[itemsize])
    strides = layout.strides(which, SMALL, itemsize)
    assert list(strides) == list(layout.axes(which))
    assert [stride * itemsize for stride in strides.values()] == list(array.strides)


@EVERY_LAYOUT
@EVERY_ITEMSIZE
@K_AND_V
def test_every_element_has_the_address_that_numpy_gives_it(layout, itemsize, which):
    shape = layout.shapes(SMALL, itemsize)["kv".index(which)]
    seen = []
    for block, head, token, dim in np.ndindex(*SMALL):
        offset = layout.element_offset(which, SMALL, itemsize, block=block, head=head, token=token, dim=dim)
        expected = axis_indices(layout, which, itemsize, block, head, token, dim)
        assert offset == np.ravel_multi_index(expected, shape)
        seen.append(offset)
    assert len(set(seen)) == len(seen)  # no two elements share an address
    if layout is not PoolLayout.INTERLEAVED:
        assert sorted(seen) == list(range(np.prod(shape)))  # and none is left over


def test_k_and_v_of_an_interleaved_block_lie_side_by_side():
    offsets = {
        which: {
            PoolLayout.INTERLEAVED.element_offset(which, SMALL, 2, block=b, head=h, token=t, dim=d)
            for b, h, t, d in np.ndindex(*SMALL)
        }
        for which in "kv"
    }
    assert not offsets["k"] & offsets["v"]
    assert offsets["k"] | offsets["v"] == set(range(2 * np.prod(SMALL)))


@pytest.mark.parametrize(
    "layout, which, expected",
    [  # 2 heads, block_size 4, head_dim 8, half precision (x = 8): block 5, head 1, token 2, dim 3
        (PoolLayout.HND, "k", ((5 * 2 + 1) * 4 + 2) * 8 + 3),
        (PoolLayout.NHD, "k", ((5 * 4 + 2) * 2 + 1) * 8 + 3),
        (PoolLayout.X_SPLIT, "k", (((5 * 2 + 1) * 1 + 0) * 4 + 2) * 8 + 3),
        (PoolLayout.X_SPLIT, "v", ((5 * 2 + 1) * 8 + 3) * 4 + 2),
        (PoolLayout.INTERLEAVED, "k", (((5 * 2 + 0) * 2 + 1) * 4 + 2) * 8 + 3),
        (PoolLayout.INTERLEAVED, "v", (((5 * 2 + 1) * 2 + 1) * 4 + 2) * 8 + 3),
    ],
)
def test_one_address_by_hand(layout, which, expected):
    geometry = Geometry(num_blocks=6, num_kv_heads=2, block_size=4, head_dim=8)
    assert layout.element_offset(which, geometry, 2, block=5, head=1, token=2, dim=3) == expected


@EVERY_LAYOUT
@K_AND_V
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_a_write_changes_the_addresses_that_the_layout_names_and_no_other(layout, which, dtype):
    n, h, b, d = SMALL
    pool = PagedPool(num_layers=1, num_blocks=n, num_kv_heads=h, block_size=b, head_dim=d, dtype=dtype, layout=layout)
    block, token = 3, 2
    nothing, marked = mx.zeros((1, h, d), dtype), mx.arange(1, h * d + 1).reshape(1, h, d).astype(dtype)
    k, v = (marked, nothing) if which == "k" else (nothing, marked)
    pool.write(0, k, v, mx.array([block * b + token], mx.int32))
    memory = np.array((pool.k(0) if which == "k" else pool.v(0)).astype(mx.float32)).ravel()
    at = layout.element_offset(
        which, SMALL, dtype.size, block=block, head=np.arange(h)[:, None], token=token, dim=np.arange(d)
    )
    np.testing.assert_array_equal(memory[at].ravel(), np.arange(1, h * d + 1))
    assert np.count_nonzero(memory) == h * d


@EVERY_LAYOUT
@K_AND_V
def test_addresses_beyond_32_bits(layout, which):
    """A pool of 6 * 2^30 elements, asked with plain integers and with the int32 of a block table."""
    geometry = Geometry(num_blocks=3 << 16, num_kv_heads=8, block_size=32, head_dim=128)
    last = {"block": (3 << 16) - 1, "head": 7, "token": 31, "dim": 127}
    offset = layout.element_offset(which, geometry, 2, **last)
    expected = (1 + (layout is PoolLayout.INTERLEAVED)) * (6 << 30) - 1
    if layout is PoolLayout.INTERLEAVED and which == "k":
        expected -= 8 * 32 * 128
    assert offset == expected > 2**32
    for as_given in (np.int32, lambda i: np.array([i], np.int32), lambda i: mx.array(i, mx.int32)):
        assert layout.element_offset(which, geometry, 2, **{axis: as_given(i) for axis, i in last.items()}) == offset


@pytest.mark.parametrize(
    "layout, k_shape, v_shape",
    [
        (PoolLayout.HND, (5, 3, 4), (5, 3, 4)),  # rank
        (PoolLayout.HND, (5, 3, 4, 16), (5, 3, 4, 8)),  # K and V differ
        (PoolLayout.NHD, (5, 2, 3, 4, 16), (5, 2, 3, 4, 16)),
        (PoolLayout.X_SPLIT, (5, 3, 4, 16), (5, 3, 4, 16)),
        (PoolLayout.X_SPLIT, (5, 3, 4, 4, 4), (5, 3, 16, 4)),  # x of float32 where x of float16 is expected
        (PoolLayout.X_SPLIT, (5, 3, 2, 4, 8), (5, 3, 4, 16)),  # V not transposed
        (PoolLayout.INTERLEAVED, (5, 1, 3, 4, 16), (5, 1, 3, 4, 16)),  # K without V
        (PoolLayout.INTERLEAVED, (5, 3, 4, 16), (5, 3, 4, 16)),
    ],
)
def test_shapes_of_no_geometry(layout, k_shape, v_shape):
    with pytest.raises(ValueError, match=f"k_pool, v_pool: expected two {layout.name} arrays") as refusal:
        layout.geometry(k_shape, v_shape, 2)
    assert str(k_shape) in str(refusal.value) and str(v_shape) in str(refusal.value)


def test_neither_k_nor_v():
    with pytest.raises(ValueError, match='which: expected "k" or "v", got \'q\''):
        PoolLayout.HND.strides("q", SMALL, 2)
