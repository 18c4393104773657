"""python -m paged_core generate: a trained model answers in the terminal, from a paged cache."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from paged_core.engine import Engine
from paged_core.models import load
from paged_core.sampling import Sampling

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def run(
    prompts: Sequence[str],
    *,
    model: str | None = None,
    max_new_tokens: int = 100,
    sampling: Sampling,
    num_blocks: int = 512,
    executor: str = "auto",
    out: TextIO | None = None,
) -> None:
    """Continue every prompt, all at once. One is written as its tokens come; several have a bar, and then their texts.

    Errors as `models.load` and `Engine.generate` raise them; ValueError for a prompt without text.
    """
    out = out or sys.stdout
    checkpoint = load(model)
    tokenizer = checkpoint.tokenizer
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    if not all(encoded):
        raise ValueError("prompt: expected some text to go on from, got none")
    engine = Engine.of(checkpoint.model, num_blocks=num_blocks, executor=executor)
    alone = len(prompts) == 1
    answers: list[list[int]] = [[] for _ in prompts]
    words = _Words(tokenizer, encoded[0])
    progress = not alone and sys.stderr.isatty()
    started = time.perf_counter()
    for id, token, _ in engine.generate(encoded, max_new_tokens=max_new_tokens, sampling=sampling, progress=progress):
        if alone:
            out.write(words.after(token) if answers[id] else prompts[0] + words.after(token))
            out.flush()
        answers[id].append(token)
    seconds = time.perf_counter() - started
    if not alone:
        out.write("\n\n".join(tokenizer.decode([*p, *a]) for p, a in zip(encoded, answers, strict=True)))
    count = sum(map(len, answers))
    out.write(
        f"\n\n{count} tokens for {len(prompts)} prompt{'' if alone else 's'} in {seconds:.2f} s, "
        f"{count / seconds:,.0f} a second; {engine.scheduler.blocks.peak_in_use} of {num_blocks} blocks at most\n"
    )


class _Words:
    """Text from tokens as they come. A token may be half a letter: it is held back until the other half is there."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._stream = tokenizer, DecodeStream(ids=prompt, skip_special_tokens=True)

    def after(self, token: int) -> str:
        return self._stream.step(self._tokenizer, token) or ""
