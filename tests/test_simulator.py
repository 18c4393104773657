"""The simulator: right answers, traces that are the kernels' own loads, and kernels caught at what they do wrong."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import paged_core
from paged_core import KernelError, PoolLayout, trace
from paged_core.cases import paged_case
from paged_core.executors import host, simulator
from paged_core.executors.source import files

from .cases import DTYPES, LAYOUTS


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decode_is_right(dtype, layout):
    case = paged_case(dtype=dtype, layout=layout, context_lens=[0, 1, 37], head_dim=80, alibi=True, sinks=True)
    case.check(case.attend("simulator"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prompt_is_right(dtype):
    case = paged_case(
        dtype=dtype, context_lens=[40, 0, 50], num_queries=[40, 3, 20], num_q_heads=4, num_kv_heads=2, head_dim=64,
        block_size=7, sliding_window=19, softcap=3.0,
    )  # fmt: skip
    case.check(case.attend("simulator"))


def test_a_split_decode_is_right_and_traced_as_two_launches():
    case = paged_case(context_lens=[5, 300], head_dim=64, sinks=True)
    seen = trace(**case.arguments, max_records=2_000_000)
    case.check(seen.output)
    assert [launch.kernel for launch in seen.launches] == ["paged_decode_partial", "paged_merge"]
    merged = seen.records[seen.records["launch"] == 1]
    assert {"partial_acc", "partial_top", "partial_total", "sinks", "out"} <= set(merged["buffer"])
    assert not {"k_pool", "v_pool", "q"} & set(merged["buffer"])


def one_sequence(**changed):
    """A context of 5 tokens in blocks of 2, one head of 64 dims: every load can be counted on paper."""
    return paged_case(**{"context_lens": [5], "block_size": 2, "num_q_heads": 1, "num_kv_heads": 1, **changed})


def test_a_trace_has_every_load_of_a_small_decode():
    case = one_sequence()
    seen = trace(**case.arguments)
    records = seen.records
    assert records.dtype.names == (
        "launch", "threadgroup", "simdgroup", "lane", "step", "buffer", "index", "itemsize", "is_write",
    )  # fmt: skip
    assert len(seen) == len(records)
    loads = records[records["buffer"] == "k_pool"]
    assert not loads["is_write"].any() and set(loads["itemsize"]) == {4}
    # Five keys in tiles of 4: simdgroup 0 takes keys 0 to 3, simdgroup 1 key 4, and thrice again.
    assert [int((loads["simdgroup"] == g).sum()) for g in range(8)] == [4 * 64, 4 * 64, 0, 0, 0, 0, 0, 0]
    table = case.seqs[0].blocks
    first_dims = [(table[key // 2] * 2 + key % 2) * 64 for key in (0, 1, 2, 3, 4, 4, 4, 4)]
    for lane in (0, 9, 31):
        mine = loads[loads["lane"] == lane]
        assert mine["index"].tolist() == [at + dim for at in first_dims for dim in (lane, lane + 32)]
    stores = records[(records["buffer"] == "out")]
    assert stores["is_write"].all() and sorted(stores["index"]) == list(range(64))


def test_steps_count_the_accesses_of_a_threadgroup():
    case = paged_case(context_lens=[3, 4], num_q_heads=4, num_kv_heads=2)
    seen = trace(**case.arguments)
    assert seen.launches[0].grid == (1, 2, 2)
    for threadgroup in range(4):
        steps = seen.records["step"][seen.records["threadgroup"] == threadgroup]
        assert steps.tolist() == list(range(len(steps))) and len(steps)


def test_threadgroup_memory_is_traced_under_the_names_of_its_arrays():
    seen = trace(**one_sequence().arguments)
    buffers = {buffer.name: buffer for buffer in seen.buffers}
    assert buffers["acc"].space == "threadgroup" and buffers["acc"].size == 64
    acc = seen.records[seen.records["buffer"] == "acc"]
    assert acc["is_write"].any() and not acc["is_write"].all()
    # Eight simdgroups, one after the other, add to all 64 elements; the first only writes.
    assert (acc["is_write"].sum(), (~acc["is_write"]).sum()) == (8 * 64, 7 * 64 + 64)


def test_a_trace_knows_the_lines_of_the_source():
    seen = trace(**one_sequence().arguments)
    text = files()["attention.metal"].splitlines()
    places = set(seen.lines[seen.records["buffer"] == "k_pool"])
    assert len(places) == 1
    file, line = places.pop().split(":")
    assert file == "attention.metal" and "pool.k_dim(dim)" in text[int(line) - 1]


def test_two_runs_give_the_same_bits_and_the_same_trace():
    case = paged_case(context_lens=[30, 70], dtype="float16", head_dim=128)
    first, second = trace(**case.arguments), trace(**case.arguments)
    assert mx.array_equal(first.output, second.output)
    assert np.array_equal(first.records, second.records)


def test_interleaved_pools_are_read_k_from_the_one_and_v_from_the_other():
    case = one_sequence(layout=PoolLayout.INTERLEAVED)
    records = trace(**case.arguments).records
    k, v = (set(records["index"][records["buffer"] == name]) for name in ("k_pool", "v_pool"))
    assert {index // 128 % 2 for index in k} == {0} and {index // 128 % 2 for index in v} == {1}


def test_a_trace_that_is_too_long_says_what_to_do():
    with pytest.raises(KernelError, match="max_records"):
        trace(**one_sequence().arguments, max_records=100)


def test_no_sequence_at_all():
    case = one_sequence()
    seen = trace(
        case.q[:0], case.pool.k(0), case.pool.v(0), case.block_tables[:0], case.context_lens[:0],
        layout=case.pool.layout,
    )  # fmt: skip
    assert seen.output.shape == (0, 1, 64) and len(seen.records) == 0


@pytest.mark.parametrize("head_dim", [64, 128])
def test_tracing_a_decode_takes_less_than_two_seconds(head_dim):
    case = paged_case(context_lens=[200] * 4, num_q_heads=8, num_kv_heads=8, head_dim=head_dim)
    trace(**case.arguments)  # compiles
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        records = trace(**case.arguments).records
        seconds.append(time.perf_counter() - start)
    assert (records["buffer"] == "v_pool").sum() == 4 * 200 * 8 * head_dim
    assert min(seconds) < 2


COUNT_ACCESSES = """
from collections import Counter
from paged_core import trace
from paged_core.cases import paged_case
for options in ({"context_lens": [5, 300], "dtype": "float16"}, {"context_lens": [50], "num_queries": [20]}):
    case = paged_case(**options, alibi=True, sinks=True)
    seen = trace(**case.arguments)
    case.check(seen.output)
    names, writes = seen.records["buffer"].tolist(), seen.records["is_write"].tolist()
    print(sorted(Counter(zip(names, writes)).items()))
"""


def test_every_compiler_shows_the_same_accesses():
    compilers = [path for name in ("g++", "clang++", "clang++-19") if (path := shutil.which(name))]
    answers = []
    for path in compilers:
        environment = {**os.environ, "CXX": path, "PYTHONPATH": str(Path(paged_core.__file__).parents[1])}
        command = [sys.executable, "-c", COUNT_ACCESSES]
        answers.append(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert answers and "k_pool" in answers[0] and len(set(answers)) == 1


def test_what_it_needs_is_said(monkeypatch):
    why_not = simulator.why_not.__wrapped__  # without the memory of this machine's answer
    assert why_not() is None
    monkeypatch.setattr(host, "accepts", lambda flag: False)
    assert "-fsanitize=thread" in why_not()
    monkeypatch.setattr(simulator.sys, "platform", "win32")
    assert "needs Linux or macOS" in why_not()
    monkeypatch.setattr(host, "compiler", lambda: None)
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler" in why_not()
