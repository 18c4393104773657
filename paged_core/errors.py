"""The errors of the package. Each names the culprit: which block, which sequence, how many were needed."""

from __future__ import annotations


class PagedCoreError(Exception):
    """Base of every error that is about pages rather than about Python's own types and values."""


class PoolExhausted(PagedCoreError):
    """More blocks were asked for than are free. Nothing was handed out.

    `needed`, `free` and `capacity` count blocks.
    """

    def __init__(self, needed: int, free: int, capacity: int) -> None:
        self.needed, self.free, self.capacity = needed, free, capacity
        super().__init__(
            f"{needed} block(s) needed, {free} of {capacity} free: release a sequence, or make the pool larger"
        )

    def __reduce__(self):
        return type(self), (self.needed, self.free, self.capacity)


class SequenceTooLong(PagedCoreError):
    """A sequence was asked to hold more tokens than its block table has entries for."""


class InvalidBlock(PagedCoreError, ValueError):
    """A block id or slot that does not exist, is not live, or is given back more often than it is referenced."""


class InvalidBlockTable(PagedCoreError, ValueError):
    """A block table that a kernel must not follow: an entry out of range, or a context longer than the table."""


class ExecutorUnavailable(PagedCoreError):
    """An executor that exists but cannot run on this machine; the message says why."""


class KernelError(PagedCoreError):
    """A kernel that does not compile, or that the simulator caught at something; the message says what and where."""
