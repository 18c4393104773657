"""paged_attention against the oracle, in plain MLX operations: the twin that every kernel is compared with.

Every case comes from `paged_case`: scattered blocks, NaN in each slot that no query sees, entries past each table's end
that lead nowhere.
"""

import sys
from pathlib import Path
from subprocess import run

import mlx.core as mx
import numpy as np
import pytest

from paged_core import (
    BlockAllocator,
    PagedPool,
    PagedSeqState,
    PoolLayout,
    attention_error_bound,
    dense_attention,
    executors,
    paged_attention,
    slot_mapping,
)
from paged_core.executors import ops
from tests.cases import DTYPES, LAYOUTS, check_within, paged_case, stored_bytes, to_numpy

FEATURES = {
    "plain": {},
    "window": {"sliding_window": 5},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi": True},
    "sinks": {"sinks": True},
    "scale": {"scale": 0.3},
    "all": {"sliding_window": 6, "softcap": 3.0, "alibi": True, "sinks": True, "scale": 0.2},
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
EVERY_FEATURE = pytest.mark.parametrize("feature", FEATURES)
# Of each kind: nothing, one token, just short of a block of 7, a block, just past it, many blocks, two alike.
LENGTHS = [0, 1, 6, 7, 8, 60, 8]


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and mx.array_equal(a, b, equal_nan=True).item()


@EVERY_LAYOUT
@EVERY_DTYPE
@EVERY_FEATURE
def test_decode(layout, dtype, feature):
    case = paged_case(context_lens=LENGTHS, block_size=7, layout=layout, dtype=dtype, **FEATURES[feature])
    case.check(case.attend())


@EVERY_LAYOUT
@EVERY_DTYPE
@EVERY_FEATURE
def test_prompts_decodes_and_idle_sequences_together(layout, dtype, feature):
    """Whole prompts, the last chunks of long ones, decodes, one with no query this step, one with nothing at all."""
    case = paged_case(
        context_lens=[19, 30, 17, 9, 0, 0, 33, 1], num_queries=[19, 5, 1, 0, 0, 2, 1, 1],
        layout=layout, dtype=dtype, **FEATURES[feature],
    )  # fmt: skip
    case.check(case.attend())


@EVERY_LAYOUT
@EVERY_DTYPE
@pytest.mark.parametrize("head_dim", [8, 16, 40, 80, 96, 112, 128, 256, 512])
def test_head_dims(layout, dtype, head_dim):
    case = paged_case(
        context_lens=[3, 21], num_queries=[3, 4], block_size=5, layout=layout, dtype=dtype, head_dim=head_dim
    )
    case.check(case.attend())


@EVERY_LAYOUT
@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 16, 31, 32, 100])
def test_block_sizes_and_the_lengths_around_them(layout, block_size):
    around = sorted({0, 1, max(0, block_size - 1), block_size, block_size + 1, 2 * block_size, 3 * block_size + 1})
    case = paged_case(context_lens=around, block_size=block_size, layout=layout)
    case.check(case.attend())
    case = paged_case(
        context_lens=around, num_queries=[min(n, 3) for n in around], block_size=block_size, layout=layout
    )
    case.check(case.attend())


@EVERY_LAYOUT
@pytest.mark.parametrize("heads", [(1, 1), (6, 6), (6, 3), (6, 2), (6, 1), (32, 8), (71, 1)], ids=str)
def test_head_counts(layout, heads):
    case = paged_case(
        context_lens=[4, 40], num_queries=[2, 3], num_q_heads=heads[0], num_kv_heads=heads[1], layout=layout,
        alibi=True, sinks=True,
    )  # fmt: skip
    case.check(case.attend())


@EVERY_DTYPE
@pytest.mark.parametrize("feature", ["plain", "all"])
def test_thousands_of_tokens(dtype, feature):
    case = paged_case(context_lens=[3000, 17, 1025], num_queries=[6, 1, 1], dtype=dtype, **FEATURES[feature])
    case.check(case.attend())


def test_a_table_with_no_entry_to_spare():
    """The context ends with the last token of the last block of the table."""
    case = paged_case(context_lens=[48, 48], block_size=16, spare_entries=0)
    assert case.block_tables.shape == (2, 3)
    case.check(case.attend())


@EVERY_LAYOUT
def test_nobody_and_nothing(layout):
    nobody = paged_case(context_lens=[], layout=layout)
    assert nobody.attend().shape == (0, 4, 64)
    assert nobody.attend(query_start_loc=mx.zeros((1,), mx.int32)).shape == (0, 4, 64)
    idle = paged_case(context_lens=[9, 0, 30], num_queries=[0, 0, 0], layout=layout)
    assert idle.attend().shape == (0, 4, 64)
    no_table = paged_case(context_lens=[0, 0], spare_entries=0, layout=layout)
    assert same_bits(no_table.attend(block_tables=mx.zeros((2, 0), mx.int32)), mx.zeros((2, 4, 64)))


@EVERY_DTYPE
def test_an_empty_context_gives_zeros_beside_others_that_are_not_empty(dtype):
    case = paged_case(context_lens=[0, 5, 0], num_queries=[3, 2, 1], dtype=dtype, sinks=True)
    output = case.attend()
    case.check(output)
    assert not mx.any(output[:3]).item() and not mx.any(output[5:]).item()
    assert mx.all(mx.any(output[3:5] != 0, axis=-1)).item()


@EVERY_LAYOUT
@pytest.mark.parametrize("window", [None, 4])
def test_a_nan_reaches_the_queries_that_see_it_and_no_other(layout, window):
    """Tokens in use, inside one block: what is the future or the past of one query is the present of another."""
    case = paged_case(context_lens=[14], num_queries=[14], block_size=7, layout=layout, sliding_window=window)
    clean = case.attend()
    poisoned = 8
    k, v = (mx.full((1, 2, 64), mx.nan) for _ in "kv")
    slot = case.seqs[0].blocks[poisoned // 7] * 7 + poisoned % 7
    for which in ("k", "v", "both"):
        old_k, old_v = (mx.array(x[poisoned : poisoned + 1]) for x in case.dense[0])
        case.pool.write(0, old_k if which == "v" else k, old_v if which == "k" else v, mx.array([slot], mx.int32))
        output = case.attend()
        sees_it = [poisoned <= i and (window is None or i < poisoned + window) for i in range(14)]
        for i, hit in enumerate(sees_it):
            if hit:
                assert mx.isnan(output[i]).all().item(), f"query {i} sees token {poisoned}"
            else:
                np.testing.assert_allclose(to_numpy(output[i]), to_numpy(clean[i]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("extreme", [3e38, -3e38, np.inf])
def test_numbers_out_of_this_world_where_nobody_looks(extreme):
    """Not only NaN: infinities and the largest floats must not leak through a mask either."""
    case = paged_case(context_lens=[3, 20], num_queries=[2, 5], sliding_window=4)
    expected = case.attend()
    pool = case.pool
    for array in (pool.k(0), pool.v(0)):
        array[:] = mx.where(mx.isnan(array), extreme, array)
    assert same_bits(case.attend(), expected)
    case.check(expected)


@EVERY_LAYOUT
def test_where_the_blocks_lie_makes_no_difference(layout):
    one, other = (
        paged_case(context_lens=[30, 7], num_queries=[4, 7], block_size=3, layout=layout, spare_blocks=spare)
        for spare in (1, 40)
    )
    assert [seq.blocks for seq in one.seqs] != [seq.blocks for seq in other.seqs]
    assert same_bits(one.attend(), other.attend())


def test_two_sequences_may_share_blocks():
    case = paged_case(context_lens=[32, 32], block_size=16)
    tables = np.array(case.block_tables)
    tables[1, 0] = tables[0, 0]
    case.dense[1] = tuple(
        np.concatenate([mine[:16], own[16:]]) for mine, own in zip(case.dense[0], case.dense[1], strict=True)
    )
    case.check(case.attend(block_tables=mx.array(tables)))


@EVERY_DTYPE
def test_every_call_gives_the_same_bits_and_leaves_all_as_it_was(dtype):
    case = paged_case(context_lens=[9, 40], num_queries=[2, 1], dtype=dtype, **FEATURES["all"])
    before = stored_bytes(case.pool), [to_numpy(x).tolist() for x in case.arguments.values() if isinstance(x, mx.array)]
    first, second, unchecked = case.attend(), case.attend(), case.attend(check=False)
    assert same_bits(first, second) and same_bits(first, unchecked)
    after = stored_bytes(case.pool), [to_numpy(x).tolist() for x in case.arguments.values() if isinstance(x, mx.array)]
    assert repr(before) == repr(after)  # NaN and all


# What the options mean, in cases whose answer is known without arithmetic.


def test_a_window_of_one_sees_the_query_alone():
    case = paged_case(context_lens=[5, 20], num_queries=[2, 3], num_q_heads=2, sliding_window=1)
    newest = np.concatenate([case.dense[0][1][-2:], case.dense[1][1][-3:]])
    np.testing.assert_array_equal(to_numpy(case.attend()), newest)


@pytest.mark.parametrize("window", [20, 21, 2**31 - 1, 2**31, 2**70])
def test_a_window_that_covers_all_is_no_window(window):
    case = paged_case(context_lens=[5, 20], num_queries=[2, 3])
    assert same_bits(case.attend(sliding_window=window), case.attend())


def test_a_sink_of_no_weight_is_no_sink_and_one_of_all_the_weight_leaves_nothing():
    case = paged_case(context_lens=[5, 20])
    check_within(to_numpy(case.attend(sinks=mx.full((4,), -mx.inf))), case.oracle(), case.bound())
    assert not mx.any(case.attend(sinks=mx.full((4,), 1e9))).item()


def test_a_softcap_nobody_reaches_is_no_softcap():
    case = paged_case(context_lens=[5, 20])
    np.testing.assert_allclose(to_numpy(case.attend(softcap=1e6)), to_numpy(case.attend()), rtol=1e-3, atol=1e-4)


def test_a_scale_of_zero_takes_the_mean():
    case = paged_case(context_lens=[20], num_q_heads=2, scale=0.0)
    np.testing.assert_allclose(to_numpy(case.attend())[0], case.dense[0][1].mean(axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [-0.5, 4.0])
def test_scales_that_are_unusual(scale):
    case = paged_case(context_lens=[5, 20], num_queries=[5, 1], scale=scale)
    case.check(case.attend())


def test_logits_of_many_thousands_do_not_overflow():
    case = paged_case(context_lens=[5, 20], num_queries=[5, 1], scale=1e4, dtype="float16")
    output = case.attend()
    assert mx.isfinite(output).all().item()
    case.check(output)


def test_the_default_layout_is_hnd_and_the_default_executor_is_one_that_runs_here():
    case = paged_case(context_lens=[5, 20])
    arguments = case.arguments
    del arguments["layout"], arguments["query_start_loc"]
    case.check(paged_attention(**arguments))
    positional = [arguments.pop(name) for name in ("q", "k_pool", "v_pool", "block_tables", "context_lens")]
    case.check(paged_attention(*positional))


def test_one_query_a_sequence_said_in_two_ways():
    case = paged_case(context_lens=[5, 20, 0])
    assert same_bits(case.attend(), case.attend(query_start_loc=mx.array([0, 1, 2, 3], mx.int32)))


# What may be handed over: anything with the right shape and dtype, computed or not.


@EVERY_DTYPE
def test_queries_that_are_not_contiguous_or_not_computed_yet(dtype):
    case = paged_case(context_lens=[5, 20], num_queries=[4, 3], dtype=dtype)
    expected = case.attend()
    transposed = mx.contiguous(case.q.transpose(1, 0, 2)).transpose(1, 0, 2)
    strided = mx.concatenate([case.q, -case.q], axis=-1)[..., :64]
    reversed_twice = mx.contiguous(case.q[::-1])[::-1]
    for q in (transposed, strided, reversed_twice, case.q + 0):
        assert same_bits(case.attend(q=q), expected)


def test_tables_and_lengths_that_are_slices_or_not_computed_yet():
    case = paged_case(context_lens=[5, 20], num_queries=[4, 3])
    expected = case.attend()
    changed = {
        "block_tables": mx.stack([case.block_tables, case.block_tables], axis=1)[:, 1],
        "context_lens": mx.stack([case.context_lens, case.context_lens], axis=1)[:, 0],
        "query_start_loc": mx.repeat(case.query_start_loc, 2)[::2],
    }
    assert same_bits(case.attend(**changed), expected)
    assert same_bits(case.attend(**changed, check=False), expected)


def test_pools_of_mlxs_own_making():
    """k_pool and v_pool are arrays like any other: made elsewhere, not computed yet, or a view."""
    case = paged_case(context_lens=[5, 20], num_queries=[4, 3], layout=PoolLayout.NHD)
    k, v = case.pool.k(0), case.pool.v(0)
    expected = case.attend()
    assert same_bits(case.attend(k_pool=k * 1, v_pool=mx.stack([v, v])[1]), expected)


@pytest.mark.parametrize(
    "changed, same_as",
    [
        ({"sliding_window": np.int64(5)}, {"sliding_window": 5}),
        ({"sliding_window": mx.array(5)}, {"sliding_window": 5}),
        ({"scale": np.float32(0.5)}, {"scale": 0.5}),
        ({"scale": mx.array(0.5)}, {"scale": 0.5}),
        ({"scale": 1}, {"scale": 1.0}),
        ({"softcap": np.float64(2)}, {"softcap": 2.0}),
        ({"softcap": 2}, {"softcap": 2.0}),
    ],
    ids=str,
)
def test_numbers_of_other_libraries(changed, same_as):
    case = paged_case(context_lens=[5, 20])
    assert same_bits(case.attend(**changed), case.attend(**same_as))


def test_a_prompt_in_chunks_is_the_prompt_at_once(monkeypatch):
    """`ops` bounds the logits it holds at once; where it cuts must not show."""
    case = paged_case(context_lens=[50, 50, 9], num_queries=[50, 50, 5], **FEATURES["all"])
    whole = case.attend()
    monkeypatch.setattr(ops, "LOGITS_AT_ONCE", 2 * 4 * 50 * 7)  # seven queries at a time, and one left over
    case.check(case.attend())
    np.testing.assert_allclose(to_numpy(case.attend()), to_numpy(whole), rtol=0, atol=1e-6)


def test_chunked_prompts_give_what_one_prompt_gives():
    """The last 20 queries of a prompt of 50, asked in one call or as chunks of 7, 7 and 6."""
    case = paged_case(context_lens=[50], num_queries=[20], block_size=8)
    whole = case.attend()
    chunks = [
        case.attend(
            q=case.q[start:stop],
            context_lens=mx.array([30 + stop], mx.int32),
            query_start_loc=mx.array([0, stop - start], mx.int32),
        )
        for start, stop in ((0, 7), (7, 14), (14, 20))
    ]
    np.testing.assert_allclose(to_numpy(mx.concatenate(chunks)), to_numpy(whole), rtol=0, atol=1e-5)


def test_token_by_token_as_a_model_does_it():
    """Grow, write one token's K and V, attend; at each length the answer is that of dense attention."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((23, heads, 32)).astype(np.float32) for heads in (4, 2, 2))
    pool = PagedPool(num_layers=1, num_blocks=9, num_kv_heads=2, block_size=5, head_dim=32, dtype=mx.float32)
    allocator, seq = BlockAllocator(9), PagedSeqState(5, 8)
    for t in range(23):
        seq.ensure_capacity(allocator, seq.len + 1)
        seq.len += 1
        seq.sync_context_len()
        tables, contexts = seq.block_table[None], seq.context_lens
        pool.write(0, mx.array(k[t : t + 1]), mx.array(v[t : t + 1]), slot_mapping(tables, contexts, 5))
        output = paged_attention(mx.array(q[t : t + 1]), pool.k(0), pool.v(0), tables, contexts, executor="ops")
        dense = q[t : t + 1], k[: t + 1], v[: t + 1]
        check_within(to_numpy(output), dense_attention(*dense), attention_error_bound(*dense, dtype="float32"))


# Which executor


def test_a_variable_chooses_for_auto_and_only_for_auto(monkeypatch):
    monkeypatch.setenv(executors.VARIABLE, "ops")
    assert executors.choose("auto") is ops
    monkeypatch.setenv(executors.VARIABLE, "no such thing")
    assert executors.choose("ops") is ops


@pytest.mark.parametrize("value", ["", "auto"])
def test_a_variable_that_chooses_nothing(monkeypatch, value):
    chosen = executors.choose()
    monkeypatch.setenv(executors.VARIABLE, value)
    assert executors.choose() is chosen


def test_a_variable_that_names_nothing_is_named(monkeypatch):
    case = paged_case(context_lens=[5])
    for value in ("OPS", "ops ", "gpu"):
        monkeypatch.setenv(executors.VARIABLE, value)
        with pytest.raises(ValueError, match=f"PAGED_CORE_EXECUTOR: expected .*native, ops.*, got '{value}'"):
            case.attend(executor="auto")


def test_auto_takes_the_best_that_can_run_and_never_the_simulator(monkeypatch):
    can_run = set()
    monkeypatch.setattr(executors, "why_not", lambda name: None if name in can_run else "it is switched off")
    for name in ("ops", "native", "cuda", "metal"):
        can_run |= {name, "simulator"}
        executors._best.cache_clear()
        if name == "ops":
            with pytest.warns(UserWarning, match="native: it is switched off"):
                assert executors._best() == name
        else:
            assert executors._best() == name
    executors._best.cache_clear()


def test_ops_runs_everywhere_and_comes_before_the_simulator():
    available = executors.available_executors()
    assert "ops" in available and available == [name for name in executors.NAMES if name in available]
    assert executors.NAMES == ("metal", "cuda", "native", "ops", "simulator")


def test_importing_the_package_draws_in_no_picture_and_no_compiler():
    program = (
        "import sys, paged_core; "
        "print(sorted({'matplotlib', 'ipywidgets', 'scipy', 'IPython', 'anywidget'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    result = run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
