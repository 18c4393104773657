"""Answers to the coded exercises of notebook 03."""

from paged_core import SequenceTooLong


def slots(blocks, block_size, context, new):
    positions = range(context - new, context)
    return [blocks[p // block_size] * block_size + p % block_size for p in positions]


def grow(blocks, block_size, max_blocks, target_len, allocator):
    needed = -(-target_len // block_size)
    if needed > max_blocks:
        raise SequenceTooLong(f"{needed} blocks needed, {max_blocks} entries")
    if needed > len(blocks):
        blocks += allocator.allocate_n(needed - len(blocks))  # in place, and all or none by itself


def whose(slot, block_size, tables, lens):
    for seq, table in enumerate(tables):
        for position in range(lens[seq]):
            if table[position // block_size] * block_size + position % block_size == slot:
                return seq, position
    return None
