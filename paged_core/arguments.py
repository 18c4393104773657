"""Checks of the arrays a caller passed: every refusal names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


def check_shape(name: str, x: mx.array, expected: tuple[int | str, ...]) -> None:
    """Compare with `expected`, where a string names a size that may be anything."""
    if not isinstance(x, mx.array):
        raise TypeError(f"{name}: expected an mlx array, got {type(x).__name__}")
    shape = x.shape
    if len(shape) == len(expected) and all(isinstance(e, str) or e == s for s, e in zip(shape, expected, strict=True)):
        return
    raise ValueError(f"{name}: expected shape [{', '.join(map(str, expected))}], got {list(shape)}")


def check_dtype(name: str, x: mx.array, expected: mx.Dtype) -> None:
    if x.dtype != expected:
        raise TypeError(f"{name}: expected dtype {expected}, got {x.dtype}")


def as_host_ints(name: str, x: mx.array | NDArray | Sequence[int]) -> NDArray[np.integer]:
    """The integers of `x` on the host; for an mlx array this waits until they have been computed."""
    if isinstance(x, mx.array) and not mx.issubdtype(x.dtype, mx.integer):
        raise TypeError(f"{name}: expected integers, got {x.dtype}")
    values = np.asarray(x)
    if values.size and values.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {values.dtype}")
    return values.astype(np.int64)  # a copy: a view of MLX's memory must not outlive this call


def check_query_starts(starts: NDArray[np.integer], num_tokens: int | None = None) -> None:
    """query_start_loc begins with 0, never falls, and ends with the number of query tokens (`num_tokens`, if known)."""
    if starts[0] != 0 or (np.diff(starts) < 0).any():
        raise ValueError(f"query_start_loc: expected to begin with 0 and never fall, got {starts.tolist()}")
    if num_tokens is not None and starts[-1] != num_tokens:
        raise ValueError(f"query_start_loc: expected to end with the {num_tokens} tokens of q, got {starts[-1]}")
