"""Edited kernels run in a process of their own: right answers, errors at the text's own line, and nothing hangs."""

import re
import time

import mlx.core as mx
import numpy as np
import pytest

from paged_core import ExecutorUnavailable, InvalidBlockTable, KernelError, trace
from paged_core.cases import paged_case
from paged_core.errors import DataRace, StrayAccess
from paged_core.executors import host
from paged_core.executors.edited import run_edited
from paged_core.executors.source import files, kernels_folder

from .cases import DTYPES

EXECUTORS = ("simulator", "native")


def changed(old: str, new: str) -> dict[str, str]:
    """The kernels with one piece of attention.metal replaced; there must be one."""
    texts = files()
    assert old in texts["attention.metal"]
    texts["attention.metal"] = texts["attention.metal"].replace(old, new, 1)
    return texts


def line_of(piece: str) -> int:
    """Where `piece` first stands in attention.metal."""
    text = files()["attention.metal"]
    return text[: text.index(piece)].count("\n") + 1


CONTEXT = "  const int context = context_lens[seq];\n"


def small_case(**options):
    return paged_case(**{"context_lens": [5, 0, 20], "head_dim": 64, **options})


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unchanged_text_gives_the_right_answer(executor, dtype):
    case = small_case(dtype=dtype, alibi=True, sinks=True, sliding_window=7)
    case.check(run_edited(files(), **case.arguments, executor=executor))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_prompt_and_a_split_decode(executor):
    for case in (small_case(context_lens=[20, 9], num_queries=[20, 2]), small_case(context_lens=[700])):
        case.check(run_edited(files(), **case.arguments, executor=executor))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_edited_is_what_runs(executor):
    case = small_case()
    twice = changed("T(acc[h * HEAD_DIM + dim] * factor)", "T(acc[h * HEAD_DIM + dim] * factor * 2.0f)")
    options = case.arguments
    arrays = [options.pop(name) for name in ("q", "k_pool", "v_pool", "block_tables", "context_lens")]
    output = run_edited(twice, *arrays, **options, executor=executor)
    assert mx.allclose(output, 2 * case.attend("ops"), atol=1e-5)
    case.check(case.attend(executor))  # and the package's own kernels are what they were


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_sum_may_be_written_as_a_butterfly(executor):
    butterfly = "for (int mask = LANES / 2; mask > 0; mask /= 2) dot[h] += simd_shuffle_xor(dot[h], mask);"
    edited = changed("s[h][j] = simd_sum(dot[h]);", f"{{ {butterfly} s[h][j] = dot[h]; }}")
    case = small_case()
    case.check(run_edited(edited, **case.arguments, executor=executor))


def test_a_trace_comes_back_whole():
    case = small_case(dtype="bfloat16")
    there, here = run_edited(files(), **case.arguments, trace=True), trace(**case.arguments)
    assert mx.array_equal(there.output, here.output) and there.output.dtype == mx.bfloat16
    assert there.launches == here.launches and there.buffers == here.buffers
    assert np.array_equal(there.records, here.records) and np.array_equal(there.lines, here.lines)


def test_a_finding_comes_back_with_its_attributes():
    case = small_case(num_q_heads=1, num_kv_heads=1)
    edited = changed("threadgroup_barrier(mem_flags::mem_threadgroup);\n  float group_total", "float group_total")
    with pytest.raises(DataRace, match=r"top\[") as caught:
        run_edited(edited, **case.arguments)
    assert (caught.value.kernel, caught.value.buffer, caught.value.threadgroup) == ("paged_decode", "top", 0)
    assert caught.value.line.startswith("attention.metal:")


def test_the_line_of_a_finding_is_a_line_of_the_edited_text():
    edited = changed(CONTEXT, "\n\n\n" + CONTEXT + "  volatile float nobodys = float(q[1 << 20]);\n")
    with pytest.raises(StrayAccess) as caught:
        run_edited(edited, **small_case().arguments)
    assert (caught.value.buffer, caught.value.index) == ("q", 1 << 20)
    assert caught.value.line == f"attention.metal:{line_of(CONTEXT) + 4}"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_compiler_error_shows_the_edited_line(executor):
    edited = changed(CONTEXT, CONTEXT.replace("context_lens", "no_such_lens"))
    with pytest.raises(KernelError) as caught:
        run_edited(edited, **small_case().arguments, executor=executor)
    message, text = str(caught.value).splitlines()
    assert message.startswith(f"attention.metal:{line_of(CONTEXT)}: error: ") and "no_such_lens" in message
    assert text == "    const int context = no_such_lens[seq];"


def test_many_errors_are_counted():
    edited = changed(CONTEXT, "".join(f"  wrong_{i}();\n" for i in range(9)) + CONTEXT)
    with pytest.raises(KernelError) as caught:
        run_edited(edited, **small_case().arguments)
    assert [f"wrong_{i}" in str(caught.value) for i in range(9)] == [True] * 3 + [False] * 6
    assert str(caught.value).endswith("and 6 more")


def test_a_kernel_that_is_not_there():
    with pytest.raises(KernelError, match="no `//// kernel paged_decode`; it has paged_decode_partial"):
        run_edited(changed("//// kernel paged_decode\n", ""), **small_case().arguments)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_endless_loop_ends_with_a_sentence(executor):
    edited = changed(CONTEXT, CONTEXT + "  for (volatile int i = 0;; i = 0) {}\n")
    start = time.monotonic()
    with pytest.raises(KernelError, match="did not end within 1 s"):
        run_edited(edited, **small_case().arguments, executor=executor, timeout=1)
    assert time.monotonic() - start < 30


def test_a_crash_ends_with_a_sentence():
    edited = changed(CONTEXT, CONTEXT + "  *(volatile int*)8 = 0;\n")
    with pytest.raises(KernelError, match=r"crashed \(SIGSEGV\)"):
        run_edited(edited, **small_case().arguments, executor="native")


def test_an_overrun_stack_ends_with_a_sentence():
    edited = changed(CONTEXT, CONTEXT + "  volatile float large[1 << 20]; large[lane] = 1.0f;\n")
    with pytest.raises(KernelError, match="crashed"):
        run_edited(edited, **small_case().arguments, executor="simulator")


def test_the_example_of_the_kernels_readme():
    text = (kernels_folder() / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    with pytest.raises(AssertionError, match="out of bounds"):
        exec(example, {})


def test_what_it_refuses(monkeypatch):
    case = small_case()
    with pytest.raises(ValueError, match='executor: expected "simulator" or "native", got \'ops\''):
        run_edited(files(), **case.arguments, executor="ops")
    with pytest.raises(ValueError, match="trace: only the simulator"):
        run_edited(files(), **case.arguments, executor="native", trace=True)
    with pytest.raises(ValueError, match="kernel paged_merge stands there twice"):
        run_edited({"a.metal": "//// kernel paged_merge\n//// kernel paged_merge\n"}, **case.arguments)
    with pytest.raises(InvalidBlockTable):
        run_edited(files(), **{**case.arguments, "block_tables": mx.full(case.block_tables.shape, 999, mx.int32)})
    monkeypatch.setattr(host, "compiler", lambda: None)
    with pytest.raises(ExecutorUnavailable, match="native cannot run here"):
        run_edited(files(), **case.arguments, executor="native")
