"""The native executor: the host's half and bfloat and exp, the compile cache, and that nothing leaks out of a call."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from paged_core import ExecutorUnavailable, PoolLayout
from paged_core.errors import KernelError
from paged_core.executors import host, native
from tests.cases import paged_case, to_numpy

REPOSITORY = Path(__file__).parents[1]

CONVERSIONS = """
#include "common.h"
extern "C" void halves_to_floats(const uint16_t* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = float(((const msl::half*)in)[i]);
}
extern "C" void floats_to_halves(const float* in, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) ((msl::half*)out)[i] = msl::half(in[i]);
}
extern "C" void bfloats_to_floats(const uint16_t* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = float(((const msl::bfloat*)in)[i]);
}
extern "C" void floats_to_bfloats(const float* in, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) ((msl::bfloat*)out)[i] = msl::bfloat(in[i]);
}
extern "C" void exps(const float* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = msl::exp(in[i]);
}
"""


@pytest.fixture(scope="module")
def conversions():
    return host.library("conversions", CONVERSIONS, host.optimised())


def convert(function, values: np.ndarray, out_dtype) -> np.ndarray:
    out = np.empty(values.size, out_dtype)
    function(ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(values.size))
    return out


ALL_16_BITS = np.arange(1 << 16, dtype=np.uint16)


def test_every_half_becomes_the_float_it_is(conversions):
    ours = convert(conversions.halves_to_floats, ALL_16_BITS, np.float32)
    np.testing.assert_array_equal(ours, ALL_16_BITS.view(np.float16).astype(np.float32))  # NaN equals NaN here
    assert np.signbit(ours[0x8000]), "minus zero keeps its sign"


def test_every_bfloat_becomes_the_float_it_is(conversions):
    ours = convert(conversions.bfloats_to_floats, ALL_16_BITS, np.float32)
    np.testing.assert_array_equal(ours, (ALL_16_BITS.astype(np.uint32) << 16).view(np.float32))


def some_floats() -> np.ndarray:
    """Floats of every exponent, ties between two halves and between two bfloats, and the special ones."""
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    half_ties = ALL_16_BITS.view(np.float16).astype(np.float32).view(np.uint32) | np.uint32(0x1000)
    bfloat_ties = ALL_16_BITS.astype(np.uint32) << 16 | np.uint32(0x8000)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 3.4e38, 2.0**-24, 2.0**-25], np.float32)
    return np.concatenate([anything, half_ties.view(np.float32), bfloat_ties.view(np.float32), special])


@pytest.mark.parametrize(("function", "dtype"), [("floats_to_halves", mx.float16), ("floats_to_bfloats", mx.bfloat16)])
def test_floats_are_rounded_as_mlx_rounds_them(conversions, function, dtype):
    values = some_floats()
    ours = mx.array(convert(getattr(conversions, function), values, np.uint16)).view(dtype)
    theirs = mx.array(values).astype(dtype)
    np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


def test_exp_is_right_to_two_units_in_the_last_place(conversions):
    x = np.concatenate([np.linspace(-110, 90, 400_001), [0.0, -np.inf, np.inf, np.nan]]).astype(np.float32)
    ours = convert(conversions.exps, x, np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        exact = np.exp(x.astype(np.float64))
        expected = exact.astype(np.float32)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(ours[~finite], expected[~finite])
    spacing = np.spacing(np.maximum(expected[finite], np.float32(2.0**-149)))
    assert (np.abs(ours[finite] - exact[finite]) <= 2 * spacing).all()
    assert (ours[x == 0] == 1.0).all()


def test_subnormals_survive_loading_a_kernel():
    """-ffast-math would make the thread that loads the library flush them to zero, everybody's float64 included."""
    case = paged_case(context_lens=[5])
    case.attend(executor="native")
    assert np.float64(5e-324) * np.float64(1.0) > 0
    assert np.float32(1e-45) * np.float32(1.0) > 0


def test_views_with_strides_are_read_as_the_numbers_they_show():
    case = paged_case(context_lens=[30, 7], num_q_heads=4, num_kv_heads=2)
    expected = to_numpy(case.attend(executor="native"))
    transposed = mx.contiguous(case.q.transpose(2, 1, 0)).transpose(2, 1, 0)  # the same q, strides the other way round
    wider = mx.concatenate([case.block_tables, case.block_tables], axis=1)
    narrow = wider[:, : case.block_tables.shape[1]]
    doubled = mx.stack([case.context_lens, case.context_lens], axis=1)[:, 0]
    lazy = case.q + 0
    for changed in ({"q": transposed}, {"block_tables": narrow}, {"context_lens": doubled}, {"q": lazy}):
        np.testing.assert_array_equal(to_numpy(case.attend(executor="native", **changed)), expected)


def test_a_slice_of_an_array_is_read_from_where_it_begins():
    case = paged_case(context_lens=[30, 7])
    padded = mx.concatenate([mx.zeros_like(case.q), case.q])
    mx.eval(padded)
    sliced = padded[case.q.shape[0] :]
    np.testing.assert_array_equal(
        to_numpy(case.attend(executor="native", q=sliced)), to_numpy(case.attend(executor="native"))
    )


@pytest.mark.parametrize("num_queries", [None, [40, 0, 3]], ids=["decode", "prompts"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_same_bits_every_time_and_with_any_number_of_threads(monkeypatch, dtype, num_queries):
    case = paged_case(dtype=dtype, context_lens=[1000, 0, 77], num_queries=num_queries)
    first = case.attend(executor="native")
    for threads in (1, 2, 5):
        monkeypatch.setattr(native, "num_threads", lambda threads=threads: threads)
        assert mx.array_equal(case.attend(executor="native"), first)


def test_calls_from_several_python_threads_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    cases = [paged_case(context_lens=[length, 3], seed=length) for length in (2000, 1500, 900, 20)]
    mx.eval([case.q for case in cases])
    expected = [to_numpy(case.attend(executor="native")) for case in cases]
    arguments = [{**case.arguments, "executor": "native"} for case in cases]

    def attend(i: int) -> bool:
        from paged_core.attention import checked_call

        named = {name: value for name, value in arguments[i].items() if name != "executor"}
        return np.array_equal(to_numpy(native.run(checked_call(**named, check=False))), expected[i])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(attend, [0, 1, 2, 3] * 10))


# ------------------------------------------------------------------------------------------------- the compile cache


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder for this test, and for the processes that it starts."""
    monkeypatch.setenv(host.CACHE_VARIABLE, str(tmp_path / "cache"))
    host.cache_folder.cache_clear()
    yield tmp_path / "cache"
    host.cache_folder.cache_clear()


ANSWER = 'extern "C" int answer() { return %d; }'


def test_what_was_compiled_once_is_found_again(cache):
    assert host.library("answer", ANSWER % 42, ()).answer() == 42
    (entry,) = cache.iterdir()
    made = entry.stat().st_mtime_ns
    assert host.library("answer", ANSWER % 42, ()).answer() == 42
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [made]


def test_another_source_or_other_flags_are_another_entry(cache):
    assert host.library("answer", ANSWER % 42, ()).answer() == 42
    assert host.library("answer", ANSWER % 43, ()).answer() == 43
    host.library("answer", ANSWER % 42, ("-O2",))
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_entry_is_rebuilt_and_never_loaded(cache, damage):
    host.library("answer", ANSWER % 7, ())
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.unlink()  # the library is loaded: change a new file, not the pages of the one in use
    spoiled = {"truncated": whole[: len(whole) // 2], "altered": whole[:-9] + b"elsewhere", "empty": b""}[damage]
    entry.write_bytes(spoiled)
    code = f"from paged_core.executors import host; print(host.library('answer', {ANSWER % 7!r}, ()).answer())"
    assert python(code) == "7"
    assert [path.read_bytes() == spoiled for path in cache.iterdir()] == [False]


def test_processes_that_compile_at_once_all_get_a_whole_library(cache):
    code = (
        "from paged_core.cases import paged_case; case = paged_case(context_lens=[9, 40]);"
        "case.check(case.attend(executor='native')); print('within the bound')"
    )
    running = [start_python(code) for _ in range(3)]
    assert [process.communicate(timeout=120)[0].strip() for process in running] == ["within the bound"] * 3
    assert not [path for path in cache.iterdir() if path.is_dir()], "no working folder is left behind"


def test_a_cache_folder_that_cannot_be_written_is_replaced_by_a_temporary_one(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(host.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    host.cache_folder.cache_clear()
    assert host.library("answer", ANSWER % 3, ()).answer() == 3


def test_a_compiler_error_shows_the_compilers_words():
    with pytest.raises(KernelError, match="not_declared"):
        host.library("broken", 'extern "C" int answer() { return not_declared; }', ())


@pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
def test_any_of_the_usual_compilers_will_do(tmp_path, monkeypatch, name):
    """PATH holds that compiler alone, and what it needs: a link to the real one under that name."""
    real = host.compiler().path
    (tmp_path / name).symlink_to(real)
    found = python("from paged_core.executors import host; print(host.compiler().path)", PATH=str(tmp_path), CXX="")
    assert found == str(tmp_path / name)


@pytest.mark.parametrize("name", ["g++", "clang++", "clang++-19"])
def test_each_compiler_on_this_machine_gives_answers_within_the_bound(cache, name):
    """Prompts above all: their vectors live in arrays on the stack, which one compiler aligns and another does not."""
    if shutil.which(name) is None:
        pytest.skip(f"no {name} on PATH")
    code = """
from paged_core import PoolLayout
from paged_core.cases import paged_case
for dtype, layout in (("float32", PoolLayout.HND), ("float16", PoolLayout.NHD), ("bfloat16", PoolLayout.X_SPLIT)):
    for num_queries in ([1, 15, 3, 17, 40], None):
        case = paged_case(context_lens=[1, 15, 16, 17, 130], num_queries=num_queries, dtype=dtype, layout=layout)
        for _ in range(3):
            case.check(case.attend(executor="native"))
print("within the bound")
"""
    assert python(code, CXX=name) == "within the bound"


def test_cxx_wins(tmp_path):
    mine = tmp_path / "my-compiler"
    mine.symlink_to(host.compiler().path)
    assert python("from paged_core.executors import host; print(host.compiler().path)", CXX=str(mine)) == str(mine)


def test_a_cxx_that_is_none_is_named():
    code = "import paged_core; paged_core.executors.choose('native')"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(CXX="no-such-compiler")
    )
    assert "ExecutorUnavailable" in answer.stderr and "no-such-compiler" in answer.stderr


def test_without_a_compiler_auto_is_ops_and_says_so_once(tmp_path):
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "from paged_core.cases import paged_case\n"
        "case = paged_case(context_lens=[3])\n"
        "for _ in range(3): case.check(case.attend(executor='auto'))\n"
        "from paged_core import available_executors; print(available_executors())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(PATH=str(tmp_path), CXX="")
    )
    assert answer.stdout.strip() == "['ops']", answer.stderr
    assert answer.stderr.count("no C++ compiler on PATH") == 1


def test_native_without_a_compiler_says_what_was_looked_for(monkeypatch):
    monkeypatch.setattr(host, "compiler", lambda: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ExecutorUnavailable, match=r"c\+\+, g\+\+, clang\+\+"):
        paged_case(context_lens=[3], layout=PoolLayout.NHD).attend(executor="native")


def environment(**changed: str) -> dict[str, str]:
    known = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    known.pop("PAGED_CORE_EXECUTOR", None)
    return {name: value for name, value in {**known, **changed}.items() if value or name not in changed}


def start_python(code: str, **changed: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment(**changed))


def python(code: str, **changed: str) -> str:
    process = start_python(code, **changed)
    answer = process.communicate(timeout=120)[0].strip()
    assert process.returncode == 0
    return answer
