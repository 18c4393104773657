"""Answers to the coded exercises of notebook 09."""


def gives_way(held, free):
    victims, served, last = [], 0, len(held)  # `last`: those before it still run
    while served < last:
        if free > 0:
            free, served = free - 1, served + 1
        else:
            last -= 1  # perhaps the very one that asks
            free += held[last]
            victims.append(last)
    return victims


def admitted(needed, free, watermark, running):
    count = 0
    for blocks in needed:
        if blocks > free - (watermark if running + count else 0):
            break  # strictly in order: nobody behind passes
        free, count = free - blocks, count + 1
    return count
