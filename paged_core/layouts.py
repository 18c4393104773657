"""Where a number lives: the four pool layouts as shapes, strides and element offsets.

The Python twin of kernels/layouts.metal. Both answer one question, in elements from the start of an array: where is
(block, head, token, dim)? Here the answer is read off a shape, an order of axes and nothing else.
"""

from __future__ import annotations

from enum import Enum
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

X_BYTES = 16  # X_SPLIT keeps this many bytes of a head vector together: one 128-bit load

Index: TypeAlias = int | NDArray[np.integer]


class Geometry(NamedTuple):
    """The sizes of a pool, whatever its layout."""

    num_blocks: int
    num_kv_heads: int
    block_size: int
    head_dim: int


class PoolLayout(Enum):
    """The order in which one layer's K and V lie in memory. Shapes are C-contiguous, x = 16 bytes / itemsize.

    HND          K, V  [num_blocks, num_kv_heads, block_size, head_dim]
    NHD          K, V  [num_blocks, block_size, num_kv_heads, head_dim]            FlashAttention's paged order
    X_SPLIT      K     [num_blocks, num_kv_heads, head_dim/x, block_size, x]       vLLM's first kernels (SOSP 2023)
                 V     [num_blocks, num_kv_heads, head_dim, block_size]
    INTERLEAVED  KV    [num_blocks, 2, num_kv_heads, block_size, head_dim]         K and V of a block side by side
    """

    HND = "hnd"
    NHD = "nhd"
    X_SPLIT = "x_split"
    INTERLEAVED = "interleaved"

    def shapes(self, geometry: Geometry, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of one layer's K array and V array. In INTERLEAVED both are the shape of the one array."""
        n, h, b, d = geometry
        match self:
            case PoolLayout.HND:
                return (n, h, b, d), (n, h, b, d)
            case PoolLayout.NHD:
                return (n, b, h, d), (n, b, h, d)
            case PoolLayout.X_SPLIT:
                x = X_BYTES // itemsize
                return (n, h, d // x, b, x), (n, h, d, b)
            case PoolLayout.INTERLEAVED:
                return (n, 2, h, b, d), (n, 2, h, b, d)

    def geometry(self, k_shape: tuple[int, ...], v_shape: tuple[int, ...], itemsize: int) -> Geometry:
        """The sizes that give these two shapes. ValueError when no sizes do."""
        rank = {PoolLayout.X_SPLIT: 5, PoolLayout.INTERLEAVED: 5}.get(self, 4)
        if len(k_shape) == rank:
            match self:
                case PoolLayout.HND:
                    n, h, b, d = k_shape
                case PoolLayout.NHD:
                    n, b, h, d = k_shape
                case PoolLayout.X_SPLIT:
                    n, h, groups, b, x = k_shape
                    d = groups * x
                case PoolLayout.INTERLEAVED:
                    n, _, h, b, d = k_shape
            geometry = Geometry(n, h, b, d)
            if self.shapes(geometry, itemsize) == (k_shape, v_shape):
                return geometry
        raise ValueError(
            f"k_pool, v_pool: expected two {self.name} arrays of one geometry, {_EXPECTED[self]}; "
            f"got shapes {k_shape} and {v_shape}"
        )

    def strides(self, which: str, geometry: Geometry, itemsize: int) -> dict[str, int]:
        """How far apart neighbours lie, in elements, for `which` = "k" or "v": along block, head, token and dim.

        X_SPLIT's K steps by "dim" inside a group of x dims and by "group" from one group to the next; the other
        layouts have no "group". INTERLEAVED's V begins one "kv" stride into each block.
        """
        shape = self.shapes(geometry, itemsize)[_which(which)]
        return {axis: prod(shape[i + 1 :]) for i, axis in enumerate(self.axes(which))}

    def axes(self, which: str) -> tuple[str, ...]:
        """The names of the array's axes, outermost first."""
        return _AXES[self][_which(which)]

    def element_offset(
        self, which: str, geometry: Geometry, itemsize: int, *, block: Index, head: Index, token: Index, dim: Index
    ) -> Any:
        """Elements from the start of the K or V array to (block, head, token, dim). Arrays of indices broadcast.

        Worked: HND, 2 heads, block_size 4, head_dim 8: block 5, head 1, token 2, dim 3 is element
        ((5*2 + 1)*4 + 2)*8 + 3 = 371.
        """
        at = {"block": block, "head": head, "token": token, "dim": dim, "kv": _which(which)}
        # Real pools exceed 2^31 elements: offsets computed in the int32 of a block table would wrap.
        at = {axis: i if isinstance(i, int) else np.asarray(i).astype(np.int64) for axis, i in at.items()}
        if "group" in self.axes(which):
            at["group"], at["dim"] = divmod(at["dim"], X_BYTES // itemsize)
        return sum(at[axis] * stride for axis, stride in self.strides(which, geometry, itemsize).items())


def check_layout(layout: object) -> None:
    """TypeError for anything that is no PoolLayout, the name of one included."""
    if not isinstance(layout, PoolLayout):
        names = ", ".join(f"PoolLayout.{x.name}" for x in PoolLayout)
        raise TypeError(f"layout: expected a PoolLayout ({names}), got {layout!r}")


_AXES: dict[PoolLayout, tuple[tuple[str, ...], tuple[str, ...]]] = {
    PoolLayout.HND: (("block", "head", "token", "dim"),) * 2,
    PoolLayout.NHD: (("block", "token", "head", "dim"),) * 2,
    PoolLayout.X_SPLIT: (("block", "head", "group", "token", "dim"), ("block", "head", "dim", "token")),
    PoolLayout.INTERLEAVED: (("block", "kv", "head", "token", "dim"),) * 2,
}
_EXPECTED = {
    PoolLayout.HND: "[num_blocks, num_kv_heads, block_size, head_dim]",
    PoolLayout.NHD: "[num_blocks, block_size, num_kv_heads, head_dim]",
    PoolLayout.X_SPLIT: (
        "k [num_blocks, num_kv_heads, head_dim/x, block_size, x], x = 16 bytes, "
        "and v [num_blocks, num_kv_heads, head_dim, block_size]"
    ),
    PoolLayout.INTERLEAVED: "[num_blocks, 2, num_kv_heads, block_size, head_dim]",
}


def _which(which: str) -> int:
    if which not in ("k", "v"):
        raise ValueError(f'which: expected "k" or "v", got {which!r}')
    return int(which == "v")
