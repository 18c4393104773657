"""The `native` executor: kernels/*.metal through the host's C++ compiler, one lane a simdgroup, a thread a core."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache, lru_cache

import mlx.core as mx
import numpy as np

from paged_core.executors import host
from paged_core.executors.cpp import translation_unit
from paged_core.executors.dlpack import pointer
from paged_core.executors.launch import ARGUMENTS, Specialisation, cpu, launches
from paged_core.executors.source import kernel_source, kernels_folder

_OUTPUT_TYPES = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16}
_scratch = threading.local()  # partial results; kept between calls, for a call allocates nothing but its output


def why_not() -> str | None:
    return host.why_not()


def run(call) -> mx.array:
    """Everything is done when this returns: no lazy result holds the pool, and the next write finds it unshared."""
    mx.eval(*(x for x in call if type(x) is mx.array))
    output = mx.array(np.empty(call.q.shape, _OUTPUT_TYPES[call.q.dtype]))  # MLX cannot make an array uninitialised
    arrays = {name: x for name in call._fields if type(x := getattr(call, name)) is mx.array} | {"out": output}
    # Pointers live within this call alone: an array's memory may move when the array is written.
    pointers = {}
    kept_alive = []
    for name, x in arrays.items():
        pointers[name], owner = pointer(x)
        kept_alive.append(owner)
    for launch in launches(call, _machine()):
        inputs, outputs = ARGUMENTS[launch.specialisation.kernel]
        for name, shape in zip(outputs, launch.output_shapes, strict=True):
            if name != "out":
                pointers[name] = _scratch_pointer(name, shape)
        sizes = (ctypes.c_int32 * len(launch.sizes))(*launch.sizes)
        scalars = (ctypes.c_float * len(launch.scalars))(*launch.scalars)
        pointers["sizes"], pointers["scalars"] = ctypes.addressof(sizes), ctypes.addressof(scalars)
        buffers = (ctypes.c_void_p * (len(inputs) + len(outputs)))(*map(pointers.get, inputs + outputs))
        kernel = _compiled(launch.specialisation)
        kernel(buffers, (ctypes.c_int32 * 3)(*launch.grid), _parallel_for(), num_threads())
    return output.view(mx.bfloat16) if call.q.dtype == mx.bfloat16 else output


@cache
def num_threads() -> int:
    """A thread for each core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _machine():
    return cpu(num_threads())


@lru_cache(maxsize=None)
def _compiled(specialisation: Specialisation):
    text = translation_unit(specialisation, kernel_source(), "native.h")
    function = host.library(specialisation.label, text, host.optimised()).paged_launch
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    return function


@cache
def _parallel_for() -> int:
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
