"""The `native` executor: kernels/*.metal through the host's C++ compiler, one lane a simdgroup, a thread a core."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from paged_core.executors import host
from paged_core.executors.cpp import translation_unit
from paged_core.executors.dlpack import pointer
from paged_core.executors.launch import ARGUMENTS, Launch, Machine, Specialisation, cpu, launches
from paged_core.executors.source import KernelSource, kernel_source, kernels_folder
from paged_core.scalars import positive

_OUTPUT_TYPES = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16}
_scratch = threading.local()  # partial results; kept between calls, for a call allocates nothing but its output


def why_not() -> str | None:
    """Why this executor cannot run here; None when it can."""
    return host.why_not()


class Partials(NamedTuple):
    """A decode with split-KV, taken apart: what every partition left, and what they merged to."""

    acc: NDArray[np.float32]  # [num_seqs, num_q_heads, num_partitions, head_dim]: values weighted by exp(s - top)
    top: NDArray[np.float32]  # [num_seqs, num_q_heads, num_partitions]: the largest logit, -inf without a key
    total: NDArray[np.float32]  # [num_seqs, num_q_heads, num_partitions]: the sum of exp(s - top), 0 without a key
    output: mx.array  # [num_seqs, num_q_heads, head_dim]


def run(call, num_partitions: int | None = None, kernels: KernelSource | None = None) -> mx.array:
    """Everything is done when this returns: no lazy result holds the pool, and the next write finds it unshared.

    `num_partitions` splits a decode otherwise than the rule in `launch.split` would. `kernels` are other kernels than
    the package's; nothing watches them here, so they belong into a process of their own: see `edited.run_edited`."""
    return _run_launches(call, launches(call, machine(), num_partitions), _scratch_pointer, kernels)


def partials(call, num_partitions: int) -> Partials:
    """A decode `call` (see `attention.checked_call`) in so many partitions, by the same kernels as `run`. The partials
    are written over NaN, so what a partition left unwritten shows. ValueError for prompts and for fewer than 1."""
    if call.query_start_loc is not None:
        raise ValueError("call: expected a decode, got query_start_loc; only decodes are split")
    positive("num_partitions", num_partitions)
    held = {}

    def fresh_pointer(name: str, shape: tuple[int, ...]) -> int:
        held[name] = np.full(shape, np.nan, np.float32)
        return held[name].ctypes.data

    output = _run_launches(call, launches(call, machine(), num_partitions), fresh_pointer)
    return Partials(held["partial_acc"], held["partial_top"], held["partial_total"], output)


def _run_launches(
    call,
    todo: list[Launch],
    partial_pointer: Callable[[str, tuple[int, ...]], int],
    kernels: KernelSource | None = None,
) -> mx.array:
    mx.eval(*(x for x in call if type(x) is mx.array))
    output = mx.array(np.empty(call.q.shape, _OUTPUT_TYPES[call.q.dtype]))  # MLX cannot make an array uninitialised
    arrays = {name: x for name in call._fields if type(x := getattr(call, name)) is mx.array} | {"out": output}
    # Pointers live within this call alone: an array's memory may move when the array is written.
    pointers = {}
    kept_alive = []
    for name, x in arrays.items():
        pointers[name], owner = pointer(x)
        kept_alive.append(owner)
    for launch in todo:
        inputs, outputs = ARGUMENTS[launch.specialisation.kernel]
        for name, shape in zip(outputs, launch.output_shapes, strict=True):
            if name != "out":
                pointers[name] = partial_pointer(name, shape)
        sizes = (ctypes.c_int32 * len(launch.sizes))(*launch.sizes)
        scalars = (ctypes.c_float * len(launch.scalars))(*launch.scalars)
        pointers["sizes"], pointers["scalars"] = ctypes.addressof(sizes), ctypes.addressof(scalars)
        buffers = (ctypes.c_void_p * (len(inputs) + len(outputs)))(*map(pointers.get, inputs + outputs))
        kernel = _compiled(launch.specialisation) if kernels is None else _loaded(launch.specialisation, kernels)
        kernel(buffers, (ctypes.c_int32 * 3)(*launch.grid), parallel_for(), num_threads())
    return output.view(mx.bfloat16) if call.q.dtype == mx.bfloat16 else output


@cache
def num_threads() -> int:
    """A thread for each core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def machine() -> Machine:
    """What launches are fitted to here."""
    return cpu(num_threads(), host.vector_width())


def built(specialisation: Specialisation, kernels: KernelSource) -> Path:
    """The library with one specialised kernel. KernelError, in the compiler's words, when it does not compile."""
    text = translation_unit(specialisation, kernels, "native.h")
    return host.built_library(specialisation.label, text, host.optimised())


@cache
def _compiled(specialisation: Specialisation):
    return _loaded(specialisation, kernel_source())


def _loaded(specialisation: Specialisation, kernels: KernelSource):
    function = ctypes.CDLL(str(built(specialisation, kernels))).paged_launch
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    return function


@cache
def parallel_for() -> int:
    """The address of the function that shares out work; see kernels/host/workers.cpp."""
    text = (kernels_folder() / "host" / "workers.cpp").read_text(encoding="utf-8")
    library = host.library("workers", text, ("-O2",))
    address = ctypes.cast(library.paged_parallel_for, ctypes.c_void_p).value
    assert address is not None
    return address


def _scratch_pointer(name: str, shape: tuple[int, ...]) -> int:
    """Memory for float32 `shape` that stays with this thread, grown as needed."""
    count = int(np.prod(shape))
    held = getattr(_scratch, name, None)
    if held is None or held.size < count:
        held = np.empty(count, np.float32)
        setattr(_scratch, name, held)
    return held.ctypes.data
