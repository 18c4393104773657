"""The `metal` executor: kernels/*.metal on an Apple GPU, through mx.fast.metal_kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import mlx.core as mx

from paged_core.executors.launch import ARGUMENTS, GPU, Launch, argument_dtype, launches
from paged_core.executors.source import kernel_source


def why_not() -> str | None:
    """Why this executor cannot run here; None when it can."""
    return None if mx.metal.is_available() else "MLX finds no Metal device (it needs a Mac with Apple silicon)"


def run(call) -> mx.array:
    """Lazy, as MLX's own operations: the kernels run when the result is asked for, and until then hold the pool. So
    evaluate what a step computes before the next step writes (asking for its tokens does)."""
    return run_launches(call, launches(call, GPU), built)


def run_launches(call, todo: list[Launch], build: Callable[[str], Callable]) -> mx.array:
    """Run launches one after the other, each handing its outputs on, on the GPU whatever MLX's default device is.
    `build` gives MLX's kernel for the name of one of ours."""
    if call.q.size == 0:
        return mx.zeros(call.q.shape, call.q.dtype)
    arrays = {name: x for name, x in zip(call._fields, call, strict=True) if isinstance(x, mx.array) and x.size}
    for launch in todo:
        specialisation = launch.specialisation
        inputs, outputs = ARGUMENTS[specialisation.kernel]
        dtypes = {name: argument_dtype(name, specialisation.dtype) for name in (*inputs, *outputs)}
        arrays["sizes"] = _constant(launch.sizes, mx.int32)
        arrays["scalars"] = _constant(launch.scalars, mx.float32)
        x, y, z = launch.grid
        results = build(specialisation.kernel)(
            inputs=[arrays[name] if name in arrays else _unread(dtypes[name]) for name in inputs],
            template=[("T", specialisation.dtype), *specialisation.constants],
            grid=(x * specialisation.threads, y, z),  # MLX counts threads here
            threadgroup=(specialisation.threads, 1, 1),
            output_shapes=list(launch.output_shapes),
            output_dtypes=[dtypes[name] for name in outputs],
            stream=mx.gpu,
        )
        arrays |= zip(outputs, results, strict=True)
    return arrays["out"]


@cache
def built(kernel: str) -> Any:
    """MLX's kernel, which specialises it as it is called. MLX compiles with Metal's safe mathematics unless told
    otherwise: exp(-inf) is 0 and a NaN stays one, as the kernels take for granted."""
    return mx.fast.metal_kernel(header=kernel_source().header, **described(kernel))


def described(kernel: str) -> dict[str, Any]:
    """What MLX asks about a kernel, for either GPU; what stands before its body apart."""
    inputs, outputs = ARGUMENTS[kernel]
    kernels = kernel_source()
    return {
        "name": f"{kernel}_{kernels.digest}",  # MLX adds the template's arguments
        "input_names": list(inputs),
        "output_names": list(outputs),
        "source": kernels.bodies[kernel].text,
    }


@lru_cache(maxsize=256)
def _constant(values: tuple, dtype: mx.Dtype) -> mx.array:
    """The same from step to step: made and moved to the GPU once."""
    return mx.array(values, dtype)


@cache
def _unread(dtype: mx.Dtype) -> mx.array:
    """Stands in for an array that the kernel will not look at, one without elements too. MLX types the pointer to an
    input of fewer than 8 elements differently: so 8."""
    return mx.array([0] * 8, dtype)
