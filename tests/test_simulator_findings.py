"""Broken kernels, small ones and the package's own with a line changed: the simulator catches each, and says where."""

import pickle
import re

import mlx.core as mx
import numpy as np
import pytest

from paged_core import KernelError, trace
from paged_core.attention import checked_call
from paged_core.cases import paged_case
from paged_core.errors import DataRace, Divergence, SimulatorFinding, StrayAccess, UninitialisedMemory
from paged_core.executors.simulator import simulate
from paged_core.executors.source import files, parse

# ------------------------------------------------------------------------------------------------------ small kernels

# In the place of paged_decode: a threadgroup of 8 simdgroups for each of two sequences, which have 64 elements of out.
PREAMBLE = """//// kernel paged_decode
THREADGROUP_ARRAY(float, shared, 256);
THREADGROUP_ARRAY(float, other, 256);
const int lane = thread_index_in_simdgroup;
const int simdgroup = simdgroup_index_in_threadgroup;
const int thread_index = simdgroup * 32 + lane;
const int seq = threadgroup_position_in_grid.z;
device T* mine = out + seq * 64;
"""
FIRST_LINE = PREAMBLE.count("\n") + 1
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
WRITE_ALL = "if (simdgroup < 2) mine[thread_index] = 1.0f;"


def two_sequences():
    return paged_case(context_lens=[3, 4], num_q_heads=1, num_kv_heads=1, head_dim=64, block_size=4)


def run_small(body: str):
    return simulate(checked_call(**two_sequences().arguments), parse({"small.metal": PREAMBLE + body}))


def catch(error: type[SimulatorFinding], body: str) -> SimulatorFinding:
    with pytest.raises(SimulatorFinding) as caught:
        run_small(body)
    assert type(caught.value) is error, caught.value
    assert caught.value.kernel == "paged_decode"
    return caught.value


def where(found: SimulatorFinding):
    return found.buffer, found.index, found.threadgroup, found.simdgroup, found.lane


def line(number: int) -> str:
    """The name of the n-th line after the preamble, from 0."""
    return f"small.metal:{FIRST_LINE + number}"


@pytest.mark.parametrize(
    "body",
    [
        WRITE_ALL,
        # Neighbours read each other's elements, with a barrier before they are overwritten.
        f"shared[thread_index] = lane; {BARRIER} float x = shared[255 - thread_index]; {BARRIER}"
        f"shared[thread_index] = x; {BARRIER} if (simdgroup < 2) mine[thread_index] = shared[thread_index ^ 1];",
        # Within a simdgroup, a simdgroup_barrier is enough.
        "shared[thread_index] = lane; simdgroup_barrier(mem_flags::mem_threadgroup);"
        "if (simdgroup < 2) mine[thread_index] = shared[thread_index ^ 1];",
        # Everybody may read one element at once.
        f"if (thread_index == 0) shared[7] = 1.0f; {BARRIER} float x = simd_max(shared[7] + lane);"
        "if (simdgroup < 2) mine[thread_index] = x;",
        # One simdgroup alone may meet in a simd operation, and all of it may leave early.
        "if (simdgroup > 1) return; float x = simd_sum(1.0f); mine[thread_index] = x;",
        # An output may go from thread to thread within a threadgroup, over a barrier for device memory.
        "if (simdgroup == 0) { mine[lane] = 1.0f; mine[lane + 32] = 1.0f; }"
        "threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);"
        "if (simdgroup < 2) mine[63 - thread_index] = mine[63 - thread_index] + 1.0f;",
        # Constants of the program are no buffer.
        "static const float table[4] = {1, 2, 3, 4}; if (simdgroup < 2) mine[thread_index] = table[thread_index % 4];",
    ],
)
def test_a_healthy_kernel_raises_nothing(body):
    run_small(body)


def test_simd_operations_and_barriers_do_what_they_say():
    output = run_small(
        "float x = simd_sum(float(lane)), y = simd_max(-float(lane)); " + WRITE_ALL.replace("1.0f", "x + y")
    )
    assert np.array(output.output).ravel().tolist() == [31 * 16.0] * 128


@pytest.mark.parametrize(
    "body, expected",
    [
        ("x = simd_min(x);", [0] * 32),
        ("x = simd_broadcast(x, 5);", [5] * 32),
        ("x = simd_shuffle(x, 31 - lane);", range(31, -1, -1)),
        ("x = simd_shuffle_down(x, 2);", [*range(2, 32), 30, 31]),
        ("for (int mask = 16; mask > 0; mask /= 2) x += simd_shuffle_xor(x, mask);", [31 * 16] * 32),
        ("x = min(x, 3.5f) + abs(-0.25f);", [0.25, 1.25, 2.25, 3.25] + [3.75] * 28),
    ],
)
def test_functions_of_metal_that_an_edited_kernel_may_want(body, expected):
    output = run_small(f"float x = lane; {body} {WRITE_ALL.replace('1.0f', 'x')}").output
    assert np.array(output).reshape(-1, 32).tolist() == [list(expected)] * 4


@pytest.mark.parametrize("index", [128, 129, 5000, 1 << 20, 1 << 33, -1, -128, -(1 << 33)])
def test_a_read_outside_a_buffer(index):
    found = catch(StrayAccess, f"{WRITE_ALL}\nif (seq == 1 && simdgroup == 3 && lane == 5) mine[0] = q[long({index})];")
    assert where(found) == ("q", index, 1, 3, 5)
    assert found.line == line(1)
    assert f"reads q[{index}], outside its 128 elements" in str(found) and "threadgroup 1 (0, 0, 1)" in str(found)


def test_an_address_beyond_all_buffers_is_named_after_what_was_read_there_before():
    found = catch(StrayAccess, "for (long i = 1; i; i *= 1 << 22) mine[0] = k_pool[i - 1];")
    assert found.buffer == "k_pool" and (found.index, found.lane) == ((1 << 22) - 1, 0)


def test_a_write_outside_a_buffer():
    found = catch(StrayAccess, "mine[64 * (2 - seq) + thread_index % 64] = 1.0f;")
    assert where(found) == ("out", 128, 0, 0, 0)
    assert "writes out[128]" in str(found)


def test_an_access_outside_a_threadgroup_array_does_not_reach_the_next():
    found = catch(StrayAccess, f"other[thread_index] = 0.0f; {BARRIER}\nshared[thread_index + 1] = 1.0f;")
    assert where(found) == ("shared", 256, 0, 7, 31)
    assert found.line == line(1)


def test_an_access_that_is_half_outside():
    found = catch(StrayAccess, "if (thread_index == 4) mine[0] = float(*(const device long*)(q + 127));")
    assert where(found) == ("q", 127, 0, 0, 4)


def test_a_read_of_an_argument_that_was_not_given():
    found = catch(StrayAccess, "mine[lane] = alibi_slopes[lane];")
    assert where(found) == ("alibi_slopes", 0, 0, 0, 0)


def test_a_write_to_an_input():
    found = catch(StrayAccess, "if (lane == 2) ((device T*)q)[6] = 0.0f;")
    assert where(found) == ("q", 6, 0, 0, 2)
    assert "an input" in str(found)


def test_a_read_of_threadgroup_memory_that_nobody_wrote():
    found = catch(UninitialisedMemory, f"if (lane != 9) shared[thread_index] = 1.0f; {BARRIER}\nmine[0] = shared[41];")
    assert where(found) == ("shared", 41, 0, 0, 0)
    assert found.line == line(1)


def test_what_another_threadgroup_wrote_is_not_there():
    found = catch(
        UninitialisedMemory,
        f"if (seq == 0) shared[thread_index] = 1.0f; {BARRIER} {WRITE_ALL} other[thread_index] = shared[3];",
    )
    assert (found.buffer, found.index, found.threadgroup) == ("shared", 3, 1)


def test_an_output_that_is_read_before_it_is_written():
    found = catch(UninitialisedMemory, "if (simdgroup < 2) mine[thread_index] += 1.0f;")
    assert where(found) == ("out", 0, 0, 0, 0)


def test_an_output_that_is_left_unwritten():
    found = catch(UninitialisedMemory, "if (simdgroup < 2 && thread_index != 17) mine[thread_index] = 1.0f;")
    assert where(found) == ("out", 17, None, None, None)


@pytest.mark.parametrize(
    "between",
    [
        "",
        "simd_sum(1.0f);",  # meets, but orders no memory
        "simdgroup_barrier(mem_flags::mem_threadgroup);",  # orders the lanes of one simdgroup only
        "threadgroup_barrier(mem_flags::mem_none);",
        "threadgroup_barrier(mem_flags::mem_device);",
    ],
)
@pytest.mark.parametrize("first, second", [("shared[40] = 1.0f;", "other[lane] = shared[40];")])
def test_a_write_and_a_read_race_across_simdgroups(between, first, second):
    found = catch(
        DataRace,
        f"if (thread_index == 40) {first}\n{between}\nif (simdgroup == 2) {second}",
    )
    assert where(found) == ("shared", 40, 0, 2, 0)
    assert found.line == line(2)
    assert "reads shared[40]" in str(
        found
    ) and f"lane 8 of simdgroup 1 in threadgroup 0 (0, 0, 0) writes ({line(0)})" in str(found)


def test_a_read_and_a_later_write_race():
    found = catch(
        DataRace,
        f"shared[thread_index] = 1.0f; {BARRIER}\n"
        "other[thread_index] = shared[0];\nif (thread_index == 70) shared[0] = 2.0f;",
    )
    assert where(found) == ("shared", 0, 0, 2, 6)
    assert "writes shared[0]" in str(found) and f" reads ({line(1)}) with no barrier" in str(found)


def test_a_read_before_the_first_write_is_a_race_and_not_only_a_read_of_nothing():
    found = catch(
        DataRace, "if (thread_index == 0) other[0] = shared[200];\nif (thread_index == 200) shared[200] = 1.0f;"
    )
    assert where(found) == ("shared", 200, 0, 6, 8)
    assert "writes shared[200]" in str(
        found
    ) and f"lane 0 of simdgroup 0 in threadgroup 0 (0, 0, 0) reads ({line(0)})" in str(found)


def test_two_writes_race_even_of_the_same_value():
    found = catch(DataRace, "shared[0] = 1.0f;")
    assert where(found) == ("shared", 0, 0, 0, 1)


def test_lanes_of_one_simdgroup_race_too():
    found = catch(
        DataRace, "shared[thread_index] = lane; simd_sum(1.0f); other[thread_index] = shared[thread_index ^ 1];"
    )
    assert (found.buffer, found.simdgroup) == ("shared", 0)


def test_a_writer_races_with_an_earlier_reader_of_its_own_simdgroup():
    """Lanes 0 to 2 read; the barrier is none for lane 3, which reads after it, and lane 4, which writes."""
    body = f"""shared[thread_index] = lane; {BARRIER}
if (simdgroup == 0 && lane < 3) other[lane] = shared[5];
simdgroup_barrier(mem_flags::mem_threadgroup);
if (simdgroup == 0 && lane == 3) other[lane] = shared[5];
if (simdgroup == 0 && lane == 4) shared[5] = 0.0f;"""
    found = catch(DataRace, body)
    assert where(found) == ("shared", 5, 0, 0, 4)
    assert f"lane 3 of simdgroup 0 in threadgroup 0 (0, 0, 0) reads ({line(3)})" in str(found)


def test_a_writer_races_with_a_reader_two_simdgroups_away():
    body = f"""shared[thread_index] = lane; {BARRIER}
if (simdgroup == 0 || simdgroup == 5) other[thread_index] = shared[9];
simdgroup_barrier(mem_flags::mem_threadgroup);
if (simdgroup == 5 && lane == 0) shared[9] = 0.0f;"""
    found = catch(DataRace, body)
    assert where(found) == ("shared", 9, 0, 5, 0)
    assert "of simdgroup 0 in" in str(found)


def test_threads_race_for_an_output():
    found = catch(DataRace, "mine[thread_index % 64] = 1.0f;")
    assert where(found) == ("out", 0, 0, 2, 0)
    found = catch(DataRace, "if (simdgroup < 2) out[thread_index] = 1.0f;")
    assert where(found) == ("out", 0, 1, 0, 0)
    assert "threadgroup 0 (0, 0, 0) writes with no barrier" in str(found)


@pytest.mark.parametrize(
    "body, simdgroup, lane, operation, elsewhere",
    [
        (f"if (lane < 16)\n{BARRIER}", 0, 16, "threadgroup_barrier", "has ended"),
        (f"if (simdgroup != 3)\n{BARRIER}", 3, 0, "threadgroup_barrier", "has ended"),
        (f"if (thread_index == 77) return;\n{BARRIER}", 2, 13, "threadgroup_barrier", "has ended"),
        ("if (lane != 7)\nmine[lane] = simd_sum(1.0f);", 0, 7, "simd_sum", "has ended"),
        (
            "if (lane == 0) return;\nsimdgroup_barrier(mem_flags::mem_threadgroup);",
            0,
            0,
            "simdgroup_barrier",
            "has ended",
        ),
        ("for (int i = 0; i <= lane; ++i)\nsimd_max(1.0f);", 0, 0, "simd_max", "has ended"),
        (f"if (lane > 3) simd_sum(1.0f);\n{BARRIER}", 0, 4, "threadgroup_barrier", "waits at simd_sum"),
        (f"if (lane > 3) {BARRIER} else\n{BARRIER}", 0, 4, "threadgroup_barrier", "waits at threadgroup_barrier"),
        (f"if (simdgroup > 3) {BARRIER} else\n{BARRIER}", 4, 0, "threadgroup_barrier", "waits at threadgroup_barrier"),
        ("if (lane > 3) simd_sum(1.0f); else\nsimd_sum(1.0f);", 0, 4, "simd_sum", "waits at simd_sum"),
    ],
)
def test_a_meeting_that_not_all_lanes_reach(body, simdgroup, lane, operation, elsewhere):
    found = catch(Divergence, body)
    assert where(found) == (None, None, 0, simdgroup, lane)
    assert f"not all lanes reach {operation} ({line(1)})" in str(found)
    assert f"lane {lane} of simdgroup {simdgroup} in threadgroup 0 (0, 0, 0) {elsewhere}" in str(found)
    assert found.line == line(1 if elsewhere == "has ended" else 0)


def test_arrays_that_a_threadgroup_cannot_have():
    with pytest.raises(KernelError, match="two threadgroup arrays have one name"):
        run_small("{ THREADGROUP_ARRAY(float, again, 4); } { THREADGROUP_ARRAY(float, again, 5); }")


def test_a_finding_survives_the_way_to_another_process():
    found = catch(StrayAccess, "mine[0] = q[500];")
    again = pickle.loads(pickle.dumps(found))
    assert (type(again), str(again), where(again), again.line) == (StrayAccess, str(found), where(found), found.line)


# ------------------------------------------------------------------------------------------------ the package's kernels


def with_changed(change) -> dict[str, str]:
    return {name: change(text) if name == "attention.metal" else text for name, text in files().items()}


def changed(old: str, new: str) -> dict[str, str]:
    """The kernels with one piece of attention.metal replaced; there must be exactly one."""
    assert files()["attention.metal"].count(old) == 1, old
    return with_changed(lambda text: text.replace(old, new))


def run(texts: dict[str, str], case):
    return simulate(checked_call(**case.arguments), parse(texts)).output


def source_line(found: SimulatorFinding) -> str:
    file, number = found.line.split(":")
    return files()[file].splitlines()[int(number) - 1]


def one_decode():
    return paged_case(context_lens=[0, 21, 32], num_q_heads=4, num_kv_heads=2, head_dim=64, block_size=8)


def one_split_decode():
    return paged_case(context_lens=[300, 8], num_q_heads=2, num_kv_heads=1, head_dim=64)


def one_prompt():
    return paged_case(
        context_lens=[40, 50], num_queries=[40, 20], num_q_heads=4, num_kv_heads=2, head_dim=128, block_size=7,
        sliding_window=33,
    )  # fmt: skip


BARRIERS = [
    m.start()
    for m in re.finditer(r"(simd|thread)group_barrier\(mem_flags::mem_threadgroup\);", files()["attention.metal"])
]


@pytest.mark.parametrize("at", BARRIERS, ids=lambda at: f"line{files()['attention.metal'][:at].count(chr(10)) + 1}")
def test_every_barrier_is_needed(at):
    """Each barrier of the kernels removed, alone: some decode or prompt is caught in a race."""
    end = files()["attention.metal"].index(";", at) + 1
    texts = with_changed(lambda text: text[:at] + ";" + text[end:])
    found = []
    for case in (one_decode(), one_prompt()):
        try:
            run(texts, case)
        except DataRace as error:
            found.append(error)
    assert len(found) == 1


def test_a_weaker_barrier_is_caught():
    texts = with_changed(lambda text: text.replace("threadgroup_barrier(", "simdgroup_barrier("))
    with pytest.raises(DataRace):
        run(texts, one_decode())
    texts = with_changed(lambda text: text.replace("mem_flags::mem_threadgroup", "mem_flags::mem_none"))
    with pytest.raises(DataRace):
        run(texts, one_prompt())


def test_a_key_too_many_is_followed_out_of_the_pool():
    """A context that ends with its block: the entry after it is nobody's, and here no block's number at all."""
    case = paged_case(context_lens=[16], block_size=16, num_q_heads=1, num_kv_heads=1)
    with pytest.raises(StrayAccess) as caught:
        run(changed("tile < end; tile +=", "tile <= end; tile +="), case)
    assert (caught.value.buffer, caught.value.threadgroup, caught.value.simdgroup, caught.value.lane) == (
        "k_pool",
        0,
        4,
        0,
    )
    assert "pool.k_dim(dim)" in source_line(caught.value)


def test_a_block_table_followed_past_its_end():
    case = paged_case(context_lens=[3, 8], block_size=4, num_q_heads=1, num_kv_heads=1, spare_entries=0)
    with pytest.raises(StrayAccess) as caught:
        run(changed("if (tile + j + 1 < end && ++token", "if (++token"), case)
    assert where(caught.value) == ("block_tables", 4, 1, 1, 0)


def test_a_prompt_that_does_not_stop_at_its_last_key():
    with pytest.raises(StrayAccess) as caught:
        run(changed("const int pos = min(key + j, end - 1);", "const int pos = key + j;"), one_prompt())
    assert caught.value.buffer in ("k_pool", "block_tables")


def test_a_partial_that_is_not_written_is_missed_by_the_merge():
    with pytest.raises(UninitialisedMemory) as caught:
        run(changed("partial_total[at] = total[h];", ";"), one_split_decode())
    assert (caught.value.kernel, where(caught.value)) == ("paged_merge", ("partial_total", 0, 0, 0, 0))
    assert "partial_total[at] != 0.0f" in source_line(caught.value)


def test_a_sum_over_some_of_the_lanes():
    with pytest.raises(Divergence) as caught:
        run(changed("s[h][j] = simd_sum(dot[h])", "s[h][j] = lane < 30 ? simd_sum(dot[h]) : dot[h]"), one_decode())
    assert (caught.value.simdgroup, caught.value.lane) == (0, 30)


def test_a_lane_that_leaves_early():
    with pytest.raises(Divergence) as caught:
        run(changed("if (context == 0) return;", "if (context == 0 || lane == 31) return;"), one_prompt())
    assert (caught.value.simdgroup, caught.value.lane) == (0, 31)


def test_a_mask_dropped_is_no_stray_read_but_a_wrong_answer():
    """What the simulator cannot see, the oracle does: a tile past the end repeats its last key."""
    case = one_decode()
    output = run(changed("if (tile + j >= end) s[h][j] = -INFINITY;", ""), case)
    assert case.share_of_bound(output).max() > 1
    case.check(run(files(), case))


@pytest.mark.parametrize("features", [{}, {"sliding_window": 5, "sinks": True}, {"softcap": 2.0, "alibi": True}])
@pytest.mark.parametrize("num_queries", [None, [3, 1, 40, 9]])
def test_the_healthy_kernels_raise_nothing(features, num_queries):
    case = paged_case(
        context_lens=[3, 0 if num_queries is None else 1, 40, 300], num_queries=num_queries, block_size=9, head_dim=96,
        num_q_heads=6, num_kv_heads=2, **features,
    )  # fmt: skip
    case.check(case.attend("simulator"))


def test_unchecked_tables_are_caught_where_they_lead():
    case = paged_case(context_lens=[20, 20], block_size=8, num_q_heads=1, num_kv_heads=1)
    tables = np.array(case.block_tables)
    tables[1, 2] = 1000
    with pytest.raises(StrayAccess) as caught:
        trace(**{**case.arguments, "block_tables": mx.array(tables)}, check=False)
    found = caught.value
    assert (found.buffer, found.index, found.threadgroup) == ("k_pool", 1000 * 8 * 64, 1)
