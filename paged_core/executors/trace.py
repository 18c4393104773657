"""What the simulator saw: every load and store of a call, as NumPy records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

COMPACT = np.dtype(  # kernels/host/simulator.cpp, Record
    [
        ("index", np.int64), ("thread", np.uint16), ("site", np.uint16), ("slot", np.uint8), ("itemsize", np.uint8),
        ("is_write", np.bool_), ("launch", np.uint8),
    ]
)  # fmt: skip


class TracedLaunch(NamedTuple):
    """One kernel over one grid, as it was simulated."""

    kernel: str
    grid: tuple[int, int, int]  # threadgroups along x, y, z: threadgroup = x + grid[0] * (y + grid[1] * z)
    simdgroups: int
    lanes: int


class TracedBuffer(NamedTuple):
    """Something that a kernel reads or writes."""

    name: str  # as the kernel calls it
    space: str  # "input", "output" or "threadgroup"
    size: int  # elements
    itemsize: int  # bytes of an element


class Sites(NamedTuple):
    """The loads and stores of the program itself: of each, the launch that it belongs to and its place in the code."""

    launches: NDArray[np.int64]
    offsets: NDArray[np.int64]


class Trace:
    """A call of paged_attention, and every load and store that its kernels made.

    output    what paged_attention returns
    launches  the kernels that ran, in order: one, or with split-KV two
    buffers   what they read and wrote
    records   NumPy records, in the order in which the simulator made the accesses:
                launch        index into `launches`
                threadgroup   its number in the grid, x fastest
                simdgroup     in the threadgroup
                lane          in the simdgroup
                step          order within the threadgroup, from 0
                buffer        its name in the kernel
                index         element, the first where several are touched
                itemsize      bytes
                is_write      else it was a load
    lines     for each record the source line, as "attention.metal:123"

    Threads run in turns, each until it waits for others: between two barriers or simd operations, the lanes' accesses
    come lane by lane. On a GPU they happen side by side: where lanes take the same path, the n-th loads of a buffer by
    the 32 lanes of a simdgroup are one load instruction.

    What stays in registers is not memory and not here. Which loads there are is the compiler's decision, as on a GPU:
    it may keep a value that the source reads twice.
    """

    def __init__(
        self,
        output: mx.array,
        launches: Sequence[TracedLaunch],
        buffers: Sequence[TracedBuffer],
        compact: NDArray,
        starts: NDArray[np.int64],
        sites: Sites,
        find_lines: Callable[[Sites], list[str]],
    ) -> None:
        self.output, self.launches, self.buffers = output, tuple(launches), tuple(buffers)
        self._compact, self._starts, self._sites, self._find_lines = compact, starts, sites, find_lines

    def __len__(self) -> int:
        return len(self._compact)

    def __repr__(self) -> str:
        kernels = " and ".join(launch.kernel for launch in self.launches)
        return f"Trace({len(self):,} loads and stores of {kernels})"

    @cached_property
    def records(self) -> NDArray:
        """Made when first asked for, about 80 bytes each."""
        names = np.array([buffer.name for buffer in self.buffers])
        fields = [
            ("launch", np.int16), ("threadgroup", np.int32), ("simdgroup", np.int16), ("lane", np.int16),
            ("step", np.int32), ("buffer", names.dtype), ("index", np.int64), ("itemsize", np.int16),
            ("is_write", np.bool_),
        ]  # fmt: skip
        records = np.empty(len(self), fields)
        lengths = np.diff(self._starts, append=len(self))
        threadgroups = np.concatenate([np.arange(np.prod(launch.grid)) for launch in self.launches])
        lanes = np.array([launch.lanes for launch in self.launches])[self._compact["launch"]]
        records["launch"] = self._compact["launch"]
        records["threadgroup"] = np.repeat(threadgroups, lengths)
        records["simdgroup"] = self._compact["thread"] // lanes
        records["lane"] = self._compact["thread"] % lanes
        records["step"] = np.arange(len(self)) - np.repeat(self._starts, lengths)
        records["buffer"] = names[self._compact["slot"]]
        records["index"] = self._compact["index"]
        records["itemsize"] = self._compact["itemsize"]
        records["is_write"] = self._compact["is_write"]
        return records

    @cached_property
    def lines(self) -> NDArray[np.str_]:
        """The source line of each record; "" where no tool on this machine tells it."""
        return np.array(self._find_lines(self._sites) or [""])[self._compact["site"]]
