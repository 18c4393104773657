"""What the tests of attention share: the package's paged cases, the lists to run them over, and a pool's every byte."""

import mlx.core as mx
import numpy as np

from paged_core import PagedPool, PoolLayout
from paged_core.cases import (
    PagedCase,
    check_within,
    nan_pool,
    paged_case,
    query_starts,
    share_of_bound,
    shuffled_allocator,
    to_numpy,
)

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "PagedCase",
    "check_within",
    "nan_pool",
    "paged_case",
    "query_starts",
    "share_of_bound",
    "shuffled_allocator",
    "stored_bytes",
    "to_numpy",
]

DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = tuple(PoolLayout)


def stored_bytes(pool: PagedPool) -> list[bytes]:
    """Every byte of the pool, array by array: equal before and after a call that was refused."""
    arrays = [pool.k(layer) for layer in range(pool.num_layers)] + [pool.v(layer) for layer in range(pool.num_layers)]
    return [bytes(np.array(array.view(mx.uint8))) for array in arrays]
