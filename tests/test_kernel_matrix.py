"""Every executor against the float64 oracle, over everything that can be combined.

`make test` runs rows that contain every *pair* of values at least once; `make soak` runs all of them. Each case is held
to the derived bound (paged_core/reference.py), with NaN in every slot that no query may see.
"""

from itertools import product

import mlx.core as mx
import pytest
from allpairspy import AllPairs

from paged_core import PoolLayout, available_executors
from paged_core.cases import PagedCase, paged_case

EXECUTORS = available_executors()
DTYPES = ["float32", "float16", "bfloat16"]
LAYOUTS = list(PoolLayout)
HEAD_DIMS = [64, 80, 96, 112, 128, 256, 512]
HEADS = [(4, 4), (8, 2), (6, 2), (8, 1)]  # query heads, KV heads: each its own, groups of 4 and of 3, all share one
BLOCK_SIZES = [1, 5, 16, 32]
FEATURES = {
    "plain": {},
    "window": {"sliding_window": 7},
    "softcap": {"softcap": 3.0},
    "alibi": {"alibi": True},
    "sinks": {"sinks": True},
    "all": {"sliding_window": 40, "softcap": 5.0, "alibi": True, "sinks": True, "scale": 0.2},
}
LENGTHS = ["edges", "thousands", "prompt", "chunks"]
PARAMETERS = [EXECUTORS, DTYPES, LAYOUTS, HEAD_DIMS, HEADS, BLOCK_SIZES, list(FEATURES), LENGTHS]


def matrix_case(dtype, layout, head_dim, heads, block_size, feature, lengths) -> PagedCase:
    b = block_size
    context_lens, num_queries = {
        "edges": ([0, 1, b - 1, b, b + 1], None),
        "thousands": ([2500, 0, 3], None),  # long enough to be split over the keys
        "prompt": ([b + 1, 70, 0, 1], [b + 1, 70, 2, 1]),  # whole prompts
        "chunks": ([3 * b, 300, 65, 9], [b, 33, 1, 0]),  # the newest part of a prompt, a decode, and nobody
    }[lengths]
    return paged_case(
        context_lens=context_lens, num_queries=num_queries, dtype=dtype, layout=layout, head_dim=head_dim,
        block_size=block_size, num_q_heads=heads[0], num_kv_heads=heads[1], **FEATURES[feature],
    )  # fmt: skip


def name(row) -> str:
    executor, dtype, layout, head_dim, heads, block_size, feature, lengths = row
    return f"{executor}-{dtype}-{layout.name}-D{head_dim}-{heads[0]}q{heads[1]}kv-B{block_size}-{feature}-{lengths}"


PAIRS = [tuple(row) for row in AllPairs(PARAMETERS)]


def test_the_rows_hold_every_pair_of_values():
    for i, j in product(range(len(PARAMETERS)), repeat=2):
        if i < j:
            held = {(row[i], row[j]) for row in PAIRS}
            assert held == set(product(PARAMETERS[i], PARAMETERS[j]))


@pytest.mark.parametrize("row", PAIRS, ids=name)
def test_kernel_pairs(row):
    executor, *rest = row
    case = matrix_case(*rest)
    output = case.attend(executor=executor)
    case.check(output)
    assert mx.array_equal(case.attend(executor=executor), output), "two runs give the same bits"


SPECIALISATIONS = list(product(EXECUTORS, DTYPES, LAYOUTS, HEAD_DIMS, HEADS))


@pytest.mark.soak
@pytest.mark.parametrize("row", SPECIALISATIONS, ids=lambda row: "-".join(map(str, row)))
def test_kernel_product(row):
    """One specialisation over all that is decided at run time."""
    executor, *specialisation = row
    for run_time in product(BLOCK_SIZES, FEATURES, LENGTHS):
        case = matrix_case(*specialisation, *run_time)
        case.check(case.attend(executor=executor))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_kernel_with_a_cap_far_above_all_logits_changes_nothing(executor):
    """c tanh(s / c) is s for a large c, but only if tanh keeps its digits near 0."""
    case = paged_case(context_lens=[50, 7])
    plain = case.attend(executor=executor)
    assert mx.abs(case.attend(executor=executor, softcap=1e6) - plain).max().item() < 1e-5
