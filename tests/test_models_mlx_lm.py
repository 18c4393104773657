"""mlx-lm's own models on a paged pool: token by token what they write with mlx-lm's own cache, and the blocks accounted
for, whatever is forked, trimmed, found again, or refused.

Every pool here is full of NaN before it is used, and its blocks are handed out in no order.
"""

import copy
import importlib
import json
import sys
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest

mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: pip install mlx-lm")

from mlx.utils import tree_flatten, tree_map  # noqa: E402
from mlx_lm.generate import batch_generate, generate_step, speculative_generate_step  # noqa: E402
from mlx_lm.models import gemma3_text, llama, qwen3  # noqa: E402
from mlx_lm.models.cache import (  # noqa: E402
    ArraysCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
    trim_prompt_cache,
)

from paged_core import BlockAllocator, InvalidBlock, PoolExhausted, PoolLayout, PrefixCache  # noqa: E402
from paged_core.models.mlx_lm import PagedLayerCache, paged_prompt_cache  # noqa: E402
from tests.cases import LAYOUTS, shuffled_allocator, stored_bytes  # noqa: E402

VOCABULARY, WINDOW, BLOCK_SIZE = 97, 8, 4
SIZES = {
    "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS = {
    "llama": (llama, {"tie_word_embeddings": False}),
    "qwen3": (qwen3, {"tie_word_embeddings": False, "rope_theta": 1e4}),
    # every second layer sees everything, the others 8 tokens
    "gemma3_text": (gemma3_text, {"sliding_window": WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16}),
}
FULL = ("llama", "qwen3")  # every layer sees everything


def model_of(name, dtype="float32", seed=0):
    module, options = CONFIGS[name]
    model = module.Model(module.ModelArgs(model_type=name, **SIZES, **options))
    rng = np.random.default_rng(seed)

    def weight(x):
        return mx.array(rng.normal(0, 0.3, x.shape), mx.float32).astype(getattr(mx, dtype))

    model.update(tree_map(weight, model.parameters()))
    mx.eval(model.parameters())
    return model


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


def paged(model, num_blocks=32, allocator=None, **options):
    allocator = allocator or shuffled_allocator(num_blocks)
    cache = paged_prompt_cache(model, num_blocks=num_blocks, block_size=BLOCK_SIZE, allocator=allocator, **options)
    for array in cache.pool.arrays:
        array[:] = mx.nan
    mx.eval(cache.pool.arrays)
    return cache


def generated(model, prompt, cache, max_tokens=40, **options):
    """Greedy: the tokens, and the logarithms of all probabilities at each."""
    steps = list(generate_step(mx.array(prompt), model, prompt_cache=cache, max_tokens=max_tokens, **options))
    return [token for token, _ in steps], mx.stack([logprobs for _, logprobs in steps])


def in_step(cache):
    """Layers, table and allocator agree."""
    return (
        {layer.offset for layer in cache} == {cache.seq.len}
        and len(cache.seq.blocks) == -(-cache.seq.len // BLOCK_SIZE)
        and cache.seq.block_table.tolist()[: len(cache.seq.blocks)] == cache.seq.blocks
        and cache.seq.context_lens.item() == cache.seq.len
    )


# ---- the same answer


@pytest.mark.parametrize("prefill_step_size", [2048, 7])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_lm_writes_what_it_writes_with_its_own_cache(name, dtype, prefill_step_size):
    model, prompt = model_of(name, dtype), prompt_of(37)
    own, cache = make_prompt_cache(model), paged(model)
    expected, expected_logprobs = generated(model, prompt, own, prefill_step_size=prefill_step_size)
    tokens, logprobs = generated(model, prompt, cache, prefill_step_size=prefill_step_size)
    assert tokens == expected and len(set(tokens)) > 5
    if name in FULL:
        assert mx.array_equal(logprobs, expected_logprobs)  # the same arithmetic, bit for bit
    else:
        # mlx-lm's rotating cache hands out a window's tokens in another order, and sums round differently
        difference = mx.abs(logprobs - expected_logprobs).max().item()
        assert difference <= 64 * mx.finfo(logprobs.dtype).eps * mx.abs(expected_logprobs).max().item()
    assert cache.pool.dtype == getattr(mx, dtype) and cache.seq.len == 37 + 40 == own[-1].offset and in_step(cache)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mlx_lm_in_every_layout(layout):
    model, prompt = model_of("gemma3_text"), prompt_of(21)
    expected, _ = generated(model, prompt, make_prompt_cache(model), 30)
    assert generated(model, prompt, paged(model, layout=layout), 30)[0] == expected


@pytest.mark.parametrize("window_size", [None, WINDOW])
def test_mlx_lm_sliding_layer_is_handed_what_the_rotating_cache_would_hand_it(window_size):
    """K of a token is its position. The same positions, in order, and the same mask."""
    cache = paged(model_of("gemma3_text"), num_blocks=64)
    sliding, own = cache[0], RotatingKVCache(WINDOW)
    assert [layer.window for layer in cache] == [WINDOW, None, WINDOW]
    for num_tokens in (3, 1, 2, 9, 1, 1, 20, 1, 1, 1, 7, 5, 1):
        for return_array in (False, True):
            mask, expected = (c.make_mask(num_tokens, window_size, return_array) for c in (sliding, own))
            if isinstance(expected, mx.array):
                assert mx.array_equal(mask, expected)
            else:
                assert mask is expected or mask == expected == "causal"
        positions = mx.arange(sliding.offset, sliding.offset + num_tokens, dtype=mx.float32)
        k = mx.broadcast_to(positions[None, None, :, None], (1, 2, num_tokens, 16))
        handed, expected = sliding.update_and_fetch(k, -k), own.update_and_fetch(k, -k)
        for layer in cache[1:]:
            layer.update_and_fetch(k, k)
        assert handed[0][0, 0, :, 0].tolist() == sorted(expected[0][0, 0, :, 0].tolist())
        assert mx.array_equal(handed[1], -handed[0]) and mx.array_equal(sliding.keys_and_values()[0], handed[0])


def test_mlx_lm_window_narrower_than_the_layers_own():
    """A mask for one token, where the model asks for 3 of the 8 tokens that the layer is handed."""
    cache = paged(model_of("gemma3_text"))
    k = mx.zeros((1, 2, 11, 16))
    for layer in cache:
        layer.update_and_fetch(k, k)
    assert cache[0].make_mask(1, window_size=3).tolist() == [[False] * 5 + [True] * 3]
    assert cache[0].make_mask(1) is None and cache[1].make_mask(1) is None


@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_lm_conversations_take_turns_in_one_pool(name):
    model = model_of(name)
    prompts = [prompt_of(length, seed) for seed, length in enumerate((19, 5, 30))]
    expected = [generated(model, prompt, make_prompt_cache(model), 30)[0] for prompt in prompts]
    first = paged(model, num_blocks=40)
    caches = [first, first.another(), first.another()]
    turns = [
        generate_step(mx.array(prompt), model, prompt_cache=cache, max_tokens=30)
        for prompt, cache in zip(prompts, caches, strict=True)
    ]
    written = [[step[0] for step in steps] for steps in zip(*zip(*turns, strict=True), strict=True)]
    assert written == expected and all(map(in_step, caches))
    assert first.allocator.in_use == sum(len(cache.seq.blocks) for cache in caches) == 13 + 9 + 15
    for cache in caches:
        cache.release()
        assert in_step(cache) and cache.seq.len == 0
    assert first.allocator.in_use == 0
    assert generated(model, prompts[1], caches[2], 30)[0] == expected[1]  # released, and used again


def test_mlx_lm_goes_on_where_it_stopped():
    model, prompt, more = model_of("qwen3"), prompt_of(9), prompt_of(6, seed=1)
    own, cache = make_prompt_cache(model), paged(model)
    for tokens in (prompt, more):
        assert generated(model, tokens, cache, 20)[0] == generated(model, tokens, own, 20)[0]
    assert cache.seq.len == 9 + 20 + 6 + 20


# ---- trim, fork, prefix


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_lm_trim_gives_blocks_back_and_forgets(name, whole):
    """Of 20 + 30 tokens, 17 are left: what comes then is what comes after those 17, sliding layers included."""
    model, prompt = model_of(name), prompt_of(20)
    cache = paged(model)
    generated(model, prompt, cache, 30)
    assert cache[0].is_trimmable() and cache.allocator.in_use == 13
    assert (cache.trim(33) if whole else trim_prompt_cache(cache, 33)) == 33
    assert in_step(cache) and cache.seq.len == 17 and cache.allocator.in_use == 5
    own = make_prompt_cache(model)
    model(mx.array(prompt[:17])[None], cache=own)
    more = prompt_of(3, seed=2)
    assert generated(model, more, cache, 20)[0] == generated(model, more, own, 20)[0]
    assert cache.trim(99) == 40 and in_step(cache) and cache.allocator.in_use == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_lm_speculates(name):
    """A draft model of other weights: most guesses are wrong, so both caches are trimmed all the time."""
    model, draft, prompt = model_of(name), model_of("llama", seed=5), prompt_of(15)
    expected, _ = generated(model, prompt, make_prompt_cache(model), 30)
    caches = paged(model), paged(draft)
    steps = speculative_generate_step(mx.array(prompt), model, draft, max_tokens=30, prompt_cache=caches[0] + caches[1])
    assert [token for token, _, _ in steps] == expected
    assert all(map(in_step, caches)) and caches[0].seq.len < 15 + 30 + 3


@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_lm_forks_share_what_they_have_in_common(name):
    model, prompt = model_of(name), prompt_of(18)
    cache = paged(model)
    generated(model, prompt, cache, 4)  # 22 tokens: the last of 6 blocks is half full
    fork = cache.fork()
    assert in_step(fork) and fork.seq.blocks == cache.seq.blocks and cache.allocator.in_use == 6
    own = make_prompt_cache(model)
    own_tokens = generated(model, prompt, own, 4)[0]
    for branch, token in ((fork, 5), (cache, 6)):
        again = make_prompt_cache(model)
        model(mx.array(prompt + own_tokens)[None], cache=again)
        assert generated(model, [token], branch, 20)[0] == generated(model, [token], again, 20)[0]
    assert fork.seq.blocks[:5] == cache.seq.blocks[:5] and fork.seq.blocks[5] != cache.seq.blocks[5]
    fork.release()
    cache.release()
    assert cache.allocator.in_use == 0
    with pytest.raises(InvalidBlock, match="nothing to fork"):
        cache.fork()


@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_lm_finds_a_known_beginning(name):
    model, prompt = model_of(name), prompt_of(26)
    blocks = PrefixCache(shuffled_allocator(32), block_size=BLOCK_SIZE)
    first = paged(model, allocator=blocks)
    assert first.match(prompt) == 0
    tokens, _ = generated(model, prompt, first, 20)
    first.register(prompt + tokens)
    second = first.another()
    held = second.match(mx.array(prompt))
    assert held == 24 and second.seq.blocks == first.seq.blocks[:6] and in_step(second)
    assert generated(model, prompt[held:], second, 20)[0] == tokens
    first.release()
    second.release()
    assert blocks.in_use == 0 and blocks.cached_count == 11  # of 46 tokens
    third = first.another()
    assert third.match([*prompt, *tokens, 1]) == 44
    third.trim(2)  # into a findable block: it is copied before another token is written over what others may find
    assert in_step(third) and blocks.ref_count(third.seq.blocks[-1]) == 1
    generated(model, [3, 4], third, 3)
    third.release()
    assert third.match([*prompt, *tokens, 1]) == 44
    assert (
        generated(model, [*prompt, *tokens, 1][44:], third, 10)[0]
        == generated(model, [*prompt, *tokens, 1], make_prompt_cache(model), 10)[0]
    )
    with pytest.raises(ValueError, match="match: expected an empty conversation, this one holds 57 tokens"):
        third.match(prompt)


def test_mlx_lm_models_with_different_salts_never_meet():
    blocks = PrefixCache(BlockAllocator(32), block_size=BLOCK_SIZE)
    one = paged(model_of("llama"), allocator=blocks, salt=b"one")
    two = paged(model_of("llama", seed=1), allocator=blocks, salt=b"two")
    prompt = prompt_of(12)
    one.register(prompt + generated(model_of("llama"), prompt, one, 5)[0])
    assert two.match(prompt) == 0 and one.another().match(prompt) == 8


# ---- running out, and being broken off


@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_lm_runs_out_of_blocks_and_goes_on_when_there_are_some(name):
    model, prompt = model_of(name), prompt_of(10)
    expected, _ = generated(model, prompt, make_prompt_cache(model), 30)
    other = paged(model, num_blocks=12)
    generated(model, prompt_of(20, seed=3), other, 8)  # 7 of 12 blocks
    cache = other.another()
    steps = generate_step(mx.array(prompt), model, prompt_cache=cache, max_tokens=30)
    tokens = [token for token, _ in islice(steps, 10)]
    held = list(cache.seq.blocks), cache.seq.len
    with pytest.raises(PoolExhausted) as caught:
        next(steps)
    assert (caught.value.needed, caught.value.free, caught.value.capacity) == (1, 0, 12)
    assert in_step(cache) and (cache.seq.blocks, cache.seq.len) == held and cache.seq.len == 5 * BLOCK_SIZE
    assert tokens == expected[:10]
    before = stored_bytes(cache.pool)
    with pytest.raises(PoolExhausted):
        model(mx.array([[1, 2, 3]]), cache=cache)
    assert in_step(cache) and (cache.seq.blocks, cache.seq.len) == held and stored_bytes(cache.pool) == before
    other.release()
    cache.trim(1)  # the last token again, for the one that was chosen after it
    assert generated(model, tokens[-1:], cache, 20)[0] == expected[10:30]
    cache.release()
    assert cache.allocator.in_use == 0


def test_mlx_lm_prompt_larger_than_the_pool():
    model = model_of("llama")
    cache = paged(model, num_blocks=6)
    with pytest.raises(PoolExhausted) as caught:
        generated(model, prompt_of(30), cache)
    assert (caught.value.needed, caught.value.free, caught.value.capacity) == (8, 6, 6)
    assert in_step(cache) and cache.allocator.in_use == 0


def test_mlx_lm_no_block_left_to_copy_a_shared_one_to():
    model, prompt = model_of("llama"), prompt_of(6)
    cache = paged(model, num_blocks=2)
    model(mx.array([prompt]), cache=cache)
    fork = cache.fork()
    with pytest.raises(PoolExhausted):
        model(mx.array([[1]]), cache=fork)
    assert in_step(fork) and fork.seq.blocks == cache.seq.blocks
    cache.release()
    model(mx.array([[1]]), cache=fork)
    assert in_step(fork) and fork.seq.len == 7


def test_mlx_lm_a_block_for_the_copy_but_none_to_grow_into():
    """6 tokens in two blocks of 4, both shared; three more need a copy of the second and a third, and one is free."""
    model, prompt = model_of("llama"), prompt_of(6)
    cache = paged(model, num_blocks=3)
    model(mx.array([prompt]), cache=cache)
    fork = cache.fork()
    with pytest.raises(PoolExhausted) as caught:
        model(mx.array([[1, 2, 3]]), cache=fork)
    assert (caught.value.needed, caught.value.free) == (2, 1)
    assert in_step(fork) and fork.seq.blocks == cache.seq.blocks and cache.allocator.free_count == 1


def test_mlx_lm_sliding_layer_trimmed_to_before_its_window():
    model = model_of("gemma3_text")
    cache = paged(model)
    model(mx.array([prompt_of(20)]), cache=cache)
    model(mx.array([[1]]), cache=cache)
    handed_out = cache[0].state[0].shape[2]
    cache.trim(16)
    assert handed_out == WINDOW and [layer.state[0].shape[2] for layer in cache] == [5] * 3


def test_mlx_lm_forward_pass_broken_off_between_two_layers():
    model, prompt = model_of("qwen3"), prompt_of(10)
    cache = paged(model)
    expected, _ = generated(model, prompt, make_prompt_cache(model), 20)
    model(mx.array([prompt[:-1]]), cache=cache)
    k = mx.zeros((1, 2, 5, 16))
    for layer in cache[:2]:
        layer.update_and_fetch(k, k)
    with pytest.raises(RuntimeError, match=r"layer 0 holds 14 tokens, the conversation 9: .* trim\(0\) forgets it"):
        model(mx.array([prompt[-1:]]), cache=cache)
    assert cache.seq.len == 9 and cache.trim(0) == 0 and in_step(cache)
    assert generated(model, prompt[-1:], cache, 20)[0] == expected


def test_mlx_lm_writes_in_place_and_a_pool_goes_with_its_last_conversation():
    model = model_of("gemma3_text")
    before = mx.get_active_memory()
    cache = paged(model, num_blocks=8192)
    generated(model, prompt_of(9), cache, 3)
    mx.reset_peak_memory()
    generated(model, prompt_of(9), cache, 10, prefill_step_size=4)
    assert mx.get_peak_memory() < before + cache.pool.nbytes + cache.pool.nbytes // 6  # not one array more
    layers = cache + []  # noqa: RUF005, a plain list, as mlx-lm makes them
    del cache
    generated(model, [1], layers, 3)
    del layers
    assert mx.get_active_memory() < before + 1_000_000


# ---- the protocol


def test_mlx_lm_asks_a_cache_what_it_holds():
    model = model_of("gemma3_text")
    cache = paged(model)
    assert all(layer.empty() and layer.size() == layer.nbytes == layer.offset == 0 for layer in cache)
    assert [x.shape for x in cache[0].state[:2]] == [(1, 2, 0, 16)] * 2
    assert isinstance(cache, list) and len(cache) == 3 and all(cache)  # mlx-lm asks for the truth of a cache
    model(mx.array([prompt_of(13)]), cache=cache)
    assert not cache[0].empty() and cache[0].size() == 13
    assert sum(layer.nbytes for layer in cache) == cache.pool.nbytes * 4 // 32
    keys, values, length = cache[1].state
    assert keys.shape == values.shape == (1, 2, 13, 16) and length == 13
    assert not any(hasattr(cache[0], name) for name in ("bits", "merge"))  # quantized; batched
    assert repr(cache).startswith("PagedPromptCache(3 layers, PagedSeqState(13 tokens in 4 block(s) of 4: [")


def test_mlx_lm_loads_a_folder_and_generates(tmp_path):
    """From disk and with no network: a config, weights, a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {**SIZES, "model_type": "llama", "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model_of("llama").parameters())))
    model, tokenizer = mlx_lm.load(str(tmp_path))
    cache, prompt = paged(model), "w3 w1 w4 w1 w5"
    expected = mlx_lm.generate(model, tokenizer, prompt, max_tokens=20)
    assert mlx_lm.generate(model, tokenizer, prompt, max_tokens=20, prompt_cache=cache) == expected
    assert len(expected) > 20 and cache.seq.len == 5 + 20
    streamed = mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=20, prompt_cache=cache.another())
    assert "".join(response.text for response in islice(streamed, 30)) == expected


# ---- refusals


class Model:
    """As much of a model as a cache sees."""

    def __init__(self, *layers, caches=None):
        self.layers, self.make_cache = layers, lambda: caches or [KVCache() for _ in layers]

    def __call__(self, tokens, cache):
        for (heads, k_dim, v_dim, dtype), layer in zip(self.layers, cache, strict=True):
            layer.update_and_fetch(*(mx.zeros((1, heads, tokens.shape[1], dim), dtype) for dim in (k_dim, v_dim)))


ALIKE = (2, 16, 16, mx.float16)


@pytest.mark.parametrize(
    "model, error, message",
    [
        (Model(ALIKE, (1, 24, 16, mx.float16)), ValueError, "layer 1 has keys of 24 and values of 16"),
        (Model(ALIKE, (1, 16, 16, mx.float16)), ValueError, "expected layers that are alike, got"),
        (Model((2, 12, 12, mx.float16)), ValueError, "head_dim: expected a multiple of 8 up to 512, got 12"),
        (Model(ALIKE, caches=[ArraysCache(2)]), TypeError, "layer 0 keeps a ArraysCache, which no paged pool can"),
        (Model(ALIKE, caches=[RotatingKVCache(8, keep=4)]), TypeError, "layer 0 keeps a RotatingKVCache, which"),
        (Model((2, 16, 16, mx.complex64)), TypeError, "dtype: expected mx.float32, mx.float16 or mx.bfloat16"),
    ],
)
def test_mlx_lm_models_that_no_pool_fits(model, error, message):
    with pytest.raises(error, match=message):
        paged_prompt_cache(model, num_blocks=8)


def test_mlx_lm_sizes_are_read_off_the_model_and_nothing_is_computed():
    cache = paged_prompt_cache(Model(ALIKE, ALIKE), num_blocks=8, layout=PoolLayout.NHD)
    pool = cache.pool
    assert (pool.num_layers, pool.num_kv_heads, pool.head_dim, pool.dtype) == (2, 2, 16, mx.float16)
    assert (pool.num_blocks, pool.block_size, pool.layout) == (8, 16, PoolLayout.NHD)
    assert isinstance(cache.allocator, BlockAllocator) and cache.allocator.capacity == 8
    model = model_of("llama")
    embedding = model.model.embed_tokens.weight = mx.zeros((VOCABULARY, 64)) / 0  # pending
    paged_prompt_cache(model, num_blocks=8)
    from tests.test_sequence import pending_operations

    assert pending_operations(embedding) > 0


@pytest.mark.parametrize(
    "allocator, error, message",
    [
        (BlockAllocator(7), ValueError, "allocator: expected one of 8 blocks, got one of 7"),
        (PrefixCache(BlockAllocator(8), block_size=8), ValueError, "allocator: expected blocks of 4 tokens, got 8"),
        ([1], TypeError, "allocator: expected a BlockAllocator or a PrefixCache, got list"),
    ],
)
def test_mlx_lm_allocators_that_do_not_fit(allocator, error, message):
    with pytest.raises(error, match=message):
        paged_prompt_cache(Model(ALIKE), num_blocks=8, block_size=4, allocator=allocator)


def test_mlx_lm_what_is_not_offered_is_refused_and_changes_nothing():
    model, prompt = model_of("llama"), prompt_of(9)
    cache = paged(model)
    model(mx.array([prompt]), cache=cache)
    before = stored_bytes(cache.pool), list(cache.seq.blocks), cache.allocator.free_count
    k = mx.zeros((1, 2, 5, 16))
    for given, error, message in (
        ((mx.zeros((2, 2, 5, 16)), k), ValueError, r"keys: expected shape \[1, 2, num_tokens, 16\], got \[2, 2, 5, 16"),
        ((k, k.astype(mx.float16)), TypeError, "values: expected dtype mlx.core.float32, got mlx.core.float16"),
    ):
        with pytest.raises(error, match=message):
            cache[0].update_and_fetch(*given)
    with pytest.raises(NotImplementedError, match="a paged cache is not quantized: leave kv_bits out"):
        generated(model, [1], cache, 3, kv_bits=8, quantized_kv_start=0)
    with pytest.raises(TypeError, match=r"a paged cache is not copied, .* use fork\(\)"):
        copy.deepcopy(cache)
    cache.trim(cache.seq.len - 9)
    for call in (cache.match, cache.register):
        with pytest.raises((TypeError, ValueError), match=r"PrefixCache|expected an empty conversation"):
            call(prompt)
    for n, error in ((-1, ValueError), (True, TypeError)):
        for trim in (cache.trim, cache[0].trim):
            with pytest.raises(error):
                trim(n)
    assert in_step(cache) and (before[1:]) == (list(cache.seq.blocks), cache.allocator.free_count)


def test_mlx_lm_batches_are_refused_by_mlx_lm_itself():
    class Tokenizer:
        eos_token_ids = frozenset({0})

    model = model_of("llama")
    with pytest.raises(ValueError, match=r"PagedLayerCache.* does not yet support batching with history"):
        batch_generate(model, Tokenizer(), [[1, 2], [3, 4]], [paged(model), paged(model)], max_tokens=3)
    assert not hasattr(PagedLayerCache, "merge")


def test_mlx_lm_missing_is_said_in_a_sentence(monkeypatch):
    monkeypatch.delitem(sys.modules, "paged_core.models.mlx_lm")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlx_lm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs mlx-lm, and there is no mlx_lm.* here: pip install mlx-lm"):
        importlib.import_module("paged_core.models.mlx_lm")
