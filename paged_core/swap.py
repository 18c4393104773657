"""Blocks in host memory: where the K and V of a preempted sequence wait, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from paged_core.errors import InvalidBlock, SwapError
from paged_core.pool import PagedPool
from paged_core.scalars import positive


class HostBlocks:
    """Room for `num_blocks` blocks of a pool outside it: in memory, or in a file that is mapped into memory.

    Carries out a Plan's `swap_out` and `swap_in` (see scheduler.py). On a machine whose GPU has its own memory this is
    the slower, larger one; with Apple's unified memory it is the same memory, and a file is what it can overflow into.
    SwapError when the file cannot be made; a move that fails leaves the pool as it was.
    """

    def __init__(self, pool: PagedPool, num_blocks: int, path: str | Path | None = None) -> None:
        self.pool = pool
        self.num_blocks = positive("num_blocks", num_blocks)
        bits = np.uint32 if pool.dtype.size == 4 else np.uint16
        shapes = [(num_blocks, *array.shape[1:]) for array in pool.arrays]
        if path is None:
            self._blocks = [np.zeros(shape, bits) for shape in shapes]
            return
        try:
            sizes = [int(np.prod(shape)) for shape in shapes]
            mapped = np.memmap(path, bits, "w+", shape=(sum(sizes),))
        except (OSError, ValueError) as error:
            raise SwapError(f"path: cannot make a swap file of {pool.nbytes // pool.num_blocks * num_blocks} bytes "
                            f"at {path}: {error}") from error  # fmt: skip
        parts = np.split(mapped, np.cumsum(sizes)[:-1])
        self._blocks = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def nbytes(self) -> int:
        return sum(blocks.nbytes for blocks in self._blocks)

    def swap_out(self, moves: Iterable[tuple[int, int]]) -> None:
        """Copy pool block -> host block for each pair."""
        blocks, host = self._split(moves)
        for kept, read in zip(self._blocks, self.pool.read_blocks(blocks), strict=True):
            kept[host] = read

    def swap_in(self, moves: Iterable[tuple[int, int]]) -> None:
        """Copy host block -> pool block for each pair."""
        blocks, host = self._split((block, host) for host, block in moves)
        self.pool.write_blocks(blocks, [kept[host] for kept in self._blocks])

    def _split(self, moves: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
        pairs = list(moves)
        for _, host in pairs:
            if not 0 <= host < self.num_blocks:
                raise InvalidBlock(f"host block: expected 0 to {self.num_blocks - 1}, got {host}")
        return [block for block, _ in pairs], [host for _, host in pairs]
