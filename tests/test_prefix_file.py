"""A prefix cache in a file: what comes back, how much of it, and that a damaged or foreign file brings nothing."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import paged_core
from paged_core import BlockAllocator, CacheFileError, PagedPool, PrefixCache
from tests.cases import DTYPES, LAYOUTS, stored_bytes

SIZES = {"num_layers": 2, "num_kv_heads": 2, "block_size": 4, "head_dim": 16}


def empty(num_blocks=12, dtype="float16", **changes):
    """A cache over all blocks of a pool; and the pool."""
    sizes = {**SIZES, **changes}
    pool = PagedPool(num_blocks=num_blocks, dtype=getattr(mx, dtype), **sizes)
    return PrefixCache(BlockAllocator(num_blocks), block_size=sizes["block_size"]), pool


def remember(cache, pool, tokens, salt=b""):
    """Serve a prompt: its K and V are any bits at all, NaNs among them. The bits of its full blocks."""
    chain = cache.chain(tokens, salt)
    blocks = cache.match(chain)
    new = cache.allocate_n(-(-len(tokens) // cache.block_size) - len(blocks))
    rng = np.random.default_rng(len(tokens))
    contents = [rng.integers(0, 1 << 8 * x.itemsize, x.shape, np.uint64).astype(x.dtype) for x in pool.read_blocks(new)]
    pool.write_blocks(new, contents)
    cache.register(chain, blocks + new)
    bits = pool.read_blocks((blocks + new)[: len(chain.keys)])
    cache.free(blocks + new)
    return bits


def found(cache, pool, tokens, salt=b""):
    return pool.read_blocks(cache.find_whole(cache.chain(tokens, salt)))


def same(bits, others):
    return all(x.shape == y.shape and np.array_equal(x, y) for x, y in zip(bits, others, strict=True))


@pytest.fixture
def saved(tmp_path):
    """A file with two prompts: 13 tokens, 3 full blocks, and another 10 that share the first 2 of them."""
    cache, pool = empty()
    remember(cache, pool, range(13))
    remember(cache, pool, [*range(8), 50, 51, 52, 53])
    assert cache.save(tmp_path / "cache", pool, model="a model") == 4
    return tmp_path / "cache"


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_cache_starts_warm_bit_for_bit(tmp_path, dtype, layout):
    cache, pool = empty(dtype=dtype, layout=layout)
    system = list(range(100, 108))
    wanted = {}
    for salt, tokens in ((b"", [*system, 1, 2, 3, 4, 5]), (b"", [*system, 9, 9, 9, 9]), (bytes(32), [7] * 9)):
        wanted[salt, tuple(tokens)] = remember(cache, pool, tokens, salt)
    assert cache.save(tmp_path / "cache", pool, model="a model") == cache.findable_count == 6
    other, its_pool = empty(9, dtype=dtype, layout=layout)
    other.allocate_n(2)  # its blocks are others than those of the first
    assert other.load(tmp_path / "cache", its_pool, model="a model") == 6
    assert (other.free_count, other.cached_count, other.in_use) == (1, 6, 2)
    for (salt, tokens), bits in wanted.items():
        assert same(found(other, its_pool, tokens, salt), bits)
    assert other.load(tmp_path / "cache", its_pool, model="a model") == 0  # all is here already
    assert (other.free_count, other.cached_count, other.in_use) == (1, 6, 2)


def test_it_is_a_safetensors_file(saved):
    arrays, about = mx.load(str(saved), format="safetensors", return_metadata=True)
    assert arrays["tokens"].tolist() == [list(range(4)), list(range(4, 8)), [50, 51, 52, 53], [8, 9, 10, 11]]
    assert json.loads(about["prompts"]) == [[0, 1, 2], [0, 1, 3]]  # the newest first
    assert json.loads(about["fingerprint"])["model"] == "a model"
    assert os.listdir(saved.parent) == ["cache"]


def test_a_pool_too_small_takes_as_many_as_fit(saved):
    """Of 4 blocks: the newest prompt's beginning first. What is found is a beginning, and nothing is evicted for it."""
    for room, in_first, in_second in ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 2, 3), (4, 3, 3)):
        cache, pool = empty(6)
        remember(cache, pool, [77] * 4)
        cache.allocate_n(5 - room)
        assert cache.load(saved, pool, model="a model") == room
        assert (cache.free_count, cache.cached_count, cache.evictions) == (0, 1 + room, 0)
        assert len(found(cache, pool, range(12))[0]) == in_first
        assert len(found(cache, pool, [*range(8), 50, 51, 52, 53])[0]) == in_second


def test_what_is_here_already_stays_where_it_is(saved):
    cache, pool = empty()
    bits = remember(cache, pool, range(9))  # 2 of the 4
    before = cache.find_whole(cache.chain(range(8)))
    assert cache.load(saved, pool, model="a model") == 2
    assert cache.find_whole(cache.chain(range(12)))[:2] == before
    assert same(found(cache, pool, range(8)), bits)
    assert cache.in_use == 0


def test_an_evicted_beginning_leaves_its_end_out(tmp_path):
    """What cannot be found is not saved: [4..7] is there, but [0..3] before it is gone."""
    cache, pool = empty(4)
    twin = cache.allocate_n(1)
    cache.register(cache.chain(range(4)), twin)
    chain, blocks = cache.chain(range(8)), cache.allocate_n(2)
    cache.register(chain, blocks)
    cache.free(twin)
    cache.free(cache.allocate_n(2))
    assert cache.findable_blocks == (blocks[1],)
    assert cache.save(tmp_path / "cache", pool, model="a model") == 0
    assert empty(4)[0].load(tmp_path / "cache", pool, model="a model") == 0


def test_two_models_in_one_budget_save_each_its_own(tmp_path):
    """Pools of other head_dim and layers over one cache: a salt says whose K and V they are."""
    cache, small = empty(16)
    large = PagedPool(num_blocks=16, num_layers=3, num_kv_heads=1, block_size=4, head_dim=64, dtype=mx.float32)
    of_small = remember(cache, small, range(12), b"small")
    of_large = remember(cache, large, range(8), b"large")
    assert cache.save(tmp_path / "small", small, model="small", salts=[b"small"]) == 3
    assert cache.save(tmp_path / "large", large, model="large", salts=[b"large"]) == 2
    cache.forget()
    small, large = (PagedPool(num_blocks=16, **sizes) for sizes in (
        SIZES, {"num_layers": 3, "num_kv_heads": 1, "block_size": 4, "head_dim": 64, "dtype": mx.float32}
    ))  # fmt: skip
    assert cache.load(tmp_path / "large", large, model="large") == 2
    assert cache.load(tmp_path / "small", small, model="small") == 3
    assert same(found(cache, small, range(12), b"small"), of_small)
    assert same(found(cache, large, range(8), b"large"), of_large)
    with pytest.raises(CacheFileError, match="made for another cache: model is 'small', here 'large'"):
        cache.load(tmp_path / "small", large, model="large")


def test_a_colliding_hash_loads_less_and_nothing_wrong(saved):
    _, pool = empty()
    cache = PrefixCache(BlockAllocator(12), block_size=4, hash_function=lambda data: b"the same for everything")
    assert cache.load(saved, pool, model="a model") == 1
    assert (cache.free_count, cache.cached_count) == (11, 1)
    original, its_pool = empty()
    original.load(saved, its_pool, model="a model")
    assert same(found(cache, pool, range(4)), found(original, its_pool, range(4)))


# ------------------------------------------------------------------------------------------------------------ refusals


def refused(path, message, cache_and_pool=None, model="a model"):
    """Nothing is loaded, nothing is held, no bit of the pool changes."""
    cache, pool = cache_and_pool or empty()
    before = stored_bytes(pool)
    with pytest.raises(CacheFileError, match=message):
        cache.load(path, pool, model=model)
    assert (cache.free_count, cache.findable_count, cache.in_use) == (cache.capacity, 0, 0)
    assert stored_bytes(pool) == before


def test_truncated_anywhere(saved):
    """At the ends of the header's size, of the header, of each array, and in the middle of each."""
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    arrays = json.loads(whole[8:header])
    ends = {header + end for name, x in arrays.items() if name != "__metadata__" for end in x["data_offsets"]}
    assert max(ends) == len(whole) and len(ends) == 6  # of tokens and four arrays
    for length in {0, 4, 8, 9, header // 2, header - 1, *ends, *(end - 1 for end in ends), *(end - 7 for end in ends)}:
        if length < len(whole):
            saved.write_bytes(whole[:length])
            refused(saved, str(saved))
    saved.write_bytes(whole + b"\0")
    refused(saved, "altered or truncated")


def test_any_altered_byte(saved):
    """Every byte of the header, and some of each array; a bit each time."""
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    cache, pool = empty()
    before = stored_bytes(pool)
    for at in [*range(header), *range(header, len(whole), 61), len(whole) - 1]:
        altered = bytearray(whole)
        altered[at] ^= 1 << at % 8
        saved.write_bytes(altered)
        with pytest.raises(CacheFileError):
            cache.load(saved, pool, model="a model")
    assert (cache.free_count, cache.findable_count) == (cache.capacity, 0)
    assert stored_bytes(pool) == before
    saved.write_bytes(whole)
    assert cache.load(saved, pool, model="a model") == 4


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_layers": 3}, "num_layers is 2, here 3"),
        ({"num_kv_heads": 1}, "num_kv_heads is 2, here 1"),
        ({"block_size": 2}, "block_size is 4, here 2"),
        ({"head_dim": 8}, "head_dim is 16, here 8"),
        ({"dtype": "bfloat16"}, "dtype is 'mlx.core.float16', here 'mlx.core.bfloat16'"),
        ({"layout": LAYOUTS[1]}, "layout is 'HND', here 'NHD'"),
    ],
)
def test_made_for_another_cache(saved, changes, message):
    refused(saved, f"made for another cache: {message}", empty(**changes))


def test_made_by_another_model(saved):
    refused(saved, "made for another cache: model is 'a model', here 'its younger sister'", model="its younger sister")


def test_no_such_file_and_other_peoples_files(tmp_path):
    refused(tmp_path / "missing", "no prefix cache that can be read: .*No such file")
    refused(tmp_path, "no prefix cache that can be read: .*directory")
    (tmp_path / "text").write_text("Once upon a time there was a file that was no cache at all.")
    refused(tmp_path / "text", "no prefix cache that can be read")
    mx.save_safetensors(str(tmp_path / "weights.safetensors"), {"tokens": mx.zeros((4, 4))}, {"format": "mlx"})
    refused(tmp_path / "weights.safetensors", "no prefix cache that can be read")
    mx.save_safetensors(str(tmp_path / "forged.safetensors"), {"tokens": mx.zeros((4, 4))}, {"sha256": "0" * 64})
    refused(tmp_path / "forged.safetensors", "altered or truncated")


def test_a_pool_that_is_not_the_caches(saved):
    cache, pool = empty(12)
    _, smaller = empty(11)
    _, other = empty(12, block_size=2)
    for wrong in (smaller, other):
        with pytest.raises(ValueError, match="pool: expected the cache's 12 blocks of 4 tokens, got"):
            cache.load(saved, wrong, model="a model")
        with pytest.raises(ValueError, match="pool: expected the cache's 12 blocks of 4 tokens, got"):
            cache.save(saved, wrong, model="a model")
    assert cache.load(saved, pool, model="a model") == 4


def test_a_write_to_the_pool_that_fails_leaves_nothing_findable(saved, monkeypatch):
    """K and V are written before they can be found: at no moment does a block promise what it does not hold."""
    cache, pool = empty()

    def fails(blocks, contents):
        assert len(blocks) == 4 and cache.findable_count == 0
        raise MemoryError

    monkeypatch.setattr(pool, "write_blocks", fails)
    with pytest.raises(MemoryError):
        cache.load(saved, pool, model="a model")
    assert (cache.free_count, cache.findable_count) == (12, 0)


@pytest.mark.parametrize("path", ["missing/cache", "file/cache", "folder"])
def test_a_place_that_cannot_be_written(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    cache, pool = empty()
    remember(cache, pool, range(9))
    with pytest.raises(CacheFileError, match="path: cannot write"):
        cache.save(tmp_path / path, pool, model="a model")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and os.listdir(tmp_path / "folder") == ["full"]


def test_a_full_disk_leaves_the_old_file(saved):
    whole = saved.read_bytes()
    cache, pool = empty()
    remember(cache, pool, range(40))
    old = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[0][1]))
    try:
        with pytest.raises(CacheFileError, match="path: cannot write"):
            cache.save(saved, pool, model="a model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old[0])
        signal.signal(signal.SIGXFSZ, old[1])
    assert saved.read_bytes() == whole and os.listdir(saved.parent) == ["cache"]


def test_a_second_process_starts_warm(tmp_path):
    """Another Python saves; this one finds the prompt, with K and V that attention reads as they were written."""
    program = """
import sys, mlx.core as mx
from paged_core import BlockAllocator, PagedPool, PrefixCache
pool = PagedPool(num_blocks=12, num_layers=2, num_kv_heads=2, block_size=4, head_dim=16)
cache = PrefixCache(BlockAllocator(12), block_size=4)
blocks = cache.allocate_n(3)
k = mx.broadcast_to(mx.arange(12, dtype=mx.float16)[:, None, None], (12, 2, 16))
for layer in range(2):
    pool.write(layer, k + layer, -k, mx.arange(12, dtype=mx.int32))
cache.register(cache.chain(range(500, 512)), blocks)
print(cache.save(sys.argv[1], pool, model="a model"))
"""
    path = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": str(Path(paged_core.__file__).parents[1]), "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "3\n"
    cache, pool = empty()
    assert cache.load(path, pool, model="a model") == 3
    blocks = cache.match(cache.chain(range(500, 513)))
    assert (len(blocks), cache.hits, cache.misses) == (3, 3, 0)
    for layer in range(2):
        k, v = pool.gather(layer, blocks, 12)
        assert (k[:, 1, 15] - layer).tolist() == (-v[:, 0, 0]).tolist() == list(range(12))
