"""Answers to the coded exercises of notebook 08."""


def keys(tokens, block_size, start, hash):
    found = [start]
    for end in range(block_size, len(tokens) + 1, block_size):  # only as far as blocks are full
        found.append(hash(found[-1], tokens[end - block_size : end]))
    return found[1:]


def eviction_order(events):
    order: dict[int, None] = {}  # a dict keeps its keys in the order in which they came
    for what, blocks in events:
        for block in reversed(blocks):  # of a sequence the last block goes first
            order.pop(block, None)
            if what == "leaves":
                order[block] = None
    return list(order)
