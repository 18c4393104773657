"""From a specialisation to C++: the kernels' text as it is, between what a host compiler needs before and after it."""

from __future__ import annotations

import mlx.core as mx

from paged_core.errors import KernelError
from paged_core.executors.launch import ARGUMENTS, Specialisation, argument_dtype
from paged_core.executors.source import KernelSource, Part

TYPE_NAMES = {mx.float32: "float", mx.float16: "half", mx.bfloat16: "bfloat", mx.int32: "int32_t"}


def translation_unit(specialisation: Specialisation, kernels: KernelSource, header: str) -> str:
    """C++ text of one specialised kernel. `header`, a file of kernels/host, defines Metal's names for the executor and
    PAGED_ENTRY, which makes a function to call from Python out of the kernel's. Errors carry the .metal files' lines.
    """
    kernel, dtype, constants = specialisation
    if kernel not in kernels.bodies:
        raise KernelError(f"the source has no `//// kernel {kernel}`; it has {', '.join(kernels.bodies) or 'none'}")
    inputs, outputs = ARGUMENTS[kernel]
    pointers = []
    for i, name in enumerate((*inputs, *outputs)):
        pointer = f"{'const ' if name in inputs else ''}device {TYPE_NAMES[argument_dtype(name, dtype)]}*"
        pointers.append(f"{pointer} {name} = ({pointer})buffers[{i}];")
    return "\n".join(
        (
            f'#include "{header}"',
            "namespace msl {",
            *map(_at_its_line, kernels.shared),
            "static inline __attribute__((always_inline)) void kernel_function(",
            "    void* const* buffers, uint3 threadgroup_position_in_grid, uint simdgroup_index_in_threadgroup,",
            "    uint thread_index_in_simdgroup) {",
            f"typedef {TYPE_NAMES[dtype]} T;",
            *(f"constexpr int {name} = {value};" for name, value in constants),
            *pointers,
            _at_its_line(kernels.bodies[kernel]),
            "}",
            "}",
            "PAGED_ENTRY(msl::kernel_function)",
            "",
        )
    )


def _at_its_line(part: Part) -> str:
    return f'#line {part.line} "{part.file}"\n{part.text}'
