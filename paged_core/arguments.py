"""Checks of the arrays a caller passed: every refusal names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from paged_core.errors import InvalidBlockTable

DTYPES = (mx.float32, mx.float16, mx.bfloat16)  # what a pool may hold


def check_shape(name: str, x: mx.array, expected: tuple[int | str, ...]) -> None:
    """Compare with `expected`, where a string names a size that may be anything."""
    if not isinstance(x, mx.array):
        raise TypeError(f"{name}: expected an mlx array, got {type(x).__name__}")
    shape = x.shape
    if len(shape) == len(expected) and all(isinstance(e, str) or e == s for s, e in zip(shape, expected, strict=True)):
        return
    raise ValueError(f"{name}: expected shape [{', '.join(map(str, expected))}], got {list(shape)}")


def check_dtype(name: str, x: mx.array, expected: mx.Dtype, words: str = "dtype") -> None:
    """TypeError for an array of another dtype than `expected`; `words` say whose that is."""
    if x.dtype != expected:
        raise TypeError(f"{name}: expected {words} {expected}, got {x.dtype}")


def check_pool_dtype(name: str, dtype: mx.Dtype) -> None:
    """TypeError for what no pool can hold; for a dtype's name, too, since MLX takes none."""
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected mx.float32, mx.float16 or mx.bfloat16, got {dtype!r}")


def as_host_ints(name: str, x: mx.array | NDArray | Sequence[int]) -> NDArray[np.integer]:
    """The integers of `x` on the host; for an mlx array this waits until they have been computed."""
    if isinstance(x, mx.array) and not mx.issubdtype(x.dtype, mx.integer):
        raise TypeError(f"{name}: expected integers, got {x.dtype}")
    values = np.asarray(x)
    if values.size and values.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {values.dtype}")
    return values.astype(np.int64)  # a copy: a view of MLX's memory must not outlive this call


def query_starts(query_start_loc: mx.array | None, num_seqs: int) -> NDArray[np.integer]:
    """query_start_loc on the host; None is decode, one query a sequence."""
    if query_start_loc is None:
        return np.arange(num_seqs + 1)
    return as_host_ints("query_start_loc", query_start_loc)


def check_fits_tables(contexts: NDArray[np.integer], max_blocks: int, block_size: int) -> None:
    """InvalidBlockTable for a sequence with more tokens than a row of block_tables has room for."""
    room = max_blocks * block_size
    for seq in np.flatnonzero(contexts > room):
        raise InvalidBlockTable(
            f"context_lens[{seq}]: expected at most {room} tokens (block_tables has {max_blocks} entries a sequence, "
            f"a block {block_size} tokens), got {contexts[seq]}"
        )


def check_query_starts(starts: NDArray[np.integer], num_tokens: int | None = None) -> None:
    """query_start_loc begins with 0, never falls, and ends with the number of query tokens (`num_tokens`, if known)."""
    if starts[0] != 0 or (np.diff(starts) < 0).any():
        raise ValueError(f"query_start_loc: expected to begin with 0 and never fall, got {starts.tolist()}")
    if num_tokens is not None and starts[-1] != num_tokens:
        raise ValueError(f"query_start_loc: expected to end with the {num_tokens} tokens of q, got {starts[-1]}")
