"""The block allocator: a LIFO free list of physical block ids with reference counts."""

from __future__ import annotations

from collections.abc import Iterable

from paged_core.errors import InvalidBlock, PoolExhausted
from paged_core.scalars import integer


class BlockAllocator:
    """Hands out physical block ids 0 .. num_blocks-1 and takes them back.

    A plain stack of free ids: the block freed last is the one most likely still in a cache, so it is the next one out.
    Every operation costs O(1) per block. No tensor is touched here: an id is only a number until a pool uses it.

    Blocks can be shared: `share` adds a reference, `free` drops one, and a block returns to the free list with its last
    reference. Source: the free list of vLLM's block manager (Kwon et al., SOSP 2023, section 4), without its hashing.

    Raises ValueError for a negative `num_blocks`.
    """

    def __init__(self, num_blocks: int) -> None:
        num_blocks = integer("num_blocks", num_blocks, at_least=0)
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: its end is its top, so block 0 leaves first
        self._ref_counts = [0] * num_blocks
        self._peak_in_use = 0

    def __repr__(self) -> str:
        return f"BlockAllocator({self.in_use} of {self.capacity} blocks in use, peak {self.peak_in_use})"

    @property
    def capacity(self) -> int:
        """Blocks in all."""
        return len(self._ref_counts)

    @property
    def free_count(self) -> int:
        """Blocks that `allocate_n` could hand out now."""
        return len(self._free)

    @property
    def in_use(self) -> int:
        """Blocks with at least one reference; a shared block counts once."""
        return self.capacity - self.free_count

    @property
    def peak_in_use(self) -> int:
        """The most blocks ever in use at once. Never falls: it is the pool size this workload would have needed."""
        return self._peak_in_use

    @property
    def free_list(self) -> tuple[int, ...]:
        """The free ids as they lie on the stack, the next one out last. A copy, for whoever looks on."""
        return tuple(self._free)

    def ref_count(self, block: int) -> int:
        """References to `block`, 0 when it is free. InvalidBlock when there is no such block."""
        return self._ref_counts[self._existing(block)]

    def is_shared(self, block: int) -> bool:
        """Whether a write into `block` would be seen by somebody besides the one who holds it."""
        return self.ref_count(block) > 1

    def allocate(self) -> int:
        """One block, with one reference. PoolExhausted when none is free."""
        return self.allocate_n(1)[0]

    def allocate_n(self, n: int) -> list[int]:
        """`n` blocks in the order they leave the stack, one reference each. All or none: PoolExhausted takes none."""
        n = integer("n", n, at_least=0)
        if n > len(self._free):
            raise PoolExhausted(needed=n, free=self.free_count, capacity=self.capacity)
        blocks = [self._free.pop() for _ in range(n)]
        for block in blocks:
            self._ref_counts[block] = 1
        self._peak_in_use = max(self._peak_in_use, self.in_use)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each block listed. InvalidBlock, and nothing changed, when one of them is not live."""
        blocks = self._all_live(blocks)
        for block in blocks:
            self._ref_counts[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each block listed; a block without references is free, and the last one listed is the
        next one out.

        All or none: an id that does not exist, is not live, or is listed more often than it is referenced raises
        InvalidBlock and changes nothing.
        """
        blocks = self._all_live(blocks)
        listed: dict[int, int] = {}
        for block in blocks:
            listed[block] = listed.get(block, 0) + 1
            if listed[block] > self._ref_counts[block]:
                raise InvalidBlock(
                    f"block {block} is freed more often than it is referenced ({self._ref_counts[block]} reference(s))"
                )
        for block in blocks:
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free.append(block)

    def _existing(self, block: int) -> int:
        block = integer("block", block)
        if not 0 <= block < self.capacity:  # Python's own -1 would quietly mean the last block
            raise InvalidBlock(f"block {block} does not exist: ids run from 0 to {self.capacity - 1}")
        return block

    def _all_live(self, blocks: Iterable[int]) -> list[int]:
        if not isinstance(blocks, Iterable):
            raise TypeError(f"blocks: expected several block ids, got {blocks!r}")
        blocks = [self._existing(block) for block in blocks]
        for block in blocks:
            if self._ref_counts[block] == 0:
                raise InvalidBlock(f"block {block} is not live: it was never handed out, or was freed already")
        return blocks
