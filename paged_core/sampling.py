"""Which token comes next: from logits to a choice by seed, stream and position, and by nothing else in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paged_core.scalars import finite, integer


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 takes the most likely one; above it one is drawn from
    softmax(logits / temperature), of the `top_k` most likely ones, and of these the fewest that together have at least
    the share `top_p` of the probability.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if finite("temperature", self.temperature) < 0:
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}")
        if self.top_k is not None:
            integer("top_k", self.top_k, at_least=1)
        if not 0 < finite("top_p", self.top_p) <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")
        if integer("seed", self.seed, at_least=0) >= 2**128:
            raise ValueError(f"seed: expected less than 2**128, got {self.seed}")

    def choose(self, logits: NDArray[np.float32], stream: int, position: int) -> int:
        """The next token from `logits` [vocab_size], for token number `position` of the request with number `stream`.

        The random number is a function of seed, stream and position (Salmon et al., Philox, 2011), so a request draws
        the same tokens alone, in a batch, and computed again after a preemption. ValueError for logits that are no
        numbers: something has overflowed, or an unwritten slot was read.
        """
        likeliest = int(np.argmax(logits))  # NaN, where there is one
        if not np.isfinite(logits[likeliest]):
            raise ValueError(f"logits: expected finite numbers, got {logits[likeliest]} for token {likeliest}")
        if self.temperature == 0:
            return likeliest
        tokens, cumulative = self.candidates(logits)
        philox = np.random.Philox(key=self.seed, counter=[position, stream, 0, 0])
        draw = np.random.Generator(philox).random() * cumulative[-1]
        return int(tokens[min(int(np.searchsorted(cumulative, draw, side="right")), len(tokens) - 1)])

    def candidates(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens that may be drawn, the likeliest first, and the running sums of their weights."""
        # Ties in order of the token, so that nothing depends on how a sort is done.
        tokens = np.argsort(-logits, kind="stable")[: self.top_k if self.temperature else 1]
        below = logits[tokens].astype(np.float64) - float(logits[tokens[0]])
        with np.errstate(over="ignore"):  # so unlikely that it is minus infinity
            cumulative = np.cumsum(np.exp(below / (self.temperature or 1)))
        if self.top_p < 1:
            kept = int(np.searchsorted(cumulative, self.top_p * cumulative[-1])) + 1
            tokens, cumulative = tokens[:kept], cumulative[:kept]
        return tokens, cumulative
