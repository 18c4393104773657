"""The shipped model, in tokens a second: the paged engine beside mlx-lm on the same folder, alone and 32 at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import batch_generate, generate_step, generation_stream

from benchmarks.timing import medians
from paged_core import Engine
from paged_core.models import load, shipped
from paged_core.models.arrays import namespace

NEW = 64  # tokens an answer
AT_ONCE = 32
PROMPTS = [
    "In the beginning God created the heaven and the earth.",
    "And it came to pass in those days,",
    "The LORD is my shepherd; I shall not want.",
    "And Jesus answered and said unto them,",
]


def prompts(encode: Callable[[str], list[int]]) -> list[list[int]]:
    """No two alike: each is one of four, and a number."""
    return [encode(f"{PROMPTS[i % len(PROMPTS)]} {i}") for i in range(AT_ONCE)]


def paged(dtype: mx.Dtype | None) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """The engine, with blocks of 16 and no prefix cache: every prompt is computed each time."""
    checkpoint = load(dtype=dtype)
    engine = Engine.of(checkpoint.model, prefix_cache=False, max_running=AT_ONCE)
    asked = prompts(lambda text: checkpoint.tokenizer.encode(text).ids)
    for count in (1, AT_ONCE):

        def serve(count: int = count) -> None:
            given = sum(1 for _ in engine.generate(asked[:count], max_new_tokens=NEW, stop_tokens=()))
            assert given == count * NEW

        yield f"paged engine, {count} at a time", count, serve


def dense(dtype: mx.Dtype | None) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """mlx-lm: `generate_step`, which is `generate` without the making of text; and its own batches."""
    model, tokenizer = mlx_lm.load(str(shipped()))
    if dtype is not None:
        model.set_dtype(dtype)
    tokenizer.eos_token_ids = set()
    asked = prompts(tokenizer.encode)

    def alone() -> None:
        given = sum(1 for _ in generate_step(mx.array(asked[0]), model, max_tokens=NEW))
        assert given == NEW
        mx.synchronize(generation_stream)  # it computes a token ahead, which is not to fall on whoever comes next

    def batch() -> None:
        batch_generate(model, tokenizer, asked, max_tokens=NEW)
        mx.synchronize(generation_stream)

    yield "mlx-lm's generate, 1 at a time", 1, alone
    yield f"mlx-lm's batch_generate, {AT_ONCE}", AT_ONCE, batch


def main(rounds: int = 15) -> None:
    print(f"Answers of {NEW} tokens, greedily; medians of {rounds} runs, taken in turns. Prompts included.\n")
    for words, dtype in (("float32", mx.float32), ("as shipped, float16", None)):
        candidates = [*paged(dtype), *dense(dtype)]
        taken = medians({name: run for name, _, run in candidates}, rounds)
        speed = {name: count * NEW / taken[name] for name, count, _ in candidates}
        one, many, mlx_one, mlx_many = speed.values()
        print(f"{words}{'tokens a second':>{52 - len(words)}}")
        for name, tokens in speed.items():
            print(f"  {name:36}{tokens:14,.0f}")
        print(f"  {f'engine: {AT_ONCE} at a time / 1':36}{many / one:14.1f}")
        print(f"  {'1 at a time: engine / mlx-lm':36}{one / mlx_one:14.1f}")
        print(f"  {f'{AT_ONCE} at a time: engine / mlx-lm':36}{many / mlx_many:14.1f}\n")
    if namespace() is not mx:
        print("On this device the engine multiplies by NumPy's BLAS and mlx-lm by MLX's: most of what they differ by.")
