"""The cases that everything is tested with: what they promise to hold, and that their verdict can be "wrong"."""

import mlx.core as mx
import numpy as np
import pytest

from paged_core import PoolLayout, attention_error_bound, dense_attention
from paged_core.cases import check_within, paged_case, share_of_bound, to_numpy


@pytest.mark.parametrize("layout", PoolLayout)
def test_every_slot_that_no_query_sees_holds_nan(layout):
    case = paged_case(context_lens=[0, 9, 33], sliding_window=6, block_size=4, layout=layout)
    seen = sum(min(context, 6) for context in (0, 9, 33))
    for which, array in (("k", case.pool.k(0)), ("v", case.pool.v(0))):
        block, head, token, dim = np.indices(case.pool.geometry)
        at = layout.element_offset(which, case.pool.geometry, 4, block=block, head=head, token=token, dim=dim)
        nan = np.isnan(to_numpy(array).ravel()[at])  # [block, head, token, dim]
        assert (nan.all(axis=(1, 3)) == nan.any(axis=(1, 3))).all()  # a slot is poison as a whole or not at all
        assert (~nan.any(axis=(1, 3))).sum() == seen


def test_entries_past_the_end_of_a_table_must_not_be_followed():
    case = paged_case(context_lens=[0, 9, 33], block_size=4, spare_entries=2)
    tables = np.array(case.block_tables)
    used = np.arange(tables.shape[1]) < np.array([[0], [3], [9]])
    assert tables.shape == (3, 9 + 2)
    assert ((0 <= tables[used]) & (tables[used] < case.pool.num_blocks)).all()
    assert ((tables[~used] < 0) | (tables[~used] >= case.pool.num_blocks)).all()


def test_dense_is_what_the_pages_hold():
    case = paged_case(context_lens=[9, 33], dtype="bfloat16", block_size=4, layout=PoolLayout.X_SPLIT)
    for seq, (k, v) in zip(case.seqs, case.dense, strict=True):
        for stored, expected in zip(case.pool.gather(0, seq.blocks, seq.len), (k, v), strict=True):
            np.testing.assert_array_equal(to_numpy(stored), expected)


def test_the_verdict_is_the_oracles():
    case = paged_case(context_lens=[5, 33], num_queries=[2, 3], softcap=2.0, dtype="float16")
    (k, v), q = case.dense[1], to_numpy(case.q)[2:5]
    np.testing.assert_array_equal(case.oracle()[2:5], dense_attention(q, k, v, softcap=2.0))
    np.testing.assert_array_equal(case.bound()[2:5], attention_error_bound(q, k, v, softcap=2.0, dtype="float16"))


def test_check_refuses_what_is_wrong_and_names_the_worst_element():
    case = paged_case(context_lens=[5, 33])
    output = np.array(case.attend())
    assert 0 < case.check(mx.array(output)) <= 1
    output[1, 2, 7] += 0.5
    with pytest.raises(AssertionError, match=r"element \(1, 2, 7\): .*; 1 of 512 elements are out of bounds"):
        case.check(mx.array(output))
    output[0, 0, 3] = np.nan
    with pytest.raises(AssertionError, match=r"element \(0, 0, 3\): got nan"):
        case.check(mx.array(output))
    with pytest.raises(AssertionError, match=r"got mlx.core.float16 \(2, 4, 64\), expected mlx.core.float32"):
        case.check(case.attend().astype(mx.float16))


def test_nan_is_infinitely_far_off():
    share = share_of_bound(np.array([1.0, np.nan, 3.0]), np.array([1.0, 1.0, 2.0]), np.array([0.5, 0.5, 0.5]))
    assert share.tolist() == [0.0, np.inf, 2.0]
    with pytest.raises(AssertionError, match="2 of 3 elements"):
        check_within(np.array([1.0, np.nan, 3.0]), np.array([1.0, 1.0, 2.0]), np.array([0.5, 0.5, 0.5]))


@pytest.mark.parametrize("layout", PoolLayout)
@pytest.mark.parametrize("window", [None, 6])
def test_elements_are_those_that_hold_numbers(layout, window):
    options = {"context_lens": [0, 9, 33], "sliding_window": window, "layout": layout, "block_size": 4}
    for case in (paged_case(**options), paged_case(num_queries=[2, 0, 5], **options)):
        elements = {which: case.elements(which) for which in "kv"}
        if layout is PoolLayout.INTERLEAVED:  # one array holds both
            assert not np.intersect1d(elements["k"], elements["v"]).size
            elements["k"] = elements["v"] = np.union1d(elements["k"], elements["v"])
        for which, array in (("k", case.pool.k(0)), ("v", case.pool.v(0))):
            np.testing.assert_array_equal(elements[which], np.flatnonzero(~np.isnan(to_numpy(array))))


def test_tables_with_changes_a_copy():
    case = paged_case(context_lens=[40])
    before = case.block_tables.tolist()
    assert case.tables_with({(0, 1): 77}).tolist()[0][1] == 77
    assert case.block_tables.tolist() == before
