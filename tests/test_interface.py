"""What the outside world may rely on: names, arguments, defaults, kinds. A change here breaks somebody's notebook."""

import inspect

import mlx.core as mx
import pytest

import paged_core
from paged_core import BlockAllocator, PagedPool, PagedSeqState, PoolLayout

SIGNATURES = {
    "BlockAllocator": "(num_blocks)",
    "BlockAllocator.allocate": "(self)",
    "BlockAllocator.allocate_n": "(self, n)",
    "BlockAllocator.free": "(self, blocks)",
    "BlockAllocator.share": "(self, blocks)",
    "BlockAllocator.ref_count": "(self, block)",
    "PagedSeqState": "(block_size, max_blocks_per_seq)",
    "PagedSeqState.ensure_capacity": "(self, allocator, target_len)",
    "PagedSeqState.sync_context_len": "(self)",
    "PagedSeqState.release": "(self, allocator)",
    "batch_tables": "(seqs)",
    "PagedPool": "(*, num_layers, num_blocks, num_kv_heads, block_size, head_dim, dtype=mlx.core.float16, "
    "layout=<PoolLayout.HND: 'hnd'>)",
    "PagedPool.k": "(self, layer)",
    "PagedPool.v": "(self, layer)",
    "PagedPool.write": "(self, layer, k, v, slot_mapping, *, check=True)",
    "PagedPool.gather": "(self, layer, blocks, length)",
    "PagedPool.copy_blocks": "(self, src, dst)",
    "slot_mapping": "(block_tables, context_lens, block_size, query_start_loc=None)",
    "paged_attention": "(q, k_pool, v_pool, block_tables, context_lens, *, query_start_loc=None, scale=None, "
    "layout=<PoolLayout.HND: 'hnd'>, sliding_window=None, softcap=None, sinks=None, alibi_slopes=None, "
    "executor='auto', check=True)",
    "dense_attention": "(q, k, v, *, scale=None, causal=True, sliding_window=None, softcap=None, sinks=None, "
    "alibi_slopes=None)",
    "available_executors": "()",
}


def find(name):
    found = paged_core
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name, expected", SIGNATURES.items(), ids=SIGNATURES.keys())
def test_signatures(name, expected):
    signature = inspect.signature(find(name))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == expected


def test_all_that_is_promised_is_exported_and_documented():
    promised = {name.split(".")[0] for name in SIGNATURES} | {
        "PoolLayout", "PagedCoreError", "PoolExhausted", "SequenceTooLong", "InvalidBlock", "InvalidBlockTable",
        "ExecutorUnavailable",
    }  # fmt: skip
    assert promised <= set(paged_core.__all__)
    for name in paged_core.__all__:
        assert find(name).__doc__, f"{name} has no docstring"
    for name in SIGNATURES:
        assert find(name).__doc__, f"{name} has no docstring"


def test_trace_takes_what_paged_attention_takes():
    attention, traced = (inspect.signature(find(name)).parameters for name in ("paged_attention", "trace"))
    assert list(traced.values())[: len(attention) - 1] == [p for p in attention.values() if p.name != "executor"]


def test_what_is_a_property_and_what_a_plain_attribute():
    allocator = BlockAllocator(3)
    for name in ("capacity", "free_count", "in_use", "peak_in_use"):
        assert isinstance(getattr(BlockAllocator, name), property) and isinstance(getattr(allocator, name), int)
        with pytest.raises(AttributeError):
            setattr(allocator, name, 1)
    seq = PagedSeqState(4, 3)
    assert isinstance(seq.blocks, list) and isinstance(seq.len, int)
    assert isinstance(seq.block_table, mx.array) and isinstance(seq.context_lens, mx.array)
    pool = PagedPool(num_layers=1, num_blocks=1, num_kv_heads=1, block_size=1, head_dim=8)
    assert isinstance(pool.nbytes, int)
    assert [layout.name for layout in PoolLayout] == ["HND", "NHD", "X_SPLIT", "INTERLEAVED"]
