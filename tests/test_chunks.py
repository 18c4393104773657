"""A prompt in chunks: the calls, what they give, and what they read."""

import mlx.core as mx
import numpy as np
import pytest

from paged_core import trace
from paged_core.attention import checked_call
from paged_core.cases import paged_case, share_of_bound, to_numpy
from paged_core.chunks import Chunk, chunks, keys_loaded, keys_read, steps
from paged_core.executors import native, simulator
from paged_core.executors.launch import GPU, launches


def test_chunks_cover_the_prompt_once():
    assert chunks(10, 4) == [Chunk(0, 4), Chunk(4, 8), Chunk(8, 10)]
    assert chunks(10, 10) == chunks(10, 99) == [Chunk(0, 10)]
    assert chunks(0, 4) == []
    with pytest.raises(ValueError, match="size"):
        chunks(10, 0)


def test_a_step_has_a_chunk_and_everybody_elses_queries():
    case = paged_case(context_lens=[10, 33, 7], num_queries=[10, 1, 2])
    first, second, third = steps(case, 4)
    assert [step["context_lens"].tolist() for step in (first, second, third)] == [[4, 33, 7], [8, 33, 7], [10, 33, 7]]
    assert first["query_start_loc"].tolist() == [0, 4, 5, 7] and third["query_start_loc"].tolist() == [0, 2, 3, 5]
    assert mx.array_equal(second["q"], mx.concatenate([case.q[4:8], case.q[10:]]))


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_chunks_give_what_the_whole_prompt_gives(size):
    case = paged_case(context_lens=[100, 40], num_queries=[100, 1], head_dim=32)
    outputs = [to_numpy(case.attend("ops", **step)) for step in steps(case, size)]
    prompt = np.concatenate([output[:-1] for output in outputs])
    assert share_of_bound(prompt, case.oracle()[:100], case.bound()[:100]).max() <= 1
    for output in outputs:
        assert share_of_bound(output[-1], case.oracle()[100], case.bound()[100]).max() <= 1


def test_only_a_whole_prompt_is_cut():
    with pytest.raises(ValueError, match="one a token"):
        steps(paged_case(context_lens=[10], num_queries=[9]), 4)


def test_reading_by_hand():
    assert keys_read(10, 4) == 4 + 8 + 10
    assert keys_read(10, 10) == 10 and keys_read(10, 1) == 55
    # Tiles of 3 queries: the whole prompt is 3, 3, 3, 1 queries, which see 3, 6, 9, 10 keys at the most.
    assert keys_loaded(10, 10, 3) == 3 + 6 + 9 + 10
    # In chunks of 4 each has a tile of 3 and one of 1, the last chunk one of 2.
    assert keys_loaded(10, 4, 3) == (3 + 4) + (7 + 8) + 10
    assert keys_loaded(12, 6, 3) == keys_loaded(12, 12, 3)  # chunks of whole tiles load no more


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_bits_of_a_query_do_not_depend_on_who_shares_its_call(size):
    case = paged_case(context_lens=[100], num_queries=[100], head_dim=64)
    outputs = [case.attend("native", **step) for step in steps(case, size)]
    assert mx.array_equal(mx.concatenate(outputs), case.attend("native"))


@pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))
@pytest.mark.parametrize("size", [40, 16, 7])
def test_what_is_said_to_be_loaded_is_what_the_simulator_sees_loaded(size):
    case = paged_case(context_lens=[40], num_queries=[40], head_dim=64, num_q_heads=4, num_kv_heads=1)
    tile = dict(launches(checked_call(**case.arguments), GPU)[0].specialisation.constants)
    tile_queries = tile["SIMDGROUPS"] * tile["ROW_TILES"] * tile["ROWS"] // 4
    assert tile_queries < 40
    vectors = 0
    for step in steps(case, size):
        records = trace(**{**case.arguments, **step}).records
        loads = records[records["buffer"] == "k_pool"]
        vectors += len(set(zip(loads["threadgroup"].tolist(), (loads["index"] // 64).tolist(), strict=True)))
    assert vectors == keys_loaded(40, size, tile_queries)
