"""Pictures of a prefix cache: what they say is what the cache says."""

import pytest

from paged_core import BlockAllocator, PrefixCache
from paged_core.viz import sharing
from paged_core.viz.style import CACHED_COLOR, sequence_style
from tests.test_viz import assert_well_drawn, edges, fills, words


@pytest.fixture
def cache():
    return PrefixCache(BlockAllocator(8), block_size=4)


def held(cache, tokens):
    chain = cache.chain(tokens)
    blocks = cache.match(chain)
    blocks += cache.allocate_n(-(-len(tokens) // 4) - len(blocks))
    cache.register(chain, blocks)
    return blocks


def test_a_snapshot_counts_users_and_not_the_cache_itself(cache):
    a, b = held(cache, range(9)), held(cache, range(10))
    state = sharing.cache_snapshot(cache, [a, b])
    assert state.pool.ref_counts == (2, 2, 1, 1, 0, 0, 0, 0) and state.findable == {0, 1} and state.cached == ()
    assert str(state) == ("4 in use, 0 cached, 4 free. A holds 0, 1, 2. B holds 0, 1, 3. Shared: 0, 1. Findable: 0, 1.")
    cache.free(a)
    cache.free(b)
    state = sharing.cache_snapshot(cache)
    assert state.cached == (1, 0) and not any(state.pool.ref_counts)
    assert str(state) == "0 in use, 2 cached, 6 free. Findable: 0, 1. Evicted next: 1, 0."


def test_a_strip_shows_sharing_keeping_and_what_is_evicted_next(cache):
    frames = [("nothing", sharing.cache_snapshot(cache))]
    a = held(cache, range(9))
    frames.append(("A arrives", sharing.cache_snapshot(cache, [a])))
    b = held(cache, range(10))
    frames.append(("B arrives", sharing.cache_snapshot(cache, [a, b])))
    cache.free(a)
    cache.free(b)
    frames.append(("both end", sharing.cache_snapshot(cache, [[], []])))
    picture = sharing.cache_strip(frames, title="Shared and kept")
    assert_well_drawn(picture)
    assert fills(picture, sequence_style(0).color) == 3 + 3 + 1  # A's blocks, twice, and the legend
    assert fills(picture, sequence_style(1).color) == 3 + 1
    assert fills(picture, CACHED_COLOR) == 2 + 1
    assert edges(picture, "ink") >= 3 + 3 + 4  # what changed: three blocks taken; two shared, one taken; four left
    assert {"A arrives", "1 0", "none", "cached: kept, nobody uses it"} <= set(words(picture))
    assert "4. both end: 0 in use, 2 cached, 6 free." in picture.alt


def test_a_strip_of_many_blocks_cuts_its_lists_short():
    cache = PrefixCache(BlockAllocator(24), block_size=4)
    cache.free(held(cache, range(41)))
    frames = [("a long prompt, and it has ended already", sharing.cache_snapshot(cache))]
    picture = sharing.cache_strip(frames, title="Many")
    assert_well_drawn(picture)
    assert {"9 8 7 6 5 ...", "10 11 12 ..."} <= set(words(picture))


def test_chains_show_every_key_and_what_was_found_under_it(cache):
    held(cache, range(9))
    rows = {}
    for name, tokens in {"again": [*range(9)], "whole blocks": [*range(8)], "other": [7] * 5, "short": [1]}.items():
        chain = cache.chain(tokens)
        rows[name] = tokens, chain, cache.find(chain)
    picture = sharing.hash_chains(rows, root=b"r", title="Keys")
    assert_well_drawn(picture)
    said = words(picture)
    assert said.count("found: block 0") == 2 and said.count("found: block 1") == 1
    assert said.count("computed: has the last token") == 1 and said.count("computed; no key: not full") == 3
    keys = [key.hex()[:4] for _, chain, _ in rows.values() for key in chain.keys]
    assert len(keys) == 5 and all(said.count(key) == keys.count(key) for key in keys)
    assert said.count(str(ord("r"))) == 4  # each row begins with the root
    assert "again: keys" in picture.alt and "short: keys ; found nothing." in picture.alt


def test_outputs_say_who_leaves_the_truth():
    lines = {"truth": [1.0, -2.0], "near": [1.001, -2.0], "far": [1.0, -1.9]}
    picture = sharing.outputs(lines, title="Attention")
    assert repr(picture) == "Attention. The broad line is truth. near lies on it. far leaves it."
    assert [line.get_ydata().tolist() for line in picture.figure.axes[0].lines] == list(lines.values())


def test_charts_draw_what_they_were_given():
    rates = {"5 prompts": {1000: 51.6, 2000: 51.6}, "200 prompts": {1000: 23.4, 2000: 40.0}}
    picture = sharing.hit_rates(rates, title="Found")
    assert picture.alt == "5 prompts: 51 % in 1,000 blocks, 51 % in 2,000 blocks; 200 prompts: 23 % in 1,000 blocks, " \
        "40 % in 2,000 blocks"  # fmt: skip
    assert [line.get_ydata().tolist() for line in picture.figure.axes[0].lines] == [[51.6, 51.6], [23.4, 40.0]]
    picture = sharing.prompt_costs({"hash": {256: 0.02, 4096: 0.3}}, title="Cost")
    assert picture.alt == "hash, 4,096 tokens: 0.30 ms"
    assert picture.figure.axes[0].lines[0].get_ydata().tolist() == [0.02, 0.3]
    assert picture.png().startswith(b"\x89PNG")
