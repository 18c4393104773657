"""Blocks in host memory: where the K and V of a preempted sequence wait, bit for bit."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paged_core.errors import InvalidBlock, SwapError
from paged_core.pool import PagedPool
from paged_core.scalars import positive


class HostBlocks:
    """Room for `num_blocks` blocks of a pool outside it: in memory, or in a file at `path`, which is overwritten.

    Carries out a Plan's `swap_out` and `swap_in` (see scheduler.py). On a machine whose GPU has its own memory this is
    the slower, larger one; with Apple's unified memory it is the same memory, and a file is what it can overflow into.

    A block's record is its bits in each of the pool's arrays, one after the other. SwapError when the file cannot be
    made, written or read; InvalidBlock for a block that is not there; in either case the pool is as it was, and the
    step is one for `Scheduler.abandon`.
    """

    def __init__(self, pool: PagedPool, num_blocks: int, path: str | Path | None = None) -> None:
        self.pool = pool
        self.num_blocks = positive("num_blocks", num_blocks)
        self._sizes = [int(np.prod(array.shape[1:])) for array in pool.arrays]  # of a block, in elements
        self._bits = np.dtype(np.uint32 if pool.dtype.size == 4 else np.uint16)
        self._memory: NDArray[np.unsignedinteger] | None = None
        if path is None:
            self._memory = np.zeros((self.num_blocks, sum(self._sizes)), self._bits)
            return
        # Written and read, not mapped into memory: there a full disk kills the process, here it is an error.
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise SwapError(f"path: cannot make the swap file {path}: {error}") from error
        weakref.finalize(self, os.close, self._file)

    @property
    def nbytes(self) -> int:
        """Bytes when all are taken."""
        return self.num_blocks * self._record

    def swap_out(self, moves: Iterable[tuple[int, int]]) -> None:
        """Copy pool block -> host block for each pair."""
        blocks, hosts = self._split(moves)
        parts = zip(self.pool.read_blocks(blocks), self._sizes, strict=True)
        records = np.concatenate([bits.reshape(len(blocks), size) for bits, size in parts], axis=1)
        if self._memory is not None:
            self._memory[hosts] = records
            return
        for host, record in zip(hosts, records, strict=True):
            try:
                written = os.pwrite(self._file, record, host * self._record)
            except OSError as error:
                raise SwapError(f"host block {host} cannot be written to the swap file: {error}") from error
            if written < self._record:
                raise SwapError(f"host block {host} cannot be written to the swap file: is the disk full?")

    def swap_in(self, moves: Iterable[tuple[int, int]]) -> None:
        """Copy host block -> pool block for each pair."""
        blocks, hosts = self._split((block, host) for host, block in moves)
        parts = np.split(self._read(hosts), np.cumsum(self._sizes)[:-1], axis=1)
        shapes = [(len(blocks), *array.shape[1:]) for array in self.pool.arrays]
        self.pool.write_blocks(blocks, [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])

    @property
    def _record(self) -> int:
        """Bytes of a block."""
        return sum(self._sizes) * self._bits.itemsize

    def _read(self, hosts: list[int]) -> NDArray[np.unsignedinteger]:
        if self._memory is not None:
            return self._memory[hosts]
        records = []
        for host in hosts:
            try:
                record = os.pread(self._file, self._record, host * self._record)
            except OSError as error:
                raise SwapError(f"host block {host} cannot be read from the swap file: {error}") from error
            if len(record) < self._record:
                raise SwapError(f"host block {host} is not in the swap file: never written, or cut off by somebody")
            records.append(record)
        return np.frombuffer(b"".join(records), self._bits).reshape(len(hosts), sum(self._sizes))

    def _split(self, moves: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
        pairs = list(moves)
        for _, host in pairs:
            if not 0 <= host < self.num_blocks:
                raise InvalidBlock(f"host block: expected 0 to {self.num_blocks - 1}, got {host}")
        return [block for block, _ in pairs], [host for _, host in pairs]
