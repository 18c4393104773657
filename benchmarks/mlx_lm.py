"""mlx-lm's generate over pages and over its own cache: what handing it gathered K and V costs, token by token."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.generate import generate_step, generation_stream
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from benchmarks.timing import medians
from paged_core.models.mlx_lm import PagedPromptCache, paged_prompt_cache

CONTEXTS = (16, 256, 1024, 4096)
NUM_TOKENS = 8  # generated each time, and then forgotten
SIZES = {
    "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8, "head_dim": 64,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "vocab_size": 4096, "max_position_embeddings": 8192,
}  # fmt: skip


def main(rounds: int = 15) -> None:
    print(
        f"\nA token of mlx-lm's generate, in ms: the median of {rounds} rounds of {NUM_TOKENS} tokens, caches taken in "
        f"turns.\nLlama with random weights, float32, {SIZES['num_hidden_layers']} layers, "
        f"{SIZES['num_key_value_heads']} KV heads of {SIZES['head_dim']}; blocks of 16 tokens.\n"
        "Writes and gathers are what the pool does for a token in all layers, timed alone."
    )
    print(f"  {'context':>8}{'own cache':>12}{'pages':>9}{'ratio':>8}{'writes':>10}{'gathers':>10}")
    model = llama()
    for context in CONTEXTS:
        own = make_prompt_cache(model)
        pages = paged_prompt_cache(model, num_blocks=-(-(context + NUM_TOKENS + 1) // 16))
        shape = (1, SIZES["num_key_value_heads"], context, SIZES["head_dim"])
        for cache in (*own, *pages):  # as if a prompt had been computed
            cache.update_and_fetch(mx.random.normal(shape), mx.random.normal(shape))
        mx.eval([cache.state for cache in own])
        candidates = {"own": generation(model, own), "pages": generation(model, pages), **parts(pages, context)}
        taken = {name: seconds * 1e3 for name, seconds in medians(candidates, rounds).items()}
        own_ms, pages_ms = (taken[name] / (NUM_TOKENS + 1) for name in ("own", "pages"))
        print(
            f"  {context:8,}{own_ms:12.2f}{pages_ms:9.2f}{pages_ms / own_ms:8.2f}"
            f"{taken['writes']:10.2f}{taken['gathers']:10.2f}"
        )


def llama() -> Model:
    model = Model(ModelArgs(model_type="llama", **SIZES))
    model.update(tree_map(lambda weights: 0.05 * mx.random.normal(weights.shape), model.parameters()))
    mx.eval(model.parameters())
    return model


def generation(model: Model, cache: list) -> Callable[[], None]:
    """From one token on; mlx-lm has then asked the model once more than there are tokens."""

    def run() -> None:
        for _ in generate_step(mx.array([3]), model, prompt_cache=cache, max_tokens=NUM_TOKENS):
            pass
        mx.synchronize(
            generation_stream
        )  # the model's answer to the last token, which nobody waits for, is paid for here
        trim_prompt_cache(cache, NUM_TOKENS + 1)

    return run


def parts(cache: PagedPromptCache, context: int) -> dict[str, Callable[[], None]]:
    """What the pool does for one token, of each layer."""
    pool, blocks = cache.pool, cache.seq.blocks
    k = mx.zeros((1, pool.num_kv_heads, pool.head_dim))
    slot = mx.array([blocks[-1] * pool.block_size], mx.int32)

    def writes() -> None:
        for layer in range(pool.num_layers):
            pool.write(layer, k, k, slot, check=False)

    def gathers() -> None:
        for layer in range(pool.num_layers):
            pool.gather(layer, blocks, context)

    return {"writes": writes, "gathers": gathers}
