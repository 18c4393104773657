"""Whatever does not fit is refused by a typed error that names the argument, what was expected and what came.

One line a mistake. After each refusal the pool, the allocator and the sequences are what they were, to the bit.
"""

import mlx.core as mx
import numpy as np
import pytest

from paged_core import (
    BlockAllocator,
    ExecutorUnavailable,
    InvalidBlock,
    InvalidBlockTable,
    PagedCoreError,
    PagedPool,
    PagedSeqState,
    PoolExhausted,
    PoolLayout,
    SequenceTooLong,
    executors,
    slot_mapping,
)
from tests.cases import LAYOUTS, paged_case, stored_bytes

EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


def int32(*values):
    return mx.array(values, mx.int32)


def zeros(*shape, dtype=mx.float32):
    return mx.zeros(shape, dtype)


def everything(case):
    """All that a refused call must leave alone."""
    allocator = case.allocator
    return (
        stored_bytes(case.pool),
        [list(seq.blocks) for seq in case.seqs],
        [(seq.len, seq.block_table.tolist(), seq.context_lens.tolist()) for seq in case.seqs],
        [allocator.ref_count(block) for block in range(allocator.capacity)],
        (list(allocator._free), allocator.peak_in_use),
    )


@pytest.fixture(scope="module")
def case():
    """Two sequences of 5 and 9 tokens, block_size 4, in a pool of 8 blocks, 2 KV heads and 16 dims; 4 query heads."""
    return paged_case(
        context_lens=[5, 9],
        num_queries=[2, 1],
        block_size=4,
        head_dim=16,
        num_q_heads=4,
        num_kv_heads=2,
        spare_blocks=3,
    )


# A line: the argument that the message begins with, the value that does not fit (or several, as a dict), the error, and
# how the message ends. Between the two stands what was expected.


def lines(*mistakes):
    """For parametrize: (argument, changed, error, ending)."""
    return [
        pytest.param(
            argument, value if isinstance(value, dict) else {argument: value}, error, ending, id=f"{argument}: {ending}"
        )
        for argument, value, error, ending in mistakes
    ]


def assert_names_the_culprit(refusal, error, argument, ending):
    message = str(refusal.value)
    assert type(refusal.value) is error, message
    assert message.startswith(f"{argument}: expected "), message
    assert " got " in message
    assert message.endswith(ending), message


# paged_attention. The case's q is [3, 4, 16], its tables [2, 5], its pools [8, 2, 4, 16], all in float32.


def table(seq, entry, value):
    """A good table but for one entry."""
    rows = [[0, 1, 2, 3, 4], [5, 6, 7, 0, 1]]
    rows[seq][entry] = value
    return mx.array(rows, mx.int32)


def of_head_dim(head_dim):
    return {"q": zeros(3, 4, head_dim), "k_pool": zeros(8, 2, 4, head_dim), "v_pool": zeros(8, 2, 4, head_dim)}


F16, I64 = mx.float16, mx.int64
SHAPES_AND_DTYPES = lines(
    ("q", [[[0.0] * 16] * 4] * 3, TypeError, "an mlx array, got list"),
    ("q", np.zeros((3, 4, 16), np.float32), TypeError, "an mlx array, got ndarray"),
    ("q", zeros(3, 64), ValueError, "[num_tokens, num_q_heads, head_dim], got [3, 64]"),
    ("q", zeros(3, 4, 16, dtype=mx.int32), TypeError, "mx.float32, mx.float16 or mx.bfloat16, got mlx.core.int32"),
    ("q", zeros(3, 4, 24), ValueError, "the pool's head_dim 16, got 24"),
    ("q", zeros(3, 3, 16), ValueError, "num_q_heads in a multiple of the pool's 2 KV heads, got 3"),
    ("q", zeros(3, 1, 16), ValueError, "num_q_heads in a multiple of the pool's 2 KV heads, got 1"),
    ("q", zeros(3, 0, 16), ValueError, "num_q_heads in a multiple of the pool's 2 KV heads, got 0"),
    ("q", of_head_dim(12), ValueError, "a head_dim that is a multiple of 8 up to 512, got 12"),
    ("q", of_head_dim(520), ValueError, "a head_dim that is a multiple of 8 up to 512, got 520"),
    ("q", of_head_dim(0), ValueError, "a head_dim that is a multiple of 8 up to 512, got 0"),
    ("k_pool", None, TypeError, "an mlx array, got NoneType"),
    ("k_pool", {"q": zeros(3, 4, 16, dtype=F16)}, TypeError, "q's dtype mlx.core.float16, got mlx.core.float32"),
    ("v_pool", np.zeros((8, 2, 4, 16)), TypeError, "an mlx array, got ndarray"),
    ("v_pool", zeros(8, 2, 4, 16, dtype=F16), TypeError, "q's dtype mlx.core.float32, got mlx.core.float16"),
    ("k_pool, v_pool", {"k_pool": zeros(8, 2, 64)}, ValueError, "got shapes (8, 2, 64) and (8, 2, 4, 16)"),
    ("k_pool, v_pool", {"v_pool": zeros(7, 2, 4, 16)}, ValueError, "got shapes (8, 2, 4, 16) and (7, 2, 4, 16)"),
    ("q", {"k_pool": zeros(8, 0, 4, 16), "v_pool": zeros(8, 0, 4, 16)}, ValueError, "the pool's 0 KV heads, got 4"),
    ("k_pool", {"k_pool": zeros(8, 2, 0, 16), "v_pool": zeros(8, 2, 0, 16)}, ValueError, "got shape [8, 2, 0, 16]"),
    ("layout", "HND", TypeError, "got 'HND'"),
    ("layout", "columnar", TypeError, "got 'columnar'"),
    ("layout", None, TypeError, "got None"),
    ("block_tables", [[0, 1], [2, 3]], TypeError, "an mlx array, got list"),
    ("block_tables", int32(0, 1), ValueError, "[num_seqs, max_blocks], got [2]"),
    ("block_tables", zeros(2, 5, dtype=I64), TypeError, "dtype mlx.core.int32, got mlx.core.int64"),
    ("block_tables", zeros(2, 5), TypeError, "dtype mlx.core.int32, got mlx.core.float32"),
    ("context_lens", {"block_tables": zeros(1, 5, dtype=mx.int32)}, ValueError, "shape [1], got [2]"),
    ("context_lens", [5, 9], TypeError, "an mlx array, got list"),
    ("context_lens", zeros(1, 2, dtype=mx.int32), ValueError, "shape [2], got [1, 2]"),
    ("context_lens", int32(5, 9, 1), ValueError, "shape [2], got [3]"),
    ("context_lens", mx.array([5, 9], mx.uint32), TypeError, "dtype mlx.core.int32, got mlx.core.uint32"),
    ("query_start_loc", [0, 2, 3], TypeError, "an mlx array, got list"),
    ("query_start_loc", int32(0, 3), ValueError, "shape [3], got [2]"),
    ("query_start_loc", zeros(3, dtype=I64), TypeError, "dtype mlx.core.int32, got mlx.core.int64"),
    ("q", {"query_start_loc": None}, ValueError, "several tokens a sequence need query_start_loc"),
    ("scale", "0.5", TypeError, "a finite number, got '0.5'"),
    ("scale", True, TypeError, "a finite number, got True"),
    ("scale", [0.5], TypeError, "a finite number, got [0.5]"),
    ("scale", float("nan"), ValueError, "a finite number, got nan"),
    ("scale", float("inf"), ValueError, "a finite number, got inf"),
    ("sliding_window", 0, ValueError, "a positive integer, got 0"),
    ("sliding_window", -4, ValueError, "a positive integer, got -4"),
    ("sliding_window", 4.0, TypeError, "a positive integer, got 4.0"),
    ("sliding_window", "4", TypeError, "a positive integer, got '4'"),
    ("sliding_window", True, TypeError, "a positive integer, got True"),
    ("softcap", 0, ValueError, "a positive number, got 0.0"),
    ("softcap", -30.0, ValueError, "a positive number, got -30.0"),
    ("softcap", float("nan"), ValueError, "a finite number, got nan"),
    ("softcap", "30", TypeError, "a finite number, got '30'"),
    ("sinks", [0.0] * 4, TypeError, "an mlx array, got list"),
    ("sinks", zeros(2), ValueError, "shape [4], got [2]"),
    ("sinks", zeros(4, dtype=F16), TypeError, "dtype mlx.core.float32, got mlx.core.float16"),
    ("alibi_slopes", zeros(4, 1), ValueError, "shape [4], got [4, 1]"),
    ("alibi_slopes", int32(1, 1, 1, 1), TypeError, "dtype mlx.core.float32, got mlx.core.int32"),
    ("executor", "gpu", ValueError, "metal, cuda, native, ops, simulator, got 'gpu'"),
    ("executor", None, ValueError, "metal, cuda, native, ops, simulator, got None"),
)
VALUES = lines(
    ("block_tables[0, 1]", {"block_tables": table(0, 1, -1)}, InvalidBlockTable, "a block from 0 to 7, got -1"),
    ("block_tables[1, 2]", {"block_tables": table(1, 2, 8)}, InvalidBlockTable, "a block from 0 to 7, got 8"),
    ("block_tables[1, 0]", {"block_tables": table(1, 0, 2**31 - 1)}, InvalidBlockTable, "0 to 7, got 2147483647"),
    ("block_tables[1, 0]", {"block_tables": table(1, 0, -(2**31))}, InvalidBlockTable, "0 to 7, got -2147483648"),
    ("context_lens[1]", {"context_lens": int32(5, -9)}, ValueError, "0 tokens or more, got -9"),
    ("context_lens[0]", {"context_lens": int32(-(2**31), 9)}, ValueError, "0 tokens or more, got -2147483648"),
    ("context_lens[0]", {"context_lens": int32(21, 9)}, InvalidBlockTable, "a block 4 tokens), got 21"),
    ("context_lens[1]", {"context_lens": int32(5, 2**31 - 1)}, InvalidBlockTable, "a block 4 tokens), got 2147483647"),
    ("context_lens[0]", {"context_lens": int32(1, 9)}, ValueError, "at least the sequence's 2 query tokens, got 1"),
    ("query_start_loc", int32(1, 2, 3), ValueError, "to begin with 0 and never fall, got [1, 2, 3]"),
    ("query_start_loc", int32(0, 4, 3), ValueError, "to begin with 0 and never fall, got [0, 4, 3]"),
    ("query_start_loc", int32(0, -1, 3), ValueError, "to begin with 0 and never fall, got [0, -1, 3]"),
    ("query_start_loc", int32(0, 1, 2), ValueError, "to end with the 3 tokens of q, got 2"),
    ("query_start_loc", {"q": zeros(4, 4, 16)}, ValueError, "to end with the 4 tokens of q, got 3"),
)


@pytest.mark.parametrize("argument, changed, error, ending", SHAPES_AND_DTYPES + VALUES)
def test_attention_refuses(case, argument, changed, error, ending):
    before = everything(case)
    with pytest.raises(error) as refusal:
        case.attend(**changed)
    if argument == "q" and "query_start_loc" in changed:
        assert str(refusal.value).startswith("q: expected one query token for each of the 2 sequences, got 3; ")
    assert_names_the_culprit(refusal, error, argument, ending)
    assert everything(case) == before


@pytest.mark.parametrize("argument, changed, error, ending", SHAPES_AND_DTYPES)
def test_shapes_and_dtypes_are_looked_at_unchecked_too(case, argument, changed, error, ending):
    with pytest.raises(error) as refusal:
        case.attend(**changed, check=False)
    assert_names_the_culprit(refusal, error, argument, ending)


@EVERY_LAYOUT
def test_each_layout_refuses_the_shapes_of_every_other(layout):
    case = paged_case(context_lens=[5], head_dim=16, num_kv_heads=2, block_size=4, layout=layout, dtype="float16")
    for other in LAYOUTS:
        if {layout, other} <= {PoolLayout.HND, PoolLayout.NHD}:
            continue  # these two cannot be told apart by their rank
        if other is not layout:
            with pytest.raises(ValueError, match=f"expected two {other.name} arrays"):
                case.attend(layout=other)


def test_an_executor_that_cannot_run_here_says_why(case, monkeypatch):
    unavailable = [name for name in executors.NAMES if executors.why_not(name)]
    assert unavailable, "no machine has both Metal and CUDA"
    for name in unavailable:
        with pytest.raises(ExecutorUnavailable) as refusal:
            case.attend(executor=name)
        assert str(refusal.value) == f"executor: {name} cannot run here: {executors.why_not(name)}"
        assert isinstance(refusal.value, PagedCoreError)
        monkeypatch.setenv(executors.VARIABLE, name)
        with pytest.raises(ExecutorUnavailable, match=f"^PAGED_CORE_EXECUTOR: {name} cannot run here: "):
            case.attend(executor="auto")


def test_a_table_past_its_end_is_nobodys_business(case):
    """Entries past ceil(context / block_size) are neither read nor checked: the case has nothing else there."""
    tables = np.array(case.block_tables)
    assert (tables[0, 2:] // 8 != 0).all() and (tables[1, 3:] // 8 != 0).all()  # all out of range
    case.check(case.attend())


# The pool

WRITE = lines(
    ("layer", 2, ValueError, "0 to 1, got 2"),
    ("layer", -1, ValueError, "0 to 1, got -1"),
    ("layer", 0.0, TypeError, "an integer, got 0.0"),
    ("layer", "0", TypeError, "an integer, got '0'"),
    ("layer", False, TypeError, "an integer, got False"),
    ("k", np.zeros((2, 2, 16)), TypeError, "an mlx array, got ndarray"),
    ("k", zeros(2, 32), ValueError, "shape [2, 2, 16], got [2, 32]"),
    ("k", zeros(3, 2, 16), ValueError, "shape [2, 2, 16], got [3, 2, 16]"),
    ("k", zeros(2, 1, 16), ValueError, "shape [2, 2, 16], got [2, 1, 16]"),
    ("k", zeros(2, 2, 8), ValueError, "shape [2, 2, 16], got [2, 2, 8]"),
    ("k", zeros(), ValueError, "shape [2, 2, 16], got []"),
    ("k", zeros(2, 2, 16, dtype=F16), TypeError, "dtype mlx.core.float32, got mlx.core.float16"),
    ("v", zeros(2, 16, 2), ValueError, "shape [2, 2, 16], got [2, 16, 2]"),
    ("v", zeros(2, 2, 16, dtype=mx.bfloat16), TypeError, "dtype mlx.core.float32, got mlx.core.bfloat16"),
    ("slot_mapping", [1, 2], TypeError, "an mlx array, got list"),
    ("slot_mapping", zeros(1, 2, dtype=mx.int32), ValueError, "shape [num_tokens], got [1, 2]"),
    ("slot_mapping", zeros(2, dtype=I64), TypeError, "dtype mlx.core.int32, got mlx.core.int64"),
    ("slot_mapping[1]", {"slot_mapping": int32(3, -1)}, InvalidBlock, "a slot from 0 to 31, got -1"),
    ("slot_mapping[0]", {"slot_mapping": int32(32, 0)}, InvalidBlock, "a slot from 0 to 31, got 32"),
    ("slot_mapping", int32(7, 7), InvalidBlock, "each slot once, got 7 more than once"),
)
GATHER = lines(
    ("layer", 2, ValueError, "0 to 1, got 2"),
    ("blocks[1]", {"blocks": [0, -1]}, InvalidBlock, "a block from 0 to 7, got -1"),
    ("blocks[0]", {"blocks": [8]}, InvalidBlock, "a block from 0 to 7, got 8"),
    ("blocks", [0.0, 1.0], TypeError, "integers, got float64"),
    ("blocks", zeros(2, dtype=mx.bfloat16), TypeError, "integers, got mlx.core.bfloat16"),
    ("blocks", [True, False], TypeError, "integers, got bool"),
    ("blocks", ["a"], TypeError, "integers, got <U1"),
    ("blocks", [[0, 1]], ValueError, "a list of blocks, got shape [1, 2]"),
    ("blocks", 3, ValueError, "a list of blocks, got shape []"),
    ("length", -1, ValueError, "an integer of 0 or more, got -1"),
    ("length", 9, InvalidBlockTable, "0 to 8 tokens in 2 block(s), got 9"),
    ("length", 4.0, TypeError, "an integer of 0 or more, got 4.0"),
)
COPY = lines(
    ("src[0]", {"src": [-1], "dst": [0]}, InvalidBlock, "a block from 0 to 7, got -1"),
    ("src[1]", {"src": [0, 8], "dst": [1, 2]}, InvalidBlock, "a block from 0 to 7, got 8"),
    ("dst[1]", {"src": [0, 1], "dst": [2, -1]}, InvalidBlock, "a block from 0 to 7, got -1"),
    ("dst[0]", {"src": [0], "dst": [8]}, InvalidBlock, "a block from 0 to 7, got 8"),
    ("dst", {"src": [0, 1], "dst": [5, 5]}, InvalidBlock, "each block once, got 5 more than once"),
    ("src, dst", {"src": [0, 1], "dst": [5]}, ValueError, "equally many blocks, got 2 and 1"),
    ("src", {"src": [0.5], "dst": [1]}, TypeError, "integers, got float64"),
)


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.name)
def pool(request):
    """8 blocks of 4 tokens, 2 layers, 2 KV heads, 16 dims, full of numbers."""
    pool = PagedPool(
        num_layers=2, num_blocks=8, num_kv_heads=2, block_size=4, head_dim=16, dtype=mx.float32, layout=request.param
    )
    for layer in range(2):
        k, v = (mx.random.normal((32, 2, 16)) for _ in "kv")
        pool.write(layer, k, v, mx.arange(32, dtype=mx.int32))
    return pool


def assert_refused_by(pool, call, error, argument, ending):
    before, arrays = stored_bytes(pool), [pool.k(0), pool.v(0), pool.k(1), pool.v(1)]
    with pytest.raises(error) as refusal:
        call()
    assert_names_the_culprit(refusal, error, argument, ending)
    assert stored_bytes(pool) == before
    assert all(now is then for now, then in zip([pool.k(0), pool.v(0), pool.k(1), pool.v(1)], arrays, strict=True))


@pytest.mark.parametrize("argument, changed, error, ending", WRITE)
def test_write_refuses(pool, argument, changed, error, ending):
    right = {"layer": 0, "k": zeros(2, 2, 16), "v": zeros(2, 2, 16), "slot_mapping": int32(3, 4)}
    assert_refused_by(pool, lambda: pool.write(**{**right, **changed}), error, argument, ending)


@pytest.mark.parametrize("argument, changed, error, ending", GATHER)
def test_gather_refuses(pool, argument, changed, error, ending):
    right = {"layer": 0, "blocks": [0, 1], "length": 8}
    assert_refused_by(pool, lambda: pool.gather(**{**right, **changed}), error, argument, ending)


@pytest.mark.parametrize("argument, lists, error, ending", COPY)
def test_copy_blocks_refuses(pool, argument, lists, error, ending):
    assert_refused_by(pool, lambda: pool.copy_blocks(**lists), error, argument, ending)


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("layer, error", [(2, ValueError), (-1, ValueError), (0.5, TypeError), (None, TypeError)])
def test_a_layer_that_is_not_there(pool, which, layer, error):
    with pytest.raises(error, match=f"^layer: expected .*, got {layer}"):
        getattr(pool, which)(layer)


@pytest.mark.parametrize(
    "argument, changed, error, ending",
    lines(
        ("num_layers", 0, ValueError, "a positive integer, got 0"),
        ("num_blocks", 0, ValueError, "a positive integer, got 0"),
        ("num_blocks", -3, ValueError, "a positive integer, got -3"),
        ("num_kv_heads", 0, ValueError, "a positive integer, got 0"),
        ("block_size", 0, ValueError, "a positive integer, got 0"),
        ("block_size", 16.0, TypeError, "a positive integer, got 16.0"),
        ("block_size", "16", TypeError, "a positive integer, got '16'"),
        ("head_dim", 12, ValueError, "a multiple of 8 up to 512, got 12"),
        ("head_dim", 520, ValueError, "a multiple of 8 up to 512, got 520"),
        ("head_dim", True, TypeError, "a positive integer, got True"),
        (
            "num_blocks * block_size",
            {"num_blocks": np.int32(2**28)},
            ValueError,
            "fewer than 2^31 slots, got 4294967296",
        ),
        ("dtype", mx.int8, TypeError, "mx.float32, mx.float16 or mx.bfloat16, got mlx.core.int8"),
        ("dtype", "float16", TypeError, "mx.float32, mx.float16 or mx.bfloat16, got 'float16'"),
        ("dtype", np.float16, TypeError, "mx.float32, mx.float16 or mx.bfloat16, got <class 'numpy.float16'>"),
        ("layout", "HND", TypeError, "got 'HND'"),
        ("layout", "columnar", TypeError, "got 'columnar'"),
    ),
)
def test_a_pool_that_cannot_be(argument, changed, error, ending):
    sizes = {"num_layers": 1, "num_blocks": 4, "num_kv_heads": 2, "block_size": np.int32(16), "head_dim": 64}
    with pytest.raises(error) as refusal:
        PagedPool(**{**sizes, **changed})
    assert_names_the_culprit(refusal, error, argument, ending)


# slot_mapping


@pytest.mark.parametrize(
    "argument, changed, error, ending",
    lines(
        ("block_tables", [[0]], TypeError, "an mlx array, got list"),
        ("block_tables", int32(0, 1), ValueError, "[num_seqs, max_blocks], got [2]"),
        ("block_tables", zeros(2, 3), TypeError, "dtype mlx.core.int32, got mlx.core.float32"),
        ("context_lens", int32(5), ValueError, "shape [2], got [1]"),
        ("context_lens", zeros(2), TypeError, "dtype mlx.core.int32, got mlx.core.float32"),
        ("context_lens[0]", {"context_lens": int32(1, 9)}, ValueError, "the 2 token(s) to be written, got 1"),
        ("context_lens[1]", {"context_lens": int32(5, -1)}, ValueError, "the 1 token(s) to be written, got -1"),
        ("context_lens[1]", {"context_lens": int32(5, 13)}, InvalidBlockTable, "a block 4 tokens), got 13"),
        ("query_start_loc", int32(0, 3), ValueError, "shape [3], got [2]"),
        ("query_start_loc", zeros(3), TypeError, "dtype mlx.core.int32, got mlx.core.float32"),
        ("query_start_loc", int32(1, 2, 3), ValueError, "to begin with 0 and never fall, got [1, 2, 3]"),
        ("query_start_loc", int32(0, 2, 1), ValueError, "to begin with 0 and never fall, got [0, 2, 1]"),
        ("block_size", 0, ValueError, "a positive integer, got 0"),
        ("block_size", 4.0, TypeError, "a positive integer, got 4.0"),
        ("block_tables[0, 1]", {"block_tables": table(0, 1, -1)}, InvalidBlockTable, "0 to 536870911, got -1"),
        # 2^29 blocks of 4 tokens are as many slots as int32 can name: the next block would have negative ones.
        (
            "block_tables[1, 2]",
            {"block_tables": table(1, 2, 2**29)},
            InvalidBlockTable,
            "0 to 536870911, got 536870912",
        ),
    ),
)
def test_slot_mapping_refuses(argument, changed, error, ending):
    right = {
        "block_tables": mx.array([[0, 1, -1], [2, 3, 4]], mx.int32),
        "context_lens": int32(5, 9),
        "block_size": 4,
        "query_start_loc": int32(0, 2, 3),
    }
    with pytest.raises(error) as refusal:
        slot_mapping(**{**right, **changed})
    assert_names_the_culprit(refusal, error, argument, ending)


def test_a_negative_length_without_new_tokens_is_refused_too():
    with pytest.raises(
        ValueError, match=r"^context_lens\[0\]: expected at least the 0 token\(s\) to be written, got -5"
    ):
        slot_mapping(int32(0)[None], int32(-5), 4, int32(0, 0))


# The allocator and the sequence. Ids that are not live, and growth that does not fit, have tests of their own.


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda a, s: BlockAllocator(-1), ValueError, "num_blocks: expected an integer of 0 or more, got -1"),
        (lambda a, s: BlockAllocator(4.0), TypeError, "num_blocks: expected an integer of 0 or more, got 4.0"),
        (lambda a, s: BlockAllocator("4"), TypeError, "num_blocks: expected an integer of 0 or more, got '4'"),
        (lambda a, s: BlockAllocator(True), TypeError, "num_blocks: expected an integer of 0 or more, got True"),
        (lambda a, s: a.allocate_n(-1), ValueError, "n: expected an integer of 0 or more, got -1"),
        (lambda a, s: a.allocate_n(1.0), TypeError, "n: expected an integer of 0 or more, got 1.0"),
        (lambda a, s: a.allocate_n(None), TypeError, "n: expected an integer of 0 or more, got None"),
        (lambda a, s: a.free([s.blocks[0], 0.0]), TypeError, "block: expected an integer, got 0.0"),
        (lambda a, s: a.free("01"), TypeError, "block: expected an integer, got '0'"),
        (lambda a, s: a.free(7), TypeError, "blocks: expected several block ids, got 7"),
        (lambda a, s: a.share(7), TypeError, "blocks: expected several block ids, got 7"),
        (lambda a, s: a.share([s.blocks[0], None]), TypeError, "block: expected an integer, got None"),
        (lambda a, s: a.ref_count(1.0), TypeError, "block: expected an integer, got 1.0"),
        (lambda a, s: PagedSeqState(0, 4), ValueError, "block_size: expected a positive integer, got 0"),
        (lambda a, s: PagedSeqState(4.0, 4), TypeError, "block_size: expected a positive integer, got 4.0"),
        (lambda a, s: PagedSeqState(4, 0), ValueError, "max_blocks_per_seq: expected a positive integer, got 0"),
        (lambda a, s: PagedSeqState(4, "4"), TypeError, "max_blocks_per_seq: expected a positive integer, got '4'"),
        (lambda a, s: s.ensure_capacity(a, -1), ValueError, "target_len: expected an integer of 0 or more, got -1"),
        (lambda a, s: s.ensure_capacity(a, 6.5), TypeError, "target_len: expected an integer of 0 or more, got 6.5"),
        (lambda a, s: s.ensure_capacity(a, None), TypeError, "target_len: expected an integer of 0 or more, got None"),
    ],
)
def test_allocator_and_sequence_refuse(case, call, error, message):
    before = everything(case)
    with pytest.raises(error) as refusal:
        call(case.allocator, case.seqs[0])
    assert (type(refusal.value), str(refusal.value)) == (error, message)
    assert everything(case) == before


def test_every_error_of_the_package_is_a_paged_core_error():
    for error in (PoolExhausted, SequenceTooLong, InvalidBlock, InvalidBlockTable, ExecutorUnavailable):
        assert issubclass(error, PagedCoreError)
