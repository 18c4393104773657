"""The `cuda` executor: kernels/*.metal on an NVIDIA GPU, through mx.fast.cuda_kernel."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx

from paged_core.executors.launch import GPU, launches
from paged_core.executors.metal import described, run_launches
from paged_core.executors.source import kernel_source, kernels_folder


def why_not() -> str | None:
    """Why this executor cannot run here; None when it can."""
    if mx.cuda.is_available():
        return None
    return "MLX finds no CUDA device (it needs an NVIDIA GPU and MLX's package for CUDA)"


def run(call) -> mx.array:
    """Lazy, as the `metal` executor's: evaluate what a step computes before the next step writes."""
    return run_launches(call, launches(call, GPU), built)


def header() -> str:
    """What a kernel's body stands behind: the prelude that makes CUDA of Metal's words, and what all kernels share."""
    prelude = (kernels_folder() / "host" / "cuda.h").read_text(encoding="utf-8")
    return f"{prelude}\n{kernel_source().header}"


@cache
def built(kernel: str) -> Any:
    """MLX's kernel, which specialises it as it is called."""
    return mx.fast.cuda_kernel(header=header(), **described(kernel))
