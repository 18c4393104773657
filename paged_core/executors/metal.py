"""The `metal` executor: kernels/*.metal on an Apple GPU, through mx.fast.metal_kernel."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from paged_core.executors.launch import ARGUMENTS, GPU, Launch, Specialisation, argument_dtype, launches
from paged_core.executors.source import kernel_source


def why_not() -> str | None:
    return None if mx.metal.is_available() else "MLX finds no Metal device (it needs a Mac with Apple silicon)"


def run(call) -> mx.array:
    """Lazy, as MLX's own operations: the kernels run when the result is asked for, and until then hold the pool. So
    evaluate what a step computes before the next step writes (asking for its tokens does)."""
    return run_launches(call, launches(call, GPU), _built)


def run_launches(call, todo: list[Launch], build) -> mx.array:
    """Run launches one after the other, each handing its outputs on. `build` makes a kernel of a specialisation."""
    absent = mx.zeros((8,))  # stands in for an array that the kernel will not look at
    arrays = {name: x for name, x in zip(call._fields, call, strict=True) if isinstance(x, mx.array)}
    for launch in todo:
        specialisation = launch.specialisation
        inputs, outputs = ARGUMENTS[specialisation.kernel]
        arrays["sizes"] = mx.array(launch.sizes, mx.int32)
        arrays["scalars"] = mx.array(launch.scalars, mx.float32)
        x, y, z = launch.grid
        results = build(specialisation)(
            inputs=[arrays.get(name, absent) for name in inputs],
            template=[("T", specialisation.dtype), *specialisation.constants],
            grid=(x * specialisation.threads, y, z),  # MLX counts threads here
            threadgroup=(specialisation.threads, 1, 1),
            output_shapes=list(launch.output_shapes),
            output_dtypes=[argument_dtype(name, specialisation.dtype) for name in outputs],
        )
        arrays |= zip(outputs, results, strict=True)
    return arrays["out"]


@lru_cache(maxsize=None)
def _built(specialisation: Specialisation):
    inputs, outputs = ARGUMENTS[specialisation.kernel]
    kernels = kernel_source()
    return mx.fast.metal_kernel(
        name=specialisation.label,
        input_names=list(inputs),
        output_names=list(outputs),
        header=kernels.header,
        source=kernels.bodies[specialisation.kernel].text,
    )
