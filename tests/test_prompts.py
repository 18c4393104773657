"""Prompts that begin alike, and what the prefix cache makes of them."""

import pytest

from paged_core import BlockAllocator, PoolExhausted, PrefixCache
from paged_core.prompts import SystemPrompts, hold_newest, prompt_milliseconds
from paged_core.workload import Request

REQUESTS = [Request(i, 10 + i % 7, 5) for i in range(200)]


def test_prefixes_are_shared_by_an_assistants_users_and_the_rest_is_nobody_elses():
    system = SystemPrompts([30, 20], [3, 1])
    prompts = system.prompts(REQUESTS, seed=1)
    assert prompts == system.prompts(REQUESTS, seed=1) != system.prompts(REQUESTS, seed=2)
    kinds = {}
    for request, prompt in zip(REQUESTS, prompts, strict=True):
        length = len(prompt) - request.prompt_tokens
        kinds.setdefault(tuple(prompt[:length]), []).append(prompt[length:])
    assert sorted(map(len, kinds)) == [20, 30]
    often = {len(instructions): len(users) for instructions, users in kinds.items()}
    assert 120 <= often[30] <= 175  # three quarters of 200, give or take four standard deviations
    tokens = [token for prompt in [*kinds, *(p for users in kinds.values() for p in users)] for token in prompt]
    assert len(tokens) == len(set(tokens)) and 0 <= min(tokens) and max(tokens) < 2**63


def test_variants_of_a_prefix_have_no_token_in_common():
    prompts = SystemPrompts([30], [1], variants=4).prompts(REQUESTS, seed=1)
    beginnings = {tuple(prompt[:30]) for prompt in prompts}
    assert len(beginnings) == 4 and len(set().union(*beginnings)) == 120


def test_prefix_sharing_is_counted_as_by_hand():
    """Instructions of 8 tokens, users of 3, answers of 2, blocks of 4: two shared blocks and two own ones each."""
    requests = [Request(i, 3, 2) for i in range(4)]
    prompts = SystemPrompts([8], [1]).prompts(requests, seed=0)
    cache = PrefixCache(BlockAllocator(20), block_size=4)
    saved = hold_newest(cache, requests, prompts, num_running=3)
    assert saved == (4 * 11, 3 * 8, 2 + 3 * 2, 3 * 4)
    assert cache.in_use == 8 and cache.cached_count == 0
    with pytest.raises(PoolExhausted):
        hold_newest(PrefixCache(BlockAllocator(7), block_size=4), requests, prompts, num_running=3)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"weights: expected one for each of 2 lengths, got 1"):
        SystemPrompts([1, 2], [1])
    with pytest.raises(ValueError, match=r"lengths"):
        SystemPrompts([0], [1])
    with pytest.raises(ValueError, match=r"variants"):
        SystemPrompts([1], [1], variants=0)


def test_a_prefix_is_found_at_a_price():
    assert all(0 < milliseconds < 1000 for milliseconds in prompt_milliseconds(256, rounds=2))
