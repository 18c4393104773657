"""The exact text that MLX would hand to Apple's compiler, had without Metal, and made readable for other compilers."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path

import mlx.core as mx

from paged_core import PoolLayout
from paged_core.attention import AttentionCall, checked_call
from paged_core.executors import metal
from paged_core.executors.launch import GPU, Launch, Machine, Specialisation, launches
from paged_core.layouts import Geometry

HEAD_DIMS = (64, 80, 96, 112, 128, 256, 512)
GROUPS = (1, 4, 7, 8)  # query heads to a KV head
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
_PRINTED = re.compile(r"^Generated source code for `\w+`:\n```\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_FUNCTION = re.compile(r"^\[\[kernel\]\] void (\w+)\(", re.MULTILINE)
_ATTRIBUTE = re.compile(r"\[\[.*?\]\]")


def calls() -> Iterator[AttentionCall]:
    """Calls over every dtype, layout and head_dim, that between them launch every kernel. Where MLX types an input by
    its size, some are small and some are not."""
    for dtype, layout, head_dim, group in product(DTYPES, PoolLayout, HEAD_DIMS, GROUPS):
        num_seqs = 9 if group in (4, 8) else 2
        for max_blocks in (3, 1_000):  # few keys, and more than one threadgroup should take on
            yield empty_call(dtype, layout, head_dim, group, num_seqs, max_blocks)
    for dtype, layout, head_dim in product(DTYPES, PoolLayout, HEAD_DIMS):
        for num_seqs in (2, 9):
            yield empty_call(dtype, layout, head_dim, 4, num_seqs, 3, prompt=True)


@cache
def every_specialisation() -> tuple[Specialisation, ...]:
    """Each that a GPU is asked for, once."""
    return tuple(dict.fromkeys(step.specialisation for call in calls() for step in launches(call, GPU)))


def empty_call(dtype, layout, head_dim, group, num_seqs, max_blocks, prompt=False) -> AttentionCall:
    """Arrays of zeros, which nobody will compute."""
    k, v = (mx.zeros(shape, dtype) for shape in layout.shapes(Geometry(8, 2, 16, head_dim), dtype.size))
    tables, lens = mx.zeros((num_seqs, max_blocks), mx.int32), mx.zeros((num_seqs,), mx.int32)
    starts = mx.arange(num_seqs + 1, dtype=mx.int32) if prompt else None
    q = mx.zeros((num_seqs, 2 * group, head_dim), dtype)
    bias = mx.zeros((2 * group,)) if head_dim != 64 else None  # absent inputs have their stand-ins
    return checked_call(q, k, v, tables, lens, starts, layout=layout, sinks=bias, alibi_slopes=bias, check=False)


def generated(todo: list[tuple[AttentionCall, list[Launch]]], build: Callable = metal.built) -> dict[str, str]:
    """MLX's text for each specialisation that the launches need, by the name of its function.

    MLX prints it as it traces the call; nothing is compiled or computed.
    """

    def traced(x: mx.array) -> list[mx.array]:
        return [
            metal.run_launches(call, steps, lambda name: partial(build(name), verbose=True)) for call, steps in todo
        ]

    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed"
        with _stdout_to(printed):
            mx.export_function(str(Path(folder) / "traced.mlxfn"), traced, mx.zeros((1,)))
        return {_FUNCTION.search(text)[1]: text for text in _PRINTED.findall(printed.read_text())}


def generated_for(machine: Machine, *some: AttentionCall) -> dict[str, str]:
    return generated([(call, launches(call, machine)) for call in some])


def every_text() -> dict[str, str]:
    """MLX's text for every specialisation on a GPU."""
    return generated_for(GPU, *calls())


def without_attributes(text: str) -> str:
    """The one thing in MLX's text that no other compiler reads."""
    return _ATTRIBUTE.sub("", text)


@contextmanager
def _stdout_to(path: Path) -> Iterator[None]:
    """MLX prints from C++: past sys.stdout."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
