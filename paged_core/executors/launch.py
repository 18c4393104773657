"""From a checked call to kernel launches: which kernels, how specialised, over which grid.

All executors that run kernels/*.metal take their launches from here; they differ only in how one is run.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import mlx.core as mx

from paged_core.layouts import PoolLayout

MAX_THREADGROUP_BYTES = 32_768  # what an Apple GPU gives a threadgroup
MAX_THREADS = 1_024
LAYOUT_NUMBERS = {layout: number for number, layout in enumerate(PoolLayout)}  # layouts.metal's enum PoolLayout


class Machine(NamedTuple):
    """What launches are fitted to: the shape of a threadgroup, and how much there must be to do."""

    lanes: int
    width: int  # floats that a thread multiplies at once
    decode_simdgroups: int
    decode_keys: int  # keys scored before one update of the softmax; a multiple of 4
    head_floats: int  # of q, and again of acc, that a lane may keep: bounds the heads that share a load
    prompt_simdgroups: int
    prompt_row_tiles: int
    prompt_rows: int  # times two vectors: what stays in registers
    prompt_keys: int  # keys staged at a time
    q_tile_bytes: int  # bounds prompt_simdgroups
    k_tile_bytes: int  # bounds the dims of K staged at a time
    enough_threadgroups: int  # fewer than this, and long contexts are split
    min_partition: int  # keys worth a threadgroup of their own


GPU = Machine(
    lanes=32, width=1, decode_simdgroups=8, decode_keys=4, head_floats=32, prompt_simdgroups=4, prompt_row_tiles=1,
    prompt_rows=8, prompt_keys=32, q_tile_bytes=16_384, k_tile_bytes=8_192, enough_threadgroups=256, min_partition=256,
)  # fmt: skip


def cpu(threads: int, width: int) -> Machine:
    """A CPU with so many threads, and so many floats to a vector: one lane, tiles as large as its caches like, a few
    tasks for each thread. Prompts keep rows x 2 vectors of sums in registers, half of all: AVX2 has 16, others 32."""
    rows = 4 if width == 8 else 8
    return Machine(
        lanes=1, width=width, decode_simdgroups=1, decode_keys=32, head_floats=1_024, prompt_simdgroups=1,
        prompt_row_tiles=64 // rows, prompt_rows=rows, prompt_keys=2 * width, q_tile_bytes=1 << 20,
        k_tile_bytes=1 << 20, enough_threadgroups=1 if threads == 1 else 4 * threads, min_partition=256,
    )  # fmt: skip


class Specialisation(NamedTuple):
    """One kernel with its template parameters, in the order in which they appear."""

    kernel: str
    dtype: mx.Dtype
    constants: tuple[tuple[str, int], ...]

    @property
    def label(self) -> str:
        """A name for files, no two specialisations' the same."""
        return "_".join((self.kernel, str(self.dtype).rsplit(".", 1)[-1], *(str(value) for _, value in self.constants)))

    @property
    def threadgroup_bytes(self) -> int:
        """Threadgroup memory that the kernel declares; the same sums as its THREADGROUP_ARRAY lines."""
        c = dict(self.constants)
        match self.kernel:
            case "paged_decode" | "paged_decode_partial":
                return 4 * (c["HEADS"] * c["HEAD_DIM"] + 2 * c["SIMDGROUPS"] * c["HEADS"])
            case "paged_prompt":
                rows = c["SIMDGROUPS"] * c["ROW_TILES"] * c["ROWS"]
                return 4 * (rows * c["HEAD_DIM"] + c["K_DIMS"] * c["KEYS"] + rows * c["KEYS"]) + 8 * c["KEYS"]
        return 0

    @property
    def threads(self) -> int:
        """Threads in a threadgroup."""
        c = dict(self.constants)
        return c["LANES"] * c.get("SIMDGROUPS", 1)


class Launch(NamedTuple):
    """One kernel over one grid of threadgroups."""

    specialisation: Specialisation
    grid: tuple[int, int, int]
    output_shapes: tuple[tuple[int, ...], ...]  # of the kernel's outputs, in their order
    sizes: tuple[int, ...]  # int32, the fields of Problem in attention.metal
    scalars: tuple[float, ...]  # float32, likewise


class Arguments(NamedTuple):
    """The arrays of a kernel, by the names that its body uses, in the order in which they are passed."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_READ_KEYS = ("q", "k_pool", "v_pool", "block_tables", "context_lens")
_PARTIALS = ("partial_acc", "partial_top", "partial_total")
ARGUMENTS = {
    "paged_decode": Arguments((*_READ_KEYS, "alibi_slopes", "sinks", "sizes", "scalars"), ("out",)),
    "paged_decode_partial": Arguments((*_READ_KEYS, "alibi_slopes", "sizes", "scalars"), _PARTIALS),
    "paged_merge": Arguments((*_PARTIALS, "sinks", "sizes", "scalars"), ("out",)),
    "paged_prompt": Arguments((*_READ_KEYS, "query_start_loc", "alibi_slopes", "sinks", "sizes", "scalars"), ("out",)),
}
_INTEGERS = {"block_tables", "context_lens", "query_start_loc", "sizes"}
_POOL_TYPED = {"q", "k_pool", "v_pool", "out"}


def argument_dtype(name: str, dtype: mx.Dtype) -> mx.Dtype:
    """The dtype of the argument `name` where the pool holds `dtype`: that, int32 or float32."""
    return dtype if name in _POOL_TYPED else mx.int32 if name in _INTEGERS else mx.float32


def split(threadgroups: int, max_tokens: int, machine: Machine) -> int:
    """How many partitions share the keys of one sequence: the rule that chooses split-KV (1: it is not used).

    It is for decodes that would leave the machine idle: with fewer than `enough_threadgroups` `threadgroups` (sequences
    x tiles of heads) there are as many partitions as give enough, but at most one for every `min_partition` tokens, or
    part of them, that the block tables have room for. The rule looks at shapes alone, so that nothing waits for the
    lengths.
    """
    if threadgroups >= machine.enough_threadgroups:
        return 1
    longest = -(-max_tokens // machine.min_partition)
    return max(1, min(longest, machine.enough_threadgroups // max(1, threadgroups)))


def launches(call, machine: Machine, num_partitions: int | None = None) -> list[Launch]:
    """The launches that compute `call`: one, or with split-KV two, the second merging the first's partials.

    `num_partitions` overrides `split`, for decodes: to look at partials, or to measure what the rule should be; 1 then
    is one partition through both kernels.
    """
    num_tokens, num_q_heads, head_dim = call.q.shape
    num_seqs, max_blocks = call.block_tables.shape
    num_kv_heads, block_size = call.geometry.num_kv_heads, call.geometry.block_size
    group = num_q_heads // num_kv_heads
    dtype, layout = call.q.dtype, LAYOUT_NUMBERS[call.layout]

    def problem(num_partitions: int) -> tuple[int, ...]:
        return (
            num_seqs, num_q_heads, num_kv_heads, block_size, max_blocks, num_partitions, call.sliding_window or 0,
            int(call.sinks is not None), int(call.alibi_slopes is not None),
        )  # fmt: skip

    scalars = (call.scale, call.softcap or 0.0)
    if call.query_start_loc is not None:
        kernel = prompt_kernel(machine, dtype, layout, head_dim)
        group_rows = _group_rows(kernel)
        grid = (num_tokens * group // group_rows + num_seqs, num_kv_heads, 1)
        return [Launch(kernel, grid, (call.q.shape,), problem(1), scalars)]

    whole, partial, merge = decode_kernels(machine, dtype, layout, head_dim, group)
    head_tiles = num_q_heads // dict(whole.constants)["HEADS"]
    if num_partitions is None:
        num_partitions = split(num_seqs * head_tiles, max_blocks * block_size, machine)
        if num_partitions == 1:
            return [Launch(whole, (1, head_tiles, num_seqs), (call.q.shape,), problem(1), scalars)]
    shape = (num_seqs, num_q_heads, num_partitions)
    partials = ((*shape, head_dim), shape, shape)
    return [
        Launch(partial, (num_partitions, head_tiles, num_seqs), partials, problem(num_partitions), scalars),
        Launch(merge, (1, num_q_heads, num_seqs), (call.q.shape,), problem(num_partitions), scalars),
    ]


@cache
def decode_kernels(machine: Machine, dtype: mx.Dtype, layout: int, head_dim: int, group: int):
    """paged_decode, paged_decode_partial and paged_merge for these arrays. One load of K or V serves HEADS query heads:
    all of the KV head's, or as large a divisor of their number as the lanes' registers hold."""
    dims = -(-head_dim // machine.lanes)
    heads = max(h for h in range(1, group + 1) if group % h == 0 and (h == 1 or h * dims <= machine.head_floats))
    common = (("LAYOUT", layout), ("HEAD_DIM", head_dim))
    decode = (
        *common, ("HEADS", heads), ("LANES", machine.lanes), ("SIMDGROUPS", machine.decode_simdgroups),
        ("KEYS", machine.decode_keys),
    )  # fmt: skip
    return (
        _fitted("paged_decode", dtype, decode),
        _fitted("paged_decode_partial", dtype, decode),
        _fitted("paged_merge", dtype, (("HEAD_DIM", head_dim), ("LANES", machine.lanes))),
    )


@cache
def prompt_kernel(machine: Machine, dtype: mx.Dtype, layout: int, head_dim: int) -> Specialisation:
    """paged_prompt for these arrays: as many simdgroups and dims of K at a time as threadgroup memory holds."""
    rows, keys, row_tiles = machine.prompt_rows, machine.prompt_keys, machine.prompt_row_tiles
    simdgroups = machine.prompt_simdgroups
    while simdgroups > 1 and 4 * simdgroups * row_tiles * rows * head_dim > machine.q_tile_bytes:
        simdgroups //= 2
    width = max(w for w in (1, 2, 4, 8, 16) if w <= machine.width and head_dim % w == 0)
    k_dims = max(d for d in range(8, head_dim + 1, 8) if head_dim % d == 0 and 4 * d * keys <= machine.k_tile_bytes)
    constants = (
        ("LAYOUT", layout), ("HEAD_DIM", head_dim), ("LANES", machine.lanes), ("WIDTH", width),
        ("SIMDGROUPS", simdgroups), ("KEYS", keys), ("ROWS", rows), ("ROW_TILES", row_tiles), ("K_DIMS", k_dims),
    )  # fmt: skip
    return _fitted("paged_prompt", dtype, constants)


def _group_rows(kernel: Specialisation) -> int:
    c = dict(kernel.constants)
    return c["SIMDGROUPS"] * c["ROW_TILES"] * c["ROWS"]


def _fitted(kernel: str, dtype: mx.Dtype, constants: tuple[tuple[str, int], ...]) -> Specialisation:
    """A specialisation that a GPU can launch. Nothing but this sum would notice one that asks for too much: a CPU has
    room, and Metal says so only on the Mac."""
    result = Specialisation(kernel, dtype, constants)
    if dict(constants)["LANES"] > 1 and (
        result.threadgroup_bytes > MAX_THREADGROUP_BYTES or result.threads > MAX_THREADS
    ):
        raise ValueError(
            f"{kernel} {dict(constants)}: {result.threadgroup_bytes} bytes of threadgroup memory and {result.threads} "
            f"threads; an Apple GPU gives {MAX_THREADGROUP_BYTES} and {MAX_THREADS}"
        )
    return result
