"""Numbers and block ids as words, for messages, captions and alternative text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def counted(number: int, noun: str) -> str:
    """ "1 block", "2,048 blocks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def ids(blocks: Collection[int], most: int = 8) -> str:
    """ "3", "3 and 4", "3, 4 and 9", and at most so many of them."""
    listed = [str(block) for block in blocks]
    if len(listed) > most:
        return f"{', '.join(listed[:most])} and {len(listed) - most} more"
    return " and ".join(filter(None, (", ".join(listed[:-1]), listed[-1])))


def blocks_named(blocks: Collection[int]) -> str:
    """ "block 3", "blocks 3, 4 and 9"."""
    return f"block{'' if len(blocks) == 1 else 's'} {ids(blocks)}"


def enumerated(things: Sequence[object], most: int = 12) -> str:
    """ "3, 4, 9", and at most so many of them; nothing gives nothing."""
    words = ", ".join(str(thing) for thing in things[:most])
    return words + (f" and {len(things) - most} more" if len(things) > most else "")
