"""The text that Apple's compiler would get is compiled here, run here, and held to Metal's rules and limits.

Two things alone change in it: `[[...]]` attributes are dropped, and THREADGROUP_ARRAY, which the text itself provides
for, is given another meaning. The strict build takes everything else as Metal would. A host that has but one address
space, where two pointers that differ in Metal are one type, also takes what the text offers it instead (HOST_VECTORS,
UNROLL).
"""

import ctypes
import re
import shutil
import subprocess
from functools import cache
from itertools import product

import mlx.core as mx
import pytest

from paged_core import PoolLayout
from paged_core.attention import checked_call
from paged_core.cases import paged_case
from paged_core.executors import host, launch, metal, native, simulator
from paged_core.executors.cpp import translation_unit
from paged_core.executors.launch import ARGUMENTS, GPU, Specialisation, argument_dtype, launches
from paged_core.executors.source import kernel_source, kernels_folder
from tests.metal_text import (
    DTYPES,
    HEAD_DIMS,
    empty_call,
    every_specialisation,
    every_text,
    generated_for,
    without_attributes,
)

INCLUDES = (f"-I{kernels_folder() / 'host'}", f"-I{kernels_folder().parent / 'tests'}")
STRICT = (
    "-std=c++14",
    "-pedantic-errors",
    "-Wall",
    "-Wextra",
    "-Wdouble-promotion",
    "-Wno-unused-parameter",
    "-Werror",
)
LOOSE = ("-std=c++17", "-Werror=narrowing")  # g++ only warns of what C++, and Metal, refuse in braces


@cache
def texts() -> dict[str, str]:
    return every_text()


@cache
def a_text_of_each_kernel() -> dict[str, str]:
    """For half, whose implicit conversions are the fewest, and 2 sequences, whose lengths come as `constant`."""
    some = [empty_call(mx.float16, PoolLayout.X_SPLIT, 80, 4, 2, max_blocks) for max_blocks in (3, 1_000)]
    some.append(empty_call(mx.float16, PoolLayout.X_SPLIT, 80, 4, 2, 3, prompt=True))
    return generated_for(GPU, *some)


@cache
def strict_compiler() -> str | None:
    """A clang that has _Float16 and __bf16."""
    for name in ("clang++-19", "clang++-20", "clang++-21", "clang++"):
        probe = [name, "-fsyntax-only", "-x", "c++", "-"]
        if (
            shutil.which(name)
            and not subprocess.run(
                probe, input="_Float16 a; __bf16 b;", text=True, capture_output=True, check=False
            ).returncode
        ):
            return name
    return None


def complaints(header: str, some: dict[str, str]) -> str:
    """What a compiler says of MLX's texts, behind one of "strict.h" and "native.h": nothing when all is well."""
    compiler = [strict_compiler(), *STRICT] if header == "strict.h" else [host.compiler().path, *LOOSE]
    shared = kernel_source().header
    if planted := [text for text in some.values() if not text.startswith(shared)]:  # their shared part differs
        units = [without_attributes(text) for text in planted]
    else:
        units = ["\n".join((shared, *(without_attributes(text.removeprefix(shared)) for text in some.values())))]
    said = ""
    for unit in units:
        source = f'#include "{header}"\nnamespace msl {{\n{unit}\n}}\n'
        command = [*compiler, "-fsyntax-only", *INCLUDES, "-x", "c++", "-"]
        answer = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
        said += answer.stderr if answer.returncode else ""
    return said


@pytest.fixture(params=["native.h", "strict.h"])
def header(request) -> str:
    if request.param == "strict.h" and strict_compiler() is None:
        pytest.skip("no clang++ with _Float16 and __bf16 on PATH (clang++-19 has both)")
    if request.param == "native.h" and (reason := host.why_not()):
        pytest.skip(reason)
    return request.param


def test_every_metal_kernel_text_compiles(header):
    assert complaints(header, texts()) == ""


def test_metal_texts_cover_every_kernel_dtype_layout_and_head_dim():
    covered = {(s.kernel, s.dtype, dict(s.constants).get("LAYOUT"), dict(s.constants)["HEAD_DIM"]) for s in
               every_specialisation()}  # fmt: skip
    reads_pool = set(ARGUMENTS) - {"paged_merge"}
    assert covered == {
        *product(reads_pool, DTYPES, range(4), HEAD_DIMS),
        *product(["paged_merge"], DTYPES, [None], HEAD_DIMS),
    }
    # A function for each, and some twice: with inputs large and small.
    assert len(texts()) > len(every_specialisation()) > 600


def test_metal_text_is_the_kernels_files_and_a_signature():
    """MLX's text is our header, its signature, our body, its instantiation; and no letter else."""
    kernels = kernel_source()
    for name, text in texts().items():
        kernel = next(
            k for k in sorted(kernels.bodies, key=len, reverse=True) if name.startswith(f"custom_kernel_{k}_")
        )
        before, body, after = text.removeprefix(kernels.header).partition(kernels.bodies[kernel].text)
        assert text.startswith(kernels.header) and body
        inputs, outputs = ARGUMENTS[kernel]
        assert re.findall(r"(\w+) \[\[buffer\((\d+)\)]]", before) == [
            (argument, str(i)) for i, argument in enumerate((*inputs, *outputs))
        ]
        assert re.fullmatch(r"\s*template <[^>]*>\s*\[\[kernel]] void \w+\([^{}]*\) \{\n", before)
        assert re.fullmatch(
            r'\s*}\s*template \[\[host_name\("(\w+)"\)]] \[\[kernel]] decltype\(\1<.*>\) \1<.*>;\s*', after
        )


def test_metal_text_types_each_argument_as_the_launch_says():
    metal_names = {mx.float32: "float", mx.float16: "float16_t", mx.bfloat16: "bfloat16_t", mx.int32: "int32_t"}
    for dtype in DTYPES:
        for name, text in generated_for(GPU, empty_call(dtype, PoolLayout.NHD, 64, 8, 9, 3)).items():
            inputs, outputs = ARGUMENTS["paged_decode"]
            for argument in (*inputs, *outputs):
                space = "constant" if argument == "scalars" else "device"
                const = "" if argument in outputs else "const "
                declared = f"{const}{space} {metal_names[argument_dtype(argument, dtype)]}* {argument} [[buffer("
                assert declared in text, f"{name}: {declared}"


def test_metal_kernel_gets_a_stand_in_for_an_input_without_elements():
    """MLX would type it `constant`, as it does every small one, and a pool's pointer is `device`."""
    (text,) = generated_for(GPU, empty_call(mx.float16, PoolLayout.HND, 64, 8, 9, max_blocks=0)).values()
    assert "const device int32_t* block_tables [[buffer(" in text


def test_metal_call_without_queries_launches_nothing():
    call = empty_call(mx.float16, PoolLayout.HND, 64, 8, 0, max_blocks=3)
    assert generated_for(GPU, call) == {}
    output = metal.run(call)
    assert (output.shape, output.dtype) == ((0, 16, 64), mx.float16)


def test_metal_text_that_uses_a_name_twice_says_the_same_twice():
    """MLX remembers compiled kernels by name: an edited kernel must have another."""
    kernels = kernel_source()
    kernel, part = next(iter(kernels.bodies.items()))
    edited = kernels._replace(bodies={**kernels.bodies, kernel: part._replace(text=part.text + "// edited\n")})
    assert edited.digest != kernels.digest
    assert all(kernels.digest in name for name in texts())


# ------------------------------------------------------------------------------------------------- what Metal has not


def code_of(text: str) -> str:
    return re.sub(r"//.*", "", text)


def kernel_code() -> str:
    kernels = kernel_source()
    return code_of("\n".join((kernels.header, *(part.text for part in kernels.bodies.values()))))


def test_metal_kernels_use_nothing_that_metal_has_not():
    absent = r"virtual|new|delete|goto|double|std|try|catch|throw|dynamic_cast|typeid|thread_local|long\s+long|asm"
    assert re.findall(rf"\b(?:{absent})\b|\[[=&]?]\s*\(|#\s*include", kernel_code()) == []
    assert "[[" not in kernel_code()  # attributes are MLX's alone, so that dropping them drops nothing of ours


def test_metal_kernels_keep_static_members_in_constant_memory():
    statics = re.findall(r"\bstatic\b.*", kernel_code())
    assert statics and all(re.match(r"static constexpr constant ", line) for line in statics)


def test_metal_kernels_declare_threadgroup_memory_in_bodies_alone():
    shared = code_of(kernel_source().header)
    assert shared.count("THREADGROUP_ARRAY") == 2  # whether it is defined; what it means on Metal
    for part in kernel_source().bodies.values():
        assert not re.search(r"\bthreadgroup\b", code_of(part.text))


def test_metal_kernels_say_what_every_function_is():
    """A function that is not METAL_FUNC is a host's on CUDA, and may stay a call on Metal."""
    functions = re.findall(r"^(?!#|template|struct|enum|\s|//|})(.*?)\w+\(", kernel_source().header, re.MULTILINE)
    members = re.findall(
        r"^  (?!for|if|else|return|const )(.*?) \w+\([^;]*\) const \{", kernel_source().header, re.MULTILINE
    )
    assert len(functions) >= 6 and len(members) >= 8
    assert all(prefix.startswith("METAL_FUNC ") for prefix in (*functions, *members))


# --------------------------------------------------------------------------------------------- what a threadgroup has


def declared_bytes(specialisation: Specialisation) -> int:
    """Threadgroup memory, read off the kernel's own declarations."""
    itemsize = {"float": 4, "long": 8, "int": 4, "half": 2, "T": specialisation.dtype.size}
    body = kernel_source().bodies[specialisation.kernel].text
    arrays = re.findall(r"^THREADGROUP_ARRAY\((\w+), \w+, (.+)\);$", body, re.MULTILINE)
    assert len(arrays) == body.count("THREADGROUP_ARRAY")
    return sum(itemsize[kind] * eval(size, {}, dict(specialisation.constants)) for kind, size in arrays)


def test_every_metal_kernel_fits_a_threadgroup():
    largest = 0
    for specialisation in every_specialisation():
        assert specialisation.threadgroup_bytes == declared_bytes(specialisation), specialisation
        assert specialisation.threadgroup_bytes <= 32_768, specialisation
        assert specialisation.threads <= 1_024, specialisation
        largest = max(largest, specialisation.threadgroup_bytes)
    assert largest > 20_000  # the limit is near enough to matter


def test_a_metal_kernel_that_asks_for_too_much_is_refused():
    wide = GPU._replace(decode_simdgroups=64)
    with pytest.raises(ValueError, match="2048 threads; an Apple GPU gives 32768 and 1024"):
        launch.decode_kernels(wide, mx.float16, 0, 64, 1)
    hoarding = GPU._replace(q_tile_bytes=1 << 20)
    with pytest.raises(ValueError, match="bytes of threadgroup memory"):
        launch.prompt_kernel(hoarding, mx.float16, 0, 512)


# -------------------------------------------------------------------------------------------------- planted mistakes

EVERYWHERE = [
    ("an argument forgotten", "first_head, 0, simdgroup", "first_head, simdgroup"),
    ("a name misspelt", "normaliser(top[r]", "normalizer(top[r]"),
    ("a template argument too few", "HEADS, LANES, SIMDGROUPS, KEYS>(", "HEADS, LANES, KEYS>("),
    ("a narrowing in braces", "RowTile rows{first_query,", "RowTile rows{long(first_query),"),
    ("a pointer for a number", "float(v[pool.v_dim(dim)])", "float(v + pool.v_dim(dim))"),
    ("a write to an input", "out[at] = T(0.0f)", "q[at] = T(0.0f)"),
]
IN_METAL = [
    ("a device pointer taken for a thread's", "const device T* v = v_pool", "const T* v = v_pool"),
    ("a threadgroup pointer taken for device's", "threadgroup float* acc_all", "device float* acc_all"),
    ("a device pointer taken for threadgroup's", "const threadgroup long* v_at, Pool", "const device long* v_at, Pool"),
    ("a thread pointer taken for threadgroup's", "thread float (*acc)[DIMS]", "threadgroup float (*acc)[DIMS]"),
    ("a small input taken for device's", "Lens context_lens", "const device int* context_lens"),
    ("a thread's array where a threadgroup's must be", "THREADGROUP_ARRAY(float, top, SIMDGROUPS * HEADS)",
     "float top[SIMDGROUPS * HEADS]"),
]  # fmt: skip


def plant(old: str, new: str) -> dict[str, str]:
    """The texts that have `old`, with `new` in its place."""
    planted = {name: text.replace(old, new) for name, text in a_text_of_each_kernel().items() if old in text}
    assert planted, f"the kernels no longer say {old!r}: plant this mistake elsewhere"
    return planted


@pytest.mark.parametrize(("mistake", "old", "new"), EVERYWHERE, ids=[mistake for mistake, _, _ in EVERYWHERE])
def test_a_mistake_in_a_metal_kernel_does_not_compile(header, mistake, old, new):
    assert "error:" in complaints(header, plant(old, new))


@pytest.mark.parametrize(("mistake", "old", "new"), IN_METAL, ids=[mistake for mistake, _, _ in IN_METAL])
def test_what_metal_alone_forbids_does_not_compile_strictly(mistake, old, new):
    if strict_compiler() is None:
        pytest.skip("no clang++ with _Float16 and __bf16 on PATH (clang++-19 has both)")
    assert complaints("strict.h", a_text_of_each_kernel()) == ""
    assert "error:" in complaints("strict.h", plant(old, new))


# --------------------------------------------------------------------------------------------------------- run, too


def unit_of(text: str, header: str) -> str:
    """C++ of MLX's text: as an executor's own, but that MLX wrote the signature."""
    signature = re.search(r"\[\[kernel]] void (\w+)\((.*?)\) \{", text, re.DOTALL)
    instance = re.search(r"\) (\w+<[^;]*>);", text[signature.end() :])[1]
    arguments, buffers = [], 0
    for parameter in signature[2].split(",\n"):
        declared, attribute = re.fullmatch(r"\s*(.*?) \[\[(.*)]]", parameter).groups()
        if attribute.startswith("buffer"):
            pointer = declared.rsplit(" ", 1)[0]
            arguments.append(f"({pointer})buffers[{buffers}]")
            buffers += 1
        else:
            arguments.append(attribute)
    return f"""#include "{header}"
namespace msl {{
{without_attributes(text)}
inline void kernel_function(void* const* buffers, uint3 threadgroup_position_in_grid,
                            uint simdgroup_index_in_threadgroup, uint thread_index_in_simdgroup) {{
  {instance}({", ".join(arguments)});
}}
}}
PAGED_ENTRY(msl::kernel_function)
"""


RUN = [
    {"dtype": "float32", "layout": PoolLayout.NHD, "context_lens": [0, 1, 17, 60], "sinks": True, "alibi": True},
    {"dtype": "bfloat16", "layout": PoolLayout.X_SPLIT, "context_lens": [700, 0], "softcap": 3.0},
    {"dtype": "float16", "context_lens": [30, 5, 0], "num_queries": [30, 2, 1], "sliding_window": 9},
]


@pytest.mark.parametrize("options", RUN, ids=["decode", "split decode", "prompt"])
def test_metal_text_run_on_the_host_gives_the_native_executors_bits(options, monkeypatch):
    if reason := host.why_not():
        pytest.skip(reason)
    case = paged_case(head_dim=80, **options)
    case.check(case.attend(executor="native"))
    todo = [step.specialisation for step in launches(checked_call(**case.arguments), native.machine())]
    made = generated_for(native.machine(), checked_call(**case.arguments)).values()
    ours = {s: translation_unit(s, kernel_source(), "native.h") for s in todo}
    mlxs = {s: unit_of(text, "native.h") for s, text in zip(todo, made, strict=True)}
    outputs = []
    for units in (ours, mlxs):
        # Sums in the order in which they stand there: the compiler may not choose one for each text.
        functions = {
            s: host.library(s.label, unit, ("-O2", "-ffp-contract=off")).paged_launch for s, unit in units.items()
        }
        for function in functions.values():
            function.restype, function.argtypes = None, [ctypes.c_void_p] * 3 + [ctypes.c_int32]
        monkeypatch.setattr(native, "_compiled", functions.__getitem__)
        outputs.append(case.attend(executor="native"))
        case.check(outputs[-1])
    assert mx.array_equal(*(output.view(mx.uint8) for output in outputs)).item()


@pytest.mark.parametrize("options", RUN, ids=["decode", "split decode", "prompt"])
def test_metal_text_run_lane_by_lane_gives_the_simulators_bits(options, monkeypatch):
    """The very text of an Apple GPU's launch, with its 32 lanes."""
    if reason := simulator.why_not():
        pytest.skip(reason)
    case = paged_case(head_dim=80, **options)
    call = checked_call(**case.arguments)
    expected = simulator.simulate(call).output
    case.check(expected)
    todo = [step.specialisation for step in launches(call, GPU)]
    made = dict(zip(todo, generated_for(GPU, call).values(), strict=True))
    assert all(dict(s.constants)["LANES"] == 32 for s in todo)
    ran = []

    def mlxs(specialisation: Specialisation, _, header: str) -> str:
        ran.append(specialisation)
        return unit_of(made[specialisation], header)

    monkeypatch.setattr(simulator, "translation_unit", mlxs)
    output = simulator.simulate(call, kernel_source()).output  # given kernels, it does not take the ones it has made
    assert ran == todo
    assert mx.array_equal(output.view(mx.uint8), expected.view(mx.uint8)).item()
