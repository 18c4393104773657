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
    """A kernel that does not compile, does not end, or was caught at something; the message says what and where."""


class SimulatorFinding(KernelError):
    """Something that the simulator caught a kernel at.

    `kernel`, `buffer` (its name in the kernel) and `index` (element) say where; `threadgroup`, `simdgroup` and `lane`
    say who; `line` is the place in the source, as "attention.metal:123". None stands for what does not apply, or for
    a line that no debugger's tool was there to tell.
    """

    def __init__(self, message, kernel, buffer, index, threadgroup, simdgroup, lane, line) -> None:
        self.kernel, self.buffer, self.index = kernel, buffer, index
        self.threadgroup, self.simdgroup, self.lane, self.line = threadgroup, simdgroup, lane, line
        super().__init__(message)

    def __reduce__(self):
        where = (self.kernel, self.buffer, self.index, self.threadgroup, self.simdgroup, self.lane, self.line)
        return type(self), (str(self), *where)


class StrayAccess(SimulatorFinding):
    """A read or write outside a buffer, or a write to one that is there to be read."""


class UninitialisedMemory(SimulatorFinding):
    """A read of threadgroup memory or of an output that nobody has written, or an output left unwritten."""


class DataRace(SimulatorFinding):
    """Two threads at one element, one of them writing, and no barrier between them."""


class Divergence(SimulatorFinding):
    """A barrier or simd operation that not all lanes reach: on a GPU it hangs, or gives whatever it gives."""


class RequestRefused(PagedCoreError):
    """A request that can never be served, however long it waits; the message says what it would need."""


class InvalidRequest(PagedCoreError, ValueError):
    """A request that the scheduler does not know, knows already, or that is in no state for what was asked."""


class SwapError(PagedCoreError, OSError):
    """A swap file that cannot be made or written."""


class CacheFileError(PagedCoreError, OSError):
    """A prefix cache's file that cannot be written or read, is damaged, or was made for another cache."""


class CheckpointError(PagedCoreError, ValueError):
    """A model's folder that is not there, is incomplete, or asks for what this package does not compute."""
