"""Answers to the coded exercises of notebook 02."""

from paged_core import PoolExhausted


class FreeList:
    def __init__(self, num_blocks):
        self.capacity = num_blocks
        self.stack = list(range(num_blocks))[::-1]  # its end is its top, so block 0 leaves first

    def allocate_n(self, n):
        if n > len(self.stack):  # before anything is popped: all or none
            raise PoolExhausted(n, len(self.stack), self.capacity)
        return [self.stack.pop() for _ in range(n)]

    def free(self, blocks):
        self.stack += blocks  # the last one listed lies on top


def culprit(ref_counts, blocks):
    left = dict(enumerate(ref_counts))  # a dict knows no -1, and has no end to fall off
    for block in blocks:
        if left.get(block, 0) == 0:
            return block
        left[block] -= 1
    return None
