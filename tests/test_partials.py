"""Split-KV taken apart: the rule that chooses it, the partials it leaves, and what they merge to."""

import numpy as np
import pytest

from paged_core.attention import checked_call
from paged_core.cases import check_within, paged_case
from paged_core.executors import native
from paged_core.executors.launch import GPU, cpu, launches, split

needs_compiler = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))


@pytest.fixture(scope="module")
def case():
    return paged_case(context_lens=[0, 5, 300, 64], head_dim=64, num_q_heads=4, num_kv_heads=2, block_size=16)


@pytest.fixture(scope="module")
def call(case):
    return checked_call(**case.arguments)


def test_enough_threadgroups_are_not_split():
    assert split(256, 1 << 20, GPU) == 1
    assert split(8, 1 << 20, cpu(threads=2, width=8)) == 1
    assert split(1, 1 << 20, cpu(threads=1, width=8)) == 1


def test_there_are_as_many_partitions_as_give_enough_threadgroups():
    assert split(8, 1 << 20, GPU) == 32  # 8 x 32 = 256
    assert split(100, 1 << 20, GPU) == 2
    assert split(3, 1 << 20, cpu(threads=2, width=8)) == 2  # 3 x 2 = 6; 3 x 3 would be more than 8


def test_a_partition_is_worth_a_threadgroup():
    assert split(1, 256, GPU) == 1
    assert split(1, 257, GPU) == 2
    assert split(1, 4096, GPU) == 16
    assert split(0, 4096, GPU) == 16  # no sequence at all: nothing is launched, and nothing divides by zero


def test_a_given_number_of_partitions_overrides_the_rule(call):
    partial, merge = launches(call, GPU, 3)
    assert partial.grid == (3, 2, 4) and partial.output_shapes == ((4, 4, 3, 64), (4, 4, 3), (4, 4, 3))
    assert merge.grid == (1, 4, 4) and merge.sizes[5] == 3
    assert [x.specialisation.kernel for x in launches(call, GPU, 1)] == ["paged_decode_partial", "paged_merge"]


@needs_compiler
@pytest.mark.parametrize("num_partitions", [1, 2, 7, 300])
def test_the_partials_of_the_kernel_are_those_of_its_keys(case, call, num_partitions):
    found = native.partials(call, num_partitions)
    q, scale = np.array(case.q, np.float64), 64**-0.5
    for seq, (k, v) in enumerate(case.dense):
        context = len(k)
        share = -(-context // num_partitions)
        for p in range(num_partitions):
            keys = slice(min(p * share, context), min((p + 1) * share, context))
            for head in range(4):
                at = (seq, head, p)
                s = scale * k[keys, head // 2].astype(np.float64) @ q[seq, head]
                if not s.size:
                    assert (found.top[at], found.total[at]) == (-np.inf, 0) and not found.acc[at].any()
                    continue
                w = np.exp(s - s.max())
                np.testing.assert_allclose(found.top[at], s.max(), rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(found.total[at], w.sum(), rtol=1e-4)
                np.testing.assert_allclose(found.acc[at], w @ v[keys, head // 2].astype(np.float64), atol=1e-4)
    assert case.check(found.output) <= 1


@needs_compiler
def test_partials_merge_to_the_oracle(case, call):
    found = native.partials(call, 4)
    top = found.top.max(-1, keepdims=True).astype(np.float64)
    weight = np.where(found.total > 0, np.exp(found.top - np.where(np.isfinite(top), top, 0)), 0)
    total = (weight * found.total).sum(-1)[..., None]
    merged = (weight[..., None] * found.acc).sum(2) / np.where(total > 0, total, 1)
    assert check_within(merged, case.oracle(), case.bound()) <= 1


@needs_compiler
def test_any_number_of_partitions_runs(case, call):
    for num_partitions in (None, 1, 2, 64):
        assert case.check(native.run(call, num_partitions)) <= 1


def test_only_decodes_are_split(call):
    prompt = paged_case(context_lens=[5], num_queries=[3])
    with pytest.raises(ValueError, match="only decodes"):
        native.partials(checked_call(**prompt.arguments), 2)
    with pytest.raises(ValueError, match="num_partitions"):
        native.partials(call, 0)
