"""The arrays that a model computes with: NumPy's on a CPU, MLX's on a GPU. The model's code is one; `xp` is either.

MLX's package for Linux brings a plain BLAS: on two cores its products reach 5 GFLOP/s where NumPy's OpenBLAS reaches 45
(one token) to 180 (32 tokens). The pool and the kernels are MLX's everywhere; what crosses over is one layer's q, k and
v on the way in and its output on the way out.

Activations are float32 in both. A weight is float32 on a CPU, and on a GPU of the dtype that the model was loaded in.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np

try:
    from threadpoolctl import ThreadpoolController
except ModuleNotFoundError:
    raise ModuleNotFoundError("paged_core.models needs threadpoolctl: pip install threadpoolctl") from None

FEW_TOKENS = 64
Array = Any  # np.ndarray or mx.array, as `xp` says


def namespace() -> ModuleType:
    """NumPy or mlx.core, by MLX's default device."""
    return np if mx.default_device().type == mx.DeviceType.cpu else mx


def from_mlx(xp: ModuleType, x: mx.array) -> Array:
    """An MLX array's numbers as a float32 array of `xp`; on a CPU a copy, since MLX may reuse the memory."""
    x = x.astype(mx.float32)
    return x if xp is mx else np.array(x)


def to_mlx(x: Array, dtype: mx.Dtype) -> mx.array:
    """The other way: an array of either kind as an MLX array of `dtype`."""
    return (x if isinstance(x, mx.array) else mx.array(x)).astype(dtype)


def blas_threads(num_tokens: int) -> AbstractContextManager:
    """For a few tokens, NumPy's products by one thread. Two that wait for each other a hundred times a step gain little
    where nobody else computes; where somebody does, each wait lasts until the other one's turn: ten times as long.
    """
    if num_tokens > FEW_TOKENS:
        return nullcontext()
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


class Linear:
    """x @ weight.T + bias: weight [out, in], bias [out] or none; float32 [tokens, in] to float32 [tokens, out]."""

    def __init__(self, xp: ModuleType, weight: mx.array, bias: mx.array | None = None) -> None:
        self.weight: Array = from_mlx(np, weight) if xp is np else weight
        self.bias: Array | None = None if bias is None else from_mlx(xp, bias)

    def __call__(self, x: Array) -> Array:
        if isinstance(x, mx.array):  # converting x is cheap, converting the weight is not
            y = (x.astype(self.weight.dtype) @ self.weight.T).astype(mx.float32)
        else:
            y = x @ self.weight.T
        return y if self.bias is None else y + self.bias
