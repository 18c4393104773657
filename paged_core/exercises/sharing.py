"""Notebook 08: the keys of a prompt, and who is evicted first."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any

from paged_core.allocator import BlockAllocator
from paged_core.exercises.exercise import Exercise, Trial, attempt, trial
from paged_core.prefix import BlockChain, PrefixCache
from paged_core.viz.answers import Input
from paged_core.viz.style import SequenceStyle, sequence_style

Event = tuple[str, list[int]]


def _short(data: bytes) -> bytes:
    return sha256(data).digest()[:2]  # four hexadecimal digits: enough to tell a picture's keys apart


def _hash(before: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a block with these tokens, after the block with the key `before`."""
    return _short(before + array("q", tokens).tobytes())


def _chains(answer: Any) -> Iterator[Trial]:
    rng = random.Random(8)
    by_hand = [([], 4), ([3, 1, 4, 1], 4), ([3, 1, 4], 4), ([3, 1, 4, 1, 5], 4), ([3, 1, 4, 1, 5, 9, 2, 6], 4)]
    drawn = [([rng.randrange(100) for _ in range(rng.randint(0, 14))], rng.randint(1, 5)) for _ in range(100)]
    for tokens, block_size in by_hand + sorted(drawn, key=lambda case: len(case[0])):
        salt = bytes([rng.randrange(256)])
        start = _short(b"paged_core prefix\0" + salt)
        expected = BlockChain(tokens, block_size=block_size, salt=salt, hash_function=_short).keys
        got = attempt(answer, list(tokens), block_size, start, _hash)
        given = f"tokens {tokens}, block_size {block_size}, start {start.hex()}"
        inputs = [Input("tokens", tokens, _full(len(expected) * block_size))]
        yield trial(given, "keys", list(expected), got, inputs=inputs)


def _full(num_tokens: int) -> Callable[[int], SequenceStyle | str]:
    """So many tokens lie in full blocks."""
    return lambda i: sequence_style(0) if i < num_tokens else "free"


def _evictions(answer: Any) -> Iterator[Trial]:
    rng = random.Random(9)
    cases: list[list[Event]] = [
        [],
        [("leaves", [0])],
        [("leaves", [0, 1])],
        [("leaves", [2, 0]), ("leaves", [1])],
        [("leaves", [0, 1]), ("found", [0])],
        [("leaves", [0]), ("leaves", [1]), ("found", [0]), ("leaves", [0])],
    ]
    for events in cases + sorted((_events(rng) for _ in range(150)), key=len):
        expected = _order(events)
        got = attempt(answer, [(what, list(blocks)) for what, blocks in events])
        given = ", then ".join(f"{what} {blocks}" for what, blocks in events) or "nothing"
        inputs = [Input(f"{i}. {what}", blocks, lambda _: "cached") for i, (what, blocks) in enumerate(events, 1)]
        yield trial(given, "evicted, in this order", expected, got, inputs=inputs)


def _events(rng: random.Random) -> list[Event]:
    """Sequences leave; beginnings of them are found again, and leave again."""
    ids = rng.sample(range(9), 9)
    using = [[ids.pop() for _ in range(rng.randint(1, 3))] for _ in range(3)]
    whole, events = [list(blocks) for blocks in using], []
    for _ in range(rng.randint(1, 8)):
        i = rng.randrange(3)
        if using[i]:
            events.append(("leaves", using[i]))
            using[i] = []
        else:
            using[i] = whole[i][: rng.randint(1, len(whole[i]))]
            events.append(("found", using[i]))
    return events


def _order(events: list[Event]) -> list[int]:
    """What a PrefixCache says: each event's blocks were the beginning of a sequence of their own."""
    cache = PrefixCache(BlockAllocator(9), block_size=1)
    cache.allocate_n(9)
    registered: set[int] = set()
    for _, blocks in events:
        if not registered & set(blocks):
            cache.register(cache.chain([*blocks, 0]), [*blocks])
            registered |= set(blocks)
    for what, blocks in events:
        cache.free(blocks) if what == "leaves" else cache.share(blocks)
    return list(cache.eviction_order)


keys = Exercise("keys in a chain", _chains, lines=6)
eviction_order = Exercise("who is evicted first", _evictions, lines=8)
