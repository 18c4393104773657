"""The kernels as CUDA: every specialisation compiles for an NVIDIA GPU, though none is needed to see it."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest

from paged_core import ExecutorUnavailable, available_executors
from paged_core.cases import paged_case
from paged_core.executors import cuda
from paged_core.executors.launch import ARGUMENTS, Specialisation, argument_dtype
from paged_core.executors.source import kernel_source, kernels_folder
from tests.metal_text import every_specialisation

CUDA_NAMES = {mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.int32: "int32_t"}
NVCC_INCLUDES = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#include <cooperative_groups.h>\n"
NVCC = ["nvcc", "-arch=sm_80", "-ptx", "-o", "/dev/null", "-x", "cu"]
CLANG = [
    "clang++-19", "-x", "cuda", "-nocudainc", "-nocudalib", "--cuda-device-only", "--cuda-gpu-arch=sm_80",
    "-fsyntax-only", "-Wno-unknown-cuda-version", "-Wno-pass-failed",
]  # fmt: skip


def cuda_function(specialisation: Specialisation) -> str:
    """A __global__ function as MLX writes it around a kernel's body. (MLX itself does so only where CUDA is.)"""
    kernel, dtype, constants = specialisation
    inputs, outputs = ARGUMENTS[kernel]
    pointers = [f"const {CUDA_NAMES[argument_dtype(name, dtype)]}* {name}" for name in inputs]
    pointers += [f"{CUDA_NAMES[argument_dtype(name, dtype)]}* {name}" for name in outputs]
    known = [f"using T = {CUDA_NAMES[dtype]};", *(f"constexpr int {name} = {value};" for name, value in constants)]
    body = kernel_source().bodies[kernel].text
    return "\n".join((f"__global__ void {specialisation.label}({', '.join(pointers)}) {{", *known, body, "}\n"))


def cuda_text(specialisations: tuple[Specialisation, ...]) -> str:
    functions = "\n".join(map(cuda_function, specialisations))
    return f"{cuda.header()}\nnamespace mlx::core::cu {{\n{functions}}}\n"


def complaints(compiler: str, text: str, folder: Path) -> str:
    """What a CUDA compiler says of it: nothing when all is well."""
    source = folder / "kernels.cu"
    source.write_text(NVCC_INCLUDES + text if compiler == "nvcc" else f'#include "clang_cuda.h"\n{text}')
    command = [*(NVCC + hurry() if compiler == "nvcc" else CLANG), f"-I{Path(__file__).parent}", str(source)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout + answer.stderr if answer.returncode else ""


@cache
def hurry() -> list[str]:
    """nvcc's option, where it has it, to spend no time on making the code fast."""
    options = subprocess.run(["nvcc", "--help"], capture_output=True, text=True, check=False).stdout
    return ["-Ofc", "max"] if "(-Ofc)" in options else []


@pytest.fixture(params=[NVCC[0], CLANG[0]])
def compiler(request) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} on PATH")
    return request.param


def test_every_cuda_kernel_compiles(compiler, tmp_path):
    assert len(every_specialisation()) > 600
    assert complaints(compiler, cuda_text(every_specialisation()), tmp_path) == ""


MISTAKES = [
    ("a function that is the host's", "METAL_FUNC float normaliser(", "inline float normaliser("),
    ("a member that is the host's", "METAL_FUNC int k_dim(", "int k_dim("),
    ("an argument forgotten", "first_head, 0, simdgroup", "first_head, simdgroup"),
    ("a write to an input", "out[at] = T(0.0f)", "q[at] = T(0.0f)"),
    ("a pointer for a number", "float(v[pool.v_dim(dim)])", "float(v + pool.v_dim(dim))"),
]


@pytest.mark.parametrize(("mistake", "old", "new"), MISTAKES, ids=[mistake for mistake, _, _ in MISTAKES])
def test_a_mistake_in_a_cuda_kernel_does_not_compile(compiler, mistake, old, new, tmp_path):
    of_each_kernel = {s.kernel: s for s in every_specialisation() if s.dtype == mx.float16}
    text = cuda_text(tuple(of_each_kernel.values()))
    assert old in text, f"the kernels no longer say {old!r}: plant this mistake elsewhere"
    assert "error" in complaints(compiler, text.replace(old, new), tmp_path)


def test_every_host_header_knows_the_same_metal_functions():
    """A kernel that is changed to use one of them still runs everywhere."""
    host = kernels_folder() / "host"
    known = {
        header.name: set(re.findall(r"\b(?:simd|simdgroup|threadgroup)_\w+(?=\()", header.read_text(encoding="utf-8")))
        for header in (host / "native.h", host / "simulator.h", host / "cuda.h", Path(__file__).parent / "strict.h")
    }
    assert len(known["native.h"]) >= 9
    assert all(names == known["native.h"] for names in known.values()), known


def arrays_in_memory(text: str, folder: Path) -> list[str]:
    """The arrays that LLVM, which Apple's compiler is made of too, cannot keep in a thread's registers."""
    source = folder / "kernels.cu"
    source.write_text(f'#include "clang_cuda.h"\n{text}')
    to_llvm = [*CLANG, "-O2", "-S", "-emit-llvm", f"-I{Path(__file__).parent}", str(source), "-o", "-"]
    to_llvm.remove("-fsyntax-only")
    answer = subprocess.run(to_llvm, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return re.findall(r"= (alloca .*)", answer.stdout)


def test_a_gpu_thread_keeps_its_arrays_in_registers(tmp_path):
    """An array that a loop walks which is not written out lies in a GPU's memory, many times slower."""
    if shutil.which(CLANG[0]) is None:
        pytest.skip(f"no {CLANG[0]} on PATH")
    some = [
        s for s in every_specialisation()
        if s.kernel in ("paged_decode", "paged_prompt") and s.dtype == mx.float32 and dict(s.constants)["LAYOUT"] == 0
    ]  # fmt: skip
    assert len(some) > 25
    assert arrays_in_memory(cuda_text(tuple(some)), tmp_path) == []
    rolled = cuda_text(tuple(some[:1])).replace("#define UNROLL_ON_GPU UNROLL", "#define UNROLL_ON_GPU")
    assert arrays_in_memory(rolled, tmp_path) != []


def test_cuda_kernels_hold_what_a_block_may_have():
    """48 KB of declared shared memory, 1,024 threads; an Apple GPU's limits are below both."""
    for specialisation in every_specialisation():
        assert specialisation.threadgroup_bytes <= 49_152
        assert specialisation.threads <= 1_024 and specialisation.threads % 32 == 0


def test_cuda_executor_says_why_it_cannot_run_here():
    case = paged_case(context_lens=[5, 0, 33], sinks=True)
    if mx.cuda.is_available():
        assert "cuda" in available_executors()
        case.check(case.attend(executor="cuda"))
        return
    assert "cuda" not in available_executors()
    reason = cuda.why_not()
    assert re.search("NVIDIA GPU", reason) and re.search("MLX's package for CUDA", reason)
    with pytest.raises(ExecutorUnavailable, match=re.escape(reason)):
        case.attend(executor="cuda")
