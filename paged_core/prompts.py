"""Prompts that begin alike, out of made-up tokens; and what a prefix cache makes of them."""

from __future__ import annotations

import timeit
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paged_core.allocator import BlockAllocator
from paged_core.prefix import PrefixCache
from paged_core.scalars import positive
from paged_core.workload import Request


class SystemPrompts:
    """Assistants whose instructions open every prompt that is meant for them.

    `lengths` are the instructions', in tokens; `weights` say how often each assistant is asked for; each comes in so
    many `variants`, equally often asked for, whose instructions are as long and have no token in common.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[int], variants: int = 1) -> None:
        if len(lengths) != len(weights) or not lengths:
            raise ValueError(f"weights: expected one for each of {len(lengths)} lengths, got {len(weights)}")
        self.lengths = [positive("lengths", length) for length in lengths]
        self.weights = [positive("weights", weight) for weight in weights]
        self.variants = positive("variants", variants)

    def prompts(self, requests: Sequence[Request], *, seed: int) -> list[list[int]]:
        """A prompt for each request: an assistant's instructions, then `prompt_tokens` that are nobody else's.

        Tokens are 64-bit numbers that no two users share. A seed gives the same prompts on every machine.
        """
        u, v = np.random.RandomState(seed).random_sample((2, len(requests)))  # the stream that NumPy froze (NEP 19)
        ends = np.cumsum(self.weights)
        assistants = np.searchsorted(ends, (u * ends[-1]).astype(np.int64), side="right").tolist()
        variants = (v * self.variants).astype(np.int64).tolist()
        prompts = []
        for number, (request, assistant, variant) in enumerate(zip(requests, assistants, variants, strict=True)):
            instructions = (variant * len(self.lengths) + assistant) << 20
            own = (number + 1) << 40
            prompts.append(
                [
                    *range(instructions, instructions + self.lengths[assistant]),
                    *range(own, own + request.prompt_tokens),
                ]
            )
        return prompts


class Sharing(NamedTuple):
    """What sharing saved."""

    prompt_tokens: int
    found_tokens: int  # of them, in blocks that the cache had
    peak_blocks: int  # the most in use at once
    peak_blocks_alone: int  # the most there would have been, had each request had its own


def hold_newest(
    cache: PrefixCache, requests: Sequence[Request], prompts: Sequence[Sequence[int]], num_running: int
) -> Sharing:
    """Let every request hold the blocks of its prompt and its answer, in order; when `num_running` do, the oldest ends.

    PoolExhausted when the pool is too small for so many.
    """
    running: deque[list[int]] = deque()
    prompt_tokens = alone = most_alone = 0
    hits_before = cache.hits
    for request, prompt in zip(requests, prompts, strict=True):
        if len(running) == num_running:
            alone -= len(running[0])
            cache.free(running.popleft())
        chain = cache.chain(prompt)
        blocks = cache.match(chain)
        needed = -(-(len(prompt) + request.output_tokens) // cache.block_size)
        blocks += cache.allocate_n(needed - len(blocks))
        cache.register(chain, blocks)
        running.append(blocks)
        prompt_tokens += len(prompt)
        alone += needed
        most_alone = max(most_alone, alone)
    found = (cache.hits - hits_before) * cache.block_size
    return Sharing(prompt_tokens, found, cache.peak_in_use, most_alone)


def prompt_milliseconds(num_tokens: int, *, block_size: int = 16, rounds: int = 25) -> tuple[float, float]:
    """What a prompt costs that is in the cache: to make its keys; to find its blocks, share them and give them back.

    Milliseconds, the best of so many rounds, for the machine has other things to do as well.
    """
    cache, tokens = PrefixCache(BlockAllocator(-(-num_tokens // block_size)), block_size=block_size), range(num_tokens)
    chain = cache.chain(tokens)
    cache.register(chain, blocks := cache.allocate_n(len(chain.keys)))
    cache.free(blocks)
    making = timeit.repeat(lambda: cache.chain(tokens), number=1, repeat=rounds)
    finding = timeit.repeat(lambda: cache.free(cache.match(chain)), number=1, repeat=rounds)
    return 1000 * min(making), 1000 * min(finding)
