"""The prefix cache: what is found, what is shared, what goes first, and that a collision is never more than a miss."""

import gc
import random

import pytest

from paged_core import BlockAllocator, BlockChain, InvalidBlock, PagedSeqState, PoolExhausted, PrefixCache


def cache_of(num_blocks, block_size=4, **options):
    return PrefixCache(BlockAllocator(num_blocks), block_size=block_size, **options)


def serve(cache, tokens, salt=b""):
    """What a sequence does: find what is there, compute the rest, make its full blocks findable. Chain and blocks."""
    chain = cache.chain(tokens, salt)
    blocks = cache.match(chain)
    blocks += cache.allocate_n(-(-len(tokens) // cache.block_size) - len(blocks))
    cache.register(chain, blocks)
    return chain, blocks


def counts(cache):
    assert cache.free_count + cache.cached_count + cache.in_use == cache.capacity
    return cache.free_count, cache.cached_count, cache.in_use


def test_two_prompts_that_begin_alike_by_hand():
    """Blocks of 4. A: 10 tokens, blocks 0 1 2, of which 0 and 1 are full. B begins with the first 8 of them."""
    cache = cache_of(8)
    _, a = serve(cache, range(10))
    assert (a, cache.findable_blocks) == ([0, 1, 2], (0, 1))
    assert counts(cache) == (5, 0, 3)
    _, b = serve(cache, [*range(8), 90, 91, 92])
    assert b == [0, 1, 3]  # two of A's, one of its own for the tokens 90 91 92
    assert [cache.ref_count(block) for block in range(4)] == [2, 2, 1, 1]
    assert [cache.allocator.ref_count(block) for block in range(4)] == [3, 3, 1, 1]  # the cache holds 0 and 1 as well
    assert (cache.hits, cache.misses) == (2, 2)  # A looked for 2 blocks (9 // 4), B for 2 (10 // 4)
    cache.free(a)
    assert counts(cache) == (5, 0, 3)  # block 2 is free: it was not full. 0 and 1 are B's still
    cache.free(b)
    assert counts(cache) == (6, 2, 0)  # 0 and 1 stay, for whoever comes next
    assert serve(cache, [*range(8), 5])[1][:2] == [0, 1]


@pytest.mark.parametrize(
    "num_tokens, found", [(0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (11, 2), (12, 2), (13, 3), (20, 3)]
)
def test_the_last_token_is_never_found(num_tokens, found):
    """Of 12 known tokens in blocks of 4. A prompt of 12 finds 2 blocks: the last token's logits have to be computed."""
    cache = cache_of(8)
    serve(cache, range(12))
    assert len(cache.find(cache.chain(range(num_tokens)))) == found
    assert len(cache.find_whole(cache.chain(range(num_tokens)))) == min(num_tokens // 4, 3)


def test_a_look_changes_nothing():
    cache = cache_of(8)
    chain, blocks = serve(cache, range(9))
    cache.free(blocks)
    before = counts(cache), cache.hits, cache.misses, cache.eviction_order
    cache.find(cache.chain(range(9)))
    cache.find_whole(chain)
    assert (counts(cache), cache.hits, cache.misses, cache.eviction_order) == before


def test_equal_tokens_after_other_tokens_are_other_content():
    """K and V of a token depend on all before it: [1 2] after [0 0] is not [1 2] after [9 9], nor at the start."""
    cache = cache_of(8, block_size=2)
    serve(cache, [0, 0, 1, 2, 7])
    assert cache.find(cache.chain([0, 0, 1, 2, 7])) == [0, 1]
    assert cache.find(cache.chain([9, 9, 1, 2, 7])) == []
    assert cache.find(cache.chain([1, 2, 7])) == []
    assert cache.find(cache.chain([0, 0, 1, 3, 7])) == [0]


def test_salts_never_meet():
    cache = cache_of(8)
    serve(cache, range(9), b"one adapter")
    assert cache.find(cache.chain(range(9), b"another")) == cache.find(cache.chain(range(9))) == []
    assert cache.find(cache.chain(range(9), b"one adapter")) == [0, 1]


def test_the_chain_by_hand():
    """With a hash that only writes down what it was given, a key is its whole history."""
    chain = BlockChain(block_size=2, salt=b"s", hash_function=lambda data: b"(" + data + b")")
    chain.extend([1])
    assert chain.keys == []
    chain.extend([2, 3])
    one, two, three = (i.to_bytes(8, "little") for i in (1, 2, 3))
    assert chain.keys == [b"((paged_core prefix\0s)" + one + two + b")"]
    chain.extend([3])
    assert chain.keys[1] == b"(" + chain.keys[0] + three + three + b")"
    assert (chain.num_tokens, chain.contents) == (4, [one + two, three + three])
    assert BlockChain([1, 2, 3, 3], block_size=2, salt=b"s", hash_function=chain._hash).keys == chain.keys


def test_tokens_of_every_size_and_kind():
    np = pytest.importorskip("numpy")
    whole = BlockChain([0, -1, 2**63 - 1, -(2**63)], block_size=2)
    assert BlockChain(np.array([0, -1, 2**63 - 1, -(2**63)]), block_size=2).keys == whole.keys
    assert BlockChain(b"\x01\x02", block_size=2).keys == BlockChain([1, 2], block_size=2).keys
    for tokens, error in (([1, 1.5], TypeError), ("ab", TypeError), ([2**63], OverflowError)):
        with pytest.raises(error):
            whole.extend(tokens)
    assert (whole.num_tokens, len(whole.keys)) == (4, 2)
    with pytest.raises(TypeError, match="salt: expected bytes, got 'tenant'"):
        BlockChain([1], block_size=2, salt="tenant")


# ----------------------------------------------------------------------------------------------------------- eviction


def test_the_least_recently_used_goes_first_and_of_a_sequence_its_tail():
    cache = cache_of(6, block_size=1)
    _, a = serve(cache, [10, 11, 12])  # 0 1 2
    _, b = serve(cache, [20, 21, 22])  # 3 4 5
    cache.free(a)
    cache.free(b)
    assert cache.eviction_order == (2, 1, 0, 5, 4, 3)
    assert cache.match(chain := cache.chain([10, 11, 99])) == [0, 1]  # A's beginning is used again
    assert cache.eviction_order == (2, 5, 4, 3)
    cache.free([0, 1])
    assert cache.eviction_order == (2, 5, 4, 3, 1, 0)
    assert cache.allocate_n(3) == [4, 5, 2]  # three go, LRU first; the allocator's stack hands out the last one first
    assert (cache.evictions, counts(cache)) == (3, (0, 3, 3))
    assert cache.find(chain) == [0, 1]
    assert cache.find(cache.chain([20, 21, 22, 0])) == [3]


def test_free_blocks_go_before_cached_ones():
    cache = cache_of(4, block_size=1)
    _, blocks = serve(cache, [1, 2])
    cache.free(blocks)
    cache.allocate_n(2)
    assert (cache.evictions, cache.cached_count) == (0, 2)
    cache.allocate()
    assert (cache.evictions, cache.cached_count) == (1, 1)


def test_refused_when_all_are_in_use_and_nothing_is_evicted_for_it():
    cache = cache_of(4, block_size=1)
    _, blocks = serve(cache, [1, 2, 3])
    cache.free(blocks[1:])
    with pytest.raises(PoolExhausted) as refusal:
        cache.allocate_n(4)
    assert (refusal.value.needed, refusal.value.free, refusal.value.capacity) == (4, 3, 4)
    assert (counts(cache), cache.evictions) == ((1, 2, 1), 0)


def test_in_use_peak_and_printing():
    cache = cache_of(4, block_size=1)
    _, blocks = serve(cache, [1, 2, 3])
    cache.free(blocks)
    assert (cache.in_use, cache.peak_in_use) == (0, 3)
    assert cache.match(cache.chain([1, 2, 9])) == blocks[:2]
    assert cache.peak_in_use == 3
    assert repr(cache) == "PrefixCache(2 in use, 1 cached, 1 free of 4 blocks; 2 hits, 2 misses, 0 evictions)"


def test_content_found_elsewhere_stays_there():
    """Two sequences computed the same prompt at the same time. One copy is findable; the other goes with its user."""
    cache = cache_of(6, block_size=2)
    first, second = cache.chain([1, 2, 3, 4, 5]), cache.chain([1, 2, 3, 4, 5])
    a, b = cache.allocate_n(3), cache.allocate_n(3)
    cache.register(first, a)
    cache.register(second, b)
    assert cache.findable_blocks == (0, 1)
    cache.free(b)
    assert counts(cache) == (3, 0, 3)
    cache.free(a)
    assert counts(cache) == (4, 2, 0)


def test_after_its_twin_is_evicted_a_sequence_makes_its_own_blocks_findable():
    cache = cache_of(4, block_size=2)
    first, second = cache.chain([1, 2, 3, 4]), cache.chain([1, 2, 3, 4])
    a, b = cache.allocate_n(2), cache.allocate_n(2)
    cache.register(first, a)
    cache.register(second, b)
    cache.free(a)
    cache.allocate_n(2)  # evicts both of A's
    assert cache.find(cache.chain([1, 2, 3, 4, 5])) == []
    cache.register(second, b)
    assert cache.find(cache.chain([1, 2, 3, 4, 5])) == b


def test_a_child_is_found_again_once_its_evicted_parent_is_back():
    """Evicted: what comes first. Still held, and findable in itself: what comes after. Alone it is never served."""
    cache = cache_of(5, block_size=1)
    _, a = serve(cache, [7])
    chain = cache.chain([7])
    own = cache.allocate_n(2)
    cache.register(chain, own[:1])  # the 7 of A stays the findable one
    chain.extend([8])
    cache.register(chain, own)
    cache.free(a)
    cache.allocate_n(3)  # takes the free ones, and the 7
    assert (cache.evictions, cache.findable_blocks) == (1, (own[1],))
    assert cache.find(cache.chain([7, 8, 9])) == []
    cache.free([own[0]])
    _, b = serve(cache, [7])  # computed again, in another block
    assert cache.find(cache.chain([7, 8, 9])) == [b[0], own[1]]
    assert cache.find(cache.chain([6, 8, 9])) == []


# ---------------------------------------------------------------------------------------------------------- collisions


def test_when_all_keys_collide_only_the_very_first_content_is_found():
    cache = cache_of(12, block_size=2, hash_function=lambda data: b"the same for everything")
    serve(cache, [1, 2, 3, 4, 0])
    assert cache.findable_blocks == (0,)  # [3 4] has the same key, and other tokens
    assert cache.find(cache.chain([1, 2, 3, 4, 0])) == [0]
    for other in ([3, 4, 0], [3, 4, 1, 2, 0], [9, 9, 1, 2, 0]):
        assert cache.find(cache.chain(other)) == []
    assert cache.find(cache.chain([1, 2, 1, 2, 0])) == [0]  # [1 2] after [1 2] is not [1 2] at the start


def test_equal_keys_and_tokens_after_other_histories():
    """A hash that looks at a block's own tokens only: A = [1 1][5 5], B = [2 2][5 5] meet in the second key."""
    cache = cache_of(12, block_size=2, hash_function=lambda data: data[-16:])
    _, a = serve(cache, [1, 1, 5, 5, 0])
    _, b = serve(cache, [2, 2, 5, 5, 0])
    assert cache.find(cache.chain([1, 1, 5, 5, 0])) == a[:2]
    assert cache.find(cache.chain([2, 2, 5, 5, 0])) == b[:1]  # never A's [5 5]


def test_a_colliding_history_that_comes_back_in_the_place_of_the_old_one():
    """[1 1] is evicted and [2 2] registered under its key, while [5 5] after [1 1] is still findable in itself."""
    keys = {b"paged": b"start", b"start": b"key 0", b"key 0": b"key 1"}  # by a block's place alone
    cache = cache_of(6, block_size=2, hash_function=lambda data: keys[data[:5]])
    first = cache.chain([1, 1, 5, 5])
    a, own = cache.allocate_n(1), cache.allocate_n(2)
    cache.register(cache.chain([1, 1]), a)
    cache.register(first, own)  # [1 1] is A's, [5 5] its own
    assert cache.findable_blocks == (a[0], own[1])
    cache.free(a)
    cache.free([own[0]])
    taken = cache.allocate_n(5)
    assert cache.findable_blocks == (own[1],)
    cache.free(taken)
    del first
    _, blocks = serve(cache, [2, 2, 5, 5, 0])
    assert cache.find(cache.chain([2, 2, 5, 5, 0])) == []  # the key is still that of [1 1]: an ancestor of [5 5]
    assert own[1] not in blocks
    cache.free([own[1]])
    cache.allocate_n(cache.available_count)  # evicts it, and with it goes the last that spoke of [1 1]
    assert cache.findable_count == 0
    cache.register(cache.chain([2, 2]), blocks)
    assert cache.find(cache.chain([2, 2, 5, 5, 0])) == blocks[:1]


@pytest.mark.parametrize("num_keys", [1, 2, 5])
def test_whatever_collides_what_is_found_is_what_was_asked_for(num_keys):
    """A long random life under a hash of one, two or five values, beside a record of what each block really holds."""
    rng = random.Random(num_keys)
    cache = cache_of(12, block_size=1, hash_function=lambda data: bytes([sum(data) % num_keys]))
    written, live = {}, []  # block -> the tokens up to and with its own
    for _ in range(3000):
        if live and rng.random() < 0.5:
            cache.free(live.pop(rng.randrange(len(live))))
            continue
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 7))]
        chain = cache.chain(tokens)
        blocks = cache.match(chain)
        for i, block in enumerate(blocks):
            assert written[block] == tokens[: i + 1]
        try:
            blocks += cache.allocate_n(len(tokens) - len(blocks))
        except PoolExhausted:
            cache.free(blocks)
            continue
        written.update({block: tokens[: i + 1] for i, block in enumerate(blocks)})
        cache.register(chain, blocks)
        live.append(blocks)
    assert cache.hits > 100
    for blocks in live:
        cache.free(blocks)
    assert cache.in_use == 0


# ------------------------------------------------------------------------------------------------- refusals and faults


def unchanged(cache, call, message):
    before = counts(cache), cache.eviction_order, cache.findable_blocks, cache.allocator.free_list
    references = [cache.allocator.ref_count(block) for block in range(cache.capacity)]
    with pytest.raises(InvalidBlock, match=message):
        call()
    assert (counts(cache), cache.eviction_order, cache.findable_blocks, cache.allocator.free_list) == before
    assert references == [cache.allocator.ref_count(block) for block in range(cache.capacity)]


def test_a_double_release_is_refused_whole():
    cache = cache_of(6, block_size=1)
    _, a = serve(cache, [1, 2])
    _, b = serve(cache, [1, 2, 3])  # finds the 1 and the 2: both are held twice now
    cache.free(a)
    unchanged(cache, lambda: cache.free([b[0], b[0]]), r"block 0 is freed more often .* \(1 reference")
    cache.free(b)
    unchanged(cache, lambda: cache.free(b), "block 0 is freed more often than it is referenced")  # cached: the cache's
    unchanged(cache, lambda: cache.free([5]), "block 5 is not live")


@pytest.mark.parametrize("block", [-1, 6, 99])
def test_foreign_blocks_are_refused(block):
    cache = cache_of(6, block_size=1)
    chain, blocks = serve(cache, [1, 2])
    unchanged(cache, lambda: cache.free([blocks[0], block]), f"block {block} does not exist")
    unchanged(cache, lambda: cache.share([blocks[0], block]), f"block {block} does not exist")
    chain.extend([3, 4])
    unchanged(cache, lambda: cache.register(chain, [*blocks, cache.capacity - 1, block]), "is not in use")
    for call in (cache.free, cache.share):
        with pytest.raises(TypeError, match="blocks: expected several block ids, got 0"):
            call(0)


def test_only_blocks_in_use_as_one_thing_become_findable():
    cache = cache_of(6, block_size=1)
    _, a = serve(cache, [1, 2])
    other = cache.chain([8, 9])
    unchanged(cache, lambda: cache.register(other, a), r"blocks\[0\]: block 0 is findable already, as other tokens")
    mine = cache.allocate()
    unchanged(cache, lambda: cache.register(other, [mine, mine]), r"expected each block once, got \[2, 2\]")
    unchanged(cache, lambda: cache.register(other, [mine, 5]), r"blocks\[1\]: block 5 is not in use")
    cache.free(a)  # cached: nobody's to register
    unchanged(cache, lambda: cache.register(cache.chain([1, 2]), a), r"blocks\[0\]: block 0 is not in use")
    cache.register(other, [mine])  # as far as the blocks go
    assert cache.findable_count == 3


def test_a_chain_of_other_blocks_is_refused():
    with pytest.raises(ValueError, match="chain: expected blocks of 4 tokens, got 2"):
        cache_of(4).match(BlockChain([1, 2, 3], block_size=2))


def test_what_is_in_use_cannot_be_forgotten():
    cache = cache_of(6, block_size=1)
    _, blocks = serve(cache, [1, 2])
    unchanged(cache, cache.forget, r"2 block\(s\) are in use")
    cache.free(blocks)
    cache.forget()
    assert (counts(cache), cache.findable_count) == ((6, 0, 0), 0)
    assert cache.find(cache.chain([1, 2, 3])) == []


def test_a_sequence_takes_its_blocks_from_a_cache_as_from_an_allocator():
    cache = cache_of(3, block_size=2)
    _, old = serve(cache, [1, 2, 3, 4])
    cache.free(old)
    seq = PagedSeqState(2, 3)
    seq.ensure_capacity(cache, 6)
    assert (len(seq.blocks), counts(cache), cache.evictions) == (3, (0, 0, 3), 2)
    with pytest.raises(PoolExhausted):
        PagedSeqState(2, 3).ensure_capacity(cache, 1)
    seq.release(cache)
    assert counts(cache) == (3, 0, 0)


def test_entries_live_no_longer_than_what_points_to_them():
    """Thousands of prompts through a small pool: what the cache remembers does not grow."""
    cache = cache_of(8, block_size=1)
    for i in range(2000):
        chain, blocks = serve(cache, [i, i + 1, i + 2])
        cache.free(blocks)
    del chain
    gc.collect()
    assert cache.findable_count <= 8 and len(cache._by_key) <= 8


def test_a_very_long_chain_comes_and_goes():
    cache = cache_of(100_000, block_size=1)
    chain, blocks = serve(cache, range(100_000))
    assert len(cache.find(chain)) == 99_999 and len(cache.prompts()[0]) == 100_000
    cache.free(blocks)
    del chain
    cache.forget()
    assert (len(cache._by_key), cache.free_count) == (0, 100_000)


def test_two_models_share_one_budget_of_blocks():
    """Each model has its pool and its salt; blocks and evictions are common. What one caches, the other may take."""
    cache = cache_of(4, block_size=1)
    _, small = serve(cache, [1, 2, 3], b"small")
    _, large = serve(cache, [1], b"large")
    assert not set(small) & set(large)
    assert cache.find(cache.chain([1, 2, 3, 4], b"small")) == small
    cache.free(small)
    grown = cache.allocate_n(2)  # the large model grows over what the small one left
    assert set(grown) <= set(small) and cache.find(cache.chain([1, 2, 3, 4], b"small")) == small[:1]
